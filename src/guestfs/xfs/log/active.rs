//! The part of a log that has to be replayed.

use std::collections::VecDeque;

use super::error::corrupt_at;
use super::record::Record;
use super::ring::Ring;
use crate::error::Result;

/// `XLOG_MAX_ICLOGS`: records that may have been under way when the machine stopped.
const UNDER_WAY: usize = 8;

/// The part of a log that has to be replayed.
pub(super) struct Active {
    /// The first sector of the oldest record.
    pub tail: u64,
    /// The sector after the newest record.
    pub head: u64,
}

impl Active {
    /// What there is to replay; `None` when all was written home.
    ///
    /// Of the last eight records, the first whose checksum does not hold was being written when the machine
    /// stopped: the log ends before it, as in `xlog_verify_head`.
    ///
    /// # Errors
    /// `Corrupt` when the records do not lead from the oldest to the newest.
    pub fn find(ring: &Ring) -> Result<Option<Active>> {
        let Some((mut head, mut last)) = ring.head()? else {
            return Ok(None);
        };
        let mut is_cut = false;
        loop {
            if last.is_unmount(ring)? {
                return Ok(None);
            }
            let active = Active {
                tail: last.tail,
                head,
            };
            let mut recent = VecDeque::new();
            active.each(ring, |record| {
                if recent.len() > UNDER_WAY {
                    recent.pop_front();
                }
                recent.push_back(record);
                Ok(())
            })?;
            let skip = recent.len().saturating_sub(UNDER_WAY);
            let mut torn = None;
            for (index, record) in recent.iter().enumerate().skip(skip) {
                if record.load(ring)?.is_none() {
                    torn = Some(index);
                    break;
                }
            }
            let Some(index) = torn else {
                return Ok(Some(active));
            };
            if is_cut || index == 0 {
                return Err(corrupt_at(
                    "the checksum of a record does not hold",
                    recent[index].at,
                ));
            }
            is_cut = true;
            head = recent[index].at;
            last = recent[index - 1];
        }
    }

    /// The records, oldest first.
    ///
    /// # Errors
    /// Those of `visit`; `Corrupt` when the records do not end at the head.
    pub fn each(&self, ring: &Ring, mut visit: impl FnMut(Record) -> Result<()>) -> Result<()> {
        let mut at = self.tail;
        let mut left = ring.distance(self.tail, self.head);
        while left > 0 {
            let record = Record::read(ring, at)?;
            left = left
                .checked_sub(record.blocks())
                .ok_or_else(|| corrupt_at("a record reaches beyond the newest", at))?;
            visit(record)?;
            at = (at + record.blocks()) % ring.blocks;
        }
        Ok(())
    }
}
