//! The cache directory when things happen to the repository or to the directory itself: a merge from
//! its begin to its end, mounts that share it, files that a crash or a disk has spoilt. Whatever
//! happens, the bytes are right.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::chain::{Chain, Storage};
use crate::support::far::{cached, far, files_of};
use crate::support::merge::{Cleanup, Merge};
use crate::support::random_chain::mergeable;
use crate::support::reading::read_some;
use crate::support::rng::Rng;
use crate::support::vhd_dir::Filter;
use brfs::image::{Disk, DiskContext, RestorePointGuard};
use brfs::io::ReadAt;
use brfs::store::StorePath;
use tempfile::TempDir;

fn path_of(dir: &Path, file: &Path) -> StorePath {
    let inside = file.strip_prefix(dir).unwrap();
    StorePath::new(inside.to_str().unwrap()).unwrap()
}

fn whole(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.len_bytes() as usize];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Reads the points `from..` whole, as a new mount with this cache directory; gives how many blocks
/// it fetched.
fn check(
    dir: &Path,
    cache: &Path,
    chain: &Chain,
    heads: &[PathBuf],
    from: usize,
    what: &str,
) -> usize {
    let store = far(dir, 0);
    let (cached, _) = cached(store.clone(), cache, 1 << 30);
    let context = DiskContext::new(cached, 64 << 20);
    for (layer, head) in heads.iter().enumerate().skip(from) {
        let disk = context.open_disk(&path_of(dir, head), None);
        let disk = disk.unwrap_or_else(|e| panic!("{what}, layer {layer}: {e}"));
        let expected = chain.read(layer, 0, disk.len_bytes() as usize);
        assert!(whole(&disk) == expected, "{what}, layer {layer}");
    }
    store.count("read", "/blocks/")
}

#[test]
fn mounts_before_during_and_after_a_merge_share_a_cache_directory() {
    let last = [
        Cleanup::MiddleRemoved,
        Cleanup::AliasRewritten,
        Cleanup::OldDataRemoved,
        Cleanup::Finished,
    ];
    for (n, last) in last.into_iter().enumerate() {
        let filter = [Filter::Absent, Filter::Brotli][n % 2];
        // Neighbours, with a grandparent below, and three at once.
        for (parent, child) in [(0, 1), (1, 2), (0, 2)] {
            let rng = &mut Rng::new(parent as u64 * 10 + child as u64);
            let chain = mergeable(rng, Storage::Dir(filter), 4);
            let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let written = chain.write(dir.path());
            let heads: Vec<_> = written.layers.iter().map(|l| l.head.clone()).collect();
            let look = |from, what: &str| {
                let what = format!("{filter:?} {parent}->{child} {what}");
                check(dir.path(), cache.path(), &chain, &heads, from, &what)
            };
            // Everything is kept, also what the merge is going to overwrite.
            assert!(look(0, "before") > 0);
            assert_eq!(look(0, "again"), 0);
            let merge = Merge::new(&chain, &written, parent, child);
            for count in 0..=merge.blocks().len() {
                merge.interrupt_after_blocks(count);
                look(child, &format!("{count} blocks"));
            }
            for stage in [Cleanup::UuidWritten, last] {
                merge.interrupt_in_cleanup(stage);
                look(child, &format!("{stage:?}"));
            }
            if last == Cleanup::Finished {
                assert_eq!(look(child, "again"), 0);
            }
        }
    }
}

/// A chain, its heads, and where it lies.
fn repository(filter: Filter) -> (TempDir, Chain, Vec<PathBuf>) {
    let chain = mergeable(&mut Rng::new(5), Storage::Dir(filter), 3);
    let dir = TempDir::new().unwrap();
    let written = chain.write(dir.path());
    let heads = written.layers.iter().map(|l| l.head.clone()).collect();
    (dir, chain, heads)
}

#[test]
fn spoilt_files_are_fetched_anew() {
    spoilt_files(Filter::Gzip);
}

/// Plain blocks are read in place, in parts.
#[test]
fn spoilt_plain_blocks_are_fetched_anew() {
    spoilt_files(Filter::Absent);
}

