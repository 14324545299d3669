//! btrfs, on one device or several.
//!
//! Flow: `devices` finds the devices and the `superblock` that counts → [`chunk`]s say what of which device
//! a logical address is → `space` reads there, working out by `parity` what is missing → `tree` walks the
//! trees, each [`block`] proved by its [`checksum`] → [`roots`] says which trees there are → [`file`] reads
//! contents, each sector verified. The records in the trees have a file each: [`inode`], [`dir_item`],
//! [`extent`]; they are filed by [`key`]s.
//!
//! Subvolumes appear where they are linked, as in the kernel's mount of the top level. A log tree (what
//! was synced since the last commit) is not replayed, which gives the kernel's `nologreplay` view, and
//! that is said.
#![cfg_attr(
    not(test),
    warn(
        unreachable_pub,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::indexing_slicing
    )
)]

pub mod block;
pub mod checksum;
pub mod chunk;
mod devices;
pub mod dir_item;
pub mod extent;
mod fault;
mod file;
pub mod inode;
pub mod key;
mod parity;
pub mod roots;
mod space;
mod superblock;
mod tree;
pub mod unpack;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::unix::{device_number, kind_of_mode, time};
use crate::guestfs::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, Others};
use crate::io::ReadAt;
use crate::kind::NodeKind;
use crate::volume::bits::index;
use chunk::{Chunk, Chunks};
use devices::Devices;
use dir_item::{Record, Records, name_hash};
use fault::bad;
use file::{Content, Sums};
use inode::Inode;
use key::{
    CHUNK_ITEM, DEV_ITEM, DEV_ITEMS, DIR_INDEX, DIR_ITEM, FIRST_CHUNK_TREE, FIRST_FREE, FS_TREE,
    INODE_ITEM, Key, XATTR_ITEM,
};
use roots::{Roots, Subvolume};
use space::{Member, Space};
use superblock::{DeviceId, Root, Superblock};
use tree::Trees;

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_000;
const MAX_TARGET_BYTES: u64 = 4096;
/// Attributes of one inode together; the kernel's limits are far below.
const MAX_XATTR_BYTES: usize = 16 << 20;
/// A part of a listing ends after so many entries.
const BATCH_ENTRIES: usize = 4096;
/// An inode number carries its subvolume's place in the table above this bit.
const TREE_SHIFT: u32 = 44;
/// Stands for a directory that has no inode of its own (the kernel's number, too).
const EMPTY_DIR: u64 = 2;
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
    /// By their ids.
    subvolumes: HashMap<u64, Subvolume>,
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
        let Roots { subvolumes, sums } = Roots::read(&trees, superblock.root, MAX_SUBVOLUMES)?;
        let mut ids: Vec<u64> = subvolumes.keys().copied().collect();
        ids.sort_unstable();
        if ids.first() != Some(&FS_TREE) {
            return Err(bad("the top level is not there"));
        }
        // Without it nothing would be verified; the kernel does not mount such a volume, either.
        let sums = sums.ok_or_else(|| bad("there is no tree of checksums"))?;
        Ok(Arc::new(BtrfsFs {
            trees: Arc::new(trees),
            ids,
            subvolumes,
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
        let subvolume = id
            .and_then(|id| self.subvolumes.get(&id))
            .ok_or_else(|| bad("a directory entry names a subvolume that is not there"))?;
        Ok((index, subvolume.root, number))
    }

    /// Our inode number of what a directory entry names.
    fn target(&self, index: usize, entry: &Record<'_>) -> Result<GuestInode> {
        let target = entry.target.objectid;
        let (index, number) = if entry.is_inode() {
            (index, target)
        } else {
            // A snapshot has the entry of a subvolume that its origin holds, but not the subvolume:
            // the kernel shows an empty directory there.
            let here = self.ids.get(index).copied();
            if self.subvolumes.get(&target).map(|found| found.parent) != here {
                return Ok((index as u64) << TREE_SHIFT | EMPTY_DIR);
            }
            let place = self.ids.binary_search(&target);
            let index = place.map_err(|_| bad("a subvolume is not there"))?;
            (index, FIRST_FREE)
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
            let inode = Inode {
                mode: DIRECTORY,
                len_bytes: 0,
                allocated_bytes: 0,
                links: 1,
                ..self.read_inode(root, FIRST_FREE)?
            };
            return Ok((root, inode));
        }
        Ok((root, self.read_inode(root, number)?))
    }

    fn read_inode(&self, root: Root, number: u64) -> Result<Inode> {
        let place = self.trees.get(root, Key::new(number, INODE_ITEM, 0))?;
        let (_, item) = place
            .as_ref()
            .and_then(|place| place.item())
            .ok_or_else(|| bad("a name leads to an inode that is not there"))?;
        Inode::parse(number, item)
    }

    fn content(&self, root: Root, inode: &Inode) -> Result<Content> {
        let mut sums = self.sums;
        if !inode.has_sums {
            sums.root = None;
        }
        Content::new(
            self.trees.clone(),
            root,
            inode.number,
            inode.len_bytes,
            sums,
        )
    }
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
    trees.scan(superblock.chunk_root, Key::new(0, 0, 0), |found, data| {
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

impl GuestFs for BtrfsFs {
    fn root(&self) -> GuestInode {
        FIRST_FREE
    }

    fn state(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.commit.generation, self.commit.block).hash(&mut hasher);
        hasher.finish()
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let (_, inode) = self.inode(inode)?;
        let kind = kind_of_mode(inode.mode).ok_or_else(|| bad("an inode has no known type"))?;
        // Stored as the kernel keeps it: 12 bits of major above 20 of minor.
        let (major, minor) = (inode.rdev >> 20 & 0xFFF, inode.rdev & 0xF_FFFF);
        Ok(GuestAttr {
            kind,
            size_bytes: inode.len_bytes,
            allocated_bytes: inode.allocated_bytes,
            permissions: (inode.mode & 0o7777) as u16,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            atime: time(inode.atime.0, inode.atime.1),
            mtime: time(inode.mtime.0, inode.mtime.1),
            ctime: time(inode.ctime.0, inode.ctime.1),
            rdev: match kind {
                NodeKind::CharDevice | NodeKind::BlockDevice => {
                    device_number(major, minor).unwrap_or(0)
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
        let wanted = Key::new(number, DIR_ITEM, name_hash(name));
        let Some(place) = self.trees.get(root, wanted)? else {
            return Ok(None);
        };
        // Names of one hash share an item.
        let (_, item) = place.item().unwrap_or((wanted, &[]));
        for entry in Records::of(item) {
            let entry = entry?;
            if entry.name == name {
                return self.target(index, &entry).map(Some);
            }
        }
        Ok(None)
    }

    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        let (index, root, number) = self.split(dir)?;
        let mut batch = Batch::default();
        if number == EMPTY_DIR {
            return Ok(batch);
        }
        let from = Key::new(number, DIR_INDEX, cursor);
        self.trees.scan(root, from, |found, data| {
            if found.objectid != number || found.key_type != DIR_INDEX {
                return Ok(false);
            }
            if batch.entries.len() >= BATCH_ENTRIES {
                batch.next = Some(found.offset);
                return Ok(false);
            }
            for entry in Records::of(data) {
                let entry = entry?;
                batch.entries.push(GuestEntry {
                    inode: self.target(index, &entry)?,
                    kind: entry.kind()?,
                    name: OsStr::from_bytes(entry.name).to_owned(),
                });
            }
            Ok(true)
        })?;
        Ok(batch)
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let (root, inode) = self.inode(inode)?;
        if !inode.is(LINK) {
            return Err(Error::new(ErrorKind::Invalid, "not a symbolic link"));
        }
        if !(1..=MAX_TARGET_BYTES).contains(&inode.len_bytes) {
            return Err(bad("a symbolic link has a target of a strange length"));
        }
        let mut target = vec![0; index(inode.len_bytes)];
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
        let from = Key::new(number, XATTR_ITEM, 0);
        self.trees.scan(root, from, |found, data| {
            if found.objectid != number || found.key_type != XATTR_ITEM {
                return Ok(false);
            }
            total += data.len();
            if total > MAX_XATTR_BYTES {
                return Err(bad("an inode has too many attributes"));
            }
            // Properties (compression, say) are attributes of the file system's own.
            for attribute in Records::of(data) {
                let attribute = attribute?;
                if !attribute.is_attribute() {
                    return Err(bad("an attribute is filed as something else"));
                }
                let name = OsStr::from_bytes(attribute.name).to_owned();
                all.push((name, attribute.value.to_vec()));
            }
            Ok(true)
        })?;
        Ok(all)
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (root, inode) = self.inode(inode)?;
        if !inode.is(REGULAR) {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        Ok(Arc::new(self.content(root, &inode)?))
    }
}
