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
pub mod host;
mod iso9660;
pub mod ntfs;
mod squashfs;
mod xfs;

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::kind::NodeKind;
use crate::volume::Content;

/// An inode of one guest file system; the adapter decides how it packs what it needs.
pub type GuestInode = u64;

/// What the guest's file system records about an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAttr {
    /// The type.
    pub kind: NodeKind,
    /// Length in bytes; of a symbolic link, the length of its target.
    pub size_bytes: u64,
    /// Allocated bytes.
    pub allocated_bytes: u64,
    /// Permission bits (`0o7777`).
    pub permissions: u16,
    /// Link count.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: SystemTime,
    /// Last modification.
    pub mtime: SystemTime,
    /// Last status change.
    pub ctime: SystemTime,
    /// Device number of a device node, in the kernel's encoding.
    pub rdev: u32,
}

/// One entry of a guest directory, as stored: the name is not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestEntry {
    /// The name.
    pub name: OsString,
    /// The inode.
    pub inode: GuestInode,
    /// The type, when the directory says so.
    pub kind: Option<NodeKind>,
}

/// A part of a listing.
#[derive(Debug, Default)]
pub struct Batch {
    /// Entries; `.` and `..` may be among them.
    pub entries: Vec<GuestEntry>,
    /// Where to go on, `None` at the end.
    pub next: Option<u64>,
}

/// A guest's file system, read-only. Calls block, may be made from several threads at once, and may
/// panic on hostile volumes: everything outside this module goes through [`host::pool::Pooled`].
pub trait GuestFs: Send + Sync {
    /// The root directory.
    fn root(&self) -> GuestInode;

    /// Tells states apart that the same volume can be shown in, as when another one that belongs to it cannot be
    /// read: equal numbers, equal contents.
    fn state(&self) -> u64 {
        0
    }

    /// Attributes.
    ///
    /// # Errors
    /// `Corrupt` when the inode is not one in use, or damaged.
    fn attr(&self, inode: GuestInode) -> Result<GuestAttr>;

    /// The inode of a name, `None` when there is none.
    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>>;

    /// A part of a listing, from `cursor` on (0, or what the last part gave).
    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch>;

    /// The target of a symbolic link, verbatim.
    fn read_link(&self, inode: GuestInode) -> Result<OsString>;

    /// All extended attributes with their values.
    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let _ = inode;
        Ok(Vec::new())
    }

    /// The content of a regular file. Its length is `size_bytes` of its attributes.
    ///
    /// # Errors
    /// `Unsupported` for content that cannot be given as the guest would see it (encrypted,
    /// deduplicated …).
    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>>;
}

/// Whether there is a reader for this content.
pub fn is_readable(content: Content) -> bool {
    use Content::{Btrfs, ExFat, Ext, Fat, Iso9660, Ntfs, Squashfs, Xfs};
    matches!(
        content,
        Ext | Xfs | Btrfs | Ntfs | Fat | ExFat | Iso9660 | Squashfs
    )
}

/// Finds the other volumes of the machine that hold something, and where they are, for file systems that
/// lie over several. Costs a look at all disks.
pub type Others<'a> = &'a dyn Fn(Content) -> Result<Vec<(String, Arc<dyn ReadAt>)>>;

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

/// A time from seconds and nanoseconds since 1970, which may be negative.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let fraction = Duration::from_nanos(u64::from(nanoseconds.min(999_999_999)));
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|base| base.checked_add(fraction))
        .unwrap_or(UNIX_EPOCH)
}

/// A device number in the kernel's encoding, `None` for one that it does not have.
fn device_number(major: u64, minor: u64) -> Option<u32> {
    let major = u32::try_from(major).ok().filter(|&major| major < 1 << 12)?;
    let minor = u32::try_from(minor).ok().filter(|&minor| minor < 1 << 20)?;
    Some((minor & 0xFF) | major << 8 | (minor & 0xF_FF00) << 12)
}

/// The node kind of a Unix mode.
fn kind_of_mode(mode: u32) -> Option<NodeKind> {
    Some(match mode & 0o170_000 {
        0o040_000 => NodeKind::Dir,
        0o100_000 => NodeKind::File,
        0o120_000 => NodeKind::Symlink,
        0o010_000 => NodeKind::Fifo,
        0o020_000 => NodeKind::CharDevice,
        0o060_000 => NodeKind::BlockDevice,
        0o140_000 => NodeKind::Socket,
        _ => return None,
    })
}
