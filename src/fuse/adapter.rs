//! The kernel's requests, answered from a tree of nodes.
//!
//! Requests arrive on the session's threads. What a node says it can answer from memory is answered
//! there and then. So is other work as long as enough session threads stay free to listen, because
//! handing a request to another thread costs as much as the kernel's whole part of a small read.
//! The rest goes to one of two pools, one for reading files and one for everything about names, so
//! that neither slow reads nor many of them delay `ls`.
//!
//! Attributes: a look-up is answered with `quick_attr`, whose allocation may be a guess, and tells
//! the kernel not to keep it when exact attributes would cost something; `stat` then asks for them.
//! What the kernel asks through an open file (it does when a read meets the end of the file) needs
//! only the size.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle as Fh, Filesystem, FopenFlags, INodeNo, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attrs::Ownership;
use super::error_log::Operation;
use super::handlers::{Shared, reply_xattr};
use super::handles::{DirHandle, FileHandle, Seek};
use super::pool::{Pool, guarded};
use super::waiting::{Pending, Refuse, Waiting};
use crate::call::on_call;
use crate::tree::Node;

/// Longest name of a directory entry.
const NAME_MAX: usize = 255;

/// Threads for reads that wait. The number is that of reads in flight on slow storage; a thread
/// costs up to 1 MiB for its buffer.
const READ_THREADS: usize = 32;

/// Session threads that never do work that waits: one to listen while another copies.
const LISTENERS: usize = 2;

/// Threads for names, attributes, opening and listing.
const NAME_THREADS: usize = 16;

/// `whence` of `lseek` as the protocol passes it on.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The file system that `fuser` drives.
pub(super) struct Adapter {
    shared: Arc<Shared>,
    readers: Pool,
    names: Pool,
    /// Those whose answers take a while.
    patients: Arc<Waiting>,
    /// How many session threads may do work that waits, and how many are at it.
    may_wait: usize,
    waiting: AtomicUsize,
}

