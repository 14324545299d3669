//! Chains drawn at random from a [`Shape`], for property tests, and long ones.

use std::ops::RangeInclusive;

use super::blocks::Bitmaps;
use super::chain::{Chain, Storage};
use super::rng::Rng;
use super::sparse::{Fill, SECTOR_BYTES, SparseDisk};
use super::vhd::{Creator, USUAL_BLOCK_BYTES};
use super::vhd_dir::Filter;

/// What random chains look like.
#[derive(Clone, Debug)]
pub struct Shape {
    pub layers: RangeInclusive<u64>,
    pub size_sectors: RangeInclusive<u64>,
    /// Let layers differ in size.
    pub resize: bool,
    pub block_sizes: Vec<u32>,
    pub storages: Vec<Storage>,
    /// Let layers have partial bitmaps, with garbage under the clear bits.
    pub partial_bitmaps: bool,
    /// Let files have blocks out of order, gaps, BAT at the end, batmaps, foreign creators, the
    /// hidden flag; let the oldest be a fixed disk.
    pub odd_files: bool,
    pub writes_per_layer: RangeInclusive<u64>,
    pub max_run_sectors: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            layers: 1..=6,
            size_sectors: 1..=4096,
            resize: true,
            block_sizes: vec![512, 4096, 65_536, 1 << 20, USUAL_BLOCK_BYTES],
            storages: vec![
                Storage::File,
                Storage::Dir(Filter::Absent),
                Storage::Dir(Filter::EmptyList),
                Storage::Dir(Filter::Gzip),
                Storage::Dir(Filter::Brotli),
            ],
            partial_bitmaps: true,
            odd_files: true,
            writes_per_layer: 0..=8,
            max_run_sectors: 300,
        }
    }
}

impl Chain {
    /// A chain drawn from `shape`.
    pub fn random(rng: &mut Rng, shape: &Shape) -> Self {
        let mut chain = Self::new();
        let mut size_sectors = rng.within(shape.size_sectors.clone());
        for _ in 0..rng.within(shape.layers.clone()) {
            if shape.resize && rng.chance(40) {
                size_sectors = rng.within(shape.size_sectors.clone());
            }
            let mut storage = *rng.pick(&shape.storages);
            if storage == Storage::File && chain.layers.is_empty() && shape.odd_files {
                storage = *rng.pick(&[Storage::File, Storage::File, Storage::Fixed]);
            }
            let block_size = *rng.pick(&shape.block_sizes);
            let bitmaps = match rng.below(3) {
                0 if shape.partial_bitmaps => Bitmaps::Partial,
                1 if shape.partial_bitmaps => Bitmaps::Mixed(rng.next_u64()),
                _ => Bitmaps::Full,
            };
            let odd_seed = (shape.odd_files && rng.chance(60)).then(|| rng.next_u64());
            let garbage_after_end = rng.chance(50);
            let writes = rng.within(shape.writes_per_layer.clone());
            let mut runs = SparseDisk::new();
            for _ in 0..writes {
                let start = rng.below(size_sectors);
                let longest = shape.max_run_sectors.min(size_sectors - start);
                let fill = match rng.below(8) {
                    0 => Fill::Zeros,
                    1 | 2 => Fill::Text(rng.next_u64()),
                    _ => Fill::Random(rng.next_u64()),
                };
                runs.write(start, 1 + rng.below(longest), fill);
            }
            let blocks = (size_sectors * SECTOR_BYTES).div_ceil(u64::from(block_size));
            let extra = (0..rng.below(3)).map(|_| rng.below(blocks)).collect();
            let layer = chain.push(rng, size_sectors * SECTOR_BYTES);
            layer
                .storage(storage)
                .block_size(block_size)
                .bitmaps(bitmaps);
            layer.garbage_after_end = garbage_after_end;
            layer.writes = runs;
            layer.extra_blocks = extra;
            if let Some(seed) = odd_seed {
                layer.file_tweak(move |spec| {
                    let creators = Creator::FOREIGN;
                    spec.footer.hidden = (seed >> 16) as u8 & 1;
                    let odd = spec.clone().odd_layout(seed);
                    *spec = odd.creator(creators[(seed >> 8) as usize % creators.len()]);
                });
            }
        }
        chain
    }

    /// A long chain: every layer rewrites a few sectors, all over the disk.
    pub fn long(rng: &mut Rng, layers: u64, size_bytes: u64, block_size: u32) -> Self {
        let mut chain = Self::new();
        for index in 0..layers {
            let layer = chain.push(rng, size_bytes);
            layer.block_size(block_size);
            layer.bitmaps(Bitmaps::Partial);
            // Garbage would have to be written; zeros are holes.
            layer.garbage_under_clear_bits = false;
            for _ in 0..3 {
                let sector = rng.below(layer.size_sectors());
                layer.write(sector, 1, Fill::Random(index));
            }
        }
        chain
    }
}

/// Chains that XO could merge: whole blocks, one block size.
pub fn mergeable(rng: &mut Rng, storage: Storage, layers: u64) -> Chain {
    let shape = Shape {
        layers: layers..=layers,
        size_sectors: 2000..=4096,
        resize: false,
        block_sizes: vec![65_536],
        storages: vec![storage],
        partial_bitmaps: false,
        odd_files: false,
        writes_per_layer: 2..=6,
        max_run_sectors: 400,
    };
    let mut chain = Chain::random(rng, &shape);
    for layer in &mut chain.layers {
        layer.garbage_after_end = false;
    }
    chain
}
