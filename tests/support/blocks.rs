//! VHD blocks (sector bitmap + data) out of the runs of one layer.
//!
//! Two habits exist. XO and XAPI write whole blocks: bitmap all ones, sectors nobody wrote filled
//! with what the chain below holds. Tapdisk, Hyper-V and `vhd-util` set the bits of the written
//! sectors only, and what stands under a clear bit is without meaning; here that can be garbage, so
//! that a reader which ignores bitmaps is caught.

use std::collections::BTreeSet;

use super::rng::mix;
use super::sparse::{SECTOR_BYTES, SparseDisk};

/// How the sector bitmaps of a layer are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bitmaps {
    /// All ones (XO, XAPI).
    Full,
    /// A bit per written sector (tapdisk, Hyper-V).
    Partial,
    /// Some blocks the one way, some the other, drawn from this seed.
    Mixed(u64),
}

/// One block, ready to be stored.
#[derive(Clone, Debug)]
pub struct BlockImage {
    /// Most significant bit first, padded to whole sectors.
    pub bitmap: Vec<u8>,
    /// Exactly one block.
    pub data: Vec<u8>,
}

impl BlockImage {
    /// Bitmap and data in the order both storage forms keep them.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.bitmap[..], &self.data[..]].concat()
    }

    /// Whether every sector of the block is present (what a batmap bit says).
    pub fn is_full(&self) -> bool {
        let sectors = self.data.len() / SECTOR_BYTES as usize;
        (0..sectors).all(|sector| self.bitmap[sector / 8] & (0x80 >> (sector % 8)) != 0)
    }
}

/// Length of a block's bitmap on storage: a bit per sector, in whole sectors.
pub fn bitmap_bytes(block_size: u32) -> u64 {
    let bits = u64::from(block_size) / SECTOR_BYTES;
    bits.div_ceil(8).next_multiple_of(SECTOR_BYTES)
}

/// Something that has blocks to store.
pub trait BlockSource {
    fn block_size(&self) -> u32;
    /// Numbers of the present blocks, ascending.
    fn block_numbers(&self) -> Vec<u64>;
    fn block(&self, number: u64) -> BlockImage;
}

/// Fills a buffer with what the chain below a layer holds from this sector on.
pub type Below<'a> = &'a dyn Fn(u64, &mut [u8]);

/// The blocks of one layer.
pub struct LayerBlocks<'a> {
    pub writes: &'a SparseDisk,
    /// What is read where this layer wrote nothing; `None` stands for zeros.
    pub below: Option<Below<'a>>,
    pub block_size: u32,
    pub disk_sectors: u64,
    pub bitmaps: Bitmaps,
    /// Put garbage under clear bits instead of zeros.
    pub garbage_under_clear_bits: bool,
    /// Put garbage after the disk's end in its last block instead of zeros.
    pub garbage_after_end: bool,
    /// Blocks to store although nothing was written to them.
    pub extra_blocks: &'a [u64],
}

impl<'a> LayerBlocks<'a> {
    /// Whole blocks of a disk without a parent.
    pub fn new(writes: &'a SparseDisk, block_size: u32, disk_sectors: u64) -> Self {
        Self {
            writes,
            below: None,
            block_size,
            disk_sectors,
            bitmaps: Bitmaps::Full,
            garbage_under_clear_bits: false,
            garbage_after_end: false,
            extra_blocks: &[],
        }
    }

    fn sectors_per_block(&self) -> u64 {
        u64::from(self.block_size) / SECTOR_BYTES
    }

    fn is_full(&self, number: u64) -> bool {
        match self.bitmaps {
            Bitmaps::Full => true,
            Bitmaps::Partial => false,
            Bitmaps::Mixed(seed) => mix(seed ^ number) & 1 == 0,
        }
    }
}

impl BlockSource for LayerBlocks<'_> {
    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn block_numbers(&self) -> Vec<u64> {
        let per_block = self.sectors_per_block();
        let mut numbers: BTreeSet<u64> = self.extra_blocks.iter().copied().collect();
        for run in self.writes.runs_in(0, self.disk_sectors) {
            numbers.extend(run.first_sector / per_block..=(run.end_sector - 1) / per_block);
        }
        numbers.into_iter().collect()
    }

    fn block(&self, number: u64) -> BlockImage {
        let first = number * self.sectors_per_block();
        let end = first + self.sectors_per_block();
        let inside_end = end.min(self.disk_sectors);
        let inside_bytes = (inside_end.saturating_sub(first) * SECTOR_BYTES) as usize;
        let mut data = vec![0; self.block_size as usize];
        let mut bitmap = vec![0; bitmap_bytes(self.block_size) as usize];
        if self.is_full(number) {
            bitmap.fill(0xff);
            if let Some(below) = self.below {
                below(first, &mut data[..inside_bytes]);
            }
        } else {
            if self.garbage_under_clear_bits {
                data[..inside_bytes].fill(0xdb);
            }
            for run in self.writes.runs_in(first, inside_end) {
                for sector in run.first_sector - first..run.end_sector - first {
                    bitmap[(sector / 8) as usize] |= 0x80 >> (sector % 8);
                }
            }
        }
        self.writes.paint(first, &mut data[..inside_bytes]);
        if self.garbage_after_end {
            data[inside_bytes..].fill(0xee);
        }
        BlockImage { bitmap, data }
    }
}
