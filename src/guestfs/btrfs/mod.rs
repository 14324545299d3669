//! btrfs, on one device or several.
//!
//! Flow: [`devices`] finds the devices and the [`superblock`] that counts → [`chunk`]s say what of which device
//! a logical address is → [`space`] reads there, working out by [`parity`] what is missing → [`tree`] walks the
//! trees, each block verified → `file` reads contents, each sector verified.
//!
//! `rust-fs-btrfs` parses and verifies what is in the trees, and unpacks zlib, lzo and zstd.
//! Subvolumes appear where they are linked, as in the kernel's mount of the top level. A log tree (what
//! was synced since the last commit) is not replayed, which gives the kernel's `nologreplay` view, and
//! that is said.

mod chunk;
mod devices;
mod file;
mod parity;
mod space;
mod superblock;
mod tree;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use fs_btrfs::dir::{self, DirEntry};
use fs_btrfs::inode::{FIRST_FREE_OBJECTID, FileType, Inode};
use fs_btrfs::subvol::{FS_TREE_OBJECTID, is_subvolume_id};
use fs_btrfs::xattr;

use super::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, Others, kind_of_mode, time};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::tree::NodeKind;
use crate::volume::bits::le64;
use chunk::{Chunk, Chunks};
use devices::Devices;
use file::{Content, Sums};
use space::{Member, Space};
use superblock::{DeviceId, Root, Superblock};
use tree::{Trees, key};

const INODE_ITEM: u8 = 1;
const XATTR_ITEM: u8 = 24;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const ROOT_ITEM: u8 = 132;
const ROOT_BACKREF: u8 = 144;
const DEV_ITEM: u8 = 216;
const CHUNK_ITEM: u8 = 228;
const DEV_ITEMS: u64 = 1;
const FIRST_CHUNK_TREE: u64 = 256;
const CSUM_TREE: u64 = 7;
/// Inodes whose contents have no checksums.
const FLAGS_WITHOUT_SUMS: u64 = 1;
const MAX_TARGET_BYTES: u64 = 4096;
/// Attributes of one inode together; the kernel's limits are far below.
const MAX_XATTR_BYTES: usize = 16 << 20;
/// A part of a listing ends after so many entries.
const BATCH_ENTRIES: usize = 4096;
/// An inode number carries its subvolume's place in the table above this bit.
const TREE_SHIFT: u32 = 44;
/// Stands for a directory that has no inode of its own (the kernel's number, too).
const EMPTY_DIR: u64 = fs_btrfs::subvol::EMPTY_SUBVOL_DIR_OBJECTID;
/// As many as their places have numbers.
const MAX_SUBVOLUMES: usize = 1 << (64 - TREE_SHIFT);
/// Missing devices that are told of.
const MAX_NAMED: usize = 32;

/// An open btrfs.
pub struct BtrfsFs {
    trees: Arc<Trees>,
    /// Id of each subvolume, by its place in inode numbers; the top level, which has the smallest, is
    /// first. Always the same for the same volume: numbers outlive this reader, which is opened anew
    /// after it was idle.
    ids: Vec<u64>,
    /// Each subvolume's tree, and the subvolume that holds it, by its id.
    roots: HashMap<u64, (Root, u64)>,
    /// How contents are verified.
    sums: Sums,
    /// The last commit that is shown.
    commit: Root,
}

