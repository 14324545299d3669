//! btrfs over several devices, some of which are gone, damaged, out of date or there twice: what can be read is
//! what the kernel showed, and what cannot gives errors.
//!
//! The images are those of `tests/guestfs_walk.rs`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::guest_support::seal::{SUPERBLOCK, crc32c};
use crate::guest_support::{context, context_of, differences, disk, golden, golden_text, walk};
use crate::support::reading::read_some;
use brfs::error::{Error, ErrorKind, Result};
use brfs::guestfs::host::pool::Pool;
use brfs::io::ReadAt;
use brfs::tree::{Directory, Node};
use brfs::views::guest::{GuestContext, OpenDisk, disk_children};

type Disk = Arc<dyn ReadAt>;

/// The devices of a golden set, by their letters.
fn devices(set: &str, letters: &str) -> Vec<Disk> {
    letters
        .chars()
        .map(|letter| golden(&format!("{set}-{letter}")))
        .collect()
}

const NAMES: [&str; 5] = ["xvda", "xvdb", "xvdc", "xvdd", "xvde"];

/// The tree that is entered through disk `by` of a restore point with these disks.
fn entered(disks: &[Disk], by: usize) -> Arc<dyn Directory> {
    let named = NAMES.into_iter().zip(disks.iter().cloned()).collect();
    let own = disks[by].clone();
    let open: OpenDisk = Arc::new(move || Ok(own.clone()));
    disk_children(context_of(named), NAMES[by], open)
}

/// All but the given ones.
fn without(disks: &[Disk], gone: &[usize]) -> Vec<Disk> {
    let left = disks.iter().enumerate();
    left.filter(|(index, _)| !gone.contains(index))
        .map(|(_, disk)| disk.clone())
        .collect()
}

/// Asserts that a tree is as the kernel showed it, but for these files, whose contents give errors.
fn compare(what: &str, set: &str, root: &dyn Directory, unreadable: &[&str]) {
    let found = walk(root);
    for path in unreadable {
        assert!(found[*path].contains("error:"), "{what}: {path} is read");
    }
    let mut different = differences(&golden_text(&format!("{set}.btrfs-manifest")), found);
    different.retain(|line| {
        !unreadable
            .iter()
            .any(|p| line.starts_with(&format!("{p}: field 10")))
    });
    assert!(different.is_empty(), "{what}:\n{}", different.join("\n"));
}

/// The files whose contents give errors.
fn failing(found: &BTreeMap<String, String>) -> Vec<&str> {
    let lines = found.iter().filter(|(_, line)| line.contains("error:"));
    lines.map(|(path, _)| path.as_str()).collect()
}

/// A disk in which some bytes are others, or cannot be read.
struct Changed {
    disk: Disk,
    flipped: Box<dyn Fn(u64) -> bool + Send + Sync>,
    replaced: Option<(u64, Vec<u8>)>,
    unreadable: Vec<Range<u64>>,
}

impl Changed {
    fn new(disk: &Disk) -> Changed {
        Changed {
            disk: disk.clone(),
            flipped: Box::new(|_| false),
            replaced: None,
            unreadable: Vec::new(),
        }
    }

    /// Every 64 KiB for which `is_damaged` says so are damaged.
    fn damaged(disk: &Disk, is_damaged: impl Fn(u64) -> bool + Send + Sync + 'static) -> Disk {
        Arc::new(Changed {
            flipped: Box::new(move |at| is_damaged(at >> 16)),
            ..Changed::new(disk)
        })
    }

    /// Another first superblock, whose checksum holds.
    fn superblock(disk: &Disk, edit: impl Fn(&mut [u8])) -> Disk {
        let mut block = vec![0; 4096];
        disk.read_exact_at(&mut block, SUPERBLOCK).unwrap();
        edit(&mut block);
        let sum = crc32c(&block[32..]);
        block[..4].copy_from_slice(&sum.to_le_bytes());
        Arc::new(Changed {
            replaced: Some((SUPERBLOCK, block)),
            ..Changed::new(disk)
        })
    }
}

impl ReadAt for Changed {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buf.len() as u64;
        if self
            .unreadable
            .iter()
            .any(|r| r.start < end && offset < r.end)
        {
            return Err(Error::new(ErrorKind::Io, "a bad sector"));
        }
        self.disk.read_exact_at(buf, offset)?;
        for (at, byte) in (offset..).zip(buf) {
            if let Some((start, block)) = &self.replaced
                && let Some(index) = at.checked_sub(*start)
                && let Some(other) = block.get(index as usize)
            {
                *byte = *other;
            }
            if (self.flipped)(at) {
                *byte ^= 0x55;
            }
        }
        Ok(())
    }
}

