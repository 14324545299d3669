//! Repositories that Xen Orchestra's own code wrote: every restore point reads right, through the
//! library and through a real mount, and what the commands tell about it is true.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::support::brfs::{BrfsMount, brfs_json};
use crate::support::extents::{allocated, data_ranges};
use crate::support::golden::{self, BareDisk, DATES, Repository, SIZES, Set, VM, VM_FOLDER};
use crate::support::mountpoint::can_mount;
use crate::support::reading::read_some;
use brfs::error::ErrorKind;
use brfs::image::{Disk, DiskContext};
use brfs::io::{ExtentKind, ReadAt};
use brfs::store::{LocalStore, StorePath};
use serde_json::Value;

const DISKS: [&str; 2] = ["xvda.raw", "xvdb.raw"];
const BLOCK: u64 = 2 << 20;
const CACHE_BYTES: u64 = 64 << 20;

/// sha256 of what is written to it, by the system's program: independent of anything of ours.
struct Sum(Child);

impl Sum {
    fn new() -> Self {
        let mut command = Command::new("sha256sum");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Sum(command.spawn().unwrap())
    }
    fn add(&mut self, bytes: &[u8]) {
        self.0.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }
    fn finish(self) -> String {
        let output = self.0.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()[..64].to_owned()
    }
}

fn sum_of(bytes: &[u8]) -> String {
    let mut sum = Sum::new();
    sum.add(bytes);
    sum.finish()
}

fn open(root: &Path, head: &str) -> Arc<Disk> {
    let context = DiskContext::new(Arc::new(LocalStore::open(root).unwrap()), CACHE_BYTES);
    context
        .open_disk(&StorePath::new(head).unwrap(), None)
        .unwrap()
}

/// Reads a whole disk in sequence, as a program does.
fn sum_of_disk(disk: &Arc<Disk>) -> String {
    let reader = disk.reader();
    let mut sum = Sum::new();
    let mut at = 0;
    while at < disk.len_bytes() {
        let bytes = read_some(&reader, at, 1 << 20).unwrap();
        sum.add(&bytes);
        at += bytes.len() as u64;
    }
    sum.finish()
}

fn check_through_library(set: &Set) {
    for repository in &set.repositories {
        let root = set.path(repository.name);
        for disk in 0..repository.disks {
            for (point, date) in DATES.iter().enumerate().skip(repository.first) {
                let opened = open(&root, &set.head(repository, disk, point));
                let what = format!("{} {} {date}", repository.name, DISKS[disk]);
                assert_eq!(opened.len_bytes(), SIZES[disk], "{what}");
                assert_eq!(sum_of_disk(&opened), set.sum(disk, point), "{what}");
            }
        }
    }
}

fn check_through_mount(set: &Set) {
    for repository in &set.repositories {
        let mount = BrfsMount::new(&set.path(repository.name), &[]);
        let vm = mount.join("vms").join(VM_FOLDER);
        let mut names: Vec<String> = fs::read_dir(&vm)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = DATES[repository.first..].to_vec();
        expected.push("latest");
        assert_eq!(names, expected, "{}", repository.name);
        assert_eq!(
            fs::read_link(vm.join("latest")).unwrap(),
            Path::new(DATES[3])
        );
        for (point, date) in DATES.iter().enumerate().skip(repository.first) {
            for (disk, name) in DISKS.iter().enumerate() {
                let path = vm.join(date).join(name);
                let what = path.display();
                let meta = fs::metadata(&path).unwrap();
                assert_eq!(meta.len(), SIZES[disk], "{what}");
                assert_eq!(
                    meta.mtime(),
                    1_772_328_600 + 86_400 * point as i64,
                    "{what}"
                );
                if disk < repository.disks {
                    assert_eq!(golden::sha256(&path), set.sum(disk, point), "{what}");
                } else {
                    // Its data is not there: visible with its size, and never zeros.
                    let e = File::open(&path).expect_err("opened a missing disk");
                    assert_eq!(e.raw_os_error(), Some(5), "{what}: {e}");
                }
            }
        }
    }
}

#[test]
fn golden_restore_points_read_right_through_the_library() {
    check_through_library(&golden::set());
}

#[test]
fn golden_restore_points_read_right_through_a_mount() {
    if can_mount() {
        check_through_mount(&golden::set());
    }
}

#[test]
fn all_restore_points_read_right_through_the_library() {
    if let Some(set) = golden::whole_set() {
        check_through_library(&set);
    }
}

#[test]
fn all_restore_points_read_right_through_a_mount() {
    if let Some(set) = golden::whole_set().filter(|_| can_mount()) {
        check_through_mount(&set);
    }
}

