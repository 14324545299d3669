//! A tree in memory, with every quirk that a mount must cope with.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use brfs::error::{Error, ErrorKind, Result};
use brfs::io::{Chunk, Extent, ExtentKind, ReadAt};
use brfs::tree::{
    Attr, Base, DirEntry, DirStream, Directory, EntryList, File, Identity, Leaf, Node, NodeKind,
};
use bytes::Bytes;

/// The time all nodes show.
pub fn time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000)
}

/// The byte at an offset of a pattern file: different in every sector and block.
pub fn pattern_byte(offset: u64) -> u8 {
    let word = (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes()[(offset % 8) as usize] ^ (offset >> 12) as u8
}

/// The bytes of a pattern file from `offset`.
pub fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(pattern_byte).collect()
}

/// What a file does.
#[derive(Clone)]
pub struct MemFile {
    /// Length.
    pub size: u64,
    /// Where data lies: `start..end`, ascending, apart. The rest are holes.
    pub data: Vec<(u64, u64)>,
    /// Zeros everywhere instead of the pattern, as fast as can be.
    pub zeros: bool,
    /// Answers from memory, on the session's threads.
    pub quick: bool,
    /// Gives shared bytes rather than filling the buffer.
    pub shared: Option<Bytes>,
    /// Reads that touch this range fail.
    pub broken: Option<(u64, u64)>,
    /// Reads that touch this range panic.
    pub panics: Option<(u64, u64)>,
    /// Every read takes this long.
    pub delay: Duration,
    /// Reads give one byte too few: a bug that must not become zeros.
    pub short: bool,
    /// Extended attributes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Extra time for exact attributes.
    pub attr_delay: Duration,
    /// Counts calls of `attr`.
    pub attr_calls: Arc<AtomicU64>,
    /// Which generation of its name this is.
    pub generation: u64,
    /// Permission bits.
    pub permissions: u16,
    /// Its attributes cannot change.
    pub constant: bool,
    /// Has a reference for each node that is alive.
    pub alive: Arc<()>,
}

impl MemFile {
    pub fn new(size: u64) -> Self {
        MemFile {
            size,
            data: vec![(0, size)],
            zeros: false,
            quick: false,
            shared: None,
            broken: None,
            panics: None,
            delay: Duration::ZERO,
            short: false,
            xattrs: Vec::new(),
            attr_delay: Duration::ZERO,
            attr_calls: Arc::default(),
            generation: 0,
            permissions: 0o444,
            constant: false,
            alive: Arc::default(),
        }
    }

    pub fn sparse(size: u64, data: &[(u64, u64)]) -> Self {
        MemFile {
            data: data.to_vec(),
            ..MemFile::new(size)
        }
    }

    pub fn node(self) -> Node {
        Node::File(Arc::new(self))
    }

    fn touches(range: Option<(u64, u64)>, offset: u64, len: usize) -> bool {
        range.is_some_and(|(start, end)| offset < end && offset + len as u64 > start)
    }

    fn allocated(&self) -> u64 {
        self.data.iter().map(|(start, end)| end - start).sum()
    }
}

impl Base for MemFile {
    fn identity(&self) -> Identity {
        Identity::Named(self.generation)
    }
    fn attr(&self) -> Result<Attr> {
        self.attr_calls.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.attr_delay);
        Ok(Attr {
            permissions: self.permissions,
            ..Attr::file(self.size, self.allocated(), time())
        })
    }
    fn quick_attr(&self) -> Result<Attr> {
        Ok(Attr {
            permissions: self.permissions,
            ..Attr::file(self.size, 512, time())
        })
    }
    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(self.xattrs.iter().map(|(name, _)| name.clone()).collect())
    }
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let found = self.xattrs.iter().find(|(n, _)| n == name);
        Ok(found.map(|(_, value)| value.clone()))
    }
    fn is_constant(&self) -> bool {
        self.constant
    }
    fn is_quick(&self) -> bool {
        self.quick
    }
}

impl File for MemFile {
    fn open(&self) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(self.clone()))
    }
}

