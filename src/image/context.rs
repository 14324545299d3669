//! What all disks share: the store, the caches, the threads that read ahead.

use std::sync::Arc;

use super::chain::{Chain, ChainIo, Source};
use super::damage::KnownDamage;
use super::format::registry::Registry;
use super::readahead::Readers;
use crate::cache::{
    Access, AheadPool, Block, BlockCache, BlockCacheStats, Semaphore, TablePageCache,
};
use crate::error::Result;
use crate::store::Store;

/// Budget of table pages, bitmaps and owner maps of all disks together.
const TABLE_PAGE_CACHE_BYTES: u64 = 24 << 20;

/// What disks share: the store, the caches, the threads that read ahead.
pub struct DiskContext {
    pub(in crate::image) store: Arc<dyn Store>,
    pub(in crate::image) registry: Registry,
    pages: Arc<TablePageCache>,
    blocks: Arc<BlockCache>,
    damage: KnownDamage,
    pub(in crate::image) ahead: Arc<AheadPool>,
    pub(in crate::image) readers: Readers,
    /// Bounds how many blocks are fetched and decoded at once, and so the memory they take.
    loading: Semaphore,
    /// Bytes a single reader may have read ahead.
    pub(in crate::image) window_bytes: u64,
}

impl DiskContext {
    /// A context whose blocks take at most `cache_bytes`: three quarters for blocks that were read,
    /// one for blocks read ahead.
    pub fn new(store: Arc<dyn Store>, cache_bytes: u64) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let traits = store.traits();
        let ahead_bytes = cache_bytes / 4;
        // Local blocks are limited by decoding; remote ones by latency, and need more of them in
        // flight.
        let (threads, window) = if traits.cheap_ranges {
            (cores, (cores as u64 + 2) << 21)
        } else {
            (traits.parallelism.min(32), 32 << 21)
        };
        let pages = Arc::new(TablePageCache::new(TABLE_PAGE_CACHE_BYTES));
        Arc::new(DiskContext {
            registry: Registry::new(Arc::clone(&store), Arc::clone(&pages)),
            store,
            pages,
            blocks: Arc::new(BlockCache::new(cache_bytes - ahead_bytes)),
            damage: KnownDamage::default(),
            ahead: AheadPool::new(threads, ahead_bytes),
            readers: Readers::default(),
            loading: Semaphore::new(threads + 2),
            window_bytes: window.min(ahead_bytes),
        })
    }

    /// The store the disks are on.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the block cache has done so far.
    pub fn cache_stats(&self) -> BlockCacheStats {
        self.blocks.stats()
    }

    pub(in crate::image) fn io(&self) -> ChainIo<'_> {
        ChainIo {
            store: self.store.as_ref(),
            pages: &self.pages,
            damage: &self.damage,
        }
    }

    pub(in crate::image) fn block_cache(&self) -> &BlockCache {
        &self.blocks
    }

    /// The block from the cache, from a copy nearby, or loaded.
    pub(in crate::image) fn find_block(
        &self,
        chain: &Chain,
        link: usize,
        block: u64,
        access: Access,
    ) -> Result<Source> {
        if let Some(block) = self.blocks.get(chain.block_key(link, block), access) {
            return Ok(Source::Loaded(block));
        }
        if let Some(copy) = chain.links[link].image().format.open_copy(block) {
            return Ok(Source::Copy(copy));
        }
        let loaded = self.load_block(chain, link, block, access)?;
        Ok(Source::Loaded(loaded))
    }

    /// The block from the cache, or fetched and decoded with a permit.
    pub(in crate::image) fn load_block(
        &self,
        chain: &Chain,
        link: usize,
        block: u64,
        access: Access,
    ) -> Result<Block> {
        self.blocks
            .get_or_load(chain.block_key(link, block), access, || {
                let _permit = self.loading.acquire();
                chain.load_block(&self.io(), link, block)
            })
    }
}
