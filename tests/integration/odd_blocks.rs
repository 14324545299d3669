//! Blocks of VHD directories that are not what the directory says, and are whole all the same: last
//! blocks that end where the disk ends, and blocks under another directory's filter. And those that
//! are damaged.

use std::path::Path;
use std::sync::Arc;

use crate::chains::{check_points, compare, path_of};
use crate::seal::{KEY, seal};
use crate::support::blocks::{Bitmaps, bitmap_bytes};
use crate::support::chain::{Chain, Storage, Stored, WrittenChain};
use crate::support::far::{far, files_of};
use crate::support::merge::{Cleanup, Merge};
use crate::support::random_chain::mergeable;
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::support::vhd_dir::Filter;
use brfs::codec::aead::Key;
use brfs::error::ErrorKind;
use brfs::image::{Disk, DiskContext};
use brfs::io::ReadAt;
use brfs::repo::open_encrypted;
use brfs::store::{LocalStore, Store};

const CACHE_BYTES: u64 = 8 << 20;
const BLOCK: u32 = 65_536;
const SECTORS: u64 = BLOCK as u64 / 512;

fn stores(root: &Path) -> [Arc<dyn Store>; 2] {
    [Arc::new(LocalStore::open(root).unwrap()), far(root, 0)]
}

fn open(store: Arc<dyn Store>, root: &Path, head: &Path) -> Arc<Disk> {
    let context = DiskContext::new(store, CACHE_BYTES);
    context.open_disk(&path_of(root, head), None).unwrap()
}

/// A disk of this many sectors in each layer, written to at its start and over its last sectors.
fn layers(sizes: &[u64], storage: Storage) -> Chain {
    let rng = &mut Rng::new(sizes[0]);
    let mut chain = Chain::new();
    for (&sectors, n) in sizes.iter().zip(0..) {
        let layer = chain.push(rng, sectors * 512);
        layer.storage(storage).block_size(BLOCK);
        layer.write(n * 3, 2, Fill::Random(n));
        layer.write(sectors - 5, 5, Fill::Random(100 + n));
    }
    chain
}

/// Lets the last block of a layer end where its disk ends, but for `less` bytes.
fn cut(written: &WrittenChain, chain: &Chain, layer: usize, less: u64) {
    let sectors = chain.layers[layer].size_sectors();
    let (number, within) = (sectors / SECTORS, sectors % SECTORS * 512);
    assert!(within > 0);
    match &written.layers[layer].stored {
        Stored::Dir(dir) => dir.cut_block(number, bitmap_bytes(BLOCK), within - less),
        Stored::File(file) => file.cut_last_block(number, within - less),
    }
}

const FORMS: [Storage; 4] = [
    Storage::File,
    Storage::Dir(Filter::Absent),
    Storage::Dir(Filter::Gzip),
    Storage::Dir(Filter::Brotli),
];

#[test]
fn a_last_block_may_end_where_the_disk_ends() {
    for storage in FORMS {
        // By itself; below a child that is larger, within the same block and beyond it; and of a
        // disk that has just one sector, or all but one, of its last block.
        for sizes in [
            vec![1000],
            vec![1000, 1020],
            vec![1000, 3000],
            vec![897],
            vec![1023, 1024],
        ] {
            let chain = layers(&sizes, storage);
            let dir = tempfile::tempdir().unwrap();
            let written = chain.write(dir.path());
            cut(&written, &chain, 0, 0);
            for store in stores(dir.path()) {
                for (layer, stored) in written.layers.iter().enumerate() {
                    let disk = open(store.clone(), dir.path(), &stored.head);
                    compare(&disk, &chain, layer, &mut Rng::new(1), 30);
                    let links = disk.checked_links(&Default::default());
                    assert_eq!(disk.problems(&links), [""; 0], "{storage:?} {sizes:?}");
                }
            }
        }
    }
}

#[test]
fn a_sealed_last_block_may_end_where_the_disk_ends() {
    for storage in FORMS {
        let chain = layers(&[1000, 1020], storage);
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        cut(&written, &chain, 0, 0);
        std::fs::write(dir.path().join("metadata.json"), b"{}").unwrap();
        for file in files_of(dir.path()) {
            let sealed = seal("aes-256-gcm", KEY, &std::fs::read(&file).unwrap());
            std::fs::write(&file, sealed).unwrap();
        }
        let description = r#"{"algorithm":"aes-256-gcm"}"#;
        std::fs::write(dir.path().join("encryption.json"), description).unwrap();
        for store in stores(dir.path()) {
            let store = open_encrypted(store, Some(Key::new(KEY).unwrap())).unwrap();
            for (layer, stored) in written.layers.iter().enumerate() {
                let disk = open(store.clone(), dir.path(), &stored.head);
                compare(&disk, &chain, layer, &mut Rng::new(1), 30);
            }
        }
    }
}

