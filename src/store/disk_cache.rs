//! A directory that keeps objects across mounts: checksummed, private, bounded, shared.
//!
//! An entry is a file named by a hash of what it is. It is written under another name and renamed
//! into place, so that readers of any process see all of it or nothing; after a crash it may be cut
//! short, which its checksum shows. Nothing in here is believed: an entry that is not exactly what
//! it should be is removed, and fetched anew.
//!
//! Making room is approximate on purpose: an entry's age is the time of its last use to the hour,
//! and the directory is looked through only after this process has added a twentieth of the size.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Meta;
use super::cache_entry::{self, CacheEntry, EntryKey};
use super::stats::DiskCacheCounters;
use crate::error::{Error, ErrorKind, Result};

/// Directory below the one that is given: its name changes when the format does.
const FORMAT_DIR: &str = "brfs-blocks-2";
/// Uses within this time of the last noted one are not noted.
const USE_GRANULARITY: Duration = Duration::from_secs(3600);
/// Unfinished files of processes that are gone.
const STALE_TEMPORARY: Duration = Duration::from_secs(3600);

/// The directory. All calls are safe from any thread, and other processes may use it as well.
#[derive(Debug)]
pub(super) struct DiskCache {
    dir: PathBuf,
    max_bytes: u64,
    /// Bytes added since the directory was looked through.
    added: AtomicU64,
    /// What tells this one's unfinished files from those of others: process numbers do not, where
    /// containers share a directory.
    tag: u64,
    /// Numbers of unfinished files.
    next: AtomicU64,
    /// Held by the one thread that makes room; the others go on without.
    sweeping: Mutex<()>,
}

