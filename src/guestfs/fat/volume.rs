//! Where things are on a FAT or exFAT volume: its boot sector, its table, the clusters of a file.

use std::sync::Arc;

use super::dir::Item;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::host::device::Device;

/// Bytes of the table read at once while a chain is walked.
const TABLE_CHUNK: u64 = 4096;
/// Pieces of one file: 100 MB of memory.
const MAX_PIECES: usize = 4 << 20;

/// Which of the formats it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 12 bits.
    Fat12,
    /// 16 bits.
    Fat16,
    /// 28 bits.
    Fat32,
    /// exFAT.
    ExFat,
}

/// Where things are on the volume, from its boot sector.
#[derive(Debug, Clone)]
pub struct Geometry {
    /// The format.
    pub width: Width,
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    table_start: u64,
    table_bytes: u64,
    /// The byte where cluster 2 begins.
    pub heap_start: u64,
    clusters: u64,
    /// FAT12 and FAT16 keep the root directory outside the clusters: start and length.
    pub fixed_root: Option<(u64, u64)>,
    /// Where the root directory's chain begins elsewhere.
    pub root_cluster: u32,
}

/// A volume.
pub struct Volume {
    /// The device, for metadata.
    pub device: Arc<Device>,
    /// From the boot sector.
    pub geometry: Geometry,
}

/// Whether a boot sector, or the first two entries of a table, say that the volume is in use.
fn marked_dirty(width: Width, boot: &[u8; 512], table: &[u8; 8]) -> bool {
    const DIRTY: u8 = 1;
    match width {
        Width::Fat12 => boot[0x25] & DIRTY != 0,
        Width::Fat16 => boot[0x25] & DIRTY != 0 || le16(table, 2) & 0x8000 == 0,
        Width::Fat32 => boot[0x41] & DIRTY != 0 || le32(table, 4) & 0x0800_0000 == 0,
        Width::ExFat => boot[0x6A] & 2 != 0,
    }
}

/// An error about a damaged volume.
pub fn bad(message: &str) -> Error {
    Error::corrupt(format!("fat: {message}"))
}

fn le16(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn le32(bytes: &[u8], at: usize) -> u64 {
    le16(bytes, at) | le16(bytes, at + 2) << 16
}

impl Geometry {
    fn parse(boot: &[u8; 512]) -> Result<Self> {
        match &boot[3..11] == b"EXFAT   " {
            true => Self::parse_exfat(boot),
            false => Self::parse_fat(boot),
        }
    }

    fn parse_fat(boot: &[u8; 512]) -> Result<Self> {
        let sector = le16(boot, 11);
        let per_cluster = u64::from(boot[13]);
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return Err(bad("the sector size makes no sense"));
        }
        if !per_cluster.is_power_of_two() {
            return Err(bad("the cluster size makes no sense"));
        }
        let (reserved, tables, root_entries) =
            (le16(boot, 14), u64::from(boot[16]), le16(boot, 17));
        let sectors = match le16(boot, 19) {
            0 => le32(boot, 32),
            small => small,
        };
        let (short_table, long_table) = (le16(boot, 22), le32(boot, 36));
        // Linux' rule; Microsoft's, by the number of clusters alone, says the same of sound volumes.
        let is_fat32 = short_table == 0 && long_table != 0;
        let table_sectors = if is_fat32 { long_table } else { short_table };
        let root_sectors = (root_entries * 32).div_ceil(sector);
        let heap_sector = reserved + tables * table_sectors + root_sectors;
        let clusters = sectors.saturating_sub(heap_sector) / per_cluster;
        if reserved == 0 || tables == 0 || table_sectors == 0 || clusters == 0 {
            return Err(bad("the boot sector describes an empty volume"));
        }
        let width = match (is_fat32, clusters) {
            (true, _) => Width::Fat32,
            (false, 0..=4084) => Width::Fat12,
            (false, _) => Width::Fat16,
        };
        // FAT32 may keep one table current instead of all.
        let flags = le16(boot, 40);
        let active = match is_fat32 && flags & 0x80 != 0 {
            true => flags & 0xF,
            false => 0,
        };
        if active >= tables {
            return Err(bad("the active table is not there"));
        }
        Ok(Geometry {
            width,
            cluster_bytes: per_cluster * sector,
            table_start: (reserved + active * table_sectors) * sector,
            table_bytes: table_sectors * sector,
            heap_start: heap_sector * sector,
            clusters,
            fixed_root: (!is_fat32).then_some((
                (reserved + tables * table_sectors) * sector,
                root_entries * 32,
            )),
            root_cluster: if is_fat32 { le32(boot, 44) as u32 } else { 0 },
        })
    }

    fn parse_exfat(boot: &[u8; 512]) -> Result<Self> {
        let (sector_shift, cluster_shift) = (u32::from(boot[108]), u32::from(boot[109]));
        if !(9..=12).contains(&sector_shift) || sector_shift + cluster_shift > 25 {
            return Err(bad("the sector or cluster size makes no sense"));
        }
        let sector = 1u64 << sector_shift;
        let tables = u64::from(boot[110]);
        let active = le16(boot, 106) & 1;
        if tables == 0 || active >= tables {
            return Err(bad("the active table is not there"));
        }
        let table_bytes = le32(boot, 84) * sector;
        Ok(Geometry {
            width: Width::ExFat,
            cluster_bytes: sector << cluster_shift,
            table_start: le32(boot, 80) * sector + active * table_bytes,
            table_bytes,
            heap_start: le32(boot, 88) * sector,
            clusters: le32(boot, 92),
            fixed_root: None,
            root_cluster: le32(boot, 96) as u32,
        })
    }

    /// The first byte of a cluster.
    ///
    /// # Errors
    /// `Corrupt` when there is no such cluster.
    pub fn cluster_start(&self, cluster: u32) -> Result<u64> {
        let index = u64::from(cluster)
            .checked_sub(2)
            .filter(|&index| index < self.clusters)
            .ok_or_else(|| bad("a chain leads to a cluster that is not there"))?;
        // 32 bits of index times at most 32 MiB, plus 32 bits of sectors.
        Ok(self.heap_start + index * self.cluster_bytes)
    }
}