/// The superblock and its copy at 64 MiB are left alone.
fn is_not_superblock(block: u64) -> bool {
    block != 1 && block != 1024
}

#[test]
fn any_device_of_a_mirror_may_be_missing() {
    for (set, letters) in [("btrfs-raid1", "ab"), ("btrfs-raid10", "abcd")] {
        let all = devices(set, letters);
        for gone in 0..all.len() {
            let left = without(&all, &[gone]);
            compare(
                &format!("{set} without {gone}"),
                set,
                &*entered(&left, 0),
                &[],
            );
        }
    }
}

#[test]
fn as_many_devices_as_there_is_parity_may_be_missing() {
    for (set, letters, most) in [("btrfs-raid5", "abc", 1), ("btrfs-raid6", "abcd", 2)] {
        let all = devices(set, letters);
        for first in 0..all.len() {
            for second in first..all.len() {
                if most == 1 && first != second {
                    continue;
                }
                let left = without(&all, &[first, second]);
                let what = format!("{set} without {first} and {second}");
                // Without a checksum nothing says whether what parity gives is right.
                compare(&what, set, &*entered(&left, 0), &["in-place"]);
            }
        }
    }
}

#[test]
fn what_is_on_a_missing_device_gives_errors_and_the_rest_is_read() {
    let all = devices("btrfs-raid0", "abc");
    for gone in 0..3 {
        let found = walk(&*entered(&without(&all, &[gone]), 0));
        let failing: Vec<String> = failing(&found).into_iter().map(str::to_string).collect();
        for large in ["stripes", "in-place"] {
            assert!(
                failing.iter().any(|path| path == large),
                "{gone}: {large} is read"
            );
        }
        assert!(
            !failing
                .iter()
                .any(|path| path.starts_with("small") || path.starts_with("many/file"))
        );
        // What is read is right.
        let manifest = golden_text("btrfs-raid0.btrfs-manifest");
        let mut different = differences(&manifest, found);
        different.retain(|line| !line.contains("found error:"));
        assert!(different.is_empty(), "{different:?}");
    }
}

#[test]
fn a_damaged_mirror_is_not_used() {
    let mut all = devices("btrfs-raid1", "ab");
    all[0] = Changed::damaged(&all[0], is_not_superblock);
    for by in 0..2 {
        // Which copy is right can be told of all but data without checksums.
        compare(
            "one damaged",
            "btrfs-raid1",
            &*entered(&all, by),
            &["in-place"],
        );
    }
}

/// Of all data there is one good copy, on this device or on that, and no long run is good on either.
#[test]
fn mirrors_are_chosen_sector_by_sector() {
    let mut all = devices("btrfs-raid1", "ab");
    for (disk, rest) in all.iter_mut().zip(0..) {
        *disk = Changed::damaged(disk, move |block| {
            block % 2 == rest && is_not_superblock(block)
        });
    }
    for by in 0..2 {
        compare(
            "damaged in turn",
            "btrfs-raid1",
            &*entered(&all, by),
            &["in-place"],
        );
    }
}

#[test]
fn a_copy_of_the_superblock_stands_in_for_a_damaged_one() {
    let image: Disk = Arc::new(Changed {
        flipped: Box::new(|at| at == SUPERBLOCK + 0x100),
        ..Changed::new(&golden("btrfs"))
    });
    let found = walk(&*disk(image));
    let different = differences(&golden_text("btrfs.manifest"), found);
    assert!(different.is_empty(), "{}", different.join("\n"));
    // One that an older file system left there does not.
    let image = golden("btrfs-zstd");
    let mut copy = vec![0; 4096];
    golden("btrfs").read_exact_at(&mut copy, 64 << 20).unwrap();
    let image: Disk = Arc::new(Changed {
        flipped: Box::new(|at| at == SUPERBLOCK + 0x100),
        replaced: Some((64 << 20, copy)),
        ..Changed::new(&image)
    });
    assert!(disk(image).list().is_err());
}

#[test]
fn parity_makes_up_for_damage_and_a_missing_device_together() {
    let mut all = devices("btrfs-raid6", "abcd");
    all[2] = Changed::damaged(&all[2], is_not_superblock);
    for gone in [0, 1, 3] {
        let left = without(&all, &[gone]);
        let root = entered(&left, 0);
        let found = walk(&*root);
        let mut different = differences(&golden_text("btrfs-raid6.btrfs-manifest"), found);
        different.retain(|line| !line.starts_with("in-place: field 10"));
        assert!(different.is_empty(), "without {gone}: {different:?}");
    }
}

