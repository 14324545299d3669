//! A tree with names that Windows can show (see `windows_names`), in front of one with any names.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::windows_names::{Original, original, shown, shown_target};
use crate::error::{Error, ErrorKind, Result};
use crate::tree::{Attr, Base, DirEntry, DirStream, Directory, Identity, Leaf, Node};

/// The same tree with other names, at every depth.
pub fn with_windows_names(node: Node) -> Node {
    match node {
        Node::Dir(dir) => Node::Dir(Arc::new(Renamed(dir))),
        Node::Leaf(leaf) => Node::Leaf(Arc::new(Renamed(leaf))),
        file @ Node::File(_) => file,
    }
}

struct Renamed<T: ?Sized>(Arc<T>);

/// What is the same for directories and leaves.
macro_rules! base_of_inner {
    () => {
        fn identity(&self) -> Identity {
            self.0.identity()
        }
        fn xattr_names(&self) -> Result<Vec<OsString>> {
            self.0.xattr_names()
        }
        fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
            self.0.xattr(name)
        }
        fn is_constant(&self) -> bool {
            self.0.is_constant()
        }
        fn is_quick(&self) -> bool {
            self.0.is_quick()
        }
    };
}

impl Base for Renamed<dyn Directory> {
    base_of_inner!();

    fn attr(&self) -> Result<Attr> {
        self.0.attr()
    }
    fn quick_attr(&self) -> Result<Attr> {
        self.0.quick_attr()
    }
}

impl Directory for Renamed<dyn Directory> {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let found = match original(name) {
            Original::Name(name) => self.0.lookup(&name)?,
            Original::Cut => match self.find_cut(name)? {
                Some(name) => self.0.lookup(&name)?,
                None => None,
            },
            Original::None => None,
        };
        Ok(found.map(with_windows_names))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(Box::new(RenamedStream(self.0.list()?)))
    }

    fn nodes(&self, entries: &[DirEntry]) -> Option<Vec<Option<Node>>> {
        let inner = entries.iter().map(|entry| match original(&entry.name) {
            Original::Name(name) => Some(DirEntry {
                name,
                ..entry.clone()
            }),
            // Looked up when somebody wants it.
            Original::Cut | Original::None => None,
        });
        let inner: Vec<Option<DirEntry>> = inner.collect();
        let asked: Vec<DirEntry> = inner.iter().flatten().cloned().collect();
        let mut found = self.0.nodes(&asked)?.into_iter();
        let nodes = inner.iter().map(|asked| {
            let node = asked.as_ref().and_then(|_| found.next().flatten());
            node.map(with_windows_names)
        });
        Some(nodes.collect())
    }
}

impl Renamed<dyn Directory> {
    /// The name that is shown cut like this.
    fn find_cut(&self, name: &OsStr) -> Result<Option<OsString>> {
        let mut entries = self.0.list()?;
        let mut found = None;
        while let Some(entry) = entries.next_entry()? {
            if shown(&entry.name) != name {
                continue;
            }
            if found.is_some() {
                let what = "two names of this directory are too long and are cut to the same one";
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            found = Some(entry.name);
        }
        Ok(found)
    }
}

struct RenamedStream(Box<dyn DirStream>);

impl DirStream for RenamedStream {
    fn next_entry(&mut self) -> Result<Option<DirEntry>> {
        let entry = self.0.next_entry()?;
        Ok(entry.map(|entry| DirEntry {
            name: shown(&entry.name),
            ..entry
        }))
    }
}

impl Base for Renamed<dyn Leaf> {
    base_of_inner!();

    fn attr(&self) -> Result<Attr> {
        let mut attr = self.0.attr()?;
        // The length of a link is that of its target.
        if let Some(target) = self.0.target()? {
            let shown = shown_target(&target);
            if shown != target {
                attr.size_bytes = shown.len() as u64;
            }
        }
        Ok(attr)
    }
}

impl Leaf for Renamed<dyn Leaf> {
    fn target(&self) -> Result<Option<OsString>> {
        Ok(self.0.target()?.map(|target| shown_target(&target)))
    }
}
