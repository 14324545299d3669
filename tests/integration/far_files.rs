//! VHD files on object storage: blocks are fetched whole, each once, and of one state of the file.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::chain::{Chain, Storage};
use crate::support::far::{cached, far, files_of, read_whole, set_modified};
use crate::support::reading::read_some;
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use brfs::codec::aead::Key;
use brfs::error::ErrorKind;
use brfs::image::{Disk, DiskContext, RestorePointGuard};
use brfs::io::ReadAt;
use brfs::repo::open_encrypted;
use brfs::store::{LocalStore, Store, StorePath};

const BLOCK: u64 = 65_536;

/// Of so many files; each has two blocks that no other has.
fn chain_of(layers: u64) -> Chain {
    let rng = &mut Rng::new(3);
    let mut chain = Chain::new();
    for n in 0..layers {
        chain
            .push(rng, 8 << 20)
            .storage(Storage::File)
            .block_size(BLOCK as u32)
            .write(n * 256, 256, Fill::Random(n));
    }
    chain
}

fn write(chain: &Chain, dir: &Path) -> StorePath {
    let written = chain.write(dir);
    let name = written.youngest().file_name().unwrap().to_str().unwrap();
    StorePath::new(name).unwrap()
}

fn open(store: Arc<dyn Store>, path: &StorePath) -> Arc<Disk> {
    let context = DiskContext::new(store, 64 << 20);
    context.open_disk(path, None).unwrap()
}

#[test]
fn a_chain_of_files_takes_three_round_trips_to_the_first_byte() {
    for layers in [2, 30] {
        let chain = chain_of(layers);
        let dir = tempfile::tempdir().unwrap();
        let youngest = write(&chain, dir.path());
        let store = far(dir.path(), 200);
        let disk = open(store.clone(), &youngest);
        let mut buf = [0; 512];
        // The first sector is the oldest image's.
        disk.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf[..], chain.read(layers as usize - 1, 0, 512));
        // The listing; the ends of all files, which need no look at the object; the block.
        assert_eq!(store.depth(), 3);
        assert_eq!(store.count("list", ""), 1);
        assert_eq!(store.count("range", "") as u64, layers * 2 + 1);
        assert_eq!(store.requests.load(Ordering::Relaxed), layers * 2 + 2);
    }
}

#[test]
fn a_scan_fetches_every_block_once_and_many_at_a_time() {
    let rng = &mut Rng::new(3);
    let mut chain = Chain::new();
    chain
        .push(rng, 40 << 20)
        .storage(Storage::File)
        .write(0, 40 * 2048, Fill::Random(1));
    let dir = tempfile::tempdir().unwrap();
    let youngest = write(&chain, dir.path());
    let store = far(dir.path(), 100);
    let context = DiskContext::new(store.clone(), 256 << 20);
    let disk = context.open_disk(&youngest, None).unwrap();
    let before = store.requests.load(Ordering::Relaxed);
    let reader = disk.reader();
    let mut at = 0;
    while at < disk.len_bytes() {
        let got = read_some(&reader, at, 128 << 10).unwrap();
        assert!(got == chain.read(0, at, 128 << 10), "at {at}");
        at += got.len() as u64;
    }
    assert_eq!(store.requests.load(Ordering::Relaxed) - before, 20);
    assert_eq!(store.count("range", ""), 20 + 2);
    let most = store.most.load(Ordering::Relaxed);
    assert!(most >= 6, "only {most} requests at once");
}

#[test]
fn pieces_of_one_block_are_one_request() {
    let chain = chain_of(1);
    let dir = tempfile::tempdir().unwrap();
    let youngest = write(&chain, dir.path());
    let store = far(dir.path(), 0);
    let disk = open(store.clone(), &youngest);
    let before = store.requests.load(Ordering::Relaxed);
    let mut buf = [0; 4096];
    for at in [8192, 0, 40_000, 61_440] {
        disk.read_exact_at(&mut buf, at).unwrap();
        assert_eq!(buf[..], chain.read(0, at, 4096));
    }
    assert_eq!(store.requests.load(Ordering::Relaxed) - before, 1);
}

/// A file that takes the place of another one under its name.
fn replace(file: &Path, with: &Path) {
    let beside = file.with_extension("new");
    fs::copy(with, &beside).unwrap();
    fs::rename(beside, file).unwrap();
}

#[test]
fn a_file_that_was_replaced_by_another_disk_is_not_read_any_more() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chain = chain_of(1);
    let youngest = write(&chain, dir.path());
    let mut another = chain_of(1);
    another.layers[0].unique_id[0] ^= 1;
    another.layers[0].write(0, 256, Fill::Random(9));
    write(&another, other.path());
    let store = far(dir.path(), 0);
    let disk = open(store.clone(), &youngest);
    let mut buf = vec![0; 512];
    disk.read_exact_at(&mut buf, 0).unwrap();
    replace(
        &dir.path().join(youngest.as_str()),
        &other.path().join(youngest.as_str()),
    );
    // What was fetched before is what it was; the rest is gone.
    disk.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, chain.read(0, 0, 512));
    let error = disk.read_exact_at(&mut buf, BLOCK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
}

