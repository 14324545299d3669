//! Where the blocks of a journal are.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::guestfs::host::device::Device;
use crate::volume::bits::index;

/// What is read at once of blocks that lie one after the other.
const WINDOW_BYTES: u64 = 256 << 10;
/// A journal in more pieces than this is not one.
const MAX_RUNS: usize = 1 << 16;

/// A run of the journal's blocks on its device.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    end: u64,
    physical: u64,
}

/// The blocks of a journal: an inode of the file system, or a device of its own.
pub(super) struct Place {
    device: Arc<Device>,
    block_bytes: u64,
    runs: Vec<Run>,
}

impl Place {
    /// A journal of no blocks yet on `device`.
    pub(super) fn new(device: Arc<Device>, block_bytes: u64) -> Self {
        Place {
            device,
            block_bytes,
            runs: Vec::new(),
        }
    }

    /// The device that holds the journal.
    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Size of a block.
    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.end)
    }

    /// Adds blocks behind those that there are, up to `end`.
    ///
    /// # Errors
    /// `Corrupt` when they do not lie on the device, or there are too many pieces.
    pub(super) fn push(&mut self, end: u64, physical: u64) -> Result<()> {
        let first = self.blocks();
        let past = end
            .checked_sub(first)
            .and_then(|count| count.checked_add(physical))
            .and_then(|blocks| blocks.checked_mul(self.block_bytes));
        if past.is_none_or(|past| past > self.device.volume().len_bytes()) {
            return Err(Error::corrupt("the journal lies outside of its device"));
        }
        if self.runs.len() >= MAX_RUNS {
            return Err(Error::corrupt("the journal lies in too many pieces"));
        }
        self.runs.push(Run {
            first,
            end,
            physical,
        });
        Ok(())
    }

    fn run(&self, block: u64) -> Result<Run> {
        let index = self.runs.partition_point(|run| run.end <= block);
        self.runs
            .get(index)
            .copied()
            .ok_or_else(|| Error::corrupt("the journal is longer than its file"))
    }

    /// The byte on the device where a block begins.
    ///
    /// # Errors
    /// `Corrupt` past the end.
    pub(super) fn offset_of(&self, block: u64) -> Result<u64> {
        let run = self.run(block)?;
        // Cannot overflow: `push` has looked.
        Ok((run.physical + (block - run.first)) * self.block_bytes)
    }
}

/// Reads the blocks of a journal, mostly in their order.
pub(super) struct Blocks<'a> {
    place: &'a Place,
    window: Vec<u8>,
    first: u64,
}

impl<'a> Blocks<'a> {
    /// A reader that has read nothing.
    pub(super) fn new(place: &'a Place) -> Self {
        Blocks {
            place,
            window: Vec::new(),
            first: 0,
        }
    }

    /// A block.
    ///
    /// # Errors
    /// `Corrupt` past the end, and whatever kept it from being read.
    pub(super) fn get(&mut self, block: u64) -> Result<&[u8]> {
        let size = self.place.block_bytes;
        let held = self.window.len() as u64 / size;
        if block < self.first || block >= self.first + held {
            let run = self.place.run(block)?;
            let count = (WINDOW_BYTES / size).max(1).min(run.end - block);
            self.window.clear();
            let mut window = vec![0; index(count * size)];
            self.place
                .device
                .read(&mut window, self.place.offset_of(block)?)?;
            self.window = window;
            self.first = block;
        }
        let at = index((block - self.first) * size);
        self.window
            .get(at..at + index(size))
            .ok_or_else(|| Error::corrupt("a block of the journal is lost"))
    }
}
