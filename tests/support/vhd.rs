//! The bytes of a VHD's footer (512) and dynamic disk header (1024), every field settable.
//!
//! Field names are those of Microsoft's "Virtual Hard Disk Image Format Specification" (2006); all
//! integers are big-endian. The defaults are what XO writes.

use super::dates::{SERIES_START_S, VHD_EPOCH_S};
use super::rng::Uuid;
use super::sparse::SECTOR_BYTES;

pub const FOOTER_BYTES: usize = 512;
pub const HEADER_BYTES: usize = 1024;
/// Where XO puts the block allocation table of a VHD file: right after footer copy and header.
pub const USUAL_TABLE_OFFSET: u64 = (FOOTER_BYTES + HEADER_BYTES) as u64;
/// A BAT entry that says "this block is absent".
pub const BAT_UNUSED: u32 = 0xffff_ffff;
/// Block size that everybody uses: 2 MiB.
pub const USUAL_BLOCK_BYTES: u32 = 2 << 20;

/// Values of the footer's disk type field.
pub mod disk_type {
    pub const FIXED: u32 = 2;
    pub const DYNAMIC: u32 = 3;
    pub const DIFFERENCING: u32 = 4;
}

/// What goes into a checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Right,
    /// The right one with a bit changed.
    Wrong,
    Given(u32),
}

/// One's complement of the sum of all bytes outside the checksum field itself.
pub fn checksum_of(bytes: &[u8], field_at: usize) -> u32 {
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(field_at..field_at + 4).contains(at))
        .fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}

fn put_checksum(bytes: &mut [u8], field_at: usize, checksum: Checksum) {
    let value = match checksum {
        Checksum::Right => checksum_of(bytes, field_at),
        Checksum::Wrong => checksum_of(bytes, field_at) ^ 1,
        Checksum::Given(value) => value,
    };
    bytes[field_at..field_at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Cylinders, heads and sectors per track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The specification's appendix "CHS calculation": never larger than the disk.
    pub fn of_specification(size_bytes: u64) -> Self {
        Self::calculate(size_bytes, false)
    }

    /// XO computes the same but rounds the number of cylinders up.
    pub fn of_xo(size_bytes: u64) -> Self {
        Self::calculate(size_bytes, true)
    }

    fn calculate(size_bytes: u64, round_up: bool) -> Self {
        let total = (size_bytes / SECTOR_BYTES).min(65_535 * 16 * 255);
        let per_cylinder_head = |per_track: u64| total / per_track;
        let (mut per_track, mut heads);
        if total >= 65_535 * 16 * 63 {
            (per_track, heads) = (255, 16);
        } else {
            per_track = 17;
            heads = per_cylinder_head(per_track).div_ceil(1024).max(4);
            if heads > 16 || per_cylinder_head(per_track) >= heads * 1024 {
                (per_track, heads) = (31, 16);
            }
            if per_cylinder_head(per_track) >= heads * 1024 {
                (per_track, heads) = (63, 16);
            }
        }
        let cylinder_sectors = per_track * heads;
        let cylinders = if round_up {
            total.div_ceil(cylinder_sectors)
        } else {
            total / cylinder_sectors
        };
        Self {
            cylinders: cylinders.min(65_535) as u16,
            heads: heads as u8,
            sectors_per_track: per_track as u8,
        }
    }

    /// Size of the disk that this geometry describes.
    pub fn size_bytes(self) -> u64 {
        u64::from(self.cylinders)
            * u64::from(self.heads)
            * u64::from(self.sectors_per_track)
            * SECTOR_BYTES
    }
}

/// Who claims to have written a VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creator {
    pub application: [u8; 4],
    pub version: u32,
    pub host_os: [u8; 4],
}

impl Creator {
    pub const XO: Self = Self::new(b"xo  ", 0, b"Wi2k");
    pub const TAPDISK: Self = Self::new(b"tap\0", 0x0001_0003, b"\0\0\0\0");
    pub const HYPER_V: Self = Self::new(b"win ", 0x000a_0000, b"Wi2k");
    pub const VIRTUAL_PC: Self = Self::new(b"vpc ", 0x0005_0003, b"Wi2k");
    pub const MAC: Self = Self::new(b"vpc ", 0x0003_0000, b"Mac ");
    pub const QEMU: Self = Self::new(b"qemu", 0x0005_0003, b"Wi2k");
    pub const QEMU_EXACT_SIZE: Self = Self::new(b"qem2", 0x0005_0003, b"Wi2k");
    /// All the foreign ones, to loop over.
    pub const FOREIGN: [Self; 6] = [
        Self::TAPDISK,
        Self::HYPER_V,
        Self::VIRTUAL_PC,
        Self::MAC,
        Self::QEMU,
        Self::QEMU_EXACT_SIZE,
    ];

