//! What a second mount with a cache directory asks of the storage: listings, and nothing that they
//! show to be as it was. And that whatever is not as it was is fetched anew.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::catalogue;
use crate::support::far::{
    FarStore, cached, far, files_of, old_backup, read_whole, set_modified, youngest_block,
};
use brfs::codec::aead::Key;
use brfs::error::{Error, ErrorKind};
use brfs::image::{DiskContext, RestorePointGuard};
use brfs::repo::{Catalogue, OpenRepository, open_encrypted};
use brfs::store::StorePath;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tempfile::TempDir;

/// Reads the disk as a new mount with this cache directory does; gives the bytes and how many
/// blocks were fetched.
fn remount(
    dir: &Path,
    cache: &Path,
    youngest: &StorePath,
    guard: &Option<RestorePointGuard>,
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
        let mut bytes = fs::read(file).unwrap();
        let at = n * 7919 % bytes.len();
        bytes[at] ^= 0x10;
        fs::write(file, bytes).unwrap();
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
    fs::copy(block(5), block(4)).unwrap();
    let five = expected[5 * 65_536..6 * 65_536].to_vec();
    expected[4 * 65_536..5 * 65_536].copy_from_slice(&five);
    let footer = block(0).ancestors().nth(3).unwrap().join("footer");
    set_modified(&footer, SystemTime::now());
    assert!(mount() == (expected, 10));
}

/// What the chain of `old_backup` has besides blocks: per image an alias and three or four parts.
const SMALL_FILES: usize = 2 * 5;

/// Replaces a file by one of the same length and time: only its version (on object stores, the
/// ETag) tells them apart.
fn replace_unnoticed(file: &Path, content: &[u8]) {
    let old = fs::metadata(file).unwrap();
    assert_eq!(old.len(), content.len() as u64);
    let beside = file.with_extension("new");
    fs::write(&beside, content).unwrap();
    set_modified(&beside, old.modified().unwrap());
    fs::rename(beside, file).unwrap();
}

#[test]
fn a_second_mount_reads_nothing_of_a_disk_that_has_not_changed() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (chain, youngest, guard) = old_backup(dir.path());
    let expected = chain.read(1, 0, 1 << 20);
    let mount = || {
        let store = far(dir.path(), 0);
        let (cached, stats) = cached(store.clone(), cache.path(), 1 << 30);
        let context = DiskContext::new(cached, 64 << 20);
        let disk = context.open_disk(&youngest, guard.clone()).unwrap();
        assert!(read_whole(&disk).unwrap() == expected);
        (store, stats.snapshot().disk_cache.unwrap())
    };
    let (store, counts) = mount();
    assert_eq!(store.count("read", ""), 16 + SMALL_FILES);
    assert_eq!(counts.writes as usize, 16 + SMALL_FILES);
    // The directory of the images and that of each image's parts.
    let (store, counts) = mount();
    assert_eq!((store.count("read", ""), store.count("list", "")), (0, 3));
    assert_eq!(counts.hits as usize, 16 + SMALL_FILES);
    assert_eq!(counts.misses + counts.damaged, 0);

    // Each small file in turn becomes another one, and is the only one that is read. (Its content
    // stays, so the bytes do; that a footer and a table are new makes the blocks those of another
    // state.)
    let small = |file: &PathBuf| !file.to_string_lossy().contains("/blocks/");
    let small: Vec<PathBuf> = files_of(dir.path()).into_iter().filter(small).collect();
    assert_eq!(small.len(), SMALL_FILES + 1);
    for file in &small {
        replace_unnoticed(file, &fs::read(file).unwrap());
        let name = file.strip_prefix(dir.path()).unwrap().to_str().unwrap();
        let (store, _) = mount();
        let read = store.count("read", "") - store.count("read", "/blocks/");
        let is_read = usize::from(name != "point.json");
        assert_eq!(
            (read, store.count("read", name)),
            (is_read, is_read),
            "{name}"
        );
    }
    assert_eq!(mount().0.count("read", ""), 0);
}