impl BtrfsFs {
    /// Finds the devices, and reads the superblocks, the chunk tree and the root tree.
    ///
    /// # Errors
    /// `Unsupported` for features that are not read; `Corrupt` when what is there does not make sense, or is
    /// not enough.
    pub fn open(volume: Arc<dyn ReadAt>, others: Others<'_>) -> Result<Arc<dyn GuestFs>> {
        let Devices {
            superblock,
            members,
            seeds,
        } = devices::find(volume, others)?;
        superblock.check_features()?;
        if superblock.log_root != 0 {
            tracing::warn!(
                "btrfs: what was synced after the last commit is in a log, which is not replayed"
            );
        }
        let members = Arc::new(members);
        let chunks = all_chunks(&superblock, &members, &seeds)?;
        let trees = Trees::new(Space::new(chunks, members), &superblock, &seeds);
        let (roots, sums) = all_roots(&trees, superblock.root)?;
        let mut ids: Vec<u64> = roots.keys().copied().collect();
        ids.sort_unstable();
        if ids.first() != Some(&FS_TREE_OBJECTID) {
            return Err(bad("the top level is not there"));
        }
        // Without it nothing would be verified; the kernel does not mount such a volume, either.
        let sums = sums.ok_or_else(|| bad("there is no tree of checksums"))?;
        Ok(Arc::new(BtrfsFs {
            trees: Arc::new(trees),
            ids,
            roots,
            commit: superblock.root,
            sums: Sums {
                root: Some(sums),
                kind: superblock.sums,
                sector_bytes: superblock.sector_bytes,
            },
        }))
    }

    /// The subvolume's place, its tree, and the number within it.
    fn split(&self, inode: GuestInode) -> Result<(usize, Root, u64)> {
        let index = (inode >> TREE_SHIFT) as usize;
        let number = inode & ((1 << TREE_SHIFT) - 1);
        let id = self.ids.get(index).copied();
        let (root, _) = *id.and_then(|id| self.roots.get(&id)).ok_or_else(|| {
            Error::corrupt("a directory entry names a subvolume that is not there")
        })?;
        Ok((index, root, number))
    }

    /// Our inode number of what a directory entry names.
    fn target(&self, index: usize, entry: &DirEntry) -> Result<GuestInode> {
        let (index, number) = if entry.is_inode() {
            (index, entry.ino)
        } else {
            // A snapshot has the entry of a subvolume that its origin holds, but not the subvolume:
            // the kernel shows an empty directory there.
            let here = self.ids.get(index).copied();
            if self.roots.get(&entry.ino).map(|(_, parent)| *parent) != here {
                return Ok((index as u64) << TREE_SHIFT | EMPTY_DIR);
            }
            let place = self.ids.binary_search(&entry.ino);
            let index = place.map_err(|_| Error::corrupt("a subvolume is not there"))?;
            (index, FIRST_FREE_OBJECTID)
        };
        if number >> TREE_SHIFT != 0 || index >= 1 << (64 - TREE_SHIFT) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "an inode number or the number of subvolumes is too large",
            ));
        }
        Ok((index as u64) << TREE_SHIFT | number)
    }

    /// An inode with the tree of its subvolume.
    fn inode(&self, inode: GuestInode) -> Result<(Root, Inode)> {
        let (_, root, number) = self.split(inode)?;
        if number == EMPTY_DIR {
            let mut inode = self.read_inode(root, FIRST_FREE_OBJECTID)?;
            (inode.mode, inode.size, inode.nbytes, inode.nlink) = (0o040_755, 0, 0, 1);
            return Ok((root, inode));
        }
        Ok((root, self.read_inode(root, number)?))
    }

    fn read_inode(&self, root: Root, number: u64) -> Result<Inode> {
        let place = self.trees.get(root, &key(number, INODE_ITEM, 0))?;
        let (_, data) = place
            .as_ref()
            .and_then(|place| place.item())
            .ok_or_else(|| Error::corrupt("a name leads to an inode that is not there"))?;
        Inode::parse(data, number).map_err(from_btrfs)
    }

    fn content(&self, root: Root, inode: &Inode) -> Result<Content> {
        let mut sums = self.sums;
        if inode.flags & FLAGS_WITHOUT_SUMS != 0 {
            sums.root = None;
        }
        Content::new(self.trees.clone(), root, inode.ino, inode.size, sums)
    }
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("btrfs: {message}"))
}

