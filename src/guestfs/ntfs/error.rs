//! What damaged structures of NTFS are as errors.

use crate::error::Error;

/// An error about a damaged volume.
pub(super) fn bad(message: &str) -> Error {
    Error::corrupt(format!("ntfs: {message}"))
}
