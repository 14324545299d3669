//! md arrays and volume groups are as the kernel's own drivers show them, whatever members are there and
//! whatever state they were left in; where a byte cannot be known there is an error.
//!
//! `scripts/fixtures/make-kernel-guests --golden` made the disks in `tests/fixtures/guests/kernel-*.tar.zst` and
//! wrote down what the kernel of that machine showed. Others can be compared with
//! `BRFS_KERNEL_GUESTS=DIR cargo test --test kernel_volumes`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::guest_support::{Image, hex};
use crate::support::golden::unpack;
use brfs::io::{ExtentKind, ReadAt};
use brfs::volume::{Volumes, assemble};
use sha2::{Digest, Sha256};

/// The chunk of most arrays: what is an error, is so for whole chunks.
const BLOCK: usize = 4096;

/// Where scenarios of this kind are.
fn directory(kind: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("BRFS_KERNEL_GUESTS") {
        return dir.into();
    }
    let name = format!("kernel-{kind}");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/guests")
        .join(format!("{name}.tar.zst"));
    unpack(&archive, &name)
}

fn names(kind: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory(kind))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&format!("{kind}-")))
        .collect();
    names.sort();
    assert!(names.len() > 10, "{names:?}");
    names
}

/// The disks of a scenario, and what the kernel showed of them.
struct Scenario {
    disks: Vec<(String, Arc<dyn ReadAt>)>,
    /// Size and SHA-256 by the name of the volume.
    sums: BTreeMap<String, (u64, String)>,
}

/// Volumes by their names, and what was said about them.
struct Shown {
    volumes: BTreeMap<String, Arc<dyn ReadAt>>,
    problems: String,
}

impl Scenario {
    fn open(name: &str) -> Scenario {
        let kind = name.split('-').next().unwrap();
        let dir = directory(kind).join(name);
        let mut disks = Vec::new();
        for number in 0..16 {
            let path = dir.join(format!("disk{number}.img"));
            if path.exists() {
                disks.push((format!("disk{number}"), Image::open(&path)));
            }
        }
        assert!(!disks.is_empty(), "{name}: no disks");
        let sums = std::fs::read_to_string(dir.join("sums")).unwrap();
        let sums = sums.lines().map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let sum = (fields[1].parse().unwrap(), fields[2].to_string());
            (fields[0].to_string(), sum)
        });
        Scenario {
            sums: sums.collect(),
            disks,
        }
    }

    /// What brfs makes of the disks, with some of them left out.
    fn shown(&self, without: &[usize]) -> Shown {
        let there: Vec<_> = self
            .disks
            .iter()
            .enumerate()
            .filter(|(number, _)| !without.contains(number))
            .map(|(_, disk)| disk.clone())
            .collect();
        let found: Volumes = assemble(&there);
        let mut problems = found.problems;
        let arrays = found.arrays.into_iter().map(|a| ("data".into(), a.volume));
        let mut volumes: BTreeMap<String, Arc<dyn ReadAt>> = arrays.collect();
        for group in found.groups {
            problems.extend(group.problems);
            for volume in group.volumes {
                volumes.insert(format!("{}/{}", group.name, volume.name), volume.volume);
            }
        }
        let problems: Vec<String> = problems
            .iter()
            .map(|problem| format!("{}: {}", problem.subject, problem.message))
            .collect();
        Shown {
            volumes,
            problems: problems.join("\n"),
        }
    }

    /// `None` when the volume is what the kernel showed, byte for byte.
    fn difference(&self, volume: &str, shown: &Shown) -> Option<String> {
        let (size, sum) = &self.sums[volume];
        let Some(found) = shown.volumes.get(volume) else {
            return Some(format!("is not shown: {}", shown.problems));
        };
        if found.len_bytes() != *size {
            return Some(format!("{} instead of {size} bytes", found.len_bytes()));
        }
        let mut bytes = vec![0; *size as usize];
        if let Err(error) = found.read_exact_at(&mut bytes, 0) {
            return Some(format!("cannot be read: {error}"));
        }
        (hex(&Sha256::digest(&bytes)) != *sum).then(|| "has other bytes".to_string())
    }

    /// What is wrong with a volume: that it is not all there, if it has to be; bytes that are others.
    fn faults(
        &self,
        volume: &str,
        truth: &[u8],
        shown: &Shown,
        is_whole: bool,
    ) -> impl Iterator<Item = String> {
        let difference = is_whole.then(|| self.difference(volume, shown)).flatten();
        let found = shown.volumes.get(volume);
        let wrong = found.map_or(0, |found| wrong_blocks(&**found, truth));
        let wrong = (wrong > 0).then(|| format!("{wrong} wrong blocks"));
        let volume = volume.to_owned();
        let faults = difference.into_iter().chain(wrong);
        faults.map(move |fault| format!("{volume}: {fault}"))
    }

    /// The bytes of all volumes, which were compared with the kernel's.
    fn truth(&self) -> BTreeMap<String, Vec<u8>> {
        let shown = self.shown(&[]);
        let mut truth = BTreeMap::new();
        for volume in self.sums.keys() {
            if self.difference(volume, &shown).is_none() {
                let found = &shown.volumes[volume];
                let mut bytes = vec![0; found.len_bytes() as usize];
                found.read_exact_at(&mut bytes, 0).unwrap();
                truth.insert(volume.clone(), bytes);
            }
        }
        truth
    }
}

