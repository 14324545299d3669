//! Damaged guest volumes give errors, never a panic that gets out, an endless loop, or unbounded memory.
//!
//! A fixed seed, a bounded number of rounds: bits are flipped in the blocks that are not empty, then the
//! tree is walked as far as it goes. `BRFS_ROUNDS=1000` makes more of it.

mod guest_support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brfs::error::Result;
use brfs::guestfs::disk::{OpenDisk, lvm_root};
use brfs::io::{Chunk, ReadAt};
use brfs::tree::{Directory, Node};
use guest_support::{context, disk, golden};

/// An image with some bytes changed.
struct Damaged {
    base: Arc<dyn ReadAt>,
    edits: HashMap<u64, u8>,
}

impl ReadAt for Damaged {
    fn len_bytes(&self) -> u64 {
        self.base.len_bytes()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.base.read_exact_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        for (&at, &mask) in &self.edits {
            if (offset..end).contains(&at) {
                buf[(at - offset) as usize] ^= mask;
            }
        }
        Ok(())
    }
}

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

/// The blocks of 4 KiB that hold anything but zeros, and little noise: where metadata is.
fn interesting_blocks(image: &dyn ReadAt) -> Vec<u64> {
    let mut found = Vec::new();
    let mut block = [0; 4096];
    for number in 0..image.len_bytes() / 4096 {
        image.read_exact_at(&mut block, number * 4096).unwrap();
        let zeros = block.iter().filter(|&&b| b == 0).count();
        if (400..4096).contains(&zeros) {
            found.push(number);
        }
    }
    found
}

/// Walks what can be walked: at most so many nodes, the first bytes of each file.
fn visit(dir: &dyn Directory, left: &mut u32, depth: u32) {
    let Ok(mut stream) = dir.list() else {
        return;
    };
    let mut buf = vec![0; 64 << 10];
    while let Ok(Some(entry)) = stream.next_entry() {
        if *left == 0 || depth > 60 {
            return;
        }
        *left -= 1;
        assert!(!entry.name.is_empty() && entry.name.len() <= 255);
        let Ok(Some(node)) = dir.lookup(&entry.name) else {
            continue;
        };
        let _ = node.base().attr();
        let _ = node.base().xattr_names();
        match &node {
            Node::Dir(sub) => visit(&**sub, left, depth + 1),
            Node::Leaf(leaf) => drop(leaf.target()),
            Node::File(file) => {
                let (Ok(open), Ok(attr)) = (file.open(), file.attr()) else {
                    continue;
                };
                for offset in [0, attr.size_bytes / 2, attr.size_bytes.saturating_sub(5000)] {
                    if let Ok(Chunk::Filled(n)) = open.read(offset, buf.len(), &mut buf) {
                        assert!(offset + n as u64 <= attr.size_bytes.max(offset));
                    }
                }
                if attr.size_bytes > 0 {
                    let _ = open.extent_at(attr.size_bytes / 3);
                }
            }
        }
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
        let mut edits = HashMap::new();
        for _ in 0..1 + random.below(40) {
            // Superblocks and what follows them more often than the rest.
            let block = match random.below(4) {
                0 => blocks[random.below(blocks.len().min(8))],
                _ => blocks[random.below(blocks.len())],
            };
            let at = block * 4096 + random.below(4096) as u64;
            let mask = [1 << random.below(8), 0xFF, 0x80][random.below(3)];
            edits.insert(at, mask);
        }
        let start = Instant::now();
        look(Arc::new(Damaged {
            base: base.clone(),
            edits,
        }));
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(60),
            "{name}: round {round} took {took:?}"
        );
    }
}

fn mutate_disk(name: &str) {
    mutate(name, |image| visit(&*disk(image), &mut 400, 0));
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
fn damaged_partition_table() {
    mutate_disk("partitioned");
}

#[test]
fn damaged_volume_group() {
    let second = golden("lvm-b");
    mutate("lvm-a", |first| {
        let second = second.clone();
        let disks: Vec<(String, OpenDisk)> = vec![
            ("xvda".into(), Arc::new(move || Ok(first.clone()))),
            ("xvdb".into(), Arc::new(move || Ok(second.clone()))),
        ];
        visit(&*lvm_root(context(), disks), &mut 400, 0);
    });
}
