//! What a volume holds, by the signatures its format puts at fixed places.
//!
//! This is the one detection table: `guestfs` opens what it names, `assemble` collects LVM and md
//! members by it, and what cannot be read is at least named. The order matters where a newer format
//! leaves an older one's signature standing: containers come first, then signatures in sector 0 (every
//! other mkfs wipes that sector), then those further in.

use super::bits::{be32, has, le16, le32, le64};
use super::partition::{Partition, PartitionType};
use crate::error::Result;
use crate::io::{ReadAt, check_range};

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// NTFS.
    Ntfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// exFAT.
    ExFat,
    /// ISO 9660, with or without Rock Ridge and Joliet.
    Iso9660,
    /// squashfs 4.
    Squashfs,
    /// An LVM2 physical volume.
    LvmMember,
    /// A member of a Linux md array.
    MdMember,
    /// LUKS 1 or 2.
    Luks,
    /// BitLocker.
    BitLocker,
    /// A Windows dynamic disk.
    Ldm,
    /// A Windows storage pool.
    StorageSpaces,
    /// ReFS.
    Refs,
    /// A ZFS pool member.
    Zfs,
    /// APFS.
    Apfs,
    /// HFS or HFS+.
    Hfs,
    /// UFS.
    Ufs,
    /// F2FS.
    F2fs,
    /// ReiserFS.
    ReiserFs,
    /// JFS.
    Jfs,
    /// bcache or bcachefs.
    Bcache,
    /// VMFS.
    Vmfs,
    /// UDF without ISO 9660.
    Udf,
    /// An external ext journal.
    ExtJournal,
    /// Linux swap space or a hibernation image in it.
    Swap,
    /// Zeros, as far as looked.
    Zeros,
    /// Nothing that is known here.
    Unknown,
}

impl Content {
    /// A short fixed name.
    pub fn as_str(self) -> &'static str {
        match self {
            Content::Ext => "ext",
            Content::Xfs => "xfs",
            Content::Btrfs => "btrfs",
            Content::Ntfs => "ntfs",
            Content::Fat => "fat",
            Content::ExFat => "exfat",
            Content::Iso9660 => "iso9660",
            Content::Squashfs => "squashfs",
            Content::LvmMember => "lvm-member",
            Content::MdMember => "md-member",
            Content::Luks => "luks",
            Content::BitLocker => "bitlocker",
            Content::Ldm => "windows-ldm",
            Content::StorageSpaces => "storage-spaces",
            Content::Refs => "refs",
            Content::Zfs => "zfs",
            Content::Apfs => "apfs",
            Content::Hfs => "hfs",
            Content::Ufs => "ufs",
            Content::F2fs => "f2fs",
            Content::ReiserFs => "reiserfs",
            Content::Jfs => "jfs",
            Content::Bcache => "bcache",
            Content::Vmfs => "vmfs",
            Content::Udf => "udf",
            Content::ExtJournal => "ext-journal",
            Content::Swap => "swap",
            Content::Zeros => "zeros",
            Content::Unknown => "unknown",
        }
    }
}

/// Everything but ZFS and md 0.90/1.0 is decided by the first bytes.
const HEAD_BYTES: u64 = 68 << 10;
/// ZFS keeps its uberblocks between 128 KiB and 256 KiB.
const ZFS_RING_START: u64 = 128 << 10;
const ZFS_RING_BYTES: usize = 128 << 10;

/// Identifies a volume; reads at most 260 KiB from its start and 8 KiB from its end.
///
/// # Errors
/// Only when the volume cannot be read.
pub fn identify(volume: &dyn ReadAt) -> Result<Content> {
    let len = volume.len_bytes();
    let mut head = vec![0; len.min(HEAD_BYTES) as usize];
    volume.read_exact_at(&mut head, 0)?;
    if let Some(content) = container(&head) {
        return Ok(content);
    }
    // These keep their superblock at the end: a mirror's member looks like its content otherwise.
    if has_md_at_end(volume)? {
        return Ok(Content::MdMember);
    }
    if let Some(content) = file_system(&head) {
        return Ok(content);
    }
    if is_zfs(volume)? {
        return Ok(Content::Zfs);
    }
    // Last: all it has is a BIOS parameter block, which other formats may have left standing.
    if is_unmarked_fat(volume, &head)? {
        return Ok(Content::Fat);
    }
    Ok(if head.iter().all(|&byte| byte == 0) {
        Content::Zeros
    } else {
        Content::Unknown
    })
}

