//! One VHD as a directory of parts: `footer`, `header`, `bat`, `blocks/<n / 1000>/<n % 1000>`.
//!
//! Source: XO's `VhdDirectory`. Compressed, encrypted or remote blocks are fetched whole and kept
//! decoded; plain blocks on local storage are read in place, sector by sector.

mod block;
mod examine;
mod listing;
mod parts;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Instant, SystemTime};

use bytes::Bytes;

pub(super) use self::block::{Fetched, InPlace};
pub(super) use self::examine::Examined;
pub(super) use self::listing::Flaws;
use self::parts::{Parts, read_kept_parts, read_parts};
use super::bitmap;
use super::parent_name::MAX_LOCATOR_BYTES;
use super::vhd::{
    DiskType, FOOTER_BYTES, Footer, HEADER_BYTES, Header, MAX_BLOCKS, ParentLocator, blocks_of,
};
use super::vhd_file::Opened;
use crate::cache::{MetaCache, MetaKey, MetaKind};
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::StableHash;
use crate::store::{Meta, Store, StorePath, StoredFile, Validity, Version};

/// Bits per cached page of the block table: 8 KiB, 128 GiB of a disk with 2 MiB blocks.
const PAGE_BITS: u64 = 65_536;

/// Largest block that is fetched whole: it has to fit into the cache's slack several times.
pub(super) const MAX_WHOLE_BLOCK_BYTES: u32 = 16 << 20;

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
    /// Entries of the table as the header has it: fewer than `blocks` after a merge of an image of a
    /// larger disk into this one.
    header_entries: u64,
    /// Longest decoded `bat` that a sound writer makes.
    max_bat_bytes: u64,
    table: OnceLock<Table>,
    /// The states of the parts that were read when it was opened.
    versions: Vec<Version>,
    /// The latest time of modification among them, and when it was heard of.
    newest_part: Option<(SystemTime, Instant)>,
    /// The plain block read in place last: readers ask for many pieces of one block in a row.
    last: Mutex<Option<(u64, Arc<dyn StoredFile>)>>,
    /// What a look at some of its blocks has told, once somebody has asked.
    examined: OnceLock<Examined>,
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
            header_entries: u64::from(header.max_table_entries),
            // One byte where one bit would do, rounded up generously.
            max_bat_bytes: table_bits.min(MAX_BLOCKS) + 4096,
            table: OnceLock::new(),
            versions: versions.clone(),
            newest_part,
            last: Mutex::new(None),
            examined: OnceLock::new(),
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

    /// The part of a parent locator.
    ///
    /// # Errors
    /// As the storage says; `NotFound` when there is none.
    pub(super) fn locator(&self, locator: &ParentLocator) -> Result<Vec<u8>> {
        let path = self
            .base
            .child(&format!("parentLocatorEntry{}", locator.index));
        let most = u64::from(MAX_LOCATOR_BYTES);
        let max_len = self.filter.max_stored_len(most);
        let (stored, _) = self.store.read(&path, max_len, Validity::Ask)?;
        let bytes = self.filter.decode_prefix(&stored, most as usize, most);
        bytes
            .map(|bytes| bytes.into_owned())
            .map_err(|e| e.with_object(&path))
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
            .read(
                &path,
                self.filter.max_stored_len(self.max_bat_bytes),
                Validity::Ask,
            )
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
    pub(super) fn data_len(&self, block: u64) -> u64 {
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
