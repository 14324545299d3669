//! One VHD as a directory of parts: `footer`, `header`, `bat`, `blocks/<n / 1000>/<n % 1000>`.
//!
//! Source: XO's `VhdDirectory`. Compressed, encrypted or remote blocks are fetched whole and kept
//! decoded; plain blocks on local storage are read in place, sector by sector.

mod parts;

use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use self::parts::{Parts, read_kept_parts, read_parts};
use super::bitmap;
use super::vhd::{
    DiskType, FOOTER_BYTES, Footer, HEADER_BYTES, Header, MAX_BLOCKS, SECTOR_BYTES, blocks_of,
};
use super::vhd_file::Opened;
use crate::buffers::Buffer;
use crate::cache::{Block, Gate, MetaCache, MetaKey, MetaKind};
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::StableHash;
use crate::store::{Meta, Store, StorePath, StoredFile, Version};

/// Bits per cached page of the block table: 8 KiB, 128 GiB of a disk with 2 MiB blocks.
const PAGE_BITS: u64 = 65_536;

/// Largest block that is fetched whole: it has to fit into the cache's slack several times.
pub(super) const MAX_WHOLE_BLOCK_BYTES: u32 = 16 << 20;

/// Decoding a block takes a core for milliseconds, and megabytes of memory. Of remote storage dozens of
/// blocks are on their way at once; decoded all together, they would all be late, and the one that a
/// reader waits for first with them. One more than there are cores, so that this one does not wait
/// for what is only read ahead; eight decode more than passes through a mount.
static DECODERS: LazyLock<Gate> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Gate::new(cores.min(8) + 1)
});

/// An open VHD directory.
pub(super) struct VhdDir {
    store: Arc<dyn Store>,
    base: StorePath,
    id: u64,
    meta: Arc<MetaCache>,
    filter: Filter,
    whole: bool,
    block_size: u32,
    bitmap_bytes: u32,
    virtual_size: u64,
    blocks: u64,
    /// Longest decoded `bat` that a sound writer makes.
    max_bat_bytes: u64,
    table: OnceLock<Table>,
    /// The states of the parts that were read when it was opened.
    versions: Vec<Version>,
    /// The latest time of modification among them, and when it was heard of.
    newest_part: Option<(SystemTime, Instant)>,
    /// The plain block read in place last: readers ask for many pieces of one block in a row.
    last: Mutex<Option<(u64, Arc<dyn StoredFile>)>>,
}

/// A block, and when it was put where it was found, as the storage tells it.
pub(super) struct Fetched {
    pub(super) block: Block,
    pub(super) modified: Option<SystemTime>,
}

/// What is always kept of the block table: which pages have any bit set.
struct Table {
    version: Version,
    mixed_pages: Vec<bool>,
}

impl VhdDir {
    /// Reads `chunk-filters.json`, `footer` and `header`; the table waits until it is needed.
    ///
    /// # Errors
    /// `NotFound` when there is no `footer` (so it is no VHD directory), `Corrupt` or `Unsupported`
    /// for parts that are not what they should be.
    pub(super) fn open(
        store: &Arc<dyn Store>,
        base: &StorePath,
        id: u64,
        meta: Arc<MetaCache>,
    ) -> Result<Opened<VhdDir>> {
        let kept = read_kept_parts(store.as_ref(), base);
        if let Some(parts) = kept {
            match Self::open_parts(store, base, id, &meta, parts) {
                // Perhaps a copy was damaged before it was kept.
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                other => return other,
            }
        }
        let parts = read_parts(store.as_ref(), base, None);
        Self::open_parts(store, base, id, &meta, parts)
    }

