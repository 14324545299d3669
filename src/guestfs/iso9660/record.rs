//! Directory records of ISO 9660 (ECMA-119, 9.1) and their names.

use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::guestfs::common::unix::time;

/// Bytes of a record before its name.
const FIXED_BYTES: usize = 33;
const FLAG_DIRECTORY: u8 = 0x02;
const FLAG_ASSOCIATED: u8 = 0x04;
const FLAG_MULTI_EXTENT: u8 = 0x80;

/// One directory record.
#[derive(Debug, Clone)]
pub struct Record {
    /// First byte of the record on the volume.
    pub at: u64,
    /// Its length in bytes.
    pub len: usize,
    /// First block of the content, in logical blocks.
    pub first_block: u64,
    /// Bytes of content in this extent.
    pub size: u32,
    /// The date.
    pub time: SystemTime,
    /// A directory.
    pub is_dir: bool,
    /// A resource fork or the like of the file that follows: not shown.
    pub is_associated: bool,
    /// The file goes on in the next record.
    pub is_continued: bool,
    /// The content lies in units with gaps between them.
    pub is_interleaved: bool,
    /// The name as stored: `\0` for the directory itself, `\1` for its parent.
    pub name: Vec<u8>,
    /// The system use area: what Rock Ridge keeps its fields in.
    pub system_use: Vec<u8>,
}

impl Record {
    /// The record at the start of `bytes`, which lies at `at` on the volume; `None` where a sector has no
    /// further records.
    ///
    /// # Errors
    /// `Corrupt` when the lengths do not fit together.
    pub fn parse(bytes: &[u8], at: u64) -> Result<Option<Record>> {
        let len = match bytes.first() {
            None | Some(0) => return Ok(None),
            Some(&len) => usize::from(len),
        };
        let bad = || Error::corrupt("iso9660: a directory record makes no sense").at(at);
        let all = bytes.get(..len).ok_or_else(bad)?;
        if len <= FIXED_BYTES {
            return Err(bad());
        }
        let name_len = usize::from(all[32]);
        let name = all
            .get(FIXED_BYTES..FIXED_BYTES + name_len)
            .filter(|name| !name.is_empty())
            .ok_or_else(bad)?;
        // Names of even length are followed by a byte of padding.
        let system_use = FIXED_BYTES + name_len + usize::from(name_len.is_multiple_of(2));
        let flags = all[25];
        Ok(Some(Record {
            at,
            len,
            first_block: u64::from(le32(all, 2)) + u64::from(all[1]),
            size: le32(all, 10),
            time: short_time(&all[18..25]),
            is_dir: flags & FLAG_DIRECTORY != 0,
            is_associated: flags & FLAG_ASSOCIATED != 0,
            is_continued: flags & FLAG_MULTI_EXTENT != 0,
            is_interleaved: all[26] != 0 || all[27] != 0,
            name: name.to_vec(),
            system_use: all.get(system_use..).unwrap_or_default().to_vec(),
        }))
    }

    /// Whether this is the directory itself or its parent.
    pub fn is_dot(&self) -> bool {
        matches!(self.name[..], [0 | 1])
    }

    /// The name without Rock Ridge and Joliet, as Linux shows it by default: in lower case, without
    /// `;1` and a dot before it; other `;`, and `/`, as dots.
    pub fn plain_name(&self) -> Vec<u8> {
        let name = &self.name[..];
        let name = name.strip_suffix(b".;1").unwrap_or(name);
        let name = name.strip_suffix(b";1").unwrap_or(name);
        name.iter()
            .map(|byte| match byte {
                b';' | b'/' => b'.',
                other => other.to_ascii_lowercase(),
            })
            .collect()
    }

    /// The name in a Joliet directory: UCS-2, without `;1` and without dots at its end, as Linux has it.
    pub fn joliet_name(&self) -> Vec<u8> {
        let units = self
            .name
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| u16::from_be_bytes(*pair));
        let text: String = char::decode_utf16(units)
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        let mut name = text.strip_suffix(";1").unwrap_or(&text);
        while let Some(shorter) = name.strip_suffix('.').filter(|rest| !rest.is_empty()) {
            name = shorter;
        }
        name.as_bytes().to_vec()
    }
}

