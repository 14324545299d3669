//! What the items of a log do to a volume: `xlog_recover_commit_trans` for XFS 4.
//!
//! Twice over the log. First for the buffers that were cancelled: their blocks have become something else, and
//! what was logged of them before that must not come back. Then items are applied in the order of the log, within a
//! transaction in the kernel's order: buffers, inodes, unlinked lists in buffers of inodes, cancellations.
//!
//! Intents (extents that were to be freed) are not finished. A file lets go of its blocks in the transaction that says
//! they are to be freed; what is left undone is that they become free, so no file shows another's blocks.
//! Quotas are not shown, so they are not replayed either.

use std::collections::HashMap;
use std::ops::Range;

use super::active::Active;
use super::error::corrupt;
use super::inode::{InodeFormat, NEXT_UNLINKED};
use super::overlay::{Overlay, SECTOR_BYTES};
use super::ring::Ring;
use super::transaction::{Item, Transactions};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::volume::bits::{le16, le32, le64};

/// `XFS_LI_…`.
mod kind {
    pub const EFI: u16 = 0x1236;
    pub const EFD: u16 = 0x1237;
    pub const INODE: u16 = 0x123B;
    pub const BUFFER: u16 = 0x123C;
    pub const QUOTA: u16 = 0x123D;
    pub const QUOTA_OFF: u16 = 0x123E;
}

/// `XFS_BLF_…`.
mod flag {
    pub const INODES: u16 = 1;
    pub const CANCEL: u16 = 2;
    /// User, project and group quotas.
    pub const QUOTAS: u16 = 4 | 8 | 16;
}

/// `XFS_BLF_CHUNK`: a bit of a buffer's map stands for so many bytes.
const CHUNK_BYTES: usize = 128;
/// Cancelled buffers that are kept in mind.
const MAX_CANCELLED: usize = 4 << 20;

/// What the replay has to know of the file system.
pub(super) struct Geometry {
    /// Bytes of an inode.
    pub inode_bytes: usize,
    /// Where the log is, in bytes of the volume.
    pub log: Range<u64>,
}

/// Replays the active part of a log into `overlay`.
///
/// # Errors
/// `Corrupt` for a log that makes no sense, `Unsupported` for one that is too large to be held, and whatever kept
/// something from being read.
pub(super) fn replay(
    ring: &Ring,
    active: &Active,
    geometry: &Geometry,
    overlay: &mut Overlay,
) -> Result<()> {
    let mut cancelled = Cancelled::default();
    each_transaction(ring, active, |items| {
        for item in items.iter().filter(|item| item.kind() == kind::BUFFER) {
            let buffer = BufferFormat::parse(item)?;
            if buffer.flags & flag::CANCEL != 0 {
                cancelled.add(buffer.place)?;
            }
        }
        Ok(())
    })?;
    each_transaction(ring, active, |mut items| {
        items.sort_by_key(rank);
        for item in &items {
            match item.kind() {
                kind::BUFFER => apply_buffer(item, geometry, &mut cancelled, overlay)?,
                kind::INODE => apply_inode(item, geometry, &cancelled, overlay)?,
                kind::EFI | kind::EFD | kind::QUOTA | kind::QUOTA_OFF => {}
                _ => return Err(corrupt("an item is of a kind that XFS 4 does not have")),
            }
        }
        Ok(())
    })
}

fn each_transaction(
    ring: &Ring,
    active: &Active,
    mut commit: impl FnMut(Vec<Item>) -> Result<()>,
) -> Result<()> {
    let mut transactions = Transactions::default();
    active.each(ring, |record| {
        transactions.feed(&record.data(ring)?, record.ops, &mut commit)
    })
}

/// `xlog_recover_reorder_trans`. Inodes need the buffers that make them; lists of unlinked inodes lead to inodes that
/// were freed; a cancellation counts for all that is in its transaction.
fn rank(item: &Item) -> u8 {
    let flags = le16(item.format(), 4);
    match item.kind() {
        kind::BUFFER if flags & flag::CANCEL != 0 => 3,
        kind::BUFFER if flags & flag::INODES != 0 => 2,
        kind::BUFFER => 0,
        _ => 1,
    }
}

/// Buffers, as first sector and sectors, whose cancellations are still to come.
#[derive(Default)]
struct Cancelled(HashMap<(u64, u32), u32>);

