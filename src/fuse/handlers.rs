//! What the answers to requests are: the adapter's handlers, on whatever thread they run.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, Generation, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEntry, ReplyXattr,
};

use super::acl;
use super::attrs::{Ownership, file_type};
use super::error_log::{FaultLog, Operation, errno};
use super::handles::{DirHandle, FileHandle, Handles};
use super::inodes::Inodes;
use super::readdirplus::ReaddirplusPolicy;
use super::waiting::Pending;
use crate::error::Error;
use crate::io::Chunk;
use crate::tree::{Attr, DirEntry, Directory, Node, NodeKind};

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
    demand: ReaddirplusPolicy,
}

impl Shared {
    pub(super) fn new(root: Node, ownership: Ownership) -> Self {
        Shared {
            inodes: Inodes::new(root),
            files: Handles::new(),
            dirs: Handles::new(),
            ownership,
            faults: FaultLog::default(),
            demand: ReaddirplusPolicy::default(),
        }
    }

    /// Whether the kernel is to go by access control lists.
    pub(super) fn enforces_acls(&self) -> bool {
        self.ownership.acls
    }

    /// An attribute's value as it is shown.
    pub(super) fn xattr_shown(&self, name: &OsStr, value: Vec<u8>) -> Vec<u8> {
        match self.ownership.acls && name == acl::ACCESS {
            true => acl::without(value, self.ownership.umask),
            false => value,
        }
    }