    const fn new(application: &[u8; 4], version: u32, host_os: &[u8; 4]) -> Self {
        Self {
            application: *application,
            version,
            host_os: *host_os,
        }
    }
}

/// The hard disk footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    pub cookie: [u8; 8],
    pub features: u32,
    pub file_format_version: u32,
    /// Offset of the dynamic header; all ones for a fixed disk.
    pub data_offset: u64,
    /// Seconds since 2000-01-01 UTC.
    pub timestamp: u32,
    pub creator: Creator,
    pub original_size: u64,
    pub current_size: u64,
    pub geometry: Geometry,
    pub disk_type: u32,
    pub checksum: Checksum,
    pub unique_id: Uuid,
    pub saved_state: u8,
    /// XenServer's flag at offset 85: this VHD only serves as a parent.
    pub hidden: u8,
}

impl Footer {
    pub fn new(disk_type: u32, size_bytes: u64, unique_id: Uuid) -> Self {
        Self {
            cookie: *b"conectix",
            features: 2,
            file_format_version: 0x0001_0000,
            data_offset: if disk_type == disk_type::FIXED {
                u64::MAX
            } else {
                FOOTER_BYTES as u64
            },
            timestamp: (SERIES_START_S - VHD_EPOCH_S) as u32,
            creator: Creator::XO,
            original_size: size_bytes,
            current_size: size_bytes,
            geometry: Geometry::of_xo(size_bytes),
            disk_type,
            checksum: Checksum::Right,
            unique_id,
            saved_state: 0,
            hidden: 0,
        }
    }

    pub fn to_bytes(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        put(&mut bytes, 0, &self.cookie);
        put(&mut bytes, 8, &self.features.to_be_bytes());
        put(&mut bytes, 12, &self.file_format_version.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        put(&mut bytes, 24, &self.timestamp.to_be_bytes());
        put(&mut bytes, 28, &self.creator.application);
        put(&mut bytes, 32, &self.creator.version.to_be_bytes());
        put(&mut bytes, 36, &self.creator.host_os);
        put(&mut bytes, 40, &self.original_size.to_be_bytes());
        put(&mut bytes, 48, &self.current_size.to_be_bytes());
        put(&mut bytes, 56, &self.geometry.cylinders.to_be_bytes());
        bytes[58] = self.geometry.heads;
        bytes[59] = self.geometry.sectors_per_track;
        put(&mut bytes, 60, &self.disk_type.to_be_bytes());
        put(&mut bytes, 68, &self.unique_id);
        bytes[84] = self.saved_state;
        bytes[85] = self.hidden;
        put_checksum(&mut bytes, 64, self.checksum);
        bytes
    }

    /// Reads the fields back, without judging them; the checksum becomes `Right` if it is.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let stored = u32_at(bytes, 64);
        Self {
            cookie: bytes[0..8].try_into().unwrap(),
            features: u32_at(bytes, 8),
            file_format_version: u32_at(bytes, 12),
            data_offset: u64_at(bytes, 16),
            timestamp: u32_at(bytes, 24),
            creator: Creator {
                application: bytes[28..32].try_into().unwrap(),
                version: u32_at(bytes, 32),
                host_os: bytes[36..40].try_into().unwrap(),
            },
            original_size: u64_at(bytes, 40),
            current_size: u64_at(bytes, 48),
            geometry: Geometry {
                cylinders: u16::from_be_bytes([bytes[56], bytes[57]]),
                heads: bytes[58],
                sectors_per_track: bytes[59],
            },
            disk_type: u32_at(bytes, 60),
            checksum: if stored == checksum_of(&bytes[..FOOTER_BYTES], 64) {
                Checksum::Right
            } else {
                Checksum::Given(stored)
            },
            unique_id: bytes[68..84].try_into().unwrap(),
            saved_state: bytes[84],
            hidden: bytes[85],
        }
    }
}

