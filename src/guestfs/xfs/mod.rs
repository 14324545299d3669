//! XFS versions 4 and 5, on `rust-fs-xfs`.
//!
//! The crate parses superblock, inodes, directory blocks and attributes, verifies checksums, and replays
//! a dirty log into memory; that of small inodes is replayed in `log`. File contents are read here, by
//! extents, straight from the volume; directories in `dir`.

mod dir;
mod error;
mod log;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use fs_xfs::Filesystem;
use fs_xfs::extent::Extent;
use fs_xfs::inode::Inode;

use self::dir::Dirs;
use self::error::from_xfs;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::run_file::{Run, RunFile, RunMap};
use crate::guestfs::common::unix::{kind_of_mode, time};
use crate::guestfs::host::device::Device;
use crate::guestfs::{Batch, GuestAttr, GuestFs, GuestInode};
use crate::io::ReadAt;
use crate::kind::NodeKind;

/// An open XFS.
pub struct XfsFs {
    fs: Arc<Filesystem>,
    /// The volume, or the crate's view when its log replay holds newer blocks.
    contents: Arc<dyn ReadAt>,
    dirs: Dirs,
}

/// The volume as it is after the log.
struct Replayed {
    fs: Arc<Filesystem>,
    len_bytes: u64,
}

impl ReadAt for Replayed {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.fs
            .device()
            .read_at(offset, buf)
            .map_err(|error| from_xfs(error.into()))
    }
}

impl XfsFs {
    /// Reads the superblock, and the log when it is dirty.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let volume = log::replayed(&volume)?.unwrap_or(volume);
        XfsFs::on(volume)
    }

    /// On a volume whose log is clean, or one for the crate.
    pub(super) fn on(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let device = Arc::new(Device::new(volume.clone()));
        let fs = Arc::new(Filesystem::mount_with_cache(device, 0).map_err(from_xfs)?);
        let contents: Arc<dyn ReadAt> = match fs.was_replayed() {
            false => volume,
            true => Arc::new(Replayed {
                fs: fs.clone(),
                len_bytes: volume.len_bytes(),
            }),
        };
        let dirs = Dirs::new(fs.clone());
        Ok(Arc::new(XfsFs { fs, contents, dirs }))
    }

    fn inode(&self, number: GuestInode) -> Result<(Inode, Vec<u8>)> {
        let (inode, raw) = self.fs.read_inode_raw(number).map_err(from_xfs)?;
        if inode.mode == 0 || inode.nlink == 0 {
            return Err(Error::corrupt(
                "a name leads to an inode that is not in use",
            ));
        }
        Ok((inode, raw))
    }

    fn directory(&self, number: GuestInode) -> Result<(Inode, Vec<u8>)> {
        let (inode, raw) = self.inode(number)?;
        if !inode.is_dir() {
            return Err(Error::new(ErrorKind::Invalid, "not a directory"));
        }
        Ok((inode, raw))
    }
}

impl GuestFs for XfsFs {
    fn root(&self) -> GuestInode {
        self.fs.superblock().rootino
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let (inode, raw) = self.inode(inode)?;
        let kind = kind_of_mode(u32::from(inode.mode))
            .ok_or_else(|| Error::corrupt("an inode has no known type"))?;
        let rdev = match kind {
            NodeKind::CharDevice | NodeKind::BlockDevice => {
                let (start, end) =
                    inode.data_fork_range(usize::from(self.fs.superblock().inodesize));
                let stored = raw
                    .get(start..end)
                    .and_then(|fork| fork.get(..4))
                    .ok_or_else(|| Error::corrupt("a device node without a device number"))?;
                let stored = u32::from_be_bytes([stored[0], stored[1], stored[2], stored[3]]);
                // 14 bits of major, 18 of minor (`sysv_encode_dev`), in the kernel's new form.
                let (major, minor) = (stored >> 18, stored & 0x3_FFFF);
                (minor & 0xFF) | (major << 8) | ((minor & !0xFF) << 12)
            }
            _ => 0,
        };
        Ok(GuestAttr {
            kind,
            size_bytes: inode.size,
            allocated_bytes: inode
                .nblocks
                .saturating_mul(u64::from(self.fs.superblock().blocksize)),
            permissions: inode.mode & 0o7777,
            links: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            atime: time(inode.atime.sec, inode.atime.nsec),
            mtime: time(inode.mtime.sec, inode.mtime.nsec),
            ctime: time(inode.ctime.sec, inode.ctime.nsec),
            rdev,
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        self.dirs.lookup(dir, || self.directory(dir), name)
    }

    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        self.dirs.list(dir, || self.directory(dir), cursor)
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let (inode, raw) = self.inode(inode)?;
        let target = self.fs.read_link(&inode, &raw).map_err(from_xfs)?;
        Ok(OsString::from_vec(target))
    }

    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let (inode, raw) = self.inode(inode)?;
        let all = self.fs.list_xattrs(&inode, &raw).map_err(from_xfs)?;
        Ok(all
            .into_iter()
            .map(|attribute| (OsString::from_vec(attribute.name), attribute.value))
            .collect())
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (inode, raw) = self.inode(inode)?;
        if !inode.is_regular_file() {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        let len = inode.size;
        let mut extents = self.fs.data_extents(&inode, &raw).map_err(from_xfs)?;
        extents.sort_by_key(|extent| extent.startoff);
        let overlap = extents
            .windows(2)
            .any(|pair| pair[0].end_offset() > pair[1].startoff);
        if overlap {
            return Err(Error::corrupt("a file's extents overlap"));
        }
        let map = ExtentList {
            fs: self.fs.clone(),
            extents,
        };
        Ok(Arc::new(RunFile::new(self.contents.clone(), map, len)?))
    }
}

/// All extents of a file by their place in it. Bounded by what one call may read.
struct ExtentList {
    fs: Arc<Filesystem>,
    extents: Vec<Extent>,
}

impl RunMap for ExtentList {
    fn run_at(&self, offset: u64) -> Result<Run> {
        let sb = self.fs.superblock();
        let block_bytes = u64::from(sb.blocksize);
        let block = offset / block_bytes;
        let index = self.extents.partition_point(|e| e.end_offset() <= block);
        let Some(extent) = self.extents.get(index) else {
            return Ok(Run {
                end: u64::MAX,
                at: None,
            });
        };
        if extent.startoff > block {
            return Ok(Run {
                end: extent.startoff.saturating_mul(block_bytes),
                at: None,
            });
        }
        let at = match extent.is_unwritten() {
            true => None,
            // The crate checked that the extent lies within one allocation group.
            false => sb
                .fsblock_offset(extent.startblock)
                .checked_add(offset - extent.startoff * block_bytes),
        };
        Ok(Run {
            end: extent.end_offset().saturating_mul(block_bytes),
            at,
        })
    }
}