    /// Logs an error about a node and gives the errno for it.
    pub(super) fn fail(&self, ino: u64, what: &str, doing: Operation, error: &Error) -> Errno {
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
            Err(error) => Err(self.fail(parent, "look into", Operation::Finding, &error)),
        }
    }

    pub(super) fn reply_entry(
        &self,
        parent: u64,
        name: &OsStr,
        node: Node,
        quick: bool,
        reply: Pending<ReplyEntry>,
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
                let Some(reply) = reply.take() else { return };
                let ttl = ttl_of(&node);
                if node.base().is_constant() && matches!(node, Node::File(_)) {
                    self.demand.looked_up();
                }
                let told = (!node.base().is_constant()).then_some(&attr);
                let ino = self.inodes.remember(parent, name, node, told);
                let attr = self.ownership.file_attr(ino, &attr);
                let attr_ttl = if exact { ttl } else { ONCE };
                reply.entry_with_ttls(&attr_ttl, &ttl, &attr, Generation(0));
            }
            Err(error) => {
                let number = errno(&error, Operation::Using);
                let path = || self.inodes.path(parent).join(name);
                self.faults
                    .report(|| format!("cannot tell about {:?}", path()), &error);
                reply.refuse(number);
            }
        }
    }

    pub(super) fn getattr(
        &self,
        ino: u64,
        node: &Node,
        size_only: bool,
        reply: Pending<ReplyAttr>,
    ) {
        let attr = if size_only {
            node.base().quick_attr()
        } else {
            node.base().attr()
        };
        match attr {
            Ok(attr) => {
                let Some(reply) = reply.take() else { return };
                let ttl = if size_only { ONCE } else { ttl_of(node) };
                if !node.base().is_constant() {
                    self.inodes.tell(ino, &attr);
                }
                reply.attr(&ttl, &self.ownership.file_attr(ino, &attr));
            }
            Err(error) => reply.refuse(self.fail(ino, "tell about", Operation::Using, &error)),
        }
    }

    pub(super) fn read(
        &self,
        ino: u64,
        file: &FileHandle,
        offset: u64,
        len: usize,
        reply: Pending<ReplyData>,
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < len {
                // Fresh rather than grown: nothing in it is worth copying.
                *scratch = vec![0; len.next_power_of_two()];
            }
            match file.read(offset, len, scratch) {
                Ok(chunk) => {
                    let Some(reply) = reply.take() else { return };
                    match chunk {
                        Chunk::Filled => reply.data(&scratch[..len]),
                        Chunk::Shared(bytes) => reply.data(&bytes),
                    }
                }
                Err(error) => {
                    let what = || {
                        let path = self.inodes.path(ino);
                        format!("cannot read {len} bytes at {offset} of {path:?}")
                    };
                    self.faults.report(what, &error);
                    reply.refuse(errno(&error, Operation::Reading));
                }
            }
        });
    }

    /// A listing with attributes, which saves the kernel a look-up for each entry. Every entry that fits
    /// counts as one.
    ///
    /// Where nodes cost more than names (see [`Directory::nodes`]), and where one cannot be had, an entry
    /// is told with what the kernel knows already, or with nothing but its type, and for no time at all.
    /// (The protocol has entries without a node for this; `fuser` cannot send them.) What it knows
    /// already must be told again: the kernel would take another size for a change of the file.
    pub(super) fn readdirplus(
        &self,
        ino: u64,
        dir: &DirHandle,
        offset: u64,
        mut reply: Pending<ReplyDirectoryPlus>,
    ) {
        let now = SystemTime::UNIX_EPOCH;
        let dots = [(ino, "."), (self.inodes.parent(ino), "..")];
        for (position, (number, name)) in dots.into_iter().enumerate() {
            let after = position as u64 + 1;
            if offset < after {
                // The kernel takes only the number and the type of these.
                let attr = self.ownership.file_attr(number, &Attr::dir(now));
                let full = reply.with(|reply| {
                    reply.add(INodeNo(number), after, name, &ONCE, &attr, Generation(0))
                });
                debug_assert!(
                    full != Some(true),
                    "the kernel's buffer holds more than two entries"
                );
            }
        }
        let most = match offset {
            0 => self.demand.at_start(),
            _ => usize::MAX,
        };
        let mut given = Vec::new();
        let listed = dir.entries_with_nodes(offset, most, |entry, node, after| {
            let (number, attr, ttl) = self.plus_entry(ino, entry, node);
            let attr = self.ownership.file_attr(number, &attr);
            let place = INodeNo(number);
            let added = reply
                .with(|reply| reply.add(place, after, &entry.name, &ttl, &attr, Generation(0)));
            // Nobody who waits any more is as good as no room.
            let full = added.unwrap_or(true);
            match full {
                true => self.inodes.forget(number, 1),
                false => given.push(number),
            }
            full
        });
        let failed = listed.map_err(|error| self.fail(ino, "list", Operation::Finding, &error));
        match (reply.take(), failed) {
            (Some(reply), Ok(())) => reply.ok(),
            (reply, failed) => {
                // The kernel never gets these, so it will not forget them.
                for number in given {
                    self.inodes.forget(number, 1);
                }
                if let (Some(reply), Err(number)) = (reply, failed) {
                    reply.error(number);
                }
            }
        }
    }

    /// Adds a reference to an entry; its number, what to tell of it, and for how long.
    fn plus_entry(
        &self,
        parent: u64,
        entry: &DirEntry,
        node: Option<&Node>,
    ) -> (u64, Attr, Duration) {
        // Attributes that can change may cost something to find out.
        let known = node
            .filter(|node| node.base().is_constant())
            .and_then(|node| Some((node, node.base().attr().ok()?)));
        if let Some((node, attr)) = known {
            let number = self
                .inodes
                .remember(parent, &entry.name, node.clone(), None);
            return (number, attr, TTL_CONSTANT);
        }
        let (number, told) = self
            .inodes
            .remember_listed(parent, &entry.name, entry.identity);
        // Of nodes whose attributes never change nothing is kept: the node itself tells them.
        let constant = || {
            let node = self.inodes.node(number)?;
            let attr = node.base().is_constant().then(|| node.base().attr().ok());
            attr.flatten()
        };
        let attr = told.map(|told| *told).or_else(constant);
        (number, attr.unwrap_or_else(|| unknown(entry.kind)), ONCE)
    }

    pub(super) fn readdir(
        &self,
        ino: u64,
        dir: &DirHandle,
        offset: u64,
        mut reply: Pending<ReplyDirectory>,
    ) {
        let dots = [(ino, "."), (self.inodes.parent(ino), "..")];
        for (position, (number, name)) in dots.into_iter().enumerate() {
            let after = position as u64 + 1;
            if offset < after {
                let kind = file_type(NodeKind::Dir);
                let full = reply.with(|reply| reply.add(INodeNo(number), after, kind, name));
                debug_assert!(
                    full != Some(true),
                    "the kernel's buffer holds more than two entries"
                );
            }
        }
        let listed = dir.entries(offset, |entry, after| {
            let number = self
                .inodes
                .number_for_listing(ino, &entry.name, entry.identity);
            let kind = file_type(entry.kind);
            let added = reply.with(|reply| reply.add(INodeNo(number), after, kind, &entry.name));
            added.unwrap_or(true)
        });
        match listed {
            Ok(()) => {
                if let Some(reply) = reply.take() {
                    reply.ok();
                }
            }
            Err(error) => reply.refuse(self.fail(ino, "list", Operation::Finding, &error)),
        }
    }
}

/// What is told of an entry of which only the listing is known. The kernel may not use it: it looks the
/// entry up again before it does anything with it, and gets the truth or the error.
fn unknown(kind: NodeKind) -> Attr {
    Attr {
        kind,
        permissions: 0,
        ..Attr::file(0, 0, SystemTime::UNIX_EPOCH)
    }
}

/// Answers an extended attribute request: the size when asked for it, the bytes when they fit.
pub(super) fn reply_xattr(reply: Pending<ReplyXattr>, value: &[u8], room: u32) {
    let Some(reply) = reply.take() else { return };
    match u32::try_from(value.len()) {
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
