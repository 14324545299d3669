//! Inodes in the log: the fixed part in the machine's byte order, forks as on disk but for the roots of trees.

use super::transaction::{Item, corrupt};
use crate::error::Result;
use crate::volume::bits::{le16, le32, le64};

/// `di_next_unlinked`, which the log has in buffers only, and where the fixed part that it has of inodes ends.
pub(super) const NEXT_UNLINKED: usize = 96;
/// Where the forks of versions 1 and 2 begin.
const FORKS: usize = 100;
const FORK_OFFSET: usize = 82;
const FLUSH_ITERATION: usize = 30;
/// `DI_MAX_FLUSH`.
const LAST_FLUSH: u16 = 0xFFFF;
/// `XFS_DINODE_MAGIC`.
const MAGIC: u16 = 0x494E;
/// The fields of `struct xfs_log_dinode` up to `di_next_unlinked` that are more than a byte: where a row of them
/// begins, how many there are, and how wide each is.
const CORE_FIELDS: [(usize, usize, usize); 12] = [
    (0, 2, 2),  // di_magic, di_mode
    (6, 1, 2),  // di_onlink
    (8, 3, 4),  // di_uid, di_gid, di_nlink
    (20, 2, 2), // di_projid_lo, di_projid_hi
    (30, 1, 2), // di_flushiter
    (32, 6, 4), // di_atime, di_mtime, di_ctime: seconds, nanoseconds
    (56, 2, 8), // di_size, di_nblocks
    (72, 2, 4), // di_extsize, di_nextents
    (80, 1, 2), // di_anextents
    (84, 1, 4), // di_dmevmask
    (88, 2, 2), // di_dmstate, di_flags
    (92, 1, 4), // di_gen
];
/// `XFS_ILOG_…`.
mod fields {
    pub const DATA_LOCAL: u32 = 0x002;
    pub const DATA_EXTENTS: u32 = 0x004;
    pub const DATA_ROOT: u32 = 0x008;
    pub const DEVICE: u32 = 0x010;
    pub const ATTR_LOCAL: u32 = 0x040;
    pub const ATTR_EXTENTS: u32 = 0x080;
    pub const ATTR_ROOT: u32 = 0x100;
    pub const DATA: u32 = DATA_LOCAL | DATA_EXTENTS | DATA_ROOT;
    pub const ATTR: u32 = ATTR_LOCAL | ATTR_EXTENTS | ATTR_ROOT;
}

/// `struct xfs_inode_log_format`.
pub(super) struct InodeFormat {
    fields: u32,
    device: u32,
    /// The buffer the inode lies in: its first sector and its sectors.
    pub buffer: (u64, u32),
    /// Byte offset in the buffer.
    pub offset: u32,
}

impl InodeFormat {
    /// In the form of 64-bit machines (56 bytes), or that of 32-bit ones, which has no padding.
    ///
    /// # Errors
    /// `Corrupt` for another length.
    pub fn parse(item: &Item) -> Result<InodeFormat> {
        let format = item.format();
        let skip = match format.len() {
            56 => 4,
            52 => 0,
            _ => return Err(corrupt("an inode's format has no known length")),
        };
        Ok(InodeFormat {
            fields: le32(format, 4),
            device: le32(format, 20 + skip),
            buffer: (le64(format, 36 + skip), le32(format, 44 + skip)),
            offset: le32(format, 48 + skip),
        })
    }

