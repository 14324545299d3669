//! What a reader of a guest's file system gives: the one trait, and what goes in and comes out.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::Result;
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
/// panic on hostile volumes: everything outside this module goes through [`Pooled`](super::host::pool::Pooled).
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

/// Finds the other volumes of the machine that hold something, and where they are, for file systems that
/// lie over several. Costs a look at all disks.
pub type Others<'a> = &'a dyn Fn(Content) -> Result<Vec<(String, Arc<dyn ReadAt>)>>;
