//! Broken and hostile images: what is read is right or an error; nothing panics, hangs or grows.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::absurd::{self, Case};
use crate::support::chain::{Chain, Storage};
use crate::support::damage::{Damage, copy_tree, in_copy, spots};
use crate::support::hostile;
use crate::support::reading::read_some;
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::support::vhd_dir::Filter;
use brfs::error::Result;
use brfs::image::{Disk, DiskContext};
use brfs::io::{ExtentKind, ReadAt};
use brfs::store::{LocalStore, StorePath};

fn context(root: &Path) -> Arc<DiskContext> {
    DiskContext::new(Arc::new(LocalStore::open(root).unwrap()), 8 << 20)
}

fn path_of(root: &Path, head: &Path) -> StorePath {
    let relative = head.strip_prefix(root).unwrap();
    StorePath::new(relative.to_str().unwrap()).unwrap()
}

/// Everything that can be asked of a disk; what fails is an error, not a panic.
fn exercise(disk: &Arc<Disk>) {
    let size = disk.len_bytes();
    let _ = disk.allocated_bytes();
    let _ = disk.checked_links(&Default::default());
    let reader = disk.reader();
    for offset in [0, 511, 4096, size / 2, size.saturating_sub(1), size] {
        let _ = read_some(&reader, offset, 70_000);
    }
    let mut at = 0;
    for _ in 0..1000 {
        match (at < size).then(|| disk.extent_at(at)) {
            Some(Ok(extent)) => {
                assert!(extent.end > at && extent.end <= size);
                at = extent.end;
            }
            _ => break,
        }
    }
}

/// Reads the whole disk in pieces. A piece is right or an error, unless `silent` allows changed
/// data; and never are a disk's bytes zeros or holes only because something is gone.
fn check(disk: &Arc<Disk>, chain: &Chain, layer: usize, silent: bool, what: &str) -> usize {
    let mut errors = 0;
    const PIECE: usize = 16_384;
    let size = chain.size_bytes(layer);
    assert_eq!(disk.len_bytes(), size, "{what}: size");
    let reader = disk.reader();
    for offset in (0..size).step_by(PIECE) {
        let expected = chain.read(layer, offset, PIECE);
        match read_some(&reader, offset, expected.len()) {
            Err(_) => errors += 1,
            Ok(got) => assert!(silent || got == expected, "{what}: wrong bytes at {offset}"),
        }
    }
    let mut at = 0;
    while at < size {
        let Ok(extent) = disk.extent_at(at) else {
            break;
        };
        if extent.kind == ExtentKind::Hole && !silent {
            let len = (extent.end - at).min(1 << 20) as usize;
            let hole = chain.read(layer, at, len);
            assert!(hole.iter().all(|&b| b == 0), "{what}: data in a hole");
        }
        at = extent.end;
    }
    errors
}

fn sample(rng: &mut Rng, storage: Storage) -> Chain {
    let mut chain = Chain::new();
    for n in 0..3 {
        let layer = chain.push(rng, 512 << 10);
        layer.storage(storage).block_size(65_536);
        layer
            .write(n * 100, 200, Fill::Random(n))
            .write(900, 100, Fill::Random(n + 10));
    }
    chain
}

#[test]
fn damage_matrix_of_files() {
    damage_matrix(Storage::File);
}

#[test]
fn damage_matrix_of_plain_directories() {
    damage_matrix(Storage::Dir(Filter::Absent));
}

#[test]
fn damage_matrix_of_gzip_directories() {
    damage_matrix(Storage::Dir(Filter::Gzip));
}

#[test]
fn damage_matrix_of_brotli_directories() {
    damage_matrix(Storage::Dir(Filter::Brotli));
}

/// Each way to break each place: right bytes or an error, and the others go on.
fn damage_matrix(storage: Storage) {
    let (mut cases, mut noticed) = (0, 0);
    {
        let rng = &mut Rng::new(21);
        let chain = sample(rng, storage);
        let original = tempfile::tempdir().unwrap();
        let written = chain.write(original.path());
        for broken in 0..2 {
            for spot in spots(&written.layers[broken]) {
                for damage in Damage::ALL {
                    let what = format!("{storage:?} layer {broken}: {damage:?} of {}", spot.name);
                    let copy = tempfile::tempdir().unwrap();
                    let root = copy.path().join("r");
                    copy_tree(original.path(), &root);
                    damage.apply(&in_copy(&spot, original.path(), &root), rng);
                    let context = context(&root);
                    // A plain table of bits has no form that garbage could lack.
                    let shapeless = spot.name == "bat" && damage == Damage::GarbageFile;
                    let silent = spot.silent && (damage.is_in_place() || shapeless);
                    let started = Instant::now();
                    for layer in 0..chain.layers.len() {
                        let head = path_of(original.path(), &written.layers[layer].head);
                        let opened = context.open_disk(&head, None);
                        cases += 1;
                        if layer < broken {
                            // Ancestors do not depend on what is broken above them.
                            let disk = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
                            assert_eq!(check(&disk, &chain, layer, false, &what), 0, "{what}");
                            continue;
                        }
                        match opened {
                            Err(e) => {
                                assert!(layer == broken, "{what} keeps layer {layer} shut: {e}");
                                noticed += 1;
                            }
                            Ok(disk) => {
                                if check(&disk, &chain, layer, silent, &what) > 0 {
                                    noticed += 1;
                                }
                                exercise(&disk);
                            }
                        }
                    }
                    assert!(started.elapsed() < Duration::from_secs(10), "{what}: slow");
                }
            }
        }
    }
    println!("{cases} disks read, {noticed} of them with errors");
    assert!(noticed > cases / 10, "the damage reached the reader");
}

