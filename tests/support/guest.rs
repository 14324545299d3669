//! Disks with a real ext4 file system on them, made by `mkfs.ext4`, backed up three times.
//!
//! The images that `mkfs` made stay there as the flat reference.

use std::fs;
use std::path::{Path, PathBuf};

use super::chain::{Chain, Storage};
use super::mountpoint::sh;
use super::repo::Vm;
use super::rng::Rng;

/// Size of the disks: not a whole number of blocks.
pub const SIZE: u64 = (128 << 20) + 1536;
/// Where the file system begins.
pub const OFFSET: u64 = 1 << 20;
/// Restore points.
pub const POINTS: usize = 3;

/// A repository with one VM; each of its disks has the same content, stored in another way.
pub struct Guest {
    pub repository: PathBuf,
    /// Date names, oldest first.
    pub dates: Vec<String>,
    /// What every disk must be at each restore point.
    pub images: Vec<PathBuf>,
    /// The files in its file system at each restore point.
    pub trees: Vec<PathBuf>,
}

/// Builds it below `scratch`: disk n is stored as `storages[n]` says.
pub fn build(scratch: &Path, storages: &[Storage]) -> Guest {
    let mut rng = Rng::new(0x677565);
    let mut chains = vec![Chain::new(); storages.len()];
    let (mut images, mut trees) = (Vec::new(), Vec::new());
    let mut before = vec![0; SIZE as usize];
    for point in 0..POINTS {
        let tree = scratch.join(format!("tree{point}"));
        match trees.last() {
            None => fs::create_dir_all(tree.join("etc")).unwrap(),
            Some(last) => drop(sh(&format!("cp -a {last:?} {tree:?}"))),
        }
        fs::write(tree.join("etc/point"), format!("{point}\n")).unwrap();
        let mut noise = vec![0; 1_500_000];
        rng.fill(&mut noise);
        fs::write(tree.join(format!("noise{point} α.bin")), noise).unwrap();
        let image = scratch.join(format!("image{point}.raw"));
        let blocks = (SIZE - OFFSET) / 4096;
        sh(&format!(
            "truncate -s {SIZE} {image:?}
             PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -b 4096 -m 0 -d {tree:?} \
                 -U 11111111-2222-4333-8444-555555555555 \
                 -E offset={OFFSET},hash_seed=11111111-2222-4333-8444-555555555555 \
                 {image:?} {blocks} 2>&1"
        ));
        let now = fs::read(&image).unwrap();
        let pieces: Vec<usize> = (0..now.len()).step_by(65536).collect();
        for (chain, storage) in chains.iter_mut().zip(storages) {
            let layer = chain.push(&mut rng, SIZE).storage(*storage);
            for &at in &pieces {
                let end = now.len().min(at + 65536);
                if now[at..end] != before[at..end] {
                    layer.writes.write_bytes(at as u64 / 512, &now[at..end]);
                }
            }
        }
        before = now;
        images.push(image);
        trees.push(tree);
    }
    let dates = chains[0].layers.iter().map(|l| l.name.clone()).collect();
    let mut vm = Vm::new(&mut rng, "guest");
    for chain in chains {
        vm.disk(&mut rng, "disk", chain);
    }
    let repository = scratch.join("repository");
    vm.write(&repository);
    Guest {
        repository,
        dates,
        images,
        trees,
    }
}

/// A repository of a guest with these disks; also its restore point's date.
pub fn write_repository(dir: &Path, disks: &[&[u8]]) -> String {
    let mut rng = Rng::new(0xD15C);
    let mut vm = Vm::new(&mut rng, "guest");
    let mut date = String::new();
    for bytes in disks {
        let mut chain = Chain::new();
        let layer = chain.push(&mut rng, bytes.len() as u64);
        for (piece, at) in bytes.chunks(4096).zip((0u64..).step_by(8)) {
            if piece.iter().any(|&byte| byte != 0) {
                layer.writes.write_bytes(at, piece);
            }
        }
        date.clone_from(&layer.name);
        vm.disk(&mut rng, "disk", chain);
    }
    vm.write(dir);
    date
}