/// What cannot be read must fail; what can be read must be the truth, and so must holes.
fn wrong_blocks(found: &dyn ReadAt, truth: &[u8]) -> usize {
    let mut wrong = 0;
    let mut block = [0; BLOCK];
    let len = found.len_bytes().min(truth.len() as u64);
    for (expected, at) in truth.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        if at >= len {
            break;
        }
        let read = found.read_exact_at(&mut block[..expected.len()], at);
        wrong += usize::from(read.is_ok() && block[..expected.len()] != *expected);
        let extent = found.extent_at(at);
        let is_hole = extent.is_ok_and(|extent| extent.kind == ExtentKind::Hole);
        wrong += usize::from(is_hole && expected.iter().any(|&byte| byte != 0));
    }
    wrong
}

/// All ways to leave out some of so many disks, but not all of them.
fn subsets(count: usize) -> Vec<Vec<usize>> {
    (0..(1 << count) - 1)
        .map(|bits: u32| (0..count).filter(|n| bits & (1 << n) != 0).collect())
        .collect()
}

/// How many of the disks that hold current data can be away without a loss, and the disks that do not: those that the
/// array went on without, spares, and those that were being filled.
fn redundancy(name: &str) -> (usize, &'static [usize]) {
    match name.strip_prefix("md-").unwrap() {
        "raid1-never-synced" | "raid10-never-synced" | "raid10-far-never-synced" => (0, &[]),
        "raid5-never-synced" | "raid5-busy" | "raid5-busy-0.90" | "raid5-bitmap-busy" => (0, &[]),
        "raid6-busy" => (0, &[]),
        "raid1-bad-blocks" => (0, &[0]),
        "raid1-replace-running" | "raid1-replace-stopped" => (1, &[2]),
        "raid5-replace-running" | "raid5-replace-stopped" => (1, &[4]),
        "raid1-rebuild-running" | "raid1-rebuild-stopped" => (0, &[1, 2]),
        "raid5-rebuild-running" | "raid5-rebuild-stopped" => (0, &[1, 4]),
        "raid5-bitmap-rebuild-running" | "raid5-bitmap-rebuild-stopped" => (0, &[1, 4]),
        "raid6-rebuild-running" | "raid6-rebuild-stopped" => (1, &[1, 5]),
        "raid10-rebuild-running" | "raid10-rebuild-stopped" => (0, &[1, 4]),
        "raid1-just-failed" | "raid1-busy-failed" | "raid1-busy-failed-0.90" => (0, &[0]),
        "raid1-bitmap-busy-failed" | "raid10-busy-failed" | "raid10-just-failed" => (0, &[0]),
        "raid5-just-failed" | "raid4-degraded" => (0, &[1]),
        "raid5-0.90-degraded" | "raid5-1.0-degraded" => (0, &[1]),
        "raid5-degraded" | "raid5-bitmap-degraded" => (0, &[2]),
        "raid6-degraded" => (1, &[1]),
        "raid6-twice-degraded" => (0, &[1, 3]),
        "raid10-n2-degraded" | "raid10-f2-degraded" => (0, &[1]),
        "raid10-o2-degraded" => (0, &[0]),
        "raid5-spare" => (1, &[3]),
        // Whatever state it was in before the member failed: that one was current.
        name if name.ends_with("just-failed-before") => (0, &[]),
        name if name.starts_with("raid1-") && name.ends_with("-degraded") => (0, &[0]),
        name if name.starts_with("raid10-") && name.contains("3-") => (2, &[]),
        name if name.starts_with("raid6-") => (2, &[]),
        name if name.starts_with("raid0") || name.starts_with("linear") => (0, &[]),
        _ => (1, &[]),
    }
}

