//! Counting what a store is asked for, so that people can see what a restore costs.
//!
//! Object stores count on their own, once for every request that goes out; [`CountingStore`]
//! counts the calls to a store that does not. Counters only ever grow and are read at any time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Entry, Meta, Store, StoreLayer, StorePath, StoredFile, Validity};
use crate::error::Result;
use crate::io::ReadAt;

/// What kind of request was made; on object stores each has its own price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// One page of a listing.
    List,
    /// The state of one object.
    Head,
    /// A whole object.
    Get,
    /// A range of an object.
    GetRange,
}

/// Latencies are sorted into powers of two of a microsecond: 40 of them reach twelve days.
const BUCKETS: usize = 40;

#[derive(Debug)]
struct Counter {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    micros: AtomicU64,
    max_micros: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Default for Counter {
    fn default() -> Self {
        Counter {
            requests: AtomicU64::default(),
            errors: AtomicU64::default(),
            bytes: AtomicU64::default(),
            micros: AtomicU64::default(),
            max_micros: AtomicU64::default(),
            latency: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

/// The counters of one repository.
#[derive(Debug, Default)]
pub struct StoreStats {
    list: Counter,
    head: Counter,
    get: Counter,
    get_range: Counter,
    retries: AtomicU64,
    throttled: AtomicU64,
    parallelism: AtomicU64,
    pub(super) disk_cache: OnceLock<DiskCacheCounters>,
}

/// What the cache on disk counts; see [`DiskCacheSnapshot`].
#[derive(Debug, Default)]
pub(super) struct DiskCacheCounters {
    pub(super) hits: AtomicU64,
    pub(super) hit_bytes: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) held_bytes: AtomicU64,
}

impl DiskCacheCounters {
    fn snapshot(&self) -> DiskCacheSnapshot {
        DiskCacheSnapshot {
            hits: self.hits.load(Relaxed),
            hit_bytes: self.hit_bytes.load(Relaxed),
            misses: self.misses.load(Relaxed),
            writes: self.writes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            held_bytes: self.held_bytes.load(Relaxed),
        }
    }
}

impl StoreStats {
    /// Records one finished request. `bytes` are those of content that arrived.
    pub fn record(&self, kind: Request, bytes: u64, took: Duration, ok: bool) {
        let counter = match kind {
            Request::List => &self.list,
            Request::Head => &self.head,
            Request::Get => &self.get,
            Request::GetRange => &self.get_range,
        };
        let micros = took.as_micros().min(u128::from(u64::MAX)) as u64;
        counter.requests.fetch_add(1, Relaxed);
        counter.errors.fetch_add(u64::from(!ok), Relaxed);
        counter.bytes.fetch_add(bytes, Relaxed);
        counter.micros.fetch_add(micros, Relaxed);
        counter.max_micros.fetch_max(micros, Relaxed);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        counter.latency[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    /// Records that a request is about to be sent again.
    pub fn record_retry(&self, throttled: bool) {
        self.retries.fetch_add(1, Relaxed);
        self.throttled.fetch_add(u64::from(throttled), Relaxed);
    }

    /// Tells how many requests may be in flight now.
    pub fn set_parallelism(&self, now: usize) {
        self.parallelism.store(now as u64, Relaxed);
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            list: self.list.snapshot(),
            head: self.head.snapshot(),
            get: self.get.snapshot(),
            get_range: self.get_range.snapshot(),
            retries: self.retries.load(Relaxed),
            throttled: self.throttled.load(Relaxed),
            parallelism: self.parallelism.load(Relaxed),
            disk_cache: self.disk_cache.get().map(DiskCacheCounters::snapshot),
        }
    }
}

impl Counter {
    fn snapshot(&self) -> RequestSnapshot {
        let latency: Vec<u64> = self.latency.iter().map(|n| n.load(Relaxed)).collect();
        let requests = self.requests.load(Relaxed);
        let to_ms = |micros: u64| micros as f64 / 1000.0;
        RequestSnapshot {
            requests,
            errors: self.errors.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            mean_ms: to_ms(self.micros.load(Relaxed)) / requests.max(1) as f64,
            p50_ms: to_ms(quantile(&latency, 0.5)),
            p99_ms: to_ms(quantile(&latency, 0.99)),
            max_ms: to_ms(self.max_micros.load(Relaxed)),
        }
    }
}

/// The upper bound, in microseconds, of the bucket that holds the quantile.
fn quantile(latency: &[u64], q: f64) -> u64 {
    let total: u64 = latency.iter().sum();
    if total == 0 {
        return 0;
    }
    let wanted = ((total as f64 * q).ceil() as u64).max(1);
    let mut seen = 0;
    for (bucket, count) in latency.iter().enumerate() {
        seen += count;
        if seen >= wanted {
            return 1 << bucket;
        }
    }
    1 << (latency.len() - 1)
}

/// All counters of a repository at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatsSnapshot {
    /// Listing pages.
    pub list: RequestSnapshot,
    /// Requests for an object's state.
    pub head: RequestSnapshot,
    /// Whole objects.
    pub get: RequestSnapshot,
    /// Ranges of objects.
    pub get_range: RequestSnapshot,
    /// Requests that were sent again; each is counted above as well.
    pub retries: u64,
    /// Those of them that the storage had asked to slow down.
    pub throttled: u64,
    /// Requests that may be in flight at once now; 0 where nothing limits them.
    pub parallelism: u64,
    /// The cache on disk, where there is one.
    pub disk_cache: Option<DiskCacheSnapshot>,
}

/// The counters of the cache on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskCacheSnapshot {
    /// Blocks and small files that were there, as they should be.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Those that were not, or in another state.
    pub misses: u64,
    /// What was kept anew.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Entries that failed their checksum and were thrown away.
    pub damaged: u64,
    /// Entries that this process removed to make room.
    pub evicted: u64,
    /// What the directory held when it was last looked at, and has been given since.
    pub held_bytes: u64,
}

/// The counters of one kind of request. Quantiles are exact to a factor of two.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestSnapshot {
    /// Finished requests, failed ones included.
    pub requests: u64,
    /// Failed requests (also those that merely found nothing).
    pub errors: u64,
    /// Bytes of content received.
    pub bytes: u64,
    /// Mean time to the last byte.
    pub mean_ms: f64,
    /// Half of the requests took no longer.
    pub p50_ms: f64,
    /// 99 of 100 requests took no longer.
    pub p99_ms: f64,
    /// The slowest request.
    pub max_ms: f64,
}

/// Counts the calls to a store.
pub struct CountingStore {
    inner: Arc<dyn Store>,
    stats: Arc<StoreStats>,
}

impl CountingStore {
    /// Wraps a store that does not count by itself.
    pub fn new(inner: Arc<dyn Store>, stats: Arc<StoreStats>) -> Self {
        CountingStore { inner, stats }
    }
}

fn timed<T>(
    stats: &StoreStats,
    kind: Request,
    call: impl FnOnce() -> Result<T>,
    bytes: impl FnOnce(&T) -> u64,
) -> Result<T> {
    let start = Instant::now();
    let result = call();
    let bytes = result.as_ref().map_or(0, bytes);
    stats.record(kind, bytes, start.elapsed(), result.is_ok());
    result
}

impl fmt::Debug for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl StoreLayer for CountingStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        timed(&self.stats, Request::List, || self.inner.list(dir), |_| 0)
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        timed(&self.stats, Request::Head, || self.inner.head(path), |_| 0)
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        let call = || self.inner.read(path, max_len, validity);
        timed(&self.stats, Request::Get, call, |(b, _)| b.len() as u64)
    }

    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        let call = || self.inner.open(path, listed);
        let inner = timed(&self.stats, Request::Head, call, |_| 0)?;
        Ok(Arc::new(CountingFile {
            inner,
            stats: self.stats.clone(),
        }))
    }
}