/// Checks the blocks that a manifest lists, and that nothing else is allocated.
fn check_blocks(disk: &BareDisk, data: &[std::ops::Range<u64>], read: impl Fn(u64, &mut [u8])) {
    let what = disk.head.display();
    let mut announced = Vec::new();
    for range in data {
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        assert_eq!(range.start % BLOCK, 0, "{what}");
        assert!(range.end % BLOCK == 0 || range.end == disk.size, "{what}");
        announced.extend(blocks);
    }
    for (number, sum) in &disk.blocks {
        assert!(
            announced.contains(number),
            "{what}: block {number} is a hole"
        );
        let start = number * BLOCK;
        let mut block = vec![0; BLOCK.min(disk.size - start) as usize];
        read(start, &mut block);
        assert_eq!(sum_of(&block), *sum, "{what}: block {number}");
    }
    for number in announced.iter().filter(|n| !disk.blocks.contains_key(n)) {
        let start = number * BLOCK;
        let mut block = vec![1; BLOCK.min(disk.size - start) as usize];
        read(start, &mut block);
        assert!(block.iter().all(|b| *b == 0), "{what}: block {number}");
    }
    // Between the blocks there is nothing but holes, and they read as zeros.
    for number in disk.blocks.keys().map(|n| n + 1) {
        let start = number * BLOCK;
        if start < disk.size && !announced.contains(&number) {
            let mut piece = vec![1; 4096.min(disk.size - start) as usize];
            read(start, &mut piece);
            assert!(piece.iter().all(|b| *b == 0), "{what}: block {number}");
        }
    }
}

#[test]
fn growing_and_huge_disks_have_their_blocks_and_holes() {
    let sets = [Some(golden::set()), golden::whole_set()];
    for disk in sets.iter().flatten().flat_map(Set::bare_disks) {
        let (root, inside) = brfs::views::split_bare_path(&disk.head).unwrap();
        let opened = open(&root, inside.as_str());
        assert_eq!(opened.len_bytes(), disk.size);
        let mut data: Vec<std::ops::Range<u64>> = Vec::new();
        let mut at = 0;
        while at < disk.size {
            let extent = opened.extent_at(at).unwrap();
            if extent.kind == ExtentKind::Data {
                data.push(at..extent.end);
            }
            at = extent.end;
        }
        check_blocks(&disk, &data, |offset, buf| {
            opened.read_exact_at(buf, offset).unwrap();
        });
    }
}

#[test]
fn growing_and_huge_disks_read_right_through_a_mount() {
    if !can_mount() {
        return;
    }
    for disk in golden::set().bare_disks() {
        let mount = BrfsMount::new(&disk.head, &[]);
        let path = mount.join("disk.raw");
        let file = File::open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), disk.size);
        let data = data_ranges(&file);
        check_blocks(&disk, &data, |offset, buf| {
            file.read_exact_at(buf, offset).unwrap();
        });
        let bytes: u64 = data.iter().map(|r| r.end - r.start).sum();
        assert_eq!(
            allocated(&path),
            bytes.next_multiple_of(512),
            "{}",
            path.display()
        );
    }
}

#[test]
fn every_block_of_a_gutted_directory_is_right_or_an_error() {
    let set = golden::set();
    let complete = set.repositories.iter().find(|r| r.name == "vhddir-none");
    let complete = complete.unwrap();
    let gutted = set.dir.join("partial/vhddir-gzip");
    let mut counts = (0, 0);
    for (point, date) in DATES.iter().enumerate() {
        let head = set.head(complete, 0, point);
        let expected = open(&set.path(complete.name), &head);
        let disk = open(&gutted, &head);
        let (mut want, mut got) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
        for offset in (0..SIZES[0]).step_by(BLOCK as usize) {
            expected.read_exact_at(&mut want, offset).unwrap();
            match disk.read_exact_at(&mut got, offset) {
                Ok(()) => {
                    assert!(got == want, "{date} at {offset}");
                    counts.0 += 1;
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                    counts.1 += 1;
                }
            }
        }
    }
    assert!(counts.0 > 0 && counts.1 > 0, "{counts:?}");
}

/// What `ls` and `info` must tell of a disk.
fn check_row(row: &Value, repository: &Repository, disk: usize, point: usize) {
    let what = format!("{} {} {row:#}", repository.name, DATES[point]);
    assert_eq!(row["name"], DISKS[disk], "{what}");
    assert_eq!(row["size"], SIZES[disk], "{what}");
    assert_eq!(row["vdi_type"], "user", "{what}");
    let problems = row["problems"].as_array().unwrap();
    if disk >= repository.disks {
        assert_eq!(row["format"], Value::Null, "{what}");
        assert_eq!(row["chain_length"], Value::Null, "{what}");
        let told = problems[0].as_str().unwrap();
        assert!(told.contains("cannot be opened"), "{what}");
        return;
    }
    let format = if repository.has_files() {
        "VHD file"
    } else {
        "VHD directory"
    };
    assert_eq!(row["format"], format, "{what}");
    assert_eq!(row["compression"], repository.compression, "{what}");
    assert_eq!(row["chain_length"], point + 1, "{what}");
    assert!(problems.is_empty(), "{what}");
}