    fn open_parts(
        store: &Arc<dyn Store>,
        base: &StorePath,
        id: u64,
        meta: &Arc<MetaCache>,
        parts: Parts,
    ) -> Result<Opened<VhdDir>> {
        let newest_part = parts.newest().map(|newest| (newest, Instant::now()));
        let (filter, filter_version) = filter_of(parts.filter, base)?;
        let mut versions: Vec<Version> = filter_version.into_iter().collect();
        let mut decode = |name: &str, part: Result<(Bytes, Meta)>, len: usize| {
            let path = base.child(name);
            let (stored, meta) = part?;
            versions.push(meta.version);
            filter
                .decode_exact(&stored, len)
                .map_err(|e| e.with_object(&path))
        };
        let footer = Footer::parse(&decode("footer", parts.footer, FOOTER_BYTES)?)
            .map_err(|e| e.with_object(base.child("footer")))?;
        let header = decode("header", parts.header, HEADER_BYTES).map_err(missing_is_damage)?;
        let header = Header::parse(&header).map_err(|e| e.with_object(base.child("header")))?;
        if footer.disk_type == DiskType::Fixed {
            return Err(Error::corrupt("a VHD directory cannot be a fixed disk").with_object(base));
        }
        let blocks = blocks_of(footer.current_size, header.block_size)
            .map_err(|e| e.with_object(base.child("header")))?;
        // XO leaves maxTableEntries at the old value when it merges a grown child into a smaller
        // parent; the blocks are all there, so the larger of the two counts.
        let table_bits = blocks.max(u64::from(header.max_table_entries));
        let whole = filter != Filter::None || !store.traits().cheap_ranges;
        if whole && header.block_size > MAX_WHOLE_BLOCK_BYTES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "blocks of {} bytes are too large to be decoded",
                    header.block_size
                ),
            )
            .with_object(base.child("header")));
        }
        let mut problems = Vec::new();
        if u64::from(header.max_table_entries) < blocks {
            problems.push(format!(
                "its header counts {} blocks where the disk has {blocks}; all are read",
                header.max_table_entries
            ));
        }
        let body = VhdDir {
            store: Arc::clone(store),
            base: base.clone(),
            id,
            meta: Arc::clone(meta),
            filter,
            whole,
            block_size: header.block_size,
            bitmap_bytes: header.bitmap_bytes(),
            virtual_size: footer.current_size,
            blocks,
            // One byte where one bit would do, rounded up generously.
            max_bat_bytes: table_bits.min(MAX_BLOCKS) + 4096,
            table: OnceLock::new(),
            versions: versions.clone(),
            newest_part,
            last: Mutex::new(None),
        };
        if let Some(Ok((stored, meta))) = parts.bat {
            // What is wrong with it will be told by the read that needs it.
            let _ = body.keep_table(&stored, meta.version, None);
        }
        Ok(Opened {
            body,
            footer,
            header: Some(header),
            problems,
            trailing: None,
            versions,
        })
    }

    /// The filter of its parts.
    pub(super) fn filter(&self) -> Filter {
        self.filter
    }

    /// Whether blocks must be fetched whole (see [`Self::fetch`]).
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes of a block's data.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes of the bitmap in front of a block's data.
    pub(super) fn bitmap_bytes(&self) -> u32 {
        self.bitmap_bytes
    }

    fn block_path(&self, block: u64) -> StorePath {
        self.base
            .child("blocks")
            .child(&(block / 1000).to_string())
            .child(&(block % 1000).to_string())
    }

    /// Sets bit `n - first` of `bits` for each block `n` of `first..first + count` that the table
    /// announces. Blocks past the end are left alone.
    pub(super) fn announced(&self, first: u64, count: u64, bits: &mut [u64]) -> Result<()> {
        let end = (first + count).min(self.blocks);
        let mut block = first;
        while block < end {
            let page = block / PAGE_BITS;
            let page_end = ((page + 1) * PAGE_BITS).min(end);
            if let Some(bytes) = self.page(page)? {
                for n in block..page_end {
                    if bitmap::stored_bit(&bytes, n % PAGE_BITS) {
                        bitmap::set(bits, n - first);
                    }
                }
            }
            block = page_end;
        }
        Ok(())
    }

    /// Loads the table now: whoever needs to know whether it can be loaded.
    pub(super) fn load_table(&self) -> Result<()> {
        if self.table.get().is_none() {
            self.read_table(None)?;
        }
        Ok(())
    }

    /// A page of the table, `None` when no bit of it is set.
    fn page(&self, page: u64) -> Result<Option<Arc<[u8]>>> {
        let key = MetaKey {
            of: self.id,
            generation: 0,
            kind: MetaKind::Bits,
            index: page,
        };
        if let Some(table) = self.table.get() {
            if !table
                .mixed_pages
                .get(page as usize)
                .copied()
                .unwrap_or(false)
            {
                return Ok(None);
            }
            if let Some(bytes) = self.meta.get(&key) {
                return Ok(Some(bytes));
            }
        }
        self.read_table(Some(page))
    }

    /// Reads and decodes the whole table, keeps its pages, and returns the one that is wanted.
    fn read_table(&self, wanted: Option<u64>) -> Result<Option<Arc<[u8]>>> {
        let path = self.base.child("bat");
        let (stored, meta) = self
            .store
            .read(&path, self.filter.max_stored_len(self.max_bat_bytes))
            .map_err(missing_is_damage)?;
        self.keep_table(&stored, meta.version, wanted)
    }

    fn keep_table(
        &self,
        stored: &[u8],
        version: Version,
        wanted: Option<u64>,
    ) -> Result<Option<Arc<[u8]>>> {
        let path = self.base.child("bat");
        let needed = self.blocks.div_ceil(8) as usize;
        let bits = self
            .filter
            .decode_prefix(stored, needed, self.max_bat_bytes)
            .map_err(|e| e.with_object(&path))?;
        if bits.len() < needed {
            return Err(Error::corrupt(format!(
                "table of {} bits is too short for {} blocks",
                bits.len() * 8,
                self.blocks
            ))
            .with_object(&path));
        }
        let mut mixed_pages = Vec::new();
        let mut found = None;
        for (page, bytes) in bits.chunks((PAGE_BITS / 8) as usize).enumerate() {
            let mixed = bytes.iter().any(|&b| b != 0);
            mixed_pages.push(mixed);
            if mixed {
                let bytes: Arc<[u8]> = Arc::from(bytes);
                if wanted == Some(page as u64) {
                    found = Some(Arc::clone(&bytes));
                }
                let key = MetaKey {
                    of: self.id,
                    generation: 0,
                    kind: MetaKind::Bits,
                    index: page as u64,
                };
                self.meta.insert(key, bytes);
            }
        }
        let table = self.table.get_or_init(|| Table {
            version,
            mixed_pages,
        });
        if table.version != version {
            return Err(
                Error::new(ErrorKind::Changed, "the block table was rewritten").with_object(&path),
            );
        }
        Ok(found)
    }

    /// Bytes of a block that belong to the disk: the last block may reach past its end.
    fn data_len(&self, block: u64) -> u64 {
        u64::from(self.block_size).min(
            self.virtual_size
                .saturating_sub(block * u64::from(self.block_size)),
        )
    }

    /// The latest time of modification among its parts, and when it was heard of.
    pub(super) fn newest_part(&self) -> Option<(SystemTime, Instant)> {
        self.newest_part
    }

    /// What the content of its blocks depends on besides their names: a merge into this directory
    /// ends by rewriting these parts. `None` before the table has been read.
    fn generation(&self) -> Option<u128> {
        let table = self.table.get()?.version;
        let versions = self.versions.iter().chain([&table]);
        let hash = versions.fold(StableHash::new(), |hash, version| hash.number(version.0));
        Some(hash.finish())
    }

    /// Fetches and decodes a block: bitmap and data. With `may_keep`, storage may answer from what
    /// it has kept of this generation of the directory.
    ///
    /// # Errors
    /// `NotFound` when the object is not there (a merge may have moved it), `Corrupt` when it is
    /// not exactly a block.
    pub(super) fn fetch(&self, block: u64, may_keep: bool) -> Result<Fetched> {
        let generation = self.generation().filter(|_| may_keep);
        match self.fetch_as(block, generation) {
            // Perhaps it was damaged when it was kept, and has been repaired since.
            Err(e) if e.kind() == ErrorKind::Corrupt && generation.is_some() => {
                self.fetch_as(block, None)
            }
            other => other,
        }
    }

    fn fetch_as(&self, block: u64, generation: Option<u128>) -> Result<Fetched> {
        let path = self.block_path(block);
        let len = self.bitmap_bytes as usize + self.block_size as usize;
        let max_len = self.filter.max_stored_len(len as u64);
        let (stored, meta) = match generation {
            Some(generation) => self.store.read_pinned(&path, max_len, generation)?,
            None => self.store.read(&path, max_len)?,
        };
        let bytes = if self.filter == Filter::None {
            if stored.len() != len {
                return Err(Error::corrupt(format!(
                    "has {} bytes where a block has {len}",
                    stored.len()
                ))
                .with_object(&path));
            }
            stored
        } else {
            let mut decoded = Buffer::new(len);
            let pass = DECODERS.enter();
            self.filter
                .decode_into(&stored, &mut decoded)
                .map_err(|e| e.with_object(&path))?;
            drop(pass);
            decoded.into_bytes()
        };
        let sectors = self.data_len(block).div_ceil(SECTOR_BYTES);
        let full = bitmap::is_full(&bytes[..self.bitmap_bytes as usize], sectors);
        Ok(Fetched {
            block: Block { bytes, full },
            modified: meta.modified,
        })
    }

    /// Reads part of a plain block in place; same contract as `VhdFile::read_present`.
    pub(super) fn read_in_place(
        &self,
        block: u64,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let file = self.open_block(block)?;
        self.read_from(&*file, block, within, buf, absent)
    }

    /// Whether [`Self::kept_block`] would find the block.
    pub(super) fn has_kept(&self, block: u64) -> bool {
        let generation = self.generation().filter(|_| self.filter == Filter::None);
        generation.is_some_and(|g| self.store.is_kept(&self.block_path(block), Some(g)))
    }

    /// A plain block of a far away directory that storage has kept nearby: reading what is wanted of it
    /// in place, with [`Self::read_from`], is cheaper than all of it.
    pub(super) fn kept_block(&self, block: u64) -> Option<Arc<dyn StoredFile>> {
        if self.filter != Filter::None {
            return None;
        }
        if let Some(file) = self.last(block) {
            return Some(file);
        }
        let len = u64::from(self.bitmap_bytes) + u64::from(self.block_size);
        let path = self.block_path(block);
        let kept = self.store.open_pinned(&path, len, self.generation()?)?;
        (kept.opened_meta().len_bytes == len).then(|| self.keep_open(block, kept))
    }

    /// Reads part of a plain block from its open file; same contract as `VhdFile::read_present`.
    pub(super) fn read_from(
        &self,
        file: &dyn StoredFile,
        block: u64,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let data = u64::from(self.bitmap_bytes);
        let key = MetaKey {
            of: self.id,
            generation: 0,
            kind: MetaKind::Bitmap,
            index: block,
        };
        let present = self.meta.get_or_load(key, || {
            let mut bytes = vec![0; self.bitmap_bytes as usize];
            file.read_exact_at(&mut bytes, 0)?;
            let sectors = self.data_len(block).div_ceil(SECTOR_BYTES);
            Ok(if bitmap::is_full(&bytes, sectors) {
                Arc::from([])
            } else {
                Arc::from(bytes)
            })
        })?;
        if present.is_empty() {
            return file.read_exact_at(buf, data + within.start);
        }
        bitmap::split(&present, within.clone(), |run, is_present| {
            let part = (run.start - within.start) as usize..(run.end - within.start) as usize;
            if is_present {
                file.read_exact_at(&mut buf[part], data + run.start)
            } else {
                absent.push(part);
                Ok(())
            }
        })
    }

    fn open_block(&self, block: u64) -> Result<Arc<dyn StoredFile>> {
        if let Some(file) = self.last(block) {
            return Ok(file);
        }
        let path = self.block_path(block);
        let file = self.store.open(&path)?;
        let expected = u64::from(self.bitmap_bytes) + u64::from(self.block_size);
        let found = file.opened_meta().len_bytes;
        if found != expected {
            return Err(
                Error::corrupt(format!("has {found} bytes where a block has {expected}"))
                    .with_object(&path),
            );
        }
        Ok(self.keep_open(block, file))
    }

    /// The file of the block that was read in place last.
    fn last(&self, block: u64) -> Option<Arc<dyn StoredFile>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, file) = last.as_ref().filter(|(of, _)| *of == block)?;
        Some(Arc::clone(file))
    }

    fn keep_open(&self, block: u64, file: Arc<dyn StoredFile>) -> Arc<dyn StoredFile> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((block, Arc::clone(&file)));
        file
    }
}

fn filter_of(part: Result<(Bytes, Meta)>, base: &StorePath) -> Result<(Filter, Option<Version>)> {
    match part {
        Ok((json, meta)) => {
            let filter = Filter::parse_list(&json)
                .map_err(|e| e.with_object(base.child("chunk-filters.json")))?;
            Ok((filter, Some(meta.version)))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok((Filter::None, None)),
        Err(e) => Err(e),
    }
}

/// A part that every VHD directory has is missing: the directory is damaged, or is being removed.
fn missing_is_damage(e: Error) -> Error {
    if e.kind() != ErrorKind::NotFound {
        return e;
    }
    let damage = Error::new(ErrorKind::Changed, "a part of the VHD directory is missing");
    match e.object() {
        Some(object) => damage.with_object(object),
        None => damage,
    }
}
