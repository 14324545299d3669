//! The blocks of a VHD directory: each a file of its own, which need not be what the directory says.
//!
//! A block is a bitmap and the block's data, stored with the directory's filter. Two things that XO
//! has done are read besides:
//!
//! - The last block of a disk whose size is no multiple of the block size may end where the disk ends
//!   (backups over NBD between May and November 2025). What is past that reads as zeros.
//! - A merge moves blocks between directories without a look at their filters, so a block can be
//!   stored with the filter of another directory.
//!
//! Both are told from damage by what must be there: a stream that is whole, of exactly the bytes that
//! a block has, or no fewer than the disk has of it.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use super::VhdDirectory;
use crate::buffers::Buffer;
use crate::cache::{Block, Semaphore, TablePageKey, TablePageKind};
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::bitmap;
use crate::image::format::vhd::SECTOR_BYTES;
use crate::image::format::{Fetched, MAX_WHOLE_BLOCK_BYTES, SectorRead};
use crate::store::{StorePath, StoredFile, Validity};
use crate::sync;

/// Decoding a block takes a core for milliseconds, and megabytes of memory. Of remote storage dozens of
/// blocks are on their way at once; decoded all together, they would all be late, and the one that a
/// reader waits for first with them. One more than there are cores, so that this one does not wait
/// for what is only read ahead; eight decode more than passes through a mount.
static DECODERS: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Semaphore::new(cores.min(8) + 1)
});

/// What counts as one block.
#[derive(Debug, Clone, Copy)]
struct Shape {
    bitmap_bytes: usize,
    /// Bitmap and all data.
    whole: usize,
    /// Bitmap and what the disk has of the data.
    least: usize,
    /// Whether it can be the last block of a disk that has grown since: then nothing tells where that
    /// ended, and only the end of an encoded stream proves that the block is whole.
    was_last: bool,
}

impl Shape {
    /// Whether `found` bytes, decoded by `filter`, are a block of the right length.
    fn fits(&self, filter: Filter, found: usize) -> bool {
        let data = found.saturating_sub(self.bitmap_bytes);
        found == self.whole
            || (self.least..self.whole).contains(&found)
            || (self.was_last
                && filter != Filter::None
                && (1..self.whole).contains(&data)
                && found < self.whole
                && (data as u64).is_multiple_of(SECTOR_BYTES))
    }
}

/// Whether a bitmap is as XO writes all of them. A short block, or one under another filter, is
/// believed only then where nothing else proves it: no encoded stream begins like this.
fn is_all_ones(bitmap: &[u8]) -> bool {
    bitmap.iter().all(|&byte| byte == 0xFF)
}

impl VhdDirectory {
    /// What block `block` has to be; `disk_bytes` is what the disk has of its data.
    fn shape(&self, block: u64, disk_bytes: u64) -> Shape {
        let bitmap_bytes = self.bitmap_bytes as usize;
        Shape {
            bitmap_bytes,
            whole: bitmap_bytes + self.block_size as usize,
            least: bitmap_bytes + disk_bytes.min(u64::from(self.block_size)) as usize,
            was_last: self.header_entries < self.blocks && block + 1 >= self.header_entries,
        }
    }

    /// Fetches and decodes a block: bitmap and data. With `may_copy`, storage may answer from what
    /// it has copied of this generation of the directory.
    ///
    /// # Errors
    /// `NotFound` when the object is not there (a merge may have moved it), `Corrupt` when it is
    /// no block.
    pub(super) fn fetch_block(&self, block: u64, may_copy: bool) -> Result<Fetched> {
        let generation = self.generation().filter(|_| may_copy);
        let disk_bytes = self.data_len(block);
        match self.fetch_as(block, generation, disk_bytes) {
            // Perhaps it was damaged when it was copied, and has been repaired since.
            Err(e) if e.kind() == ErrorKind::Corrupt && generation.is_some() => {
                self.fetch_as(block, None, disk_bytes)
            }
            other => other,
        }
    }

    /// [`Self::fetch_block`] of a block that a merge has moved here from an image of a disk that has
    /// `disk_bytes` in it: this one's may be smaller, or end within the block. Not from a copy:
    /// that is the content before the merge.
    ///
    /// # Errors
    /// As [`Self::fetch_block`].
    pub(super) fn fetch_moved_block(&self, block: u64, disk_bytes: u64) -> Result<Fetched> {
        self.fetch_as(block, None, disk_bytes)
    }

    fn fetch_as(&self, block: u64, generation: Option<u128>, disk_bytes: u64) -> Result<Fetched> {
        let path = self.block_path(block);
        let shape = self.shape(block, disk_bytes);
        // Whatever it is stored with: brotli's allowance covers all.
        let max_len = Filter::Brotli.max_stored_len(shape.whole as u64);
        let validity = generation.map_or(Validity::Ask, Validity::Generation);
        let (stored, meta) = self.store.read(&path, max_len, validity)?;
        let (bytes, filter) = self
            .decode(stored, &shape)
            .map_err(|e| e.with_object(&path))?;
        let sectors = disk_bytes.div_ceil(SECTOR_BYTES);
        let full = bitmap::is_full(&bytes[..self.bitmap_bytes as usize], sectors);
        Ok(Fetched {
            block: Block { bytes, full },
            modified: meta.modified,
            filter,
        })
    }