/// What only `info` tells.
fn check_report(report: &Value, repository: &Repository, disk: usize, point: usize) {
    check_row(report, repository, disk, point);
    let what = format!("{} {} {report:#}", repository.name, DATES[point]);
    let chain = report["chain"].as_array().unwrap();
    if disk >= repository.disks {
        assert!(chain.is_empty() && report["allocated"].is_null(), "{what}");
        return;
    }
    let allocated = report["allocated"].as_u64().unwrap();
    assert!(allocated > 0 && allocated < SIZES[disk] / 4, "{what}");
    assert_eq!(chain.len(), point + 1, "{what}");
    assert_eq!(chain[0]["uuid"], report["vdi_uuid"], "{what}");
    assert_eq!(chain[point]["disk_type"], "dynamic", "{what}");
    let merging = repository.is_merging() && disk == 0;
    let finished = merging && repository.name.ends_with("cleanup");
    for (child, parent) in chain.iter().zip(&chain[1..]) {
        assert_eq!(child["disk_type"], "differencing", "{what}");
        // At the end of a merge the oldest image has its child's uuid already.
        let same = child["parent_uuid"] == parent["uuid"];
        let oldest = parent["parent_uuid"].is_null();
        assert_eq!(same, !(finished && oldest), "{what}");
    }
    for link in chain {
        assert_eq!(link["virtual_size"], SIZES[disk], "{what}");
        assert_eq!(link["block_size"], BLOCK, "{what}");
        assert_eq!(
            link["data_path"].is_null(),
            repository.has_files(),
            "{what}"
        );
        assert!(link["problems"].as_array().unwrap().is_empty(), "{what}");
    }
    let notes = report["notes"].to_string();
    assert_eq!(
        notes.contains("merge into 20260301T013000Z."),
        merging,
        "{what}"
    );
    assert_eq!(notes.contains("last step"), finished, "{what}");
}

fn check_commands(set: &Set) {
    for repository in &set.repositories {
        let root = set.path(repository.name);
        let root = root.to_str().unwrap();
        let status = i32::from(repository.disks < DISKS.len());
        let (code, vms) = brfs_json(&["ls", "--json", root]);
        assert_eq!(code, 0);
        assert_eq!(vms["vms"].as_array().unwrap().len(), 1);
        assert_eq!(vms["vms"][0]["name"], "web-01 \"α\" / prod");
        assert_eq!(vms["vms"][0]["points"], DATES.len() - repository.first);
        assert_eq!(vms["vms"][0]["newest"], DATES[3]);

        let (code, points) = brfs_json(&["ls", "--json", root, "web-01"]);
        assert_eq!(code, status, "{points:#}");
        let (code, report) = brfs_json(&["info", "--json", root, VM]);
        assert_eq!(code, status, "{report:#}");
        assert_eq!(report["damaged"], status == 1);
        let notes = report["notes"].as_array().unwrap();
        assert!(notes.is_empty(), "{}: {notes:?}", repository.name);

        for (row, point) in (repository.first..DATES.len()).enumerate() {
            let listed = &points["points"][row];
            let told = &report["points"][row];
            for of in [listed, told] {
                assert_eq!(of["restorable"], status == 0);
                assert_eq!(of["name"], DATES[point]);
                assert_eq!(of["mode"], "delta");
                assert_eq!(
                    of["timestamp"],
                    1_772_328_600_000 + 86_400_000 * point as u64
                );
                assert_eq!(of["disks"], serde_json::json!(DISKS));
            }
            assert_eq!(told["damaged"], status == 1);
            let (code, disks) = brfs_json(&["ls", "--json", root, VM, DATES[point]]);
            assert_eq!(code, status);
            for disk in 0..DISKS.len() {
                check_row(&disks["disks"][disk], repository, disk, point);
                check_report(&told["disk_reports"][disk], repository, disk, point);
            }
        }
    }
}

#[test]
fn commands_tell_the_truth_about_golden_repositories() {
    check_commands(&golden::set());
}

#[test]
fn commands_tell_the_truth_about_all_repositories() {
    if let Some(set) = golden::whole_set() {
        check_commands(&set);
    }
}

#[test]
fn info_tells_the_chain_of_a_bare_image() {
    for disk in golden::set().bare_disks() {
        let (code, report) = brfs_json(&["info", "--json", disk.head.to_str().unwrap()]);
        assert_eq!(code, 0, "{report:#}");
        assert_eq!(report["disk"]["size"], disk.size);
        let allocated = report["disk"]["allocated"].as_u64().unwrap();
        assert!(allocated <= disk.blocks.len() as u64 * BLOCK, "{report:#}");
        let chain = report["disk"]["chain"].as_array().unwrap();
        assert_eq!(report["disk"]["chain_length"], chain.len());
        let is_dir = disk.repository.ends_with("dir");
        assert!(chain.iter().all(|l| l["data_path"].is_null() != is_dir));
    }
}