fn read(root: &dyn Directory, name: &str) -> Result<Vec<u8>> {
    let Some(Node::File(file)) = root.lookup(name.as_ref())? else {
        panic!("{name} is not a file");
    };
    read_some(&*file.open()?, 0, 4096)
}

/// The offsets of the sectors that begin with a text.
fn sectors_with(disk: &Disk, text: &[u8]) -> Vec<u64> {
    let mut block = vec![0; 1 << 20];
    let mut found = Vec::new();
    for start in (0..disk.len_bytes()).step_by(1 << 20) {
        let take = (disk.len_bytes() - start).min(1 << 20) as usize;
        disk.read_exact_at(&mut block[..take], start).unwrap();
        let sectors = block[..take].chunks(4096).zip((start..).step_by(4096));
        found.extend(
            sectors
                .filter(|(sector, _)| sector.starts_with(text))
                .map(|(_, at)| at),
        );
    }
    found
}

#[test]
fn data_without_checksums_is_not_taken_from_a_device_that_is_out_of_date() {
    let mut all = devices("btrfs-stale", "ab");
    assert_eq!(
        &read(&*entered(&all, 1), "in-place").unwrap()[..10],
        b"since then"
    );
    // The old device on its own is what it was.
    let old = entered(&all[1..], 0);
    assert_eq!(&read(&*old, "in-place").unwrap()[..8], b"in place");
    assert_eq!(read(&*old, "small").unwrap(), b"inline");
    // The new data cannot be read: the old is no substitute.
    let places = sectors_with(&all[0], b"since then 00000000");
    assert!(!places.is_empty());
    all[0] = Arc::new(Changed {
        unreadable: places.into_iter().map(|at| at..at + 4096).collect(),
        ..Changed::new(&all[0])
    });
    for by in 0..2 {
        let root = entered(&all, by);
        assert_eq!(read(&*root, "in-place").unwrap_err().kind(), ErrorKind::Io);
        assert!(read(&*root, "new").is_ok());
    }
}

#[test]
fn data_without_checksums_is_read_only_if_its_copies_agree() {
    let mut all = devices("btrfs-raid1", "ab");
    let places = sectors_with(&all[1], b"in place 00000000");
    all[1] = Arc::new(Changed {
        flipped: Box::new(move |at| places.contains(&(at & !4095))),
        ..Changed::new(&all[1])
    });
    let error = read(&*entered(&all, 0), "in-place").unwrap_err();
    assert!(
        error.to_string().contains("which is right cannot be told"),
        "{error}"
    );
    // With one copy there is nothing to compare.
    assert!(read(&*entered(&all[..1], 0), "in-place").is_ok());
}

const GENERATION: usize = 0x48;
const ROOT: usize = 0x50;
const INCOMPAT: usize = 0xBC;

fn add(block: &mut [u8], at: usize, amount: i64) {
    let field: &mut [u8; 8] = (&mut block[at..at + 8]).try_into().unwrap();
    *field = u64::from_le_bytes(*field)
        .wrapping_add_signed(amount)
        .to_le_bytes();
}

/// Copies of a device: of the same commit nobody knows which is right, of another one everybody.
#[test]
fn devices_that_are_there_twice_are_not_mixed() {
    let mirror = devices("btrfs-raid1", "ab");
    let twice = [mirror[0].clone(), mirror[1].clone(), mirror[0].clone()];
    for by in 0..3 {
        compare("copied", "btrfs-raid1", &*entered(&twice, by), &[]);
    }
    let striped = devices("btrfs-raid0", "abc");
    let copy = [&striped[..], &[striped[2].clone()]].concat();
    // The one that is entered counts; entered elsewhere, neither does.
    compare("copied", "btrfs-raid0", &*entered(&copy, 2), &[]);
    compare("copied", "btrfs-raid0", &*entered(&copy, 3), &[]);
    assert!(failing(&walk(&*entered(&copy, 0))).contains(&"stripes"));
    let older = Changed::superblock(&striped[2], |block| add(block, GENERATION, -1));
    let snapshot = [&striped[..], &[older]].concat();
    for by in 0..3 {
        compare(
            "with a snapshot",
            "btrfs-raid0",
            &*entered(&snapshot, by),
            &[],
        );
    }
}

#[test]
fn devices_of_two_histories_are_not_mixed() {
    let mut all = devices("btrfs-raid0", "abc");
    all[2] = Changed::superblock(&all[2], |block| add(block, ROOT, 1 << 14));
    let found = walk(&*entered(&all, 0));
    assert!(failing(&found).contains(&"stripes"));
    let mut different = differences(&golden_text("btrfs-raid0.btrfs-manifest"), found);
    different.retain(|line| !line.contains("found error:"));
    assert!(different.is_empty(), "{different:?}");
}

