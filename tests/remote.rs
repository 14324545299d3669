//! Disks on storage where every request takes a round trip: how many of them it takes, one after
//! the other, until there are bytes; and that reading ahead fetches every block once.

mod support;

use std::sync::atomic::Ordering;

use brfs::image::DiskContext;
use brfs::io::{Chunk, ReadAt};
use brfs::store::StorePath;
use support::chain::{Chain, Storage};
use support::far::{far, old_backup, read_whole, youngest_block};
use support::rng::Rng;
use support::sparse::Fill;
use support::vhd_dir::Filter;

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
