//! Looking at a tree without FUSE, and a store that fails and counts.

// Each test binary uses its own part.
#![allow(dead_code)]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::support::reading::read_some;
use brfs::error::{Error, ErrorKind, Result};
use brfs::store::{
    Entry, LocalStore, Meta, Store, StoreLayer, StorePath, StoreTraits, StoredFile, Validity,
};
use brfs::tree::{File, Node, NodeKind};
use bytes::Bytes;

/// The node at a path whose names are separated by `|`, which no name holds.
pub fn find(node: &Node, path: &str) -> Option<Node> {
    let mut node = node.clone();
    for name in path.split('|') {
        let Node::Dir(dir) = &node else { return None };
        node = dir.lookup(OsStr::new(name)).unwrap()?;
    }
    Some(node)
}

pub fn must_find(node: &Node, path: &str) -> Node {
    find(node, path).unwrap_or_else(|| panic!("nothing at {path}"))
}

/// The names in a directory, in the order of its listing.
pub fn names(node: &Node) -> Vec<String> {
    let Node::Dir(dir) = node else {
        panic!("no directory")
    };
    let mut stream = dir.list().unwrap();
    let mut names = Vec::new();
    while let Some(entry) = stream.next_entry().unwrap() {
        names.push(entry.name.into_string().unwrap());
    }
    names
}

/// The names in a directory up to where its listing ends, and the kind of the error that it ends with.
pub fn names_until_error(node: &Node) -> (Vec<String>, Option<ErrorKind>) {
    let Node::Dir(dir) = node else {
        panic!("no directory")
    };
    let mut names = Vec::new();
    let mut stream = match dir.list() {
        Ok(stream) => stream,
        Err(e) => return (names, Some(e.kind())),
    };
    loop {
        match stream.next_entry() {
            Ok(Some(entry)) => names.push(entry.name.into_string().unwrap()),
            Ok(None) => return (names, None),
            Err(e) => return (names, Some(e.kind())),
        }
    }
}

/// The kind of the error that looking a name up gives.
pub fn lookup_error(node: &Node, name: &str) -> Option<ErrorKind> {
    let Node::Dir(dir) = node else {
        panic!("no directory")
    };
    dir.lookup(OsStr::new(name)).err().map(|e| e.kind())
}

pub fn target(node: &Node) -> String {
    let Node::Leaf(leaf) = node else {
        panic!("no link")
    };
    leaf.target().unwrap().unwrap().into_string().unwrap()
}

pub fn xattr(node: &Node, name: &str) -> Option<String> {
    let name = format!("user.brfs.{name}");
    let value = node.base().xattr(OsStr::new(&name)).unwrap()?;
    Some(String::from_utf8(value).unwrap())
}

fn file(node: &Node) -> &Arc<dyn File> {
    match node {
        Node::File(file) => file,
        _ => panic!("no file"),
    }
}

/// All bytes of a file, read in pieces of an odd length.
pub fn read_all(node: &Node) -> Vec<u8> {
    let file = file(node);
    let size = file.attr().unwrap().size_bytes;
    let open = file.open().unwrap();
    let mut all = Vec::new();
    loop {
        let bytes = read_some(&*open, all.len() as u64, 100_003).unwrap();
        if bytes.is_empty() {
            break;
        }
        all.extend_from_slice(&bytes);
    }
    assert_eq!(all.len() as u64, size);
    all
}

/// The kind of the error that opening a file gives.
pub fn read_error(node: &Node) -> ErrorKind {
    match file(node).open() {
        Ok(_) => panic!("the file can be opened"),
        Err(e) => e.kind(),
    }
}

/// Visits everything below a node, and checks on the way what every tree promises: unique legal
/// names, and entries that agree with look-ups. Returns all paths with their kinds.
pub fn walk(root: &Node) -> Vec<(String, NodeKind)> {
    let mut seen = Vec::new();
    let mut left = vec![(String::new(), root.clone())];
    while let Some((path, node)) = left.pop() {
        node.base().xattr_names().unwrap();
        let Node::Dir(dir) = &node else { continue };
        let mut stream = dir.list().unwrap();
        let mut names = HashSet::new();
        while let Some(entry) = stream.next_entry().unwrap() {
            let name = entry.name.to_str().unwrap().to_owned();
            let legal = !name.is_empty() && name.len() <= 255 && name != "." && name != "..";
            assert!(legal && !name.contains('/') && !name.chars().any(char::is_control));
            assert!(names.insert(name.clone()), "{name:?} twice");
            let child = dir
                .lookup(&entry.name)
                .unwrap()
                .expect("listed but not found");
            assert_eq!(child.base().identity(), entry.identity, "{path}/{name}");
            let (quick, exact) = (
                child.base().quick_attr().unwrap(),
                child.base().attr().unwrap(),
            );
            assert_eq!((quick.kind, exact.kind), (entry.kind, entry.kind));
            assert_eq!(quick.size_bytes, exact.size_bytes);
            let path = format!("{path}/{name}");
            seen.push((path.clone(), entry.kind));
            left.push((path, child));
        }
    }
    seen
}

/// A local store that fails where it is told to and counts what it is asked.
#[derive(Debug)]
pub struct WatchedStore {
    inner: LocalStore,
    remote: bool,
    failing: Mutex<HashSet<String>>,
    pub lists: AtomicUsize,
    pub reads: AtomicUsize,
}

impl WatchedStore {
    pub fn new(path: &Path) -> Arc<Self> {
        Self::with(path, false)
    }

    /// One that says it is remote.
    pub fn remote(path: &Path) -> Arc<Self> {
        Self::with(path, true)
    }

    fn with(path: &Path, remote: bool) -> Arc<Self> {
        Arc::new(WatchedStore {
            inner: LocalStore::open(path).unwrap(),
            remote,
            failing: Mutex::default(),
            lists: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
        })
    }

    /// From now on, everything that is asked of this path fails.
    pub fn fail(&self, path: &str) {
        self.failing.lock().unwrap().insert(path.to_owned());
    }

    fn check(&self, path: &StorePath) -> Result<()> {
        if self.failing.lock().unwrap().contains(path.as_str()) {
            return Err(Error::new(ErrorKind::Io, "injected failure").with_object(path));
        }
        Ok(())
    }
}

impl StoreLayer for WatchedStore {
    fn inner(&self) -> &dyn Store {
        &self.inner
    }
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        self.lists.fetch_add(1, Relaxed);
        self.check(dir)?;
        self.inner.list(dir)
    }
    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.check(path)?;
        self.inner.head(path)
    }
    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        self.reads.fetch_add(1, Relaxed);
        self.check(path)?;
        self.inner.read(path, max_len, validity)
    }
    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        self.check(path)?;
        self.inner.open(path, listed)
    }
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            remote: self.remote,
            ..self.inner.traits()
        }
    }
}
