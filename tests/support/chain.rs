//! Chains of VHDs and their flat reference.
//!
//! A [`Chain`] is a list of layers, oldest first; each has its own size, block size, storage form
//! and sector writes. [`Chain::read`] says what a restore point must read as, computed from the
//! writes alone; [`Chain::write`] stores the chain the way XO lays it out in a VDI's directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blocks::{Bitmaps, LayerBlocks};
use super::dates::{SERIES_START_S, date_name};
use super::rng::{Rng, Uuid, uuid_text};
use super::sparse::{Fill, SECTOR_BYTES, SparseDisk};
use super::vhd::{Footer, USUAL_BLOCK_BYTES, disk_type};
use super::vhd_dir::{Filter, VhdDirSpec, WrittenVhdDir, write_alias};
use super::vhd_file::{FooterState, VhdFileSpec, WrittenVhdFile, write_fixed};

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Fixed disk file; only sensible for the oldest layer.
    Fixed,
    File,
    Dir(Filter),
}

type Tweak<T> = Option<Arc<dyn Fn(&mut T) + Send + Sync>>;

/// One VHD of a chain.
#[derive(Clone)]
pub struct Layer {
    /// XO's file name without extension, `20260301T013000Z`.
    pub name: String,
    pub unique_id: Uuid,
    pub size_bytes: u64,
    pub block_size: u32,
    pub storage: Storage,
    pub bitmaps: Bitmaps,
    pub garbage_under_clear_bits: bool,
    pub garbage_after_end: bool,
    /// Blocks stored although nothing was written to them.
    pub extra_blocks: Vec<u64>,
    pub writes: SparseDisk,
    /// Last word on the file's structures before it is written.
    pub file_tweak: Tweak<VhdFileSpec>,
    /// Last word on the directory's structures before it is written.
    pub dir_tweak: Tweak<VhdDirSpec>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer")
            .field("name", &self.name)
            .field("uuid", &uuid_text(&self.unique_id))
            .field("size_bytes", &self.size_bytes)
            .field("block_size", &self.block_size)
            .field("storage", &self.storage)
            .field("bitmaps", &self.bitmaps)
            .field("writes", &self.writes)
            .finish_non_exhaustive()
    }
}

impl Layer {
    pub fn size_sectors(&self) -> u64 {
        self.size_bytes / SECTOR_BYTES
    }

    pub fn write(&mut self, sector: u64, sectors: u64, fill: Fill) -> &mut Self {
        assert!(sector + sectors <= self.size_sectors(), "outside the disk");
        self.writes.write(sector, sectors, fill);
        self
    }

    pub fn storage(&mut self, storage: Storage) -> &mut Self {
        self.storage = storage;
        self
    }

    pub fn block_size(&mut self, block_size: u32) -> &mut Self {
        self.block_size = block_size;
        self
    }

    pub fn bitmaps(&mut self, bitmaps: Bitmaps) -> &mut Self {
        self.bitmaps = bitmaps;
        self
    }

    pub fn file_tweak(
        &mut self,
        f: impl Fn(&mut VhdFileSpec) + Send + Sync + 'static,
    ) -> &mut Self {
        self.file_tweak = Some(Arc::new(f));
        self
    }

    pub fn dir_tweak(&mut self, f: impl Fn(&mut VhdDirSpec) + Send + Sync + 'static) -> &mut Self {
        self.dir_tweak = Some(Arc::new(f));
        self
    }

    /// File name that metadata and children use for this layer.
    pub fn head_name(&self) -> String {
        match self.storage {
            Storage::Fixed | Storage::File => format!("{}.vhd", self.name),
            Storage::Dir(_) => format!("{}.alias.vhd", self.name),
        }
    }
}

/// Layers of one virtual disk, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub layers: Vec<Layer>,
}

