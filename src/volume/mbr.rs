//! The PC partition table (MBR) with its chain of extended boot records.
//!
//! Layout: four 16-byte entries at byte 446, `55 AA` at 510; an entry has a boot indicator at 0, a
//! type at 4, the first sector at 8 and the number of sectors at 12, both little-endian 32 bits
//! (UEFI specification 2.10, section 5.2.1). Numbers of logical partitions follow Linux
//! (`block/partitions/msdos.c`): 5 and up, in the order of the chain.

use std::collections::HashSet;

use super::bits::{has, le32};
use super::partition::{Partition, PartitionType, clip};
use super::problem::Problem;
use crate::error::Result;
use crate::io::ReadAt;

/// Sectors of MBR tables. VHD disks always have 512-byte sectors.
pub const SECTOR_BYTES: u64 = 512;
/// The protective entry that says "see the GPT".
pub const TYPE_PROTECTIVE: u8 = 0xEE;
/// Linux stops at 256 partitions; so does this.
const MAX_PARTITIONS: u32 = 256;
/// Extended boot records followed at most, empty ones included.
const MAX_CHAIN: usize = 512;

/// One of the four entries of a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// 0x80 for the active partition, else 0.
    pub boot_indicator: u8,
    /// The type byte; 0 is an unused entry.
    pub kind: u8,
    /// First sector: absolute in the MBR, relative in extended boot records.
    pub start_sector: u32,
    /// Number of sectors.
    pub sectors: u32,
}

impl Entry {
    /// Whether the entry describes anything.
    pub fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    /// Whether the entry is a container of logical partitions.
    pub fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }
}

/// The four entries of a sector, `None` without the `55 AA` signature.
pub fn parse_sector(sector: &[u8]) -> Option<[Entry; 4]> {
    if !has(sector, 510, &[0x55, 0xAA]) {
        return None;
    }
    Some(std::array::from_fn(|index| {
        let at = 446 + 16 * index;
        Entry {
            boot_indicator: sector[at],
            kind: sector[at + 4],
            start_sector: le32(sector, at + 8),
            sectors: le32(sector, at + 12),
        }
    }))
}

/// How far four entries can be believed to be a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// All entries in use can be meant.
    Sound,
    /// Some can; others begin at sector 0 or past the end of the disk.
    Partly,
    /// There are entries, and none of them can be meant.
    None,
    /// Nothing is in use.
    Empty,
}

/// Tells a partition table from boot code that happens to end in `55 AA`: boot indicators are valid, and entries
/// in use begin on the disk.
pub fn believe(entries: &[Entry; 4], disk_len_bytes: u64) -> Belief {
    let used = || entries.iter().filter(|entry| entry.is_used());
    let on_disk = |entry: &&Entry| {
        entry.start_sector > 0 && u64::from(entry.start_sector) * SECTOR_BYTES < disk_len_bytes
    };
    let is_valid = entries.iter().all(|e| matches!(e.boot_indicator, 0 | 0x80));
    match (used().filter(on_disk).count(), used().count()) {
        (_, 0) => Belief::Empty,
        (0, _) => Belief::None,
        _ if !is_valid => Belief::None,
        (sound, all) if sound == all => Belief::Sound,
        _ => Belief::Partly,
    }
}

/// Partitions of the table whose primary entries are given, logical ones included; extended
/// containers themselves are left out. Reads one sector per logical partition.
///
/// # Errors
/// Only when the disk cannot be read; a damaged chain ends with a problem.
pub fn read(
    disk: &dyn ReadAt,
    entries: &[Entry; 4],
    problems: &mut Vec<Problem>,
) -> Result<Vec<Partition>> {
    let mut found = Vec::new();
    let mut next_logical = 5;
    for (entry, number) in entries.iter().zip(1..) {
        if !entry.is_used() {
            continue;
        }
        if entry.is_extended() && entry.start_sector == 0 {
            problems.push(Problem::new(
                format!("partition {number}"),
                "it says that it has logical partitions, and begins at the table itself; it is left out",
            ));
        } else if entry.is_extended() {
            read_extended(disk, entry, &mut next_logical, &mut found, problems)?;
        } else {
            let start_sector = u64::from(entry.start_sector);
            push(disk, &mut found, problems, number, entry, start_sector);
        }
    }
    found.sort_by_key(|partition| partition.number);
    Ok(found)
}

fn read_extended(
    disk: &dyn ReadAt,
    container: &Entry,
    number: &mut u32,
    found: &mut Vec<Partition>,
    problems: &mut Vec<Problem>,
) -> Result<()> {
    let first_sector = u64::from(container.start_sector);
    let end_sector = first_sector + u64::from(container.sectors);
    let mut at_sector = first_sector;
    let mut visited = HashSet::new();
    loop {
        if !visited.insert(at_sector) || visited.len() > MAX_CHAIN || *number > MAX_PARTITIONS {
            problems.push(Problem::new(
                "partition table",
                "the chain of logical partitions loops or is too long; the rest of it is left out",
            ));
            return Ok(());
        }
        let at_bytes = at_sector * SECTOR_BYTES;
        if at_bytes + SECTOR_BYTES > disk.len_bytes() {
            problems.push(Problem::new(
                "partition table",
                "the chain of logical partitions leads past the end of the disk",
            ));
            return Ok(());
        }
        let mut sector = [0; SECTOR_BYTES as usize];
        disk.read_exact_at(&mut sector, at_bytes)?;
        let Some(entries) = parse_sector(&sector) else {
            problems.push(Problem::new(
                "partition table",
                format!("the extended boot record at sector {at_sector} has no signature; logical partitions from it on are left out"),
            ));
            return Ok(());
        };
        for (index, entry) in entries.iter().enumerate() {
            if !entry.is_used() || entry.is_extended() {
                continue;
            }
            let start_sector = at_sector + u64::from(entry.start_sector);
            let end = start_sector + u64::from(entry.sectors);
            // The third and fourth entries often hold garbage (so says Linux).
            if index >= 2 && (start_sector < first_sector || end > end_sector) {
                continue;
            }
            push(disk, found, problems, *number, entry, start_sector);
            *number += 1;
        }
        match entries.iter().find(|e| e.is_extended() && e.sectors != 0) {
            Some(link) => at_sector = first_sector + u64::from(link.start_sector),
            None => return Ok(()),
        }
    }
}

