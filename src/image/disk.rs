//! A virtual disk at one restore point: a chain of images, linked again when the storage changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::chain::{BlockSource, Chain, ChainIo, Owner, Source};
use super::damage::KnownDamage;
use super::link;
use super::open::Registry;
use super::presence::BlockChecks;
use super::reader::{DiskReader, Readers};
use super::report::LinkReport;
use crate::cache::{AheadPool, Block, BlockCache, BlockCacheStats, Gate, MetaCache, Touch};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range};
use crate::store::{Meta, Store, StorePath};

/// Budget of table pages, bitmaps and owner maps of all disks together.
const META_CACHE_BYTES: u64 = 24 << 20;

/// What disks share: the store, the caches, the threads that read ahead.
pub struct DiskContext {
    store: Arc<dyn Store>,
    registry: Registry,
    meta: Arc<MetaCache>,
    blocks: Arc<BlockCache>,
    damage: KnownDamage,
    pub(super) ahead: Arc<AheadPool>,
    pub(super) readers: Readers,
    /// Bounds how many blocks are fetched and decoded at once, and so the memory they take.
    loading: Gate,
    /// Bytes a single reader may have read ahead.
    pub(super) window_bytes: u64,
}

/// The restore point's metadata file that vouches for a disk. XO removes it before it merges
/// anything into the disk's youngest image, so as long as it is there, that image still holds what
/// the restore point promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskGuard {
    /// The `<date>.json`.
    pub path: StorePath,
}

/// A disk that can be read at any offset.
pub struct Disk {
    context: Arc<DiskContext>,
    path: StorePath,
    guard: Option<DiskGuard>,
    chain: RwLock<Arc<Chain>>,
    /// Allocated bytes plus one once they have been counted, 0 before.
    allocated_plus_one: AtomicU64,
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
        let meta = Arc::new(MetaCache::new(META_CACHE_BYTES));
        Arc::new(DiskContext {
            registry: Registry::new(Arc::clone(&store), Arc::clone(&meta)),
            store,
            meta,
            blocks: Arc::new(BlockCache::new(cache_bytes - ahead_bytes)),
            damage: KnownDamage::default(),
            ahead: AheadPool::new(threads, ahead_bytes),
            readers: Readers::default(),
            loading: Gate::new(threads + 2),
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

    /// Opens the disk whose youngest image is `path` (`.vhd` or `.alias.vhd`). Reads footers and
    /// headers of the whole chain. A chain that is broken below the youngest image opens all the
    /// same: what is readable is readable, the rest fails when it is read.
    ///
    /// # Errors
    /// When the youngest image itself cannot be opened: its size would not be known.
    pub fn open_disk(
        self: &Arc<Self>,
        path: &StorePath,
        guard: Option<DiskGuard>,
    ) -> Result<Arc<Disk>> {
        let chain = link::link(&self.registry, &self.store, path, guard.clone())?;
        Ok(Arc::new(Disk {
            context: Arc::clone(self),
            path: path.clone(),
            guard,
            chain: RwLock::new(Arc::new(chain)),
            allocated_plus_one: AtomicU64::new(0),
        }))
    }

    pub(super) fn io(&self) -> ChainIo<'_> {
        ChainIo {
            store: self.store.as_ref(),
            meta: &self.meta,
            damage: &self.damage,
        }
    }

    pub(super) fn block_cache(&self) -> &BlockCache {
        &self.blocks
    }

    /// The block from the cache, as it is kept nearby, or loaded.
    pub(super) fn find_block(
        &self,
        chain: &Chain,
        link: usize,
        block: u64,
        touch: Touch,
    ) -> Result<Source> {
        if let Some(block) = self.blocks.get(chain.block_key(link, block), touch) {
            return Ok(Source::Loaded(block));
        }
        if let Some(kept) = chain.links[link].image().kept_block(block) {
            return Ok(Source::Kept(kept));
        }
        let loaded = self.load_block(chain, link, block, touch)?;
        Ok(Source::Loaded(loaded))
    }

    /// The block from the cache, or fetched and decoded behind the gate.
    pub(super) fn load_block(
        &self,
        chain: &Chain,
        link: usize,
        block: u64,
        touch: Touch,
    ) -> Result<Block> {
        self.blocks
            .get_or_load(chain.block_key(link, block), touch, || {
                let _pass = self.loading.enter();
                chain.load_block(&self.io(), link, block)
            })
    }
}

impl Disk {
    /// Bytes allocated over the whole chain, in whole blocks. Reads every block table of the chain
    /// the first time.
    pub fn allocated_bytes(&self) -> Result<u64> {
        match self.allocated_plus_one.load(Ordering::Relaxed) {
            0 => {
                let bytes = self.with_chain(|chain| chain.allocated_bytes(&self.context.io()))?;
                self.allocated_plus_one.store(bytes + 1, Ordering::Relaxed);
                Ok(bytes)
            }
            known => Ok(known - 1),
        }
    }

