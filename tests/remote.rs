//! Disks on storage where every request takes a round trip: how many of them it takes, one after
//! the other, until there are bytes; that reading ahead fetches every block once; and what is asked
//! again by a second mount with a cache directory.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use brfs::error::Result;
use brfs::image::{Disk, DiskContext, DiskGuard};
use brfs::io::{Chunk, ReadAt};
use brfs::store::{
    CachedStore, DiskCacheOptions, Entry, LocalStore, Meta, Store, StorePath, StoreStats,
    StoreTraits, StoredFile,
};
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
    /// What was asked, as `head x`, `read x`.
    asked: Mutex<Vec<String>>,
}

impl FarStore {
    fn request<T>(&self, kind: &str, path: &StorePath, work: impl FnOnce() -> T) -> T {
        self.asked.lock().unwrap().push(format!("{kind} {path}"));
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

    /// How many requests there were of this kind for paths that hold this text.
    fn count(&self, kind: &str, text: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        let is = |asked: &&String| asked.starts_with(kind) && asked.contains(text);
        asked.iter().filter(is).count()
    }

    fn depth(&self) -> usize {
        *self.ended_depth.lock().unwrap()
    }
}

impl Store for FarStore {
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        self.request("list", dir, || self.inner.list(dir))
    }
    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.request("head", path, || self.inner.head(path))
    }
    fn read(&self, path: &StorePath, max_len: u64) -> Result<(Bytes, Meta)> {
        self.request("read", path, || self.inner.read(path, max_len))
    }
    fn open(&self, path: &StorePath) -> Result<Arc<dyn StoredFile>> {
        self.request("open", path, || self.inner.open(path))
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
        asked: Mutex::default(),
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

/// A chain of two, 16 blocks of 64 KiB in all of which the youngest image owns 10, and the restore
/// point's metadata; everything three days old.
fn old_backup(dir: &Path) -> (Chain, StorePath, Option<DiskGuard>) {
    let rng = &mut Rng::new(7);
    let mut chain = Chain::new();
    for (n, sectors) in [16 * 128, 10 * 128].into_iter().enumerate() {
        chain
            .push(rng, 1 << 20)
            .storage(Storage::Dir(Filter::Brotli))
            .block_size(65_536)
            .write(0, sectors, Fill::Random(n as u64));
    }
    let written = chain.write(dir);
    std::fs::write(dir.join("point.json"), b"{}").unwrap();
    let then = SystemTime::now() - Duration::from_secs(3 * 86_400);
    for file in files_of(dir) {
        set_modified(&file, then);
    }
    let name = written.youngest().file_name().unwrap().to_str().unwrap();
    let guard = DiskGuard {
        path: StorePath::new("point.json").unwrap(),
    };
    (chain, StorePath::new(name).unwrap(), Some(guard))
}

fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_of(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

fn set_modified(file: &Path, time: SystemTime) {
    let opened = std::fs::File::options().write(true).open(file).unwrap();
    opened.set_modified(time).unwrap();
}

fn read_whole(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0; disk.len_bytes() as usize];
    for (n, piece) in bytes.chunks_mut(65_536).enumerate() {
        disk.read_exact_at(piece, n as u64 * 65_536)?;
    }
    Ok(bytes)
}

/// The object of a block of the youngest image.
fn youngest_block(dir: &Path, youngest: &StorePath, block: u64) -> PathBuf {
    let alias = std::fs::read_to_string(dir.join(youngest.as_str())).unwrap();
    let base = dir.join(alias.trim());
    base.join(format!("blocks/0/{block}"))
}

#[test]
fn one_look_at_the_restore_point_vouches_for_all_its_old_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, youngest, guard) = old_backup(dir.path());
    let store = far(dir.path(), 0);
    let context = DiskContext::new(store.clone(), 64 << 20);
    let disk = context.open_disk(&youngest, guard).unwrap();
    assert!(read_whole(&disk).unwrap() == chain.read(1, 0, 1 << 20));
    assert_eq!(store.count("read", "/blocks/"), 16);
    assert_eq!(store.count("head", "point.json"), 1);
}

