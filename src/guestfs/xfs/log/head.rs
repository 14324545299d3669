//! Where the log was last written.
//!
//! Each sector of 512 bytes begins with the number of the cycle in which it was written (the header of a
//! record has it as its second word). So the newest record ends where the cycle changes. That place is found as the
//! kernel's `xlog_find_head` does: by halving, and then by a look at the 2 MiB before it, where writes that were
//! under way when the machine stopped may have left holes.

use super::error::corrupt_at;
use super::record::Record;
use super::ring::{BLOCK_BYTES, RECORD_BLOCKS, RECORD_MAGIC, Ring};
use crate::error::Result;
use crate::volume::bits::be32;

/// `XLOG_TOTAL_REC_SHIFT` in sectors: what may have been under way, eight records.
const WINDOW_BLOCKS: u64 = 8 * RECORD_BLOCKS;

impl Ring<'_> {
    fn cycle_at(&self, at: u64) -> Result<u32> {
        Ok(cycle_of(&self.read(at, 1)?))
    }

    /// The sector after the newest record, and that record. `None` when nothing was ever written.
    ///
    /// # Errors
    /// `Corrupt` when there is no record where one has to be.
    pub fn head(&self) -> Result<Option<(u64, Record)>> {
        let first = self.cycle_at(0)?;
        if first == 0 {
            return Ok(None);
        }
        let last = self.cycle_at(self.blocks - 1)?;
        let head = if last == 0 {
            // Not yet once around.
            let change = self.change(0)?;
            let start = change.saturating_sub(WINDOW_BLOCKS);
            self.first_of_cycle(start, change - start, 0)?
                .unwrap_or(change)
        } else {
            self.head_by_cycles(first, last)?
        };
        let head = self.without_partial_record(head)? % self.blocks;
        Ok(Some((head, self.record_before(head)?)))
    }

    /// The head of a log that was written all around: after it, all is of the cycle before.
    fn head_by_cycles(&self, first: u32, last: u32) -> Result<u64> {
        let (change, stale) = match first == last {
            // The whole ring is of one cycle.
            true => (self.blocks, last.wrapping_sub(1)),
            false => (self.change(last)?, last),
        };
        let window = WINDOW_BLOCKS.min(self.blocks);
        if change >= window {
            let hole = self.first_of_cycle(change - window, window, stale)?;
            return Ok(hole.unwrap_or(change));
        }
        // The window goes on at the end of the ring, which is a cycle older.
        let before = window - change;
        let hole = self.first_of_cycle(self.blocks - before, before, stale.wrapping_sub(1))?;
        if let Some(hole) = hole {
            return Ok(hole);
        }
        Ok(self.first_of_cycle(0, change, stale)?.unwrap_or(change))
    }

    /// A sector of cycle `cycle` whose neighbour before it is of another, between the first sector, which
    /// is of another, and the last, which is of `cycle`.
    fn change(&self, cycle: u32) -> Result<u64> {
        let (mut before, mut after) = (0, self.blocks - 1);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            match self.cycle_at(middle)? == cycle {
                true => after = middle,
                false => before = middle,
            }
        }
        Ok(after)
    }

    /// The first of `count` sectors from `start` that is of this cycle.
    fn first_of_cycle(&self, start: u64, count: u64, cycle: u32) -> Result<Option<u64>> {
        let bytes = self.read(start, count)?;
        let found = bytes
            .chunks_exact(BLOCK_BYTES)
            .position(|block| cycle_of(block) == cycle);
        Ok(found.map(|index| start + index as u64))
    }

    /// `head`, or the start of the record before it when that was not written to its end.
    fn without_partial_record(&self, head: u64) -> Result<u64> {
        let last = self.record_before(head)?;
        let written = self.distance(last.at, head % self.blocks);
        // A record as long as the ring has none left.
        let written = if written == 0 { self.blocks } else { written };
        Ok(match written == last.blocks() {
            true => head,
            false => last.at,
        })
    }

    /// The last record that begins before `head`.
    fn record_before(&self, head: u64) -> Result<Record> {
        let window = (2 * RECORD_BLOCKS).min(self.blocks);
        let start = (head + self.blocks - window) % self.blocks;
        let bytes = self.read(start, window)?;
        let index = bytes
            .chunks_exact(BLOCK_BYTES)
            .rposition(|block| be32(block, 0) == RECORD_MAGIC)
            .ok_or_else(|| corrupt_at("there is no record before its newest sector", head))?;
        Record::read(self, (start + index as u64) % self.blocks)
    }
}

/// `xlog_get_cycle`.
fn cycle_of(block: &[u8]) -> u32 {
    match be32(block, 0) {
        RECORD_MAGIC => be32(block, 4),
        cycle => cycle,
    }
}