    /// [`Self::allocated_bytes`] if it has been counted, else the virtual size.
    pub fn allocated_bytes_guess(&self) -> u64 {
        match self.allocated_plus_one.load(Ordering::Relaxed) {
            0 => self.len_bytes(),
            known => known - 1,
        }
    }

    /// The images of the chain, youngest first, with what reads have found to be damaged.
    pub fn links(&self) -> Vec<LinkReport> {
        let chain = self.chain();
        let io = self.context.io();
        let mut reports = LinkReport::of_chain(&chain);
        for (index, report) in reports.iter_mut().enumerate() {
            report.problems.extend(chain.known_damage(&io, index));
        }
        reports
    }

    /// Images in the chain.
    pub fn chain_length(&self) -> usize {
        self.chain().links.len()
    }

    /// The same as [`Self::links`], with what only reading the tables, listing the blocks and a look at
    /// some of them tells: tables that cannot be read or lead out of the file, blocks that lie over each
    /// other, are not there, or are stored in an odd way.
    pub fn checked_links(&self, checks: &BlockChecks) -> Vec<LinkReport> {
        let io = self.context.io();
        let mut chain = self.chain();
        chain.prepare_tables(&io);
        let (mut blocks, any_missing) = checks.of_chain(&io, &chain);
        if any_missing {
            // A merge may have begun, or ended, since the chain was linked.
            checks.forget_missing();
            chain = self.relink(&chain).unwrap_or(chain);
            (blocks, _) = checks.of_chain(&io, &chain);
        }
        let mut reports = LinkReport::of_chain(&chain);
        let numbered = chain.links.iter().enumerate();
        for (((index, link), report), blocks) in numbered.zip(&mut reports).zip(blocks) {
            match link.image().check_table() {
                Ok(problems) => report.problems.extend(problems),
                Err(e) => {
                    let problem = format!("its block table cannot be read: {e}");
                    report.problems.push(problem);
                    continue;
                }
            }
            let examined = chain.examine(&io, index);
            report.problems.extend(examined.problems);
            report.notes.extend(examined.notes);
            report.problems.extend(blocks);
        }
        reports
    }

    /// Why part of the disk cannot be read although its youngest image is sound, or `None`.
    pub fn broken(&self) -> Option<Error> {
        self.chain().broken.clone()
    }

    /// Whether the chain is broken where an image names its parent by a path that leads above the root of
    /// the store.
    pub fn leads_out(&self) -> bool {
        let chain = self.chain();
        chain.broken.is_some() && chain.leads_out
    }

    /// All that is wrong, one sentence each: with the chain, and with its images as `links` (from
    /// [`Self::links`] or [`Self::checked_links`]) tell it.
    pub fn problems(&self, links: &[LinkReport]) -> Vec<String> {
        let chain = self.chain();
        let broken = chain.broken.iter();
        let of_chain = broken.map(|e| format!("readable in part only: {e}"));
        let of_links = links.iter().flat_map(LinkReport::told_problems);
        of_chain
            .chain(chain.problems.iter().cloned())
            .chain(of_links)
            .collect()
    }

