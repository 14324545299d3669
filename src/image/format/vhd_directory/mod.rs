//! One VHD as a directory of parts: `footer`, `header`, `bat`, `blocks/<n / 1000>/<n % 1000>`.
//!
//! Source: XO's `VhdDirectory`. Compressed, encrypted or remote blocks are fetched whole and kept
//! decoded; plain blocks on local storage are read in place, sector by sector.

mod block;
mod examine;
mod listing;
pub(in crate::image) mod open;
mod parts;

use std::sync::{Arc, Mutex, OnceLock};

use super::vhd::ParentLocator;
use super::vhd::parent_locator::{self, MAX_LOCATOR_BYTES};
use super::{Examined, Fetched, Flaws, ImageFormat, InPlace, SectorRead, Stability};
use crate::cache::{TablePageCache, TablePageKey, TablePageKind};
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::StableHash;
use crate::image::format::bitmap;
use crate::store::{Store, StorePath, StoredFile, Validity, Version};

/// Bits per cached page of the block table: 8 KiB, 128 GiB of a disk with 2 MiB blocks.
const PAGE_BITS: u64 = 65_536;

/// An open VHD directory.
pub(in crate::image) struct VhdDirectory {
    store: Arc<dyn Store>,
    base: StorePath,
    id: u64,
    pages: Arc<TablePageCache>,
    filter: Filter,
    parent_locators: Vec<ParentLocator>,
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

impl VhdDirectory {
    /// The part of a parent locator.
    ///
    /// # Errors
    /// As the storage says; `NotFound` when there is none.
    fn locator(&self, locator: &ParentLocator) -> Result<Vec<u8>> {
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

    /// A page of the table, `None` when no bit of it is set.
    fn page(&self, page: u64) -> Result<Option<Arc<[u8]>>> {
        let key = TablePageKey {
            of: self.id,
            generation: 0,
            kind: TablePageKind::Bits,
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
            if let Some(bytes) = self.pages.get(&key) {
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
                let key = TablePageKey {
                    of: self.id,
                    generation: 0,
                    kind: TablePageKind::Bits,
                    index: page as u64,
                };
                self.pages.insert(key, bytes);
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

    /// What the content of its blocks depends on besides their names: a merge into this directory
    /// ends by rewriting these parts. `None` before the table has been read.
    fn generation(&self) -> Option<u128> {
        let table = self.table.get()?.version;
        let versions = self.versions.iter().chain([&table]);
        let hash = versions.fold(StableHash::new(), |hash, version| hash.number(version.0));
        Some(hash.finish())
    }
}

impl ImageFormat for VhdDirectory {
    fn allocated(&self, first: u64, count: u64, bits: &mut [u64]) -> Result<()> {
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

    fn fetch(&self, block: u64, may_copy: bool) -> Result<Fetched> {
        self.fetch_block(block, may_copy)
    }

    fn read_in_place(&self, read: &mut SectorRead<'_>) -> Result<InPlace> {
        let Some(file) = self.open_block(read.block)? else {
            return Ok(InPlace::Encoded);
        };
        self.read_from(&*file, read)?;
        // A directory's blocks are replaced, not written to, and nothing shows it.
        Ok(InPlace::Read(Stability::Unsettled))
    }

    fn takes_moved_blocks(&self) -> bool {
        true
    }

    fn fetch_moved(&self, block: u64, disk_bytes: u64) -> Result<Fetched> {
        self.fetch_moved_block(block, disk_bytes)
    }

    fn has_copy(&self, block: u64) -> bool {
        self.has_block_copy(block)
    }

    fn open_copy(&self, block: u64) -> Option<Arc<dyn StoredFile>> {
        self.open_block_copy(block)
    }

    fn read_copy(&self, copy: &dyn StoredFile, read: &mut SectorRead<'_>) -> Result<()> {
        self.read_from(copy, read)
    }

    fn load_table(&self) -> Result<()> {
        if self.table.get().is_none() {
            self.read_table(None)?;
        }
        Ok(())
    }

    fn other_parent_names(&self) -> Result<Vec<String>> {
        parent_locator::parent_names(&self.parent_locators, |locator| self.locator(locator))
    }

    fn list_flaws(&self) -> Result<Flaws> {
        self.list_block_flaws()
    }

    fn absent_blocks(&self, blocks: &[u64]) -> Result<Vec<u64>> {
        self.blocks_without_file(blocks)
    }

    fn examine(&self, only_last: bool) -> Examined {
        self.examine_blocks(only_last)
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
