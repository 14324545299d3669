//! What the superblock of a file system says of its journal.

use crate::error::Result;
use crate::io::ReadAt;
use crate::volume::bits::{crc32c_update, le16, le32};

/// Where the superblock of ext is.
pub(super) const SUPERBLOCK_AT: u64 = 1024;
/// Its length.
pub(super) const SUPERBLOCK_BYTES: usize = 1024;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const INCOMPAT_RECOVER: u32 = 0x4;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const CHECKSUM: usize = 0x3FC;

/// What the superblock of a volume says of its journal.
pub(crate) struct Header {
    raw: [u8; SUPERBLOCK_BYTES],
}

impl Header {
    /// Reads the superblock.
    ///
    /// # Errors
    /// Whatever kept it from being read.
    pub(crate) fn read(volume: &dyn ReadAt) -> Result<Self> {
        let mut raw = [0; SUPERBLOCK_BYTES];
        volume.read_exact_at(&mut raw, SUPERBLOCK_AT)?;
        Ok(Header { raw })
    }

    /// Blocks in all, of a journal device.
    pub(crate) fn blocks(&self) -> u64 {
        u64::from(le32(&self.raw, 4))
    }

    fn has_journal(&self) -> bool {
        le32(&self.raw, 0x5C) & COMPAT_HAS_JOURNAL != 0
    }

    /// Whether the journal holds something newer. Linux ignores what is in it otherwise.
    pub(crate) fn needs_recovery(&self) -> bool {
        le32(&self.raw, 0x60) & INCOMPAT_RECOVER != 0
    }

    /// The inode of the journal; `None` when that is on another device.
    pub(crate) fn journal_inode(&self) -> Option<u32> {
        Some(le32(&self.raw, 0xE0)).filter(|&inode| inode != 0)
    }

    /// Bytes of a block; `None` for a length that none has.
    pub(crate) fn block_bytes(&self) -> Option<u64> {
        1024u64
            .checked_shl(le32(&self.raw, 0x18))
            .filter(|&bytes| bytes <= 64 << 10)
    }

    /// The UUID at this byte of the superblock.
    pub(crate) fn uuid(&self, at: usize) -> &[u8] {
        self.raw.get(at..at + 16).unwrap_or_default()
    }

    /// What a person should know of the state that the guest left.
    pub(crate) fn warn(&self) {
        let state = le16(&self.raw, 0x3A);
        if state & STATE_ERRORS != 0 {
            tracing::warn!(
                "ext: the guest has found errors in this file system and not repaired them"
            );
        } else if state & STATE_CLEAN == 0 && !self.has_journal() {
            tracing::warn!(
                "ext: the file system was in use and has no journal; it is shown as it is on the disk"
            );
        }
    }

    /// The superblock of a file system without a journal.
    pub(crate) fn without_journal(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut raw = self.raw;
        let checksum =
            |raw: &[u8]| crc32c_update(u32::MAX, raw.get(..CHECKSUM).unwrap_or_default());
        let sealed = le32(&raw, 0x64) & RO_COMPAT_METADATA_CSUM != 0
            && checksum(&raw) == le32(&raw, CHECKSUM);
        for (at, bit) in [(0x5C, COMPAT_HAS_JOURNAL), (0x60, INCOMPAT_RECOVER)] {
            let without = le32(&raw, at) & !bit;
            put32(&mut raw, at, without);
        }
        put32(&mut raw, 0xE0, 0);
        // One that is wrong stays wrong.
        if sealed {
            let sum = checksum(&raw);
            put32(&mut raw, CHECKSUM, sum);
        }
        raw
    }
}

fn put32(raw: &mut [u8; SUPERBLOCK_BYTES], at: usize, number: u32) {
    if let Some(place) = raw.get_mut(at..at + 4) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}