impl Cancelled {
    fn add(&mut self, place: (u64, u32)) -> Result<()> {
        if self.0.len() >= MAX_CANCELLED {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the log of XFS frees more blocks than can be kept in mind",
            ));
        }
        let count = self.0.entry(place).or_default();
        *count = count.saturating_add(1);
        Ok(())
    }

    fn has(&self, place: (u64, u32)) -> bool {
        self.0.contains_key(&place)
    }

    /// The cancellation has come.
    fn take(&mut self, place: (u64, u32)) {
        if let Some(count) = self.0.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&place);
            }
        }
    }
}

/// `struct xfs_buf_log_format`.
struct BufferFormat<'a> {
    flags: u16,
    /// First sector and sectors.
    place: (u64, u32),
    /// A bit for each chunk that was logged, in words of 32.
    map: &'a [u8],
}

impl BufferFormat<'_> {
    fn parse(item: &Item) -> Result<BufferFormat<'_>> {
        const MAP: usize = 20;
        let format = item.format();
        let map = (le32(format, 16) as usize)
            .checked_mul(4)
            .and_then(|len| format.get(MAP..)?.get(..len))
            .ok_or_else(|| corrupt("a buffer's format is cut off"))?;
        Ok(BufferFormat {
            flags: le16(format, 4),
            place: (le64(format, 8), u32::from(le16(format, 6))),
            map,
        })
    }

    /// The first chunk from `from` on whose bit is `set`, or the number of chunks.
    fn next(&self, from: usize, set: bool) -> usize {
        let all = self.map.len() * 8;
        (from..all)
            .find(|&chunk| (self.map[chunk / 8] >> (chunk % 8) & 1 == 1) == set)
            .unwrap_or(all)
    }

    /// The logged parts: byte offset in the buffer, and bytes. A row of chunks may have been logged in several
    /// regions, where its memory was not in one piece.
    fn parts<'a>(&self, item: &'a Item) -> Result<Vec<(usize, &'a [u8])>> {
        let len = self.place.1 as usize * SECTOR_BYTES as usize;
        let mut parts = Vec::new();
        let mut chunk = 0;
        for region in item.regions.iter().skip(1) {
            chunk = self.next(chunk, true);
            let count = region.len() / CHUNK_BYTES;
            let offset = chunk * CHUNK_BYTES;
            if count == 0
                || region.len() % CHUNK_BYTES != 0
                || chunk + count > self.next(chunk, false)
                || offset + region.len() > len
            {
                return Err(corrupt("a part of a buffer does not fit its map"));
            }
            parts.push((offset, region.as_slice()));
            chunk += count;
        }
        match !item.is_whole() || self.next(chunk, true) < self.map.len() * 8 {
            true => Err(corrupt("a part of a buffer is missing")),
            false => Ok(parts),
        }
    }
}

/// The bytes of a buffer on the volume.
fn bytes_of(place: (u64, u32), geometry: &Geometry, overlay: &Overlay) -> Result<Range<u64>> {
    let (start, count) = place;
    let range = start
        .checked_mul(SECTOR_BYTES)
        .and_then(|start| {
            let end = start.checked_add(u64::from(count) * SECTOR_BYTES)?;
            (end <= overlay.len_bytes()).then_some(start..end)
        })
        .ok_or_else(|| corrupt("a buffer lies past the end of the volume"))?;
    match range.start < geometry.log.end && geometry.log.start < range.end {
        true => Err(corrupt("a buffer lies in the log")),
        false => Ok(range),
    }
}

fn apply_buffer(
    item: &Item,
    geometry: &Geometry,
    cancelled: &mut Cancelled,
    overlay: &mut Overlay,
) -> Result<()> {
    let buffer = BufferFormat::parse(item)?;
    if buffer.flags & flag::CANCEL != 0 {
        cancelled.take(buffer.place);
        return Ok(());
    }
    if cancelled.has(buffer.place) || buffer.flags & flag::QUOTAS != 0 {
        return Ok(());
    }
    let range = bytes_of(buffer.place, geometry, overlay)?;
    for (offset, bytes) in buffer.parts(item)? {
        let at = range.start + offset as u64;
        if buffer.flags & flag::INODES == 0 {
            overlay.write(at, bytes)?;
            continue;
        }
        // The rest of the inodes around is old: they are logged as inodes.
        let first = offset
            .saturating_sub(NEXT_UNLINKED)
            .div_ceil(geometry.inode_bytes);
        for inode in first.. {
            let place = inode * geometry.inode_bytes + NEXT_UNLINKED - offset;
            match bytes.get(place..place + 4) {
                Some(next) => overlay.write(at + place as u64, next)?,
                None => break,
            }
        }
    }
    Ok(())
}

