//! The two structures of every VHD, as bytes ↔ fields: footer (512 bytes) and header (1024 bytes).
//!
//! Pure: no I/O, no chain. Field names and offsets follow Microsoft's "Virtual Hard Disk Image
//! Format Specification", version 1.0 (2006); integers are big-endian.

pub(in crate::image) mod facts;
pub(in crate::image) mod parent_locator;

use crate::error::{Error, Result};
use crate::image::uuid::Uuid;

pub use super::bitmap::SECTOR_BYTES;
/// Bytes of a footer.
pub const FOOTER_BYTES: usize = 512;
/// Bytes of a dynamic disk header.
pub const HEADER_BYTES: usize = 1024;
/// Largest disk that is believed: 128 TiB, twice what XO can hold.
pub const MAX_DISK_BYTES: u64 = 128 << 40;
/// Largest block that is believed. The specification's default, and XO's only size, is 2 MiB.
pub const MAX_BLOCK_BYTES: u32 = 256 << 20;
/// Most blocks that are believed: 128 TiB at the usual 2 MiB. Bounds tables, and scans of them.
pub const MAX_BLOCKS: u64 = 1 << 26;
/// A BAT entry of a block that is not in the file.
pub const BAT_UNUSED: u32 = 0xFFFF_FFFF;

/// Footer field "Disk Type".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskType {
    /// 2: data from the first byte, no table.
    Fixed,
    /// 3: a table; absent blocks are zeros.
    Dynamic,
    /// 4: a table; absent blocks are the parent's.
    Differencing,
}

impl DiskType {
    /// The word used in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        }
    }
}

/// A hard disk footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Offset of the header in a VHD file; all ones for fixed disks.
    pub data_offset: u64,
    /// "Creator Application", four bytes of ASCII such as `tap\0`, `win `, `vpc `.
    pub creator_application: [u8; 4],
    /// Virtual size in bytes. The geometry is ignored, as by XO: it cannot express large disks.
    pub current_size: u64,
    /// Fixed, dynamic or differencing.
    pub disk_type: DiskType,
    /// Identifier that children name as their parent.
    pub uuid: Uuid,
}

/// A dynamic disk header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Offset of the block allocation table in a VHD file.
    pub table_offset: u64,
    /// Entries of the table.
    pub max_table_entries: u32,
    /// Bytes of a block's data: a power of two, 512 at least.
    pub block_size: u32,
    /// Footer uuid of the parent (differencing disks).
    pub parent_uuid: Uuid,
    /// "Parent Unicode Name"; XO keeps the parent's path relative to the child's directory here.
    pub parent_unicode_name: String,
    /// "Parent Locator Entry" 1 to 8: those in use.
    pub parent_locators: Vec<ParentLocator>,
}

/// One of the header's parent locator entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLocator {
    /// Which of the eight, from 0.
    pub index: usize,
    /// "Platform Code": `W2ru`, `W2ku`, `MacX`, …
    pub platform_code: [u8; 4],
    /// "Platform Data Length": bytes of the locator.
    pub len_bytes: u32,
    /// "Platform Data Offset": where it is in a VHD file.
    pub offset: u64,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}

/// One's complement of the sum of all bytes, the checksum field itself left out.
fn checksum(bytes: &[u8], field_at: usize) -> u32 {
    let sum = |part: &[u8]| {
        part.iter()
            .fold(0u32, |sum, &b| sum.wrapping_add(u32::from(b)))
    };
    !sum(&bytes[..field_at]).wrapping_add(sum(&bytes[field_at + 4..]))
}

impl Footer {
    /// Parses a footer.
    ///
    /// # Errors
    /// `Corrupt` for a wrong length, cookie, checksum or version, an unknown disk type, or a size
    /// beyond [`MAX_DISK_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Footer> {
        if bytes.len() != FOOTER_BYTES {
            return Err(Error::corrupt(format!(
                "a footer has {FOOTER_BYTES} bytes, not {}",
                bytes.len()
            )));
        }
        if &bytes[0..8] != b"conectix" {
            return Err(Error::corrupt("no VHD footer here (cookie is missing)"));
        }
        if checksum(bytes, 64) != be32(bytes, 64) {
            return Err(Error::corrupt("footer checksum does not match"));
        }
        // "File Format Version": the major part must be known, minor changes are compatible.
        if be32(bytes, 12) >> 16 != 1 {
            return Err(Error::corrupt(format!(
                "VHD version {:#x} is not known",
                be32(bytes, 12)
            )));
        }
        let disk_type = match be32(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(Error::corrupt(format!("disk type {other} is not known"))),
        };
        let current_size = be64(bytes, 48);
        if current_size > MAX_DISK_BYTES {
            return Err(Error::corrupt(format!(
                "a disk of {current_size} bytes is not possible"
            )));
        }
        Ok(Footer {
            data_offset: be64(bytes, 16),
            creator_application: bytes[28..32].try_into().expect("four bytes"),
            current_size,
            disk_type,
            uuid: uuid_at(bytes, 68),
        })
    }

    /// The creator as printable text.
    pub fn creator(&self) -> String {
        self.creator_application
            .iter()
            .map(|&b| {
                if (0x20..0x7F).contains(&b) {
                    b as char
                } else {
                    ' '
                }
            })
            .collect::<String>()
            .trim_end()
            .to_owned()
    }
}

