//! A local directory as an object store far away, with an account of what is asked of it; and a small
//! backup to put there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime};

use brfs::error::{Error, ErrorKind, Result};
use brfs::image::{Disk, RestorePointGuard};
use brfs::io::ReadAt;
use brfs::store::{
    CachedStore, DiskCacheOptions, Entry, EntryKind, LocalStore, Meta, Store, StoreLayer,
    StorePath, StoreStats, StoreTraits, StoredFile, Validity,
};
use bytes::Bytes;

use super::chain::{Chain, Storage};
use super::rng::Rng;
use super::sparse::Fill;
use super::vhd_dir::Filter;

/// A local store that behaves like an object store far away, and keeps account of what depends on
/// what: requests are answered in waves, each when for the length of the delay no other has come. So
/// those that do not wait for each other are one round trip, however slow the machine is at sending
/// them.
#[derive(Debug)]
pub struct FarStore {
    this: Weak<FarStore>,
    inner: LocalStore,
    delay: Duration,
    waves: Mutex<Waves>,
    pub requests: AtomicU64,
    now: AtomicUsize,
    pub most: AtomicUsize,
    /// What was asked, as `head x`, `read x`.
    asked: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Waves {
    /// Waves answered so far: a request belongs to the next one.
    answered: usize,
    last_came: Instant,
}

impl FarStore {
    fn request<T>(&self, kind: &str, path: &StorePath, work: impl FnOnce() -> T) -> T {
        self.asked.lock().unwrap().push(format!("{kind} {path}"));
        self.requests.fetch_add(1, Ordering::Relaxed);
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        self.await_answer();
        let done = work();
        self.now.fetch_sub(1, Ordering::Relaxed);
        done
    }

    fn await_answer(&self) {
        let mine = {
            let mut waves = self.waves.lock().unwrap();
            waves.last_came = Instant::now();
            waves.answered + 1
        };
        loop {
            let mut waves = self.waves.lock().unwrap();
            if waves.answered >= mine {
                return;
            }
            let quiet = waves.last_came.elapsed();
            if quiet >= self.delay {
                waves.answered = mine;
                return;
            }
            drop(waves);
            std::thread::sleep(self.delay - quiet);
        }
    }

    /// How many requests there were of this kind for paths that hold this text.
    pub fn count(&self, kind: &str, text: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        let is = |asked: &&String| asked.starts_with(kind) && asked.contains(text);
        asked.iter().filter(is).count()
    }

    /// How many round trips there were, one after the other.
    pub fn depth(&self) -> usize {
        self.waves.lock().unwrap().answered
    }
}

impl StoreLayer for FarStore {
    fn inner(&self) -> &dyn Store {
        &self.inner
    }
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        self.request("list", dir, || {
            let mut entries = self.inner.list(dir)?;
            // As object stores do, at no extra cost.
            for entry in entries.iter_mut().filter(|e| e.kind == EntryKind::File) {
                entry.meta = self.inner.head(&dir.child(&entry.name)).ok();
            }
            Ok(entries)
        })
    }
    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.request("head", path, || self.inner.head(path))
    }
    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        self.request("read", path, || self.inner.read(path, max_len, validity))
    }
    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        let meta = match listed {
            Some(meta) => *meta,
            None => self.request("open", path, || self.inner.head(path))?,
        };
        Ok(Arc::new(FarFile {
            store: self.this.upgrade().unwrap(),
            path: path.clone(),
            meta,
        }))
    }
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            cheap_ranges: false,
            remote: true,
            parallelism: 64,
            exact_lengths: true,
        }
    }
    fn describe(&self) -> String {
        "far".into()
    }
}

/// An object in one state.
struct FarFile {
    store: Arc<FarStore>,
    path: StorePath,
    meta: Meta,
}

impl ReadAt for FarFile {
    fn len_bytes(&self) -> u64 {
        self.opened_meta().len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.store.request("range", &self.path, || {
            let file = self.store.inner.open(&self.path, None)?;
            match file.opened_meta().version == self.meta.version {
                true => file.read_exact_at(buf, offset),
                false => Err(Error::new(ErrorKind::Changed, "replaced").with_object(&self.path)),
            }
        })
    }
}

impl StoredFile for FarFile {
    fn opened_meta(&self) -> Meta {
        self.meta
    }
    fn head(&self) -> Result<Meta> {
        StoreLayer::head(&*self.store, &self.path)
    }
    fn is_pinned(&self) -> bool {
        true
    }
}

/// `root`, with this delay for each request.
pub fn far(root: &Path, delay_ms: u64) -> Arc<FarStore> {
    Arc::new_cyclic(|this| FarStore {
        this: this.clone(),
        inner: LocalStore::open(root).unwrap(),
        delay: Duration::from_millis(delay_ms),
        waves: Mutex::new(Waves {
            answered: 0,
            last_came: Instant::now(),
        }),
        requests: AtomicU64::new(0),
        now: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        asked: Mutex::default(),
    })
}

/// The store as a mount with this cache directory sees it.
pub fn cached(
    store: Arc<FarStore>,
    dir: &Path,
    max_bytes: u64,
) -> (Arc<CachedStore>, Arc<StoreStats>) {
    let stats = Arc::new(StoreStats::default());
    let options = DiskCacheOptions {
        dir: dir.to_owned(),
        max_bytes,
    };
    let store = CachedStore::new(store, &options, stats.clone()).unwrap();
    (Arc::new(store), stats)
}

/// A chain of two, 16 blocks of 64 KiB in all of which the youngest image owns 10, and the restore
/// point's metadata; everything three days old.
pub fn old_backup(dir: &Path) -> (Chain, StorePath, Option<RestorePointGuard>) {
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
    let guard = RestorePointGuard {
        path: StorePath::new("point.json").unwrap(),
    };
    (chain, StorePath::new(name).unwrap(), Some(guard))
}

pub fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_of(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

pub fn set_modified(file: &Path, time: SystemTime) {
    let opened = std::fs::File::options().write(true).open(file).unwrap();
    opened.set_modified(time).unwrap();
}

pub fn read_whole(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0; disk.len_bytes() as usize];
    for (n, piece) in bytes.chunks_mut(65_536).enumerate() {
        disk.read_exact_at(piece, n as u64 * 65_536)?;
    }
    Ok(bytes)
}

/// The object of a block of the youngest image.
pub fn youngest_block(dir: &Path, youngest: &StorePath, block: u64) -> PathBuf {
    let alias = std::fs::read_to_string(dir.join(youngest.as_str())).unwrap();
    let base = dir.join(alias.trim());
    base.join(format!("blocks/0/{block}"))
}
