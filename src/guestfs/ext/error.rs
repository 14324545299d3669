//! Errors of the crate.

use crate::error::{Error, ErrorKind};
use crate::guestfs::host::device::from_io;

/// The crate's errors as ours.
pub(super) fn from_ext(error: fs_ext4::Error) -> Error {
    use fs_ext4::Error as E;
    match error {
        E::Io(error) => from_io(error),
        E::UnsupportedIncompat(bits) => Error::new(
            ErrorKind::Unsupported,
            format!("ext: unsupported features: {}", feature_names(bits)),
        ),
        error @ (E::UnsupportedRoCompat(_) | E::Unsupported(_)) => {
            Error::new(ErrorKind::Unsupported, format!("ext: {error}"))
        }
        error => Error::corrupt(format!("ext: {error}")),
    }
}

/// The features in a mask (`s_feature_incompat`), as `dumpe2fs` names them.
fn feature_names(bits: u32) -> String {
    const NAMES: [(u32, &str); 16] = [
        (0x1, "compression"),
        (0x2, "filetype"),
        (0x4, "needs_recovery"),
        (0x8, "journal_dev"),
        (0x10, "meta_bg"),
        (0x40, "extents"),
        (0x80, "64bit"),
        (0x100, "mmp"),
        (0x200, "flex_bg"),
        (0x400, "ea_inode"),
        (0x1000, "dirdata"),
        (0x2000, "metadata_csum_seed"),
        (0x4000, "large_dir"),
        (0x8000, "inline_data"),
        (0x1_0000, "encrypt"),
        (0x2_0000, "casefold"),
    ];
    let set = (0..32).map(|bit| 1u32 << bit).filter(|bit| bits & bit != 0);
    let name = |bit| match NAMES.iter().find(|(known, _)| *known == bit) {
        Some((_, name)) => (*name).to_string(),
        None => format!("unknown ({bit:#x})"),
    };
    set.map(name).collect::<Vec<_>>().join(", ")
}
