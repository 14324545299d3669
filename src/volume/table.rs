//! Which partition table a disk has, if any. Whether it counts is decided in [`super::layout`].
//!
//! The rules are those of Linux: a GPT counts when the MBR has a protective entry (alone or in a
//! hybrid MBR); an MBR without one wins over a GPT that an older installation left behind. Boot
//! sectors of FAT, NTFS and exFAT also end in `55 AA`: only entries that make sense as a table count, and one that
//! does not is left out with a problem.

use super::gpt;
use super::mbr::{self, Belief};
use super::partition::Partition;
use super::problem::Problem;
use super::signature::{self, Content};
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

impl TableKind {
    /// A short fixed name.
    pub fn as_str(self) -> &'static str {
        match self {
            TableKind::None => "none",
            TableKind::Mbr => "mbr",
            TableKind::Gpt | TableKind::DamagedGpt => "gpt",
        }
    }
}

/// A disk's partitions.
#[derive(Debug, Clone)]
pub struct Table {
    /// The kind.
    pub kind: TableKind,
    /// Whether it is whole: not a backup copy, nor one of which parts make no sense.
    pub is_sound: bool,
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
    let mut table = Table::none();
    if disk.len_bytes() < mbr::SECTOR_BYTES {
        return Ok(table);
    }
    let mut sector = [0; mbr::SECTOR_BYTES as usize];
    disk.read_exact_at(&mut sector, 0)?;
    let entries = mbr::parse_sector(&sector);
    let protective = entries.is_some_and(|all| all.iter().any(|e| e.kind == mbr::TYPE_PROTECTIVE));
    if protective {
        match gpt::read(disk, &mut table.problems)? {
            Some(found) => table.take_gpt(found),
            None => {
                table.kind = TableKind::DamagedGpt;
                table.problems.push(Problem::new(
                    "partition table",
                    "both copies of the GPT are damaged; only the raw disk can be read",
                ));
            }
        }
    } else if let Some(entries) = entries {
        read_mbr(disk, &entries, &mut table)?;
    } else if is_nothing_known(disk)?
        // A GPT whose first sector was wiped, unless the disk is one known volume.
        && let Some(found) = gpt::read(disk, &mut table.problems)?
    {
        table.take_gpt(found);
    }
    say_overlaps(&mut table);
    Ok(table)
}

fn is_nothing_known(disk: &dyn ReadAt) -> Result<bool> {
    Ok(matches!(
        signature::identify(disk)?,
        Content::Unknown | Content::Zeros
    ))
}

/// Reads the MBR whose first sector has these entries, if it is one.
fn read_mbr(disk: &dyn ReadAt, entries: &[mbr::Entry; 4], table: &mut Table) -> Result<()> {
    use Content::{BitLocker, ExFat, Fat, Ntfs, Refs};
    let is_table = match mbr::believe(entries, disk.len_bytes()) {
        Belief::Sound => true,
        Belief::Empty => false,
        // Boot sectors of these have code, or text, where the entries would be.
        Belief::Partly => !matches!(
            signature::identify(disk)?,
            Fat | ExFat | Ntfs | Refs | BitLocker
        ),
        Belief::None => {
            if is_nothing_known(disk)? {
                table.problems.push(Problem::new(
                    "partition table",
                    "the first sector has the signature of an MBR, but no entry in it makes sense; it is not believed",
                ));
            }
            false
        }
    };
    if is_table {
        table.kind = TableKind::Mbr;
        table.is_sound = mbr::believe(entries, disk.len_bytes()) == Belief::Sound;
        table.partitions = mbr::read(disk, entries, &mut table.problems)?;
    }
    Ok(())
}

impl Table {
    /// No table.
    pub(super) fn none() -> Table {
        Table {
            kind: TableKind::None,
            is_sound: false,
            partitions: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn take_gpt(&mut self, found: gpt::Found) {
        self.kind = TableKind::Gpt;
        self.is_sound = !found.is_backup;
        self.partitions = found.partitions;
    }
}

/// Says which partitions share bytes. They are shown all the same, as Linux does: nothing tells which entry is wrong.
fn say_overlaps(table: &mut Table) {
    let mut order: Vec<usize> = (0..table.partitions.len()).collect();
    order.sort_by_key(|&index| table.partitions[index].start_bytes);
    // The one before that reaches furthest.
    let mut last: Option<(usize, u64)> = None;
    for index in order {
        let part = &table.partitions[index];
        let (start, number) = (part.start_bytes, part.number);
        let end = start.saturating_add(part.len_bytes);
        if let Some((other, other_end)) = last
            && start < other_end
        {
            let other = &mut table.partitions[other];
            let message = format!(
                "it overlaps partition {}; one of the two entries is wrong",
                other.number
            );
            other.problems.push(format!(
                "it overlaps partition {number}; one of the two entries is wrong"
            ));
            table.partitions[index].problems.push(message.clone());
            let subject = format!("partition {number}");
            table.problems.push(Problem::new(subject, message));
        }
        if last.is_none_or(|(_, furthest)| end > furthest) {
            last = Some((index, end));
        }
    }
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
    fn entries_that_make_no_sense_are_left_out_and_said() {
        let mut disk = vec![0; 512 * 64];
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        let mut put = |index: usize, start: u32, count: u32| {
            let at = 446 + 16 * index;
            disk[at + 4] = 0x83;
            disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
            read_table(&disk).unwrap()
        };
        let table = put(1, 1 << 30, 2048);
        assert_eq!(table.kind, TableKind::None);
        assert!(table.problems[0].message.contains("not believed"));
        let table = put(0, 8, 16);
        let numbers: Vec<u32> = table.partitions.iter().map(|p| p.number).collect();
        assert_eq!((table.kind, numbers), (TableKind::Mbr, vec![1]));
        assert_eq!(table.problems.len(), 1);
        assert_eq!(table.problems[0].subject, "partition 2");
        assert!(
            table.problems[0]
                .message
                .contains("past the end of the disk")
        );
    }

    #[test]
    fn partitions_that_overlap_are_both_shown_and_said() {
        let disk = gpt::tests::make(512, 2048, &[(64, 127), (100, 200), (201, 300)]);
        let table = read_table(&disk).unwrap();
        let said: Vec<usize> = table.partitions.iter().map(|p| p.problems.len()).collect();
        assert_eq!(said, [1, 1, 0]);
        assert_eq!(table.problems.len(), 1);
        assert!(table.problems[0].message.contains("overlaps partition 1"));
    }

    #[test]
    fn the_boot_sector_of_a_file_system_is_no_table() {
        let mut disk = vec![0; 512 * 64];
        disk[3..11].copy_from_slice(b"NTFS    ");
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        // One entry could be meant; the other is text.
        disk[446 + 4..446 + 16].copy_from_slice(&[0x83, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
        disk[462 + 4..462 + 16].fill(b'x');
        let table = read_table(&disk).unwrap();
        assert_eq!(table.kind, TableKind::None);
        assert!(table.problems.is_empty());
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
