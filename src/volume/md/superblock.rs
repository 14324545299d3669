//! The superblock of a member of a Linux md array, versions 0.90 and 1.0 to 1.2.
//!
//! Facts come from the kernel's `include/uapi/linux/raid/md_p.h` and `drivers/md/md.c`.

use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::volume::bits::{le16, le32, le64};
use crate::volume::signature::{MD_MAGIC, md_v0_offset, md_v1_end_offset};

/// Roles that are none: from here on a member is a spare, faulty, or the journal.
const NO_ROLE: u16 = 0xFF00;
/// Devices that a version 1 superblock has room for in its 4 KiB.
const MAX_DEVICES: u32 = 1920;

const FEATURE_RECOVERING: u32 = 2;
const FEATURE_RESHAPE: u32 = 4;
const FEATURE_BAD_BLOCKS: u32 = 8;
const FEATURE_REPLACEMENT: u32 = 16;
/// Features that do not change where anything is: bitmaps, the layout of RAID 0 being recorded.
const FEATURES_HARMLESS: u32 = 1 | 64 | 256 | 4096;

/// What one member says about its array and itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The array.
    pub uuid: [u8; 16],
    /// The array's name as people gave it, if any.
    pub name: String,
    /// 1, 0, -1 (linear) …
    pub level: i32,
    /// What it means depends on the level.
    pub layout: u32,
    /// Bytes taken from a member in turn; 0 where that means nothing.
    pub chunk_bytes: u64,
    /// Members of the complete array.
    pub raid_disks: u32,
    /// Bytes of each member that are used where all use the same.
    pub used_bytes: u64,
    /// Where the member's data begins.
    pub data_start: u64,
    /// Bytes of data on this member.
    pub data_len: u64,
    /// The member's place, `None` for spares and failed ones.
    pub role: Option<u32>,
    /// The member's number among the devices of the array.
    pub device: usize,
    /// The places of all devices by their numbers, as this member last heard of them.
    pub roles: Vec<Option<u32>>,
    /// Counts changes of the array: a member that was dropped stays behind.
    pub events: u64,
    /// Whether parity and copies are known to fit the data.
    pub is_clean: bool,
    /// Why the member's data cannot be relied on, if so.
    pub trouble: Option<&'static str>,
}

/// What is found when a superblock is looked for.
pub enum Located {
    /// One whose checksum is right.
    Sound(Found),
    /// One whose checksum is wrong, and no sound one.
    Damaged,
    /// None.
    Absent,
}

/// A superblock whose checksum is right.
pub struct Found {
    /// Where it lies.
    pub at: u64,
    /// 0 or 1.
    pub version: u32,
    block: Vec<u8>,
}

impl Found {
    /// Where the member's data begins.
    pub fn data_start(&self) -> u64 {
        match self.version {
            0 => 0,
            _ => le64(&self.block, 128).saturating_mul(512),
        }
    }

    /// How many bytes of the member the array uses, where all members give the same.
    pub fn used_bytes(&self) -> u64 {
        match self.version {
            0 => u64::from(le32(&self.block, 8 * 4)) * 1024,
            _ => le64(&self.block, 80).saturating_mul(512),
        }
    }

    /// Whether each member has all that the array holds.
    pub fn is_mirror(&self) -> bool {
        let at = if self.version == 0 { 7 * 4 } else { 72 };
        le32(&self.block, at) == 1
    }
}

/// Looks at all places where a superblock may be.
///
/// # Errors
/// Only when the volume cannot be read.
pub fn locate(volume: &dyn ReadAt) -> Result<Located> {
    let len = volume.len_bytes();
    let mut outcome = Located::Absent;
    let places = [Some(4096), Some(0), md_v1_end_offset(len)];
    for at in places.into_iter().flatten() {
        let block = block_at(volume, at)?;
        if le32(&block, 0) == MD_MAGIC && le32(&block, 4) == 1 && le64(&block, 144) == at / 512 {
            let devices = le32(&block, 220);
            if devices <= MAX_DEVICES && checksum_1(&block, devices) == le32(&block, 216) {
                let version = 1;
                return Ok(Located::Sound(Found { at, version, block }));
            }
            outcome = Located::Damaged;
        }
    }
    if let Some(at) = md_v0_offset(len) {
        let block = block_at(volume, at)?;
        if le32(&block, 0) == MD_MAGIC && le32(&block, 4) == 0 {
            if checksum_0(&block) == le32(&block, CHECKSUM_0 * 4) {
                let version = 0;
                return Ok(Located::Sound(Found { at, version, block }));
            }
            outcome = Located::Damaged;
        }
    }
    Ok(outcome)
}

fn block_at(volume: &dyn ReadAt, at: u64) -> Result<Vec<u8>> {
    let mut block = vec![0; 4096];
    let take = volume.len_bytes().saturating_sub(at).min(4096) as usize;
    if take > 0 {
        volume.read_exact_at(&mut block[..take], at)?;
    }
    Ok(block)
}