#[test]
fn what_the_youngest_image_holds_stays_readable_without_its_ancestors() {
    for storage in [Storage::File, Storage::Dir(Filter::Brotli)] {
        let chain = sample(&mut Rng::new(22), storage);
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        std::fs::remove_file(&written.layers[0].head).unwrap();
        let disk = context(dir.path())
            .open_disk(&path_of(dir.path(), written.youngest()), None)
            .unwrap();
        assert!(disk.broken().unwrap().to_string().contains("parent"));
        let errors = check(&disk, &chain, 2, false, "parent gone");
        let mut buf = vec![0; 4096];
        // Layer 2 has the first sectors of its own.
        disk.read_exact_at(&mut buf, 200 * 512).unwrap();
        assert!(buf == chain.read(2, 200 * 512, 4096));
        assert!(errors > 0);
    }
}

fn survive(root: &Path, cases: Vec<Case>, secret: &[u8]) -> Vec<(String, Result<Arc<Disk>>)> {
    assert!(!cases.is_empty());
    let context = context(root);
    cases
        .into_iter()
        .map(|case| {
            let started = Instant::now();
            let opened = context.open_disk(&path_of(root, &case.head), None);
            match &opened {
                Ok(disk) => {
                    exercise(disk);
                    let mut buf = vec![0; secret.len().max(1)];
                    let len = disk.len_bytes().min(buf.len() as u64) as usize;
                    if disk.read_exact_at(&mut buf[..len], 0).is_ok() && !secret.is_empty() {
                        assert!(buf[..len] != *secret, "{}: the secret came out", case.name);
                    }
                }
                Err(e) => assert!(!e.to_string().is_empty()),
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{}: slow",
                case.name
            );
            (case.name, opened)
        })
        .collect()
}

#[test]
fn absurd_structures_are_refused_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let rng = &mut Rng::new(23);
    let mut cases = absurd::absurd_files(dir.path(), rng);
    cases.extend(absurd::absurd_dirs(dir.path(), rng, 256 << 20));
    for (name, opened) in survive(dir.path(), cases, b"") {
        let mut must_fail = vec!["block size", "size 2^64-1", "size 2^63", "disk type"];
        if name.starts_with("file") {
            // In a directory these two fields mean nothing.
            must_fail.extend(["table offset 2", "table offset past", "data offset"]);
        }
        if must_fail.iter().any(|part| name.contains(part)) {
            assert!(opened.is_err(), "{name} was accepted");
        }
    }
}

#[test]
fn aliases_and_parents_cannot_lead_out_of_the_repository() {
    let outside = tempfile::tempdir().unwrap();
    let rng = &mut Rng::new(24);
    // The secret is a sound VHD, so that only confinement keeps it from being read.
    let mut chain = Chain::new();
    chain.push(rng, 1 << 20).write(0, 2048, Fill::Random(99));
    let written = chain.write(outside.path());
    let secret = outside.path().join("secret.vhd");
    std::fs::rename(written.youngest(), &secret).unwrap();
    let content = chain.read(0, 0, 4096);
    let dir = tempfile::tempdir().unwrap();
    let mut cases = hostile::hostile_aliases(dir.path(), rng, &secret);
    cases.extend(hostile::hostile_parents(dir.path(), rng, &secret));
    for (name, opened) in survive(dir.path(), cases, &content) {
        if name.starts_with("alias") && !name.contains("newline") {
            assert!(opened.is_err(), "{name} was followed");
        } else if let Ok(disk) = opened
            && name.starts_with("parent")
        {
            assert!(disk.broken().is_some(), "{name} was followed");
        }
    }
}

#[test]
fn a_restore_point_that_is_gone_makes_its_disk_fail_when_it_is_merged_into() {
    use crate::support::merge::Merge;
    use brfs::image::RestorePointGuard;
    for storage in [
        Storage::File,
        Storage::Dir(Filter::Absent),
        Storage::Dir(Filter::Gzip),
    ] {
        let rng = &mut Rng::new(25);
        let chain = sample(rng, storage);
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        let json = dir.path().join("point.json");
        std::fs::write(&json, "{}").unwrap();
        let guard = RestorePointGuard {
            path: StorePath::new("point.json").unwrap(),
        };
        // The middle one is open while XO removes its restore point and merges the youngest into it.
        let disk = context(dir.path())
            .open_disk(&path_of(dir.path(), &written.layers[1].head), Some(guard))
            .unwrap();
        let mut buf = vec![0; 65_536];
        disk.read_exact_at(&mut buf, 0).unwrap();
        std::fs::remove_file(&json).unwrap();
        Merge::new(&chain, &written, 1, 2).interrupt_after_blocks(1000);
        let what = format!("{storage:?}");
        let errors = check(&disk, &chain, 1, false, &what);
        assert!(errors > 0, "{what}: the merge was not noticed");
    }
}