#[test]
fn a_copy_that_came_damaged_is_fetched_anew() {
    let dir = TempDir::new().unwrap();
    let (chain, youngest, guard) = old_backup(dir.path());
    let expected = chain.read(1, 0, 1 << 20);
    let base = youngest_block(dir.path(), &youngest, 0);
    let base = base.ancestors().nth(3).unwrap().to_owned();
    for damaged in ["footer", "header", "chunk-filters.json"] {
        let cache = TempDir::new().unwrap();
        let open = |store: Arc<FarStore>| {
            let (cached, _) = cached(store, cache.path(), 1 << 30);
            DiskContext::new(cached, 64 << 20).open_disk(&youngest, guard.clone())
        };
        let file = base.join(damaged);
        let (sound, state) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap());
        // In place and with its time put back, so that nothing tells of it: as a bit that flipped on
        // its way to us.
        let write = |content: &[u8]| {
            fs::write(&file, content).unwrap();
            set_modified(&file, state.modified().unwrap());
        };
        write(&vec![b'['; sound.len()]);
        assert!(open(far(dir.path(), 0)).is_err(), "{damaged}");
        write(&sound);
        let store = far(dir.path(), 0);
        let disk = open(store.clone()).unwrap();
        assert!(read_whole(&disk).unwrap() == expected, "{damaged}");
        assert!(store.count("read", damaged) >= 1);
        let store = far(dir.path(), 0);
        open(store.clone()).unwrap();
        assert_eq!(store.count("read", ""), 0, "{damaged}");
    }
}

#[test]
fn an_image_that_was_removed_is_not_there_whatever_is_kept() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, youngest, guard) = old_backup(dir.path());
    remount(dir.path(), cache.path(), &youngest, &guard);
    let base = youngest_block(dir.path(), &youngest, 0);
    fs::remove_file(base.ancestors().nth(3).unwrap().join("footer")).unwrap();
    let open = || {
        let (cached, _) = cached(far(dir.path(), 0), cache.path(), 1 << 30);
        DiskContext::new(cached, 64 << 20).open_disk(&youngest, guard.clone())
    };
    assert!(open().is_err());
    fs::remove_file(dir.path().join(youngest.as_str())).unwrap();
    assert!(open().is_err());
}

const VMS: usize = 30;

/// The names of all VMs, and the dates of the first one's points, as a new mount sees them.
fn look(dir: &Path, cache: &Path) -> (Arc<FarStore>, Vec<String>, usize) {
    let store = far(dir, 0);
    let (cached, _) = cached(store.clone(), cache, 1 << 30);
    let catalogue = Catalogue::new(cached, Duration::from_secs(3600));
    let vms = catalogue.vms().unwrap();
    let names = vms.iter().map(|vm| vm.name.clone()).collect();
    let points = vms[0].vm.points().unwrap();
    assert!(points.iter().all(|p| p.problems.is_empty()));
    (store, names, points.len())
}

#[test]
fn a_second_listing_of_all_vms_reads_what_has_changed_only() {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let uuids = catalogue::write(dir.path(), catalogue::Options::new(VMS, 4));
    let vm_dir = |n: usize| dir.path().join("xo-vm-backups").join(&uuids[n]);
    // One VM has no index.
    fs::remove_file(vm_dir(3).join("cache.json.gz")).unwrap();
    let look = || look(dir.path(), cache.path());
    let (store, names, points) = look();
    assert_eq!((names.len(), points), (VMS, 4));
    // One small file of each, and once more that of the VM that was looked into.
    let (reads, lists) = (store.count("read", ""), store.count("list", ""));
    assert!(
        lists == 1 + 2 && (VMS..VMS + 3).contains(&reads),
        "{lists} {reads}"
    );
    // Also that there is no index is known from the listing then.
    for _ in 0..2 {
        let (store, again, points) = look();
        assert_eq!((&again, points), (&names, 4));
        assert_eq!(store.count("list", ""), 1 + VMS);
        assert_eq!(store.count("read", ""), 0);
    }
    // Another index of the same length and time.
    let index = vm_dir(5).join("cache.json.gz");
    let text = fs::read(&index).unwrap();
    let text = std::io::read_to_string(GzDecoder::new(&text[..])).unwrap();
    fs::write(&index, gzip_stored(&text)).unwrap();
    assert_eq!(look().0.count("read", &uuids[5]), 1);
    let name = catalogue::vm_name(8);
    let renamed = gzip_stored(&text.replace(&catalogue::vm_name(5), &name));
    replace_unnoticed(&index, &renamed);
    let (store, names, _) = look();
    let reads = (store.count("read", ""), store.count("read", &uuids[5]));
    assert_eq!(reads, (1, 1));
    let name = name.replace('/', "_");
    assert_eq!(names.iter().filter(|n| n.contains(&name)).count(), 2);
    // One appears where none was.
    fs::copy(&index, vm_dir(3).join("cache.json.gz")).unwrap();
    assert_eq!(look().0.count("read", &uuids[3]), 1);
}

