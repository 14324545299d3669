//! Pages of block tables, sector bitmaps and owner maps: small, many, and needed for every read.
//!
//! They have a budget of their own, so that data blocks never push them out and so that a chain of
//! 500 images of 64 TiB stays within bounds.

use std::collections::hash_map::RandomState;
use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::error::Result;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TablePageKind {
    /// Entries of a VHD file's block allocation table, as big-endian bytes.
    Bat,
    /// Bits of a VHD directory's block table.
    Bits,
    /// A block's sector bitmap; empty when all sectors are present.
    Bitmap,
    /// For each unit of a chain, which image owns it, as native-endian u16.
    Owner,
}

/// A page of an image or a chain. Numbers are never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TablePageKey {
    /// Number of the image or chain.
    pub of: u64,
    /// Generation of that image's tables: a new one when they have changed.
    pub generation: u32,
    /// What kind of page.
    pub kind: TablePageKind,
    /// Which page.
    pub index: u64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<TablePageKey, Arc<[u8]>> for ByBytes {
    fn weight(&self, _: &TablePageKey, page: &Arc<[u8]>) -> u64 {
        page.len() as u64 + 160
    }
}

type Page = Arc<[u8]>;
type Pages = Cache<TablePageKey, Page, ByBytes, RandomState, DefaultLifecycle<TablePageKey, Page>>;

/// The cache. All calls are safe from any thread.
pub struct TablePageCache {
    cache: Pages,
}

impl TablePageCache {
    /// A cache of at most `capacity_bytes`.
    pub fn new(capacity_bytes: u64) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((capacity_bytes / 2048).clamp(64, 1 << 20) as usize)
            .weight_capacity(capacity_bytes)
            .shards(4)
            .build()
            .expect("both capacities are set");
        TablePageCache {
            cache: Cache::with_options(
                options,
                ByBytes,
                RandomState::new(),
                DefaultLifecycle::default(),
            ),
        }
    }

    /// The page if it is in memory.
    pub fn get(&self, key: &TablePageKey) -> Option<Arc<[u8]>> {
        self.cache.get(key)
    }

    /// Keeps a page.
    pub fn insert(&self, key: TablePageKey, page: Arc<[u8]>) {
        self.cache.insert(key, page);
    }

    /// The page from memory or from `load`. Two threads may load the same page at once: pages are
    /// small, and waiting would cost as much.
    pub fn get_or_load(
        &self,
        key: TablePageKey,
        load: impl FnOnce() -> Result<Arc<[u8]>>,
    ) -> Result<Arc<[u8]>> {
        if let Some(page) = self.cache.get(&key) {
            return Ok(page);
        }
        let page = load()?;
        self.cache.insert(key, Arc::clone(&page));
        Ok(page)
    }
}
