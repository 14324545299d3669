//! Directory entries of FAT and exFAT, parsed from the bytes of a directory.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::guestfs::common::unix::time;
use crate::guestfs::common::utf16;

const ATTRIBUTE_READ_ONLY: u8 = 0x01;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0x0F;
/// How an entry set of exFAT begins.
const FILE: u8 = 0x85;
/// Names have at most 255 UTF-16 units, in 20 (FAT) or 17 (exFAT) entries.
const MAX_NAME_ENTRIES: usize = 20;

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The name: UTF-8, with unpaired surrogates as three bytes each.
    pub name: Vec<u8>,
    /// Its first entry, counted in units of 32 bytes from the start of the part.
    pub first_slot: usize,
    /// The entry that its inode number is made of, counted likewise.
    pub slot: usize,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Whether it is marked read-only.
    pub is_read_only: bool,
    /// First cluster.
    pub first_cluster: u32,
    /// Length in bytes; 0 for directories of FAT.
    pub len_bytes: u64,
    /// Bytes that were written; the rest of the length reads as zeros.
    pub valid_bytes: u64,
    /// exFAT: clusters follow one another without a chain.
    pub is_contiguous: bool,
    /// Last modification. FAT keeps local time, which is taken for UTC.
    pub modified: SystemTime,
    /// Last access.
    pub accessed: SystemTime,
}

impl Item {
    /// The root directory, which has no entry.
    pub fn root() -> Self {
        Item {
            name: Vec::new(),
            first_slot: 0,
            slot: 0,
            is_dir: true,
            is_read_only: false,
            first_cluster: 0,
            len_bytes: 0,
            valid_bytes: 0,
            is_contiguous: false,
            modified: UNIX_EPOCH,
            accessed: UNIX_EPOCH,
        }
    }
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

/// What a part of a directory holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The items that are whole.
    pub items: Vec<Item>,
    /// Where the first item begins that is not, in units of 32 bytes: the length of the part when all
    /// are.
    pub next: usize,
    /// Whether the directory says that it ends in this part.
    pub is_end: bool,
}

/// The entries of a part of a FAT directory that are in use, without `.`, `..` and the label. The part
/// must begin where an item does.
pub fn parse_fat(bytes: &[u8], is_fat32: bool) -> Parsed {
    let mut parsed = Parsed::default();
    let mut long = LongName::default();
    for (entry, slot) in bytes.chunks_exact(32).zip(0..) {
        match entry[0] {
            0 => {
                parsed.is_end = true;
                break;
            }
            0xE5 => long = LongName::default(),
            _ if entry[11] & 0x3F == ATTRIBUTE_LONG_NAME => {
                long.push(entry);
                parsed.next = slot + 1 - long.units.len();
                continue;
            }
            _ => {
                let first = slot - long.units.len();
                let long_name = std::mem::take(&mut long).finish(&entry[..11]);
                if let Some(mut item) = fat_entry(entry, is_fat32) {
                    (item.first_slot, item.slot) = (first, slot);
                    item.name = long_name.unwrap_or_else(|| short_name(entry));
                    if item.name != b"." && item.name != b".." {
                        parsed.items.push(item);
                    }
                }
            }
        }
        parsed.next = slot + 1;
    }
    parsed
}

/// One 8.3 entry, `None` when it is no file or directory. Its name is left empty.
pub fn fat_entry(entry: &[u8], is_fat32: bool) -> Option<Item> {
    let attributes = entry[11];
    if matches!(entry[0], 0 | 0xE5) || attributes & ATTRIBUTE_LABEL != 0 {
        return None;
    }
    let high = if is_fat32 { le16(entry, 20) } else { 0 };
    let is_dir = attributes & ATTRIBUTE_DIRECTORY != 0;
    let len_bytes = if is_dir {
        0
    } else {
        u64::from(le32(entry, 28))
    };
    Some(Item {
        is_dir,
        is_read_only: attributes & ATTRIBUTE_READ_ONLY != 0,
        first_cluster: u32::from(high) << 16 | u32::from(le16(entry, 26)),
        len_bytes,
        valid_bytes: len_bytes,
        modified: dos_time(le16(entry, 24), le16(entry, 22), 0),
        accessed: dos_time(le16(entry, 18), 0, 0),
        ..Item::root()
    })
}