struct CountingFile {
    inner: Arc<dyn StoredFile>,
    stats: Arc<StoreStats>,
}

impl ReadAt for CountingFile {
    fn len_bytes(&self) -> u64 {
        self.opened_meta().len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        let call = || self.inner.read_exact_at(buf, offset);
        timed(&self.stats, Request::GetRange, call, |()| len)
    }
}

impl StoredFile for CountingFile {
    fn opened_meta(&self) -> Meta {
        self.inner.opened_meta()
    }

    fn head(&self) -> Result<Meta> {
        timed(&self.stats, Request::Head, || self.inner.head(), |_| 0)
    }

    fn read_bytes_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let call = || self.inner.read_bytes_at(offset, len);
        timed(&self.stats, Request::GetRange, call, |b| b.len() as u64)
    }

    fn is_pinned(&self) -> bool {
        self.inner.is_pinned()
    }

    fn will_read(&self, offset: u64, len: u64) {
        self.inner.will_read(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_sums_come_out_of_the_buckets() {
        let stats = StoreStats::default();
        for _ in 0..99 {
            stats.record(Request::Get, 100, Duration::from_micros(900), true);
        }
        stats.record(Request::Get, 0, Duration::from_secs(2), false);
        stats.record_retry(true);
        let get = stats.snapshot().get;
        assert_eq!((get.requests, get.errors, get.bytes), (100, 1, 9900));
        assert_eq!((get.p50_ms, get.max_ms), (1.024, 2000.0));
        assert_eq!(get.p99_ms, 1.024);
        assert_eq!(stats.snapshot().throttled, 1);
        let json = serde_json::to_value(stats.snapshot()).unwrap();
        assert_eq!(json["get"]["bytes"], 9900);
        stats.record(Request::List, 0, Duration::MAX, true);
        assert_eq!(stats.snapshot().list.requests, 1);
    }
}