#[test]
fn features_that_are_not_read_are_refused_by_name() {
    let image = golden("btrfs");
    for (bit, name) in [
        (12, "zoned"),
        (13, "extent-tree-v2"),
        (14, "raid-stripe-tree"),
        (17, "remap-tree"),
        (40, "unknown features 0x10000000000"),
    ] {
        let image = Changed::superblock(&image, |block| add(block, INCOMPAT, 1 << bit));
        let Err(error) = disk(image).list().map(|_| ()) else {
            panic!("{name} is taken for something that is read");
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
    }
    // Simple quotas change nothing that is read.
    let image = Changed::superblock(&image, |block| add(block, INCOMPAT, 1 << 16));
    assert!(disk(image).list().is_ok());
}

/// A context with one more disk, which `open` opens.
fn with_another(own: &Disk, open: OpenDisk, pool: Arc<Pool>) -> Arc<dyn Directory> {
    let of_own = own.clone();
    let own: OpenDisk = Arc::new(move || Ok(of_own.clone()));
    let disks = vec![
        ("xvda".to_string(), own.clone()),
        ("xvdb".to_string(), open),
    ];
    let context = GuestContext {
        disks: disks.into(),
        pool,
        ..context()
    };
    disk_children(context, "xvda", own)
}

#[test]
fn a_file_system_on_one_device_costs_no_look_at_other_disks() {
    let other: OpenDisk = Arc::new(|| panic!("another disk is opened"));
    let root = with_another(&golden("btrfs"), other, Arc::default());
    assert!(root.list().is_ok());
    assert!(read(&*root, "one").is_ok());
}

#[test]
fn a_disk_that_fails_for_now_is_waited_for_and_one_that_is_gone_is_not() {
    let all = devices("btrfs-stale", "ab");
    // Without its newer half the older one would be shown.
    let newer = all[0].clone();
    let fails = Arc::new(AtomicBool::new(true));
    let still = fails.clone();
    let open: OpenDisk = Arc::new(move || match still.load(Ordering::Relaxed) {
        true => Err(Error::new(ErrorKind::Transient, "later")),
        false => Ok(newer.clone()),
    });
    let root = with_another(&all[1], open, Arc::default());
    let error = root.list().map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    fails.store(false, Ordering::Relaxed);
    compare("later", "btrfs-stale", &*root, &[]);
    let gone: OpenDisk = Arc::new(|| Err(Error::corrupt("gone")));
    let alone = with_another(&devices("btrfs-raid1", "b")[0], gone, Arc::default());
    compare("alone", "btrfs-raid1", &*alone, &[]);
}

/// The kernel knows files by numbers of the state that was opened first: an older one must not be shown under them.
#[test]
fn another_state_is_not_shown_in_place_of_one_that_was_open() {
    let all = devices("btrfs-stale", "ab");
    let newer = all[0].clone();
    let is_gone = Arc::new(AtomicBool::new(false));
    let now = is_gone.clone();
    let open: OpenDisk = Arc::new(move || match now.load(Ordering::Relaxed) {
        true => Err(Error::corrupt("gone")),
        false => Ok(newer.clone()),
    });
    let pool = Arc::new(Pool::default());
    let root = with_another(&all[1], open, pool.clone());
    let drop_all = || {
        std::thread::sleep(Duration::from_millis(20));
        pool.drop_idle(Duration::ZERO);
        assert_eq!(pool.open_count(), 0);
    };
    assert!(read(&*root, "new").is_ok());
    drop_all();
    is_gone.store(true, Ordering::Relaxed);
    let error = read(&*root, "in-place").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    is_gone.store(false, Ordering::Relaxed);
    assert_eq!(&read(&*root, "in-place").unwrap()[..10], b"since then");
}

/// A device that was removed while it was away still has its superblock; it leads to what there is now.
#[test]
fn a_device_that_is_no_member_any_more_adds_nothing() {
    let mut all = devices("btrfs-raid1", "ab");
    let stranger = Changed::superblock(&all[0], |block| {
        add(block, GENERATION, -3);
        add(block, 0xC9, 7); // Its number.
        block[0xC9 + 66..0xC9 + 82].fill(0x5A); // Its UUID.
    });
    all.push(stranger);
    for by in 0..3 {
        compare("with a stranger", "btrfs-raid1", &*entered(&all, by), &[]);
    }
}
