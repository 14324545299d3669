//! Nodes and helpers that the views share: fixed directories, links, identities, attributes lists.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::time::SystemTime;

use super::children::{Child, Children};
use crate::error::{Error, Result};
use crate::hash::StableHash;
use crate::store::{StorePath, Version};
use crate::tree::{
    Attr, Base, DirEntry, DirStream, Directory, EntryList, Identity, Leaf, Node, NodeKind,
};

/// The identity of something that these texts and numbers describe completely.
pub(super) fn identity(parts: &[&str], version: Option<Version>) -> Identity {
    let hash = parts.iter().fold(StableHash::new(), StableHash::part);
    let hash = hash.number(version.map_or(0, |v| v.0));
    Identity::Named(hash.finish_u64())
}

/// The identity of something within a restore point: another one when the point is made again.
pub(super) fn point_identity(json: &StorePath, version: Option<Version>, what: &str) -> Identity {
    identity(&[json.as_str(), what], version)
}

pub(super) fn entry(name: &str, kind: NodeKind, identity: Identity) -> DirEntry {
    DirEntry {
        name: OsString::from(name),
        kind,
        identity,
    }
}

/// A finished listing.
pub(super) fn stream(entries: Vec<DirEntry>) -> Result<Box<dyn DirStream>> {
    Ok(Box::new(EntryList::new(entries)))
}

/// A listing of what is known, which then fails with what kept the rest from being told: nobody who reads
/// it to its end takes it for complete.
pub(super) fn stream_until(
    entries: Vec<DirEntry>,
    failed: Option<Error>,
) -> Result<Box<dyn DirStream>> {
    match failed {
        None => stream(entries),
        Some(e) if entries.is_empty() => Err(e),
        Some(e) => Ok(Box::new(Partial(entries.into_iter(), e))),
    }
}

struct Partial(std::vec::IntoIter<DirEntry>, Error);

impl DirStream for Partial {
    fn next_entry(&mut self) -> Result<Option<DirEntry>> {
        match self.0.next() {
            Some(entry) => Ok(Some(entry)),
            None => Err(self.1.clone()),
        }
    }
}

/// Extended attributes under `user.brfs.`.
#[derive(Default)]
pub(super) struct Xattrs(Vec<(&'static str, String)>);

/// The kernel refuses values beyond 64 KiB; nothing here needs more than a few lines.
const MAX_XATTR_BYTES: usize = 16 << 10;

impl Xattrs {
    /// Adds an attribute unless its value is missing or empty.
    pub(super) fn add(&mut self, name: &'static str, value: impl Into<Option<String>>) {
        if let Some(mut value) = value.into().filter(|v| !v.is_empty()) {
            let mut end = value.len().min(MAX_XATTR_BYTES);
            while !value.is_char_boundary(end) {
                end -= 1;
            }
            value.truncate(end);
            self.0.push((name, value));
        }
    }

    pub(super) fn names(&self) -> Vec<OsString> {
        let full = |(name, _): &(&str, String)| OsString::from(format!("user.brfs.{name}"));
        self.0.iter().map(full).collect()
    }

    pub(super) fn get(self, name: &OsStr) -> Option<Vec<u8>> {
        let name = name.to_str()?.strip_prefix("user.brfs.")?;
        let found = self.0.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.into_bytes())
    }
}

/// Whether an attribute of this name can be ours: the kernel asks for others (`security.…`) often,
/// and they must cost nothing.
pub(super) fn is_ours(name: &OsStr) -> bool {
    name.to_str().is_some_and(|n| n.starts_with("user.brfs."))
}

/// A directory whose entries never change.
pub(super) struct StaticDir {
    name: &'static str,
    children: Children<'static>,
    time: SystemTime,
}

impl StaticDir {
    pub(super) fn new(
        name: &'static str,
        children: Vec<(&'static str, Node)>,
        time: SystemTime,
    ) -> Self {
        let children = children.into_iter();
        StaticDir {
            name,
            children: children.map(|(name, node)| Child::of(name, node)).collect(),
            time,
        }
    }
}

impl Base for StaticDir {
    fn identity(&self) -> Identity {
        identity(&["static", self.name], None)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.time))
    }
    fn is_quick(&self) -> bool {
        true
    }
}

impl Directory for StaticDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        self.children.lookup(name)
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(self.children.list())
    }
}

/// A symbolic link.
pub(super) struct Link {
    target: String,
    time: SystemTime,
}

impl Link {
    pub(super) fn new(target: String, time: SystemTime) -> Self {
        Link { target, time }
    }

    pub(super) fn identity_of(target: &str) -> Identity {
        identity(&["link", target], None)
    }
}

impl Base for Link {
    fn identity(&self) -> Identity {
        Self::identity_of(&self.target)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::symlink(self.target.len(), self.time))
    }
    fn is_quick(&self) -> bool {
        true
    }
}

impl Leaf for Link {
    fn target(&self) -> Result<Option<OsString>> {
        Ok(Some(OsString::from_vec(self.target.clone().into_bytes())))
    }
}