impl DiskCache {
    /// Opens the directory, making it if need be, and makes room in it.
    ///
    /// # Errors
    /// `Denied` when it belongs to somebody else; otherwise as the file system says.
    pub(super) fn open(dir: &Path, max_bytes: u64, counters: &DiskCacheCounters) -> Result<Self> {
        let failed = |e, dir: &Path| {
            Error::from_io(e, "cannot be used as cache directory").with_object(dir.display())
        };
        let builder = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        builder(dir).map_err(|e| failed(e, dir))?;
        let dir = dir.join(FORMAT_DIR);
        builder(&dir).map_err(|e| failed(e, &dir))?;
        let meta = fs::symlink_metadata(&dir).map_err(|e| failed(e, &dir))?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(Error::new(
                ErrorKind::Denied,
                "belongs to another user and cannot be used as cache directory",
            )
            .with_object(dir.display()));
        }
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&dir, private).map_err(|e| failed(e, &dir))?;
        let cache = DiskCache {
            dir,
            max_bytes,
            added: AtomicU64::new(0),
            // A random number: that is what the keys of hash maps are.
            tag: RandomState::new().build_hasher().finish(),
            next: AtomicU64::new(0),
            sweeping: Mutex::new(()),
        };
        cache.sweep(counters);
        Ok(cache)
    }

    fn path(&self, key: &EntryKey) -> PathBuf {
        let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
        self.dir.join(&hex[..2]).join(&hex[2..])
    }

    /// Whether there is an entry, sound or not.
    pub(super) fn has(&self, key: &EntryKey) -> bool {
        self.path(key).exists()
    }

    /// The entry, when it is there and sound and, if that is asked for, of this state.
    pub(super) fn get(
        &self,
        key: &EntryKey,
        max_len: u64,
        state: Option<&Meta>,
        counters: &DiskCacheCounters,
    ) -> Option<(Bytes, Meta)> {
        let found = self.find(key, max_len, state, counters)?;
        let Some(content) = found.read_all() else {
            self.remove_damaged(key, counters);
            return None;
        };
        counters.hits.fetch_add(1, Relaxed);
        counters.hit_bytes.fetch_add(content.len() as u64, Relaxed);
        Some((content, found.meta()))
    }

    /// The entry, to be read and checked in parts; the bytes are counted by who reads them.
    pub(super) fn open_entry(
        &self,
        key: &EntryKey,
        max_len: u64,
        counters: &DiskCacheCounters,
    ) -> Option<CacheEntry> {
        if !self.has(key) {
            // Whoever asks this asks for the whole next, and that will be the miss.
            return None;
        }
        let found = self.find(key, max_len, None, counters)?;
        counters.hits.fetch_add(1, Relaxed);
        Some(found)
    }

    /// The entry, if its header is sound.
    fn find(
        &self,
        key: &EntryKey,
        max_len: u64,
        state: Option<&Meta>,
        counters: &DiskCacheCounters,
    ) -> Option<CacheEntry> {
        let missed = || {
            counters.misses.fetch_add(1, Relaxed);
            None
        };
        let Ok(file) = File::open(self.path(key)) else {
            return missed();
        };
        // Of another length means of another state, and is no damage.
        let len = file.metadata().map_or(0, |m| m.len());
        if state.is_some_and(|state| cache_entry::file_len(state.len_bytes) != len) {
            return missed();
        }
        let Some(found) = CacheEntry::open(file, key, max_len) else {
            self.remove_damaged(key, counters);
            return None;
        };
        if state.is_some_and(|state| found.meta() != *state) {
            return missed();
        }
        note_use(found.file());
        Some(found)
    }

    fn remove_damaged(&self, key: &EntryKey, counters: &DiskCacheCounters) {
        let path = self.path(key);
        counters.misses.fetch_add(1, Relaxed);
        counters.damaged.fetch_add(1, Relaxed);
        tracing::warn!("{}: damaged entry of the cache removed", path.display());
        fs::remove_file(&path).ok();
    }

    /// Keeps an entry, if that is possible: a full or broken disk is no reason not to read on.
    pub(super) fn put(
        &self,
        key: &EntryKey,
        content: &[u8],
        meta: &Meta,
        counters: &DiskCacheCounters,
    ) {
        let len = cache_entry::file_len(content.len() as u64);
        // One entry must not push out everything else.
        if len > self.max_bytes / 8 {
            return;
        }
        if let Err(error) = self.write_entry(key, content, meta) {
            tracing::debug!("{}: nothing kept: {error}", self.dir.display());
            return;
        }
        counters.writes.fetch_add(1, Relaxed);
        counters
            .written_bytes
            .fetch_add(content.len() as u64, Relaxed);
        counters.held_bytes.fetch_add(len, Relaxed);
        if self.added.fetch_add(len, Relaxed) + len > self.max_bytes / 20 {
            self.sweep(counters);
        }
    }

    fn write_entry(&self, key: &EntryKey, content: &[u8], meta: &Meta) -> std::io::Result<()> {
        let path = self.path(key);
        let number = self.next.fetch_add(1, Relaxed);
        let temporary = format!("tmp-{:016x}-{number}", self.tag);
        let temporary = self.dir.join(temporary);
        let parent = path.parent().unwrap_or(&self.dir);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let written = cache_entry::write(&file, key, content, meta)
            .and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            fs::remove_file(&temporary).ok();
        }
        written
    }

    /// Removes what was used longest ago until nine tenths of the size are left. (The last tenth is
    /// for what several processes add before one of them looks again.)
    fn sweep(&self, counters: &DiskCacheCounters) {
        let Ok(_one) = self.sweeping.try_lock() else {
            return;
        };
        self.added.store(0, Relaxed);
        let now = SystemTime::now();
        let mut entries = Vec::new();
        let mut held = 0u64;
        for file in files_below(&self.dir) {
            let Ok(meta) = file.metadata() else { continue };
            let used = meta.modified().unwrap_or(now);
            let is_temporary = file.file_name().to_string_lossy().starts_with("tmp-");
            if is_temporary {
                if now
                    .duration_since(used)
                    .is_ok_and(|age| age > STALE_TEMPORARY)
                {
                    fs::remove_file(file.path()).ok();
                }
                continue;
            }
            held += meta.len();
            entries.push((used, meta.len(), file.path()));
        }
        let goal = self.max_bytes / 10 * 9;
        if held > goal {
            entries.sort();
            for (_, len, path) in entries {
                if held <= goal {
                    break;
                }
                // One that another process has removed is gone as well.
                fs::remove_file(&path).ok();
                held = held.saturating_sub(len);
                counters.evicted.fetch_add(1, Relaxed);
            }
        }
        counters.held_bytes.store(held, Relaxed);
    }
}

/// The files of the directory and of those directly below it.
fn files_below(dir: &Path) -> impl Iterator<Item = fs::DirEntry> {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    list(dir).flat_map(move |entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => list(&entry.path()).collect::<Vec<_>>(),
        Ok(kind) if kind.is_file() => vec![entry],
        _ => Vec::new(),
    })
}