/// As [`identify`], with what the partition's type says where no signature can tell.
///
/// # Errors
/// Only when the volume cannot be read.
pub fn identify_partition(partition: &Partition, volume: &dyn ReadAt) -> Result<Content> {
    // A volume on a dynamic disk can be spanned or striped over others: what looks like a file
    // system at its start may be only the first piece.
    match &partition.kind {
        PartitionType::Mbr(0x42) => return Ok(Content::Ldm),
        PartitionType::Gpt(guid)
            if matches!(
                guid.as_str(),
                "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3" | "af9b60a0-1431-4f62-bc68-3311714a69ad"
            ) =>
        {
            return Ok(Content::Ldm);
        }
        PartitionType::Gpt(guid) if guid == "e75caf8f-f680-4cee-afa3-b001e56efc2d" => {
            return Ok(Content::StorageSpaces);
        }
        _ => {}
    }
    identify(volume)
}

/// Formats that hold other volumes, or hide them.
fn container(head: &[u8]) -> Option<Content> {
    if has(head, 0, b"LUKS\xBA\xBE") {
        return Some(Content::Luks);
    }
    // BitLocker To Go keeps a FAT32 boot sector and marks itself by a GUID.
    const TO_GO: [u8; 16] = [
        0x3B, 0xD6, 0x67, 0x49, 0x29, 0x2E, 0xD8, 0x4A, 0x83, 0x99, 0xF6, 0xA3, 0x39, 0xE3, 0xD0,
        0x01,
    ];
    if has(head, 3, b"-FVE-FS-") || has(head, 424, &TO_GO) {
        return Some(Content::BitLocker);
    }
    if (0..4).any(|sector| {
        has(head, sector * 512, b"LABELONE") && has(head, sector * 512 + 24, b"LVM2 001")
    }) {
        return Some(Content::LvmMember);
    }
    if is_md_v1(head.get(..256).unwrap_or(&[]), 0)
        || head.get(4096..).is_some_and(|at| is_md_v1(at, 8))
    {
        return Some(Content::MdMember);
    }
    None
}

fn file_system(head: &[u8]) -> Option<Content> {
    if has(head, 0, b"XFSB") {
        return Some(Content::Xfs);
    }
    if has(head, 3, b"NTFS    ") {
        return Some(Content::Ntfs);
    }
    if has(head, 3, b"EXFAT   ") {
        return Some(Content::ExFat);
    }
    if has(head, 3, b"ReFS\0\0\0\0") {
        return Some(Content::Refs);
    }
    if is_fat(head) {
        return Some(Content::Fat);
    }
    if has(head, 0, b"hsqs") {
        return Some(Content::Squashfs);
    }
    if has(head, 32, b"NXSB") {
        return Some(Content::Apfs);
    }
    if is_swap(head) {
        return Some(Content::Swap);
    }
    if has(head, 1080, &[0x53, 0xEF]) {
        const INCOMPAT_JOURNAL_DEV: u32 = 8;
        return Some(if le32(head, 1024 + 96) & INCOMPAT_JOURNAL_DEV != 0 {
            Content::ExtJournal
        } else {
            Content::Ext
        });
    }
    if has(head, 1024, b"H+") || has(head, 1024, b"HX") || has(head, 1024, b"BD") {
        return Some(Content::Hfs);
    }
    if le32(head, 1024) == 0xF2F5_2010 {
        return Some(Content::F2fs);
    }
    if has(head, 0x10040, b"_BHRfS_M") {
        return Some(Content::Btrfs);
    }
    if has(head, 32768, b"JFS1") {
        return Some(Content::Jfs);
    }
    if has(head, 32769, b"CD001") {
        return Some(Content::Iso9660);
    }
    if has(head, 32769, b"BEA01") {
        return Some(Content::Udf);
    }
    if has(head, 65536 + 52, b"ReIsEr") {
        return Some(Content::ReiserFs);
    }
    const BCACHE: [u8; 16] = [
        0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA, 0x82, 0x65, 0xF5, 0x7F, 0x48, 0xBA, 0x6D,
        0x81,
    ];
    const BCACHEFS: [u8; 16] = [
        0xC6, 0x85, 0x73, 0xF6, 0x66, 0xCE, 0x90, 0xA9, 0xD9, 0x6A, 0x60, 0xCF, 0x80, 0x3D, 0xF7,
        0xEF,
    ];
    if has(head, 4096 + 24, &BCACHE) || has(head, 4096 + 24, &BCACHEFS) {
        return Some(Content::Bcache);
    }
    // UFS2 and UFS1, superblock magic at 0x55C of the superblock.
    if le32(head, 65536 + 0x55C) == 0x1954_0119 || le32(head, 8192 + 0x55C) == 0x0001_1954 {
        return Some(Content::Ufs);
    }
    None
}

