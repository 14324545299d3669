//! Damaged guest volumes give errors, never a panic that gets out, an endless loop, or unbounded memory.
//!
//! A fixed seed, a bounded number of rounds: bits are flipped in the blocks that are not empty, then the
//! tree is walked as far as it goes. `BRFS_ROUNDS=1000` makes more of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::guest_support::seal::Set;
use crate::guest_support::{context_of, golden};
use crate::guests::{Damaged, interesting_blocks, look_at, look_at_all, visit};
use brfs::error::Result;
use brfs::io::ReadAt;
use brfs::views::guest::lvm_root;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}

fn rounds(default: u32) -> u32 {
    std::env::var("BRFS_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn mutate(name: &str, look: impl Fn(Arc<dyn ReadAt>)) {
    let base = golden(name);
    let blocks = interesting_blocks(&*base);
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ name.len() as u64);
    for round in 0..rounds(25) {
        let mut edits = Vec::new();
        for _ in 0..1 + random.below(40) {
            // Superblocks and what follows them more often than the rest.
            let block = match random.below(4) {
                0 => random.below(blocks.len().min(8)),
                _ => random.below(blocks.len()),
            };
            edits.extend((block as u16).to_le_bytes());
            edits.extend((random.below(4096) as u16).to_le_bytes());
            edits.push([1 << random.below(8), 0xFF, 0x80][random.below(3)]);
        }
        let start = Instant::now();
        look(Damaged::of(base.clone(), &blocks, &edits));
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(60),
            "{name}: round {round} took {took:?}"
        );
    }
}

fn mutate_disk(name: &str) {
    mutate(name, look_at);
}

#[test]
fn damaged_ext2() {
    mutate_disk("ext2-1k");
}

#[test]
fn damaged_ext4_with_inline_data() {
    mutate_disk("ext4-1k-inline");
}

#[test]
fn damaged_ext4_with_a_journal() {
    mutate_disk("ext4-dirty");
}

#[test]
fn damaged_ext4_with_fast_commits() {
    mutate_disk("ext4-fast-commit");
}

#[test]
fn damaged_xfs() {
    mutate_disk("xfs-dirty");
}

#[test]
fn damaged_xfs_4_with_a_log_of_small_inodes() {
    mutate_disk("xfs-4-power-cut");
}

#[test]
fn damaged_btrfs() {
    mutate_disk("btrfs");
}

#[test]
fn damaged_compressed_btrfs() {
    mutate_disk("btrfs-zstd");
}

/// Superblocks, chunks and all else that checksums cover, with checksums that hold.
#[test]
fn hostile_btrfs_over_several_devices() {
    let panics = panics_in("guestfs/btrfs");
    for (name, letters) in [
        ("btrfs-raid0", "abc"),
        ("btrfs-raid5", "abc"),
        ("btrfs-raid6", "abcd"),
        ("btrfs-reshaped", "cd"),
    ] {
        let open = |letter| golden(&format!("{name}-{letter}"));
        let set = Set::new(letters.chars().map(open).collect());
        assert!(set.blocks() > 20, "{name}");
        let mut random = Random(0xB7F5 ^ name.len() as u64);
        for round in 0..rounds(50) {
            // Superblocks and the tree of chunks come first.
            let few = [6, 30, set.blocks()][round as usize % 3];
            let mut changes = Vec::new();
            for _ in 0..1 + random.below(20) {
                changes.extend((random.below(few) as u16).to_le_bytes());
                changes.extend((random.next() as u32 >> 1).to_le_bytes());
            }
            let start = Instant::now();
            look_at_all(set.changed(&changes));
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(60),
                "{name}: round {round} took {took:?}"
            );
        }
    }
    let panics = panics.lock().unwrap();
    assert!(panics.is_empty(), "{panics:?}");
}

/// Collects where panics come from in these sources. Those in crates are caught; ours should not be.
fn panics_in(sources: &'static str) -> Arc<Mutex<Vec<String>>> {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let noted = panics.clone();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        match info.location() {
            Some(place) if place.file().contains(sources) => {
                noted.lock().unwrap().push(place.to_string());
            }
            _ => {}
        }
        usual(info);
    }));
    panics
}

/// Its parsers are all our own: nothing of them may panic.
fn mutate_ntfs(name: &str) {
    let panics = panics_in("guestfs/ntfs");
    mutate_disk(name);
    let panics = panics.lock().unwrap();
    assert!(panics.is_empty(), "{panics:?}");
}

#[test]
fn damaged_ntfs() {
    mutate_ntfs("ntfs");
}

#[test]
fn damaged_ntfs_with_files_compressed_by_the_system() {
    mutate_ntfs("ntfs-wof");
}

#[test]
fn damaged_ntfs_with_special_files() {
    mutate_ntfs("ntfs-special");
}

#[test]
fn damaged_ntfs_with_sectors_of_4096_bytes() {
    mutate_ntfs("ntfs-4kn");
}

#[test]
fn damaged_fat() {
    mutate_disk("fat32");
}

#[test]
fn damaged_exfat() {
    mutate_disk("exfat");
}

#[test]
fn damaged_iso_9660() {
    mutate_disk("iso");
}

#[test]
fn damaged_joliet() {
    mutate_disk("iso-joliet");
}

#[test]
fn damaged_squashfs() {
    for name in ["", "-xz", "-lzo", "-lz4", "-zstd"] {
        mutate_disk(&format!("squashfs{name}"));
    }
}

/// An image that counts what is read of it.
struct Counted(Arc<dyn ReadAt>, AtomicU64);

impl ReadAt for Counted {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buf, offset)
    }
}

/// Found by cargo-fuzz: each of hundreds of files unpacked the fragment block that they share, again and
/// again, only to find it damaged.
#[test]
fn a_damaged_fragment_is_not_unpacked_for_each_of_its_files() {
    let image = golden("squashfs-xz");
    let blocks = interesting_blocks(&*image);
    let counted = Arc::new(Counted(image, AtomicU64::new(0)));
    let input = [170, 0, 24, 15, 2];
    look_at(Damaged::of(counted.clone(), &blocks, &input));
    let read = counted.1.load(Ordering::Relaxed);
    assert!(read < 20 << 20, "{read} bytes were read");
}

#[test]
fn damaged_partition_table() {
    mutate_disk("partitioned");
}

#[test]
fn damaged_volume_group() {
    let second = golden("lvm-b");
    mutate("lvm-a", |first| {
        let disks = context_of(vec![("xvda", first), ("xvdb", second.clone())]);
        visit(&*lvm_root(disks), &mut 400, 0);
    });
}
