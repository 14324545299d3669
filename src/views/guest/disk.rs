//! A disk as a directory.
//!
//! It is opened and its table read when the directory is entered or asked for its attributes, which may be those of a
//! guest's root directory.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::Opens;
use super::attributes::{Attributes, PROBLEM, describe, describe_disk, names_of, value_of};
use super::context::{GuestContext, OpenDisk};
use super::lazy::Lazy;
use super::root::{RootDir, is_lasting, sealed};
use super::search::look_at;
use super::volume::{guest_tree, push_volume};
use crate::error::Result;
use crate::guestfs::is_readable;
use crate::tree::{Attr, Base, DirEntry, DirStream, Directory, EntryList, Identity, Node};
use crate::views::children::Children;
use crate::volume::{self, PartitionVolume, TableKind};

/// The directory of one disk: `part1.raw`, `part1/`, … or, without a partition table, the files of
/// the file system on the disk itself. Empty when there is nothing that can be shown.
pub fn disk_children(context: GuestContext, name: &str, disk: OpenDisk) -> Arc<dyn Directory> {
    DiskDir::new(context, name, disk)
}

/// What a scan of a disk gave.
struct Scanned {
    shown: Shown,
    /// What is known of the disk. Of a guest's root directory, which has its own, problems only.
    attributes: Attributes,
}

enum Shown {
    Partitions(Children<'static>),
    Whole(RootDir),
    Nothing,
}

pub(super) struct DiskDir {
    context: GuestContext,
    name: String,
    disk: OpenDisk,
    scanned: Lazy<Scanned>,
}

impl DiskDir {
    pub(super) fn new(context: GuestContext, name: &str, disk: OpenDisk) -> Arc<Self> {
        Arc::new(DiskDir {
            context,
            name: name.to_string(),
            disk,
            scanned: Lazy::new(),
        })
    }

    fn scan(&self) -> Result<Arc<Scanned>> {
        self.scanned.get(|| {
            let disk = (self.disk)()?;
            let mut problems = Vec::new();
            let found = look_at(&disk, |disk| {
                volume::scan_disk(&self.name, disk, &mut problems)
            })?;
            self.context.machine.warn(&problems);
            self.context.machine.note(&found);
            let mut attributes = describe_disk(&found, &problems);
            let shown = if found.table != TableKind::None {
                let mut children = Children::default();
                for part in found.partitions {
                    push_partition(&self.context, &mut children, &self.name, part);
                }
                Shown::Partitions(children)
            } else if is_readable(found.content) {
                attributes.retain(|(name, _)| name == PROBLEM);
                let tree = guest_tree(&self.context, &self.name, found.content, disk);
                Shown::Whole(RootDir::new(self.identity(), self.context.time, tree))
            } else {
                Shown::Nothing
            };
            Ok(Scanned { shown, attributes })
        })
    }
}

fn push_partition(
    context: &GuestContext,
    children: &mut Children<'static>,
    disk: &str,
    part: PartitionVolume,
) {
    let name = format!("part{}", part.partition.number);
    let place = format!("{disk}/{name}");
    let mut attributes = describe(part.content, &part.problems);
    attributes.push(("user.brfs.type".into(), part.partition.type_name().into()));
    if let Some(name) = &part.partition.name {
        attributes.push(("user.brfs.name".into(), name.as_str().into()));
    }
    if let Some(guid) = &part.partition.guid {
        attributes.push(("user.brfs.guid".into(), guid.as_str().into()));
    }
    let volume = (part.content, part.volume);
    push_volume(context, children, &name, &place, volume, attributes);
}

impl Base for DiskDir {
    fn identity(&self) -> Identity {
        self.context.identity_of(&self.name)
    }

    fn attr(&self) -> Result<Attr> {
        let scanned = match self.scan() {
            Ok(scanned) => scanned,
            Err(error) => return sealed(self.context.options, self.context.time, error),
        };
        match &scanned.shown {
            Shown::Whole(root) => root.attr(),
            Shown::Partitions(_) | Shown::Nothing => Ok(Attr::dir(self.context.time)),
        }
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        match self.scan() {
            Ok(scanned) => {
                let mut names = names_of(&scanned.attributes);
                if let Shown::Whole(root) = &scanned.shown {
                    let own = root.xattr_names()?;
                    let new = |name: &OsString| !names.contains(name);
                    let new: Vec<OsString> = own.into_iter().filter(new).collect();
                    names.extend(new);
                }
                Ok(names)
            }
            Err(error) if is_lasting(&error) => Ok(vec![PROBLEM.into()]),
            Err(error) => Err(error),
        }
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        match self.scan() {
            Ok(scanned) => {
                let known = value_of(&scanned.attributes, name);
                let Shown::Whole(root) = &scanned.shown else {
                    return Ok(known);
                };
                Ok(match (known, root.xattr(name)?) {
                    (Some(first), Some(second)) => Some([first, second].join(&b"; "[..])),
                    (known, own) => known.or(own),
                })
            }
            Err(error) if is_lasting(&error) => {
                Ok((name == PROBLEM).then(|| error.to_string().into_bytes()))
            }
            Err(error) => Err(error),
        }
    }
}

impl Directory for DiskDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        match &self.scan()?.shown {
            Shown::Partitions(children) => children.lookup(name),
            Shown::Whole(root) => root.lookup(name),
            Shown::Nothing => Ok(None),
        }
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        match &self.scan()?.shown {
            Shown::Partitions(children) => Ok(children.list()),
            Shown::Whole(root) => root.list(),
            Shown::Nothing => Ok(Box::new(EntryList::new(Vec::new()))),
        }
    }

    fn nodes(&self, entries: &[DirEntry]) -> Option<Vec<Option<Node>>> {
        match &self.scan().ok()?.shown {
            Shown::Whole(root) => root.nodes(entries),
            _ => None,
        }
    }
}

impl Opens for DiskDir {
    fn is_open(&self) -> bool {
        self.scanned.is_made()
    }
}