/// A FAT boot sector: signature, jump, and a BIOS parameter block that makes sense.
fn is_fat(head: &[u8]) -> bool {
    let Some(boot) = head.get(..512) else {
        return false;
    };
    has_fat_signature(boot)
        && has_fat_jump(boot)
        && has_fat_sizes(boot)
        && (le16(boot, 19) != 0 || le32(boot, 32) != 0)
}

fn has_fat_signature(boot: &[u8]) -> bool {
    has(boot, 510, &[0x55, 0xAA])
}

fn has_fat_jump(boot: &[u8]) -> bool {
    matches!(boot.first(), Some(0xE9 | 0xEB))
}

/// What the first fields of a BIOS parameter block must be for Linux to take it for one.
fn has_fat_sizes(boot: &[u8]) -> bool {
    let bytes_per_sector = le16(boot, 11);
    let (sectors_per_cluster, tables, media) = (boot[13], boot[16], boot[21]);
    (512..=4096).contains(&bytes_per_sector)
        && bytes_per_sector.is_power_of_two()
        && sectors_per_cluster.is_power_of_two()
        && le16(boot, 14) != 0
        && tables != 0
        && (media == 0xF0 || media >= 0xF8)
        // JFS and HPFS of OS/2 have a boot sector like it.
        && !has(boot, 54, b"JFS     ")
        && !has(boot, 54, b"HPFS    ")
}

/// A FAT whose boot sector lacks its signature or its jump, which Linux does not ask for. All else must fit: the
/// tables lie within the volume, and when nothing else speaks for it, the first of them begins with the media
/// byte.
fn is_unmarked_fat(volume: &dyn ReadAt, head: &[u8]) -> Result<bool> {
    let Some(boot) = head.get(..512).filter(|boot| has_fat_sizes(boot)) else {
        return Ok(false);
    };
    let sector_bytes = u64::from(le16(boot, 11));
    let sectors = match le16(boot, 19) {
        0 => u64::from(le32(boot, 32)),
        small => u64::from(small),
    };
    let table_sectors = match le16(boot, 22) {
        0 => u64::from(le32(boot, 36)),
        short => u64::from(short),
    };
    let reserved = u64::from(le16(boot, 14));
    let root_sectors = (u64::from(le16(boot, 17)) * 32).div_ceil(sector_bytes);
    let data_start = reserved + u64::from(boot[16]) * table_sectors + root_sectors;
    // Also that there is a cluster.
    if table_sectors == 0 || data_start + u64::from(boot[13]) > sectors {
        return Ok(false);
    }
    if has_fat_signature(boot) || has_fat_jump(boot) {
        return Ok(true);
    }
    let (mut entry, at) = ([0; 2], reserved * sector_bytes);
    if check_range(at, 2, volume.len_bytes()).is_err() {
        return Ok(false);
    }
    volume.read_exact_at(&mut entry, at)?;
    Ok(entry == [boot[21], 0xFF])
}

/// Linux writes the signature at the end of the first page, whatever the page size was.
fn is_swap(head: &[u8]) -> bool {
    [4096, 8192, 16384, 65536].iter().any(|page| {
        [
            b"SWAPSPACE2",
            b"SWAP-SPACE",
            b"S1SUSPEND\0",
            b"S2SUSPEND\0",
            b"ULSUSPEND\0",
        ]
        .iter()
        .any(|magic| has(head, page - 10, *magic))
    })
}