/// Reads the chunk tree, by the chunks that the superblock has, and says which devices are not there.
fn all_chunks(
    superblock: &Superblock,
    members: &Arc<Vec<Member>>,
    seeds: &[[u8; 16]],
) -> Result<Chunks> {
    let sector_bytes = superblock.sector_bytes;
    let of_superblock = || Chunks::of_superblock(&superblock.system_chunks, sector_bytes);
    let space = Space::new(of_superblock()?, members.clone());
    let trees = Trees::new(space, superblock, seeds);
    let mut chunks = of_superblock()?;
    let mut missing = Vec::new();
    trees.scan(superblock.chunk_root, &key(0, 0, 0), |found, data| {
        match (found.objectid, found.key_type) {
            (DEV_ITEMS, DEV_ITEM) => {
                let id = DeviceId::parse(data);
                if !members.iter().any(|member| member.id == id) && missing.len() < MAX_NAMED {
                    missing.push(id);
                }
            }
            (FIRST_CHUNK_TREE, CHUNK_ITEM) => {
                chunks.insert(Chunk::parse(found.offset, data, sector_bytes)?)?;
            }
            (_, CHUNK_ITEM) => return Err(bad("a chunk is filed where none can be")),
            _ => {}
        }
        Ok(true)
    })?;
    for id in missing {
        tracing::warn!("btrfs: {id} is missing; what is only there cannot be read");
    }
    Ok(chunks)
}

type Roots = HashMap<u64, (Root, u64)>;

/// All subvolumes, with those that hold them, and the tree of checksums.
fn all_roots(trees: &Trees, root: Root) -> Result<(Roots, Option<Root>)> {
    let mut roots = Roots::new();
    let mut sums = None;
    trees.scan(root, &key(0, 0, 0), |found, data| {
        let id = found.objectid;
        let is_subvolume = is_subvolume_id(id);
        match found.key_type {
            ROOT_ITEM if is_subvolume || id == CSUM_TREE => {
                // After the top directory's inode: generation, its number, block; level at the end.
                let level = *data.get(238).ok_or_else(|| bad("a root is too short"))?;
                let root = Root {
                    block: le64(data, 176),
                    generation: le64(data, 160),
                    level,
                };
                if id == CSUM_TREE {
                    sums = Some(root);
                } else {
                    roots.insert(id, (root, 0));
                }
            }
            // Comes right after the root it belongs to.
            ROOT_BACKREF if is_subvolume => {
                if let Some((_, parent)) = roots.get_mut(&id) {
                    *parent = found.offset;
                }
            }
            _ => {}
        }
        match roots.len() {
            0..=MAX_SUBVOLUMES => Ok(true),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "btrfs: there are too many subvolumes",
            )),
        }
    })?;
    Ok((roots, sums))
}

fn kind_of(kind: FileType) -> NodeKind {
    match kind {
        FileType::Regular => NodeKind::File,
        FileType::Directory => NodeKind::Dir,
        FileType::Symlink => NodeKind::Symlink,
        FileType::CharDevice => NodeKind::CharDevice,
        FileType::BlockDevice => NodeKind::BlockDevice,
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
    }
}

impl GuestFs for BtrfsFs {
    fn root(&self) -> GuestInode {
        FIRST_FREE_OBJECTID
    }