impl Adapter {
    /// An adapter for a session with this many threads.
    pub(super) fn new(
        root: Node,
        ownership: Ownership,
        session_threads: usize,
        patients: Arc<Waiting>,
    ) -> Self {
        Adapter {
            shared: Arc::new(Shared::new(root, ownership)),
            readers: Pool::new("brfs-read", READ_THREADS),
            names: Pool::new("brfs-name", NAME_THREADS),
            patients,
            may_wait: session_threads.saturating_sub(LISTENERS),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Answers a request about names: see [`Self::answer_with`].
    fn answer<R: Refuse>(
        &self,
        request: &Request,
        quick: bool,
        reply: R,
        handler: impl FnOnce(&Shared, Pending<R>) + Send + 'static,
    ) {
        self.answer_with(&self.names, request, quick, reply, handler);
    }

    /// Answers here when that is quick or others are left to listen, on the pool otherwise. What is
    /// not quick can be interrupted.
    fn answer_with<R: Refuse>(
        &self,
        pool: &Pool,
        request: &Request,
        quick: bool,
        reply: R,
        handler: impl FnOnce(&Shared, Pending<R>) + Send + 'static,
    ) {
        if quick {
            return guarded(|| handler(&self.shared, Pending::Quick(reply)));
        }
        let reply = self.patients.watch(request.pid(), reply);
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.may_wait {
            guarded(|| on_call(|| handler(&self.shared, reply)));
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let shared = Arc::clone(&self.shared);
            pool.submit(move || on_call(|| handler(&shared, reply)));
        }
    }

    fn node(&self, ino: INodeNo) -> Option<Node> {
        self.shared.inodes.node(ino.0)
    }
}

/// Whether calls on a node may be made on a session thread.
fn is_quick(node: &Node) -> bool {
    // A node's own code runs here, so its panics are caught here too.
    let mut quick = false;
    guarded(|| quick = node.base().is_quick());
    quick
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        super::negotiate::negotiate(config);
        if self.shared.enforces_acls() {
            super::negotiate::negotiate_acls(config)?;
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > NAME_MAX {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let dir = match self.node(parent) {
            Some(Node::Dir(dir)) => dir,
            Some(_) => return reply.error(Errno::ENOTDIR),
            None => return reply.error(Errno::ESTALE),
        };
        let parent = parent.0;
        if !is_quick(&Node::Dir(Arc::clone(&dir))) {
            let name = name.to_owned();
            return self.answer(req, false, reply, move |shared, reply| {
                match shared.lookup(parent, &*dir, &name) {
                    Ok(node) => {
                        let quick = node.base().is_quick();
                        shared.reply_entry(parent, &name, node, quick, reply);
                    }
                    Err(number) => reply.refuse(number),
                }
            });
        }
        // The name is found here; only a node with attributes to fetch moves to the pool.
        guarded(|| match self.shared.lookup(parent, &*dir, name) {
            Ok(node) => {
                let quick = node.base().is_quick();
                let name = name.to_owned();
                self.answer(req, quick, reply, move |shared, reply| {
                    shared.reply_entry(parent, &name, node, quick, reply);
                });
            }
            Err(number) => reply.error(number),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        guarded(|| self.shared.inodes.forget(ino.0, lookups));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<Fh>, reply: ReplyAttr) {
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ESTALE);
        };
        let quick = is_quick(&node);
        self.answer(req, quick, reply, move |shared, reply| {
            let size_only = fh.is_some() && !quick && !node.base().is_constant();
            shared.getattr(ino.0, &node, size_only, reply);
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let node = match self.node(ino) {
            Some(node @ Node::Leaf(_)) => node,
            Some(_) => return reply.error(Errno::EINVAL),
            None => return reply.error(Errno::ESTALE),
        };
        self.answer(req, is_quick(&node), reply, move |shared, reply| {
            let Node::Leaf(leaf) = node else { return };
            match leaf.target() {
                Ok(Some(target)) => {
                    if let Some(reply) = reply.take() {
                        reply.data(target.as_bytes());
                    }
                }
                Ok(None) => reply.refuse(Errno::EINVAL),
                Err(error) => {
                    reply.refuse(shared.fail(ino.0, "follow", Operation::Using, &error));
                }
            }
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let node = match self.node(ino) {
            Some(node @ Node::File(_)) => node,
            Some(Node::Dir(_)) => return reply.error(Errno::EISDIR),
            Some(Node::Leaf(_)) => return reply.error(Errno::ENXIO),
            None => return reply.error(Errno::ESTALE),
        };
        self.answer(req, is_quick(&node), reply, move |shared, reply| {
            let Node::File(file) = node else { return };
            match FileHandle::open(&*file) {
                Ok(handle) => {
                    let Some(reply) = reply.take() else { return };
                    let number = shared.files.insert(handle);
                    // An inode number stands for one content for ever: its pages stay good.
                    let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                    reply.opened(Fh(number), flags);
                }
                Err(error) => reply.refuse(shared.fail(ino.0, "open", Operation::Using, &error)),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.shared.files.get(fh.0) else {
            return reply.error(Errno::EBADF);
        };
        let len = file.within(offset, size as usize);
        if len == 0 {
            return reply.data(&[]);
        }
        let mut quick = false;
        guarded(|| quick = file.is_non_blocking(offset, len));
        self.answer_with(&self.readers, req, quick, reply, move |shared, reply| {
            shared.read(ino.0, &file, offset, len, reply);
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(file) = self.shared.files.get(fh.0) else {
            return reply.error(Errno::EBADF);
        };
        let seek = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.answer(req, false, reply, move |shared, reply| {
            match file.seek(from, seek) {
                Ok(Some(found)) => match i64::try_from(found) {
                    Ok(found) => {
                        if let Some(reply) = reply.take() {
                            reply.offset(found);
                        }
                    }
                    Err(_) => reply.refuse(Errno::EOVERFLOW),
                },
                Ok(None) => reply.refuse(Errno::ENXIO),
                Err(error) => {
                    let what = "find the holes of";
                    reply.refuse(shared.fail(ino.0, what, Operation::Reading, &error));
                }
            }
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: Fh,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let gone = self.shared.files.remove(fh.0);
        reply.ok();
        guarded(|| drop(gone));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let node = match self.node(ino) {
            Some(node @ Node::Dir(_)) => node,
            Some(_) => return reply.error(Errno::ENOTDIR),
            None => return reply.error(Errno::ESTALE),
        };
        self.answer(req, is_quick(&node), reply, move |shared, reply| {
            let Node::Dir(dir) = node else { return };
            match DirHandle::open(dir) {
                Ok(handle) => {
                    let Some(reply) = reply.take() else { return };
                    let number = shared.dirs.insert(handle);
                    reply.opened(Fh(number), FopenFlags::empty());
                }
                Err(error) => reply.refuse(shared.fail(ino.0, "list", Operation::Finding, &error)),
            }
        });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: Fh, offset: u64, reply: ReplyDirectory) {
        let Some(dir) = self.shared.dirs.get(fh.0) else {
            return reply.error(Errno::EBADF);
        };
        let mut quick = false;
        guarded(|| quick = dir.is_quick());
        self.answer(req, quick, reply, move |shared, reply| {
            shared.readdir(ino.0, &dir, offset, reply);
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: Fh,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let Some(dir) = self.shared.dirs.get(fh.0) else {
            return reply.error(Errno::EBADF);
        };
        let mut quick = false;
        guarded(|| quick = dir.is_quick());
        self.answer(req, quick, reply, move |shared, reply| {
            shared.readdirplus(ino.0, &dir, offset, reply);
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: Fh,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let gone = self.shared.dirs.remove(fh.0);
        reply.ok();
        guarded(|| drop(gone));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // The repository's size is not known without walking it, and nothing can be written: a full
        // file system of no size, as `df` leaves out unless asked.
        reply.statfs(0, 0, 0, 0, 0, 4096, NAME_MAX as u32, 4096);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ESTALE);
        };
        let name = name.to_owned();
        self.answer(
            req,
            is_quick(&node),
            reply,
            move |shared, reply| match node.base().xattr(&name) {
                Ok(Some(value)) => reply_xattr(reply, &shared.xattr_shown(&name, value), room),
                Ok(None) => reply.refuse(Errno::NO_XATTR),
                Err(error) => {
                    let what = "read an attribute of";
                    reply.refuse(shared.fail(ino.0, what, Operation::Using, &error));
                }
            },
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, room: u32, reply: ReplyXattr) {
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ESTALE);
        };
        self.answer(req, is_quick(&node), reply, move |shared, reply| match node
            .base()
            .xattr_names()
        {
            Ok(names) => {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(name.as_bytes());
                    list.push(0);
                }
                reply_xattr(reply, &list, room);
            }
            Err(error) => {
                let what = "list the attributes of";
                reply.refuse(shared.fail(ino.0, what, Operation::Using, &error));
            }
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: Fh,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Tells the kernel never to ask again.
        reply.error(Errno::ENOSYS);
    }

    // The mount is read-only and the kernel refuses these by itself; they arrive only when somebody
    // remounts it writable.

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<Fh>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: Fh,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: Fh,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}
