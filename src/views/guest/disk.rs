//! The entry for `views`: a disk as a directory, and the volume groups over several disks.
//!
//! Nothing here does I/O for a mere name. A disk is opened and its table read when its directory is entered or
//! asked for its attributes, and a volume's file system likewise: both may be a guest's root directory.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use super::machine::Machine;
use super::node::{GuestOptions, GuestTree};
use super::root::{PROBLEM, RootDir, is_lasting, sealed};
use super::search::{look_at, other_volumes, search};
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::host::pool::{Pool, Pooled};
use crate::guestfs::{is_readable, open_among};
use crate::hash::StableHash;
use crate::io::{ExtentKind, ReadAt};
use crate::tree::{
    Attr, Base, DirEntry, DirStream, Directory, EntryList, File, Identity, Node, NodeKind,
};
use crate::volume::{self, Content, DiskVolumes, PartitionVolume, Problem, TableKind};

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
    /// What was found out about them.
    pub machine: Arc<Machine>,
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

    /// The value if it was made.
    fn peek(&self) -> Option<Arc<T>> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        value.clone()
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
/// as long as one cannot be fetched, the directory cannot be listed.
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
        found: Lazy::new(),
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

/// Extended attributes.
type Attributes = Vec<(OsString, Vec<u8>)>;

fn names_of(attributes: &Attributes) -> Vec<OsString> {
    attributes.iter().map(|(name, _)| name.clone()).collect()
}

fn value_of(attributes: &Attributes, name: &OsStr) -> Option<Vec<u8>> {
    let found = attributes.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.clone())
}

/// What a scan of a disk gave.
struct Scanned {
    shown: Shown,
    /// What is known of the disk. Of a guest's root directory, which has its own, problems only.
    attributes: Attributes,
}

