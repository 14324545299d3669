//! A store of whose objects copies are kept on a local disk across mounts.
//!
//! Blocks are kept under what the caller pins them by ([`Validity::Generation`]): it knows what the
//! content of a block depends on, an object's name alone does not tell. Of small files the latest
//! state that was read is kept ([`Validity::Listed`]), and given only where a listing tells of that
//! very state: ETag, length and time.
//!
//! This stands right above the network and below decryption, so what is kept is what was stored:
//! encrypted repositories stay encrypted.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use super::cache_entry::{CacheEntry, EntryKey};
use super::disk_cache::DiskCache;
use super::stats::{DiskCacheCounters, StoreStats};
use super::{Meta, Store, StoreLayer, StorePath, StoredFile, Validity, Version};
use crate::error::{ErrorKind, Result};
use crate::io::ReadAt;

/// Where to keep blocks across mounts, and how many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCacheOptions {
    /// The directory; made when it is not there.
    pub dir: PathBuf,
    /// Most bytes it may hold.
    pub max_bytes: u64,
}

/// The state of a file that is not there: no listing tells of it. (Versions are hashes.)
const NOT_THERE: Meta = Meta {
    len_bytes: 0,
    modified: None,
    version: Version(0),
};

/// The decorator.
pub struct CachedStore {
    inner: Arc<dyn Store>,
    cache: DiskCache,
    /// Which repository this is: a cache directory may serve many.
    identity: String,
    stats: Arc<StoreStats>,
}

impl CachedStore {
    /// Keeps pinned objects of `inner`.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn new(
        inner: Arc<dyn Store>,
        options: &DiskCacheOptions,
        stats: Arc<StoreStats>,
    ) -> Result<Self> {
        let counters = stats.disk_cache.get_or_init(DiskCacheCounters::default);
        Ok(CachedStore {
            cache: DiskCache::open(&options.dir, options.max_bytes, counters)?,
            identity: inner.describe(),
            inner,
            stats,
        })
    }

    /// The key of a block of one generation, or of the small file at `path`.
    fn key(&self, path: &StorePath, generation: Option<u128>) -> EntryKey {
        let mut hash = self.hash(path);
        if let Some(generation) = generation {
            hash.update(&generation.to_le_bytes());
        }
        finish(hash)
    }

    /// Of the repository and the path.
    fn hash(&self, path: &StorePath) -> Context {
        let mut hash = Context::new(&SHA256);
        for part in [self.identity.as_str(), path.as_str()] {
            // Lengths, so that no two lists of parts are the same bytes.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash
    }

    /// The key of a range of a pinned file. What is hashed is longer than for [`Self::key`], so no key
    /// of one kind is one of the other.
    fn range_key(&self, path: &StorePath, version: Version, offset: u64, len: usize) -> EntryKey {
        let mut hash = self.hash(path);
        hash.update(&version.0.to_le_bytes());
        hash.update(&offset.to_le_bytes());
        hash.update(&(len as u64).to_le_bytes());
        finish(hash)
    }

    fn counters(&self) -> &DiskCacheCounters {
        self.stats.disk_cache.get_or_init(Default::default)
    }
}

fn finish(hash: Context) -> EntryKey {
    let mut key = EntryKey::default();
    key.copy_from_slice(hash.finish().as_ref());
    key
}

/// An entry that is read in place: what is read of it is what was not fetched.
struct KeptFile {
    entry: CacheEntry,
    stats: Arc<StoreStats>,
}

impl ReadAt for KeptFile {
    fn len_bytes(&self) -> u64 {
        self.opened_meta().len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.entry.read_exact_at(buf, offset)?;
        let counters = self.stats.disk_cache.get_or_init(Default::default);
        counters.hit_bytes.fetch_add(buf.len() as u64, Relaxed);
        Ok(())
    }
}

impl StoredFile for KeptFile {
    fn opened_meta(&self) -> Meta {
        self.entry.meta()
    }

    /// Entries never change: they are replaced.
    fn head(&self) -> Result<Meta> {
        Ok(self.entry.meta())
    }
}

impl fmt::Debug for CachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CachedStore({:?})", self.inner)
    }
}

impl StoreLayer for CachedStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        match validity {
            Validity::Ask => self.inner.read(path, max_len, validity),
            Validity::Generation(generation) => {
                let key = self.key(path, Some(generation));
                if let Some(copy) = self.cache.get(&key, max_len, None, self.counters()) {
                    return Ok(copy);
                }
                let (content, meta) = self.inner.read(path, max_len, validity)?;
                self.cache.put(&key, &content, &meta, self.counters());
                Ok((content, meta))
            }
            Validity::Listed(listed) => {
                let key = self.key(path, None);
                if let Some(state) = listed.filter(|state| state.len_bytes <= max_len)
                    && let Some(copy) = self.cache.get(&key, max_len, Some(state), self.counters())
                {
                    return Ok(copy);
                }
                let read = self.inner.read(path, max_len, validity);
                match &read {
                    Ok((content, meta)) => self.cache.put(&key, content, meta, self.counters()),
                    // That it is not there is worth knowing as well: see `has_copy`.
                    Err(e) if e.kind() == ErrorKind::NotFound => {
                        self.cache.put(&key, &[], &NOT_THERE, self.counters());
                    }
                    Err(_) => {}
                }
                read
            }
        }
    }

    fn read_range(
        &self,
        path: &StorePath,
        file: &dyn StoredFile,
        offset: u64,
        len: usize,
    ) -> Result<Bytes> {
        let meta = file.opened_meta();
        let key = self.range_key(path, meta.version, offset, len);
        if let Some((copy, _)) = self.cache.get(&key, len as u64, None, self.counters())
            && copy.len() == len
        {
            return Ok(copy);
        }
        let content = self.inner.read_range(path, file, offset, len)?;
        self.cache.put(&key, &content, &meta, self.counters());
        Ok(content)
    }

    fn has_copy(&self, path: &StorePath, generation: Option<u128>) -> bool {
        self.cache.has(&self.key(path, generation))
    }

    fn open_copy(
        &self,
        path: &StorePath,
        max_len: u64,
        generation: u128,
    ) -> Option<Arc<dyn StoredFile>> {
        let key = self.key(path, Some(generation));
        let entry = self.cache.open_entry(&key, max_len, self.counters())?;
        let stats = self.stats.clone();
        Some(Arc::new(KeptFile { entry, stats }))
    }
}
