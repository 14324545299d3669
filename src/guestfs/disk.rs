//! The entry for `views`: a disk as a directory, and the volume groups over several disks.
//!
//! Nothing here does I/O for a mere name. A disk is opened and its table read when its directory is entered or
//! asked for its attributes, and a volume's file system likewise: both may be a guest's root directory.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use super::node::{GuestOptions, GuestTree};
use super::pool::{Pool, Pooled};
use super::root::{PROBLEM, RootDir, is_lasting, sealed};
use super::siblings::{other_volumes, search};
use super::{is_readable, open_among};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::StableHash;
use crate::io::{ExtentKind, ReadAt};
use crate::tree::{
    Attr, Base, DirEntry, DirStream, Directory, EntryList, File, Identity, Node, NodeKind,
};
use crate::volume::{self, Content, Partition, TableKind};

/// Opens a disk; called again after a failure.
pub type OpenDisk = Arc<dyn Fn() -> Result<Arc<dyn ReadAt>> + Send + Sync>;

/// Disks by their names.
pub type Disks = Arc<[(String, OpenDisk)]>;

/// What all guest nodes of one restore point share.
#[derive(Clone)]
pub struct GuestContext {
    /// Bounds the file systems that are open at once; one for the whole mount.
    pub pool: Arc<Pool>,
    /// How files are presented.
    pub options: GuestOptions,
    /// The time of directories and raw files that have none of their own.
    pub time: SystemTime,
    /// Differs between restore points (and changes when one is replaced).
    pub identity: u64,
    /// All disks of the restore point, for what lies over several.
    pub disks: Disks,
}

impl GuestContext {
    /// A stable number for something within this restore point.
    fn identity_of(&self, path: &str) -> u64 {
        let hash = StableHash::new().number(self.identity).part(path);
        hash.finish_u64()
    }
}

/// A value made on first use, once; a failure is not kept.
struct Lazy<T> {
    value: Mutex<Option<Arc<T>>>,
}

impl<T> Lazy<T> {
    fn new() -> Self {
        Lazy {
            value: Mutex::new(None),
        }
    }

    /// Those who come while it is made wait for it: that is the point of the lock.
    fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*value {
            return Ok(value.clone());
        }
        let made = Arc::new(make()?);
        *value = Some(made.clone());
        Ok(made)
    }
}

/// The directory of one disk: `part1.raw`, `part1/`, … or, without a partition table, the files of
/// the file system on the disk itself. Empty when there is nothing that can be shown.
pub fn disk_children(context: GuestContext, name: &str, disk: OpenDisk) -> Arc<dyn Directory> {
    Arc::new(DiskDir {
        context,
        name: name.to_string(),
        disk,
        scanned: Lazy::new(),
    })
}

/// The directory of the volume groups over the disks (`lvm/`). Disks that are gone or damaged count as missing;
/// as long as one cannot be read for now, there is nothing to see.
pub fn lvm_root(context: GuestContext) -> Arc<dyn Directory> {
    over_disks(context, Kind::Lvm)
}

/// The directory of the md arrays over the disks (`md/`): each as a disk is shown.
pub fn md_root(context: GuestContext) -> Arc<dyn Directory> {
    over_disks(context, Kind::Md)
}

fn over_disks(context: GuestContext, kind: Kind) -> Arc<dyn Directory> {
    Arc::new(OverDisks {
        context,
        kind,
        children: Lazy::new(),
    })
}

/// A fixed list of children, made when a directory is first entered.
struct Children(Vec<(String, Node)>);

impl Children {
    fn lookup(&self, name: &OsStr) -> Option<Node> {
        self.0
            .iter()
            .find(|(known, _)| name == known.as_str())
            .map(|(_, node)| node.clone())
    }

    fn list(&self) -> Box<dyn DirStream> {
        let entries = self.0.iter().map(|(name, node)| DirEntry {
            name: name.into(),
            kind: match node {
                Node::Dir(_) => NodeKind::Dir,
                Node::File(_) => NodeKind::File,
                Node::Leaf(_) => NodeKind::Symlink,
            },
            identity: node.base().identity(),
        });
        Box::new(EntryList::new(entries.collect()))
    }
}

/// What a scan of a disk gave.
enum Scanned {
    Partitions(Children),
    Whole(RootDir),
    Nothing,
}

struct DiskDir {
    context: GuestContext,
    name: String,
    disk: OpenDisk,
    scanned: Lazy<Scanned>,
}

