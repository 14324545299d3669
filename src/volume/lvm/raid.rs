//! Which copies of a RAID 1 logical volume are current.
//!
//! Each copy has a small record volume (`…_rmeta_N`) whose first sector is a superblock of the
//! kernel's dm-raid target (`struct dm_raid_superblock` in `drivers/md/dm-raid.c`): a counter of
//! events, the devices known to have failed, and how far a rebuilt device got.

use super::super::bits::{has, le32, le64};
use crate::error::Result;
use crate::io::ReadAt;

/// One copy's superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The copy's number.
    pub position: u32,
    /// Changes of state seen.
    pub events: u64,
    /// A bit for each failed copy.
    pub failed: u64,
    /// Sectors rebuilt so far; all ones when the copy is whole.
    pub recovered_sectors: u64,
}

/// Reads the superblock, `None` when the record was never written.
///
/// # Errors
/// When the record cannot be read.
pub fn read_superblock(record: &dyn ReadAt) -> Result<Option<Superblock>> {
    let mut sector = [0; 512];
    record.read_exact_at(&mut sector, 0)?;
    if !has(&sector, 0, &0x6452_6D44u32.to_le_bytes()) {
        return Ok(None);
    }
    Ok(Some(Superblock {
        position: le32(&sector, 12),
        events: le64(&sector, 16),
        failed: le64(&sector, 24),
        recovered_sectors: le64(&sector, 32),
    }))
}

/// The copy to read: the first one that is there and current. `copies` holds, for each copy,
/// whether it can be read, and its superblock when that could be read.
pub fn choose(copies: &[(bool, Option<Superblock>)]) -> Option<usize> {
    let freshest = copies
        .iter()
        .filter_map(|(_, record)| *record)
        .max_by_key(|record| record.events);
    let Some(freshest) = freshest else {
        // Never active since it was made: nothing tells the copies apart.
        return copies.iter().position(|(readable, _)| *readable);
    };
    copies
        .iter()
        .enumerate()
        .position(|(index, (readable, record))| {
            let failed = index < 64 && freshest.failed & (1 << index) != 0;
            *readable
                && !failed
                && record.is_some_and(|record| {
                    // The kernel takes a copy that is one event behind as current, too.
                    record.recovered_sectors == u64::MAX
                        && record.events.saturating_add(1) >= freshest.events
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(position: u32, events: u64, failed: u64, recovered: u64) -> Option<Superblock> {
        Some(Superblock {
            position,
            events,
            failed,
            recovered_sectors: recovered,
        })
    }

    #[test]
    fn stale_failed_and_half_rebuilt_copies_are_not_read() {
        let whole = u64::MAX;
        let fresh = record(1, 9, 0, whole);
        assert_eq!(
            choose(&[(true, record(0, 9, 0, whole)), (true, fresh)]),
            Some(0)
        );
        assert_eq!(
            choose(&[(false, record(0, 9, 0, whole)), (true, fresh)]),
            Some(1)
        );
        assert_eq!(
            choose(&[(true, record(0, 3, 0, whole)), (true, fresh)]),
            Some(1)
        );
        assert_eq!(
            choose(&[(true, record(0, 9, 0, 100)), (true, fresh)]),
            Some(1)
        );
        let says_failed = record(1, 9, 1, whole);
        assert_eq!(
            choose(&[(true, record(0, 8, 0, whole)), (true, says_failed)]),
            Some(1)
        );
        assert_eq!(
            choose(&[(true, record(0, 3, 0, whole)), (false, fresh)]),
            None
        );
        assert_eq!(choose(&[(true, None), (true, None)]), Some(0));
    }
}
