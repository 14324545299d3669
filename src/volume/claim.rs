//! What takes a disk as a whole, whatever its partition table says: a member of an md array, a physical volume of LVM,
//! a btrfs. Only superblocks with a sound checksum that say they lie where they were found speak for it: in a
//! partition they would name another place, or be found at another one.

use super::bits::{crc32c, has, le16, le32, le64};
use super::lvm::label::read_label;
use super::md::superblock::{self, Found, Located};
use super::partition::Partition;
use super::signature::{Content, md_v0_offset};
use super::table::Table;
use crate::error::Result;
use crate::io::ReadAt;

/// Where btrfs keeps its first superblock, and its length.
const BTRFS_AT: u64 = 0x1_0000;
const BTRFS_BYTES: usize = 4096;
/// LVM's label is in one of the first four sectors.
const LABEL_BYTES: u64 = 2048;
/// What an array of version 0.90 may leave unused before its superblock when it fills its device.
const V0_SLACK: u64 = 1 << 20;

/// Something that takes the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// What the disk holds then.
    pub(super) content: Content,
    /// Of arrays whose data begins where the disk does: how far a partition table there can reach.
    table_end: Option<u64>,
}

/// How a claim and a partition table that is on the same disk agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The claim counts, the table is left over.
    Claim,
    /// The table is part of what the array holds.
    Inside,
    /// The table counts, the claim is left over.
    Table,
    /// Nothing tells which of the two is newer.
    Both,
}

impl Claim {
    /// The claim on this disk, if any. `partitions` are those of its table.
    ///
    /// # Errors
    /// Only when the disk cannot be read.
    pub(super) fn find(disk: &dyn ReadAt, table: &Table) -> Result<Option<Claim>> {
        let claim = |content| Claim {
            content,
            table_end: None,
        };
        if has_label(disk)? {
            return Ok(Some(claim(Content::LvmMember)));
        }
        if let Located::Sound(found) = superblock::locate(disk)?
            && (found.version != 0 || is_v0_of_disk(&found, table))
        {
            // A table at the start of a stripe is that of the array, which is longer than the disk.
            let end = if found.is_mirror() {
                found.used_bytes()
            } else {
                u64::MAX
            };
            return Ok(Some(Claim {
                content: Content::MdMember,
                table_end: (found.data_start() == 0).then_some(end),
            }));
        }
        Ok(has_btrfs(disk)?.then_some(claim(Content::Btrfs)))
    }

    /// Whether this or a table counts.
    pub(super) fn against(&self, table: &Table) -> Verdict {
        let ends_before = |end: u64| {
            let mut all = table.partitions.iter();
            all.all(|part| part.start_bytes.saturating_add(part.len_bytes) <= end)
        };
        match (self.content, self.table_end) {
            // Seen from one member it may well look damaged.
            (Content::MdMember, Some(u64::MAX)) => Verdict::Inside,
            _ if !table.is_sound => Verdict::Claim,
            (Content::MdMember, Some(end)) if ends_before(end) => Verdict::Inside,
            // Who makes an array leaves the first sectors alone, and so does who makes a partition table.
            (Content::MdMember, _) => Verdict::Both,
            // `pvcreate` and `mkfs.btrfs` clear the place of a table. So it is younger; and LVM passes over disks
            // that have one.
            _ => Verdict::Table,
        }
    }
}

/// Version 0.90 does not say where it lies: at the end of a last partition it is found from the end of the disk, too.
fn is_v0_of_disk(found: &Found, table: &Table) -> bool {
    let used = found.used_bytes();
    let is_in = |part: &Partition| {
        let own = md_v0_offset(part.len_bytes).and_then(|at| at.checked_add(part.start_bytes));
        own == Some(found.at) && used <= found.at.saturating_sub(part.start_bytes)
    };
    match table.partitions.is_empty() {
        false => !table.partitions.iter().any(is_in),
        // Where its partitions were is not known.
        true => used.saturating_add(V0_SLACK) > found.at,
    }
}

fn has_label(disk: &dyn ReadAt) -> Result<bool> {
    let mut head = vec![0; disk.len_bytes().min(LABEL_BYTES) as usize];
    disk.read_exact_at(&mut head, 0)?;
    Ok(matches!(read_label(&head), Ok(Some(_))))
}

fn has_btrfs(disk: &dyn ReadAt) -> Result<bool> {
    if disk.len_bytes() < BTRFS_AT + BTRFS_BYTES as u64 {
        return Ok(false);
    }
    let mut block = [0; BTRFS_BYTES];
    disk.read_exact_at(&mut block, BTRFS_AT)?;
    const CRC32C: u16 = 0;
    const DEVICE_BYTES: usize = 0xC9 + 8;
    // Checksums of other kinds are not computed here: the rest must do.
    let is_sound = le16(&block, 0xC4) != CRC32C || crc32c(&block[32..]) == le32(&block, 0);
    Ok(has(&block, 0x40, b"_BHRfS_M")
        && le64(&block, 0x30) == BTRFS_AT
        && is_sound
        && (1..=disk.len_bytes()).contains(&le64(&block, DEVICE_BYTES)))
}
