//! Disks on storage where every request takes a round trip: how many of them it takes, one after
//! the other, until there are bytes; and that reading ahead fetches every block once.

#[path = "support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use brfs::error::Result;
use brfs::image::DiskContext;
use brfs::io::{Chunk, ReadAt};
use brfs::store::{Entry, LocalStore, Meta, Store, StorePath, StoreTraits, StoredFile};
use bytes::Bytes;
use support::chain::{Chain, Storage};
use support::rng::Rng;
use support::sparse::Fill;
use support::vhd_dir::Filter;

/// A local store that behaves like an object store far away, and keeps account of what depends on
/// what: a request's depth is one more than that of the deepest that had ended when it began.
#[derive(Debug)]
struct FarStore {
    inner: LocalStore,
    delay: Duration,
    ended_depth: Mutex<usize>,
    requests: AtomicU64,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl FarStore {
    fn request<T>(&self, work: impl FnOnce() -> T) -> T {
        let depth = *self.ended_depth.lock().unwrap() + 1;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        let done = work();
        self.now.fetch_sub(1, Ordering::Relaxed);
        let mut ended = self.ended_depth.lock().unwrap();
        *ended = (*ended).max(depth);
        done
    }

    fn depth(&self) -> usize {
        *self.ended_depth.lock().unwrap()
    }
}

impl Store for FarStore {
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        self.request(|| self.inner.list(dir))
    }
    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.request(|| self.inner.head(path))
    }
    fn read(&self, path: &StorePath, max_len: u64) -> Result<(Bytes, Meta)> {
        self.request(|| self.inner.read(path, max_len))
    }
    fn open(&self, path: &StorePath) -> Result<Arc<dyn StoredFile>> {
        self.request(|| self.inner.open(path))
    }
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            cheap_ranges: false,
            remote: true,
            parallelism: 64,
        }
    }
    fn describe(&self) -> String {
        "far".into()
    }
}

fn far(root: &std::path::Path, delay_ms: u64) -> Arc<FarStore> {
    Arc::new(FarStore {
        inner: LocalStore::open(root).unwrap(),
        delay: Duration::from_millis(delay_ms),
        ended_depth: Mutex::new(0),
        requests: AtomicU64::new(0),
        now: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    })
}

fn chain_of(layers: u64, filter: Filter) -> Chain {
    let rng = &mut Rng::new(3);
    let mut chain = Chain::new();
    for n in 0..layers {
        chain
            .push(rng, 8 << 20)
            .storage(Storage::Dir(filter))
            .block_size(65_536)
            .write(n * 40, 100, Fill::Random(n));
    }
    chain
}

#[test]
fn round_trips_to_the_first_byte_do_not_grow_with_the_chain() {
    for layers in [2, 30] {
        let chain = chain_of(layers, Filter::Brotli);
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        let store = far(dir.path(), 60);
        let context = DiskContext::new(store.clone(), 64 << 20);
        let name = written.youngest().file_name().unwrap().to_str().unwrap();
        let disk = context
            .open_disk(&StorePath::new(name).unwrap(), None)
            .unwrap();
        let mut buf = [0; 512];
        // The first sector is the oldest image's.
        disk.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf[..], chain.read(layers as usize - 1, 0, 512));
        let (depth, requests) = (store.depth(), store.requests.load(Ordering::Relaxed));
        println!("chain of {layers}: {depth} round trips, {requests} requests");
        assert!(depth <= 6, "{depth} round trips");
        assert!(requests <= 5 * layers + 3, "{requests} requests");
    }
}

#[test]
fn a_scan_fetches_every_block_once_and_many_at_a_time() {
    let rng = &mut Rng::new(3);
    let mut chain = Chain::new();
    chain
        .push(rng, 40 << 20)
        .storage(Storage::Dir(Filter::Absent))
        .write(0, 40 * 2048, Fill::Random(1));
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    let store = far(dir.path(), 30);
    let context = DiskContext::new(store.clone(), 256 << 20);
    let name = written.youngest().file_name().unwrap().to_str().unwrap();
    let disk = context
        .open_disk(&StorePath::new(name).unwrap(), None)
        .unwrap();
    let reader = disk.reader();
    let mut buf = vec![0; 128 << 10];
    let mut at = 0;
    while at < disk.len_bytes() {
        let got = match reader.read(at, 128 << 10, &mut buf).unwrap() {
            Chunk::Filled(len) => buf[..len].to_vec(),
            Chunk::Shared(bytes) => bytes.to_vec(),
        };
        assert!(got == chain.read(0, at, 128 << 10), "at {at}");
        at += got.len() as u64;
    }
    assert_eq!(context.cache_stats().loads, 20);
    let most = store.most.load(Ordering::Relaxed);
    assert!(most >= 6, "only {most} requests at once");
}