/// Arrays that are left out, or partly so, and what is said about them.
const REFUSED: &[(&str, &str)] = &[
    ("md-raid5-journal", "features 0x200"),
    ("md-raid5-ppl", "features"),
    ("md-raid5-reshape", "reshape"),
    // A power cut while a member was away already: the kernel does not start it either.
    ("md-raid5-busy-failed", "parity may not fit"),
];

#[test]
fn every_array_is_as_the_kernel_showed_it() {
    let mut failed = Vec::new();
    for name in names("md") {
        let scenario = Scenario::open(&name);
        let difference = scenario.difference("data", &scenario.shown(&[]));
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        match (difference, refused) {
            (None, None) => {}
            (Some(difference), Some((_, why))) if difference.contains(why) => {}
            (difference, _) => failed.push(format!("{name}: {difference:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn whatever_members_are_away_no_byte_is_wrong() {
    let mut failed = Vec::new();
    for name in names("md") {
        let scenario = Scenario::open(&name);
        let truth = scenario.truth();
        let (spare, useless) = redundancy(&name);
        for without in subsets(scenario.disks.len()) {
            let count = |is_there: bool| {
                let disks = 0..scenario.disks.len();
                let useful = disks.filter(|disk| !useless.contains(disk));
                useful
                    .filter(|disk| without.contains(disk) != is_there)
                    .count()
            };
            if count(true) == 0 {
                // Nothing would tell that what is left is old.
                continue;
            }
            let shown = scenario.shown(&without);
            for (volume, truth) in &truth {
                let is_whole = count(false) <= spare;
                let found = scenario.faults(volume, truth, &shown, is_whole);
                failed.extend(found.map(|fault| format!("{name}: without {without:?} {fault}")));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Volumes that are left out, and what is said about them.
const REFUSED_VOLUMES: &[(&str, &str, &str)] = &[
    ("lvm-raid5-reshape", "data", "RESHAPE"),
    ("lvm-writecache", "data", "writecache"),
    ("lvm-integrity", "data", "integrity"),
    // In the metadata of both the snapshot is being merged; the kernel has begun with one of them.
    ("lvm-snapshot-merge", "origin", "merged into"),
    ("lvm-snapshot-merge-scheduled", "origin", "merged into"),
    // At the next start the machine takes the snapshot for it, and only later says so.
    ("lvm-thin-merge", "thin", "merged into"),
];

#[test]
fn every_logical_volume_is_as_the_kernel_showed_it() {
    let mut failed = Vec::new();
    for name in names("lvm") {
        let scenario = Scenario::open(&name);
        let shown = scenario.shown(&[]);
        for volume in scenario.sums.keys() {
            let difference = scenario.difference(volume, &shown);
            let refused = REFUSED_VOLUMES.iter().find(|(refused, short, _)| {
                *refused == name && volume.ends_with(&format!("/{short}"))
            });
            match (difference, refused) {
                (None, None) => {}
                (Some(difference), Some((_, _, why))) if difference.contains(why) => {}
                (difference, _) => failed.push(format!("{name}: {volume}: {difference:?}")),
            }
        }
        // Nothing is shown that the kernel did not show, but for an image that was split off.
        let more = shown.volumes.keys().filter(|&volume| {
            !scenario.sums.contains_key(volume)
                && volume != "data"
                && (&*name, &**volume) != ("lvm-raid1-split", "guest-vg/data_rimage_0")
        });
        failed.extend(more.map(|volume| format!("{name}: {volume} should not be there")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// How many physical volumes can be away without a loss, and those whose data was left behind.
fn spare_volumes(name: &str) -> (usize, &'static [usize]) {
    match name.strip_prefix("lvm-").unwrap() {
        // Parity may not fit where it was being written.
        name if name.ends_with("-busy") => (0, &[]),
        "raid1-failed" | "raid10-failed" => (0, &[0]),
        "raid5-failed" => (0, &[1]),
        "raid1-rebuild" | "raid10-rebuild" => (0, &[0]),
        "raid5-rebuild" => (0, &[1]),
        "raid1-split" => (1, &[0]),
        "raid1-grown" => (0, &[1]),
        "raid10" | "raid4" => (1, &[]),
        name if name.starts_with("raid5_") => (1, &[]),
        name if name.starts_with("raid6_") => (2, &[]),
        _ => (0, &[]),
    }
}

#[test]
fn whatever_physical_volumes_are_away_no_byte_is_wrong() {
    let mut failed = Vec::new();
    for name in names("lvm") {
        let scenario = Scenario::open(&name);
        let truth = scenario.truth();
        let (spare, useless) = spare_volumes(&name);
        for without in subsets(scenario.disks.len()) {
            let disks = 0..scenario.disks.len();
            let (useful, lost): (Vec<usize>, Vec<usize>) = disks
                .filter(|disk| !useless.contains(disk))
                .partition(|disk| !without.contains(disk));
            if useful.is_empty() || !useless.is_empty() && lost.len() > spare {
                continue;
            }
            let shown = scenario.shown(&without);
            for (volume, truth) in &truth {
                // An image that was being filled is not known as such when it is away.
                let is_whole =
                    lost.len() <= spare && (without.is_empty() || name != "lvm-raid5-rebuild");
                let found = scenario.faults(volume, truth, &shown, is_whole);
                failed.extend(found.map(|fault| format!("{name}: without {without:?} {fault}")));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// An old mirror tells only by its log that more than its first copy can be read.
#[test]
fn copies_that_may_never_have_been_filled_are_not_read() {
    let scenario = Scenario::open("lvm-mirrors");
    let shown = scenario.shown(&[0]);
    for volume in ["logged", "raid1", "three"] {
        let difference = scenario.difference(&format!("guest-vg/{volume}"), &shown);
        assert_eq!(difference, None, "{volume}");
    }
    let core = scenario.difference("guest-vg/core", &shown).unwrap();
    assert!(core.contains("no log tells"), "{core}");
    // Half moved: only what it is moved from has all of it.
    let moving = Scenario::open("lvm-pvmove");
    let difference = moving.difference("guest-vg/data", &moving.shown(&[0]));
    assert!(difference.unwrap().contains("no log tells"));
}

/// The disks of a scenario, byte by byte.
pub fn disks_of(name: &str) -> Vec<Vec<u8>> {
    let scenario = Scenario::open(name);
    let whole = |(_, disk): &(String, Arc<dyn ReadAt>)| {
        let mut bytes = vec![0; disk.len_bytes() as usize];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    scenario.disks.iter().map(whole).collect()
}
