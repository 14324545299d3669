//! `lvm/` and `md/`: the volumes that may lie over several disks.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::Opens;
use super::attributes::{Attributes, PROBLEM, add_problem, describe, in_words, names_of, value_of};
use super::context::{GuestContext, OpenDisk};
use super::disk::DiskDir;
use super::group::GroupDir;
use super::lazy::Lazy;
use super::search::search;
use super::volume::{content_of, push_raw};
use crate::error::Result;
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node};
use crate::views::children::{Child, Children};
use crate::volume;

/// The directory of the volume groups over the disks (`lvm/`). Disks that are gone or damaged count as missing;
/// as long as one cannot be fetched, the directory cannot be listed.
pub fn lvm_root(context: GuestContext) -> Arc<dyn Directory> {
    OverDisks::new(context, Over::Lvm)
}

/// The directory of the md arrays over the disks (`md/`): each as a disk is shown.
pub fn md_root(context: GuestContext) -> Arc<dyn Directory> {
    OverDisks::new(context, Over::Md)
}

/// What is shown of the volumes that lie over several disks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Volume groups.
    Lvm,
    /// Arrays.
    Md,
}

impl Over {
    pub(crate) const ALL: [Over; 2] = [Over::Lvm, Over::Md];

    /// The name of the directory.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Over::Lvm => "lvm",
            Over::Md => "md",
        }
    }
}

/// A directory of volumes that may lie over several disks.
pub(super) struct OverDisks {
    context: GuestContext,
    over: Over,
    found: Lazy<Found>,
}

/// What a search of all disks gave.
struct Found {
    children: Children<'static>,
    /// What was wrong, as an attribute of the directory.
    attributes: Attributes,
}

impl OverDisks {
    pub(super) fn new(context: GuestContext, over: Over) -> Arc<Self> {
        Arc::new(OverDisks {
            context,
            over,
            found: Lazy::new(),
        })
    }

    fn found(&self) -> Result<Arc<Found>> {
        self.found.get(|| {
            let found = search(&self.context.disks, volume::assemble)?;
            let of_groups = found.groups.iter().flat_map(|group| &group.problems);
            self.context
                .machine
                .warn(found.problems.iter().chain(of_groups));
            for disk in &found.disks {
                self.context.machine.note(disk);
            }
            let mut attributes = Vec::new();
            add_problem(&mut attributes, found.problems.iter().map(in_words));
            let children = match self.over {
                Over::Lvm => self.groups(found.groups),
                Over::Md => self.arrays(found.arrays)?,
            };
            Ok(Found {
                children,
                attributes,
            })
        })
    }

    fn groups(&self, groups: Vec<volume::lvm::VolumeGroup>) -> Children<'static> {
        let mut children = Children::default();
        for group in groups {
            let name = group.name.clone();
            let dir = GroupDir::new(self.context.clone(), group);
            children.push(Child::of(name, Node::Dir(Arc::new(dir))));
        }
        children
    }

    fn arrays(&self, arrays: Vec<volume::md::Array>) -> Result<Children<'static>> {
        let mut children = Children::default();
        for array in arrays {
            let place = format!("md/{}", array.name);
            let content = content_of(&array.volume)?;
            let (volume, known) = (array.volume.clone(), describe(content, &[]));
            push_raw(
                &self.context,
                &mut children,
                &array.name,
                &place,
                volume,
                known,
            );
            let open: OpenDisk = Arc::new(move || Ok(array.volume.clone()));
            let inside = DiskDir::new(self.context.clone(), &place, open);
            children.push(Child::of(array.name, Node::Dir(inside)));
        }
        Ok(children)
    }
}

impl Base for OverDisks {
    fn identity(&self) -> Identity {
        self.context.identity_of(self.over.name())
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.context.time))
    }

    /// What is known already: programs that only list a restore point ask this, too.
    fn xattr_names(&self) -> Result<Vec<OsString>> {
        let known = self.found.peek();
        Ok(known.map_or_else(Vec::new, |found| names_of(&found.attributes)))
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if name != PROBLEM {
            return Ok(None);
        }
        Ok(value_of(&self.found()?.attributes, name))
    }
}

impl Directory for OverDisks {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        self.found()?.children.lookup(name)
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(self.found()?.children.list())
    }
}

impl Opens for OverDisks {
    fn is_open(&self) -> bool {
        self.found.is_made()
    }
}
