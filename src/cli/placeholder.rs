//! Stands in for `views` until it is there: shows the files of the store as they are.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::Result;
use crate::io::{Chunk, Extent, ExtentKind};
use crate::store::{EntryKind, Store, StorePath, StoredFile};
use crate::tree::{
    Attr, Base, DirEntry, DirStream, Directory, EntryList, File, Identity, Node, NodeKind, OpenFile,
};

pub(super) fn root(store: Arc<dyn Store>) -> Node {
    let path = StorePath::root();
    Node::Dir(Arc::new(Plain { store, path }))
}

struct Plain {
    store: Arc<dyn Store>,
    path: StorePath,
}

impl Base for Plain {
    fn identity(&self) -> Identity {
        Identity::Named(0)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(match self.store.head(&self.path) {
            Ok(meta) => Attr::file(
                meta.len_bytes,
                meta.len_bytes,
                meta.modified.unwrap_or(SystemTime::UNIX_EPOCH),
            ),
            Err(_) => Attr::dir(SystemTime::UNIX_EPOCH),
        })
    }
}

impl Directory for Plain {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let found = self.store.list(&self.path)?;
        let Some(entry) = found.into_iter().find(|e| name == e.name.as_str()) else {
            return Ok(None);
        };
        let node = Arc::new(Plain {
            store: Arc::clone(&self.store),
            path: self.path.child(&entry.name),
        });
        Ok(Some(match entry.kind {
            EntryKind::File => Node::File(node),
            EntryKind::Dir => Node::Dir(node),
        }))
    }
    fn list(&self) -> Result<Box<dyn DirStream>> {
        let entries = self.store.list(&self.path)?.into_iter();
        let entries = entries.map(|e| DirEntry {
            name: e.name.into(),
            kind: match e.kind {
                EntryKind::File => NodeKind::File,
                EntryKind::Dir => NodeKind::Dir,
            },
            identity: Identity::Named(0),
        });
        Ok(Box::new(EntryList::new(entries.collect())))
    }
}

impl File for Plain {
    fn open(&self) -> Result<Arc<dyn OpenFile>> {
        Ok(Arc::new(PlainFile(self.store.open(&self.path)?)))
    }
}

struct PlainFile(Arc<dyn StoredFile>);

impl OpenFile for PlainFile {
    fn read(&self, offset: u64, len: usize, buf: &mut [u8]) -> Result<Chunk> {
        self.0.read_exact_at(&mut buf[..len], offset)?;
        Ok(Chunk::Filled(len))
    }
    fn extent_at(&self, _: u64) -> Result<Extent> {
        Ok(Extent {
            kind: ExtentKind::Data,
            end: self.0.opened_meta().len_bytes,
        })
    }
}
