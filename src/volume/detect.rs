//! Which partition table a disk has, if any.
//!
//! The rules are those of Linux: a GPT counts when the MBR has a protective entry (alone or in a
//! hybrid MBR); an MBR without one wins over a GPT that an older installation left behind. Boot
//! sectors of FAT, NTFS and exFAT also end in `55 AA`: only entries that make sense as a table count.

use super::mbr;
use super::signature::{self, Content};
use super::{Partition, Problem, gpt};
use crate::error::Result;
use crate::io::ReadAt;

/// The kind of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// No table: the disk itself is one volume.
    None,
    /// MBR.
    Mbr,
    /// GPT.
    Gpt,
    /// The disk says that it has a GPT, but neither copy is sound.
    DamagedGpt,
}

/// A disk's partitions.
#[derive(Debug, Clone)]
pub struct Table {
    /// The kind.
    pub kind: TableKind,
    /// Partitions by rising number.
    pub partitions: Vec<Partition>,
    /// What was found wrong.
    pub problems: Vec<Problem>,
}

/// Reads the partition table of a disk: a few sectors, one more per logical partition.
///
/// # Errors
/// Only when the disk cannot be read.
pub fn read_table(disk: &dyn ReadAt) -> Result<Table> {
    let mut table = Table {
        kind: TableKind::None,
        partitions: Vec::new(),
        problems: Vec::new(),
    };
    if disk.len_bytes() < mbr::SECTOR_BYTES {
        return Ok(table);
    }
    let mut sector = [0; mbr::SECTOR_BYTES as usize];
    disk.read_exact_at(&mut sector, 0)?;
    let entries = mbr::parse_sector(&sector);
    let protective = entries.is_some_and(|all| all.iter().any(|e| e.kind == mbr::TYPE_PROTECTIVE));
    if protective {
        match gpt::read(disk, &mut table.problems)? {
            Some(partitions) => {
                table.kind = TableKind::Gpt;
                table.partitions = partitions;
            }
            None => {
                table.kind = TableKind::DamagedGpt;
                table.problems.push(Problem::new(
                    "partition table",
                    "both copies of the GPT are damaged; only the raw disk can be read",
                ));
            }
        }
        return Ok(table);
    }
    if let Some(entries) = entries.filter(|all| mbr::is_plausible(all, disk.len_bytes())) {
        table.kind = TableKind::Mbr;
        table.partitions = mbr::read(disk, &entries, &mut table.problems)?;
        return Ok(table);
    }
    // No MBR at all: a GPT whose first sector was wiped, unless the disk is one known volume.
    if entries.is_none()
        && matches!(
            signature::identify(disk)?,
            Content::Unknown | Content::Zeros
        )
        && let Some(partitions) = gpt::read(disk, &mut table.problems)?
    {
        table.kind = TableKind::Gpt;
        table.partitions = partitions;
    }
    Ok(table)
}

/// The length of a partition, cut to the disk; `None` when nothing of it lies on the disk.
pub(super) fn clip(
    disk: &dyn ReadAt,
    number: u32,
    start_bytes: u64,
    len_bytes: u64,
    problems: &mut Vec<Problem>,
) -> Option<u64> {
    let room = disk.len_bytes().saturating_sub(start_bytes);
    if room == 0 || len_bytes == 0 || start_bytes == 0 {
        problems.push(Problem::new(
            format!("partition {number}"),
            "it lies past the end of the disk or over the table itself; it is left out",
        ));
        return None;
    }
    if len_bytes > room {
        problems.push(Problem::new(
            format!("partition {number}"),
            format!(
                "it is {} bytes longer than the disk; it is cut there",
                len_bytes - room
            ),
        ));
    }
    Some(len_bytes.min(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mbr_without_a_protective_entry_wins_over_a_stale_gpt() {
        let mut disk = gpt::tests::make(512, 2048, &[(64, 127)]);
        assert_eq!(read_table(&disk).unwrap().kind, TableKind::Gpt);
        disk[446 + 4] = 0x83;
        let table = read_table(&disk).unwrap();
        assert_eq!(table.kind, TableKind::Mbr);
        assert_eq!(table.partitions.len(), 1);
    }

    #[test]
    fn a_gpt_is_found_when_the_first_sector_was_wiped() {
        let mut disk = gpt::tests::make(512, 2048, &[(64, 127)]);
        disk[..512].fill(0);
        assert_eq!(read_table(&disk).unwrap().kind, TableKind::Gpt);
    }

    #[test]
    fn a_damaged_gpt_is_not_taken_for_a_whole_disk_volume() {
        let mut disk = gpt::tests::make(512, 2048, &[(64, 127)]);
        disk[512 + 30] ^= 1;
        let last = disk.len() - 512;
        disk[last + 30] ^= 1;
        let table = read_table(&disk).unwrap();
        assert_eq!(table.kind, TableKind::DamagedGpt);
        assert_eq!(table.problems.len(), 1);
    }

    #[test]
    fn boot_code_in_place_of_entries_is_no_table() {
        let mut disk = vec![0; 512 * 64];
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        assert_eq!(read_table(&disk).unwrap().kind, TableKind::None);
        disk[446..510].fill(0x41);
        assert_eq!(read_table(&disk).unwrap().kind, TableKind::None);
    }
}