/// The parts of a long name, which come last part first before their 8.3 entry.
#[derive(Default)]
struct LongName {
    units: Vec<[u16; 13]>,
    next: u8,
    checksum: u8,
}

impl LongName {
    fn push(&mut self, entry: &[u8]) {
        const LAST: u8 = 0x40;
        let number = entry[0] & 0x3F;
        if entry[0] & LAST != 0 {
            *self = LongName {
                units: Vec::new(),
                next: number,
                checksum: entry[13],
            };
        }
        let fits = number == self.next && number != 0 && entry[13] == self.checksum;
        if !fits || self.units.len() >= MAX_NAME_ENTRIES {
            *self = LongName::default();
            return;
        }
        let at = |index: usize| match index {
            0..=4 => 1 + 2 * index,
            5..=10 => 14 + 2 * (index - 5),
            _ => 28 + 2 * (index - 11),
        };
        self.units
            .push(std::array::from_fn(|index| le16(entry, at(index))));
        self.next -= 1;
    }

    /// The name, when it is whole and belongs to this 8.3 name.
    fn finish(self, short: &[u8]) -> Option<Vec<u8>> {
        let checksum = short
            .iter()
            .fold(0u8, |sum, &byte| sum.rotate_right(1).wrapping_add(byte));
        if self.units.is_empty() || self.next != 0 || self.checksum != checksum {
            return None;
        }
        let units: Vec<u16> = self
            .units
            .iter()
            .rev()
            .flatten()
            .copied()
            .take_while(|&unit| unit != 0)
            .collect();
        (!units.is_empty()).then(|| utf16::to_bytes(&units))
    }
}

/// The upper half of code page 437, which 8.3 names are in unless a system says otherwise.
const CODE_PAGE_437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{A0}";

/// An 8.3 name; two bits say whether its parts were written in lower case.
fn short_name(entry: &[u8]) -> Vec<u8> {
    let part = |range: std::ops::Range<usize>, lower: bool| -> String {
        let mut raw = entry[range.clone()].to_vec();
        if range.start == 0 && raw[0] == 0x05 {
            raw[0] = 0xE5;
        }
        let end = raw.iter().rposition(|&b| b != b' ').map_or(0, |at| at + 1);
        raw[..end]
            .iter()
            .map(|&byte| match byte {
                0x80.. => CODE_PAGE_437
                    .chars()
                    .nth(usize::from(byte) - 0x80)
                    .unwrap_or(char::REPLACEMENT_CHARACTER),
                _ => byte as char,
            })
            .flat_map(|c| match lower {
                true => c.to_lowercase().collect::<Vec<_>>(),
                false => vec![c],
            })
            .collect()
    };
    let case = entry[12];
    let mut name = part(0..8, case & 0x08 != 0);
    let extension = part(8..11, case & 0x10 != 0);
    if !extension.is_empty() {
        name.push('.');
        name.push_str(&extension);
    }
    name.into_bytes()
}

/// The entry sets of a part of an exFAT directory that are in use. The part must begin where a set does;
/// `is_last` says that nothing comes behind it.
///
/// # Errors
/// `Corrupt` when a set in use is not whole or its checksum is wrong.
pub fn parse_exfat(bytes: &[u8], is_last: bool) -> Result<Parsed> {
    let entries: Vec<&[u8]> = bytes.chunks_exact(32).collect();
    let mut parsed = Parsed::default();
    while let Some(entry) = entries.get(parsed.next) {
        match entry[0] {
            0 => {
                parsed.is_end = true;
                break;
            }
            FILE => {
                let end = parsed.next + 1 + usize::from(entry[1]);
                if !(2..=18).contains(&entry[1]) || (end > entries.len() && is_last) {
                    return Err(bad("an entry set is not whole"));
                }
                let Some(set) = entries.get(parsed.next..end) else {
                    break;
                };
                parsed.items.push(exfat_item(set, parsed.next)?);
                parsed.next = end;
            }
            _ => parsed.next += 1,
        }
    }
    Ok(parsed)
}