#[test]
fn a_file_that_was_uploaded_again_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let chain = chain_of(2);
    let youngest = write(&chain, dir.path());
    let store = far(dir.path(), 0);
    let disk = open(store.clone(), &youngest);
    let mut buf = vec![0; 512];
    disk.read_exact_at(&mut buf, 0).unwrap();
    let opened = store.count("range", "");
    // The same disk, with its blocks in other places.
    let mut moved = chain_of(2);
    for layer in &mut moved.layers {
        layer.file_tweak(|spec| *spec = spec.clone().odd_layout(5));
    }
    let other = tempfile::tempdir().unwrap();
    for head in moved.write(other.path()).layers {
        replace(&dir.path().join(head.head.file_name().unwrap()), &head.head);
    }
    assert!(read_whole(&disk).unwrap() == chain.read(1, 0, 8 << 20));
    assert!(store.count("range", "") > opened);
}

#[test]
fn sealed_files_are_read_in_blocks_too() {
    for (algorithm, is_far) in [("chacha20-poly1305", true), ("aes-256-gcm", false)] {
        let dir = tempfile::tempdir().unwrap();
        let chain = chain_of(3);
        let youngest = write(&chain, dir.path());
        fs::write(dir.path().join("metadata.json"), b"{}").unwrap();
        for file in files_of(dir.path()) {
            let sealed = crate::seal::seal(algorithm, crate::seal::KEY, &fs::read(&file).unwrap());
            fs::write(&file, sealed).unwrap();
        }
        let description = format!("{{\"algorithm\":\"{algorithm}\"}}");
        fs::write(dir.path().join("encryption.json"), description).unwrap();
        let store: Arc<dyn Store> = match is_far {
            true => far(dir.path(), 0),
            false => Arc::new(LocalStore::open(dir.path()).unwrap()),
        };
        let key = Key::new(crate::seal::KEY).unwrap();
        let disk = open(open_encrypted(store, Some(key)).unwrap(), &youngest);
        assert!(read_whole(&disk).unwrap() == chain.read(2, 0, 8 << 20));
    }
}

#[test]
fn blocks_are_kept_of_one_state_of_a_file() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chain = chain_of(2);
    let youngest = write(&chain, dir.path());
    let mount = || {
        let store = far(dir.path(), 0);
        let (cached, stats) = cached(store.clone(), cache.path(), 1 << 30);
        let disk = open(cached, &youngest);
        let opened = store.count("range", "");
        let bytes = read_whole(&disk).unwrap();
        let counts = stats.snapshot().disk_cache.unwrap();
        (bytes, store.count("range", "") - opened, counts.damaged)
    };
    let expected = chain.read(1, 0, 8 << 20);
    assert!(mount() == (expected.clone(), 4, 0));
    assert!(mount() == (expected.clone(), 0, 0));
    // Damaged copies are noticed.
    for file in files_of(cache.path()) {
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.len() - 7;
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    assert!(mount() == (expected, 4, 4));
    // Other content of the same length and time, in the same places.
    let file = dir.path().join(youngest.as_str());
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    let mut changed = chain_of(2);
    changed.layers[1].write(256, 256, Fill::Random(77));
    let other = tempfile::tempdir().unwrap();
    write(&changed, other.path());
    replace(&file, &other.path().join(youngest.as_str()));
    set_modified(&file, time);
    assert!(mount() == (changed.read(1, 0, 8 << 20), 2, 0));
}

#[test]
fn a_file_that_was_replaced_since_its_point_was_removed_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let chain = chain_of(2);
    let youngest = write(&chain, dir.path());
    fs::write(dir.path().join("point.json"), b"{}").unwrap();
    let store = far(dir.path(), 0);
    let context = DiskContext::new(store.clone(), 64 << 20);
    let guard = RestorePointGuard {
        path: StorePath::new("point.json").unwrap(),
    };
    let disk = context.open_disk(&youngest, Some(guard)).unwrap();
    let mut buf = vec![0; 512];
    let at = 2 * BLOCK;
    disk.read_exact_at(&mut buf, at).unwrap();
    assert_eq!(buf, chain.read(1, at, 512));
    // As a merge into it does it: the same image, with a block of another one.
    fs::remove_file(dir.path().join("point.json")).unwrap();
    let mut merged = chain_of(2);
    merged.layers[1].write(256, 256, Fill::Random(77));
    let other = tempfile::tempdir().unwrap();
    write(&merged, other.path());
    replace(
        &dir.path().join(youngest.as_str()),
        &other.path().join(youngest.as_str()),
    );
    let error = disk.read_exact_at(&mut buf, at + BLOCK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    // The image below is as it was.
    disk.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, chain.read(1, 0, 512));
}