#[test]
fn a_last_block_that_ends_before_the_disk_is_an_error_and_is_told() {
    for storage in FORMS {
        for less in [1, 512] {
            // Also where a larger child lies over it.
            let chain = layers(&[1000, 3000], storage);
            let dir = tempfile::tempdir().unwrap();
            let written = chain.write(dir.path());
            cut(&written, &chain, 0, less);
            for store in stores(dir.path()) {
                for stored in &written.layers {
                    let disk = open(store.clone(), dir.path(), &stored.head);
                    let what = format!("{storage:?} {less}");
                    let mut buf = [0; 512];
                    let last = 999 * 512;
                    let error = disk.read_exact_at(&mut buf, last).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                    disk.read_exact_at(&mut buf, 0).unwrap();
                    assert!(buf[..] == chain.read(0, 0, 512), "{what}");
                    if storage != Storage::File {
                        let problems = disk.problems(&disk.checked_links(&Default::default()));
                        assert!(
                            problems.iter().any(|p| p.contains("last block")),
                            "{what}: {problems:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn other_blocks_may_not_end_early() {
    for filter in [Filter::Absent, Filter::Gzip, Filter::Brotli] {
        let mut chain = layers(&[1000], Storage::Dir(filter));
        chain.layers[0].write(SECTORS, SECTORS, Fill::Random(7));
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        // As much as the disk has of its last block.
        let data = 1000 % SECTORS * 512;
        written.layers[0]
            .dir()
            .cut_block(1, bitmap_bytes(BLOCK), data);
        for store in stores(dir.path()) {
            let disk = open(store, dir.path(), written.youngest());
            let error = disk
                .read_exact_at(&mut [0; 512], u64::from(BLOCK))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{filter:?}: {error}");
        }
    }
}

/// What a merge was interrupted at, or that it was finished.
fn stages(storage: Storage) -> Vec<(Option<usize>, Option<Cleanup>)> {
    let mut stages: Vec<_> = [0, 1, 2, 1000].map(|n| (Some(n), None)).to_vec();
    let cleanup = Cleanup::ALL.into_iter();
    let cleanup = cleanup.filter(|c| storage != Storage::File || c.applies_to_files());
    stages.extend(cleanup.map(|stage| (None, Some(stage))));
    stages
}

fn interrupt(merge: &Merge, stage: (Option<usize>, Option<Cleanup>)) {
    match stage {
        (Some(count), _) => merge.interrupt_after_blocks(count),
        (_, Some(stage)) => merge.interrupt_in_cleanup(stage),
        (None, None) => unreachable!(),
    }
}

#[test]
fn short_last_blocks_read_right_in_every_state_of_a_merge() {
    // Sizes, and which layers' last blocks end early. The child's is moved over the parent's or beyond
    // it; in the end the parent's stays, as that of a disk that has grown since.
    let cases: [(&[u64], &[usize]); 4] = [
        (&[1000, 1000, 1000], &[0, 1, 2]),
        (&[1000, 1020, 3000], &[0, 1, 2]),
        (&[1000, 3001, 3001], &[1, 2]),
        (&[1000, 3000, 3000], &[0]),
    ];
    for (sizes, short) in cases {
        for filter in [Filter::Absent, Filter::Gzip, Filter::Brotli] {
            // Nothing but the end of a stream shows that the parent's is whole.
            if short == [0] && filter == Filter::Absent {
                continue;
            }
            let storage = Storage::Dir(filter);
            for stage in stages(storage) {
                let chain = layers(sizes, storage);
                let dir = tempfile::tempdir().unwrap();
                let written = chain.write(dir.path());
                for &layer in short {
                    cut(&written, &chain, layer, 0);
                }
                let merge = Merge::new(&chain, &written, 0, 1);
                interrupt(&merge, stage);
                let heads: Vec<_> = written.layers.iter().map(|l| l.head.clone()).collect();
                let what = format!("{sizes:?} {filter:?} {stage:?}");
                for store in stores(dir.path()) {
                    for (layer, head) in heads.iter().enumerate().skip(1) {
                        let disk = open(store.clone(), dir.path(), head);
                        assert!(disk.broken().is_none(), "{what}");
                        compare(&disk, &chain, layer, &mut Rng::new(2), 20);
                        let problems = disk.problems(&disk.checked_links(&Default::default()));
                        let odd = |p: &String| !p.contains("its header counts");
                        assert!(!problems.iter().any(odd), "{what}: {problems:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn blocks_under_another_filter_read_right_in_every_state_of_a_merge() {
    for target in [Filter::Absent, Filter::Gzip, Filter::Brotli] {
        for source in [Filter::Absent, Filter::Gzip, Filter::Brotli] {
            // Neighbours, and three at once with one below.
            for (parent, child) in [(0, 1), (1, 3)] {
                for stage in stages(Storage::Dir(target)) {
                    let rng = &mut Rng::new(17);
                    let mut chain = mergeable(rng, Storage::Dir(source), 5);
                    for layer in &mut chain.layers[..=parent] {
                        layer.storage(Storage::Dir(target));
                    }
                    let dir = tempfile::tempdir().unwrap();
                    let written = chain.write(dir.path());
                    let mut merge = Merge::new(&chain, &written, parent, child);
                    merge.keep_filters = true;
                    interrupt(&merge, stage);
                    let heads: Vec<_> = written.layers.iter().map(|l| l.head.clone()).collect();
                    let what = format!("{source:?} into {target:?} {parent}->{child} {stage:?}");
                    check_points(dir.path(), &chain, &heads, child, &what);
                    let store = far(dir.path(), 0);
                    let disk = open(store, dir.path(), &heads[4]);
                    compare(&disk, &chain, 4, rng, 10);
                    // The target says so, from when its table announces what was moved into it.
                    let links = disk.checked_links(&Default::default());
                    let told = links.iter().any(|l| {
                        let mut notes = l.notes.iter();
                        notes.any(|n| n.contains("chunk-filters.json"))
                    });
                    match stage.1 {
                        Some(_) => assert_eq!(told, source != target, "{what}: {links:?}"),
                        None => assert!(!told || source != target, "{what}: {links:?}"),
                    }
                    assert_eq!(disk.problems(&links), [""; 0], "{what}");
                }
            }
        }
    }
}

#[test]
fn a_damaged_block_under_another_filter_is_an_error() {
    for target in [Filter::Absent, Filter::Gzip, Filter::Brotli] {
        for source in [Filter::Absent, Filter::Gzip, Filter::Brotli] {
            let chain = layers(&[1000], Storage::Dir(target));
            let dir = tempfile::tempdir().unwrap();
            let written = chain.write(dir.path());
            let path = written.layers[0].dir().block_path(0);
            let block = target.decode(&std::fs::read(&path).unwrap());
            let stored = source.encode(&block);
            let mut longer = block.clone();
            longer.push(0);
            for bad in [
                stored[..stored.len() - 1].to_vec(),
                source.encode(&block[..block.len() - 512]),
                source.encode(&longer),
                [0x5A; 70_000].to_vec(),
                Vec::new(),
            ] {
                std::fs::write(&path, &bad).unwrap();
                for store in stores(dir.path()) {
                    let disk = open(store, dir.path(), written.youngest());
                    let error = disk.read_exact_at(&mut [0; 512], 0).unwrap_err();
                    let what = format!("{source:?} in {target:?}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
                    assert!(what.contains("blocks/0/0"), "{what}");
                }
            }
        }
    }
}

#[test]
fn partial_bitmaps_of_moved_blocks_count_under_another_filter() {
    let rng = &mut Rng::new(3);
    let mut chain = Chain::new();
    for (filter, n) in [(Filter::Gzip, 0), (Filter::Brotli, 1)] {
        let layer = chain.push(rng, 1 << 20);
        layer
            .storage(Storage::Dir(filter))
            .block_size(BLOCK)
            .bitmaps(Bitmaps::Partial);
        layer.write(n * 40, 30, Fill::Random(n));
    }
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    // The child's block as a plain file in its own, compressed directory.
    let path = written.layers[1].dir().block_path(0);
    let block = Filter::Brotli.decode(&std::fs::read(&path).unwrap());
    std::fs::write(&path, &block).unwrap();
    for store in stores(dir.path()) {
        let disk = open(store, dir.path(), written.youngest());
        compare(&disk, &chain, 1, rng, 20);
    }
}