    /// Brings an inode as it is on disk to what the item says, or leaves it when it is newer: `false`.
    ///
    /// # Errors
    /// `Corrupt` for what cannot be an inode, and for forks that do not fit.
    pub fn apply(&self, item: &Item, inode: &mut [u8]) -> Result<bool> {
        if inode.len() < FORKS || be16(inode, 0) != MAGIC {
            return Err(corrupt("an inode is logged where there is none"));
        }
        let core = item.regions.get(1).map_or(&[][..], Vec::as_slice);
        if core.len() < NEXT_UNLINKED {
            return Err(corrupt("an inode is logged without its fixed part"));
        }
        let mut disk = [0; NEXT_UNLINKED];
        disk.copy_from_slice(&core[..NEXT_UNLINKED]);
        for &(at, count, width) in &CORE_FIELDS {
            for field in disk[at..at + count * width].chunks_exact_mut(width) {
                field.reverse();
            }
        }
        if be16(&disk, 0) != MAGIC || disk[4] > 2 {
            return Err(corrupt("a logged inode is not one of XFS 4"));
        }
        // The counter goes up each time an inode is written home, and then starts again.
        let (logged, stored) = (be16(&disk, FLUSH_ITERATION), be16(inode, FLUSH_ITERATION));
        let has_wrapped = stored == LAST_FLUSH && logged < LAST_FLUSH >> 1;
        if logged < stored && !has_wrapped {
            return Ok(false);
        }
        disk[FLUSH_ITERATION..FLUSH_ITERATION + 2].fill(0);
        inode[..NEXT_UNLINKED].copy_from_slice(&disk);

        let attr_at = FORKS + usize::from(inode[FORK_OFFSET]) * 8;
        if attr_at > inode.len() {
            return Err(corrupt("a logged inode's fork begins behind the inode"));
        }
        let (data_end, attr_at) = match attr_at {
            FORKS => (inode.len(), inode.len()),
            _ => (attr_at, attr_at),
        };
        if self.fields & fields::DEVICE != 0 {
            put(&mut inode[FORKS..data_end], &self.device.to_be_bytes())?;
        }
        let mut forks = item.regions.iter().skip(2);
        let mut fork = |kinds: u32, root: u32, place: &mut [u8]| match self.fields & kinds {
            0 => Ok(()),
            kind if kind.count_ones() > 1 => Err(corrupt("a logged fork is of two kinds")),
            kind => {
                let bytes = forks
                    .next()
                    .ok_or_else(|| corrupt("a logged fork is missing"))?;
                match kind == root {
                    true => put_root(place, bytes),
                    false => put(place, bytes),
                }
            }
        };
        fork(fields::DATA, fields::DATA_ROOT, &mut inode[FORKS..data_end])?;
        fork(fields::ATTR, fields::ATTR_ROOT, &mut inode[attr_at..])?;
        match forks.next() {
            Some(_) => Err(corrupt("an inode is logged with more than its forks")),
            None => Ok(true),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    le16(bytes, at).swap_bytes()
}

fn put(place: &mut [u8], bytes: &[u8]) -> Result<()> {
    place
        .get_mut(..bytes.len())
        .ok_or_else(|| corrupt("a logged fork is longer than its place"))?
        .copy_from_slice(bytes);
    Ok(())
}

/// `xfs_bmbt_to_bmdr`: the root of a tree of extents is logged as a block in memory (24 bytes, then room for keys, then
/// room for pointers, as many as fit), and stored with 4 bytes in place of the 24.
fn put_root(place: &mut [u8], block: &[u8]) -> Result<()> {
    const BLOCK_HEADER: usize = 24;
    const ROOT_HEADER: usize = 4;
    const ENTRY: usize = 8;
    let count = usize::from(be16(block, 6));
    let room = |bytes: usize, header: usize| bytes.saturating_sub(header) / (2 * ENTRY);
    let from = room(block.len(), BLOCK_HEADER);
    let to = room(place.len(), ROOT_HEADER);
    if be16(block, 4) == 0 || count > from || count > to {
        return Err(corrupt("the logged root of a tree makes no sense"));
    }
    place[..ROOT_HEADER].copy_from_slice(&block[4..8]);
    for (source, target) in [
        (BLOCK_HEADER, ROOT_HEADER),
        (BLOCK_HEADER + from * ENTRY, ROOT_HEADER + to * ENTRY),
    ] {
        place[target..target + count * ENTRY]
            .copy_from_slice(&block[source..source + count * ENTRY]);
    }
    Ok(())
}
