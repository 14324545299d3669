//! The superblock of a journal (`journal_superblock_s`).

use crate::error::{Error, ErrorKind, Result};
use crate::volume::bits::{be32, byte, crc32c_update};

pub(super) const MAGIC: u32 = 0xC03B_3998;
const BLOCK_V1: u32 = 3;
const BLOCK_V2: u32 = 4;
const BYTES: usize = 1024;
const CHECKSUM: usize = 0xFC;
const CRC32C: u8 = 4;
/// A journal without at least so many blocks has none for fast commits.
const MIN_LOG_BLOCKS: u64 = 1024;
const DEFAULT_FAST_BLOCKS: u64 = 256;

const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_ASYNC_COMMIT: u32 = 4;
const INCOMPAT_CSUM_V2: u32 = 8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// All of the above, and 1: revoke records.
const KNOWN_INCOMPAT: u32 = 0x3F;

/// How the blocks of a journal prove themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    /// Not at all.
    None,
    /// By one sum of all in the commit block.
    V1,
    /// Each by its own, 16 bits of it for data.
    V2,
    /// Each by its own.
    V3,
}

/// What is needed of the superblock.
#[derive(Debug)]
pub(super) struct JournalSuperblock {
    /// First block of the log.
    pub first: u64,
    /// First block after the log.
    pub end: u64,
    /// The block that the oldest transaction begins at; 0 when there is none.
    pub start: u64,
    /// The number of the oldest transaction.
    pub sequence: u32,
    /// Block numbers have 64 bits.
    pub wide: bool,
    /// Commit blocks may be written before what they commit.
    pub asynchronous: bool,
    /// What blocks prove themselves with.
    pub checksums: Checksums,
    /// What sums begin with.
    pub seed: u32,
    /// The blocks of fast commits.
    pub fast: Option<std::ops::Range<u64>>,
}

impl JournalSuperblock {
    /// Reads the first block of a journal of `blocks` blocks.
    ///
    /// # Errors
    /// `Corrupt` when it makes no sense, `Unsupported` for features that are not known.
    pub(super) fn parse(block: &[u8], blocks: u64) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("the journal's superblock {what}"));
        let raw = block.get(..BYTES).ok_or_else(|| bad("is cut short"))?;
        let kind = be32(raw, 4);
        if be32(raw, 0) != MAGIC || !matches!(kind, BLOCK_V1 | BLOCK_V2) {
            return Err(bad("is not one"));
        }
        if u64::from(be32(raw, 0x0C)) != block.len() as u64 {
            return Err(bad("has blocks of another size than the file system"));
        }
        // The first version ends before its features.
        let feature = |at| if kind == BLOCK_V2 { be32(raw, at) } else { 0 };
        let (compat, incompat) = (feature(0x24), feature(0x28));
        let unknown = incompat & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the journal has unsupported features ({unknown:#x})"),
            ));
        }
        let checksums = match (
            incompat & INCOMPAT_CSUM_V2 != 0,
            incompat & INCOMPAT_CSUM_V3 != 0,
            compat & COMPAT_CHECKSUM != 0,
        ) {
            (false, false, false) => Checksums::None,
            (false, false, true) => Checksums::V1,
            (true, false, false) => Checksums::V2,
            (false, true, false) => Checksums::V3,
            _ => return Err(bad("has two kinds of checksums")),
        };
        if matches!(checksums, Checksums::V2 | Checksums::V3) {
            if byte(raw, 0x50) != CRC32C {
                return Err(bad("has an unknown kind of checksum"));
            }
            let mut blank = raw.to_vec();
            if let Some(sum) = blank.get_mut(CHECKSUM..CHECKSUM + 4) {
                sum.fill(0);
            }
            if crc32c_update(u32::MAX, &blank) != be32(raw, CHECKSUM) {
                return Err(bad("has a wrong checksum"));
            }
        }
        let len = u64::from(be32(raw, 0x10));
        let first = u64::from(be32(raw, 0x14));
        let start = u64::from(be32(raw, 0x1C));
        if len > blocks {
            return Err(bad("says that the journal is longer than it is"));
        }
        let mut end = len;
        let mut fast = None;
        if incompat & INCOMPAT_FAST_COMMIT != 0 {
            let count = match u64::from(be32(raw, 0x54)) {
                0 => DEFAULT_FAST_BLOCKS,
                count => count,
            };
            if let Some(log) = len.checked_sub(count)
                && log >= MIN_LOG_BLOCKS
            {
                // One block between the two belongs to neither.
                end = log;
                fast = Some(log + 1..len);
            }
        }
        if first == 0 || first >= end || (start != 0 && !(first..end).contains(&start)) {
            return Err(bad("says that the log is where it cannot be"));
        }
        Ok(JournalSuperblock {
            first,
            end,
            start,
            sequence: be32(raw, 0x18),
            wide: incompat & INCOMPAT_64BIT != 0,
            asynchronous: incompat & INCOMPAT_ASYNC_COMMIT != 0,
            checksums,
            seed: crc32c_update(u32::MAX, raw.get(0x30..0x40).unwrap_or_default()),
            fast,
        })
    }
}
