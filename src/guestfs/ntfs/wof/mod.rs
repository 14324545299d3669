//! Files that Windows compresses outside of its file system ("Compact OS", `compact /exe`).
//!
//! Such a file has a reparse point for the Windows overlay filter (WOF), an unnamed stream that is one hole
//! as long as the file, and its content in chunks in the stream [`STREAM`]: a table of where the chunks
//! begin, behind the table, in 4 bytes each, or 8 when the file has 4 GiB; without the first one, which
//! begins at 0. A chunk that is as long as what it stands for is stored as it is. Sources: `WOF_EXTERNAL_INFO`
//! and `FILE_PROVIDER_EXTERNAL_INFO` in Microsoft's documentation, and the chunk tables of the Windows
//! Imaging format, which are the same.

mod bits;
mod error;
mod huffman;
mod lzx;
mod matches;
mod xpress;

use std::ops::Range;
use std::sync::Arc;

use self::error::bad;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::utf16::ascii;
use crate::io::{Extent, ExtentKind, ReadAt};
use crate::volume::bits::index;

/// The stream with the chunks.
pub const STREAM: [u16; 17] = ascii(b"WofCompressedData");

const PROVIDER_WIM: u32 = 1;
const PROVIDER_FILE: u32 = 2;
/// Files of this length and longer have wide tables.
const WIDE_FROM: u64 = 1 << 32;

/// How chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// XPRESS, chunks of 4 KiB.
    Xpress4K,
    /// LZX, chunks of 32 KiB.
    Lzx,
    /// XPRESS, chunks of 8 KiB.
    Xpress8K,
    /// XPRESS, chunks of 16 KiB.
    Xpress16K,
}

impl Algorithm {
    /// What a reparse point says (its whole value, with the tag).
    ///
    /// # Errors
    /// `Unsupported` for files that are kept in an image, and for what is not known; `Corrupt` when the
    /// value is too short.
    pub fn of_reparse_point(value: &[u8]) -> Result<Self> {
        let field = |at: usize| {
            let bytes = value.get(at..at + 4).and_then(|b| b.first_chunk());
            bytes
                .map(|bytes| u32::from_le_bytes(*bytes))
                .ok_or_else(|| bad("the reparse point is too short"))
        };
        let unknown = |what: &str, number: u32| {
            Err(Error::new(
                ErrorKind::Unsupported,
                format!("a file compressed by the system (WOF) with {what} {number} is not read"),
            ))
        };
        match (field(8)?, field(12)?) {
            (1, PROVIDER_FILE) => {}
            (1, PROVIDER_WIM) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "a file whose content is in a Windows image (WIMBoot) is not read",
                ));
            }
            (1, other) => return unknown("provider", other),
            (other, _) => return unknown("version", other),
        }
        match (field(16)?, field(20)?) {
            (1, 0) => Ok(Algorithm::Xpress4K),
            (1, 1) => Ok(Algorithm::Lzx),
            (1, 2) => Ok(Algorithm::Xpress8K),
            (1, 3) => Ok(Algorithm::Xpress16K),
            (1, other) => unknown("algorithm", other),
            (other, _) => unknown("file provider version", other),
        }
    }

    /// How much a chunk stands for, except the last one.
    pub fn chunk_bytes(self) -> u64 {
        match self {
            Algorithm::Xpress4K => 4 << 10,
            Algorithm::Xpress8K => 8 << 10,
            Algorithm::Xpress16K => 16 << 10,
            Algorithm::Lzx => lzx::MAX_BYTES as u64,
        }
    }

    /// Unpacks one chunk; `out`, at most [`Algorithm::chunk_bytes`], is as long as what was packed.
    ///
    /// # Errors
    /// `Corrupt` when the chunk does not stand for exactly so many bytes.
    pub fn unpack(self, packed: &[u8], out: &mut [u8]) -> Result<()> {
        if packed.len() == out.len() {
            out.copy_from_slice(packed);
            return Ok(());
        }
        match self {
            Algorithm::Lzx => lzx::unpack(packed, out),
            _ => xpress::unpack(packed, out),
        }
    }
}

/// The content of a file in chunks.
pub struct Chunks {
    stored: Arc<dyn ReadAt>,
    algorithm: Algorithm,
    len_bytes: u64,
    count: u64,
    /// Bytes of a place in the table.
    place_bytes: u64,
    /// Bytes of chunks behind the table.
    data_bytes: u64,
}

