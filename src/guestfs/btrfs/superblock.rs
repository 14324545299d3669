//! Superblocks of btrfs: one of each member, which says what the whole file system is and which member
//! this one is.
//!
//! Source: `struct btrfs_super_block` and `struct btrfs_dev_item` in Linux' `btrfs_tree.h`,
//! `btrfs_validate_super` in `disk-io.c`.

use std::fmt;

use super::block::{MAX_LEVELS, SUM_BYTES};
use super::checksum::Checksum;
use super::fault::{bad, unsupported};
use crate::error::{ErrorKind, Result};
use crate::io::ReadAt;
use crate::volume::bits::{byte, has, le16, le32, le64};

/// Where the copies lie. The first one is the one that counts, as in Linux.
const OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const BYTES: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";
/// Where the item of the device begins.
const DEVICE_ITEM: usize = 0xC9;
const MAX_SYSTEM_CHUNKS: usize = 2048;

const FLAG_SEEDING: u64 = 1 << 32;
const FLAG_METADUMP: u64 = 1 << 33;
const FLAG_METADUMP_V2: u64 = 1 << 34;

const METADATA_UUID: u64 = 1 << 10;
/// What is read. Simple quotas change only what the extent tree says, which nothing here asks.
const READ: u64 = 0x0FFF | SIMPLE_QUOTA;
const SIMPLE_QUOTA: u64 = 1 << 16;
/// Features that change where things are, by the kernel's names.
const NOT_READ: [(u64, &str); 4] = [
    (1 << 12, "zoned"),
    (1 << 13, "extent-tree-v2"),
    (1 << 14, "raid-stripe-tree"),
    (1 << 17, "remap-tree"),
];

/// Which member of a file system a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    /// Its number.
    pub number: u64,
    /// Its own UUID. A device that replaced another one has the other's number and UUID.
    pub uuid: [u8; 16],
}

impl DeviceId {
    /// From a device item (`struct btrfs_dev_item`).
    pub fn parse(item: &[u8]) -> DeviceId {
        DeviceId {
            number: le64(item, 0),
            uuid: uuid(item, 66),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {} (", self.number)?;
        for (index, byte) in self.uuid.iter().enumerate() {
            let dash = if [4, 6, 8, 10].contains(&index) {
                "-"
            } else {
                ""
            };
            write!(f, "{dash}{byte:02x}")?;
        }
        write!(f, ")")
    }
}

/// Where a tree starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The logical address of its root block.
    pub block: u64,
    /// The generation of that block.
    pub generation: u64,
    /// Its level.
    pub level: u8,
}

/// A superblock whose checksum holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The file system.
    pub fsid: [u8; 16],
    /// The device this superblock is on.
    pub device: DeviceId,
    /// The last commit.
    pub generation: u64,
    /// How many devices the file system has.
    pub num_devices: u64,
    /// The tree of trees.
    pub root: Root,
    /// The tree of chunks.
    pub chunk_root: Root,
    /// The tree of what was synced after the last commit; 0 when there is none.
    pub log_root: u64,
    /// Bytes of a sector, which has a checksum of its own.
    pub sector_bytes: u32,
    /// Bytes of a tree block.
    pub node_bytes: u32,
    /// The kind of checksums.
    pub sums: Checksum,
    /// Chunks that hold the chunk tree: keys and items, one after the other.
    pub system_chunks: Vec<u8>,
    /// What tree blocks carry in place of `fsid`.
    pub node_uuid: [u8; 16],
    total_bytes: u64,
    used_bytes: u64,
    device_bytes: u64,
    flags: u64,
    incompat: u64,
}

pub(super) fn uuid(bytes: &[u8], at: usize) -> [u8; 16] {
    let field = bytes.get(at..at + 16).and_then(|uuid| uuid.try_into().ok());
    field.unwrap_or_default()
}

impl Superblock {
    /// The superblock of a volume: the first copy, or when that one is damaged the best of the others.
    ///
    /// # Errors
    /// `Corrupt` when no copy is sound, or what kept the first one from being read.
    pub fn read(volume: &dyn ReadAt) -> Result<Superblock> {
        let first = read_copy(volume, OFFSETS[0]);
        let error = match first.and_then(|block| Superblock::parse(&block, OFFSETS[0])) {
            Err(error) if error.kind() == ErrorKind::Corrupt => error,
            sound_or_unread => return sound_or_unread,
        };
        // What an older file system left there must not come back: the damaged copy still says, unless all
        // of it is gone, which file system this is.
        let damaged = read_copy(volume, OFFSETS[0]).unwrap_or_default();
        let mut best: Option<Superblock> = None;
        for offset in OFFSETS.into_iter().skip(1) {
            let found = read_copy(volume, offset).and_then(|b| Superblock::parse(&b, offset));
            let found = match found {
                Ok(found) => found,
                // It may be the newest.
                Err(error) if error.is_fetch_failure() => return Err(error),
                Err(_) => continue,
            };
            let is_same = has(&damaged, 0x20, &found.fsid)
                || has(&damaged, DEVICE_ITEM + 66, &found.device.uuid);
            let is_newer = best
                .as_ref()
                .is_none_or(|b| b.generation < found.generation);
            if is_same && is_newer && offset + BYTES as u64 <= found.device_bytes {
                best = Some(found);
            }
        }
        let best = best.ok_or(error)?;
        tracing::warn!("btrfs: the first superblock is damaged; a copy of it is used");
        Ok(best)
    }

