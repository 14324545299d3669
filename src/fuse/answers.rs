//! What the answers to requests are: the adapter's handlers, on whatever thread they run.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::time::Duration;

use fuser::{
    Errno, Generation, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyXattr,
};

use super::attrs::{Ownership, file_type};
use super::faults::{Doing, FaultLog, errno};
use super::handles::{DirHandle, FileHandle, Handles};
use super::inodes::Inodes;
use crate::error::Error;
use crate::io::Chunk;
use crate::tree::{Directory, Node, NodeKind};

/// For attributes that are good for this one answer only.
const ONCE: Duration = Duration::ZERO;

/// How long the kernel may use a name or attributes without asking again.
const TTL: Duration = Duration::from_secs(1);

/// The same for what cannot change. Not for ever: the kernel then lets go of what nobody uses, and a
/// restore point that is removed is gone from its own directory after [`TTL`] anyway.
const TTL_CONSTANT: Duration = Duration::from_secs(600);

thread_local! {
    /// Each thread's buffer for reads: not cleared between requests.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How long the kernel may keep what it was told about a node.
fn ttl_of(node: &Node) -> Duration {
    match node.base().is_constant() {
        true => TTL_CONSTANT,
        false => TTL,
    }
}

/// What handlers need on any thread.
pub(super) struct Shared {
    pub(super) inodes: Inodes,
    pub(super) files: Handles<FileHandle>,
    pub(super) dirs: Handles<DirHandle>,
    ownership: Ownership,
    faults: FaultLog,
}

impl Shared {
    pub(super) fn new(root: Node, ownership: Ownership) -> Self {
        Shared {
            inodes: Inodes::new(root),
            files: Handles::new(),
            dirs: Handles::new(),
            ownership,
            faults: FaultLog::default(),
        }
    }

    /// Logs an error about a node and gives the errno for it.
    pub(super) fn fail(&self, ino: u64, what: &str, doing: Doing, error: &Error) -> Errno {
        let number = errno(error, doing);
        // That a name is not there is an answer, not a fault.
        if number != Errno::ENOENT {
            let path = || self.inodes.path(ino);
            self.faults
                .report(|| format!("cannot {what} {:?}", path()), error);
        }
        number
    }

    pub(super) fn lookup(
        &self,
        parent: u64,
        dir: &dyn Directory,
        name: &OsStr,
    ) -> Result<Node, Errno> {
        match dir.lookup(name) {
            Ok(Some(node)) => Ok(node),
            Ok(None) => Err(Errno::ENOENT),
            Err(error) => Err(self.fail(parent, "look into", Doing::Finding, &error)),
        }
    }

    pub(super) fn reply_entry(
        &self,
        parent: u64,
        name: &OsStr,
        node: Node,
        quick: bool,
        reply: ReplyEntry,
    ) {
        // What is in memory can be exact at once. Directories and links have nothing to guess.
        let exact = quick || !matches!(node, Node::File(_)) || node.base().is_constant();
        let attr = if exact {
            node.base().attr()
        } else {
            node.base().quick_attr()
        };
        match attr {
            Ok(attr) => {
                let ttl = ttl_of(&node);
                let ino = self.inodes.remember(parent, name, node);
                let attr = self.ownership.file_attr(ino, &attr);
                let attr_ttl = if exact { ttl } else { ONCE };
                reply.entry_with_ttls(&attr_ttl, &ttl, &attr, Generation(0));
            }
            Err(error) => {
                let number = errno(&error, Doing::Using);
                let path = || self.inodes.path(parent).join(name);
                self.faults
                    .report(|| format!("cannot tell about {:?}", path()), &error);
                reply.error(number);
            }
        }
    }

    pub(super) fn getattr(&self, ino: u64, node: &Node, size_only: bool, reply: ReplyAttr) {
        let attr = if size_only {
            node.base().quick_attr()
        } else {
            node.base().attr()
        };
        match attr {
            Ok(attr) => {
                let ttl = if size_only { ONCE } else { ttl_of(node) };
                reply.attr(&ttl, &self.ownership.file_attr(ino, &attr));
            }
            Err(error) => reply.error(self.fail(ino, "tell about", Doing::Using, &error)),
        }
    }

    pub(super) fn read(
        &self,
        ino: u64,
        file: &FileHandle,
        offset: u64,
        len: usize,
        reply: ReplyData,
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < len {
                // Fresh rather than grown: nothing in it is worth copying.
                *scratch = vec![0; len.next_power_of_two()];
            }
            match file.read(offset, len, scratch) {
                Ok(Chunk::Filled(_)) => reply.data(&scratch[..len]),
                Ok(Chunk::Shared(bytes)) => reply.data(&bytes),
                Err(error) => {
                    let what = || {
                        let path = self.inodes.path(ino);
                        format!("cannot read {len} bytes at {offset} of {path:?}")
                    };
                    self.faults.report(what, &error);
                    reply.error(errno(&error, Doing::Reading));
                }
            }
        });
    }

    pub(super) fn readdir(
        &self,
        ino: u64,
        dir: &DirHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let dots = [(ino, "."), (self.inodes.parent(ino), "..")];
        for (position, (number, name)) in dots.into_iter().enumerate() {
            let after = position as u64 + 1;
            if offset < after {
                let full = reply.add(INodeNo(number), after, file_type(NodeKind::Dir), name);
                debug_assert!(!full, "the kernel's buffer holds more than two entries");
            }
        }
        let listed = dir.entries(offset, |entry, after| {
            let number = self
                .inodes
                .number_for_listing(ino, &entry.name, entry.identity);
            reply.add(INodeNo(number), after, file_type(entry.kind), &entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.fail(ino, "list", Doing::Finding, &error)),
        }
    }
}

/// Answers an extended attribute request: the size when asked for it, the bytes when they fit.
pub(super) fn reply_xattr(reply: ReplyXattr, value: &[u8], room: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
