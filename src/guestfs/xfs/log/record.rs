//! Records of the log: `xlog_rec_header`, and behind it the operations of several transactions.
//!
//! Numbers are big-endian, the checksum is little-endian. In each sector behind the header the first word was
//! replaced by the cycle; the header keeps those words, and a header of a record of more than 32 KiB goes on in further
//! sectors for that.

use super::error::corrupt_at;
use super::ring::{BLOCK_BYTES, RECORD_BLOCKS, RECORD_MAGIC, Ring};
use crate::error::{Error, ErrorKind, Result};
use crate::volume::bits::{be32, crc32c, has, le32};

/// Words that one sector of a header keeps: `XLOG_HEADER_CYCLE_SIZE / BBSIZE`.
const WORDS: usize = 64;
/// `sizeof(struct xlog_rec_header)`, on machines of 64 and of 32 bits: what the checksum covers.
const HEADER_BYTES: [usize; 2] = [328, 324];
/// `sizeof(struct xlog_rec_ext_header)`.
const MORE_HEADER_BYTES: usize = 4 + 4 * WORDS;
/// `XLOG_FMT_LINUX_LE`.
const LITTLE_ENDIAN: u32 = 1;

/// Where a record is and what its header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Its first sector.
    pub at: u64,
    header_blocks: u64,
    len_bytes: u64,
    /// Operations in it.
    pub ops: u32,
    /// The first sector of the oldest record that was not written home when this one was made.
    pub tail: u64,
    stored_sum: u32,
}

impl Record {
    /// The record that begins at a sector.
    ///
    /// # Errors
    /// `Corrupt` when none does, `Unsupported` when a machine of other byte order wrote it.
    pub fn read(ring: &Ring, at: u64) -> Result<Record> {
        let header = ring.read(at, 1)?;
        if be32(&header, 0) != RECORD_MAGIC || !has(&header, 304, &ring.uuid) {
            return Err(corrupt_at("a record has to begin there, and does not", at));
        }
        let (version, len, size) = (be32(&header, 8), be32(&header, 12), be32(&header, 320));
        if be32(&header, 300) != LITTLE_ENDIAN {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the log of XFS was written by a big-endian machine",
            ));
        }
        let header_blocks = match version {
            1 => 1,
            2 | 3 => u64::from(size)
                .div_ceil((WORDS * BLOCK_BYTES) as u64)
                .max(1),
            _ => return Err(corrupt_at("its version is not known", at)),
        };
        let record = Record {
            at,
            header_blocks,
            len_bytes: u64::from(len),
            ops: be32(&header, 40),
            tail: u64::from(be32(&header, 28)),
            stored_sum: le32(&header, 32),
        };
        let blocks = record.len_bytes.div_ceil(BLOCK_BYTES as u64);
        let kept = header_blocks.saturating_mul(WORDS as u64);
        if len == 0
            || blocks > RECORD_BLOCKS
            || header_blocks > RECORD_BLOCKS
            // What mkfs writes with a large stripe unit has one operation, and too short a header.
            || (blocks > kept && record.ops != 1)
            || record.blocks() > ring.blocks
            || u64::from(be32(&header, 20)) != at
            || record.tail >= ring.blocks
        {
            return Err(corrupt_at("the header of a record makes no sense", at));
        }
        Ok(record)
    }

    /// Sectors in all.
    pub fn blocks(&self) -> u64 {
        self.header_blocks + self.len_bytes.div_ceil(BLOCK_BYTES as u64)
    }

    /// Its operations, as they were before they were written. `None` when the checksum does not hold.
    pub fn load(&self, ring: &Ring) -> Result<Option<Vec<u8>>> {
        let header = ring.read(self.at, self.header_blocks)?;
        let blocks = self.blocks() - self.header_blocks;
        let mut data = ring.read(self.at + self.header_blocks, blocks)?;
        let len = self.len_bytes as usize;
        // 0: none was made.
        if self.stored_sum != 0
            && !HEADER_BYTES
                .iter()
                .any(|&bytes| sum(&header, bytes, &data[..len]) == self.stored_sum)
        {
            return Ok(None);
        }
        for (index, block) in data.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let word = match index / WORDS {
                0 => 44 + 4 * index,
                more => more * BLOCK_BYTES + 4 + 4 * (index % WORDS),
            };
            let kept = header
                .get(word..word + 4)
                .ok_or_else(|| corrupt_at("a record has too short a header", self.at))?;
            block[..4].copy_from_slice(kept);
        }
        data.truncate(len);
        Ok(Some(data))
    }

    /// Its operations.
    ///
    /// # Errors
    /// `Corrupt` when the checksum does not hold.
    pub fn data(&self, ring: &Ring) -> Result<Vec<u8>> {
        self.load(ring)?
            .ok_or_else(|| corrupt_at("the checksum of a record does not hold", self.at))
    }

    /// Whether it is what a clean unmount writes last: one operation, which says so.
    pub fn is_unmount(&self, ring: &Ring) -> Result<bool> {
        const UNMOUNT: u8 = 0x20;
        if self.ops != 1 {
            return Ok(false);
        }
        let first = ring.read(self.at + self.header_blocks, 1)?;
        Ok(first[9] & UNMOUNT != 0)
    }
}

/// `xlog_cksum`: the header without its sum, what it goes on with, and the data as it was written.
fn sum(header: &[u8], header_bytes: usize, data: &[u8]) -> u32 {
    let mut bytes = header[..header_bytes].to_vec();
    bytes[32..36].fill(0);
    for more in header
        .chunks_exact(BLOCK_BYTES)
        .take(data.len().div_ceil(WORDS * BLOCK_BYTES))
        .skip(1)
    {
        bytes.extend_from_slice(&more[..MORE_HEADER_BYTES]);
    }
    bytes.extend_from_slice(data);
    crc32c(&bytes)
}