fn spoilt_files(filter: Filter) {
    let (dir, chain, heads) = repository(filter);
    let cache = TempDir::new().unwrap();
    let look = |what: &str| check(dir.path(), cache.path(), &chain, &heads, 0, what);
    look("first");
    assert_eq!(look("second"), 0);
    let truncate = |file: &Path, len: u64| {
        File::options()
            .write(true)
            .open(file)
            .unwrap()
            .set_len(len)
            .unwrap();
    };
    type Spoil<'a> = &'a dyn Fn(usize, &Path, u64);
    let spoils: [(&str, Spoil); 5] = [
        ("cut short", &|n, file, len| {
            truncate(file, len * (n as u64 % 10) / 10)
        }),
        ("zeros at the end, as after a crash", &|_, file, len| {
            truncate(file, len / 2);
            truncate(file, len);
        }),
        ("longer", &|_, file, len| truncate(file, len + 4096)),
        ("a bit flipped", &|n, file, len| {
            let mut bytes = fs::read(file).unwrap();
            bytes[n * 7919 % len as usize] ^= 0x40;
            fs::write(file, bytes).unwrap();
        }),
        ("a directory in its place", &|_, file, _| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
    ];
    for (what, spoil) in spoils {
        for (n, file) in files_of(cache.path()).iter().enumerate() {
            spoil(n, file, fs::metadata(file).unwrap().len());
        }
        // What a process that was killed leaves.
        let format_dir = fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap();
        fs::write(format_dir.path().join(format!("tmp-1-{what}")), b"torn").unwrap();
        assert!(look(what) > 0, "{what}");
        look(&format!("after: {what}"));
    }
}

#[test]
fn entries_that_changed_places_are_not_believed() {
    for filter in [Filter::Gzip, Filter::Absent] {
        changed_places(filter);
    }
}

fn changed_places(filter: Filter) {
    let (dir, chain, heads) = repository(filter);
    let cache = TempDir::new().unwrap();
    let look = |what: &str| check(dir.path(), cache.path(), &chain, &heads, 0, what);
    look("first");
    let files = files_of(cache.path());
    let contents: Vec<Vec<u8>> = files.iter().map(|f| fs::read(f).unwrap()).collect();
    for (n, file) in files.iter().enumerate() {
        fs::write(file, &contents[(n + 1) % contents.len()]).unwrap();
    }
    assert!(look("rotated") > 0);
}

/// The disk that holds the cache fails while blocks are read from it in place.
#[test]
fn blocks_spoilt_under_an_open_disk_are_fetched_anew() {
    let (dir, chain, heads) = repository(Filter::Absent);
    let cache = TempDir::new().unwrap();
    check(dir.path(), cache.path(), &chain, &heads, 0, "first");
    let store = far(dir.path(), 0);
    let (cached, stats) = cached(store.clone(), cache.path(), 1 << 30);
    let context = DiskContext::new(cached, 64 << 20);
    let layer = heads.len() - 1;
    let disk = context.open_disk(&path_of(dir.path(), &heads[layer]), None);
    let disk = disk.unwrap();
    let len = disk.len_bytes() as usize;
    let expected = chain.read(layer, 0, len);
    let read = |what: &str| {
        let reader = disk.reader();
        for from in (0..len).step_by(4096 * 3) {
            let wanted = &expected[from..len.min(from + 4096 * 3)];
            let got = read_some(&reader, from as u64, wanted.len()).unwrap();
            assert!(got == *wanted, "{what} at {from}");
        }
        assert!(whole(&disk) == expected, "{what}");
    };
    read("sound");
    assert_eq!(store.count("read", "/blocks/"), 0);
    for file in files_of(cache.path()) {
        // In place, as a failing disk would: the file that is open is the one that is spoilt.
        let len = fs::metadata(&file).unwrap().len();
        let file = File::options().write(true).open(&file).unwrap();
        for at in (0..len).step_by(3000) {
            file.write_all_at(&[0xA5; 7], at).unwrap();
        }
    }
    read("spoilt");
    assert!(store.count("read", "/blocks/") > 0);
    assert!(stats.snapshot().disk_cache.unwrap().damaged > 0);
}

/// What was written a moment ago is not vouched for by an earlier look. A block that is read in place, in
/// many parts, is looked after once all the same.
#[test]
fn a_copy_that_is_read_in_parts_is_vouched_for_once() {
    let (dir, chain, heads) = repository(Filter::Absent);
    let cache = TempDir::new().unwrap();
    check(dir.path(), cache.path(), &chain, &heads, 0, "first");
    let json = dir.path().join("point.json");
    fs::write(&json, b"{}").unwrap();
    let store = far(dir.path(), 0);
    let (cached, _) = cached(store.clone(), cache.path(), 1 << 30);
    let context = DiskContext::new(cached, 64 << 20);
    let path = StorePath::new("point.json").unwrap();
    let layer = heads.len() - 1;
    let head = path_of(dir.path(), &heads[layer]);
    let disk = context
        .open_disk(&head, Some(RestorePointGuard { path }))
        .unwrap();
    let len = disk.len_bytes() as usize;
    let expected = chain.read(layer, 0, len);
    let read = |part: &mut [u8], from: usize| disk.read_exact_at(part, from as u64);
    let half = len / 2;
    for from in (0..half).step_by(512) {
        let mut part = vec![0; 512.min(half - from)];
        read(&mut part, from).unwrap();
        assert!(part == expected[from..from + part.len()], "at {from}");
    }
    let (looks, blocks) = (store.count("head", "point.json"), half.div_ceil(65_536));
    assert!(looks <= blocks + 2, "{looks} looks for {blocks} blocks");
    // What has not been vouched for yet is not given once the point is gone.
    fs::remove_file(json).unwrap();
    let mut rest = vec![0; len - half - 65_536];
    assert!(read(&mut rest, half + 65_536).is_err());
}

/// Mounts that share a directory too small for what they read: entries come, are read and go under
/// each other's hands.
#[test]
fn many_mounts_share_a_cache_directory_that_is_too_small() {
    for (filter, max_bytes) in [(Filter::Gzip, 400 << 10), (Filter::Absent, 1 << 20)] {
        many_mounts(filter, max_bytes);
    }
}

fn many_mounts(filter: Filter, max_bytes: u64) {
    let (dir, chain, heads) = repository(filter);
    let cache = TempDir::new().unwrap();
    let expected: Vec<_> = (0..heads.len())
        .map(|layer| chain.read(layer, 0, chain.size_bytes(layer) as usize))
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let (cached, stats) = cached(far(dir.path(), 0), cache.path(), max_bytes);
                    let context = DiskContext::new(cached, 64 << 20);
                    for (head, expected) in heads.iter().zip(&expected) {
                        let disk = context.open_disk(&path_of(dir.path(), head), None);
                        assert!(whole(&disk.unwrap()) == *expected);
                    }
                    assert_eq!(stats.snapshot().disk_cache.unwrap().damaged, 0);
                }
            });
        }
    });
    let held: u64 = files_of(cache.path())
        .iter()
        .map(|f| fs::metadata(f).unwrap().len())
        .sum();
    assert!(held <= max_bytes + max_bytes / 5, "{held}");
}
