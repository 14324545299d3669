//! Damaged guest volumes give errors, never a panic that gets out, an endless loop, or unbounded memory.
//!
//! A fixed seed, a bounded number of rounds: bits are flipped in the blocks that are not empty, then the
//! tree is walked as far as it goes. `BRFS_ROUNDS=1000` makes more of it.

mod guest_support;
#[path = "../fuzz/src/guests.rs"]
mod guests;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use brfs::guestfs::disk::{OpenDisk, disk_children, lvm_root};
use brfs::io::ReadAt;
use guest_support::seal::{Resealed, sealed_blocks};
use guest_support::{context_of, golden};
use guests::{Damaged, interesting_blocks, look_at, visit};

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
fn damaged_xfs() {
    mutate_disk("xfs-dirty");
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
        let disks: Vec<_> = letters.chars().map(open).collect();
        let blocks: Vec<_> = disks.iter().map(|disk| sealed_blocks(&**disk)).collect();
        assert!(blocks.iter().all(|blocks| blocks.len() > 3), "{name}");
        let mut random = Random(0xB7F5 ^ name.len() as u64);
        for round in 0..rounds(50) {
            // The superblock and the chunk tree come first.
            let few = [3, 10, usize::MAX][round as usize % 3];
            let changed = disks.iter().zip(&blocks).map(|(disk, blocks)| {
                let count = blocks.len().min(few);
                let picked: Vec<_> = (0..6).map(|_| blocks[random.below(count)]).collect();
                Resealed::of(disk, &picked, |block| {
                    for _ in 0..1 + random.below(3) {
                        edit(block, &mut random);
                    }
                })
            });
            let changed: Vec<_> = changed.collect();
            let named = ["xvda", "xvdb", "xvdc", "xvdd"].into_iter();
            let context = context_of(named.zip(changed.iter().cloned()).collect());
            let own = changed[0].clone();
            let open: OpenDisk = Arc::new(move || Ok(own.clone()));
            let start = Instant::now();
            visit(&*disk_children(context, "xvda", open), &mut 100, 0);
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

/// Changes a bit, or a number to one that is large or next to nothing.
fn edit(block: &mut [u8], random: &mut Random) {
    let at = 32 + random.below(block.len() - 40);
    match random.below(3) {
        0 => block[at] ^= 1 << random.below(8),
        1 => block[at] = [0, 1, 2, 0x7F, 0xFF][random.below(5)],
        _ => {
            let value: u64 = [0, 1, 3, u64::MAX, u64::MAX >> 1, 1 << 40][random.below(6)];
            block[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[test]
fn damaged_ntfs() {
    mutate_disk("ntfs");
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
