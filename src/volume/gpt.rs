//! GUID partition tables, with sectors of 512 and of 4096 bytes.
//!
//! A header lies in sector 1 and a copy in the last sector; each has a CRC-32 of itself and of its
//! array of entries (UEFI specification 2.10, sections 5.3.2 and 5.3.3). A table counts only when
//! both checksums hold.

use super::bits::{crc32, guid, has, le16, le32, le64};
use super::partition::{Partition, PartitionType, clip};
use super::problem::Problem;
use crate::error::Result;
use crate::io::ReadAt;

/// Sector sizes that occur.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// The array of entries may not be longer than this (the usual one has 16 KiB).
const MAX_ARRAY_BYTES: u64 = 1 << 20;

struct Header {
    backup_lba: u64,
    array_lba: u64,
    entries: u32,
    entry_bytes: u32,
    array_crc: u32,
}

/// The partitions of a GPT.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Partitions by rising number.
    pub partitions: Vec<Partition>,
    /// Whether only the copy at the end of the disk is sound.
    pub is_backup: bool,
}

/// The partitions of a GPT, `None` when there is no sound table at either place.
///
/// # Errors
/// Only when the disk cannot be read.
pub fn read(disk: &dyn ReadAt, problems: &mut Vec<Problem>) -> Result<Option<Found>> {
    let mut alternates = Vec::new();
    for sector_bytes in SECTOR_SIZES {
        if let Some(header) = read_header(disk, sector_bytes, 1)? {
            if let Some(array) = read_array(disk, sector_bytes, &header)? {
                return Ok(Some(Found {
                    partitions: parse(disk, sector_bytes, &header, &array, problems),
                    is_backup: false,
                }));
            }
            alternates.push((sector_bytes, header.backup_lba));
        }
    }
    for sector_bytes in SECTOR_SIZES {
        let sectors = disk.len_bytes() / sector_bytes;
        if sectors > 2 {
            alternates.push((sector_bytes, sectors - 1));
        }
    }
    for (sector_bytes, lba) in alternates {
        let Some(header) = read_header(disk, sector_bytes, lba)? else {
            continue;
        };
        if let Some(array) = read_array(disk, sector_bytes, &header)? {
            problems.push(Problem::new(
                "partition table",
                "the first GPT is damaged or missing; the backup at the end of the disk is used",
            ));
            return Ok(Some(Found {
                partitions: parse(disk, sector_bytes, &header, &array, problems),
                is_backup: true,
            }));
        }
    }
    Ok(None)
}

fn read_header(disk: &dyn ReadAt, sector_bytes: u64, lba: u64) -> Result<Option<Header>> {
    let Some(at) = lba.checked_mul(sector_bytes) else {
        return Ok(None);
    };
    if at
        .checked_add(sector_bytes)
        .is_none_or(|end| end > disk.len_bytes())
    {
        return Ok(None);
    }
    let mut sector = vec![0; sector_bytes as usize];
    disk.read_exact_at(&mut sector, at)?;
    Ok(parse_header(&mut sector, lba))
}

/// Parses the sector at `lba`; its checksum field is cleared on the way.
fn parse_header(sector: &mut [u8], lba: u64) -> Option<Header> {
    let header_bytes = le32(sector, 12) as usize;
    if !has(sector, 0, b"EFI PART") || header_bytes < 92 || header_bytes > sector.len() {
        return None;
    }
    let recorded_crc = le32(sector, 16);
    sector[16..20].fill(0);
    if crc32(&sector[..header_bytes]) != recorded_crc || le64(sector, 24) != lba {
        return None;
    }
    Some(Header {
        backup_lba: le64(sector, 32),
        array_lba: le64(sector, 72),
        entries: le32(sector, 80),
        entry_bytes: le32(sector, 84),
        array_crc: le32(sector, 88),
    })
}

fn read_array(disk: &dyn ReadAt, sector_bytes: u64, header: &Header) -> Result<Option<Vec<u8>>> {
    let len = u64::from(header.entries) * u64::from(header.entry_bytes);
    let at = header.array_lba.checked_mul(sector_bytes);
    let end = at.and_then(|at| at.checked_add(len));
    let (Some(at), Some(end)) = (at, end) else {
        return Ok(None);
    };
    if header.entry_bytes < 128 || len > MAX_ARRAY_BYTES || end > disk.len_bytes() {
        return Ok(None);
    }
    let mut array = vec![0; len as usize];
    disk.read_exact_at(&mut array, at)?;
    Ok((crc32(&array) == header.array_crc).then_some(array))
}