/// A stored layer.
#[derive(Clone, Debug)]
pub struct WrittenLayer {
    /// `<date>.vhd` or `<date>.alias.vhd`: what metadata points to.
    pub head: PathBuf,
    pub stored: Stored,
}

#[derive(Clone, Debug)]
pub enum Stored {
    File(WrittenVhdFile),
    Dir(WrittenVhdDir),
}

impl WrittenLayer {
    /// The VHD file itself, or the directory behind the alias.
    pub fn data(&self) -> &Path {
        match &self.stored {
            Stored::File(file) => &file.path,
            Stored::Dir(dir) => &dir.path,
        }
    }

    pub fn file(&self) -> &WrittenVhdFile {
        match &self.stored {
            Stored::File(file) => file,
            Stored::Dir(dir) => panic!("{} is a directory", dir.path.display()),
        }
    }

    pub fn dir(&self) -> &WrittenVhdDir {
        match &self.stored {
            Stored::Dir(dir) => dir,
            Stored::File(file) => panic!("{} is a file", file.path.display()),
        }
    }
}

/// Where [`Chain::write`] put everything.
#[derive(Clone, Debug)]
pub struct WrittenChain {
    pub vdi_dir: PathBuf,
    pub layers: Vec<WrittenLayer>,
}

impl WrittenChain {
    /// The youngest layer's `<date>.vhd` or `<date>.alias.vhd`.
    pub fn youngest(&self) -> &Path {
        &self.layers.last().expect("an empty chain").head
    }
}

impl Chain {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer on top: named one hour after the previous one, 2 MiB blocks, a VHD file.
    pub fn push(&mut self, rng: &mut Rng, size_bytes: u64) -> &mut Layer {
        assert_eq!(size_bytes % SECTOR_BYTES, 0, "whole sectors only");
        let hour = self.layers.len() as u64;
        self.layers.push(Layer {
            name: date_name(SERIES_START_S + 3600 * hour),
            unique_id: rng.uuid(),
            size_bytes,
            block_size: USUAL_BLOCK_BYTES,
            storage: Storage::File,
            bitmaps: Bitmaps::Full,
            garbage_under_clear_bits: true,
            garbage_after_end: false,
            extra_blocks: Vec::new(),
            writes: SparseDisk::new(),
            file_tweak: None,
            dir_tweak: None,
        });
        self.layers.last_mut().unwrap()
    }

    /// Names the layers anew, as backups taken every `step_s` seconds from `start_s` on.
    pub fn date_from(&mut self, start_s: u64, step_s: u64) -> &mut Self {
        for (layer, number) in self.layers.iter_mut().zip(0..) {
            layer.name = date_name(start_s + step_s * number);
        }
        self
    }

    /// Virtual size of a restore point: that of its own layer.
    pub fn size_bytes(&self, layer: usize) -> u64 {
        self.layers[layer].size_bytes
    }

    /// What the restore point of `layer` must read as; past the disk's end the result is shorter.
    pub fn read(&self, layer: usize, offset: u64, len: usize) -> Vec<u8> {
        let end = offset
            .saturating_add(len as u64)
            .min(self.size_bytes(layer));
        if offset >= end {
            return Vec::new();
        }
        let first = offset / SECTOR_BYTES;
        let sectors = end.div_ceil(SECTOR_BYTES) - first;
        let mut bytes = vec![0; (sectors * SECTOR_BYTES) as usize];
        self.read_sectors(layer, first, &mut bytes);
        let from = (offset - first * SECTOR_BYTES) as usize;
        bytes[from..from + (end - offset) as usize].to_vec()
    }

    /// The same for whole sectors. Past the end of any layer, what lies below it is not seen.
    pub fn read_sectors(&self, layer: usize, first: u64, out: &mut [u8]) {
        out.fill(0);
        let wanted = out.len() as u64 / SECTOR_BYTES;
        for below in &self.layers[..=layer] {
            below.writes.paint(first, out);
            let inside = below.size_sectors().saturating_sub(first).min(wanted);
            out[(inside * SECTOR_BYTES) as usize..].fill(0);
        }
    }

