//! XFS directories: in parts, and by name.
//!
//! The crate parses and verifies directory blocks. Which blocks there are is worked out here: the crate
//! lists a directory as a whole, reads its extents again for every name, and takes a directory block of
//! several file system blocks for one run even where it is in pieces.
//!
//! A directory is a file of three regions: entries from 0 on, the index of name hashes from 32 GiB on,
//! free space from 64 GiB on. Source: "XFS Algorithms & Data Structures", chapter on directories.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use fs_xfs::Filesystem;
use fs_xfs::dir::{self, DirEntry};
use fs_xfs::extent::Extent;
use fs_xfs::inode::{FileType, Format, Inode};

use super::error::from_xfs;
use crate::error::{Error, Result};
use crate::guestfs::common::recent::Recent;
use crate::guestfs::{Batch, GuestEntry, GuestInode};
use crate::kind::NodeKind;

/// Where the index begins in the directory's own bytes.
const INDEX_START: u64 = 1 << 35;
/// Extents of one directory; a million entries take some 12,000 blocks.
const MAX_EXTENTS: u64 = 1 << 19;
/// Extents kept of directories that were used last (some 5 MiB).
const KEPT_EXTENTS: usize = 1 << 17;
/// Directories whose extents are kept.
const KEPT: usize = 64;
/// A part of a listing ends after so many entries or blocks.
const BATCH_ENTRIES: usize = 4096;
const BATCH_BLOCKS: u64 = 256;

/// Magic numbers of blocks with entries (version 5 and 4, several blocks and one).
const DATA: [u32; 2] = [0x5844_4433, 0x5844_3244];
const BLOCK: [u32; 2] = [0x5844_4233, 0x5844_3242];
/// … and of nodes of the index.
const NODE: [u16; 2] = [0x3EBE, 0xFEBE];
/// A leaf by itself has no neighbours; its links hold nothing.
const LEAF_OF_MANY: [u16; 2] = [0x3DFF, 0xD2FF];

/// Where a directory's blocks are.
struct Map {
    /// The directory's inode, which its blocks name.
    owner: u64,
    extents: Vec<Extent>,
}

/// Reads the directories of one file system.
pub struct Dirs {
    fs: Arc<Filesystem>,
    maps: Recent<Map>,
}

impl Dirs {
    /// For an open file system.
    pub fn new(fs: Arc<Filesystem>) -> Self {
        Dirs {
            fs,
            maps: Recent::new(KEPT, KEPT_EXTENTS),
        }
    }

    /// The entries from `cursor` on, a directory block at a time. `inode` and `raw` are as the crate
    /// reads them.
    ///
    /// # Errors
    /// `Corrupt` when the directory does not hold together.
    pub fn list(
        &self,
        number: GuestInode,
        read: impl FnOnce() -> Result<(Inode, Vec<u8>)>,
        cursor: u64,
    ) -> Result<Batch> {
        let map = match self.open(number, read)? {
            Opened::Short(entries) => {
                return Ok(Batch {
                    entries: entries.into_iter().map(entry).collect(),
                    next: None,
                });
            }
            Opened::Blocks(map) => map,
        };
        let per_block = self.per_block();
        let end = INDEX_START / self.block_bytes();
        let mut all = Vec::new();
        let mut at = cursor;
        let mut blocks = 0;
        while let Some(next) = map.next_block(at, per_block).filter(|&next| next < end) {
            let block = self
                .block(&map, next)?
                .ok_or_else(|| bad("a directory block has a hole"))?;
            let entries = dir::parse_data_block(&block, self.fs.superblock()).map_err(from_xfs)?;
            all.extend(entries.into_iter().map(entry));
            at = next + 1;
            blocks += 1;
            if all.len() >= BATCH_ENTRIES || blocks >= BATCH_BLOCKS {
                return Ok(Batch {
                    entries: all,
                    next: Some(at),
                });
            }
        }
        Ok(Batch {
            entries: all,
            next: None,
        })
    }