/// An md superblock of version 1 that says it lies at `sector` (offset 0x90 holds its position).
fn is_md_v1(at: &[u8], sector: u64) -> bool {
    le32(at, 0) == MD_MAGIC && le32(at, 4) == 1 && le64(at, 0x90) == sector
}

pub(super) const MD_MAGIC: u32 = 0xA92B_4EFC;

/// Where version 1.0 keeps its superblock on a device of this many bytes.
pub(super) fn md_v1_end_offset(len_bytes: u64) -> Option<u64> {
    let sectors = len_bytes / 512;
    Some((sectors.checked_sub(16)? & !7) * 512)
}

/// Where version 0.90 keeps its superblock on a device of this many bytes.
pub(super) fn md_v0_offset(len_bytes: u64) -> Option<u64> {
    (len_bytes & !0xFFFF).checked_sub(0x10000)
}

fn has_md_at_end(volume: &dyn ReadAt) -> Result<bool> {
    let len = volume.len_bytes();
    if let Some(at) = md_v1_end_offset(len) {
        let mut block = [0; 256];
        volume.read_exact_at(&mut block, at)?;
        if is_md_v1(&block, at / 512) {
            return Ok(true);
        }
    }
    if let Some(at) = md_v0_offset(len) {
        let mut block = [0; 256];
        volume.read_exact_at(&mut block, at)?;
        // Version 0.90 is written in the byte order of its host.
        if (le32(&block, 0) == MD_MAGIC && le32(&block, 4) == 0)
            || (be32(&block, 0) == MD_MAGIC && be32(&block, 4) == 0)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// At least two uberblocks in the ring of the first label.
fn is_zfs(volume: &dyn ReadAt) -> Result<bool> {
    if volume.len_bytes() < ZFS_RING_START + ZFS_RING_BYTES as u64 {
        return Ok(false);
    }
    let mut ring = vec![0; ZFS_RING_BYTES];
    volume.read_exact_at(&mut ring, ZFS_RING_START)?;
    let found = ring
        .chunks_exact(1024)
        .filter(|slot| le64(slot, 0) == 0x00BA_B10C || le64(slot, 0) == 0x00BA_B10Cu64.swap_bytes())
        .count();
    Ok(found >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(len: usize, marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut volume = vec![0; len];
        for (at, bytes) in marks {
            volume[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        volume
    }

    #[test]
    fn formats_are_named_by_their_signatures() {
        let cases: &[(Content, usize, &[u8])] = &[
            (Content::Ext, 1080, &[0x53, 0xEF]),
            (Content::Xfs, 0, b"XFSB"),
            (Content::Btrfs, 0x10040, b"_BHRfS_M"),
            (Content::Ntfs, 3, b"NTFS    "),
            (Content::ExFat, 3, b"EXFAT   "),
            (Content::Luks, 0, b"LUKS\xBA\xBE\0\x02"),
            (Content::BitLocker, 3, b"-FVE-FS-"),
            (Content::Refs, 3, b"ReFS\0\0\0\0"),
            (Content::Apfs, 32, b"NXSB"),
            (Content::Swap, 4086, b"SWAPSPACE2"),
            (Content::Iso9660, 32769, b"CD001"),
            (Content::Unknown, 5, b"hello"),
            (Content::Zeros, 0, b""),
        ];
        for (content, at, bytes) in cases {
            let volume = with(1 << 20, &[(*at, bytes)]);
            assert_eq!(identify(&volume).unwrap(), *content);
        }
    }

    /// A FAT16 of 16 MiB: its boot sector, and the first entries of its table.
    fn fat(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut volume = with(
            1 << 20,
            &[
                (0, &[0xEB, 0x3C, 0x90]),
                (3, b"mkfs.fat"),
                (11, &[0, 2, 4, 4, 0, 2, 0, 2, 0, 0x80, 0xF8, 32, 0]),
                (510, &[0x55, 0xAA]),
                (4 * 512, &[0xF8, 0xFF, 0xFF, 0xFF]),
            ],
        );
        for (at, bytes) in marks {
            volume[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        volume
    }

    #[test]
    fn fat_is_known_by_its_parameters_as_in_linux() {
        let no_jump: (usize, &[u8]) = (0, &[0; 3]);
        let no_signature: (usize, &[u8]) = (510, &[0; 2]);
        for marks in [
            &[][..],
            &[no_jump],
            &[no_signature],
            &[no_jump, no_signature],
            // More tables, other media; a table that does not begin as it should.
            &[no_jump, (16, &[4])],
            &[no_signature, (21, &[0xF0])],
        ] {
            assert_eq!(identify(&fat(marks)).unwrap(), Content::Fat, "{marks:?}");
        }
        let no_fat: [&[(usize, &[u8])]; 12] = [
            &[no_jump, no_signature, (4 * 512, &[0xF0])],
            &[no_jump, no_signature, (4 * 512 + 1, &[0])],
            &[no_jump, (11, &[0, 1])],
            &[no_jump, (11, &[0, 3])],
            &[no_jump, (13, &[0])],
            &[no_jump, (13, &[3])],
            &[no_jump, (14, &[0, 0])],
            &[no_jump, (16, &[0])],
            &[no_jump, (21, &[0xF1])],
            &[no_jump, (22, &[0, 0])],
            // Tables longer than the volume, and a volume without sectors.
            &[no_jump, (22, &[0, 0x80])],
            &[no_jump, (19, &[0, 0])],
        ];
        for marks in no_fat {
            assert_eq!(
                identify(&fat(marks)).unwrap(),
                Content::Unknown,
                "{marks:?}"
            );
        }
        // What OS/2 keeps there, with and without the marks.
        for name in [b"JFS     ", b"HPFS    "] {
            assert_eq!(identify(&fat(&[(54, name)])).unwrap(), Content::Unknown);
            let marks: [(usize, &[u8]); 2] = [no_jump, (54, name)];
            assert_eq!(identify(&fat(&marks)).unwrap(), Content::Unknown);
        }
    }

    #[test]
    fn what_has_the_parameters_of_a_fat_by_chance_or_from_before_is_not_one() {
        let left_over: (usize, &[u8]) = (0, &[0; 3]);
        for (content, at, bytes) in [
            (Content::Ext, 1080, &[0x53, 0xEF][..]),
            (Content::Btrfs, 0x10040, b"_BHRfS_M"),
            (Content::Swap, 4086, b"SWAPSPACE2"),
            (Content::Iso9660, 32769, b"CD001"),
            (Content::Ntfs, 3, b"NTFS    "),
        ] {
            let volume = fat(&[left_over, (at, bytes)]);
            assert_eq!(identify(&volume).unwrap(), content);
        }
        // How the code of Windows' MBR and of GRUB's begins.
        let windows = [
            0x33, 0xC0, 0x8E, 0xD0, 0xBC, 0x00, 0x7C, 0x8E, 0xC0, 0x8E, 0xD8, 0xBE, 0x00, 0x7C,
            0xBF, 0x00, 0x06, 0xB9, 0x00, 0x02, 0xFC, 0xF3, 0xA4, 0x50,
        ];
        let signature: (usize, &[u8]) = (510, &[0x55, 0xAA]);
        for code in [&windows[..], &[0xEB, 0x63, 0x90]] {
            let mbr = with(1 << 20, &[(0, code), signature]);
            assert_eq!(identify(&mbr).unwrap(), Content::Unknown);
        }
    }

    #[test]
    fn a_member_of_an_old_mirror_is_not_taken_for_its_content() {
        let mut volume = with(1 << 20, &[(1080, &[0x53, 0xEF])]);
        let at = md_v1_end_offset(1 << 20).unwrap() as usize;
        volume[at..at + 4].copy_from_slice(&MD_MAGIC.to_le_bytes());
        volume[at + 4] = 1;
        volume[at + 0x90..at + 0x98].copy_from_slice(&(at as u64 / 512).to_le_bytes());
        assert_eq!(identify(&volume).unwrap(), Content::MdMember);
    }

    #[test]
    fn tiny_volumes_are_read_to_their_end_only() {
        for len in [0, 1, 511, 512, 4096, 8191, 8192, 65536, 70000] {
            assert_eq!(identify(&vec![0; len]).unwrap(), Content::Zeros);
        }
    }
}
