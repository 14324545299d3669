//! Reads of disks compared with a flat reference: random chains, long ones, huge ones, merges.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::blocks::Bitmaps;
use crate::support::chain::{Chain, Storage};
use crate::support::far::far;
use crate::support::merge::{Cleanup, Merge, StateStyle};
use crate::support::random_chain::{Shape, mergeable};
use crate::support::reading::read_some;
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::support::vhd_dir::Filter;
use brfs::error::ErrorKind;
use brfs::image::{Disk, DiskContext, RestorePointGuard};
use brfs::io::{ExtentKind, ReadAt};
use brfs::store::{LocalStore, StorePath};

const CACHE_BYTES: u64 = 8 << 20;

pub(crate) fn context(root: &Path) -> Arc<DiskContext> {
    DiskContext::new(Arc::new(LocalStore::open(root).unwrap()), CACHE_BYTES)
}

pub(crate) fn path_of(root: &Path, head: &Path) -> StorePath {
    let relative = head.strip_prefix(root).unwrap();
    StorePath::new(relative.to_str().unwrap()).unwrap()
}

/// Reads at random, and once from the start to the end in pieces as the kernel would.
pub(crate) fn compare(
    disk: &Arc<Disk>,
    chain: &Chain,
    layer: usize,
    rng: &mut Rng,
    random_reads: u64,
) {
    let size = chain.size_bytes(layer);
    assert_eq!(disk.len_bytes(), size);
    let mut buf = vec![0xEE; 1 << 20];
    for _ in 0..random_reads {
        let offset = rng.below(size);
        let len = 1 + rng.below((size - offset).min(300_000)) as usize;
        let expected = chain.read(layer, offset, len);
        disk.read_exact_at(&mut buf[..len], offset)
            .unwrap_or_else(|e| panic!("{len} at {offset}: {e}"));
        assert!(buf[..len] == expected, "{len} bytes at {offset} differ");
    }
    let reader = disk.reader();
    let step = *rng.pick(&[4096usize, 65_536, 131_072, 1 << 20]);
    let mut offset = 0;
    while offset < size {
        let got =
            read_some(&reader, offset, step).unwrap_or_else(|e| panic!("{step} at {offset}: {e}"));
        assert!(
            got == chain.read(layer, offset, step),
            "{step} bytes at {offset} differ in sequence"
        );
        offset += got.len() as u64;
    }
    assert!(reader.read_exact_at(&mut [0; 2], size - 1).is_err());
    assert!(disk.read_exact_at(&mut [0; 2], size - 1).is_err());
}

/// No byte that is not zero lies in a hole, extents cover the disk, and their data adds up to what
/// the disk says is allocated.
pub(crate) fn check_extents(disk: &Disk, chain: &Chain, layer: usize) {
    let size = disk.len_bytes();
    let mut holes = Vec::new();
    let (mut at, mut data) = (0, 0);
    while at < size {
        let extent = disk.extent_at(at).unwrap();
        assert!(extent.end > at && extent.end <= size);
        match extent.kind {
            ExtentKind::Hole => holes.push(at..extent.end),
            ExtentKind::Data => data += extent.end - at,
        }
        at = extent.end;
    }
    assert_eq!(disk.allocated_bytes().unwrap(), data);
    for (first, end) in chain.data_ranges(layer) {
        let (first, end) = (first * 512, end * 512);
        assert!(
            holes.iter().all(|h| h.end <= first || h.start >= end),
            "data at {first}..{end} lies in a hole"
        );
    }
}

#[test]
fn random_chains_read_like_their_flat_reference() {
    for seed in 0..60 {
        let rng = &mut Rng::new(seed);
        let chain = Chain::random(rng, &Shape::default());
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        println!("seed {seed}: {chain:?}");
        // On the local disk, and where blocks are fetched whole.
        let far = DiskContext::new(far(dir.path(), 0), CACHE_BYTES);
        for context in [context(dir.path()), far] {
            for (layer, stored) in written.layers.iter().enumerate() {
                let disk = context
                    .open_disk(&path_of(dir.path(), &stored.head), None)
                    .unwrap_or_else(|e| panic!("seed {seed} layer {layer}: {e}"));
                assert!(disk.broken().is_none(), "{:?}", disk.broken());
                assert_eq!(disk.chain_length(), layer + 1);
                compare(&disk, &chain, layer, rng, 30);
                check_extents(&disk, &chain, layer);
            }
        }
    }
}

#[test]
fn a_fixed_disk_can_be_read_and_be_a_parent() {
    let rng = &mut Rng::new(7);
    let mut chain = Chain::new();
    chain
        .push(rng, 5 << 20)
        .storage(Storage::Fixed)
        .write(3, 9000, Fill::Random(1));
    chain
        .push(rng, 7 << 20)
        .bitmaps(Bitmaps::Partial)
        .write(8000, 5000, Fill::Random(2));
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    for (layer, stored) in written.layers.iter().enumerate() {
        let disk = context(dir.path())
            .open_disk(&path_of(dir.path(), &stored.head), None)
            .unwrap();
        compare(&disk, &chain, layer, rng, 50);
        check_extents(&disk, &chain, layer);
    }
}