/// Little-endian 32 bits, which is the first half of ISO 9660's numbers in both byte orders; 0 past the
/// end.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// A date in 7 bytes: years since 1900, month, day, hour, minute, second, and quarters of an hour east of
/// Greenwich.
pub fn short_time(bytes: &[u8]) -> SystemTime {
    let [year, month, day, hour, minute, second, zone] = *bytes else {
        return time(0, 0);
    };
    seconds(
        1900 + i64::from(year),
        [month, day, hour, minute, second].map(i64::from),
        zone,
    )
    .map_or(time(0, 0), |at| time(at, 0))
}

/// A date in 17 bytes: 16 digits down to hundredths of a second, and the zone.
pub fn long_time(bytes: &[u8]) -> SystemTime {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0, |sum, digit| {
            digit
                .is_ascii_digit()
                .then(|| sum * 10 + i64::from(digit - b'0'))
        })
    };
    let parse = || {
        let rest = [
            number(4, 6)?,
            number(6, 8)?,
            number(8, 10)?,
            number(10, 12)?,
            number(12, 14)?,
        ];
        let at = seconds(number(0, 4)?, rest, *bytes.get(16)?)?;
        Some(time(at, number(14, 16)? as u32 * 10_000_000))
    };
    parse().unwrap_or(time(0, 0))
}

/// Seconds since 1970; `None` when there is no such date.
fn seconds(year: i64, rest: [i64; 5], zone: u8) -> Option<i64> {
    let [month, day, hour, minute, second] = rest;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from 1970-01-01 in the Gregorian calendar, with years that begin in March.
    let (y, m) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days =
        y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day
            - 1
            - 719_468;
    // Linux ignores zones that cannot be.
    let quarters = match i64::from(zone.cast_signed()) {
        zone @ -52..=52 => zone,
        _ => 0,
    };
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - quarters * 900)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn named(name: &[u8]) -> Record {
        let len = 33 + name.len() + usize::from(name.len().is_multiple_of(2));
        let mut bytes = vec![0; len];
        bytes[0] = len as u8;
        bytes[32] = name.len() as u8;
        bytes[33..33 + name.len()].copy_from_slice(name);
        Record::parse(&bytes, 0).unwrap().unwrap()
    }

    #[test]
    fn names_lose_what_the_kernel_takes_away() {
        for (stored, shown) in [
            (&b"README.TXT;1"[..], &b"readme.txt"[..]),
            (b"MAKEFILE.;1", b"makefile"),
            (b"OLD.C;2", b"old.c.2"),
            (b"DIR", b"dir"),
        ] {
            assert_eq!(named(stored).plain_name(), shown);
        }
        let wide =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_be_bytes).collect() };
        for (stored, shown) in [
            ("Späße.txt;1", "Späße.txt"),
            ("dots..;1", "dots"),
            ("😀", "😀"),
        ] {
            assert_eq!(named(&wide(stored)).joliet_name(), shown.as_bytes());
        }
    }

    #[test]
    fn dates_are_taken_with_their_zones_and_nonsense_is_the_epoch() {
        let at = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_millis();
        // 2024-02-29 12:30:15, two hours east: 10:30:15 UTC.
        assert_eq!(
            at(short_time(&[124, 2, 29, 12, 30, 15, 8])),
            1_709_202_615_000
        );
        assert_eq!(at(long_time(b"2024022912301525\x08")), 1_709_202_615_250);
        assert_eq!(at(short_time(&[70, 13, 1, 0, 0, 0, 0])), 0);
        assert_eq!(at(long_time(b"0000000000000000\0")), 0);
        assert!(short_time(&[60, 1, 1, 0, 0, 0, 0]) < UNIX_EPOCH);
    }

    #[test]
    fn records_that_do_not_fit_are_refused() {
        let mut bytes = vec![0; 64];
        assert!(Record::parse(&bytes, 0).unwrap().is_none());
        for (len, name_len) in [(33, 1), (40, 8), (40, 0), (65, 1), (255, 1)] {
            bytes[0] = len;
            bytes[32] = name_len;
            assert!(Record::parse(&bytes, 0).is_err(), "{len} {name_len}");
        }
    }
}