/// One of the header's eight parent locator entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParentLocator {
    /// `W2ku`, `W2ru`, `MacX`, … or zeros for "none".
    pub platform_code: [u8; 4],
    /// Room reserved for the locator; writers disagree on whether it counts sectors or bytes.
    pub platform_data_space: u32,
    pub platform_data_length: u32,
    pub reserved: u32,
    pub platform_data_offset: u64,
}

/// The dynamic disk header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub cookie: [u8; 8],
    pub data_offset: u64,
    pub table_offset: u64,
    pub header_version: u32,
    pub max_table_entries: u32,
    pub block_size: u32,
    pub checksum: Checksum,
    pub parent_unique_id: Uuid,
    pub parent_timestamp: u32,
    pub reserved: u32,
    /// UTF-16 code units, at most 256.
    pub parent_unicode_name: Vec<u16>,
    pub parent_locators: [ParentLocator; 8],
}

impl Header {
    pub fn new(size_bytes: u64, block_size: u32) -> Self {
        Self {
            cookie: *b"cxsparse",
            data_offset: u64::MAX,
            table_offset: USUAL_TABLE_OFFSET,
            header_version: 0x0001_0000,
            max_table_entries: u32::try_from(size_bytes.div_ceil(u64::from(block_size)))
                .expect("too many blocks for the header's 32 bits"),
            block_size,
            checksum: Checksum::Right,
            parent_unique_id: [0; 16],
            parent_timestamp: 0,
            reserved: 0,
            parent_unicode_name: Vec::new(),
            parent_locators: [ParentLocator::default(); 8],
        }
    }

    pub fn with_parent(mut self, unique_id: Uuid, name: &str) -> Self {
        self.parent_unique_id = unique_id;
        self.parent_unicode_name = name.encode_utf16().collect();
        self
    }

    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &self.cookie);
        put(&mut bytes, 8, &self.data_offset.to_be_bytes());
        put(&mut bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut bytes, 24, &self.header_version.to_be_bytes());
        put(&mut bytes, 28, &self.max_table_entries.to_be_bytes());
        put(&mut bytes, 32, &self.block_size.to_be_bytes());
        put(&mut bytes, 40, &self.parent_unique_id);
        put(&mut bytes, 56, &self.parent_timestamp.to_be_bytes());
        put(&mut bytes, 60, &self.reserved.to_be_bytes());
        for (index, unit) in self.parent_unicode_name.iter().take(256).enumerate() {
            put(&mut bytes, 64 + 2 * index, &unit.to_be_bytes());
        }
        for (index, locator) in self.parent_locators.iter().enumerate() {
            let at = 576 + 24 * index;
            put(&mut bytes, at, &locator.platform_code);
            put(
                &mut bytes,
                at + 4,
                &locator.platform_data_space.to_be_bytes(),
            );
            put(
                &mut bytes,
                at + 8,
                &locator.platform_data_length.to_be_bytes(),
            );
            put(&mut bytes, at + 12, &locator.reserved.to_be_bytes());
            put(
                &mut bytes,
                at + 16,
                &locator.platform_data_offset.to_be_bytes(),
            );
        }
        put_checksum(&mut bytes, 36, self.checksum);
        bytes
    }

    /// Reads the fields back, without judging them; the checksum becomes `Right` if it is.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let stored = u32_at(bytes, 36);
        let locator = |index: usize| {
            let at = 576 + 24 * index;
            ParentLocator {
                platform_code: bytes[at..at + 4].try_into().unwrap(),
                platform_data_space: u32_at(bytes, at + 4),
                platform_data_length: u32_at(bytes, at + 8),
                reserved: u32_at(bytes, at + 12),
                platform_data_offset: u64_at(bytes, at + 16),
            }
        };
        Self {
            cookie: bytes[0..8].try_into().unwrap(),
            data_offset: u64_at(bytes, 8),
            table_offset: u64_at(bytes, 16),
            header_version: u32_at(bytes, 24),
            max_table_entries: u32_at(bytes, 28),
            block_size: u32_at(bytes, 32),
            checksum: if stored == checksum_of(&bytes[..HEADER_BYTES], 36) {
                Checksum::Right
            } else {
                Checksum::Given(stored)
            },
            parent_unique_id: bytes[40..56].try_into().unwrap(),
            parent_timestamp: u32_at(bytes, 56),
            reserved: u32_at(bytes, 60),
            parent_unicode_name: bytes[64..576]
                .chunks_exact(2)
                .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
                .take_while(|unit| *unit != 0)
                .collect(),
            parent_locators: std::array::from_fn(locator),
        }
    }
}