#[test]
fn a_chain_of_six_hundred_links_reads_right_in_little_memory() {
    let rng = &mut Rng::new(8);
    let chain = Chain::long(rng, 600, 64 << 20, 65_536);
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    let disk = context(dir.path())
        .open_disk(&path_of(dir.path(), written.youngest()), None)
        .unwrap();
    assert_eq!(disk.chain_length(), 600);
    compare(&disk, &chain, 599, rng, 200);
    check_extents(&disk, &chain, 599);
}

#[test]
fn a_64_tib_directory_has_its_few_blocks_where_they_belong() {
    let rng = &mut Rng::new(9);
    let size = 64u64 << 40;
    let mut chain = Chain::new();
    for layer in 0..2 {
        let pushed = chain.push(rng, size);
        pushed.storage(Storage::Dir(Filter::Brotli));
        for _ in 0..3 {
            pushed.write(rng.below(size / 512 - 9), 9, Fill::Random(layer));
        }
        pushed.write(size / 512 - 3, 3, Fill::Random(layer));
    }
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    let disk = context(dir.path())
        .open_disk(&path_of(dir.path(), written.youngest()), None)
        .unwrap();
    check_extents(&disk, &chain, 1);
    let mut buf = vec![0; 9000];
    for (first, end) in chain.data_ranges(1) {
        let offset = (first * 512).saturating_sub(700);
        let len = ((end * 512 + 700).min(size) - offset) as usize;
        disk.read_exact_at(&mut buf[..len], offset).unwrap();
        assert!(buf[..len] == chain.read(1, offset, len));
    }
}

/// All points from the merged child on must read right; older ones are gone for XO.
pub(crate) fn check_points(
    dir: &Path,
    chain: &Chain,
    heads: &[std::path::PathBuf],
    from: usize,
    what: &str,
) {
    let context = context(dir);
    let rng = &mut Rng::new(1);
    for (layer, head) in heads.iter().enumerate().skip(from) {
        let disk = context
            .open_disk(&path_of(dir, head), None)
            .unwrap_or_else(|e| panic!("{what}, layer {layer}: {e}"));
        assert!(disk.broken().is_none(), "{what}: {:?}", disk.broken());
        compare(&disk, chain, layer, rng, 20);
        check_extents(&disk, chain, layer);
    }
}

#[test]
fn points_read_right_in_every_state_of_an_interrupted_merge() {
    let storages = [
        Storage::File,
        Storage::Dir(Filter::Absent),
        Storage::Dir(Filter::Brotli),
        Storage::Dir(Filter::Gzip),
    ];
    for storage in storages {
        // (parent, child): neighbours, with a grandparent below, and three at once.
        for (parent, child) in [(0, 1), (1, 2), (0, 2), (1, 3)] {
            for style in [StateStyle::Uuid, StateStyle::HeaderChecksum] {
                let mut stages: Vec<(Option<usize>, Option<Cleanup>)> =
                    [0, 1, 3, 1000].map(|n| (Some(n), None)).to_vec();
                stages.extend(Cleanup::ALL.map(|stage| (None, Some(stage))));
                for (blocks, cleanup) in stages {
                    if storage == Storage::File && cleanup.is_some_and(|c| !c.applies_to_files()) {
                        continue;
                    }
                    let rng = &mut Rng::new(parent as u64 * 10 + child as u64);
                    let chain = mergeable(rng, storage, 5);
                    let dir = tempfile::tempdir().unwrap();
                    let written = chain.write(dir.path());
                    let mut merge = Merge::new(&chain, &written, parent, child);
                    merge.style = style;
                    if let Some(count) = blocks {
                        merge.interrupt_after_blocks(count);
                    }
                    if let Some(stage) = cleanup {
                        merge.interrupt_in_cleanup(stage);
                    }
                    let heads: Vec<_> = written.layers.iter().map(|l| l.head.clone()).collect();
                    let what = format!(
                        "{storage:?} {parent}->{child} {style:?} blocks {blocks:?} {cleanup:?}"
                    );
                    check_points(dir.path(), &chain, &heads, child, &what);
                }
            }
        }
    }
}

#[test]
fn a_missing_block_is_an_error_unless_a_merge_of_this_chain_explains_it() {
    let rng = &mut Rng::new(4);
    let chain = mergeable(rng, Storage::Dir(Filter::Brotli), 3);
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    let child = written.layers[1].dir();
    // A block that the oldest has as well: its content there is the wrong one.
    let block = *child
        .blocks
        .iter()
        .find(|b| written.layers[0].dir().blocks.contains(b))
        .expect("the seed gives a block that both have");
    std::fs::remove_file(child.block_path(block)).unwrap();
    // A merge of other images in the same directory explains nothing.
    Merge::new(&chain, &written, 1, 2).write_state("mergeBlocks", serde_json::json!(0));
    let context = context(dir.path());
    let disk = context
        .open_disk(&path_of(dir.path(), &written.layers[1].head), None)
        .unwrap();
    let error = disk
        .read_exact_at(&mut [0; 512], block * 65_536)
        .unwrap_err();
    assert_eq!(error.kind(), brfs::error::ErrorKind::Corrupt, "{error}");
    // Its neighbours read on.
    let other = child.blocks.iter().find(|b| **b != block).unwrap();
    let mut buf = vec![0; 4096];
    disk.read_exact_at(&mut buf, other * 65_536).unwrap();
    assert!(buf == chain.read(1, other * 65_536, 4096));
}

