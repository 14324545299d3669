//! The root directory of a volume: that of the guest, opened when somebody asks for more than its name.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::attributes::PROBLEM;
use super::files::GuestTree;
use super::options::GuestOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::tree::{Attr, Base, DirEntry, DirStream, Directory, Identity, Node};

/// The root directory of one volume's file system. Its name alone opens nothing; its attributes are those of
/// the guest's root inode, so asking for them opens the file system.
pub(super) struct RootDir {
    identity: Identity,
    time: SystemTime,
    tree: Arc<GuestTree>,
    /// Kept: nothing in it changes, and every path through it asks for its attributes.
    node: OnceLock<Arc<dyn Directory>>,
}

impl RootDir {
    /// `time` is shown where the guest's own cannot be read.
    pub(super) fn new(identity: Identity, time: SystemTime, tree: Arc<GuestTree>) -> Self {
        RootDir {
            identity,
            time,
            tree,
            node: OnceLock::new(),
        }
    }

    fn node(&self) -> Result<&Arc<dyn Directory>> {
        if let Some(node) = self.node.get() {
            return Ok(node);
        }
        let node = self.tree.root()?;
        Ok(self.node.get_or_init(|| node))
    }
}

impl Base for RootDir {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn attr(&self) -> Result<Attr> {
        match self.node() {
            Ok(node) => node.attr(),
            Err(error) => sealed(self.tree.options(), self.time, error),
        }
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        match self.node() {
            Ok(node) => node.xattr_names(),
            Err(error) if is_lasting(&error) => Ok(vec![PROBLEM.into()]),
            Err(error) => Err(error),
        }
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        match self.node() {
            Ok(node) => node.xattr(name),
            Err(error) if is_lasting(&error) => {
                Ok((name == PROBLEM).then(|| error.to_string().into_bytes()))
            }
            Err(error) => Err(error),
        }
    }
}

impl Directory for RootDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        self.tree.lookup_in_root(name)
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        self.tree.list_root()
    }

    fn nodes(&self, entries: &[DirEntry]) -> Option<Vec<Option<Node>>> {
        Some(self.tree.nodes(entries))
    }
}

/// Whether a failure is of the volume itself: asking again would give it again.
pub(super) fn is_lasting(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported)
}

/// The attributes of a directory whose own cannot be read: it is there, and listing it fails. Nobody is admitted
/// whom the guest's own could keep out. A failure that may pass is the answer itself.
pub(super) fn sealed(options: GuestOptions, time: SystemTime, error: Error) -> Result<Attr> {
    if !is_lasting(&error) {
        return Err(error);
    }
    Ok(Attr {
        permissions: options.least_of_dir(),
        ..Attr::dir(time)
    })
}