    /// The state of the restore point's metadata file: as it was seen no longer than `age` ago, or else
    /// as it is now. `None` without a guard.
    ///
    /// # Errors
    /// `NotFound` when it is gone; otherwise as the storage says.
    pub fn look(&self, age: Duration) -> Result<Option<Meta>> {
        let watch = &self.chain().watch;
        match watch.seen_within(age) {
            Some(seen) => Ok(Some(seen)),
            None => watch.look(self.context.store.as_ref()),
        }
    }

    /// A reader with a position of its own.
    pub fn reader(self: &Arc<Self>) -> DiskReader {
        DiskReader::new(Arc::clone(self))
    }

    pub(super) fn context(&self) -> &Arc<DiskContext> {
        &self.context
    }

    pub(super) fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.chain.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `read` with the chain; when something has gone missing or changed, links the chain
    /// again, once, and calls it with the new one.
    pub(super) fn with_chain<T>(
        &self,
        mut read: impl FnMut(&Arc<Chain>) -> Result<T>,
    ) -> Result<T> {
        let chain = self.chain();
        let error = match read(&chain) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Changed) => e,
            other => return other,
        };
        let again = self.relink(&chain).and_then(|fresh| read(&fresh));
        again.map_err(|e| {
            if e.kind() != ErrorKind::NotFound {
                return e;
            }
            // A missing part after a second look is damage, whatever the storage calls it.
            Error::corrupt(format!("is missing ({})", error.message()))
                .with_object(e.object().unwrap_or(self.path.as_str()))
                .with_source(e.clone())
        })
    }

    fn relink(&self, stale: &Arc<Chain>) -> Result<Arc<Chain>> {
        let current = self.chain();
        if !Arc::ptr_eq(&current, stale) {
            return Ok(current);
        }
        let (registry, store) = (&self.context.registry, &self.context.store);
        let fresh = link::link(registry, store, &self.path, self.guard.clone())?;
        if fresh.links[0].image().uuid() != stale.links[0].image().uuid()
            || fresh.size() != stale.size()
        {
            return Err(Error::new(
                ErrorKind::Changed,
                "is another disk than the one that was opened",
            )
            .with_object(&self.path));
        }
        let fresh = Arc::new(fresh);
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&fresh);
        Ok(fresh)
    }
}

/// Blocks for accesses that belong to no reader.
struct FromCache<'a>(&'a DiskContext);

impl BlockSource for FromCache<'_> {
    fn block(&self, chain: &Chain, link: usize, block: u64) -> Result<Source> {
        self.0.find_block(chain, link, block, Touch::Count)
    }

    fn load(&self, chain: &Chain, link: usize, block: u64) -> Result<Block> {
        self.0.load_block(chain, link, block, Touch::Count)
    }
}

impl ReadAt for Disk {
    fn len_bytes(&self) -> u64 {
        self.chain().size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes())?;
        self.with_chain(|chain| {
            chain.read(&self.context.io(), &FromCache(&self.context), offset, buf)
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes())?;
        self.with_chain(|chain| {
            let unit_log2 = chain.unit_log2();
            let (end, is_data) = chain.run(&self.context.io(), offset >> unit_log2)?;
            Ok(Extent {
                kind: if is_data {
                    ExtentKind::Data
                } else {
                    ExtentKind::Hole
                },
                end: (end << unit_log2).min(chain.size()),
            })
        })
    }
}

impl Disk {
    /// The image, and the block of it, that a range can be taken from in one piece: decoded whole,
    /// wholly visible. Used by readers for the short way.
    pub(super) fn single_block(
        &self,
        chain: &Chain,
        offset: u64,
        len: u64,
    ) -> Result<Option<(usize, u64)>> {
        let unit = offset >> chain.unit_log2();
        if len == 0 || (offset + len - 1) >> chain.unit_log2() != unit {
            return Ok(None);
        }
        let Owner::Link(link) = chain.owner(&self.context.io(), unit)? else {
            return Ok(None);
        };
        let image = chain.links[link].image();
        if !image.is_whole() || offset + len > chain.visible_until(link) {
            return Ok(None);
        }
        Ok(Some((link, chain.block_of_unit(image, unit))))
    }
}
