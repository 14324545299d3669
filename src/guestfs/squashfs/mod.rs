//! squashfs 4.
//!
//! An own reader: `backhand` reads all inodes and directories into memory when it opens. Source: the
//! format's description in Linux' documentation and in `squashfs_fs.h`; images of mksquashfs.
//!
//! An inode number is what squashfs itself refers by: the inode's metadata block within the inode table,
//! and the offset in it (16 bits).

mod file;
mod inode;
mod table;
mod unpack;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::chunked::ChunkedFile;
use crate::guestfs::common::listings::Listings;
use crate::guestfs::common::unix::time;
use crate::guestfs::host::device::Device;
use crate::guestfs::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode};
use crate::io::ReadAt;
use file::{Content, Fragments};
use inode::{Body, Inode};
use table::{Blocks, Cursor, METADATA_BYTES, Superblock, bad, le16, le32};

/// Bytes of a directory; an entry takes 9 of them and more.
const MAX_DIR_BYTES: u32 = 24 << 20;
/// A part of a listing ends behind so many bytes.
const PART_BYTES: u32 = 256 << 10;
/// A run of entries that share a header.
const MAX_RUN: u32 = 256;

/// An open squashfs.
pub struct SquashFs {
    superblock: Superblock,
    blocks: Arc<Blocks>,
    fragments: Arc<Fragments>,
    listings: Listings,
}

impl SquashFs {
    /// Reads the superblock.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let device = Arc::new(Device::new(volume));
        let mut bytes = [0; 96];
        device.read(&mut bytes, 0)?;
        let superblock = Superblock::parse(&bytes)?;
        Ok(Arc::new(SquashFs {
            blocks: Arc::new(Blocks::new(device, superblock.compression)),
            fragments: Arc::new(Fragments::new(&superblock)),
            superblock,
            listings: Listings::default(),
        }))
    }

    /// An inode, and the place behind it.
    fn inode(&self, number: GuestInode) -> Result<(Inode, Cursor<'_>)> {
        let offset = (number & 0xFFFF) as usize;
        let block = self.superblock.inode_table.checked_add(number >> 16);
        let Some(block) = block.filter(|_| offset < METADATA_BYTES) else {
            return Err(bad("an inode is nowhere"));
        };
        let mut cursor = self.blocks.cursor(block, offset);
        let inode = inode::read(&mut cursor, self.superblock.block_bytes)?;
        Ok((inode, cursor))
    }

    /// The user or group in a place of the table of ids.
    fn id(&self, place: u16) -> Result<u32> {
        if place >= self.superblock.ids {
            return Err(bad("an owner is not in the table of owners"));
        }
        let at = u64::from(place) * 4;
        let bytes = self
            .blocks
            .indexed(self.superblock.id_table, at)?
            .bytes(4)?;
        Ok(le32(&bytes, 0))
    }

    /// The entries from `from` on, at most `limit` bytes of them and the rest of the last run.
    fn part(&self, dir: GuestInode, from: u32, limit: u32) -> Result<Batch> {
        let Body::Dir {
            block,
            offset,
            len_bytes,
        } = self.inode(dir)?.0.body
        else {
            return Err(Error::new(ErrorKind::Invalid, "not a directory"));
        };
        if len_bytes > MAX_DIR_BYTES {
            return Err(bad("a directory is too large"));
        }
        let table = self.superblock.directory_table;
        let start = table
            .checked_add(u64::from(block))
            .ok_or_else(|| bad("a directory is nowhere"))?;
        let mut cursor = self.blocks.cursor(start, usize::from(offset));
        cursor.skip(u64::from(from))?;
        let mut batch = Batch::default();
        let mut at = from;
        while at < len_bytes && at - from < limit {
            let head = cursor.bytes(12)?;
            at += 12;
            let count = le32(&head, 0).saturating_add(1);
            if count > MAX_RUN {
                return Err(bad("a directory has a run of entries that is too long"));
            }
            let block = u64::from(le32(&head, 4)) << 16;
            for _ in 0..count {
                let entry = cursor.bytes(8)?;
                let name = cursor.bytes(usize::from(le16(&entry, 6)) + 1)?;
                at += 8 + name.len() as u32;
                batch.entries.push(GuestEntry {
                    name: OsString::from_vec(name),
                    inode: block | u64::from(le16(&entry, 0)),
                    // The inode's own kind counts; a short one stands for both forms.
                    kind: inode::kind(le16(&entry, 4)),
                });
            }
        }
        batch.next = (at < len_bytes).then_some(u64::from(at));
        Ok(batch)
    }
}

impl GuestFs for SquashFs {
    fn root(&self) -> GuestInode {
        self.superblock.root
    }

    fn attr(&self, number: GuestInode) -> Result<GuestAttr> {
        let (inode, _) = self.inode(number)?;
        let (size_bytes, allocated_bytes) = match &inode.body {
            Body::Dir { len_bytes, .. } => (u64::from(*len_bytes) + 3, 0),
            Body::File(layout) => (
                layout.len_bytes,
                layout.len_bytes.saturating_sub(layout.sparse_bytes),
            ),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Device(_) | Body::Other => (0, 0),
        };
        let mtime = time(i64::from(inode.mtime), 0);
        Ok(GuestAttr {
            kind: inode.kind,
            size_bytes,
            allocated_bytes,
            permissions: inode.permissions,
            links: inode.links,
            uid: self.id(inode.uid)?,
            gid: self.id(inode.gid)?,
            // Only one time is stored; Linux shows it three times.
            atime: mtime,
            mtime,
            ctime: mtime,
            rdev: match inode.body {
                Body::Device(number) => number,
                _ => 0,
            },
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        self.listings
            .lookup(dir, name, || Ok(self.part(dir, 0, u32::MAX)?.entries))
    }

    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        let from = u32::try_from(cursor).map_err(|_| bad("a directory is too large"))?;
        let batch = self.part(dir, from, PART_BYTES)?;
        if from == 0 && batch.next.is_none() {
            self.listings.keep(dir, &batch.entries);
        }
        Ok(batch)
    }

    fn read_link(&self, number: GuestInode) -> Result<OsString> {
        match self.inode(number)?.0.body {
            Body::Symlink(target) => Ok(OsString::from_vec(target)),
            _ => Err(Error::new(ErrorKind::Invalid, "not a symbolic link")),
        }
    }

    fn xattrs(&self, number: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        match (self.inode(number)?.0.xattrs, self.superblock.xattr_table) {
            (Some(set), Some(table)) => xattr::read(&self.blocks, table, set),
            _ => Ok(Vec::new()),
        }
    }

    fn open(&self, number: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (inode, mut cursor) = self.inode(number)?;
        let Body::File(layout) = inode.body else {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        };
        // In steps: that they are there must be seen before room is made for all of them.
        let mut words = Vec::new();
        while (words.len() as u64) < layout.blocks {
            let left = layout.blocks - words.len() as u64;
            let bytes = cursor.bytes(left.min(2048) as usize * 4)?;
            words.extend(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|word| u32::from_le_bytes(*word)),
            );
        }
        let content = Content::new(self.blocks.clone(), self.fragments.clone(), layout, words)?;
        Ok(Arc::new(ChunkedFile::new(content)?))
    }
}
