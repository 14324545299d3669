//! btrfs on one device, on `rust-fs-btrfs`.
//!
//! The crate walks the trees, verifies checksums of metadata and data, and unpacks zlib, lzo and zstd.
//! Subvolumes appear where they are linked, as in the kernel's mount of the top level. A log tree (what
//! was synced since the last commit) is not replayed: it is masked out, which gives the kernel's
//! `nologreplay` view, and that is said.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, Mutex, PoisonError};

use fs_btrfs::Filesystem;
use fs_btrfs::inode::{FIRST_FREE_OBJECTID, FileType, Inode};
use fs_btrfs::subvol::FS_TREE_OBJECTID;
use fs_btrfs::superblock::Superblock;

use super::device::Device;
use super::window::{WindowFile, WindowRead};
use super::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, kind_of_mode, time};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::tree::NodeKind;

/// An inode number carries its subvolume's place in the table above this bit.
const TREE_SHIFT: u32 = 44;
/// Stands for a directory that has no inode of its own (the kernel's number, too).
const EMPTY_DIR: u64 = fs_btrfs::subvol::EMPTY_SUBVOL_DIR_OBJECTID;
/// Superblock copies lie here; the first one is read by everybody.
const SUPER_OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SUPER_BYTES: usize = 4096;
const LOG_ROOT_OFFSET: usize = 96;
const LOG_LEVEL_OFFSET: usize = 200;
/// Subvolumes open at once in one file system; further ones are opened again when needed.
const OPEN_TREES: usize = 64;