fn push(
    disk: &dyn ReadAt,
    found: &mut Vec<Partition>,
    problems: &mut Vec<Problem>,
    number: u32,
    entry: &Entry,
    start_sector: u64,
) {
    // 32-bit sector numbers, at most two of them added: no overflow in 64 bits.
    let start_bytes = start_sector * SECTOR_BYTES;
    let len_bytes = u64::from(entry.sectors) * SECTOR_BYTES;
    let clipped = clip(disk, number, start_bytes, len_bytes, problems);
    let Some((len_bytes, problem)) = clipped else {
        return;
    };
    found.push(Partition {
        number,
        start_bytes,
        len_bytes,
        problems: problem.into_iter().collect(),
        kind: PartitionType::Mbr(entry.kind),
        name: None,
        guid: None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &mut [u8], sector: usize, index: usize, kind: u8, start: u32, count: u32) {
        let base = sector * 512;
        let at = base + 446 + 16 * index;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        disk[base + 510] = 0x55;
        disk[base + 511] = 0xAA;
    }

    fn read_all(disk: &Vec<u8>) -> (Vec<Partition>, Vec<Problem>) {
        let entries = parse_sector(&disk[..512]).unwrap();
        let mut problems = Vec::new();
        let found = read(disk, &entries, &mut problems).unwrap();
        (found, problems)
    }

    #[test]
    fn logical_partitions_count_from_five_along_the_chain() {
        let mut disk = vec![0; 512 * 300];
        put(&mut disk, 0, 0, 0x83, 10, 20);
        put(&mut disk, 0, 3, 0x05, 100, 150);
        put(&mut disk, 100, 0, 0x83, 2, 10);
        put(&mut disk, 100, 1, 0x05, 50, 50);
        put(&mut disk, 150, 0, 0x82, 2, 10);
        let (found, problems) = read_all(&disk);
        let short: Vec<_> = found
            .iter()
            .map(|p| (p.number, p.start_bytes / 512, p.len_bytes / 512))
            .collect();
        assert_eq!(short, [(1, 10, 20), (5, 102, 10), (6, 152, 10)]);
        assert_eq!(found[2].type_name(), "linux-swap");
        assert!(problems.is_empty());
    }

    #[test]
    fn boot_code_is_told_from_a_table_with_wrong_entries() {
        let mut disk = vec![0; 512 * 100];
        let belief = |disk: &[u8]| believe(&parse_sector(&disk[..512]).unwrap(), 512 * 100);
        put(&mut disk, 0, 0, 0, 0, 0);
        assert_eq!(belief(&disk), Belief::Empty);
        put(&mut disk, 0, 1, 0x83, 1 << 30, 2048);
        assert_eq!(belief(&disk), Belief::None);
        put(&mut disk, 0, 0, 0x83, 10, 20);
        assert_eq!(belief(&disk), Belief::Partly);
        put(&mut disk, 0, 1, 0, 0, 0);
        assert_eq!(belief(&disk), Belief::Sound);
        disk[446 + 48] = b'B';
        assert_eq!(belief(&disk), Belief::None);
    }

    #[test]
    fn an_extended_partition_at_the_table_itself_is_left_out() {
        let mut disk = vec![0; 512 * 100];
        put(&mut disk, 0, 0, 0x83, 10, 20);
        put(&mut disk, 0, 1, 0x05, 0, 50);
        let (found, problems) = read_all(&disk);
        assert_eq!((found.len(), problems.len()), (1, 1));
        assert_eq!(problems[0].subject, "partition 2");
    }

    #[test]
    fn a_chain_that_loops_ends_with_a_problem_and_keeps_what_it_found() {
        let mut disk = vec![0; 512 * 300];
        put(&mut disk, 0, 0, 0x0F, 100, 150);
        put(&mut disk, 100, 0, 0x83, 2, 10);
        put(&mut disk, 100, 1, 0x05, 50, 50);
        put(&mut disk, 150, 0, 0x83, 2, 10);
        put(&mut disk, 150, 1, 0x05, 0, 50);
        let (found, problems) = read_all(&disk);
        assert_eq!(found.len(), 2);
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn a_partition_past_the_end_is_left_out_and_a_long_one_is_cut() {
        let mut disk = vec![0; 512 * 100];
        put(&mut disk, 0, 0, 0x83, 10, 1000);
        put(&mut disk, 0, 1, 0x83, 4_000_000_000, 1);
        let (found, problems) = read_all(&disk);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].len_bytes, 90 * 512);
        assert_eq!(problems.len(), 2);
    }
}
