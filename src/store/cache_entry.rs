//! One entry of the cache directory: a file with a header, sums of pieces, and the content.
//!
//! | at | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 32 | key |
//! | 40 | 16 | version, little-endian as all that follows |
//! | 56 | 12 | modified: seconds and nanoseconds; all ones: unknown |
//! | 68 | 8 | length of the content |
//! | 76 | 8 | XXH3 of all above and of the table |
//! | 84 | 8 × pieces | table: XXH3 of each piece |
//! | | | content |
//!
//! Pieces are short, so that part of an entry can be read, and what is read is checked. Blocks have a
//! bitmap in front of a power of two: the odd piece stands first, so that reads of a disk rarely touch
//! a piece more than they need.
//!
//! The sums are against storage that fails, not against people: whoever can write to the directory is
//! the one who reads from it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::{Meta, Version};
use crate::buffers::Buffer;
use crate::error::{Error, Result};
use crate::io::check_range;

/// What an entry is: a hash of everything its content depends on.
pub(super) type EntryKey = [u8; 32];

const MAGIC: &[u8; 8] = b"brfsblk2";
const HEADER_BYTES: usize = 84;
const SUM_AT: usize = HEADER_BYTES - 8;
const PIECE_BYTES: u64 = 16 << 10;

/// An open entry whose header and table are sound. Its content is checked as it is read.
pub(super) struct CacheEntry {
    file: File,
    meta: Meta,
    /// XXH3 of each piece, little-endian.
    sums: Vec<u8>,
}

/// The pieces of a content of a given length.
#[derive(Clone, Copy)]
struct Pieces {
    len: u64,
    /// Length of the first piece when it is shorter than the others.
    odd: u64,
}

impl Pieces {
    fn of(len: u64) -> Self {
        Pieces {
            len,
            odd: len % PIECE_BYTES,
        }
    }

    fn count(self) -> u64 {
        self.len.div_ceil(PIECE_BYTES)
    }

    /// The piece that holds the byte at `offset`: its number, where it begins and ends.
    fn at(self, offset: u64) -> (u64, u64, u64) {
        if offset < self.odd {
            return (0, 0, self.odd);
        }
        let number = (offset - self.odd) / PIECE_BYTES;
        let start = self.odd + number * PIECE_BYTES;
        let first = u64::from(self.odd > 0);
        (first + number, start, start + PIECE_BYTES)
    }

    /// Calls `f` with each piece's number and bytes.
    fn each(self, content: &[u8], mut f: impl FnMut(u64, &[u8])) {
        let (odd, rest) = content.split_at(self.odd as usize);
        let odd = (!odd.is_empty()).then_some(odd);
        let pieces = odd.into_iter().chain(rest.chunks(PIECE_BYTES as usize));
        for (number, piece) in (0..).zip(pieces) {
            f(number, piece);
        }
    }
}

/// Bytes that the entry of a content takes on disk.
pub(super) fn file_len(content_len: u64) -> u64 {
    let table = Pieces::of(content_len).count().saturating_mul(8);
    content_len
        .saturating_add(table)
        .saturating_add(HEADER_BYTES as u64)
}

/// Writes an entry.
pub(super) fn write(
    mut file: &File,
    key: &EntryKey,
    content: &[u8],
    meta: &Meta,
) -> io::Result<()> {
    let mut head = Vec::with_capacity(file_len(content.len() as u64) as usize - content.len());
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(key);
    head.extend_from_slice(&meta.version.0.to_le_bytes());
    let since = meta
        .modified
        .and_then(|m| m.duration_since(SystemTime::UNIX_EPOCH).ok());
    let (seconds, nanos) = since.map_or((u64::MAX, u32::MAX), |d| (d.as_secs(), d.subsec_nanos()));
    head.extend_from_slice(&seconds.to_le_bytes());
    head.extend_from_slice(&nanos.to_le_bytes());
    head.extend_from_slice(&(content.len() as u64).to_le_bytes());
    head.extend_from_slice(&[0; 8]);
    Pieces::of(content.len() as u64).each(content, |_, piece| {
        head.extend_from_slice(&XxHash3_64::oneshot(piece).to_le_bytes());
    });
    let sum = head_sum(&head);
    head[SUM_AT..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    file.write_all(&head)?;
    file.write_all(content)
}

/// The sum of the header, without itself, and the table.
fn head_sum(head: &[u8]) -> u64 {
    let table = XxHash3_64::oneshot(&head[HEADER_BYTES..]);
    XxHash3_64::oneshot_with_seed(table, &head[..SUM_AT])
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..at + 8)?
        .try_into()
        .ok()
        .map(u64::from_le_bytes)
}