/// An open btrfs.
pub struct BtrfsFs {
    top: Arc<Filesystem>,
    /// Tree id of each subvolume seen so far, by its place in inode numbers; the top level is first.
    trees: Mutex<Vec<u64>>,
    open: Mutex<HashMap<usize, Arc<Filesystem>>>,
    /// Where each subvolume's tree starts and which one holds it, by its id.
    roots: HashMap<u64, (u64, u64)>,
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
        let top = Arc::new(Filesystem::mount_with_cache(masked, 0).map_err(from_btrfs)?);
        let roots = top
            .subvolumes()
            .map_err(from_btrfs)?
            .into_iter()
            .map(|subvolume| (subvolume.id, (subvolume.bytenr, subvolume.parent)))
            .collect();
        Ok(Arc::new(BtrfsFs {
            top,
            trees: Mutex::new(vec![FS_TREE_OBJECTID]),
            open: Mutex::default(),
            roots,
        }))
    }

    fn split(&self, inode: GuestInode) -> Result<(usize, Arc<Filesystem>, u64)> {
        let index = (inode >> TREE_SHIFT) as usize;
        let number = inode & ((1 << TREE_SHIFT) - 1);
        Ok((index, self.tree(index)?, number))
    }

    fn tree(&self, index: usize) -> Result<Arc<Filesystem>> {
        if index == 0 {
            return Ok(self.top.clone());
        }
        if let Some(fs) = lock(&self.open).get(&index) {
            return Ok(fs.clone());
        }
        let id = lock(&self.trees).get(index).copied();
        let (root, _) = *id.and_then(|id| self.roots.get(&id)).ok_or_else(|| {
            Error::corrupt("a directory entry names a subvolume that is not there")
        })?;
        let fs = Arc::new(self.top.open_subvolume_at(root).map_err(from_btrfs)?);
        let mut open = lock(&self.open);
        if open.len() >= OPEN_TREES {
            open.clear();
        }
        open.insert(index, fs.clone());
        Ok(fs)
    }

    /// Our inode number of what a directory entry names.
    fn target(&self, index: usize, entry: &fs_btrfs::dir::DirEntry) -> Result<GuestInode> {
        let (index, number) = if entry.is_inode() {
            (index, entry.ino)
        } else {
            let mut trees = lock(&self.trees);
            // A snapshot has the entry of a subvolume that its origin holds, but not the subvolume:
            // the kernel shows an empty directory there.
            let here = trees.get(index).copied();
            if self.roots.get(&entry.ino).map(|(_, parent)| *parent) != here {
                return Ok((index as u64) << TREE_SHIFT | EMPTY_DIR);
            }
            let index = match trees.iter().position(|&id| id == entry.ino) {
                Some(index) => index,
                None => {
                    trees.push(entry.ino);
                    trees.len() - 1
                }
            };
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

    fn inode(&self, inode: GuestInode) -> Result<(Arc<Filesystem>, Inode)> {
        let (_, fs, number) = self.split(inode)?;
        if number == EMPTY_DIR {
            let mut inode = fs.root_inode().map_err(from_btrfs)?;
            (inode.mode, inode.size, inode.nbytes, inode.nlink) = (0o040_755, 0, 0, 1);
            return Ok((fs, inode));
        }
        let inode = fs.read_inode(number).map_err(from_btrfs)?;
        Ok((fs, inode))
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
        let (index, fs, number) = self.split(dir)?;
        if number == EMPTY_DIR {
            return Ok(None);
        }
        match fs.lookup(number, name.as_bytes()) {
            Ok(found) if found.ino >> TREE_SHIFT == 0 => {
                Ok(Some((index as u64) << TREE_SHIFT | found.ino))
            }
            Ok(_) => Err(Error::new(
                ErrorKind::Unsupported,
                "an inode number is too large",
            )),
            Err(fs_btrfs::Error::NotFound) => Ok(None),
            // The crate does not look a subvolume's name up; the listing has it.
            Err(fs_btrfs::Error::UnsupportedFeature(_)) => {
                let entries = fs.read_dir(number).map_err(from_btrfs)?;
                entries
                    .iter()
                    .find(|entry| entry.name == name.as_bytes())
                    .map(|entry| self.target(index, entry))
                    .transpose()
            }
            Err(error) => Err(from_btrfs(error)),
        }
    }

    fn list(&self, dir: GuestInode, _cursor: u64) -> Result<Batch> {
        let (index, fs, number) = self.split(dir)?;
        let mut entries = Vec::new();
        if number == EMPTY_DIR {
            return Ok(Batch::default());
        }
        for entry in fs.read_dir(number).map_err(from_btrfs)? {
            entries.push(GuestEntry {
                inode: self.target(index, &entry)?,
                kind: entry.ftype.map(kind_of),
                name: OsString::from_vec(entry.name),
            });
        }
        Ok(Batch {
            entries,
            next: None,
        })
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let (fs, inode) = self.inode(inode)?;
        let target = fs.read_link(inode.ino).map_err(from_btrfs)?;
        Ok(OsString::from_vec(target))
    }

    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let (_, fs, number) = self.split(inode)?;
        if number == EMPTY_DIR {
            return Ok(Vec::new());
        }
        let all = fs.list_xattrs(number).map_err(from_btrfs)?;
        Ok(all
            .into_iter()
            // Properties (compression, say) are attributes of the file system's own.
            .map(|attribute| (OsString::from_vec(attribute.name), attribute.value))
            .collect())
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (fs, inode) = self.inode(inode)?;
        if !inode.is_regular_file() {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        let len = inode.size;
        let source = Content {
            fs,
            number: inode.ino,
        };
        Ok(Arc::new(WindowFile::new(source, len)?))
    }
}

/// One file's content, through the crate: checksums verified, extents unpacked.
struct Content {
    fs: Arc<Filesystem>,
    number: u64,
}

impl WindowRead for Content {
    fn read_window(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self
            .fs
            .read_at(self.number, offset, buf)
            .map_err(from_btrfs)?;
        match read == buf.len() {
            true => Ok(()),
            false => Err(Error::corrupt("a file ends before its size")),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The crate's errors as ours. I/O errors arrive as text, but `guard` has kept the real one.
fn from_btrfs(error: fs_btrfs::Error) -> Error {
    use fs_btrfs::Error as E;
    match error {
        E::Io(text) => Error::new(ErrorKind::Io, format!("btrfs: {text}")),
        error @ (E::UnsupportedFeature(_) | E::UnsupportedChecksum(_) | E::DirtyLog) => {
            Error::new(ErrorKind::Unsupported, format!("btrfs: {error}"))
        }
        error => Error::corrupt(format!("btrfs: {error}")),
    }
}
