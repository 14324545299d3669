//! What a mount shows, without FUSE: directories, files, links, attributes.
//!
//! `views` builds these nodes from a repository and from the guest file systems in it; `fuse` turns
//! kernel requests into calls on them. Neither errno nor FUSE types appear here.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::Result;
use crate::io::ReadAt;
pub use crate::kind::NodeKind;

/// What an object *is*, over time: two nodes with equal identities are the same object with the
/// same content, so the kernel may keep its pages. A restore point that was deleted and made again
/// under the same name has another identity, and gets another inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Distinguishes generations of one name within one directory.
    Named(u64),
    /// An object with names in several places (hard links): `(file system, its inode number)`.
    Shared(u64, u64),
}

/// Attributes as `stat` shows them. `None` owners mean "the owner of the mount".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// The type.
    pub kind: NodeKind,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Allocated bytes; shown as `st_blocks` in units of 512 bytes.
    pub allocated_bytes: u64,
    /// Permission bits (`0o7777`) before the mount's umask, which takes bits away.
    pub permissions: u16,
    /// Link count.
    pub links: u32,
    /// Owner, when the node has one of its own.
    pub uid: Option<u32>,
    /// Group, when the node has one of its own.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: SystemTime,
    /// Last modification; for a restore point the time of the backup.
    pub mtime: SystemTime,
    /// Last status change.
    pub ctime: SystemTime,
    /// Device number of a device node, in the kernel's encoding.
    pub rdev: u32,
}

impl Attr {
    /// A directory that anybody whom the mount admits may read, with all times set to `time`.
    pub fn dir(time: SystemTime) -> Self {
        Attr {
            kind: NodeKind::Dir,
            size_bytes: 0,
            allocated_bytes: 0,
            permissions: 0o555,
            links: 2,
            uid: None,
            gid: None,
            atime: time,
            mtime: time,
            ctime: time,
            rdev: 0,
        }
    }

    /// A readable file of this size.
    pub fn file(size_bytes: u64, allocated_bytes: u64, time: SystemTime) -> Self {
        Attr {
            kind: NodeKind::File,
            size_bytes,
            allocated_bytes,
            permissions: 0o444,
            links: 1,
            ..Attr::dir(time)
        }
    }

    /// A symbolic link with a target of this length.
    pub fn symlink(target_len: usize, time: SystemTime) -> Self {
        Attr {
            kind: NodeKind::Symlink,
            permissions: 0o777,
            ..Attr::file(target_len as u64, 0, time)
        }
    }
}

/// Any node.
#[derive(Clone)]
pub enum Node {
    /// A directory.
    Dir(Arc<dyn Directory>),
    /// A regular file.
    File(Arc<dyn File>),
    /// A symbolic link or a special file: nothing to open.
    Leaf(Arc<dyn Leaf>),
}

/// What every node has. Calls may block; `attr` of a file may be costly (see [`Base::quick_attr`]).
pub trait Base: Send + Sync {
    /// See [`Identity`].
    fn identity(&self) -> Identity;

    /// The exact attributes.
    fn attr(&self) -> Result<Attr>;

    /// The attributes where `allocated_bytes` may be a cheap guess; everything else is exact. Used
    /// to answer look-ups, which the kernel makes for every path it walks.
    fn quick_attr(&self) -> Result<Attr> {
        self.attr()
    }

    /// Names of the extended attributes.
    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(Vec::new())
    }

    /// One extended attribute, `None` when there is none of that name.
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let _ = name;
        Ok(None)
    }

    /// Whether the node's attributes can never change, nor, for a directory, what its names lead to:
    /// the kernel may then keep what it was told for long.
    fn is_constant(&self) -> bool {
        false
    }

    /// Whether calls on this node are answered from memory, so that they may be made on a thread
    /// that others wait for.
    fn is_quick(&self) -> bool {
        false
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name: no `/`, no NUL, not empty, at most 255 bytes, unique in its directory.
    pub name: OsString,
    /// The type.
    pub kind: NodeKind,
    /// The identity that a look-up of the name would give.
    pub identity: Identity,
}

/// A listing in progress: entries in a stable order, each once, without `.` and `..`.
pub trait DirStream: Send {
    /// The next entry, `None` at the end.
    fn next_entry(&mut self) -> Result<Option<DirEntry>>;
}

/// A directory.
pub trait Directory: Base {
    /// The node of a name, `None` when there is none.
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>>;

    /// Starts a listing. It shows the directory as it is now, whatever changes meanwhile.
    fn list(&self) -> Result<Box<dyn DirStream>>;

    /// The nodes of some entries of a listing, in their order, `None` for one that cannot be had (a
    /// look-up says why). Only for directories whose nodes cost little more than their names; the
    /// others, as by default, give `None`, and their nodes are looked up when somebody wants them.
    fn nodes(&self, entries: &[DirEntry]) -> Option<Vec<Option<Node>>> {
        let _ = entries;
        None
    }
}

/// A file.
pub trait File: Base {
    /// Opens the file for one reader. The content cannot change while it is open: when the
    /// storage can no longer give it, reads fail.
    fn open(&self) -> Result<Arc<dyn ReadAt>>;
}

/// A symbolic link or a special file.
pub trait Leaf: Base {
    /// The target of a symbolic link, verbatim; `None` for special files.
    fn target(&self) -> Result<Option<OsString>>;
}

impl Node {
    /// What is common to all nodes.
    pub fn base(&self) -> &dyn Base {
        match self {
            Node::Dir(n) => &**n,
            Node::File(n) => &**n,
            Node::Leaf(n) => &**n,
        }
    }
}

/// A listing that is already complete.
pub struct EntryList(std::vec::IntoIter<DirEntry>);

impl EntryList {
    /// From entries in their final order.
    pub fn new(entries: Vec<DirEntry>) -> Self {
        EntryList(entries.into_iter())
    }
}

impl DirStream for EntryList {
    fn next_entry(&mut self) -> Result<Option<DirEntry>> {
        Ok(self.0.next())
    }
}