    fn state(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.commit.generation, self.commit.block).hash(&mut hasher);
        hasher.finish()
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let (_, inode) = self.inode(inode)?;
        let kind =
            kind_of_mode(inode.mode).ok_or_else(|| Error::corrupt("an inode has no known type"))?;
        // Stored as the kernel keeps it: 12 bits of major above 20 of minor.
        let (major, minor) = (
            (inode.rdev >> 20) as u32 & 0xFFF,
            inode.rdev as u32 & 0xF_FFFF,
        );
        Ok(GuestAttr {
            kind,
            size_bytes: inode.size,
            allocated_bytes: inode.nbytes,
            permissions: (inode.mode & 0o7777) as u16,
            links: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            atime: time(inode.atime.sec, inode.atime.nsec),
            mtime: time(inode.mtime.sec, inode.mtime.nsec),
            ctime: time(inode.ctime.sec, inode.ctime.nsec),
            rdev: match kind {
                NodeKind::CharDevice | NodeKind::BlockDevice => {
                    (minor & 0xFF) | (major << 8) | ((minor & !0xFF) << 12)
                }
                _ => 0,
            },
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        let (index, root, number) = self.split(dir)?;
        if number == EMPTY_DIR {
            return Ok(None);
        }
        let name = name.as_bytes();
        let wanted = key(number, DIR_ITEM, dir::name_hash(name));
        let Some(place) = self.trees.get(root, &wanted)? else {
            return Ok(None);
        };
        // Names of one hash share an item.
        let data = place.item().map(|(_, data)| data).unwrap_or_default();
        let entries = dir::parse_dir_items(data).map_err(from_btrfs)?;
        let found = entries.iter().find(|entry| entry.name == name);
        found.map(|entry| self.target(index, entry)).transpose()
    }

    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        let (index, root, number) = self.split(dir)?;
        let mut batch = Batch::default();
        if number == EMPTY_DIR {
            return Ok(batch);
        }
        let from = key(number, DIR_INDEX, cursor);
        self.trees.scan(root, &from, |found, data| {
            if found.objectid != number || found.key_type != DIR_INDEX {
                return Ok(false);
            }
            if batch.entries.len() >= BATCH_ENTRIES {
                batch.next = Some(found.offset);
                return Ok(false);
            }
            for entry in dir::parse_dir_items(data).map_err(from_btrfs)? {
                batch.entries.push(GuestEntry {
                    inode: self.target(index, &entry)?,
                    kind: entry.ftype.map(kind_of),
                    name: OsString::from_vec(entry.name),
                });
            }
            Ok(true)
        })?;
        Ok(batch)
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let (root, inode) = self.inode(inode)?;
        if !inode.is_symlink() {
            return Err(Error::new(ErrorKind::Invalid, "not a symbolic link"));
        }
        if inode.size == 0 || inode.size > MAX_TARGET_BYTES {
            return Err(Error::corrupt(
                "a symbolic link has a target of a strange length",
            ));
        }
        let mut target = vec![0; inode.size as usize];
        self.content(root, &inode)?.read_exact_at(&mut target, 0)?;
        Ok(OsString::from_vec(target))
    }

    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let (_, root, number) = self.split(inode)?;
        let mut all = Vec::new();
        let mut total = 0;
        if number == EMPTY_DIR {
            return Ok(all);
        }
        let from = key(number, XATTR_ITEM, 0);
        self.trees.scan(root, &from, |found, data| {
            if found.objectid != number || found.key_type != XATTR_ITEM {
                return Ok(false);
            }
            total += data.len();
            if total > MAX_XATTR_BYTES {
                return Err(Error::corrupt("an inode has too many attributes"));
            }
            // Properties (compression, say) are attributes of the file system's own.
            for attribute in xattr::parse_xattr_items(data).map_err(from_btrfs)? {
                all.push((OsString::from_vec(attribute.name), attribute.value));
            }
            Ok(true)
        })?;
        Ok(all)
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (root, inode) = self.inode(inode)?;
        if !inode.is_regular_file() {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        Ok(Arc::new(self.content(root, &inode)?))
    }
}

/// The crate's errors as ours. I/O errors arrive as text, but `guard` has kept the real one.
pub(super) fn from_btrfs(error: fs_btrfs::Error) -> Error {
    use fs_btrfs::Error as E;
    match error {
        E::Io(text) => Error::new(ErrorKind::Io, format!("btrfs: {text}")),
        error @ (E::UnsupportedFeature(_) | E::UnsupportedChecksum(_) | E::DirtyLog) => {
            Error::new(ErrorKind::Unsupported, format!("btrfs: {error}"))
        }
        error => Error::corrupt(format!("btrfs: {error}")),
    }
}
