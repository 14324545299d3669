//! A guest's file system as a `tree`.
//!
//! Names are checked (and each is given once), owners are the mount's unless the guest's own are asked for, links and
//! special files stay what they are.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::names::{CUT_NAME_BYTES, find_cut, present};
use super::options::GuestOptions;
use crate::error::{Error, Result};
use crate::guestfs::host::pool::Pooled;
use crate::guestfs::{GuestAttr, GuestEntry, GuestInode};
use crate::io::ReadAt;
use crate::tree::{
    Attr, Base, DirEntry, DirStream, Directory, File, Identity, Leaf, Node, NodeKind,
};

/// A listing gives up after this many entries.
const MAX_ENTRIES: u64 = 20_000_000;

/// A mounted guest file system: what its nodes share.
pub struct GuestTree {
    fs: Arc<Pooled>,
    options: GuestOptions,
    /// Tells this file system's inodes from those of others.
    identity: u64,
}

impl GuestTree {
    /// The tree of a file system. `identity` must differ between file systems with different
    /// content.
    pub fn new(fs: Arc<Pooled>, options: GuestOptions, identity: u64) -> Arc<Self> {
        Arc::new(GuestTree {
            fs,
            options,
            identity,
        })
    }

    /// How its files are presented.
    pub(super) fn options(&self) -> GuestOptions {
        self.options
    }

    /// Looks a name up in the root directory.
    ///
    /// # Errors
    /// When the file system cannot be opened or read.
    pub fn lookup_in_root(self: &Arc<Self>, name: &OsStr) -> Result<Option<Node>> {
        let root = self.fs.with(|fs| Ok(fs.root()))?;
        self.lookup(root, name)
    }

    /// Lists the root directory.
    ///
    /// # Errors
    /// When the file system cannot be opened or read.
    pub fn list_root(self: &Arc<Self>) -> Result<Box<dyn DirStream>> {
        let root = self.fs.with(|fs| Ok(fs.root()))?;
        self.list(root)
    }

    /// The root directory itself, with the attributes of its inode.
    ///
    /// # Errors
    /// When the file system cannot be opened or its root cannot be read.
    pub fn root(self: &Arc<Self>) -> Result<Arc<dyn Directory>> {
        let (inode, attr) = self.fs.with(|fs| {
            let root = fs.root();
            Ok((root, fs.attr(root)?))
        })?;
        match self.node(inode, attr) {
            Node::Dir(dir) => Ok(dir),
            _ => Err(Error::corrupt(
                "the root of the file system is no directory",
            )),
        }
    }

    fn lookup(self: &Arc<Self>, dir: GuestInode, name: &OsStr) -> Result<Option<Node>> {
        if present(name, 0).is_none_or(|shown| shown != name) {
            return Ok(None);
        }
        let found = self.fs.with(|fs| {
            let mut found = fs.lookup(dir, name)?;
            if found.is_none() && name.len() > CUT_NAME_BYTES {
                found = find_cut(&**fs, dir, name)?;
            }
            found.map(|inode| Ok((inode, fs.attr(inode)?))).transpose()
        })?;
        Ok(found.map(|(inode, attr)| self.node(inode, attr)))
    }

    fn list(self: &Arc<Self>, dir: GuestInode) -> Result<Box<dyn DirStream>> {
        let mut stream = GuestStream {
            tree: self.clone(),
            dir,
            pending: VecDeque::new(),
            next: Some(0),
            seen: HashSet::new(),
            hasher: RandomState::new(),
            count: 0,
        };
        // The first part now, so that an unreadable directory fails when it is opened.
        stream.fill()?;
        Ok(Box::new(stream))
    }

    fn identity_of(&self, inode: GuestInode, kind: NodeKind) -> Identity {
        match kind {
            // A directory has one name; a damaged one with several is several.
            NodeKind::Dir => Identity::Named(self.identity ^ inode.rotate_left(20)),
            _ => Identity::Shared(self.identity, inode),
        }
    }

    /// What [`Self::identity_of`] made an identity of.
    fn inode_of(&self, identity: Identity) -> GuestInode {
        match identity {
            Identity::Named(number) => (number ^ self.identity).rotate_right(20),
            Identity::Shared(_, inode) => inode,
        }
    }

    /// The nodes of entries of this tree: see [`Directory::nodes`].
    pub fn nodes(self: &Arc<Self>, entries: &[DirEntry]) -> Vec<Option<Node>> {
        let mut wanted: Vec<(GuestInode, usize)> = entries
            .iter()
            .zip(0..)
            .map(|(entry, index)| (self.inode_of(entry.identity), index))
            .collect();
        // In their order on the volume: neighbours are in one block.
        wanted.sort_unstable();
        let mut found = vec![None; entries.len()];
        let together = self.fs.with(|fs| {
            let attrs = wanted.iter().map(|(inode, _)| fs.attr(*inode).ok());
            Ok(attrs.collect::<Vec<_>>())
        });
        let attrs = together.unwrap_or_else(|_| {
            // One of them stands for all in a call; by itself it does not.
            let alone = |inode| self.fs.with(|fs| fs.attr(inode)).ok();
            wanted.iter().map(|(inode, _)| alone(*inode)).collect()
        });
        for ((inode, index), attr) in wanted.into_iter().zip(attrs) {
            found[index] = attr.map(|attr| self.node(inode, attr));
        }
        found
    }