fn exfat_item(set: &[&[u8]], slot: usize) -> Result<Item> {
    const NAME: u8 = 0xC1;
    let file = set[0];
    let mut sum = 0u16;
    for (byte, index) in set.iter().flat_map(|entry| entry.iter()).zip(0usize..) {
        if index != 2 && index != 3 {
            sum = sum.rotate_right(1).wrapping_add(u16::from(*byte));
        }
    }
    if sum != le16(file, 2) {
        return Err(bad("an entry set has a wrong checksum"));
    }
    let mut item = exfat_stream(set[1]).ok_or_else(|| bad("an entry set has no stream"))?;
    let name_units = usize::from(set[1][3]);
    let units: Vec<u16> = set[2..]
        .iter()
        .filter(|entry| entry[0] == NAME)
        .flat_map(|entry| (0..15).map(|index| le16(entry, 2 + 2 * index)))
        .take(name_units)
        .collect();
    if units.len() != name_units || units.is_empty() {
        return Err(bad("an entry set lacks a part of its name"));
    }
    item = with_file_entry(item, file);
    item.name = utf16::to_bytes(&units);
    (item.first_slot, item.slot) = (slot, slot);
    Ok(item)
}

/// The first two entries of a set by themselves, `None` when they are not that. The name is left empty.
pub fn exfat_pair(file: &[u8], stream: &[u8]) -> Option<Item> {
    let item = exfat_stream(stream).filter(|_| file[0] == FILE)?;
    Some(with_file_entry(item, file))
}

/// Adds what the file entry of a set says.
fn with_file_entry(mut item: Item, file: &[u8]) -> Item {
    let attributes = file[4];
    item.is_dir = attributes & ATTRIBUTE_DIRECTORY != 0;
    item.is_read_only = attributes & ATTRIBUTE_READ_ONLY != 0;
    let stamp = |at: usize, hundredths: u8, offset: u8| {
        let raw = le32(file, at);
        zoned(dos_time((raw >> 16) as u16, raw as u16, hundredths), offset)
    };
    item.modified = stamp(12, file[21], file[23]);
    item.accessed = stamp(16, 0, file[24]);
    item
}

/// What a stream extension says.
fn exfat_stream(entry: &[u8]) -> Option<Item> {
    const STREAM: u8 = 0xC0;
    if entry[0] != STREAM {
        return None;
    }
    let le64 = |at: usize| u64::from(le32(entry, at)) | u64::from(le32(entry, at + 4)) << 32;
    Some(Item {
        is_dir: false,
        is_contiguous: entry[1] & 2 != 0,
        first_cluster: le32(entry, 20),
        valid_bytes: le64(8).min(le64(24)),
        len_bytes: le64(24),
        ..Item::root()
    })
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("exfat: {message}"))
}

/// A date and time of day as DOS packs them, with hundredths of a second, taken for UTC.
fn dos_time(date: u16, clock: u16, hundredths: u8) -> SystemTime {
    if date == 0 {
        return UNIX_EPOCH;
    }
    let (day, month) = (i64::from(date & 31), i64::from(date >> 5 & 15));
    let (day, month) = (day.max(1), month.clamp(1, 12));
    let year = 1980 + i64::from(date >> 9);
    // Days since 1970 of a civil date, with years that start in March.
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = i64::from(clock >> 11) * 3600
        + i64::from(clock >> 5 & 63) * 60
        + i64::from(clock & 31) * 2
        + i64::from(hundredths / 100);
    time(
        days * 86_400 + seconds,
        u32::from(hundredths % 100) * 10_000_000,
    )
}

