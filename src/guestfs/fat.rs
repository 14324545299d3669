//! FAT12, FAT16, FAT32 and exFAT.
//!
//! An own reader: the formats are small, and the crate that was looked at shows what lies behind a
//! file's valid length on exFAT, reads a directory again for every inode, and ends a broken chain
//! without an error. Sources: Microsoft's FAT specification 1.03 and exFAT specification 1.00, and
//! Linux' `fs/fat` where the two leave room.
//!
//! An inode number is the place of a directory entry on the volume in units of 32 bytes; on exFAT that
//! of the stream extension, which is what opening a file needs.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::Device;
use super::fat_dir::{self, Item};
use super::listings::Listings;
use super::run_file::{Run, RunFile, RunMap};
use super::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::tree::NodeKind;

/// No entry can be at byte 32 of a volume.
const ROOT: GuestInode = 1;
/// Set in the inode numbers of exFAT directories: a stream extension does not say what it belongs to.
const DIR_BIT: GuestInode = 1 << 62;
/// FAT allows 65,536 entries in a directory, exFAT 256 MiB of them; this is 2 million.
const MAX_DIR_BYTES: u64 = 64 << 20;
/// Items remembered by inode, so that attributes need no second reading of their directory.
const KEPT_ITEMS: usize = 100_000;
/// Bytes of the table read at once while a chain is walked.
const TABLE_CHUNK: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
    ExFat,
}

/// Where things are on the volume, from its boot sector.
#[derive(Debug, Clone)]
struct Geometry {
    width: Width,
    cluster_bytes: u64,
    table_start: u64,
    table_bytes: u64,
    heap_start: u64,
    clusters: u64,
    /// FAT12 and FAT16 keep the root directory outside the clusters: start and length.
    fixed_root: Option<(u64, u64)>,
    root_cluster: u32,
}

/// An open FAT or exFAT.
pub struct FatFs {
    device: Arc<Device>,
    geometry: Geometry,
    items: Mutex<HashMap<GuestInode, Item>>,
    listings: Listings,
}