    fn node(self: &Arc<Self>, inode: GuestInode, attr: GuestAttr) -> Node {
        let kind = attr.kind;
        let node = Arc::new(GuestNode {
            tree: self.clone(),
            inode,
            attr,
        });
        match kind {
            NodeKind::Dir => Node::Dir(node),
            NodeKind::File => Node::File(node),
            _ => Node::Leaf(node),
        }
    }
}

struct GuestNode {
    tree: Arc<GuestTree>,
    inode: GuestInode,
    /// Read once: nothing changes.
    attr: GuestAttr,
}

impl Base for GuestNode {
    fn identity(&self) -> Identity {
        self.tree.identity_of(self.inode, self.attr.kind)
    }

    fn attr(&self) -> Result<Attr> {
        let own = self.tree.options.guest_owner;
        Ok(Attr {
            kind: self.attr.kind,
            size_bytes: self.attr.size_bytes,
            allocated_bytes: self.attr.allocated_bytes,
            permissions: self.attr.permissions | self.tree.options.added(self.attr.kind),
            links: self.attr.links,
            uid: own.then_some(self.attr.uid),
            gid: own.then_some(self.attr.gid),
            atime: self.attr.atime,
            mtime: self.attr.mtime,
            ctime: self.attr.ctime,
            rdev: self.attr.rdev,
        })
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        let all = self.tree.fs.with(|fs| fs.xattrs(self.inode))?;
        Ok(all.into_iter().map(|(name, _)| name).collect())
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let all = self.tree.fs.with(|fs| fs.xattrs(self.inode))?;
        Ok(all
            .into_iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value))
    }

    fn is_constant(&self) -> bool {
        true
    }
}

impl Directory for GuestNode {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        self.tree.lookup(self.inode, name)
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        self.tree.list(self.inode)
    }

    fn nodes(&self, entries: &[DirEntry]) -> Option<Vec<Option<Node>>> {
        Some(self.tree.nodes(entries))
    }
}

impl File for GuestNode {
    fn open(&self) -> Result<Arc<dyn ReadAt>> {
        let file = self.tree.fs.open_file(self.inode)?;
        if file.len_bytes() != self.attr.size_bytes {
            return Err(Error::corrupt(
                "a file's content has another length than its inode says",
            ));
        }
        Ok(file)
    }
}

impl Leaf for GuestNode {
    fn target(&self) -> Result<Option<OsString>> {
        match self.attr.kind {
            NodeKind::Symlink => self.tree.fs.with(|fs| fs.read_link(self.inode)).map(Some),
            _ => Ok(None),
        }
    }
}

struct GuestStream {
    tree: Arc<GuestTree>,
    dir: GuestInode,
    pending: VecDeque<GuestEntry>,
    next: Option<u64>,
    /// Keyed hashes of the names given so far: a damaged directory may hold one twice.
    seen: HashSet<u64>,
    hasher: RandomState,
    count: u64,
}

impl GuestStream {
    fn fill(&mut self) -> Result<()> {
        while self.pending.is_empty()
            && let Some(cursor) = self.next
        {
            let dir = self.dir;
            let batch = self.tree.fs.with(|fs| fs.list(dir, cursor))?;
            self.count += batch.entries.len() as u64;
            if batch.next.is_some_and(|next| next <= cursor) || self.count > MAX_ENTRIES {
                return Err(Error::corrupt("a directory goes on without an end"));
            }
            self.next = batch.next;
            self.pending = batch.entries.into();
        }
        Ok(())
    }
}

impl DirStream for GuestStream {
    fn next_entry(&mut self) -> Result<Option<DirEntry>> {
        loop {
            self.fill()?;
            let Some(entry) = self.pending.pop_front() else {
                return Ok(None);
            };
            let Some(name) = present(&entry.name, entry.inode) else {
                continue;
            };
            if !self.seen.insert(self.hasher.hash_one(&name)) {
                continue;
            }
            let kind = match entry.kind {
                Some(kind) => kind,
                None => match self.tree.fs.with(|fs| fs.attr(entry.inode)) {
                    Ok(attr) => attr.kind,
                    Err(error) if error.may_pass() => return Err(error),
                    // Listed all the same when its inode is damaged; looking it up says so.
                    Err(_) => NodeKind::File,
                },
            };
            return Ok(Some(DirEntry {
                name,
                kind,
                identity: self.tree.identity_of(entry.inode, kind),
            }));
        }
    }
}
