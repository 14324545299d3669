//! Disks on storage where every request takes a round trip: how many of them it takes, one after
//! the other, until there are bytes; and that reading ahead fetches every block once.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use crate::support::catalogue;
use crate::support::chain::{Chain, Storage};
use crate::support::far::{far, files_of, old_backup, read_whole, set_modified, youngest_block};
use crate::support::reading::read_some;
use crate::support::repo::Vm;
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::support::vhd_dir::Filter;
use crate::tree_walk::{must_find, target};
use brfs::image::DiskContext;
use brfs::io::{Chunk, ReadAt};
use brfs::repo::catalogue::NamedVm;
use brfs::repo::{Catalogue, OpenRepository};
use brfs::store::StorePath;
use brfs::tree::Node;
use brfs::views::guest::GuestOptions;
use brfs::views::repository_root;

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

/// As a mount and a shell do it: opens the repository, goes by the VM's uuid to its newest restore
/// point, and reads a byte of a disk.
#[test]
fn round_trips_from_the_start_of_a_mount_to_the_first_byte_are_few() {
    for layers in [2, 30] {
        let dir = tempfile::tempdir().unwrap();
        let rng = &mut Rng::new(5);
        let mut vm = Vm::new(rng, "web");
        vm.disk(rng, "root", chain_of(layers, Filter::Brotli));
        vm.write(dir.path());
        std::fs::write(
            dir.path().join("encryption.json"),
            r#"{"algorithm":"none"}"#,
        )
        .unwrap();
        let then = SystemTime::now() - Duration::from_secs(3 * 86_400);
        for file in files_of(dir.path()) {
            set_modified(&file, then);
        }
        let store = far(dir.path(), 200);
        let opened = OpenRepository::new(store.clone(), None).unwrap();
        // What a mount looks for before it says that it is one.
        opened.check_is_repository().unwrap();
        assert_eq!(store.depth(), 2);
        let disks = DiskContext::new(opened.store.clone(), 64 << 20);
        let refresh = Duration::from_secs(60);
        let root = repository_root(opened, disks, refresh, GuestOptions::default());
        let by_uuid = must_find(&root, &format!("by-uuid|{}", vm.uuid));
        let folder = target(&by_uuid).replace("../vms/", "vms|");
        let latest = target(&must_find(&root, &format!("{folder}|latest")));
        let Node::File(disk) = must_find(&root, &format!("{folder}|{latest}|xvda.raw")) else {
            panic!("no file");
        };
        assert_eq!(disk.quick_attr().unwrap().size_bytes, 8 << 20);
        let bytes = disk.open().unwrap().read_chunk_at(&mut [0], 0).unwrap();
        assert!(matches!(bytes, Chunk::Shared(bytes) if bytes.len() == 1));
        // Root and VMs; what says whether the repository is encrypted; the VM's name and its listing;
        // the point's metadata; the disk's listing; aliases, and whether the point is still there;
        // the parts; the block.
        assert_eq!(store.depth(), 8, "chain of {layers}");
        assert_eq!(store.count("head", ""), 1);
        assert_eq!(store.count("list", ""), 4);
    }
}

#[test]
fn the_metadata_of_the_newest_point_comes_with_the_listing_of_its_vm() {
    let dir = tempfile::tempdir().unwrap();
    let uuids = catalogue::write(dir.path(), catalogue::Options::new(3, 4));
    let store = far(dir.path(), 200);
    let vms = Catalogue::new(store.clone(), Duration::from_secs(60));
    let vm = &vms.vms().unwrap()[0].vm;
    assert_eq!(store.depth(), 2);
    let listing = vm.listing_towards(None).unwrap();
    let newest = listing.newest().unwrap();
    assert!(!vm.read_point(newest).unwrap().unwrap().unreadable);
    assert_eq!(store.depth(), 3);
    assert!(uuids.contains(&vm.folder().to_owned()));
    assert_eq!(store.count("list", vm.folder()), 1);
    let newest = format!("{}/{}.json", vm.folder(), newest.name);
    assert_eq!(store.count("read", &newest), 1);
}

#[test]
fn names_and_numbers_of_points_take_two_requests_a_vm_and_two_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let uuids = catalogue::write(dir.path(), catalogue::Options::new(20, 4));
    let vm_dir = |n: usize| dir.path().join("xo-vm-backups").join(&uuids[n]);
    let store = far(dir.path(), 200);
    let ask = |store| Catalogue::new(store, Duration::from_secs(60)).vms_and_points();
    let vms = ask(store.clone()).unwrap();
    assert_eq!(vms.len(), 20);
    let is_known = |vm: &NamedVm| vm.vm.is_newest_known(&vm.vm.listing().unwrap());
    assert!(vms.iter().all(is_known));
    assert!(
        vms.iter()
            .all(|vm| vm.vm.listing().unwrap().points.len() == 4)
    );
    assert_eq!(store.requests.load(Ordering::Relaxed), 1 + 2 * 20);
    assert_eq!(store.depth(), 2);

    // What the index does not know, or knew before it was written, is not taken from it.
    let of_first = |name: &str| files_named(&vm_dir(0), name);
    let newest = of_first(".json").into_iter().max().unwrap();
    std::fs::copy(&newest, newest.with_file_name("20990101T000000Z.json")).unwrap();
    set_modified(
        &files_named(&vm_dir(1), ".json").into_iter().max().unwrap(),
        SystemTime::now() + Duration::from_secs(60),
    );
    // An index that has outlived its points.
    for file in files_named(&vm_dir(2), ".json") {
        std::fs::remove_file(file).unwrap();
    }
    let vms = ask(far(dir.path(), 0)).unwrap();
    let known: Vec<bool> = (0..3)
        .filter_map(|n| vms.iter().find(|vm| vm.vm.folder() == uuids[n]))
        .map(is_known)
        .collect();
    assert_eq!(known, [false, false]);
    assert_eq!(vms.len(), 19);
}

fn files_named(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let files = files_of(dir).into_iter();
    files
        .filter(|f| f.to_str().unwrap().ends_with(ending))
        .collect()
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
    let mut at = 0;
    while at < disk.len_bytes() {
        let got = read_some(&reader, at, 128 << 10).unwrap();
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