/// Consecutive clusters: the first one, how many, and how many come before them in the file.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// The first cluster.
    pub first: u32,
    /// How many.
    pub count: u64,
    /// How many come before them.
    pub before: u64,
}

impl Volume {
    /// Reads the boot sector.
    ///
    /// # Errors
    /// `Corrupt` when it makes no sense.
    pub fn open(device: Arc<Device>) -> Result<Self> {
        let mut boot = [0; 512];
        device.read(&mut boot, 0)?;
        let geometry = Geometry::parse(&boot)?;
        let volume = Volume { device, geometry };
        if volume.is_dirty(&boot) {
            tracing::warn!(
                "fat: the volume was in use or was not unmounted; it is shown as it is on the disk"
            );
        }
        Ok(volume)
    }

    /// Whether the system that used the volume has not said that all is written. Linux says so in the boot sector,
    /// Windows in the second entry of the table. There is no journal to make up for it.
    fn is_dirty(&self, boot: &[u8; 512]) -> bool {
        let mut entries = [0xFF; 8];
        // A table that cannot be read is told of by whoever needs it.
        let _ = self
            .device
            .try_read(&mut entries, self.geometry.table_start);
        marked_dirty(self.geometry.width, boot, &entries)
    }

    /// The clusters of a chain in order, at most `limit`. Walks the table in chunks.
    ///
    /// # Errors
    /// `Corrupt` when the chain leads astray.
    pub fn chain(&self, first: u32, limit: u64) -> Result<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut table = Table {
            volume: self,
            chunk: Vec::new(),
            start: 0,
        };
        let mut cluster = first;
        let mut count = 0;
        while count < limit {
            self.geometry.cluster_start(cluster)?;
            // A chain cannot be longer than the volume unless it loops.
            if count >= self.geometry.clusters {
                return Err(bad("a chain of clusters loops"));
            }
            if pieces.len() > MAX_PIECES {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "a file in more than four million pieces",
                ));
            }
            match pieces.last_mut() {
                Some(last) if u64::from(cluster) == u64::from(last.first) + last.count => {
                    last.count += 1;
                }
                _ => pieces.push(Piece {
                    first: cluster,
                    count: 1,
                    before: count,
                }),
            }
            count += 1;
            match table.next(cluster)? {
                Some(next) => cluster = next,
                None => break,
            }
        }
        Ok(pieces)
    }

    /// The pieces that hold `len_bytes` bytes of an item.
    ///
    /// # Errors
    /// `Corrupt` when there are not as many.
    pub fn pieces(&self, item: &Item) -> Result<Vec<Piece>> {
        let wanted = item.len_bytes.div_ceil(self.geometry.cluster_bytes);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        if wanted > self.geometry.clusters {
            return Err(bad("a file is longer than its volume"));
        }
        let pieces = if item.is_contiguous {
            self.geometry.cluster_start(item.first_cluster)?;
            let last = u64::from(item.first_cluster) + wanted - 1;
            let last = u32::try_from(last).map_err(|_| bad("a file leaves its volume"))?;
            self.geometry.cluster_start(last)?;
            vec![Piece {
                first: item.first_cluster,
                count: wanted,
                before: 0,
            }]
        } else {
            self.chain(item.first_cluster, wanted)?
        };
        let have = pieces.last().map_or(0, |last| last.before + last.count);
        match have == wanted {
            true => Ok(pieces),
            false => Err(bad("a file's chain of clusters is shorter than the file")),
        }
    }

    /// The cluster after this one in its chain, `None` at the end.
    ///
    /// # Errors
    /// `Corrupt` when the chain leads astray.
    pub fn after(&self, cluster: u32) -> Result<Option<u32>> {
        let mut table = Table {
            volume: self,
            chunk: Vec::new(),
            start: 0,
        };
        table.next(cluster)
    }
}

