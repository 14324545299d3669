//! Inodes in the log: the fixed part in the machine's byte order, forks as on disk but for the roots of trees.

use super::error::corrupt;
use super::transaction::Item;
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

#[cfg(test)]
mod tests {
    use super::super::transaction::tests::item;
    use super::*;

    fn core(flush: u16, fork_offset: u8) -> Vec<u8> {
        let mut core = vec![0; NEXT_UNLINKED];
        core[..2].copy_from_slice(&MAGIC.to_le_bytes());
        core[2..4].copy_from_slice(&0o100_640u16.to_le_bytes());
        core[4..6].copy_from_slice(&[2, 3]);
        core[FLUSH_ITERATION..FLUSH_ITERATION + 2].copy_from_slice(&flush.to_le_bytes());
        core[56..64].copy_from_slice(&0x0102_0304_0506_0708u64.to_le_bytes());
        core[FORK_OFFSET] = fork_offset;
        core
    }

    fn format(fields: u32, forks: u16, is_packed: bool) -> Vec<u8> {
        let mut format = vec![0x3B, 0x12];
        format.extend((2 + forks).to_le_bytes());
        format.extend(fields.to_le_bytes());
        format.resize(if is_packed { 12 } else { 16 }, 0);
        format.extend(131u64.to_le_bytes());
        format.extend(0x0801_0003u32.to_le_bytes());
        format.extend([0; 12]);
        format.extend(64u64.to_le_bytes());
        format.extend(16u32.to_le_bytes());
        format.extend(768u32.to_le_bytes());
        format
    }

    fn stored(flush: u16) -> Vec<u8> {
        let mut inode = vec![0xEE; 256];
        inode[..2].copy_from_slice(&MAGIC.to_be_bytes());
        inode[FLUSH_ITERATION..FLUSH_ITERATION + 2].copy_from_slice(&flush.to_be_bytes());
        inode
    }

    fn apply(regions: &[&[u8]], inode: &mut [u8]) -> Result<bool> {
        let item = item(regions);
        InodeFormat::parse(&item)?.apply(&item, inode)
    }

    #[test]
    fn formats_of_both_word_sizes_say_the_same() {
        for is_packed in [false, true] {
            let format = format(0x11, 0, is_packed);
            assert_eq!(format.len(), if is_packed { 52 } else { 56 });
            let parsed = InodeFormat::parse(&item(&[&format, &core(0, 0)])).unwrap();
            assert_eq!(parsed.buffer, (64, 16));
            assert_eq!(parsed.offset, 768);
            assert_eq!(parsed.device, 0x0801_0003);
        }
        assert!(InodeFormat::parse(&item(&[&format(1, 0, true)[..50]])).is_err());
    }

    #[test]
    fn the_fixed_part_is_turned_and_the_list_of_unlinked_inodes_stays() {
        let mut inode = stored(1);
        assert!(apply(&[&format(0x11, 0, false), &core(7, 0)], &mut inode).unwrap());
        assert_eq!(inode[..6], [0x49, 0x4E, 0x81, 0xA0, 2, 3]);
        assert_eq!(inode[56..64], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(inode[FLUSH_ITERATION..FLUSH_ITERATION + 2], [0, 0]);
        assert_eq!(inode[NEXT_UNLINKED..FORKS], [0xEE; 4]);
        assert_eq!(inode[FORKS..FORKS + 4], 0x0801_0003u32.to_be_bytes());
        assert_eq!(inode[FORKS + 4..], [0xEE; 152]);
    }

    #[test]
    fn an_inode_that_is_newer_on_disk_stays() {
        for (logged, on_disk, is_applied) in [
            (4, 5, false),
            (5, 5, true),
            (6, 5, true),
            (3, 0xFFFF, true),
            (0x8000, 0xFFFF, false),
        ] {
            let mut inode = stored(on_disk);
            let before = inode.clone();
            let applied = apply(&[&format(1, 0, false), &core(logged, 0)], &mut inode).unwrap();
            assert_eq!(applied, is_applied, "{logged} {on_disk}");
            assert_eq!(inode != before, is_applied);
        }
    }

    #[test]
    fn forks_go_to_their_places_and_roots_become_short() {
        // Room for four entries in memory, of which two are used; for three on disk.
        let mut root = vec![0; 24 + 4 * 16];
        root[4..8].copy_from_slice(&[0, 1, 0, 2]);
        root[24..40].fill(0xAA);
        root[24 + 32..24 + 48].fill(0xBB);
        let fields = fields::DATA_ROOT | fields::ATTR_LOCAL;
        let mut inode = stored(0);
        let regions = [
            &format(1 | fields, 2, false)[..],
            &core(0, 7),
            &root,
            &[0xCC; 20],
        ];
        assert!(apply(&regions, &mut inode).unwrap());
        let mut expected = vec![0xEE; 156];
        expected[..4].copy_from_slice(&[0, 1, 0, 2]);
        expected[4..20].fill(0xAA);
        expected[4 + 24..4 + 40].fill(0xBB);
        expected[56..76].fill(0xCC);
        assert_eq!(inode[FORKS..], expected);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut root = vec![0; 24 + 16];
        root[4..8].copy_from_slice(&[0, 1, 0, 2]);
        let local = fields::DATA_LOCAL;
        for (fields, fork_offset, fork) in [
            (local, 0, &[0; 160][..]),
            (local, 2, &[0; 20]),
            (local, 20, &[0; 4]),
            (local | fields::DATA_EXTENTS, 0, &[0; 16]),
            (fields::DATA_ROOT, 0, &root),
            (fields::DATA_ROOT, 0, &[]),
            (fields::ATTR_LOCAL, 0, &[0; 4]),
            (0, 0, &[0; 4]),
        ] {
            let regions = [
                &format(1 | fields, 1, false)[..],
                &core(0, fork_offset),
                fork,
            ];
            assert!(
                apply(&regions, &mut stored(0)).is_err(),
                "{fields} {fork_offset}"
            );
        }
        let format = format(1, 0, false);
        assert!(apply(&[&format, &core(0, 0)], &mut [0; 256]).is_err());
        assert!(apply(&[&format, &core(0, 0)[..90]], &mut stored(0)).is_err());
    }
}