impl Chunks {
    /// The content of a file of `len_bytes` bytes, of which `stored` is the stream [`STREAM`].
    ///
    /// # Errors
    /// `Corrupt` when the table cannot be in there.
    pub fn new(stored: Arc<dyn ReadAt>, algorithm: Algorithm, len_bytes: u64) -> Result<Self> {
        let count = len_bytes.div_ceil(algorithm.chunk_bytes());
        let place_bytes = match len_bytes < WIDE_FROM {
            true => 4,
            false => 8,
        };
        // No overflow: a chunk has more bytes than a place.
        let table_bytes = count.saturating_sub(1) * place_bytes;
        let data_bytes = stored
            .len_bytes()
            .checked_sub(table_bytes)
            .ok_or_else(|| bad("the table of chunks is cut off"))?;
        Ok(Chunks {
            stored,
            algorithm,
            len_bytes,
            count,
            place_bytes,
            data_bytes,
        })
    }

    /// What a chunk stands for.
    fn plain(&self, number: u64) -> Range<u64> {
        let start = number * self.algorithm.chunk_bytes();
        start..self.len_bytes.min(start + self.algorithm.chunk_bytes())
    }

    /// Where chunks begin behind the table, and where the last one of them ends.
    fn places(&self, chunks: Range<u64>) -> Result<Vec<u64>> {
        // The table begins with the place of chunk 1.
        let listed = chunks.start.max(1)..self.count.min(chunks.end + 1);
        let mut table = vec![0; index((listed.end - listed.start) * self.place_bytes)];
        let at = (listed.start - 1) * self.place_bytes;
        self.stored.read_exact_at(&mut table, at)?;
        let mut places = Vec::with_capacity(index(chunks.end - chunks.start) + 1);
        if chunks.start == 0 {
            places.push(0);
        }
        places.extend(table.chunks_exact(index(self.place_bytes)).map(|bytes| {
            let digits = bytes.iter().rev();
            digits.fold(0, |all, &byte| all << 8 | u64::from(byte))
        }));
        if chunks.end == self.count {
            places.push(self.data_bytes);
        }
        for (number, (start, end)) in chunks.zip(pairs(&places)) {
            let plain = self.plain(number);
            let is_sound = |len: u64| len > 0 && len <= plain.end - plain.start;
            if !end.checked_sub(start).is_some_and(is_sound) || end > self.data_bytes {
                return Err(bad("a chunk is nowhere, or longer than what it stands for"));
            }
        }
        Ok(places)
    }
}

/// Each place with the one behind it.
fn pairs(places: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    let behind = places.iter().skip(1).copied();
    places.iter().copied().zip(behind)
}

impl ReadAt for Chunks {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let chunk_bytes = self.algorithm.chunk_bytes();
        let wanted = offset..offset + buf.len() as u64;
        let chunks = wanted.start / chunk_bytes..wanted.end.div_ceil(chunk_bytes);
        let places = self.places(chunks.clone())?;
        let [first, .., last] = places[..] else {
            return Err(bad("there are no chunks"));
        };
        let mut packed = vec![0; index(last - first)];
        let data_at = (self.count - 1) * self.place_bytes;
        self.stored.read_exact_at(&mut packed, data_at + first)?;
        let mut cut = Vec::new();
        let lost = || bad("a chunk is not where it was");
        for (number, (start, end)) in chunks.zip(pairs(&places)) {
            let packed = packed.get(index(start - first)..index(end - first));
            let packed = packed.ok_or_else(lost)?;
            let plain = self.plain(number);
            let part = plain.start.max(wanted.start)..plain.end.min(wanted.end);
            let to = buf.get_mut(index(part.start - offset)..index(part.end - offset));
            let to = to.ok_or_else(lost)?;
            if part == plain {
                self.algorithm.unpack(packed, to)?;
                continue;
            }
            cut.resize(index(plain.end - plain.start), 0);
            self.algorithm.unpack(packed, &mut cut)?;
            let within = index(part.start - plain.start);
            to.copy_from_slice(cut.get(within..within + to.len()).ok_or_else(lost)?);
        }
        Ok(())
    }

    /// Windows tells nothing of holes in such a file.
    fn extent_at(&self, _offset: u64) -> Result<Extent> {
        Ok(Extent {
            kind: ExtentKind::Data,
            end: u64::MAX,
        })
    }
}

#[cfg(test)]
mod tests;