    /// Sector ranges (first, end) of `layer` that can hold anything but zeros; all else is holes.
    pub fn data_ranges(&self, layer: usize) -> Vec<(u64, u64)> {
        let mut visible = SparseDisk::new();
        for below in &self.layers[..=layer] {
            for run in below.writes.runs() {
                if matches!(run.fill, Fill::Zeros) {
                    visible.forget(run.first_sector, run.end_sector);
                } else {
                    let sectors = run.end_sector - run.first_sector;
                    visible.write(run.first_sector, sectors, run.fill.clone());
                }
            }
            visible.forget(below.size_sectors(), u64::MAX);
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for run in visible.runs() {
            match ranges.last_mut() {
                Some((_, end)) if *end == run.first_sector => *end = run.end_sector,
                _ => ranges.push((run.first_sector, run.end_sector)),
            }
        }
        ranges
    }

    /// Writes all layers below `vdi_dir`, as `<date>.vhd`, or `<date>.alias.vhd` with
    /// `data/<date>.vhd/`.
    pub fn write(&self, vdi_dir: &Path) -> WrittenChain {
        let layers = (0..self.layers.len())
            .map(|index| self.write_layer(index, vdi_dir))
            .collect();
        WrittenChain {
            vdi_dir: vdi_dir.to_owned(),
            layers,
        }
    }

    /// Writes one layer; its parent need not be there.
    pub fn write_layer(&self, index: usize, vdi_dir: &Path) -> WrittenLayer {
        let layer = &self.layers[index];
        let head = vdi_dir.join(layer.head_name());
        let below = |sector: u64, out: &mut [u8]| match index.checked_sub(1) {
            Some(parent) => self.read_sectors(parent, sector, out),
            None => out.fill(0),
        };
        let blocks = LayerBlocks {
            writes: &layer.writes,
            below: Some(&below),
            block_size: layer.block_size,
            disk_sectors: layer.size_sectors(),
            bitmaps: layer.bitmaps,
            garbage_under_clear_bits: layer.garbage_under_clear_bits,
            garbage_after_end: layer.garbage_after_end,
            extra_blocks: &layer.extra_blocks,
        };
        let (size, block_size, id) = (layer.size_bytes, layer.block_size, layer.unique_id);
        let parent = index.checked_sub(1).map(|parent| &self.layers[parent]);
        let stored = match layer.storage {
            Storage::Fixed => {
                assert_eq!(index, 0, "a fixed disk has no parent");
                let footer = Footer::new(disk_type::FIXED, size, id);
                Stored::File(write_fixed(
                    &head,
                    &footer,
                    FooterState::Good,
                    &layer.writes,
                ))
            }
            Storage::File => {
                let mut spec = match parent {
                    None => VhdFileSpec::dynamic(size, block_size, id),
                    Some(parent) => {
                        let name = parent.head_name();
                        VhdFileSpec::differencing(size, block_size, id, parent.unique_id, &name)
                    }
                };
                if let Some(tweak) = &layer.file_tweak {
                    tweak(&mut spec);
                }
                Stored::File(spec.write(&head, &blocks))
            }
            Storage::Dir(filter) => {
                let mut spec = match parent {
                    None => VhdDirSpec::dynamic(size, block_size, id, filter),
                    Some(parent) => {
                        let (parent_id, name) = (parent.unique_id, parent.head_name());
                        VhdDirSpec::differencing(size, block_size, id, filter, parent_id, &name)
                    }
                };
                if let Some(tweak) = &layer.dir_tweak {
                    tweak(&mut spec);
                }
                let target = format!("data/{}.vhd", layer.name);
                write_alias(&head, &target);
                Stored::Dir(spec.write(&vdi_dir.join(target), &blocks))
            }
        };
        WrittenLayer { head, stored }
    }
}