/// Reads the table while a chain is walked.
struct Table<'a> {
    volume: &'a Volume,
    chunk: Vec<u8>,
    start: u64,
}

impl Table<'_> {
    /// What follows a cluster, `None` at the end of its chain.
    fn next(&mut self, cluster: u32) -> Result<Option<u32>> {
        let number = u64::from(cluster);
        let geometry = &self.volume.geometry;
        let value = match geometry.width {
            Width::Fat12 => {
                let pair = u32::from(self.byte(number * 3 / 2)?)
                    | u32::from(self.byte(number * 3 / 2 + 1)?) << 8;
                match number % 2 {
                    0 => pair & 0xFFF,
                    _ => pair >> 4,
                }
            }
            Width::Fat16 => {
                u32::from(self.byte(number * 2)?) | u32::from(self.byte(number * 2 + 1)?) << 8
            }
            Width::Fat32 | Width::ExFat => {
                let mut value = 0;
                for index in (0..4).rev() {
                    value = value << 8 | u32::from(self.byte(number * 4 + index)?);
                }
                match geometry.width {
                    Width::Fat32 => value & 0x0FFF_FFFF,
                    _ => value,
                }
            }
        };
        let end = match geometry.width {
            Width::Fat12 => 0xFF8,
            Width::Fat16 => 0xFFF8,
            Width::Fat32 => 0x0FFF_FFF8,
            Width::ExFat => 0xFFFF_FFF8,
        };
        if value >= end {
            return Ok(None);
        }
        geometry.cluster_start(value)?;
        Ok(Some(value))
    }

    fn byte(&mut self, at: u64) -> Result<u8> {
        let geometry = &self.volume.geometry;
        if at >= geometry.table_bytes {
            return Err(bad("a cluster has no entry in the table"));
        }
        if !(self.start..self.start + self.chunk.len() as u64).contains(&at) {
            self.start = at - at % TABLE_CHUNK;
            let len = TABLE_CHUNK.min(geometry.table_bytes - self.start);
            self.chunk.resize(len as usize, 0);
            let from = geometry.table_start + self.start;
            if let Err(error) = self.volume.device.read(&mut self.chunk, from) {
                self.chunk.clear();
                return Err(error);
            }
        }
        Ok(self.chunk[(at - self.start) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_in_use_are_told_from_those_that_were_unmounted() {
        let clean = [0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
        let boot = [0; 512];
        for (width, at, bit) in [
            (Width::Fat12, 0x25, 1),
            (Width::Fat16, 0x25, 1),
            (Width::Fat32, 0x41, 1),
            (Width::ExFat, 0x6A, 2),
        ] {
            assert!(!marked_dirty(width, &boot, &clean));
            let mut used = boot;
            used[at] = bit;
            assert!(marked_dirty(width, &used, &clean));
        }
        let mut table = clean;
        table[3] = 0x7F;
        assert!(marked_dirty(Width::Fat16, &boot, &table));
        table = clean;
        table[7] = 0x07;
        assert!(marked_dirty(Width::Fat32, &boot, &table));
    }
}
