//! The boot sector: how large clusters and file records are, and where the records begin.
//!
//! Its BIOS parameter block has the bytes of a sector at 11 and the sectors of a cluster at 13. NTFS adds the
//! first cluster of `$MFT` at 48 and the size of a file record at 64 (LIBFSNTFS documentation, "volume header").
//! Nothing here goes by the size of a sector but the size of a cluster.

use super::error::bad;
use super::fields::{byte, le16, le64};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the boot sector that are looked at.
pub const BOOT_BYTES: usize = 512;
/// The largest clusters of Windows.
const MAX_CLUSTER_BYTES: u64 = 2 << 20;
/// Windows makes records of 1 and 4 KiB.
const MAX_RECORD_BYTES: u64 = 64 << 10;
/// Cluster counts above this are exponents.
const MAX_LITERAL: u8 = 0x80;

/// What the boot sector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Bytes of a file record.
    pub record_bytes: u64,
    /// The cluster where the file records begin.
    pub table_cluster: u64,
}

impl Boot {
    /// Reads the first [`BOOT_BYTES`] of a volume.
    ///
    /// # Errors
    /// `Corrupt` when they make no sense, `Unsupported` for sizes beyond those of Windows.
    pub fn parse(sector: &[u8]) -> Result<Self> {
        if sector.get(3..11) != Some(b"NTFS    ") {
            return Err(bad("the boot sector is not one of NTFS"));
        }
        let sector_bytes = u64::from(le16(sector, 11)?);
        if !sector_bytes.is_power_of_two() || !(256..=4096).contains(&sector_bytes) {
            return Err(bad("the boot sector has sectors of a strange size"));
        }
        let sectors = match byte(sector, 13)? {
            literal @ ..=MAX_LITERAL => u64::from(literal),
            // Clusters of more than 128 sectors are written as a power of two, negated.
            exponent => 1u64
                .checked_shl(u32::from(exponent.wrapping_neg()))
                .unwrap_or(0),
        };
        if !sectors.is_power_of_two() {
            return Err(bad("the boot sector has clusters of a strange size"));
        }
        let cluster_bytes = sectors
            .checked_mul(sector_bytes)
            .filter(|&bytes| bytes <= MAX_CLUSTER_BYTES)
            .ok_or_else(|| too_large("clusters of more than 2 MiB"))?;
        // Clusters, or bytes as a power of two, negated.
        let record_bytes = match byte(sector, 64)?.cast_signed() {
            clusters @ 1.. => u64::from(clusters.unsigned_abs()) * cluster_bytes,
            exponent => 1u64
                .checked_shl(u32::from(exponent.unsigned_abs()))
                .unwrap_or(0),
        };
        if record_bytes > MAX_RECORD_BYTES {
            return Err(too_large("file records of more than 64 KiB"));
        }
        if !record_bytes.is_power_of_two() || record_bytes < 512 {
            return Err(bad("the boot sector has file records of a strange size"));
        }
        Ok(Boot {
            cluster_bytes,
            record_bytes,
            table_cluster: le64(sector, 48)?,
        })
    }

    /// The byte where the file records begin.
    ///
    /// # Errors
    /// `Corrupt` when there is no such byte.
    pub fn table_start(&self) -> Result<u64> {
        self.table_cluster
            .checked_mul(self.cluster_bytes)
            .ok_or_else(|| bad("the master file table is nowhere"))
    }
}

fn too_large(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("ntfs: {what} are not supported"),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A boot sector with these sizes as they are written.
    pub fn sector(sector_bytes: u16, sectors: u8, record: u8) -> Vec<u8> {
        let mut sector = vec![0; BOOT_BYTES];
        sector[3..11].copy_from_slice(b"NTFS    ");
        sector[11..13].copy_from_slice(&sector_bytes.to_le_bytes());
        sector[13] = sectors;
        sector[48] = 4;
        sector[64] = record;
        sector
    }

    #[test]
    fn sizes_are_counts_or_exponents() {
        let sizes = |sector_bytes, sectors, record| {
            let boot = Boot::parse(&sector(sector_bytes, sectors, record))?;
            Ok::<_, Error>((boot.cluster_bytes, boot.record_bytes))
        };
        for (sector_bytes, sectors, record, expected) in [
            (512, 8, 0xF6, (4096, 1024)),
            (512, 1, 2, (512, 1024)),
            (512, 0x80, 0xF6, (64 << 10, 1024)),
            // 128 KiB and 2 MiB.
            (512, 0xF8, 0xF6, (128 << 10, 1024)),
            (512, 0xF4, 0xF6, (2 << 20, 1024)),
            (1024, 2, 0xF6, (2048, 1024)),
            (4096, 1, 1, (4096, 4096)),
            (4096, 16, 0xF4, (64 << 10, 4096)),
            (4096, 0xF7, 0xF4, (2 << 20, 4096)),
            // Records smaller than a sector: a copy of a volume that was made for smaller ones.
            (4096, 1, 0xF6, (4096, 1024)),
        ] {
            assert_eq!(sizes(sector_bytes, sectors, record).unwrap(), expected);
        }
        for (sector_bytes, sectors, record) in [
            (0, 8, 0xF6),
            (513, 8, 0xF6),
            (8192, 8, 0xF6),
            (512, 0, 0xF6),
            (512, 3, 0xF6),
            (512, 8, 0),
            (512, 8, 3),
            (512, 8, 0xF8),
        ] {
            let error = sizes(sector_bytes, sectors, record).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        for (sector_bytes, sectors, record) in [(512, 0xF3, 0xF6), (512, 0x81, 0xF6)] {
            assert!(sizes(sector_bytes, sectors, record).is_err());
        }
        assert_eq!(
            sizes(512, 0xF3, 0xF6).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert!(Boot::parse(&[0; BOOT_BYTES]).is_err());
        assert!(Boot::parse(&sector(512, 8, 0xF6)[..50]).is_err());
    }
}