impl Header {
    /// Parses a header.
    ///
    /// # Errors
    /// `Corrupt` for a wrong length, cookie or checksum, or a block size that is not a power of two
    /// from 512 to [`MAX_BLOCK_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Header> {
        if bytes.len() != HEADER_BYTES {
            return Err(Error::corrupt(format!(
                "a header has {HEADER_BYTES} bytes, not {}",
                bytes.len()
            )));
        }
        if &bytes[0..8] != b"cxsparse" {
            return Err(Error::corrupt("no VHD header here (cookie is missing)"));
        }
        if checksum(bytes, 36) != be32(bytes, 36) {
            return Err(Error::corrupt("header checksum does not match"));
        }
        let block_size = be32(bytes, 32);
        if !block_size.is_power_of_two() || !(512..=MAX_BLOCK_BYTES).contains(&block_size) {
            return Err(Error::corrupt(format!(
                "a block size of {block_size} bytes is not possible"
            )));
        }
        let name: Vec<u16> = bytes[64..576]
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .take_while(|&unit| unit != 0)
            .collect();
        let locators = bytes[576..768].chunks_exact(24).enumerate();
        let parent_locators = locators
            .map(|(index, entry)| ParentLocator {
                index,
                platform_code: entry[0..4].try_into().expect("four bytes"),
                len_bytes: be32(entry, 8),
                offset: be64(entry, 16),
            })
            .filter(|locator| locator.platform_code != [0; 4])
            .collect();
        Ok(Header {
            table_offset: be64(bytes, 16),
            max_table_entries: be32(bytes, 28),
            block_size,
            parent_uuid: uuid_at(bytes, 40),
            parent_unicode_name: String::from_utf16_lossy(&name),
            parent_locators,
        })
    }

    /// Bytes of a block's sector bitmap: one bit a sector, padded to whole sectors.
    pub fn bitmap_bytes(&self) -> u32 {
        (self.block_size / 512).div_ceil(8).next_multiple_of(512)
    }
}

/// Blocks that a disk of `size` bytes has.
///
/// # Errors
/// `Corrupt` beyond [`MAX_BLOCKS`].
pub fn blocks_of(size: u64, block_size: u32) -> Result<u64> {
    let blocks = size.div_ceil(u64::from(block_size));
    if blocks > MAX_BLOCKS {
        return Err(Error::corrupt(format!(
            "a table of {blocks} blocks is not possible"
        )));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Vec<u8> {
        let mut b = vec![0; FOOTER_BYTES];
        b[0..8].copy_from_slice(b"conectix");
        b[12..16].copy_from_slice(&0x0001_0000u32.to_be_bytes());
        b[16..24].copy_from_slice(&512u64.to_be_bytes());
        b[28..32].copy_from_slice(b"tap\0");
        b[48..56].copy_from_slice(&(3u64 << 40).to_be_bytes());
        b[60..64].copy_from_slice(&4u32.to_be_bytes());
        b[68..84].copy_from_slice(&[0xAB; 16]);
        seal(&mut b, 64);
        b
    }

    fn header() -> Vec<u8> {
        let mut b = vec![0; HEADER_BYTES];
        b[0..8].copy_from_slice(b"cxsparse");
        b[16..24].copy_from_slice(&1536u64.to_be_bytes());
        b[28..32].copy_from_slice(&77u32.to_be_bytes());
        b[32..36].copy_from_slice(&(2u32 << 20).to_be_bytes());
        for (i, unit) in "é/p.vhd".encode_utf16().enumerate() {
            b[64 + 2 * i..66 + 2 * i].copy_from_slice(&unit.to_be_bytes());
        }
        b[600..604].copy_from_slice(b"W2ru");
        b[608..612].copy_from_slice(&44u32.to_be_bytes());
        b[616..624].copy_from_slice(&4096u64.to_be_bytes());
        seal(&mut b, 36);
        b
    }

    fn seal(b: &mut [u8], at: usize) {
        let sum = checksum(b, at);
        b[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }

    #[test]
    fn footer_fields_are_where_the_specification_says() {
        let f = Footer::parse(&footer()).unwrap();
        assert_eq!(f.current_size, 3 << 40);
        assert_eq!(f.disk_type, DiskType::Differencing);
        assert_eq!(f.data_offset, 512);
        assert_eq!(f.creator(), "tap");
        assert_eq!(f.uuid.to_string(), "abababab-abab-abab-abab-abababababab");
        assert_eq!(Uuid::parse(&f.uuid.to_string()), Some(f.uuid));
    }

    #[test]
    fn every_flipped_bit_of_footer_and_header_is_noticed() {
        // Bytes summed by the checksum cannot change alone without changing the sum.
        for (bytes, is_footer) in [(footer(), true), (header(), false)] {
            for bit in 0..bytes.len() * 8 {
                let mut b = bytes.clone();
                b[bit / 8] ^= 1 << (bit % 8);
                let failed = if is_footer {
                    Footer::parse(&b).is_err()
                } else {
                    Header::parse(&b).is_err()
                };
                assert!(failed, "bit {bit}");
            }
        }
    }

    #[test]
    fn header_name_is_utf16_and_block_sizes_are_bounded() {
        let h = Header::parse(&header()).unwrap();
        assert_eq!(h.parent_unicode_name, "é/p.vhd");
        assert_eq!(h.bitmap_bytes(), 512);
        let locator = ParentLocator {
            index: 1,
            platform_code: *b"W2ru",
            len_bytes: 44,
            offset: 4096,
        };
        assert_eq!(h.parent_locators, [locator]);
        for bad in [0u32, 256, 513, 3 << 20, 1 << 31] {
            let mut b = header();
            b[32..36].copy_from_slice(&bad.to_be_bytes());
            seal(&mut b, 36);
            assert!(Header::parse(&b).is_err(), "{bad}");
        }
    }
}
