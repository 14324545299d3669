//! Errors of the crate.

use crate::error::{Error, ErrorKind};

/// The crate's errors as ours. I/O errors arrive as text, but `guard` has kept the real one.
pub(super) fn from_xfs(error: fs_xfs::Error) -> Error {
    use fs_xfs::Error as E;
    match error {
        E::Io(text) => Error::new(ErrorKind::Io, format!("xfs: {text}")),
        error @ (E::UnsupportedFeature(_) | E::DirtyLog) => {
            Error::new(ErrorKind::Unsupported, format!("xfs: {error}"))
        }
        error => Error::corrupt(format!("xfs: {error}")),
    }
}