    /// The inode of a name, by the hash of the name.
    ///
    /// # Errors
    /// `Corrupt` when the directory does not hold together.
    pub fn lookup(
        &self,
        number: GuestInode,
        read: impl FnOnce() -> Result<(Inode, Vec<u8>)>,
        name: &OsStr,
    ) -> Result<Option<GuestInode>> {
        let name = name.as_bytes();
        let map = match self.open(number, read)? {
            Opened::Short(entries) => {
                let found = entries.into_iter().find(|entry| entry.name == name);
                return Ok(found.map(|entry| entry.ino));
            }
            Opened::Blocks(map) => map,
        };
        let sb = self.fs.superblock();
        let hash = match sb.has_case_insensitive_dirs() {
            true => hash_name(&name.to_ascii_lowercase()),
            false => hash_name(name),
        };
        let Some(first) = self.block(&map, 0)? else {
            return Err(bad("a directory has no first block"));
        };
        let addresses = if BLOCK.contains(&be32(&first, 0)) {
            let block = dir::parse_block_form(&first, sb).map_err(from_xfs)?;
            block
                .index
                .iter()
                .filter(|record| !record.is_stale() && record.hashval == hash)
                .map(|record| record.address)
                .collect()
        } else {
            self.addresses(&map, hash)?
        };
        for address in addresses {
            // In units of 8 bytes.
            let at = u64::from(address) * 8;
            let (block, within) = (at / self.block_bytes(), at % self.block_bytes());
            let block = self
                .block(&map, block)?
                .ok_or_else(|| bad("a directory's index leads to a hole"))?;
            let entries = dir::parse_data_block(&block, sb).map_err(from_xfs)?;
            let found = entries
                .iter()
                .find(|entry| u64::from(entry.offset) == within);
            if let Some(found) = found.filter(|entry| entry.name == name) {
                return Ok(Some(found.ino));
            }
        }
        Ok(None)
    }

    /// Where the index says entries with this hash are.
    fn addresses(&self, map: &Map, hash: u32) -> Result<Vec<u32>> {
        let sb = self.fs.superblock();
        let mut at = INDEX_START / self.block_bytes();
        let mut block = self.index_block(map, at)?;
        let mut level = None;
        while NODE.contains(&be16(&block, 8)) {
            let node = dir::parse_node(&block, sb).map_err(from_xfs)?;
            if node.level == 0 || level.is_some_and(|level| level != node.level) {
                return Err(bad("a directory's index has a node on a wrong level"));
            }
            level = Some(node.level - 1);
            let Some(child) = node.child_for_hash(hash) else {
                return Ok(Vec::new());
            };
            at = self.index_place(child)?;
            block = self.index_block(map, at)?;
        }
        if level.is_some_and(|level| level != 0) {
            return Err(bad("a directory's index has a leaf on a wrong level"));
        }
        let mut addresses = Vec::new();
        let mut seen = HashSet::from([at]);
        loop {
            let leaf = dir::parse_leaf(&block, sb).map_err(from_xfs)?;
            let records = leaf.entries.iter();
            addresses.extend(
                records
                    .filter(|record| !record.is_stale() && record.hashval == hash)
                    .map(|record| record.address),
            );
            // Equal hashes may go on in the next leaf.
            let goes_on = leaf.entries.last().is_some_and(|r| r.hashval == hash)
                && LEAF_OF_MANY.contains(&leaf.magic)
                && leaf.forw != 0;
            if !goes_on {
                return Ok(addresses);
            }
            at = self.index_place(leaf.forw)?;
            if !seen.insert(at) {
                return Err(bad("a directory's index goes in a circle"));
            }
            block = self.index_block(map, at)?;
        }
    }

    fn open(
        &self,
        number: GuestInode,
        read: impl FnOnce() -> Result<(Inode, Vec<u8>)>,
    ) -> Result<Opened> {
        if let Some(map) = self.maps.get(number) {
            return Ok(Opened::Blocks(map));
        }
        let (inode, raw) = read()?;
        if inode.format == Format::Local {
            let entries = self.fs.read_dir(&inode, &raw).map_err(from_xfs)?;
            return Ok(Opened::Short(entries));
        }
        if inode.nextents > MAX_EXTENTS {
            return Err(bad("a directory is in too many pieces"));
        }
        let mut extents = self.fs.data_extents(&inode, &raw).map_err(from_xfs)?;
        extents.sort_by_key(|extent| extent.startoff);
        let overlap = extents
            .windows(2)
            .any(|pair| pair[0].end_offset() > pair[1].startoff);
        if overlap || extents.iter().any(Extent::is_unwritten) {
            return Err(bad("a directory's extents make no sense"));
        }
        let map = Map {
            owner: inode.ino,
            extents,
        };
        let weight = map.extents.len() + 1;
        Ok(Opened::Blocks(self.maps.put(number, weight, map)))
    }

    /// Bytes of a directory block, at least those of a file system block.
    fn block_bytes(&self) -> u64 {
        u64::from(self.fs.superblock().dirblocksize())
            .max(u64::from(self.fs.superblock().blocksize))
    }

    fn per_block(&self) -> u64 {
        self.block_bytes() / u64::from(self.fs.superblock().blocksize)
    }