    /// Parses the copy that was read at `offset`.
    ///
    /// # Errors
    /// `Corrupt` when it is not sound. Whether the file system can be read is for
    /// [`Superblock::check_features`] to say.
    fn parse(block: &[u8], offset: u64) -> Result<Superblock> {
        if !has(block, 0x40, MAGIC) || block.len() != BYTES {
            return Err(bad("there is no superblock"));
        }
        let sums = Checksum::from_number(le16(block, 0xC4))?;
        let (sum, summed) = block.split_at_checked(SUM_BYTES).unwrap_or_default();
        if !sums.verify(summed, sum) {
            return Err(bad("the superblock has a wrong checksum"));
        }
        if le64(block, 0x30) != offset {
            return Err(bad("a superblock is not where it says it is"));
        }
        let incompat = le64(block, 0xBC);
        let generation = le64(block, 0x48);
        let system_bytes = le32(block, 0xA0) as usize;
        let found = Superblock {
            fsid: uuid(block, 0x20),
            device: DeviceId::parse(block.get(DEVICE_ITEM..).unwrap_or_default()),
            generation,
            num_devices: le64(block, 0x88),
            root: Root {
                block: le64(block, 0x50),
                generation,
                level: byte(block, 0xC6),
            },
            chunk_root: Root {
                block: le64(block, 0x58),
                generation: le64(block, 0xA4),
                level: byte(block, 0xC7),
            },
            log_root: le64(block, 0x60),
            sector_bytes: le32(block, 0x90),
            node_bytes: le32(block, 0x94),
            sums,
            system_chunks: block
                .get(0x32B..0x32B + system_bytes)
                .filter(|chunks| chunks.len() <= MAX_SYSTEM_CHUNKS)
                .ok_or_else(|| bad("the superblock has too many chunks"))?
                .to_vec(),
            node_uuid: match incompat & METADATA_UUID {
                0 => uuid(block, 0x20),
                _ => uuid(block, 0x23B),
            },
            total_bytes: le64(block, 0x70),
            used_bytes: le64(block, 0x78),
            device_bytes: le64(block, DEVICE_ITEM + 8),
            flags: le64(block, 0x38),
            incompat,
        };
        let sizes = 4096..=65_536;
        let is_size = |bytes: u32| bytes.is_power_of_two() && sizes.contains(&bytes);
        if !is_size(found.sector_bytes)
            || !is_size(found.node_bytes)
            || found.node_bytes < found.sector_bytes
            || found.root.level >= MAX_LEVELS
            || found.chunk_root.level >= MAX_LEVELS
            || found.num_devices == 0
        {
            return Err(bad("the superblock does not make sense"));
        }
        Ok(found)
    }

    /// Refuses by name what is not read.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn check_features(&self) -> Result<()> {
        let unknown = self.incompat & !READ;
        if unknown != 0 {
            let mut names: Vec<String> = NOT_READ
                .iter()
                .filter(|(bit, _)| unknown & bit != 0)
                .map(|(_, name)| (*name).to_string())
                .collect();
            let rest = NOT_READ.iter().fold(unknown, |rest, (bit, _)| rest & !bit);
            if rest != 0 {
                names.push(format!("unknown features {rest:#x}"));
            }
            return Err(unsupported(format_args!(
                "{} is not read",
                names.join(", ")
            )));
        }
        if self.flags & (FLAG_METADUMP | FLAG_METADUMP_V2) != 0 {
            return Err(unsupported("this is a dump of metadata, without contents"));
        }
        Ok(())
    }

    /// Whether it can no longer be written to, because other file systems grew from it.
    pub fn is_seed(&self) -> bool {
        self.flags & FLAG_SEEDING != 0
    }

    /// Whether another superblock of the same generation was written with this one: all but what is about
    /// the device, and the log, is the same then. Two histories that have the same file system as their
    /// origin differ.
    pub fn is_same_state(&self, other: &Superblock) -> bool {
        let state = |block: &Superblock| Superblock {
            device: self.device,
            device_bytes: 0,
            log_root: 0,
            ..block.clone()
        };
        state(self) == state(other)
    }
}

/// One copy as it is stored.
fn read_copy(volume: &dyn ReadAt, offset: u64) -> Result<Vec<u8>> {
    if offset + BYTES as u64 > volume.len_bytes() {
        return Err(bad("there is no superblock"));
    }
    let mut block = vec![0; BYTES];
    volume.read_exact_at(&mut block, offset)?;
    Ok(block)
}
