//! The files in guest volumes: one trait, one adapter per file system, read in process.
//!
//! Flow: `volume` says what a volume holds → [`open`] makes the adapter → [`host::pool`] opens it when it is
//! first needed, drops it when idle, and keeps a reader that panics from harming others. What is shown of it is
//! not decided here: inodes go in, attributes, names and bytes come out.
//!
//! The adapters use crates that read metadata; they are young and guest volumes are hostile, so
//! every call into them goes through [`host::guard`]: a panic becomes an error, an I/O error that a crate
//! swallows still fails the call, and the bytes one call may read are bounded. File contents are
//! read from the volume by extents wherever the crate gives them.

pub mod btrfs;
mod common;
mod ext;
mod fat;
mod fs;
pub mod host;
mod iso9660;
pub mod ntfs;
mod squashfs;
mod xfs;

use std::sync::Arc;

pub use self::fs::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, Others};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::volume::Content;

/// Whether there is a reader for this content.
pub fn is_readable(content: Content) -> bool {
    use Content::{Btrfs, ExFat, Ext, Fat, Iso9660, Ntfs, Squashfs, Xfs};
    matches!(
        content,
        Ext | Xfs | Btrfs | Ntfs | Fat | ExFat | Iso9660 | Squashfs
    )
}

/// Opens the file system of a volume that is all there is. See [`open_among`].
///
/// # Errors
/// As [`open_among`].
pub fn open(content: Content, volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
    open_among(content, volume, &|_| Ok(Vec::new()))
}

/// Opens a volume's file system. Reads its superblock, and its journal when that is dirty. `others` is called
/// only when the volume says that it is not all.
///
/// # Errors
/// `Unsupported` for contents without a reader and for features that a reader does not know;
/// `Corrupt` when the volume does not make sense.
pub fn open_among(
    content: Content,
    volume: Arc<dyn ReadAt>,
    others: Others<'_>,
) -> Result<Arc<dyn GuestFs>> {
    match content {
        Content::Ext => ext::ExtFs::open(volume, others),
        Content::Xfs => xfs::XfsFs::open(volume),
        Content::Btrfs => btrfs::BtrfsFs::open(volume, others),
        Content::Ntfs => ntfs::NtfsFs::open(volume),
        Content::Fat | Content::ExFat => fat::FatFs::open(volume),
        Content::Iso9660 => iso9660::IsoFs::open(volume),
        Content::Squashfs => squashfs::SquashFs::open(volume),
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "volumes with {} are shown as raw images only",
                other.as_str()
            ),
        )),
    }
}
