//! btrfs on one device, on `rust-fs-btrfs`.
//!
//! The crate opens the file system, parses and verifies what is in the trees, and unpacks zlib, lzo and
//! zstd. The trees are walked in `tree`, contents read in `file`.
//! Subvolumes appear where they are linked, as in the kernel's mount of the top level. A log tree (what
//! was synced since the last commit) is not replayed: it is masked out, which gives the kernel's
//! `nologreplay` view, and that is said.

mod file;
mod tree;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use fs_btrfs::Filesystem;
use fs_btrfs::dir::{self, DirEntry};
use fs_btrfs::inode::{FIRST_FREE_OBJECTID, FileType, Inode};
use fs_btrfs::subvol::FS_TREE_OBJECTID;
use fs_btrfs::superblock::Superblock;
use fs_btrfs::xattr;

use super::device::Device;
use super::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, kind_of_mode, time};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::tree::NodeKind;
use file::Content;
use tree::{Trees, key};

const INODE_ITEM: u8 = 1;
const XATTR_ITEM: u8 = 24;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const ROOT_ITEM: u8 = 132;
const CSUM_TREE: u64 = 7;
/// Where a root item keeps the address of the tree's root block.
const ROOT_BLOCK_OFFSET: usize = 176;
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
/// Superblock copies lie here; the first one is read by everybody.
const SUPER_OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SUPER_BYTES: usize = 4096;
const LOG_ROOT_OFFSET: usize = 96;
const LOG_LEVEL_OFFSET: usize = 200;

/// An open btrfs.
pub struct BtrfsFs {
    trees: Arc<Trees>,
    /// Id of each subvolume, by its place in inode numbers; the top level, which has the smallest, is
    /// first. Always the same for the same volume: numbers outlive this reader, which is opened anew
    /// after it was idle.
    ids: Vec<u64>,
    /// Where each subvolume's tree starts and which one holds it, by its id.
    roots: HashMap<u64, (u64, u64)>,
    /// Where the tree of checksums starts.
    sums: u64,
}

/// The device with the log masked out of the superblocks.
struct Masked {
    device: Device,
    superblocks: Vec<(u64, Vec<u8>)>,
}

impl fs_core::BlockRead for Masked {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> fs_core::Result<()> {
        fs_core::BlockRead::read_at(&self.device, offset, buf)?;
        let end = offset + buf.len() as u64;
        for (start, block) in &self.superblocks {
            let from = offset.max(*start);
            let to = end.min(start + block.len() as u64);
            if from < to {
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        fs_core::BlockRead::size_bytes(&self.device)
    }
}

impl BtrfsFs {
    /// Reads the superblocks, the chunk tree and the root tree.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let device = Device::new(volume);
        let superblocks = masked_superblocks(&device)?;
        if !superblocks.is_empty() {
            tracing::warn!(
                "btrfs: what was synced after the last commit is in a log, which is not replayed"
            );
        }
        let masked = Arc::new(Masked {
            device,
            superblocks,
        });
        let fs = Arc::new(Filesystem::mount_with_cache(masked.clone(), 0).map_err(from_btrfs)?);
        let subvolumes = fs.subvolumes().map_err(from_btrfs)?;
        let mut generations: HashMap<u64, u64> = subvolumes
            .iter()
            .map(|subvolume| (subvolume.bytenr, subvolume.generation))
            .collect();
        generations.insert(fs.superblock().root, fs.superblock().generation);
        let roots: HashMap<u64, (u64, u64)> = subvolumes
            .into_iter()
            .map(|subvolume| (subvolume.id, (subvolume.bytenr, subvolume.parent)))
            .collect();
        let mut ids: Vec<u64> = roots.keys().copied().collect();
        ids.sort_unstable();
        if ids.first() != Some(&FS_TREE_OBJECTID) {
            return Err(Error::corrupt("the top level is not there"));
        }
        let main = fs.superblock().root;
        let trees = Arc::new(Trees::new(masked, fs, generations));
        let sums = trees.get(main, &key(CSUM_TREE, ROOT_ITEM, 0))?;
        let sums = sums.as_ref().and_then(|place| place.item());
        let sums = sums.and_then(|(_, data)| data.get(ROOT_BLOCK_OFFSET..ROOT_BLOCK_OFFSET + 8));
        let sums = sums.and_then(|bytes| bytes.try_into().ok());
        // Without it nothing would be verified; the kernel does not mount such a volume, either.
        let sums = sums.ok_or_else(|| Error::corrupt("there is no tree of checksums"))?;
        Ok(Arc::new(BtrfsFs {
            trees,
            ids,
            roots,
            sums: u64::from_le_bytes(sums),
        }))
    }

    /// The subvolume's place, its root block, and the number within it.
    fn split(&self, inode: GuestInode) -> Result<(usize, u64, u64)> {
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

    /// An inode with the root block of its subvolume.
    fn inode(&self, inode: GuestInode) -> Result<(u64, Inode)> {
        let (_, root, number) = self.split(inode)?;
        if number == EMPTY_DIR {
            let mut inode = self.read_inode(root, FIRST_FREE_OBJECTID)?;
            (inode.mode, inode.size, inode.nbytes, inode.nlink) = (0o040_755, 0, 0, 1);
            return Ok((root, inode));
        }
        Ok((root, self.read_inode(root, number)?))
    }

    fn read_inode(&self, root: u64, number: u64) -> Result<Inode> {
        let place = self.trees.get(root, &key(number, INODE_ITEM, 0))?;
        let (_, data) = place
            .as_ref()
            .and_then(|place| place.item())
            .ok_or_else(|| Error::corrupt("a name leads to an inode that is not there"))?;
        Inode::parse(data, number).map_err(from_btrfs)
    }

    fn content(&self, root: u64, inode: &Inode) -> Result<Content> {
        let sums = match inode.flags & FLAGS_WITHOUT_SUMS {
            0 => Some(self.sums),
            _ => None,
        };
        Content::new(self.trees.clone(), root, inode.ino, inode.size, sums)
    }
}

/// The superblock copies without their log, when any has one.
fn masked_superblocks(device: &Device) -> Result<Vec<(u64, Vec<u8>)>> {
    let len = device.volume().len_bytes();
    let mut copies = Vec::new();
    let mut has_log = false;
    for offset in SUPER_OFFSETS {
        if offset + SUPER_BYTES as u64 > len {
            break;
        }
        let mut block = vec![0; SUPER_BYTES];
        device.read(&mut block, offset)?;
        // A damaged copy is left for the crate to refuse.
        let Ok(superblock) = Superblock::parse_at(&block, offset) else {
            continue;
        };
        if superblock.has_dirty_log() {
            has_log = true;
            block[LOG_ROOT_OFFSET..LOG_ROOT_OFFSET + 8].fill(0);
            block[LOG_LEVEL_OFFSET] = 0;
            fs_btrfs::super_write::stamp_checksum(&mut block, superblock.csum_type);
            copies.push((offset, block));
        }
    }
    Ok(if has_log { copies } else { Vec::new() })
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
