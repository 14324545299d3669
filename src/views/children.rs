//! The children of a directory that is put together: one table for its listing and its look-ups.

use std::ffi::OsStr;

use crate::error::Result;
use crate::tree::{DirEntry, DirStream, EntryList, Identity, Node, NodeKind};

type Make<'a> = Box<dyn Fn() -> Result<Option<Node>> + Send + Sync + 'a>;

/// One name: what a listing tells of it, and how its node is made.
pub(super) struct Child<'a> {
    name: String,
    kind: NodeKind,
    identity: Identity,
    is_listed: bool,
    make: Make<'a>,
}

impl<'a> Child<'a> {
    /// A child whose node `make` gives when somebody looks it up; `identity` must be that node's.
    pub(super) fn new(
        name: impl Into<String>,
        kind: NodeKind,
        identity: Identity,
        make: impl Fn() -> Result<Option<Node>> + Send + Sync + 'a,
    ) -> Self {
        Child {
            name: name.into(),
            kind,
            identity,
            is_listed: true,
            make: Box::new(make),
        }
    }

    /// A child whose node is there.
    pub(super) fn of(name: impl Into<String>, node: Node) -> Self {
        let kind = match node {
            Node::Dir(_) => NodeKind::Dir,
            Node::File(_) => NodeKind::File,
            Node::Leaf(_) => NodeKind::Symlink,
        };
        let identity = node.base().identity();
        Child::new(name, kind, identity, move || Ok(Some(node.clone())))
    }

    /// The child, which a look-up finds and a listing tells of only if `is_listed`.
    pub(super) fn listed_if(self, is_listed: bool) -> Self {
        Child { is_listed, ..self }
    }

    /// Its node, `None` when it is gone meanwhile.
    ///
    /// # Errors
    /// What kept it from being made.
    pub(super) fn node(&self) -> Result<Option<Node>> {
        (self.make)()
    }
}

/// The children of a directory, in the order of its listing. Of two with one name the first one counts.
#[derive(Default)]
pub(super) struct Children<'a>(Vec<Child<'a>>);

impl<'a> Children<'a> {
    pub(super) fn push(&mut self, child: Child<'a>) {
        self.0.push(child);
    }

    /// The node of a name.
    ///
    /// # Errors
    /// As [`Child::node`].
    pub(super) fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        match self.0.iter().find(|child| name == child.name.as_str()) {
            Some(child) => child.node(),
            None => Ok(None),
        }
    }

    /// A listing. Makes no node.
    pub(super) fn list(&self) -> Box<dyn DirStream> {
        let listed = self.0.iter().filter(|child| child.is_listed);
        let entries = listed.map(|child| DirEntry {
            name: child.name.as_str().into(),
            kind: child.kind,
            identity: child.identity,
        });
        Box::new(EntryList::new(entries.collect()))
    }
}

impl<'a> FromIterator<Child<'a>> for Children<'a> {
    fn from_iter<I: IntoIterator<Item = Child<'a>>>(children: I) -> Self {
        Children(children.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_makes_no_node_and_a_look_up_only_its_own() {
        let one = |name: &'static str| {
            Child::new(name, NodeKind::Dir, Identity::Named(1), move || {
                assert_eq!(name, "gone", "another one was looked up");
                Ok(None)
            })
        };
        let children: Children = [one("a"), one("gone"), one("hidden").listed_if(false)]
            .into_iter()
            .collect();
        let mut stream = children.list();
        let mut names = Vec::new();
        while let Some(entry) = stream.next_entry().unwrap() {
            names.push(entry.name);
        }
        assert_eq!(names, ["a", "gone"]);
        assert!(children.lookup("gone".as_ref()).unwrap().is_none());
        assert!(children.lookup("other".as_ref()).unwrap().is_none());
    }
}