impl DiskDir {
    fn scan(&self) -> Result<Arc<Scanned>> {
        self.scanned.get(|| {
            let disk = (self.disk)()?;
            let mut problems = Vec::new();
            let found = volume::scan_disk(&self.name, &disk, &mut problems)?;
            for problem in &problems {
                tracing::warn!(subject = %problem.subject, "{}", problem.message);
            }
            if found.table == TableKind::None {
                if !is_readable(found.content) {
                    return Ok(Scanned::Nothing);
                }
                let tree = guest_tree(&self.context, &self.name, found.content, disk);
                let root = RootDir::new(self.identity(), self.context.time, tree);
                return Ok(Scanned::Whole(root));
            }
            let mut children = Vec::new();
            for part in found.partitions {
                let name = format!("part{}", part.partition.number);
                let place = format!("{}/{name}", self.name);
                push_volume(
                    &self.context,
                    &mut children,
                    &name,
                    &place,
                    part.content,
                    part.volume,
                    Some(&part.partition),
                );
            }
            Ok(Scanned::Partitions(Children(children)))
        })
    }
}

/// Adds `name.raw`, and `name` when its file system can be read.
fn push_volume(
    context: &GuestContext,
    children: &mut Vec<(String, Node)>,
    name: &str,
    place: &str,
    content: Content,
    volume: Arc<dyn ReadAt>,
    partition: Option<&Partition>,
) {
    let raw = Node::File(Arc::new(RawFile {
        identity: Identity::Named(context.identity_of(&format!("{place}.raw"))),
        time: context.time,
        volume: volume.clone(),
        attributes: describe(content, partition),
    }));
    children.push((format!("{name}.raw"), raw));
    if is_readable(content) {
        let identity = Identity::Named(context.identity_of(place));
        let tree = guest_tree(context, place, content, volume);
        let dir = Node::Dir(Arc::new(RootDir::new(identity, context.time, tree)));
        children.push((name.to_string(), dir));
    }
}

fn guest_tree(
    context: &GuestContext,
    place: &str,
    content: Content,
    volume: Arc<dyn ReadAt>,
) -> Arc<GuestTree> {
    let disks = context.disks.clone();
    let own = place.to_string();
    let first = OnceLock::new();
    let make = Box::new(move || {
        let others = |content| other_volumes(&disks, content, &own);
        let fs = open_among(content, volume.clone(), &others)?;
        // What the kernel knows by inode numbers is of the state that was opened first.
        if *first.get_or_init(|| fs.state()) != fs.state() {
            return Err(Error::new(
                ErrorKind::Changed,
                "a volume that the file system needs can no longer be read, and without it it is another one",
            ));
        }
        Ok(fs)
    });
    GuestTree::new(
        Pooled::new(context.pool.clone(), make),
        context.options,
        context.identity_of(&format!("{place}:files")),
    )
}

/// What is known of a volume, as attributes of its raw file.
fn describe(content: Content, partition: Option<&Partition>) -> Vec<(OsString, Vec<u8>)> {
    let mut out: Vec<(OsString, Vec<u8>)> =
        vec![("user.brfs.content".into(), content.as_str().into())];
    if let Some(partition) = partition {
        out.push(("user.brfs.type".into(), partition.type_name().into()));
        if let Some(name) = &partition.name {
            out.push(("user.brfs.name".into(), name.as_str().into()));
        }
        if let Some(guid) = &partition.guid {
            out.push(("user.brfs.guid".into(), guid.as_str().into()));
        }
    }
    out
}

impl Base for DiskDir {
    fn identity(&self) -> Identity {
        Identity::Named(self.context.identity_of(&self.name))
    }

    fn attr(&self) -> Result<Attr> {
        let scanned = match self.scan() {
            Ok(scanned) => scanned,
            Err(error) => return sealed(self.context.options, self.context.time, error),
        };
        match &*scanned {
            Scanned::Whole(root) => root.attr(),
            Scanned::Partitions(_) | Scanned::Nothing => Ok(Attr::dir(self.context.time)),
        }
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        match self.scan() {
            Ok(scanned) => match &*scanned {
                Scanned::Whole(root) => root.xattr_names(),
                Scanned::Partitions(_) | Scanned::Nothing => Ok(Vec::new()),
            },
            Err(error) if is_lasting(&error) => Ok(vec![PROBLEM.into()]),
            Err(error) => Err(error),
        }
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        match self.scan() {
            Ok(scanned) => match &*scanned {
                Scanned::Whole(root) => root.xattr(name),
                Scanned::Partitions(_) | Scanned::Nothing => Ok(None),
            },
            Err(error) if is_lasting(&error) => {
                Ok((name == PROBLEM).then(|| error.to_string().into_bytes()))
            }
            Err(error) => Err(error),
        }
    }
}

impl Directory for DiskDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        match &*self.scan()? {
            Scanned::Partitions(children) => Ok(children.lookup(name)),
            Scanned::Whole(root) => root.lookup(name),
            Scanned::Nothing => Ok(None),
        }
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        match &*self.scan()? {
            Scanned::Partitions(children) => Ok(children.list()),
            Scanned::Whole(root) => root.list(),
            Scanned::Nothing => Ok(Box::new(EntryList::new(Vec::new()))),
        }
    }

    fn nodes(&self, entries: &[DirEntry]) -> Option<Vec<Option<Node>>> {
        match &*self.scan().ok()? {
            Scanned::Whole(root) => root.nodes(entries),
            _ => None,
        }
    }
}

