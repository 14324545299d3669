//! Which partition table a disk has, if any.
//!
//! Whether that table counts is decided by all that speaks for the disk ([`lay_out`]): a superblock that takes the
//! whole disk goes before a table that is damaged. The rules for tables are those of Linux: a GPT counts when the MBR has a protective entry (alone or in a
//! hybrid MBR); an MBR without one wins over a GPT that an older installation left behind. Boot
//! sectors of FAT, NTFS and exFAT also end in `55 AA`: only entries that make sense as a table count, and one that
//! does not is left out with a problem.

use super::claim::{Claim, Verdict};
use super::mbr::{self, Belief};
use super::signature::{self, Content};
use super::{Partition, Problem, gpt};
use crate::error::{ErrorKind, Result};
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

/// What a disk is: partitions, or one volume.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The table that counts.
    pub table: Table,
    /// What the disk holds as a whole, also beside a table that may be older or newer.
    pub content: Content,
}

/// Decides what lies on a disk by all that speaks for it: its partition table, and superblocks that take the whole
/// disk.
///
/// # Errors
/// Only when the disk cannot be read.
pub fn lay_out(disk: &dyn ReadAt) -> Result<Layout> {
    let mut table = read_table(disk)?;
    if table.kind == TableKind::None {
        let content = signature::identify(disk)?;
        return Ok(Layout { table, content });
    }
    let claim = match Claim::find(disk, &table) {
        // Damage elsewhere on the disk does not hide the partitions.
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
            let message =
                format!("whether the disk as a whole is something else is not known: {error}");
            table
                .problems
                .push(Problem::new("partition table", message));
            None
        }
        found => found?,
    };
    let Some(claim) = claim else {
        let content = Content::Unknown;
        return Ok(Layout { table, content });
    };
    let (is, kind) = (claim.content.as_str(), table.kind.as_str());
    let verdict = claim.against(&table);
    let mut say = |message: String| {
        table
            .problems
            .push(Problem::new("partition table", message));
    };
    match verdict {
        Verdict::Claim => {
            let message = format!(
                "what is left of it ({kind}) is not used: the disk as a whole is {is}, and the table is damaged"
            );
            table = Table::none();
            table
                .problems
                .push(Problem::new("partition table", message));
        }
        Verdict::Inside => table = Table::none(),
        Verdict::Table => {
            say(format!(
                "it counts, though the disk as a whole was {is} before: that is not used"
            ));
            let content = Content::Unknown;
            return Ok(Layout { table, content });
        }
        Verdict::Both => say(format!(
            "the disk as a whole is {is}, too, and nothing tells which of the two is newer: both are shown, \
             and one of them is out of date"
        )),
    }
    let content = claim.content;
    Ok(Layout { table, content })
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
    fn none() -> Table {
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

/// The length of a partition, cut to the disk, and what is to say of that; `None` when nothing of it lies on the disk.
pub(super) fn clip(
    disk: &dyn ReadAt,
    number: u32,
    start_bytes: u64,
    len_bytes: u64,
    problems: &mut Vec<Problem>,
) -> Option<(u64, Option<String>)> {
    let room = disk.len_bytes().saturating_sub(start_bytes);
    if room == 0 || len_bytes == 0 || start_bytes == 0 {
        problems.push(Problem::new(
            format!("partition {number}"),
            "it lies past the end of the disk or over the table itself; it is left out",
        ));
        return None;
    }
    let problem = len_bytes
        .checked_sub(room)
        .filter(|&more| more > 0)
        .map(|more| {
            let message = format!("it is {more} bytes longer than the disk; it is cut there");
            problems.push(Problem::new(format!("partition {number}"), message.clone()));
            message
        });
    Some((len_bytes.min(room), problem))
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