fn apply_inode(
    item: &Item,
    geometry: &Geometry,
    cancelled: &Cancelled,
    overlay: &mut Overlay,
) -> Result<()> {
    let format = InodeFormat::parse(item)?;
    if cancelled.has(format.buffer) {
        return Ok(());
    }
    if !item.is_whole() {
        return Err(corrupt("a part of an inode is missing"));
    }
    let range = bytes_of(format.buffer, geometry, overlay)?;
    let at = range.start + u64::from(format.offset);
    if at + geometry.inode_bytes as u64 > range.end
        || u64::from(format.offset) % geometry.inode_bytes as u64 != 0
    {
        return Err(corrupt("an inode lies outside of its buffer"));
    }
    let mut inode = vec![0; geometry.inode_bytes];
    overlay.read_exact_at(&mut inode, at)?;
    if format.apply(item, &mut inode)? {
        overlay.write(at, &inode)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::transaction::tests::item;
    use super::*;

    /// A buffer of eight sectors at sector 2, with these bits in its map and these regions.
    fn buffer(flags: u16, map: u32, regions: &[&[u8]]) -> Item {
        let mut format = vec![];
        format.extend(kind::BUFFER.to_le_bytes());
        format.extend((regions.len() as u16 + 1).to_le_bytes());
        format.extend(flags.to_le_bytes());
        format.extend(8u16.to_le_bytes());
        format.extend(2u64.to_le_bytes());
        format.extend(1u32.to_le_bytes());
        format.extend(map.to_le_bytes());
        item(&[&[format.as_slice()], regions].concat())
    }

    fn apply(items: &[Item]) -> Result<Vec<u8>> {
        let geometry = Geometry {
            inode_bytes: 256,
            log: 100 << 10..200 << 10,
        };
        let mut overlay = Overlay::new(std::sync::Arc::new(vec![0xEE; 300 << 10]), 1000);
        let mut cancelled = Cancelled::default();
        for item in items {
            let format = BufferFormat::parse(item)?;
            if format.flags & flag::CANCEL != 0 {
                cancelled.add(format.place)?;
            }
        }
        for item in items {
            apply_buffer(item, &geometry, &mut cancelled, &mut overlay)?;
        }
        let mut bytes = vec![0; 4096];
        overlay.read_exact_at(&mut bytes, 1024)?;
        Ok(bytes)
    }

    #[test]
    fn rows_of_chunks_go_where_the_map_says_even_in_several_regions() {
        let regions: [&[u8]; 3] = [&[1; 256], &[2; 128], &[3; 128]];
        let bytes = apply(&[buffer(0, 0b1000_0111, &regions)]).unwrap();
        let mut expected = vec![0xEE; 4096];
        expected[..256].fill(1);
        expected[256..384].fill(2);
        expected[7 * 128..8 * 128].fill(3);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn of_buffers_of_inodes_only_the_lists_of_unlinked_ones_count() {
        let bytes = apply(&[buffer(
            flag::INODES,
            0b110101,
            &[&[1; 128], &[2; 128], &[3; 256]],
        )]);
        let mut expected = vec![0xEE; 4096];
        expected[96..100].fill(1);
        expected[256 + 96..256 + 100].fill(2);
        expected[512 + 96..512 + 100].fill(3);
        assert_eq!(bytes.unwrap(), expected);
    }

    #[test]
    fn what_was_cancelled_later_is_not_applied_and_what_came_after_is() {
        let (before, after) = (buffer(0, 1, &[&[1; 128]]), buffer(0, 2, &[&[2; 128]]));
        let bytes = apply(&[before, buffer(flag::CANCEL, 0, &[]), after]).unwrap();
        assert_eq!(bytes[..128], [0xEE; 128]);
        assert_eq!(bytes[128..256], [2; 128]);
    }

    #[test]
    fn maps_and_regions_that_do_not_agree_are_errors() {
        for (map, regions) in [
            (0b11u32, &[&[1u8; 128][..]][..]),
            (0b1, &[&[1; 256]]),
            (0b1, &[&[1; 100]]),
            (0b1, &[&[1; 128], &[2; 128]]),
            (0, &[&[1; 128]]),
        ] {
            let error = apply(&[buffer(0, map, regions)]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}