impl ReadAt for MemFile {
    fn len_bytes(&self) -> u64 {
        self.size
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let chunk = self.read_chunk_at(buf, offset)?;
        if let Chunk::Shared(bytes) = chunk {
            buf.copy_from_slice(&bytes);
        }
        Ok(())
    }
    fn read_chunk_at(&self, buf: &mut [u8], offset: u64) -> Result<Chunk> {
        let len = buf.len();
        std::thread::sleep(self.delay);
        assert!(
            !MemFile::touches(self.panics, offset, len),
            "a node's bug, on purpose"
        );
        if MemFile::touches(self.broken, offset, len) {
            return Err(Error::new(ErrorKind::NotFound, "the block is gone").with_object("x.vhd"));
        }
        if let Some(shared) = &self.shared {
            return Ok(Chunk::Shared(shared.slice(..len)));
        }
        if self.short {
            return Ok(Chunk::Shared(vec![0; len - 1].into()));
        }
        buf.fill(0);
        if !self.zeros {
            let end = offset + len as u64;
            for (from, to) in &self.data {
                for at in (*from).max(offset)..(*to).min(end) {
                    buf[(at - offset) as usize] = pattern_byte(at);
                }
            }
        }
        Ok(Chunk::Filled)
    }
    fn is_non_blocking(&self, _: u64, _: usize) -> bool {
        self.quick
    }
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        for (start, end) in &self.data {
            if offset < *start {
                let kind = ExtentKind::Hole;
                return Ok(Extent { kind, end: *start });
            }
            if offset < *end {
                let kind = ExtentKind::Data;
                return Ok(Extent { kind, end: *end });
            }
        }
        Ok(Extent {
            kind: ExtentKind::Hole,
            end: self.size,
        })
    }
}

/// A symbolic link.
pub struct MemLink(pub OsString);

impl Base for MemLink {
    fn identity(&self) -> Identity {
        Identity::Named(0)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::symlink(self.0.len(), time()))
    }
    fn is_quick(&self) -> bool {
        true
    }
}

impl Leaf for MemLink {
    fn target(&self) -> Result<Option<OsString>> {
        Ok(Some(self.0.clone()))
    }
}

pub fn link(target: impl Into<OsString>) -> Node {
    Node::Leaf(Arc::new(MemLink(target.into())))
}

/// A directory; its listing can fail after some entries.
#[derive(Default)]
pub struct MemDir {
    pub entries: BTreeMap<OsString, Node>,
    pub fails_after: Option<usize>,
    pub slow: Duration,
    /// Gives new nodes of these files along with a listing; `None` among them cannot be had.
    pub files: BTreeMap<OsString, Option<MemFile>>,
    /// Counts look-ups.
    pub lookups: Arc<AtomicU64>,
}

impl MemDir {
    pub fn with(mut self, name: impl Into<OsString>, node: Node) -> Self {
        self.entries.insert(name.into(), node);
        self
    }
    pub fn node(self) -> Node {
        Node::Dir(Arc::new(self))
    }
}

struct Breaking(EntryList, usize);

impl DirStream for Breaking {
    fn next_entry(&mut self) -> Result<Option<DirEntry>> {
        if self.1 == 0 {
            return Err(Error::new(ErrorKind::Io, "the directory breaks off"));
        }
        self.1 -= 1;
        self.0.next_entry()
    }
}

impl Base for MemDir {
    fn identity(&self) -> Identity {
        Identity::Named(0)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(time()))
    }
    fn is_quick(&self) -> bool {
        self.slow.is_zero()
    }
}

impl Directory for MemDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        std::thread::sleep(self.slow);
        self.lookups.fetch_add(1, Ordering::Relaxed);
        match self.files.get(name) {
            Some(Some(file)) => Ok(Some(file.clone().node())),
            Some(None) => Err(Error::new(ErrorKind::Corrupt, "its inode is damaged")),
            None => Ok(self.entries.get(name).cloned()),
        }
    }
    fn list(&self) -> Result<Box<dyn DirStream>> {
        std::thread::sleep(self.slow);
        let entries = self.entries.iter().map(|(name, node)| DirEntry {
            name: name.clone(),
            kind: match node {
                Node::Dir(_) => NodeKind::Dir,
                Node::File(_) => NodeKind::File,
                Node::Leaf(_) => NodeKind::Symlink,
            },
            identity: node.base().identity(),
        });
        let files = self.files.iter().map(|(name, file)| DirEntry {
            name: name.clone(),
            kind: NodeKind::File,
            identity: Identity::Named(file.as_ref().map_or(0, |file| file.generation)),
        });
        let list = EntryList::new(entries.chain(files).collect());
        Ok(match self.fails_after {
            Some(count) => Box::new(Breaking(list, count)),
            None => Box::new(list),
        })
    }
    fn nodes(&self, entries: &[DirEntry]) -> Option<Vec<Option<Node>>> {
        let node = |entry: &DirEntry| Some(self.files.get(&entry.name)?.clone()?.node());
        (!self.files.is_empty()).then(|| entries.iter().map(node).collect())
    }
}