/// Of a length that depends on the text's alone.
fn gzip_stored(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn metadata_is_read_again_only_when_it_is_another() {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut options = catalogue::Options::new(1, 3);
    options.caches = false;
    let uuids = catalogue::write(dir.path(), options);
    let vm_dir = dir.path().join("xo-vm-backups").join(&uuids[0]);
    let look = || look(dir.path(), cache.path());
    assert_eq!(look().0.count("read", ""), 3 + 1);
    let (store, names, _) = look();
    assert_eq!(store.count("read", ""), 0);
    let newest = files_of(&vm_dir).into_iter().max().unwrap();
    let text = fs::read_to_string(&newest).unwrap();
    let (old, new) = (catalogue::vm_name(0), catalogue::vm_name(8));
    replace_unnoticed(&newest, text.replace(&old, &new).as_bytes());
    let (store, renamed, _) = look();
    assert_eq!(store.count("read", ""), 1);
    assert!(renamed[0] != names[0] && renamed[0].contains("vm-0008"));
}

#[test]
fn the_key_is_proved_again_without_reading() {
    let key = || Some(Key::new(crate::seal::KEY).unwrap());
    let write = |dir: &Path, algorithm: &str| {
        let json = format!("{{\"algorithm\":\"{algorithm}\"}}");
        fs::write(dir.join("encryption.json"), json).unwrap();
        let sealed = crate::seal::seal(algorithm, crate::seal::KEY, br#"{"random":"x"}"#);
        fs::write(dir.join("metadata.json"), sealed).unwrap();
    };
    for algorithm in ["chacha20-poly1305", "aes-256-gcm", "aes-256-cbc"] {
        let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        write(dir.path(), algorithm);
        let open = |key| {
            let store = far(dir.path(), 0);
            let (cached, _) = cached(store.clone(), cache.path(), 1 << 30);
            (open_encrypted(cached, key).map(|_| ()), store)
        };
        let reads = |(opened, store): (Result<(), Error>, Arc<FarStore>)| {
            opened.unwrap();
            (store.count("list", ""), store.count("read", ""))
        };
        // The root and, with it, the VMs.
        assert_eq!(reads(open(key())), (2, 2), "{algorithm}");
        assert_eq!(reads(open(key())), (2, 0), "{algorithm}");
        let other = Key::new("abcdef0123456789abcdef0123456789").unwrap();
        let error = open(Some(other)).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert_eq!(open(None).0.unwrap_err().kind(), ErrorKind::WrongKey);
        // What is kept is what is stored: sealed.
        for file in files_of(cache.path()) {
            let kept = fs::read(file).unwrap();
            assert!(!kept.windows(6).any(|bytes| bytes == b"random"));
        }
        // Encrypted anew, with another algorithm under a name of the same length.
        if algorithm == "aes-256-gcm" {
            replace_unnoticed(
                &dir.path().join("encryption.json"),
                br#"{"algorithm":"aes-256-cbc"}"#,
            );
            let error = open(key()).0.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongKey);
        }
    }
}

#[test]
fn a_repository_without_descriptions_is_known_by_its_listings() {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir(dir.path().join("xo-vm-backups")).unwrap();
    let store = far(dir.path(), 0);
    let (cached, _) = cached(store.clone(), cache.path(), 1 << 30);
    let opened = OpenRepository::new(cached, None).unwrap();
    let lists = || (store.count("list", ""), store.count("", ""));
    assert_eq!(lists(), (2, 2));
    // Both are used once more, and only once.
    opened.check_is_repository().unwrap();
    let max_age = Duration::from_secs(0);
    let catalogue = Catalogue::of(opened, max_age);
    catalogue.folders().unwrap();
    assert_eq!(lists(), (2, 2));
    catalogue.folders().unwrap();
    assert_eq!(lists(), (3, 3));
}