fn parse(
    disk: &dyn ReadAt,
    sector_bytes: u64,
    header: &Header,
    array: &[u8],
    problems: &mut Vec<Problem>,
) -> Vec<Partition> {
    let mut found = Vec::new();
    for (entry, number) in array.chunks_exact(header.entry_bytes as usize).zip(1u32..) {
        if entry[..16].iter().all(|&byte| byte == 0) {
            continue;
        }
        let (first_lba, last_lba) = (le64(entry, 32), le64(entry, 40));
        let range = last_lba
            .checked_sub(first_lba)
            .and_then(|n| n.checked_add(1))
            .and_then(|n| n.checked_mul(sector_bytes))
            .zip(first_lba.checked_mul(sector_bytes));
        let Some((len_bytes, start_bytes)) = range else {
            problems.push(Problem::new(
                format!("partition {number}"),
                "its range makes no sense; it is left out",
            ));
            continue;
        };
        let clipped = clip(disk, number, start_bytes, len_bytes, problems);
        let Some((len_bytes, problem)) = clipped else {
            continue;
        };
        let name = parse_name(&entry[56..128]);
        found.push(Partition {
            number,
            start_bytes,
            len_bytes,
            problems: problem.into_iter().collect(),
            kind: PartitionType::Gpt(guid(entry, 0)),
            name: (!name.is_empty()).then_some(name),
            guid: Some(guid(entry, 16)),
        });
    }
    found
}

fn parse_name(utf16: &[u8]) -> String {
    let units = utf16
        .chunks_exact(2)
        .map(|pair| le16(pair, 0))
        .take_while(|&unit| unit != 0);
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk with a GPT of `partitions` (first, last), headers at both ends.
    pub(crate) fn make(sector: usize, sectors: usize, partitions: &[(u64, u64)]) -> Vec<u8> {
        let mut disk = vec![0; sector * sectors];
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        disk[446 + 4] = 0xEE;
        disk[446 + 8] = 1;
        disk[446 + 12..446 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut array = vec![0; 128 * 128];
        for (entry, (first, last)) in array.chunks_mut(128).zip(partitions) {
            entry[..16].copy_from_slice(&[
                0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47,
                0x7D, 0xE4,
            ]);
            entry[16] = 7;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            entry[56] = b'r';
            entry[58] = 0xE9;
        }
        let array_sectors = array.len() / sector;
        let last = sectors - 1;
        for (lba, other, array_lba) in [(1, last, 2), (last, 1, last - array_sectors)] {
            let mut head = vec![0; 92];
            head[..8].copy_from_slice(b"EFI PART");
            head[8..12].copy_from_slice(&0x10000u32.to_le_bytes());
            head[12..16].copy_from_slice(&92u32.to_le_bytes());
            head[24..32].copy_from_slice(&(lba as u64).to_le_bytes());
            head[32..40].copy_from_slice(&(other as u64).to_le_bytes());
            head[72..80].copy_from_slice(&(array_lba as u64).to_le_bytes());
            head[80..84].copy_from_slice(&128u32.to_le_bytes());
            head[84..88].copy_from_slice(&128u32.to_le_bytes());
            head[88..92].copy_from_slice(&crc32(&array).to_le_bytes());
            let crc = crc32(&head);
            head[16..20].copy_from_slice(&crc.to_le_bytes());
            disk[lba * sector..lba * sector + 92].copy_from_slice(&head);
            disk[array_lba * sector..array_lba * sector + array.len()].copy_from_slice(&array);
        }
        disk
    }

    #[test]
    fn both_sector_sizes_are_read() {
        for sector in [512, 4096] {
            let disk = make(sector, 2048, &[(64, 127), (128, 200)]);
            let mut problems = Vec::new();
            let found = read(&disk, &mut problems).unwrap().unwrap().partitions;
            assert_eq!(found.len(), 2);
            assert_eq!(found[0].start_bytes, 64 * sector as u64);
            assert_eq!(found[1].len_bytes, 73 * sector as u64);
            assert_eq!(found[0].type_name(), "linux");
            assert_eq!(found[0].name.as_deref(), Some("ré"));
            assert!(problems.is_empty());
        }
    }

    #[test]
    fn the_backup_is_used_and_said_when_the_first_header_or_array_is_damaged() {
        for damaged in [512 + 30, 1024 + 40] {
            let mut disk = make(512, 2048, &[(64, 127)]);
            disk[damaged] ^= 1;
            let mut problems = Vec::new();
            let found = read(&disk, &mut problems).unwrap().unwrap().partitions;
            assert_eq!(found.len(), 1);
            assert_eq!(problems.len(), 1);
        }
    }

    #[test]
    fn two_damaged_copies_are_no_table() {
        let mut disk = make(512, 2048, &[(64, 127)]);
        disk[512 + 30] ^= 1;
        let last = disk.len() - 512;
        disk[last + 30] ^= 1;
        assert!(read(&disk, &mut Vec::new()).unwrap().is_none());
    }

    #[test]
    fn ranges_that_make_no_sense_are_left_out() {
        let disk = make(
            512,
            2048,
            &[(100, 50), (0, u64::MAX), (u64::MAX / 2, u64::MAX), (64, 99)],
        );
        let mut problems = Vec::new();
        let found = read(&disk, &mut problems).unwrap().unwrap().partitions;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].number, 4);
        assert_eq!(problems.len(), 3);
    }
}