/// A volume as a file.
struct RawFile {
    identity: Identity,
    time: SystemTime,
    volume: Arc<dyn ReadAt>,
    attributes: Vec<(OsString, Vec<u8>)>,
}

impl Base for RawFile {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn attr(&self) -> Result<Attr> {
        let len = self.volume.len_bytes();
        let (mut offset, mut allocated) = (0, 0);
        while offset < len {
            let extent = self.volume.extent_at(offset)?;
            if extent.end <= offset {
                return Err(Error::corrupt("extents of a volume go backwards"));
            }
            if extent.kind == ExtentKind::Data {
                allocated += extent.end - offset;
            }
            offset = extent.end;
        }
        Ok(Attr::file(len, allocated, self.time))
    }

    fn quick_attr(&self) -> Result<Attr> {
        let len = self.volume.len_bytes();
        Ok(Attr::file(len, len, self.time))
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(self
            .attributes
            .iter()
            .map(|(name, _)| name.clone())
            .collect())
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(self
            .attributes
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone()))
    }
}

impl File for RawFile {
    fn open(&self) -> Result<Arc<dyn ReadAt>> {
        Ok(self.volume.clone())
    }
}

/// What is shown of the volumes that lie over several disks.
#[derive(Clone, Copy)]
enum Kind {
    Lvm,
    Md,
}

/// A directory of volumes that may lie over several disks.
struct OverDisks {
    context: GuestContext,
    kind: Kind,
    children: Lazy<Children>,
}

impl OverDisks {
    fn children(&self) -> Result<Arc<Children>> {
        self.children.get(|| {
            let found = search(&self.context.disks, volume::assemble)?;
            let of_groups = found.groups.iter().flat_map(|group| &group.problems);
            for problem in found.problems.iter().chain(of_groups) {
                tracing::warn!(subject = %problem.subject, "{}", problem.message);
            }
            Ok(match self.kind {
                Kind::Lvm => self.groups(found.groups),
                Kind::Md => self.arrays(found.arrays),
            })
        })
    }

    fn groups(&self, groups: Vec<volume::lvm::VolumeGroup>) -> Children {
        let mut children = Vec::new();
        for group in groups {
            let name = group.name.clone();
            let dir = Arc::new(GroupDir {
                context: self.context.clone(),
                group,
                volumes: Lazy::new(),
            });
            children.push((name, Node::Dir(dir)));
        }
        Children(children)
    }

    fn arrays(&self, arrays: Vec<volume::md::Array>) -> Children {
        let mut children = Vec::new();
        for array in arrays {
            let place = format!("md/{}", array.name);
            // What cannot be read at its start still has its raw file.
            let content = volume::identify(&*array.volume).unwrap_or(Content::Unknown);
            let raw = Node::File(Arc::new(RawFile {
                identity: Identity::Named(self.context.identity_of(&format!("{place}.raw"))),
                time: self.context.time,
                volume: array.volume.clone(),
                attributes: describe(content, None),
            }));
            children.push((format!("{}.raw", array.name), raw));
            let open: OpenDisk = Arc::new(move || Ok(array.volume.clone()));
            let inside = disk_children(self.context.clone(), &place, open);
            children.push((array.name, Node::Dir(inside)));
        }
        Children(children)
    }
}

impl Base for OverDisks {
    fn identity(&self) -> Identity {
        Identity::Named(self.context.identity_of(match self.kind {
            Kind::Lvm => "lvm",
            Kind::Md => "md",
        }))
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.context.time))
    }
}

impl Directory for OverDisks {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        Ok(self.children()?.lookup(name))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(self.children()?.list())
    }
}

struct GroupDir {
    context: GuestContext,
    group: volume::lvm::VolumeGroup,
    volumes: Lazy<Children>,
}

impl GroupDir {
    fn children(&self) -> Result<Arc<Children>> {
        self.volumes.get(|| {
            let mut children = Vec::new();
            for logical in &self.group.volumes {
                // A volume that cannot be read at its start still has its raw file.
                let content = volume::identify(&*logical.volume).unwrap_or(Content::Unknown);
                let place = format!("lvm/{}/{}", self.group.name, logical.name);
                push_volume(
                    &self.context,
                    &mut children,
                    &logical.name,
                    &place,
                    content,
                    logical.volume.clone(),
                    None,
                );
            }
            Ok(Children(children))
        })
    }
}

impl Base for GroupDir {
    fn identity(&self) -> Identity {
        Identity::Named(
            self.context
                .identity_of(&format!("lvm/{}/{}", self.group.name, self.group.id)),
        )
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.context.time))
    }
}

impl Directory for GroupDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        Ok(self.children()?.lookup(name))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(self.children()?.list())
    }
}
