//! Repositories of one VM with one disk, half text, half incompressible.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::chain::{Chain, Layer, Storage};
use crate::support::repo::Vm;
use crate::support::rng::{Rng, mix};
use crate::support::sparse::Fill;

pub const BLOCK: u64 = 2 << 20;
const SECTORS: u64 = BLOCK / 512;

/// Fills a block: pieces of 256 KiB, text and incompressible in turns.
fn fill(layer: &mut Layer, block: u64, seed: u64) {
    let piece = SECTORS / 8;
    for n in 0..8 {
        let seed = mix(seed ^ block << 8 ^ n);
        let content = if n % 2 == 0 {
            Fill::Text(seed)
        } else {
            Fill::Random(seed)
        };
        layer.write(block * SECTORS + n * piece, piece, content);
    }
}

/// A chain of `len` images over a disk of `size` bytes, whose base holds the `blocks` (an iterator);
/// the layers above share a third of them among themselves.
pub fn chain(
    len: usize,
    storage: Storage,
    size: u64,
    blocks: impl Iterator<Item = u64> + Clone,
) -> Chain {
    let mut rng = Rng::new(0x6265_6e63);
    let mut chain = Chain::new();
    for level in 0..len as u64 {
        let layer = chain.push(&mut rng, size);
        layer.storage(storage);
        for block in blocks.clone() {
            let owner = mix(block) % (3 * (len as u64 - 1).max(1));
            if level == 0 || owner + 1 == level {
                fill(layer, block, level);
            }
        }
    }
    chain
}

/// Writes the chain as the disk of the only VM of a repository; gives the files of its images.
pub fn write(repository: &Path, chain: Chain) -> PathBuf {
    let mut rng = Rng::new(7);
    let mut vm = Vm::new(&mut rng, "bench");
    vm.disk(&mut rng, "disk", chain);
    let written = vm.write(repository);
    let images = written.chains[0].vdi_dir.clone();
    settle(&images);
    images
}

/// The disk as a flat file.
pub fn write_flat(path: &Path, chain: &Chain) {
    let newest = chain.layers.len() - 1;
    let mut file = File::create(path).expect("create");
    let mut at = 0;
    while at < chain.size_bytes(newest) {
        let bytes = chain.read(newest, at, 4 << 20);
        file.write_all(&bytes).expect("write");
        at += bytes.len() as u64;
    }
}

/// Makes files look as if nobody had written to them for an hour, as backups are; blocks were written
/// before the parts that tell of them.
fn settle(path: &Path) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("list") {
            settle(&entry.expect("entry").path());
        }
    } else {
        let file = File::options().write(true).open(path).expect("open");
        let is_block = path.components().any(|part| part.as_os_str() == "blocks");
        let age = Duration::from_secs(if is_block { 7200 } else { 3600 });
        file.set_modified(SystemTime::now() - age)
            .expect("set time");
    }
}