/// The time of an entry is that of its last use.
fn note_use(file: &File) {
    let now = SystemTime::now();
    let last = file.metadata().and_then(|m| m.modified());
    let recent = |last| {
        now.duration_since(last)
            .is_ok_and(|age| age < USE_GRANULARITY)
    };
    if !last.is_ok_and(recent) {
        file.set_times(FileTimes::new().set_modified(now)).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Version;
    use super::*;

    fn meta(len: usize, seconds: u64) -> Meta {
        Meta {
            len_bytes: len as u64,
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            version: Version(7 << 99),
        }
    }

    fn key(number: u8) -> EntryKey {
        [number; 32]
    }

    #[test]
    fn entries_come_back_as_they_were_and_only_to_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let counters = DiskCacheCounters::default();
        let cache = DiskCache::open(&dir.path().join("new"), 1 << 20, &counters).unwrap();
        assert!(cache.get(&key(1), 99, None, &counters).is_none());
        cache.put(&key(1), b"content", &meta(7, 5), &counters);
        let unknown = Meta {
            modified: None,
            ..meta(0, 0)
        };
        cache.put(&key(2), b"", &unknown, &counters);
        let (content, found) = cache.get(&key(1), 99, None, &counters).unwrap();
        assert_eq!((&content[..], found), (&b"content"[..], meta(7, 5)));
        assert_eq!(cache.get(&key(2), 99, None, &counters).unwrap().1, unknown);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = cache.path(&key(1));
        assert_eq!(mode(&path), 0o600);
        for dir in [&*dir.path().join("new"), &cache.dir, path.parent().unwrap()] {
            assert_eq!(mode(dir), 0o700, "{dir:?}");
        }
        // A second process finds the same.
        let other = DiskCache::open(&dir.path().join("new"), 1 << 20, &counters).unwrap();
        assert!(other.get(&key(1), 99, None, &counters).is_some());
    }

    #[test]
    fn damaged_entries_are_removed_whatever_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let counters = DiskCacheCounters::default();
        let cache = DiskCache::open(dir.path(), 1 << 20, &counters).unwrap();
        let path = cache.path(&key(1));
        for at in [0, 9, 41, 57, 70, 77, 85, 92, 98] {
            cache.put(&key(1), b"content", &meta(7, 5), &counters);
            let mut bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 99);
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(
                cache.get(&key(1), 99, None, &counters).is_none(),
                "byte {at}"
            );
            assert!(!path.exists());
        }
        for len in [0, 83, 95] {
            cache.put(&key(1), b"content", &meta(7, 5), &counters);
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(len).unwrap();
            assert!(
                cache.get(&key(1), 99, None, &counters).is_none(),
                "{len} bytes"
            );
        }
        // Another key's entry in its place.
        cache.put(&key(2), b"other", &meta(5, 5), &counters);
        fs::rename(cache.path(&key(2)), &path).unwrap_or_else(|_| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::rename(cache.path(&key(2)), &path).unwrap();
        });
        assert!(cache.get(&key(1), 99, None, &counters).is_none());
        assert_eq!(counters.damaged.load(Relaxed), 13);
    }

    #[test]
    fn the_size_is_kept_and_what_is_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let counters = DiskCacheCounters::default();
        let max = 200 << 10;
        let caches = [(); 2].map(|()| DiskCache::open(dir.path(), max, &counters).unwrap());
        let content = vec![7; 4000];
        let old = SystemTime::now() - Duration::from_secs(86_400);
        for number in 0..200u8 {
            let cache = &caches[usize::from(number % 2)];
            cache.put(&key(number), &content, &meta(4000, 5), &counters);
            let file = File::options().write(true).open(cache.path(&key(number)));
            let age = Duration::from_secs(u64::from(number));
            let times = FileTimes::new().set_modified(old + age);
            file.unwrap().set_times(times).unwrap();
            cache.get(&key(0), 1 << 20, None, &counters).unwrap();
            let held: u64 = files_below(&cache.dir)
                .map(|f| f.metadata().unwrap().len())
                .sum();
            assert!(held <= max, "{held}");
        }
        assert!(counters.evicted.load(Relaxed) > 100);
        // Too large to be worth it.
        caches[0].put(&key(250), &vec![1; 100 << 10], &meta(9, 9), &counters);
        assert!(caches[0].get(&key(250), 1 << 20, None, &counters).is_none());
    }
}