#[test]
fn a_block_that_was_copied_over_since_is_looked_at_again() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, youngest, guard) = old_backup(dir.path());
    let store = far(dir.path(), 0);
    let context = DiskContext::new(store.clone(), 64 << 20);
    let disk = context.open_disk(&youngest, guard).unwrap();
    let mut piece = vec![0; 65_536];
    disk.read_exact_at(&mut piece, 0).unwrap();
    assert_eq!(store.count("head", "point.json"), 1);
    // As a merge does it: the point goes, then another image's block is copied here.
    std::fs::remove_file(dir.path().join("point.json")).unwrap();
    let block = |n| youngest_block(dir.path(), &youngest, n);
    std::fs::copy(block(5), block(4)).unwrap();
    disk.read_exact_at(&mut piece, 3 * 65_536).unwrap();
    assert!(piece == chain.read(1, 3 * 65_536, 65_536));
    let error = disk.read_exact_at(&mut piece, 4 * 65_536).unwrap_err();
    assert_eq!(error.kind(), brfs::error::ErrorKind::Changed);
}

fn cached(store: Arc<FarStore>, dir: &Path, max_bytes: u64) -> (Arc<CachedStore>, Arc<StoreStats>) {
    let stats = Arc::new(StoreStats::default());
    let options = DiskCacheOptions {
        dir: dir.to_owned(),
        max_bytes,
    };
    let store = CachedStore::new(store, &options, stats.clone()).unwrap();
    (Arc::new(store), stats)
}

/// Reads the disk as a new mount with this cache directory does; gives the bytes and how many
/// blocks were fetched.
fn remount(
    dir: &Path,
    cache: &Path,
    youngest: &StorePath,
    guard: &Option<DiskGuard>,
) -> (Vec<u8>, usize) {
    let store = far(dir, 0);
    let (cached, _) = cached(store.clone(), cache, 1 << 30);
    let context = DiskContext::new(cached, 64 << 20);
    let disk = context.open_disk(youngest, guard.clone()).unwrap();
    (read_whole(&disk).unwrap(), store.count("read", "/blocks/"))
}

#[test]
fn a_second_mount_fetches_no_block_and_damaged_ones_anew() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (chain, youngest, guard) = old_backup(dir.path());
    let expected = chain.read(1, 0, 1 << 20);
    let mount = || remount(dir.path(), cache.path(), &youngest, &guard);
    assert!(mount() == (expected.clone(), 16));
    assert!(mount() == (expected.clone(), 0));
    for (n, file) in files_of(cache.path()).iter().enumerate() {
        let mut bytes = std::fs::read(file).unwrap();
        let at = n * bytes.len() / 17;
        bytes[at] ^= 0x10;
        std::fs::write(file, bytes).unwrap();
    }
    assert!(mount() == (expected.clone(), 16));
    // Two at once.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert!(mount().0 == expected));
        }
    });
    assert!(mount() == (expected, 0));
}

#[test]
fn an_image_that_was_rewritten_is_another_one_to_the_cache() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (chain, youngest, guard) = old_backup(dir.path());
    let mount = || remount(dir.path(), cache.path(), &youngest, &guard);
    let mut expected = chain.read(1, 0, 1 << 20);
    assert!(mount().0 == expected);
    // The end of a merge: blocks have been moved in, and the parts are written again.
    let block = |n| youngest_block(dir.path(), &youngest, n);
    std::fs::copy(block(5), block(4)).unwrap();
    let five = expected[5 * 65_536..6 * 65_536].to_vec();
    expected[4 * 65_536..5 * 65_536].copy_from_slice(&five);
    let footer = block(0).ancestors().nth(3).unwrap().join("footer");
    set_modified(&footer, SystemTime::now());
    assert!(mount() == (expected, 10));
}
