//! Decoded blocks of single images, weighed in bytes.
//!
//! Restore points share their ancestors, so blocks are kept by image, not by disk. The policy is
//! quick_cache's (Clock-PRO with ghost entries, close to S3-FIFO): a block that was asked for once
//! leaves before one that was asked for again. A sequential reader asks for each block sixteen
//! times within milliseconds (128 KiB at a time); so that this does not look like love, readers
//! hold on to their current block themselves and sequential ones use [`Access::Sequential`].

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::single_flight::{CompleteOnDrop, SingleFlight};
use crate::error::Result;
use crate::sync::lock;

/// A block of an image. Image numbers are never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Number of the image.
    pub image: u64,
    /// Number of the block within it.
    pub block: u64,
}

/// A decoded block.
#[derive(Debug, Clone)]
pub struct Block {
    /// What its owner decoded.
    pub bytes: Bytes,
    /// Whether every sector is present (the owner's bitmap is all ones).
    pub full: bool,
}

/// How a block is accessed: whether a look-up is a sign that the block will be wanted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// At random: it counts.
    Random,
    /// By a reader passing through: it does not.
    Sequential,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<BlockKey, Block> for ByBytes {
    fn weight(&self, _: &BlockKey, block: &Block) -> u64 {
        // The constant stands for the entry itself.
        block.bytes.len() as u64 + 128
    }
}

type Inner = Cache<BlockKey, Block, ByBytes, RandomState, DefaultLifecycle<BlockKey, Block>>;

/// The cache. All calls are safe from any thread.
pub struct BlockCache {
    cache: Inner,
    flights: Mutex<HashMap<BlockKey, Arc<SingleFlight<Block>>>>,
    hits: AtomicU64,
    loads: AtomicU64,
}

/// What the cache has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct BlockCacheStats {
    /// Look-ups answered from memory or by joining work in flight.
    pub hits: u64,
    /// Blocks fetched and decoded.
    pub loads: u64,
    /// Bytes held now.
    pub bytes: u64,
}

/// What to do for a block: it is here, somebody is at it, or it is ours to load.
enum Claim {
    Ready(Block),
    Wait(Arc<SingleFlight<Block>>),
    Load(Arc<SingleFlight<Block>>),
}

impl BlockCache {
    /// A cache of at most `capacity_bytes`.
    pub fn new(capacity_bytes: u64) -> Self {
        let blocks = (capacity_bytes >> 21).clamp(16, 1 << 20) as usize;
        // One shard: shards divide the capacity, and blocks are large. The look-ups themselves
        // take a shared lock for some tens of nanoseconds.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(blocks)
            .weight_capacity(capacity_bytes)
            .shards(1)
            .hot_allocation(0.9)
            .build()
            .expect("both capacities are set");
        BlockCache {
            cache: Cache::with_options(
                options,
                ByBytes,
                RandomState::new(),
                DefaultLifecycle::default(),
            ),
            flights: Mutex::new(HashMap::new()),
            hits: AtomicU64::new(0),
            loads: AtomicU64::new(0),
        }
    }

    /// The block if it is in memory.
    pub fn get(&self, key: BlockKey, access: Access) -> Option<Block> {
        let found = match access {
            Access::Random => self.cache.get(&key),
            Access::Sequential => self.cache.peek(&key),
        };
        if found.is_some() {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// The block from memory, from somebody who is loading it now, or from `load`, which is then
    /// called on this thread without any lock held.
    pub fn get_or_load(
        &self,
        key: BlockKey,
        access: Access,
        load: impl FnOnce() -> Result<Block>,
    ) -> Result<Block> {
        match self.claim(key, access) {
            Claim::Ready(block) => Ok(block),
            Claim::Wait(flight) => flight.wait(),
            Claim::Load(flight) => self.run(key, &flight, load),
        }
    }

    fn claim(&self, key: BlockKey, access: Access) -> Claim {
        if let Some(block) = self.get(key, access) {
            return Claim::Ready(block);
        }
        let mut flights = lock(&self.flights);
        match flights.entry(key) {
            Entry::Occupied(flight) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                Claim::Wait(Arc::clone(flight.get()))
            }
            Entry::Vacant(vacant) => {
                // It may have completed between the look-up and the lock.
                if let Some(block) = self.cache.peek(&key) {
                    return Claim::Ready(block);
                }
                Claim::Load(Arc::clone(vacant.insert(Arc::new(SingleFlight::new()))))
            }
        }
    }

    fn run(
        &self,
        key: BlockKey,
        flight: &SingleFlight<Block>,
        load: impl FnOnce() -> Result<Block>,
    ) -> Result<Block> {
        let unwound = CompleteOnDrop(flight);
        let forget = Forget { cache: self, key };
        self.loads.fetch_add(1, Ordering::Relaxed);
        let result = load();
        if let Ok(block) = &result {
            self.cache.insert(key, block.clone());
        }
        flight.complete(result.clone());
        drop(forget);
        drop(unwound);
        result
    }

    /// Hits, loads and bytes.
    pub fn stats(&self) -> BlockCacheStats {
        BlockCacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            loads: self.loads.load(Ordering::Relaxed),
            bytes: self.cache.weight(),
        }
    }
}

/// Takes the flight out of the table, also when the load unwinds.
struct Forget<'a> {
    cache: &'a BlockCache,
    key: BlockKey,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.cache.flights).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::Barrier;
    use std::time::Duration;

    fn block(len: usize) -> Block {
        Block {
            bytes: Bytes::from(vec![7; len]),
            full: true,
        }
    }

    fn key(block: u64) -> BlockKey {
        BlockKey { image: 1, block }
    }

    #[test]
    fn many_who_want_one_block_cause_one_load() {
        let cache = BlockCache::new(1 << 20);
        let start = Barrier::new(8);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    start.wait();
                    cache
                        .get_or_load(key(1), Access::Random, || {
                            std::thread::sleep(Duration::from_millis(50));
                            Ok(block(1000))
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(cache.stats().loads, 1);
    }

    #[test]
    fn a_failed_load_is_told_and_forgotten() {
        let cache = BlockCache::new(1 << 20);
        let failed = cache.get_or_load(key(1), Access::Random, || Err(Error::corrupt("x")));
        assert!(failed.is_err());
        assert!(
            cache
                .get_or_load(key(1), Access::Random, || Ok(block(10)))
                .is_ok()
        );
    }

    #[test]
    fn a_load_that_panics_leaves_nobody_waiting() {
        let cache = BlockCache::new(1 << 20);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = cache.get_or_load(key(1), Access::Random, || panic!("on purpose"));
        }));
        assert!(unwound.is_err());
        assert!(
            cache
                .get_or_load(key(1), Access::Random, || Ok(block(10)))
                .is_ok()
        );
    }

    #[test]
    fn a_scan_leaves_the_hot_set_alone_and_bytes_stay_bounded() {
        let capacity = 64 * 10_000;
        let cache = BlockCache::new(capacity);
        let hot = 32u64;
        for _ in 0..3 {
            for n in 0..hot {
                cache
                    .get_or_load(key(n), Access::Random, || Ok(block(10_000)))
                    .unwrap();
            }
        }
        for n in 1000..3000 {
            cache
                .get_or_load(key(n), Access::Sequential, || Ok(block(10_000)))
                .unwrap();
            assert!(cache.stats().bytes <= capacity);
        }
        let kept = (0..hot)
            .filter(|&n| cache.get(key(n), Access::Sequential).is_some())
            .count();
        assert!(kept as u64 >= hot * 9 / 10, "{kept} of {hot} kept");
    }
}
