//! Random access to immutable bytes: the one contract for bytes between all layers.
//!
//! A stored file, a disk, a partition, a logical volume, a guest file and metadata in memory are all
//! "so many bytes that can be read at any offset". Nothing here knows where the bytes come from.

use bytes::Bytes;

use crate::error::{Error, Result};

/// What lies at an offset: data, or a hole that reads as zeros and costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored bytes (which may happen to be zeros).
    Data,
    /// Nothing is stored; reads give zeros.
    Hole,
}

/// A run of one kind. `end` (exclusive, bytes) is always greater than the offset asked for and
/// at most the length of the whole. Neighbouring extents may be of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Data or hole.
    pub kind: ExtentKind,
    /// First byte offset after the run.
    pub end: u64,
}

/// Immutable random access. Implementations are thread-safe, block the calling thread, and either
/// fill the whole buffer or fail: never a short read, never zeros in place of an error.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn len_bytes(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// `Invalid` when the range leaves `0..len_bytes()`; otherwise whatever kept the bytes from
    /// being read.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// [`Self::read_exact_at`] that may hand over bytes which are in memory already, in place of copying
    /// them into `buf`.
    ///
    /// # Errors
    /// As [`Self::read_exact_at`].
    fn read_chunk_at(&self, buf: &mut [u8], offset: u64) -> Result<Chunk> {
        self.read_exact_at(buf, offset)?;
        Ok(Chunk::Filled)
    }

    /// Whether a read of this range would be answered at once, without waiting for storage or decoding.
    fn is_non_blocking(&self, offset: u64, len: usize) -> bool {
        let _ = (offset, len);
        false
    }

    /// The extent at `offset` (which must be less than `len_bytes()`). The default is one extent
    /// of data to the end.
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let _ = offset;
        Ok(Extent {
            kind: ExtentKind::Data,
            end: self.len_bytes(),
        })
    }
}

/// The bytes of a read, as many as its buffer has: in that buffer, or shared with a cache.
#[derive(Debug)]
pub enum Chunk {
    /// The buffer passed to the read was filled.
    Filled,
    /// The bytes themselves; the buffer holds nothing of use.
    Shared(Bytes),
}

impl Chunk {
    /// The bytes, given the buffer that was passed to the read.
    pub fn bytes<'a>(&'a self, buf: &'a [u8]) -> &'a [u8] {
        match self {
            Chunk::Filled => buf,
            Chunk::Shared(bytes) => bytes,
        }
    }
}

/// Refuses a range that leaves `0..len`; shared by all implementations.
pub fn check_range(offset: u64, len: u64, total: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= total => Ok(()),
        _ => Err(Error::new(
            crate::error::ErrorKind::Invalid,
            format!("read of {len} bytes at {offset} leaves the {total} bytes there are"),
        )),
    }
}

/// Fills `buf`, whose first byte is at `offset`, from pieces that lie in different places. `locate` tells
/// what holds the byte at an offset and up to where; `fill` reads from there, starting at an offset.
///
/// # Errors
/// What `locate` and `fill` gave; `Corrupt` for a piece that ends where it begins.
pub fn read_pieces<P>(
    buf: &mut [u8],
    offset: u64,
    locate: impl Fn(u64) -> Result<(P, u64)>,
    fill: impl Fn(P, &mut [u8], u64) -> Result<()>,
) -> Result<()> {
    let mut offset = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let (piece, end) = locate(offset)?;
        let left = end
            .checked_sub(offset)
            .filter(|left| *left > 0)
            .ok_or_else(|| Error::corrupt("a piece without an end").at(offset))?;
        let take = left.min(rest.len() as u64);
        let (now, later) = std::mem::take(&mut rest).split_at_mut(take as usize);
        fill(piece, now, offset)?;
        offset += take;
        rest = later;
    }
    Ok(())
}

impl<T: ReadAt + ?Sized> ReadAt for std::sync::Arc<T> {
    fn len_bytes(&self) -> u64 {
        (**self).len_bytes()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        (**self).read_exact_at(buf, offset)
    }
    fn read_chunk_at(&self, buf: &mut [u8], offset: u64) -> Result<Chunk> {
        (**self).read_chunk_at(buf, offset)
    }
    fn is_non_blocking(&self, offset: u64, len: usize) -> bool {
        (**self).is_non_blocking(offset, len)
    }
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        (**self).extent_at(offset)
    }
}

/// Fills `buf` from bytes in memory.
fn copy_from(bytes: &[u8], buf: &mut [u8], offset: u64) -> Result<()> {
    check_range(offset, buf.len() as u64, bytes.len() as u64)?;
    let start = offset as usize;
    buf.copy_from_slice(&bytes[start..start + buf.len()]);
    Ok(())
}

/// Bytes in memory.
impl ReadAt for Bytes {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        copy_from(self, buf, offset)
    }
    fn read_chunk_at(&self, buf: &mut [u8], offset: u64) -> Result<Chunk> {
        check_range(offset, buf.len() as u64, self.len_bytes())?;
        let start = offset as usize;
        Ok(Chunk::Shared(self.slice(start..start + buf.len())))
    }
    fn is_non_blocking(&self, _offset: u64, _len: usize) -> bool {
        true
    }
}

impl ReadAt for Vec<u8> {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        copy_from(self, buf, offset)
    }
}