/// A local time with exFAT's offset (quarter hours, valid when the top bit is set) as UTC.
fn zoned(local: SystemTime, offset: u8) -> SystemTime {
    if offset & 0x80 == 0 {
        return local;
    }
    let quarters = i64::from(((offset << 1) as i8) >> 1);
    let shift = Duration::from_secs(quarters.unsigned_abs() * 900);
    match quarters {
        0.. => local.checked_sub(shift),
        _ => local.checked_add(shift),
    }
    .unwrap_or(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_have_their_case_and_code_page() {
        let mut entry = [b' '; 32];
        entry[..11].copy_from_slice(b"README  TXT");
        entry[12] = 0x08;
        assert_eq!(short_name(&entry), b"readme.TXT");
        entry[..11].copy_from_slice(b"\x05\x81      \xE1  ");
        entry[12] = 0;
        assert_eq!(short_name(&entry), "σü.ß".as_bytes());
    }

    #[test]
    fn times_are_civil_times() {
        let at = |date, clock, hundredths| {
            dos_time(date, clock, hundredths)
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_millis()
        };
        assert_eq!(at(0x21, 0, 0), 315_532_800_000);
        assert_eq!(
            at(
                (2024 - 1980) << 9 | 2 << 5 | 29,
                12 << 11 | 34 << 5 | 28,
                150
            ),
            1_709_210_097_500
        );
        let utc = zoned(UNIX_EPOCH + Duration::from_secs(7200), 0x80 | 8);
        assert_eq!(utc, UNIX_EPOCH);
        assert_eq!(
            zoned(UNIX_EPOCH, 0x80 | 0x7C),
            UNIX_EPOCH + Duration::from_secs(3600)
        );
    }

    /// The entries of a file with a long name.
    fn long_entries(name: &str, short: &[u8; 11]) -> Vec<u8> {
        let sum = short
            .iter()
            .fold(0u8, |sum, &byte| sum.rotate_right(1).wrapping_add(byte));
        let mut units: Vec<u16> = name.encode_utf16().collect();
        units.push(0);
        units.resize(units.len().next_multiple_of(13), 0xFFFF);
        let count = units.len() / 13;
        let mut out = Vec::new();
        for (part, index) in units
            .chunks(13)
            .zip(1u8..)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            let mut entry = [0; 32];
            entry[0] = index | if usize::from(index) == count { 0x40 } else { 0 };
            entry[11] = ATTRIBUTE_LONG_NAME;
            entry[13] = sum;
            for (unit, at) in part.iter().zip(
                (1..11)
                    .step_by(2)
                    .chain((14..26).step_by(2))
                    .chain([28, 30]),
            ) {
                entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            out.extend(entry);
        }
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(short);
        out.extend(entry);
        out
    }

    #[test]
    fn a_directory_in_parts_is_the_same_wherever_they_end() {
        let mut bytes = Vec::new();
        for index in 0..9u8 {
            let short = *b"SHORT~0 TXT";
            bytes.extend(long_entries(
                &format!("a rather long name number {index}"),
                &short,
            ));
            bytes.extend([0xE5; 32]);
        }
        let names = |items: &[Item]| items.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        let whole = parse_fat(&bytes, true);
        assert_eq!((whole.items.len(), whole.next * 32), (9, bytes.len()));
        for slots in 4..20 {
            let mut all = Vec::new();
            let mut start = 0;
            while start * 32 < bytes.len() {
                let end = bytes.len().min((start + slots) * 32);
                let part = parse_fat(&bytes[start * 32..end], true);
                assert!(part.next > 0);
                for item in &part.items {
                    let first = (start + item.first_slot) * 32;
                    assert_eq!(parse_fat(&bytes[first..], true).items[0].name, item.name);
                }
                all.extend(names(&part.items));
                start += part.next;
            }
            assert_eq!(all, names(&whole.items), "{slots}");
        }
    }

    #[test]
    fn damaged_directories_never_panic() {
        let mut state = 7u64;
        for _ in 0..300 {
            let bytes: Vec<u8> = (0..640)
                .map(|index| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let kinds = [0x85, 0xC0, 0xC1, 0x41, 0x42, b'A'];
                    match index % 32 {
                        0 => kinds[(state >> 40) as usize % 6],
                        11 if state >> 63 == 0 => 0x0F,
                        _ => (state >> 33) as u8,
                    }
                })
                .collect();
            parse_fat(&bytes, true);
            let _ = parse_exfat(&bytes, true);
        }
    }
}