    /// Links within the index count file system blocks.
    fn index_place(&self, link: u32) -> Result<u64> {
        match u64::from(link) % self.per_block() {
            0 => Ok(u64::from(link) / self.per_block()),
            _ => Err(bad("a directory's index points into a block")),
        }
    }

    fn index_block(&self, map: &Map, number: u64) -> Result<Vec<u8>> {
        self.block(map, number)?
            .ok_or_else(|| bad("a directory's index has a hole"))
    }

    /// A verified directory block; `None` where there is none.
    fn block(&self, map: &Map, number: u64) -> Result<Option<Vec<u8>>> {
        let sb = self.fs.superblock();
        let per_block = self.per_block();
        let unit = u64::from(sb.blocksize);
        let first_block = number * per_block;
        let mut bytes = vec![0; self.block_bytes() as usize];
        let mut first = None;
        let mut done = 0;
        while done < per_block {
            let Some((start, run)) = map.place(first_block + done) else {
                return match done {
                    0 => Ok(None),
                    _ => Err(bad("a part of a directory block is a hole")),
                };
            };
            let start = sb.fsblock_offset(start);
            let take = run.min(per_block - done);
            let (from, to) = ((done * unit) as usize, ((done + take) * unit) as usize);
            self.fs
                .device()
                .read_at(start, &mut bytes[from..to])
                .map_err(|error| from_xfs(error.into()))?;
            first.get_or_insert(start);
            done += take;
        }
        // In sectors of 512 bytes, as the block itself records it.
        let place = first.unwrap_or(0) / 512;
        let magic = be32(&bytes, 0);
        match DATA.contains(&magic) || BLOCK.contains(&magic) {
            true => dir::verify_data_block(&bytes, sb, place, map.owner),
            false => dir::verify_da_block(&bytes, sb, place, map.owner),
        }
        .map_err(from_xfs)?;
        Ok(Some(bytes))
    }
}

enum Opened {
    /// Kept in the inode.
    Short(Vec<DirEntry>),
    Blocks(Arc<Map>),
}

impl Map {
    /// The file system block at this place in the directory, and how many follow it in one run.
    fn place(&self, block: u64) -> Option<(u64, u64)> {
        let index = self.extents.partition_point(|e| e.end_offset() <= block);
        let extent = self.extents.get(index).filter(|e| e.startoff <= block)?;
        let within = block - extent.startoff;
        Some((extent.startblock + within, extent.blockcount - within))
    }

    /// The first directory block from `number` on of which something is there.
    fn next_block(&self, number: u64, per_block: u64) -> Option<u64> {
        let block = number.checked_mul(per_block)?;
        let index = self.extents.partition_point(|e| e.end_offset() <= block);
        let extent = self.extents.get(index)?;
        Some(number.max(extent.startoff / per_block))
    }
}

fn entry(entry: DirEntry) -> GuestEntry {
    GuestEntry {
        name: OsString::from_vec(entry.name),
        inode: entry.ino,
        kind: entry.ftype.map(kind_of),
    }
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

/// The hash of a name: its bytes, each shifted in by 7 bits of a 32-bit rotation.
fn hash_name(name: &[u8]) -> u32 {
    name.iter()
        .fold(0u32, |hash, &byte| hash.rotate_left(7) ^ u32::from(byte))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|two| two.try_into().ok())
        .map_or(0, u16::from_be_bytes)
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("xfs: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(startoff: u64, startblock: u64, blockcount: u64) -> Extent {
        let mut bytes = [0; 16];
        let high = startoff << 9 | startblock >> 43;
        let low = startblock << 21 | blockcount;
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        Extent::parse(&bytes).unwrap()
    }

    #[test]
    fn names_have_the_hashes_of_the_specification() {
        // `xfs_db -c 'hash NAME'`.
        assert_eq!(hash_name(b"a"), 0x61);
        assert_eq!(hash_name(b"fstab"), 0x6e7d_30e4);
    }

    #[test]
    fn blocks_are_found_over_holes() {
        let map = Map {
            owner: 1,
            extents: vec![extent(0, 100, 3), extent(8, 200, 4), extent(12, 50, 1)],
        };
        assert_eq!(map.place(2), Some((102, 1)));
        assert_eq!(map.place(3), None);
        assert_eq!(map.place(9), Some((201, 3)));
        assert_eq!(map.place(13), None);
        assert_eq!(map.next_block(0, 1), Some(0));
        assert_eq!(map.next_block(3, 1), Some(8));
        assert_eq!(map.next_block(1, 4), Some(2));
        assert_eq!(map.next_block(4, 4), None);
        assert_eq!(map.next_block(u64::MAX, 4), None);
    }
}