fn bad(message: &str) -> Error {
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

    fn cluster_start(&self, cluster: u32) -> Result<u64> {
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
struct Piece {
    first: u32,
    count: u64,
    before: u64,
}

impl FatFs {
    /// Reads the boot sector.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let device = Arc::new(Device::new(volume));
        let mut boot = [0; 512];
        device.read(&mut boot, 0)?;
        let geometry = Geometry::parse(&boot)?;
        Ok(Arc::new(FatFs {
            device,
            geometry,
            items: Mutex::default(),
            listings: Listings::default(),
        }))
    }

    /// The clusters of a chain in order, at most `limit`. Walks the table in chunks.
    fn chain(&self, first: u32, limit: u64) -> Result<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut table = Table {
            fs: self,
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
    fn pieces(&self, item: &Item) -> Result<Vec<Piece>> {
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

    /// The bytes of a directory, with the place of each cluster's first byte on the volume.
    fn directory_bytes(&self, dir: GuestInode) -> Result<(Vec<u8>, Vec<u64>)> {
        let cluster_bytes = self.geometry.cluster_bytes;
        let pieces = if dir == ROOT {
            if let Some((start, len)) = self.geometry.fixed_root {
                let mut bytes = vec![0; len as usize];
                self.device.read(&mut bytes, start)?;
                return Ok((bytes, vec![start]));
            }
            self.chain(
                self.geometry.root_cluster,
                MAX_DIR_BYTES / cluster_bytes.min(MAX_DIR_BYTES) + 1,
            )?
        } else {
            let item = self.item(dir)?;
            if !item.is_dir {
                return Err(Error::new(ErrorKind::Invalid, "not a directory"));
            }
            match self.geometry.width {
                Width::ExFat => self.pieces(&item)?,
                _ => self.chain(item.first_cluster, MAX_DIR_BYTES / cluster_bytes + 1)?,
            }
        };
        let clusters: u64 = pieces.iter().map(|piece| piece.count).sum();
        if clusters.saturating_mul(cluster_bytes) > MAX_DIR_BYTES {
            return Err(bad("a directory is too large"));
        }
        let mut bytes = vec![0; (clusters * cluster_bytes) as usize];
        let mut starts = Vec::new();
        for (slot, cluster) in bytes.chunks_mut(cluster_bytes as usize).zip(
            pieces
                .iter()
                .flat_map(|piece| (0..piece.count as u32).map(|n| piece.first + n)),
        ) {
            let start = self.geometry.cluster_start(cluster)?;
            self.device.read(slot, start)?;
            starts.push(start);
        }
        Ok((bytes, starts))
    }

    /// All items of a directory with their inode numbers.
    fn items_of(&self, dir: GuestInode) -> Result<Vec<(GuestInode, Item)>> {
        let (bytes, starts) = self.directory_bytes(dir)?;
        let items = match self.geometry.width {
            Width::ExFat => fat_dir::parse_exfat(&bytes)?,
            _ => fat_dir::parse_fat(&bytes, self.geometry.width == Width::Fat32),
        };
        let unit = match self.geometry.fixed_root {
            Some(_) if dir == ROOT => bytes.len().max(1),
            _ => self.geometry.cluster_bytes as usize,
        };
        let found: Vec<_> = items
            .into_iter()
            .filter_map(|item| {
                let start = starts.get(item.slot * 32 / unit)?;
                let place = (start + (item.slot * 32 % unit) as u64) / 32;
                let is_marked = item.is_dir && self.geometry.width == Width::ExFat;
                Some((if is_marked { place | DIR_BIT } else { place }, item))
            })
            .collect();
        let mut kept = self.kept();
        if kept.len() + found.len() > KEPT_ITEMS {
            kept.clear();
        }
        kept.extend(found.iter().cloned());
        Ok(found)
    }

    fn entries(&self, dir: GuestInode) -> Result<Vec<GuestEntry>> {
        let items = self.items_of(dir)?;
        Ok(items
            .into_iter()
            .map(|(inode, item)| GuestEntry {
                name: OsString::from_vec(item.name),
                inode,
                kind: Some(match item.is_dir {
                    true => NodeKind::Dir,
                    false => NodeKind::File,
                }),
            })
            .collect())
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<GuestInode, Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an inode number stands for: remembered, or read again from its place.
    fn item(&self, inode: GuestInode) -> Result<Item> {
        if let Some(item) = self.kept().get(&inode) {
            return Ok(item.clone());
        }
        let at = (inode & !DIR_BIT)
            .checked_mul(32)
            .ok_or_else(|| bad("an inode number is out of range"))?;
        let mut entry = [0; 32];
        self.device.read(&mut entry, at)?;
        match self.geometry.width {
            Width::ExFat => {
                // Its times are in the entry before it, except where a cluster begins.
                let mut file = [0; 32];
                let is_inside =
                    (at - self.geometry.heap_start.min(at)) % self.geometry.cluster_bytes != 0;
                if is_inside {
                    self.device.read(&mut file, at - 32)?;
                }
                fat_dir::exfat_stream(&entry).map(|item| Item {
                    is_dir: inode & DIR_BIT != 0,
                    ..fat_dir::with_file_entry(item, &file)
                })
            }
            width => fat_dir::fat_entry(&entry, width == Width::Fat32),
        }
        .ok_or_else(|| bad("a name leads to an entry that is not in use"))
    }
}

/// Reads the table while a chain is walked.
struct Table<'a> {
    fs: &'a FatFs,
    chunk: Vec<u8>,
    start: u64,
}

impl Table<'_> {
    /// What follows a cluster, `None` at the end of its chain.
    fn next(&mut self, cluster: u32) -> Result<Option<u32>> {
        let number = u64::from(cluster);
        let geometry = &self.fs.geometry;
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
        let geometry = &self.fs.geometry;
        if at >= geometry.table_bytes {
            return Err(bad("a cluster has no entry in the table"));
        }
        if !(self.start..self.start + self.chunk.len() as u64).contains(&at) {
            self.start = at - at % TABLE_CHUNK;
            let len = TABLE_CHUNK.min(geometry.table_bytes - self.start);
            self.chunk.resize(len as usize, 0);
            let from = geometry.table_start + self.start;
            if let Err(error) = self.fs.device.read(&mut self.chunk, from) {
                self.chunk.clear();
                return Err(error);
            }
        }
        Ok(self.chunk[(at - self.start) as usize])
    }
}

impl GuestFs for FatFs {
    fn root(&self) -> GuestInode {
        ROOT
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let item = match inode {
            ROOT => Item::root(),
            inode => self.item(inode)?,
        };
        let cluster_bytes = self.geometry.cluster_bytes;
        Ok(GuestAttr {
            kind: match item.is_dir {
                true => NodeKind::Dir,
                false => NodeKind::File,
            },
            size_bytes: if item.is_dir { 0 } else { item.len_bytes },
            allocated_bytes: item
                .len_bytes
                .div_ceil(cluster_bytes)
                .saturating_mul(cluster_bytes),
            permissions: match (item.is_dir, item.is_read_only) {
                (true, _) => 0o755,
                (false, false) => 0o644,
                (false, true) => 0o444,
            },
            links: 1,
            uid: 0,
            gid: 0,
            atime: item.accessed,
            mtime: item.modified,
            ctime: item.modified,
            rdev: 0,
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        self.listings.lookup(dir, name, || self.entries(dir))
    }

    fn list(&self, dir: GuestInode, _cursor: u64) -> Result<Batch> {
        let entries = self.entries(dir)?;
        self.listings.keep(dir, &entries);
        Ok(Batch {
            entries,
            next: None,
        })
    }

    fn read_link(&self, _inode: GuestInode) -> Result<OsString> {
        Err(Error::new(ErrorKind::Invalid, "not a symbolic link"))
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let item = match inode {
            ROOT => Item::root(),
            inode => self.item(inode)?,
        };
        if item.is_dir {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        let map = Chain {
            pieces: self.pieces(&item)?,
            geometry: self.geometry.clone(),
            valid_bytes: item.valid_bytes,
        };
        let file = RunFile::new(self.device.volume().clone(), map, item.len_bytes)?;
        Ok(Arc::new(file))
    }
}

struct Chain {
    pieces: Vec<Piece>,
    geometry: Geometry,
    /// exFAT: what lies behind was never written and reads as zeros.
    valid_bytes: u64,
}

impl RunMap for Chain {
    fn run_at(&self, offset: u64) -> Result<Run> {
        if offset >= self.valid_bytes {
            return Ok(Run {
                end: u64::MAX,
                at: None,
            });
        }
        let cluster_bytes = self.geometry.cluster_bytes;
        let cluster = offset / cluster_bytes;
        let index = self
            .pieces
            .partition_point(|piece| piece.before + piece.count <= cluster);
        let piece = self
            .pieces
            .get(index)
            .ok_or_else(|| bad("a file's chain of clusters is shorter than the file"))?;
        let start = self.geometry.cluster_start(piece.first)?;
        Ok(Run {
            end: ((piece.before + piece.count) * cluster_bytes).min(self.valid_bytes),
            at: Some(start + offset - piece.before * cluster_bytes),
        })
    }
}