impl CacheEntry {
    /// Reads header and table. `None` when they are not exactly what was written for `key`, or
    /// when the content is longer than `max_len`.
    pub(super) fn open(mut file: File, key: &EntryKey, max_len: u64) -> Option<CacheEntry> {
        let len = file.metadata().ok()?.len();
        let mut head = vec![0; HEADER_BYTES];
        file.read_exact(&mut head).ok()?;
        let content_len = u64_at(&head, 68)?;
        if content_len > max_len || file_len(content_len) != len {
            return None;
        }
        let table_bytes = Pieces::of(content_len).count() * 8;
        head.resize(HEADER_BYTES + table_bytes as usize, 0);
        file.read_exact(&mut head[HEADER_BYTES..]).ok()?;
        if &head[..8] != MAGIC
            || head[8..40] != key[..]
            || u64_at(&head, SUM_AT)? != head_sum(&head)
        {
            return None;
        }
        let seconds = u64_at(&head, 56)?;
        let nanos = u32::from_le_bytes(head[64..68].try_into().ok()?);
        let modified = (nanos < 1_000_000_000)
            .then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)))
            .flatten();
        let meta = Meta {
            len_bytes: content_len,
            modified,
            version: Version(u128::from_le_bytes(head[40..56].try_into().ok()?)),
        };
        let sums = head.split_off(HEADER_BYTES);
        Some(CacheEntry { file, meta, sums })
    }

    /// The state of the object when it was kept.
    pub(super) fn meta(&self) -> Meta {
        self.meta
    }

    /// The file, for its times.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn content_start(&self) -> u64 {
        (HEADER_BYTES + self.sums.len()) as u64
    }

    fn is_sound(&self, number: u64, piece: &[u8]) -> bool {
        let sum = u64_at(&self.sums, number as usize * 8);
        sum == Some(XxHash3_64::oneshot(piece))
    }

    /// The whole content, `None` when it is damaged.
    pub(super) fn read_all(&self) -> Option<Bytes> {
        let mut content = Buffer::new(self.meta.len_bytes as usize);
        let read = self.file.read_exact_at(&mut content, self.content_start());
        read.ok()?;
        let mut sound = true;
        Pieces::of(self.meta.len_bytes).each(&content, |number, piece| {
            sound &= self.is_sound(number, piece);
        });
        sound.then(|| content.into_bytes())
    }

    /// Fills `buf` from `offset` of the content.
    ///
    /// # Errors
    /// `Invalid` when that leaves the content, `Corrupt` when a piece of it is damaged.
    pub(super) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.meta.len_bytes)?;
        let damaged = || Error::corrupt("an entry of the cache directory is damaged");
        let read = |piece: &mut [u8], at: u64| {
            let read = self.file.read_exact_at(piece, self.content_start() + at);
            read.map_err(|e| Error::from_io(e, "an entry of the cache directory cannot be read"))
        };
        let pieces = Pieces::of(self.meta.len_bytes);
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let (number, start, stop) = pieces.at(at);
            if at == start && stop <= end {
                // As many whole pieces as there are, with one call.
                let stop_of_run = stop + (end - stop) / PIECE_BYTES * PIECE_BYTES;
                let run = &mut buf[(at - offset) as usize..(stop_of_run - offset) as usize];
                read(run, start)?;
                let (first, others) = run.split_at((stop - start) as usize);
                let run = std::iter::once(first).chain(others.chunks(PIECE_BYTES as usize));
                if !(number..)
                    .zip(run)
                    .all(|(n, piece)| self.is_sound(n, piece))
                {
                    return Err(damaged());
                }
                at = stop_of_run;
                continue;
            }
            let mut piece = [0; PIECE_BYTES as usize];
            let piece = &mut piece[..(stop - start) as usize];
            read(piece, start)?;
            if !self.is_sound(number, piece) {
                return Err(damaged());
            }
            let to = stop.min(end);
            buf[(at - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&piece[(at - start) as usize..(to - start) as usize]);
            at = to;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: EntryKey = [7; 32];

    fn entry_of(content: &[u8]) -> (tempfile::NamedTempFile, Meta) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let meta = Meta {
            len_bytes: content.len() as u64,
            modified: Some(SystemTime::UNIX_EPOCH + Duration::new(5, 6)),
            version: Version(7 << 99),
        };
        write(file.as_file(), &KEY, content, &meta).unwrap();
        assert_eq!(
            file.as_file().metadata().unwrap().len(),
            file_len(meta.len_bytes)
        );
        (file, meta)
    }

    fn open(file: &tempfile::NamedTempFile) -> Option<CacheEntry> {
        CacheEntry::open(file.reopen().unwrap(), &KEY, 1 << 20)
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len as u32).map(|n| (n * 31 + n / 251) as u8).collect()
    }

    #[test]
    fn any_part_of_an_entry_of_any_length_reads_as_it_was_written() {
        let piece = PIECE_BYTES as usize;
        for len in [
            0,
            1,
            512,
            piece - 1,
            piece,
            piece + 512,
            5 * piece,
            5 * piece + 512,
        ] {
            let content = content(len);
            let (file, meta) = entry_of(&content);
            let entry = open(&file).unwrap();
            assert_eq!(entry.meta(), meta);
            assert_eq!(entry.read_all().unwrap(), content);
            let edges = [
                0,
                1,
                511,
                512,
                513,
                piece,
                piece + 512,
                3 * piece + 512,
                len,
            ];
            for from in edges.into_iter().filter(|&from| from <= len) {
                for to in edges.into_iter().filter(|&to| from <= to && to <= len) {
                    let mut buf = vec![0; to - from];
                    entry.read_exact_at(&mut buf, from as u64).unwrap();
                    assert_eq!(buf, content[from..to], "{from}..{to} of {len}");
                }
            }
            assert!(entry.read_exact_at(&mut [0], len as u64).is_err());
        }
    }

    #[test]
    fn no_damaged_byte_is_ever_given() {
        let piece = PIECE_BYTES as usize;
        let content = content(3 * piece + 512);
        let (file, _) = entry_of(&content);
        let sound = std::fs::read(file.path()).unwrap();
        let content_at = sound.len() - content.len();
        // The header and the table.
        for at in (0..content_at).chain([sound.len()]) {
            let mut bytes = sound.clone();
            match bytes.get_mut(at) {
                Some(byte) => *byte ^= 4,
                None => bytes.push(0),
            }
            std::fs::write(file.path(), bytes).unwrap();
            assert!(open(&file).is_none(), "byte {at}");
        }
        // The content: the piece that is damaged fails, its neighbours do not.
        for at in [0, 511, 512, piece + 511, piece + 512, content.len() - 1] {
            let mut bytes = sound.clone();
            bytes[content_at + at] ^= 1;
            std::fs::write(file.path(), bytes).unwrap();
            let entry = open(&file).unwrap();
            assert!(entry.read_all().is_none());
            let mut given = 0;
            for from in (0..content.len()).step_by(512) {
                let mut buf = [0; 512];
                if entry.read_exact_at(&mut buf, from as u64).is_ok() {
                    assert_eq!(buf, content[from..from + 512]);
                    given += 1;
                }
            }
            let lost = if at < 512 { 1 } else { piece / 512 };
            assert_eq!(given, content.len() / 512 - lost, "byte {at}");
            assert!(entry.read_exact_at(&mut vec![0; content.len()], 0).is_err());
        }
        // Cut short after it was opened.
        std::fs::write(file.path(), &sound).unwrap();
        let entry = open(&file).unwrap();
        file.as_file().set_len(sound.len() as u64 - 1).unwrap();
        assert!(entry.read_all().is_none());
        assert!(
            entry
                .read_exact_at(&mut [0], content.len() as u64 - 1)
                .is_err()
        );
        assert!(open(&file).is_none());
    }

    #[test]
    fn an_entry_is_only_itself() {
        let (file, _) = entry_of(&content(1000));
        assert!(CacheEntry::open(file.reopen().unwrap(), &[8; 32], 1 << 20).is_none());
        assert!(CacheEntry::open(file.reopen().unwrap(), &KEY, 999).is_none());
        assert!(CacheEntry::open(file.reopen().unwrap(), &KEY, 1000).is_some());
    }
}