    /// Decodes a stored block by the directory's filter, or else by whichever makes a block of it.
    fn decode(&self, stored: Bytes, shape: &Shape) -> Result<(Bytes, Filter)> {
        let error = match decode_by(self.filter, &stored, shape, true) {
            Ok(bytes) => return Ok((bytes, self.filter)),
            Err(e) => e,
        };
        // Of larger ones no decoded copy is held anywhere.
        if self.block_size > MAX_WHOLE_BLOCK_BYTES {
            return Err(error);
        }
        // Brotli first: it is what XO's merges bring in.
        let others = [Filter::Brotli, Filter::Gzip, Filter::None];
        let others = others.into_iter().filter(|&f| f != self.filter);
        for filter in others {
            if let Ok(bytes) = decode_by(filter, &stored, shape, false) {
                return Ok((bytes, filter));
            }
        }
        Err(error)
    }

    /// Whether [`Self::open_block_copy`] would find the block.
    pub(super) fn has_block_copy(&self, block: u64) -> bool {
        let generation = self.generation().filter(|_| self.filter == Filter::None);
        generation.is_some_and(|g| self.store.has_copy(&self.block_path(block), Some(g)))
    }

    /// A plain block of a far away directory that storage has a copy of nearby: reading what is wanted of it
    /// in place, with [`Self::read_from`], is cheaper than all of it.
    pub(super) fn open_block_copy(&self, block: u64) -> Option<Arc<dyn StoredFile>> {
        if self.filter != Filter::None {
            return None;
        }
        if let Some(file) = self.last(block) {
            return Some(file);
        }
        let whole = self.shape(block, self.data_len(block)).whole as u64;
        let path = self.block_path(block);
        let copy = self.store.open_copy(&path, whole, self.generation()?)?;
        let is_plain = self.is_plain(block, &*copy).unwrap_or(false);
        is_plain.then(|| self.keep_open(block, copy))
    }

    /// Reads a part of a plain block from its open file.
    ///
    /// # Errors
    /// As the storage says.
    pub(super) fn read_from(&self, file: &dyn StoredFile, read: &mut SectorRead<'_>) -> Result<()> {
        let data = u64::from(self.bitmap_bytes);
        let key = TablePageKey {
            of: self.id,
            generation: 0,
            kind: TablePageKind::Bitmap,
            index: read.block,
        };
        let present = self.pages.get_or_load(key, || {
            let mut bytes = vec![0; self.bitmap_bytes as usize];
            file.read_exact_at(&mut bytes, 0)?;
            let sectors = self.data_len(read.block).div_ceil(SECTOR_BYTES);
            Ok(if bitmap::is_full(&bytes, sectors) {
                Arc::from([])
            } else {
                Arc::from(bytes)
            })
        })?;
        read.read_present(&present, |part, offset| {
            file.read_exact_at(part, data + offset)
        })
    }

    /// The open file of a block, `None` when it is not stored plainly.
    pub(super) fn open_block(&self, block: u64) -> Result<Option<Arc<dyn StoredFile>>> {
        if let Some(file) = self.last(block) {
            return Ok(Some(file));
        }
        let file = self.store.open(&self.block_path(block), None)?;
        let is_plain = self.is_plain(block, &*file)?;
        Ok(is_plain.then(|| self.keep_open(block, file)))
    }

    /// Whether the file of a block is the block as it is.
    fn is_plain(&self, block: u64, file: &dyn StoredFile) -> Result<bool> {
        let shape = self.shape(block, self.data_len(block));
        let found = file.opened_meta().len_bytes;
        if found == shape.whole as u64 {
            return Ok(true);
        }
        if !(shape.least as u64..shape.whole as u64).contains(&found) {
            return Ok(false);
        }
        let mut stored = vec![0; self.bitmap_bytes as usize];
        file.read_exact_at(&mut stored, 0)?;
        Ok(is_all_ones(&stored))
    }

    /// The file of the block that was read in place last.
    fn last(&self, block: u64) -> Option<Arc<dyn StoredFile>> {
        let last = sync::lock(&self.last);
        let (_, file) = last.as_ref().filter(|(of, _)| *of == block)?;
        Some(Arc::clone(file))
    }

    fn keep_open(&self, block: u64, file: Arc<dyn StoredFile>) -> Arc<dyn StoredFile> {
        let mut last = sync::lock(&self.last);
        *last = Some((block, Arc::clone(&file)));
        file
    }

    pub(super) fn block_path(&self, block: u64) -> StorePath {
        self.base
            .child("blocks")
            .child(&(block / 1000).to_string())
            .child(&(block % 1000).to_string())
    }
}

/// The whole block that `stored` decodes to, filled up with zeros. `expected`: it is the filter that the
/// directory names.
fn decode_by(filter: Filter, stored: &Bytes, shape: &Shape, expected: bool) -> Result<Bytes> {
    let wrong = |found: usize| {
        let what = match filter {
            Filter::None => "has",
            Filter::Gzip | Filter::Brotli => "decodes to",
        };
        let least = match shape.least < shape.whole {
            true => format!(", and the disk {} of it", shape.least),
            false => String::new(),
        };
        Error::corrupt(format!(
            "{what} {found} bytes where a block has {}{least}",
            shape.whole
        ))
    };
    if filter == Filter::None {
        if stored.len() == shape.whole {
            return Ok(stored.clone());
        }
        if !shape.fits(filter, stored.len()) || !is_all_ones(&stored[..shape.bitmap_bytes]) {
            return Err(wrong(stored.len()));
        }
    }
    let mut decoded = Buffer::new(shape.whole);
    let permit = DECODERS.acquire();
    let found = filter.decode_up_to(stored, &mut decoded)?;
    drop(permit);
    let is_whole = found == shape.whole;
    if !shape.fits(filter, found)
        || !(is_whole || expected || is_all_ones(&decoded[..shape.bitmap_bytes]))
    {
        return Err(wrong(found));
    }
    decoded[found..].fill(0);
    Ok(decoded.into_bytes())
}
