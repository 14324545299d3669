//! The log as a ring of sectors of 512 bytes.

use super::error::corrupt_at;
use crate::error::Result;
use crate::guestfs::host::device::Device;

/// `BBSIZE`: bytes of a sector of the log.
pub(super) const BLOCK_BYTES: usize = 512;
/// `XLOG_HEADER_MAGIC_NUM`.
pub(super) const RECORD_MAGIC: u32 = 0xFEED_BABE;
/// `XLOG_MAX_RECORD_BSIZE` in sectors: what a record takes at most.
pub(super) const RECORD_BLOCKS: u64 = 512;

/// A log within its volume.
pub(super) struct Ring<'a> {
    pub device: &'a Device,
    /// Byte offset on the volume.
    pub start: u64,
    /// Sectors in all, at least one.
    pub blocks: u64,
    /// Of the file system; records of others do not count.
    pub uuid: [u8; 16],
}

impl Ring<'_> {
    /// `count` sectors from sector `at`, going on at the start of the ring.
    ///
    /// # Errors
    /// `Corrupt` for more than there are; whatever kept them from being read.
    pub fn read(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        if count > self.blocks {
            return Err(corrupt_at("a record is longer than the log", at));
        }
        let at = at % self.blocks;
        let straight = count.min(self.blocks - at);
        let mut bytes = vec![0; count as usize * BLOCK_BYTES];
        let (first, second) = bytes.split_at_mut(straight as usize * BLOCK_BYTES);
        self.device
            .read(first, self.start + at * BLOCK_BYTES as u64)?;
        if !second.is_empty() {
            self.device.read(second, self.start)?;
        }
        Ok(bytes)
    }

    /// Sectors from `from` on to `to`, in the direction of writing.
    pub fn distance(&self, from: u64, to: u64) -> u64 {
        (to + self.blocks - from) % self.blocks
    }
}