#[test]
fn a_block_that_was_moved_behind_the_end_of_a_smaller_parent_holds_what_its_bitmap_says() {
    let rng = &mut Rng::new(6);
    let mut chain = Chain::new();
    // The parent ends within block 15; what stands under clear bits is garbage.
    let layers = [
        ((1 << 20) - 4096, [(0, 8), (5 * 128, 8)]),
        (2 << 20, [(15 * 128, 120), (20 * 128 + 3, 5)]),
    ];
    for (size, writes) in layers {
        let layer = chain.push(rng, size);
        layer
            .storage(Storage::Dir(Filter::Absent))
            .block_size(65_536)
            .bitmaps(Bitmaps::Partial);
        for (sector, sectors) in writes {
            layer.write(sector, sectors, Fill::Random(sector));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    let (parent, child) = (written.layers[0].dir(), written.layers[1].dir());
    for block in [15, 20] {
        std::fs::rename(child.block_path(block), parent.block_path(block)).unwrap();
    }
    let names = [0, 1].map(|n| chain.layers[n].head_name());
    let state = serde_json::json!({"chain": names, "currentBlock": 0, "step": "mergeBlocks"});
    let state_name = format!(".{}.merge.json", names[0]);
    std::fs::write(dir.path().join(state_name), state.to_string()).unwrap();
    let far = DiskContext::new(far(dir.path(), 0), CACHE_BYTES);
    for context in [context(dir.path()), far] {
        let path = path_of(dir.path(), written.youngest());
        let disk = context.open_disk(&path, None).unwrap();
        let mut buf = vec![0; 65_536];
        for block in [15, 20, 0, 16] {
            disk.read_exact_at(&mut buf, block * 65_536).unwrap();
            assert!(buf == chain.read(1, block * 65_536, 65_536), "{block}");
        }
    }
}

#[test]
fn a_file_with_an_interrupted_merge_in_it_is_not_read_as_the_point_that_was_removed() {
    let rng = &mut Rng::new(9);
    let mut chain = Chain::new();
    for n in 0..2 {
        chain
            .push(rng, 1 << 20)
            .storage(Storage::File)
            .block_size(65_536)
            .write(n * 128, 256, Fill::Random(n));
    }
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    let path = path_of(dir.path(), written.youngest());
    let point = dir.path().join("point.json");
    std::fs::write(&point, b"{}").unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(written.youngest())
        .unwrap();
    let hours_ago = |n: u64| SystemTime::now() - Duration::from_secs(n * 3600);
    file.set_modified(hours_ago(3)).unwrap();
    let guard = RestorePointGuard {
        path: StorePath::new("point.json").unwrap(),
    };
    let disk = context(dir.path()).open_disk(&path, Some(guard)).unwrap();
    let mut buf = vec![0; 4096];
    disk.read_exact_at(&mut buf, 65_536).unwrap();
    assert_eq!(buf, chain.read(1, 65_536, 4096));
    // The point is removed, another one is merged into its image, and that is interrupted.
    std::fs::remove_file(&point).unwrap();
    let at = written.layers[1].file().data_offset(1);
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], at).unwrap();
    file.set_modified(hours_ago(1)).unwrap();
    let error = disk.read_exact_at(&mut buf, 65_536).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    // Older images are not concerned.
    disk.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, chain.read(1, 0, 4096));
}

#[test]
fn an_open_disk_follows_a_merge_from_begin_to_end() {
    for storage in [
        Storage::File,
        Storage::Dir(Filter::Absent),
        Storage::Dir(Filter::Gzip),
    ] {
        let rng = &mut Rng::new(11);
        let chain = mergeable(rng, storage, 4);
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        let context = context(dir.path());
        let open = |layer: usize| {
            context
                .open_disk(&path_of(dir.path(), &written.layers[layer].head), None)
                .unwrap()
        };
        let disks: Vec<_> = (1..4).map(|layer| (layer, open(layer))).collect();
        // Half of what there is goes into the cache before anything moves.
        for (layer, disk) in &disks {
            compare(disk, &chain, *layer, rng, 5);
        }
        let merge = Merge::new(&chain, &written, 0, 1);
        let total = merge.blocks().len();
        for count in 0..=total {
            merge.interrupt_after_blocks(count);
            for (layer, disk) in &disks {
                compare(disk, &chain, *layer, rng, 10);
            }
        }
        let mut last = Cleanup::UuidWritten;
        for stage in [Cleanup::UuidWritten, Cleanup::Finished] {
            merge.interrupt_in_cleanup(stage);
            last = stage;
            for (layer, disk) in &disks {
                compare(disk, &chain, *layer, rng, 10);
            }
        }
        assert_eq!(last, Cleanup::Finished);
    }
}