/// Reads the superblock, wherever it is.
///
/// # Errors
/// `Corrupt` when there is none, or its checksum or its numbers are wrong.
pub fn read(volume: &dyn ReadAt) -> Result<Superblock> {
    match locate(volume)? {
        Located::Sound(found) if found.version == 0 => version_0(&found.block, found.at),
        Located::Sound(found) => version_1(&found.block, volume.len_bytes()),
        Located::Damaged => Err(Error::corrupt("an md superblock has a wrong checksum")),
        Located::Absent => Err(Error::corrupt("no md superblock is where one should be")),
    }
}

fn bytes(sectors: u64) -> Result<u64> {
    sectors
        .checked_mul(512)
        .filter(|&bytes| bytes < 1 << 63)
        .ok_or_else(|| Error::corrupt("an md superblock has a number near 2^64"))
}

/// `calc_sb_1_csum`.
fn checksum_1(block: &[u8], devices: u32) -> u32 {
    let end = 256 + devices as usize * 2;
    let mut sum: u64 = 0;
    let mut at = 0;
    while at + 4 <= end {
        if at != 216 {
            sum += u64::from(le32(block, at));
        }
        at += 4;
    }
    if at + 2 <= end {
        sum += u64::from(le16(block, at));
    }
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// The word of a version 0.90 superblock that is its checksum.
const CHECKSUM_0: usize = 38;

fn checksum_0(block: &[u8]) -> u32 {
    let sum: u64 = (0..1024)
        .filter(|&index| index != CHECKSUM_0)
        .map(|index| u64::from(le32(block, index * 4)))
        .sum();
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

fn version_1(block: &[u8], len: u64) -> Result<Superblock> {
    let devices = le32(block, 220);
    let features = le32(block, 8);
    let known = FEATURES_HARMLESS | FEATURE_RECOVERING | FEATURE_BAD_BLOCKS | FEATURE_REPLACEMENT;
    if features & FEATURE_RESHAPE != 0 || features & !known != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("an md array with features {features:#x}, or in the middle of a reshape"),
        ));
    }
    let device = le32(block, 160) as usize;
    let roles: Vec<Option<u32>> = (0..devices as usize)
        .map(|number| le16(block, 256 + number * 2))
        .map(|role| (role < NO_ROLE).then_some(u32::from(role)))
        .collect();
    let trouble = if features & FEATURE_BAD_BLOCKS != 0 {
        Some("it has blocks that are known to be bad")
    } else if features & (FEATURE_RECOVERING | FEATURE_REPLACEMENT) != 0 {
        Some("it was not rebuilt to its end")
    } else {
        None
    };
    let name: Vec<u8> = block[32..64]
        .iter()
        .copied()
        .take_while(|&b| b != 0)
        .collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    let data_start = bytes(le64(block, 128))?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&block[16..32]);
    Ok(Superblock {
        uuid,
        // "host:name".
        name: name.rsplit(':').next().unwrap_or_default().to_string(),
        level: le32(block, 72) as i32,
        layout: le32(block, 76),
        chunk_bytes: u64::from(le32(block, 88)) * 512,
        raid_disks: le32(block, 92),
        used_bytes: bytes(le64(block, 80))?,
        data_start,
        data_len: bytes(le64(block, 136))?.min(len.saturating_sub(data_start)),
        role: roles.get(device).copied().flatten(),
        device,
        roles,
        events: le64(block, 200),
        // How far a resync has come.
        is_clean: le64(block, 208) == u64::MAX,
        trouble,
    })
}

/// The form before 2006, in the byte order of the machine: the little-endian one is read.
fn version_0(block: &[u8], at: u64) -> Result<Superblock> {
    let word = |index: usize| le32(block, index * 4);
    // 91 while the array is reshaped: its numbers are the new ones then, its data is not.
    if word(2) != 90 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "an md array in the middle of a reshape",
        ));
    }
    const DISKS: usize = 128;
    const MAX_DISKS: usize = 27;
    const DISK_WORDS: usize = 32;
    const THIS: usize = 992;
    const ACTIVE_AND_SYNC: u32 = 0b110;
    let role_at = |at: usize| {
        let in_use = word(at + 4) & 0b1111 == ACTIVE_AND_SYNC;
        in_use.then_some(word(at + 3))
    };
    let mut uuid = [0; 16];
    for (part, index) in uuid.chunks_exact_mut(4).zip([5, 13, 14, 15]) {
        part.copy_from_slice(&word(index).to_le_bytes());
    }
    Ok(Superblock {
        uuid,
        name: format!("md{}", word(11)),
        level: word(7) as i32,
        layout: word(64),
        chunk_bytes: u64::from(word(65)),
        raid_disks: word(10),
        used_bytes: u64::from(word(8)) * 1024,
        data_start: 0,
        data_len: at,
        role: role_at(THIS),
        device: word(THIS) as usize,
        roles: (0..MAX_DISKS)
            .map(|number| role_at(DISKS + number * DISK_WORDS))
            .collect(),
        events: u64::from(word(40)) << 32 | u64::from(word(39)),
        is_clean: word(33) & 1 == 1,
        trouble: None,
    })
}