enum Shown {
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
            let found = look_at(&disk, |disk| {
                volume::scan_disk(&self.name, disk, &mut problems)
            })?;
            self.context.machine.warn(&problems);
            self.context.machine.note(&found);
            let mut attributes = describe_disk(&found, &problems);
            let shown = if found.table != TableKind::None {
                let mut children = Vec::new();
                for part in found.partitions {
                    push_partition(&self.context, &mut children, &self.name, part);
                }
                Shown::Partitions(Children(children))
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
    children: &mut Vec<(String, Node)>,
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

/// Adds `name.raw`, and `name` when its file system can be read.
fn push_volume(
    context: &GuestContext,
    children: &mut Vec<(String, Node)>,
    name: &str,
    place: &str,
    (content, volume): (Content, Arc<dyn ReadAt>),
    attributes: Attributes,
) {
    let raw = Node::File(Arc::new(RawFile {
        identity: Identity::Named(context.identity_of(&format!("{place}.raw"))),
        time: context.time,
        volume: volume.clone(),
        attributes,
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

/// What a volume holds. One that is damaged at its start still has its raw file.
///
/// # Errors
/// What kept it from being fetched.
fn content_of(volume: &Arc<dyn ReadAt>) -> Result<Content> {
    match volume::identify(&**volume) {
        Err(error) if error.may_pass() => Err(error),
        content => Ok(content.unwrap_or(Content::Unknown)),
    }
}

/// Why nothing is shown of a volume with this content, where that is not clear from what it is.
fn why_nothing(content: Content) -> Option<String> {
    use Content::{BitLocker, ExtJournal, LvmMember, MdMember, Swap, Unknown, Zeros};
    match content {
        Content::Luks | BitLocker => Some(format!(
            "encrypted ({}): without the key there is nothing to read",
            content.as_str()
        )),
        Unknown => Some("no file system, volume or partition table that brfs knows".to_string()),
        LvmMember | MdMember | Swap | ExtJournal | Zeros => None,
        content if is_readable(content) => None,
        content => Some(format!(
            "{} is not read: there are only the raw bytes",
            content.as_str()
        )),
    }
}

/// What is known of a volume, as attributes of its raw file.
fn describe(content: Content, problems: &[String]) -> Attributes {
    let mut attributes: Attributes = vec![("user.brfs.content".into(), content.as_str().into())];
    let said = problems.iter().cloned();
    add_problem(&mut attributes, said.chain(why_nothing(content)));
    attributes
}

/// What is known of a disk, as attributes of its directory.
fn describe_disk(found: &DiskVolumes, problems: &[Problem]) -> Attributes {
    let (content, why) = match found.table {
        TableKind::None => (found.content.as_str(), why_nothing(found.content)),
        table => (table.as_str(), None),
    };
    let mut attributes: Attributes = vec![("user.brfs.content".into(), content.into())];
    let said = problems.iter().map(|problem| problem.within(&found.name));
    // What is wrong with the table is why nothing is known of the disk.
    let why = why.filter(|_| problems.is_empty() || found.content != Content::Unknown);
    add_problem(&mut attributes, said.chain(why));
    attributes
}

fn add_problem(attributes: &mut Attributes, problems: impl Iterator<Item = String>) {
    let text = problems.collect::<Vec<_>>().join("; ");
    if !text.is_empty() {
        attributes.push((PROBLEM.into(), text.into()));
    }
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
            Shown::Partitions(children) => Ok(children.lookup(name)),
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

/// A volume as a file.
struct RawFile {
    identity: Identity,
    time: SystemTime,
    volume: Arc<dyn ReadAt>,
    attributes: Attributes,
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
        Ok(names_of(&self.attributes))
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(value_of(&self.attributes, name))
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
    found: Lazy<Over>,
}

/// What a search of all disks gave.
struct Over {
    children: Children,
    /// What was wrong, as an attribute of the directory.
    attributes: Attributes,
}

impl OverDisks {
    fn found(&self) -> Result<Arc<Over>> {
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
            let children = match self.kind {
                Kind::Lvm => self.groups(found.groups),
                Kind::Md => self.arrays(found.arrays)?,
            };
            Ok(Over {
                children,
                attributes,
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

    fn arrays(&self, arrays: Vec<volume::md::Array>) -> Result<Children> {
        let mut children = Vec::new();
        for array in arrays {
            let place = format!("md/{}", array.name);
            let content = content_of(&array.volume)?;
            let raw = Node::File(Arc::new(RawFile {
                identity: Identity::Named(self.context.identity_of(&format!("{place}.raw"))),
                time: self.context.time,
                volume: array.volume.clone(),
                attributes: describe(content, &[]),
            }));
            children.push((format!("{}.raw", array.name), raw));
            let open: OpenDisk = Arc::new(move || Ok(array.volume.clone()));
            let inside = disk_children(self.context.clone(), &place, open);
            children.push((array.name, Node::Dir(inside)));
        }
        Ok(Children(children))
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
        Ok(self.found()?.children.lookup(name))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(self.found()?.children.list())
    }
}

fn in_words(problem: &Problem) -> String {
    format!("{}: {}", problem.subject, problem.message)
}

struct GroupDir {
    context: GuestContext,
    group: volume::lvm::VolumeGroup,
    volumes: Lazy<Children>,
}

impl GroupDir {
    fn attributes(&self) -> Attributes {
        let mut attributes = Vec::new();
        add_problem(&mut attributes, self.group.problems.iter().map(in_words));
        attributes
    }

    fn children(&self) -> Result<Arc<Children>> {
        self.volumes.get(|| {
            let mut children = Vec::new();
            for logical in &self.group.volumes {
                let content = content_of(&logical.volume)?;
                let place = format!("lvm/{}/{}", self.group.name, logical.name);
                push_volume(
                    &self.context,
                    &mut children,
                    &logical.name,
                    &place,
                    (content, logical.volume.clone()),
                    describe(content, &[]),
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

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(names_of(&self.attributes()))
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(value_of(&self.attributes(), name))
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
