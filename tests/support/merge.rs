//! Interrupted (and finished) merges, made from a finished chain by doing what XO does, up to a
//! point.
//!
//! XO merges the layers `parent + 1 ..= child` into `parent`: block by block, the topmost of them
//! wins; then the parent gets the child's size and uuid; then it takes the child's place. Restore
//! points of `child` and younger layers must read the same in every state; those of `parent` up to
//! the one before `child` are gone (their metadata was removed before the merge began).
//!
//! Preconditions, because XO moves whole blocks: bitmaps are full, one block size, and no garbage
//! after the parent's end. A merge makes the parent as large as the child, so the parent must not
//! be smaller than what it differs from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::blocks::{Bitmaps, bitmap_bytes};
use super::chain::{Chain, Storage, Stored, WrittenChain};
use super::files::write_file;
use super::merge_file::ParentFile;
use super::repo::Vm;
use super::rng::uuid_text;
use super::sparse::SECTOR_BYTES;
use super::vhd::{FOOTER_BYTES, Footer, HEADER_BYTES, Header};
use super::vhd_dir::{BatLength, Filter, bat_bits, block_path, write_alias};

/// How far the last phase of a merge went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cleanup {
    /// The parent carries the child's uuid; all files are still there.
    UuidWritten,
    /// The layers between parent and child are gone.
    MiddleRemoved,
    /// Older XO: the child is gone, the parent does not have its name yet.
    ChildRemoved,
    /// Aliases only, newer XO: the child's alias points to the parent's data.
    AliasRewritten,
    /// Aliases only, newer XO: the child's own data is gone as well.
    OldDataRemoved,
    /// The parent stands under the child's name; only the state file is left over.
    Renamed,
    /// All done.
    Finished,
}

impl Cleanup {
    pub const ALL: [Self; 7] = [
        Self::UuidWritten,
        Self::MiddleRemoved,
        Self::ChildRemoved,
        Self::AliasRewritten,
        Self::OldDataRemoved,
        Self::Renamed,
        Self::Finished,
    ];

    /// Whether this stage exists for chains of VHD files.
    pub fn applies_to_files(self) -> bool {
        !matches!(self, Self::AliasRewritten | Self::OldDataRemoved)
    }
}

/// How the state file names its VHDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateStyle {
    /// `{"uuid": "…"}`
    Uuid,
    /// `{"header": <checksum>}`, as older versions did.
    HeaderChecksum,
}

/// One merge under way.
pub struct Merge<'a> {
    chain: &'a Chain,
    written: &'a WrittenChain,
    /// Index of the layer that is merged into.
    pub parent: usize,
    /// Index of the youngest merged layer.
    pub child: usize,
    pub style: StateStyle,
    /// Move blocks between directories without a look at their compression, as XO does since 6.2.
    pub keep_filters: bool,
    /// Name of the last step: `cleanup`, in older versions `cleanupVhds`.
    pub cleanup_step: &'static str,
}

impl<'a> Merge<'a> {
    pub fn new(chain: &'a Chain, written: &'a WrittenChain, parent: usize, child: usize) -> Self {
        assert!(parent < child && child < chain.layers.len());
        for layer in &chain.layers[parent..=child] {
            assert_eq!(layer.bitmaps, Bitmaps::Full, "XO moves whole blocks");
            assert_eq!(layer.block_size, chain.layers[child].block_size);
            assert_ne!(layer.storage, Storage::Fixed);
        }
        assert!(!chain.layers[parent].garbage_after_end);
        Self {
            chain,
            written,
            parent,
            child,
            style: StateStyle::Uuid,
            keep_filters: false,
            cleanup_step: "cleanup",
        }
    }

    /// Block numbers that the merge touches, in XO's order, each with the layer that has it.
    pub fn blocks(&self) -> BTreeMap<u64, usize> {
        let mut blocks = BTreeMap::new();
        for layer in self.parent + 1..=self.child {
            let numbers: Vec<u64> = match &self.written.layers[layer].stored {
                Stored::File(file) => file.blocks.keys().copied().collect(),
                Stored::Dir(dir) => dir.blocks.clone(),
            };
            blocks.extend(numbers.into_iter().map(|number| (number, layer)));
        }
        blocks
    }

    /// Merges the first `count` blocks.
    pub fn merge_first(&self, count: usize) {
        let numbers: Vec<u64> = self.blocks().into_keys().take(count).collect();
        self.merge_blocks(&numbers);
    }

    /// Merges these blocks: moved between directories (see `keep_filters`), copied otherwise.
    ///
    /// XO works on several blocks at a time, and its state file lags behind: blocks beyond
    /// `currentBlock` can be moved already.
    pub fn merge_blocks(&self, numbers: &[u64]) {
        let from = self.blocks();
        match &self.written.layers[self.parent].stored {
            Stored::Dir(parent) => {
                for number in numbers {
                    let to = block_path(&parent.path, *number);
                    self.merge_object(*number, from[number], parent.filter, to);
                }
            }
            Stored::File(parent) => {
                let mut file = ParentFile::open(parent.path.clone());
                let entries = self.chain.layers[self.child].size_bytes;
                let block_size = u64::from(self.chain.layers[self.child].block_size);
                file.ensure_bat_size(entries.div_ceil(block_size) as u32);
                for number in numbers {
                    file.write_block(*number, &self.block_bytes(*number, from[number]));
                }
            }
        }
    }

    fn merge_object(&self, number: u64, layer: usize, filter: Filter, to: PathBuf) {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        match &self.written.layers[layer].stored {
            Stored::Dir(child) if self.keep_filters || child.filter.encodes_like(filter) => {
                let from = child.block_path(number);
                // Done by an earlier call: merging again is what a resumed merge does.
                if from.exists() {
                    fs::rename(from, to).unwrap();
                }
            }
            _ => write_file(&to, &filter.encode(&self.block_bytes(number, layer))),
        }
    }

    /// Bitmap and data of a whole block as this layer has it.
    fn block_bytes(&self, number: u64, layer: usize) -> Vec<u8> {
        let block_size = self.chain.layers[layer].block_size;
        let sectors = u64::from(block_size) / SECTOR_BYTES;
        let bitmap = bitmap_bytes(block_size) as usize;
        let mut bytes = vec![0xff; bitmap + block_size as usize];
        self.chain
            .read_sectors(layer, number * sectors, &mut bytes[bitmap..]);
        bytes
    }

    /// Path of the state file.
    pub fn state_path(&self) -> PathBuf {
        let parent = self.chain.layers[self.parent].head_name();
        self.written.vdi_dir.join(format!(".{parent}.merge.json"))
    }

    /// Writes the state file; `current_block` is a number, null or negative.
    pub fn write_state(&self, step: &str, current_block: Value) {
        let identity = |layer: usize| match self.style {
            StateStyle::Uuid => json!({"uuid": uuid_text(&self.chain.layers[layer].unique_id)}),
            StateStyle::HeaderChecksum => {
                let header = self.stored_header(layer).to_bytes();
                json!({"header": u32::from_be_bytes(header[36..40].try_into().unwrap())})
            }
        };
        let names: Vec<String> = self.chain.layers[self.parent..=self.child]
            .iter()
            .map(|layer| layer.head_name())
            .collect();
        let block_size = u64::from(self.chain.layers[self.child].block_size);
        let state = json!({
            "child": identity(self.child),
            "parent": identity(self.parent),
            "chain": names,
            "currentBlock": current_block,
            "mergedDataSize": self.blocks().len() as u64 * block_size,
            "step": step,
            "diskSize": 0,
        });
        write_file(&self.state_path(), state.to_string().as_bytes());
    }

    /// Killed in step `mergeBlocks` after `count` blocks.
    pub fn interrupt_after_blocks(&self, count: usize) {
        self.merge_first(count);
        // The number before the last merged block: XO's state lags, as said above.
        let last = self.blocks().into_keys().take(count).next_back();
        let current = last.unwrap_or(0).saturating_sub(1);
        self.write_state("mergeBlocks", json!(current));
    }

    /// Killed in step `cleanup` (or finished), all blocks being merged.
    pub fn interrupt_in_cleanup(&self, stage: Cleanup) {
        // The state names the uuids that were there when the merge began.
        self.write_state(self.cleanup_step, json!(self.blocks().len()));
        self.merge_first(usize::MAX);
        self.take_over_identity();
        let state = fs::read(self.state_path()).unwrap();
        self.clean_up(stage);
        if stage != Cleanup::Finished {
            write_file(&self.state_path(), &state);
        }
    }

    /// The parent becomes what the child was: size, geometry, timestamp, uuid.
    fn take_over_identity(&self) {
        let child = self.stored_footer(self.child);
        let mut footer = self.stored_footer(self.parent);
        footer.original_size = child.original_size;
        footer.current_size = child.current_size;
        footer.geometry = child.geometry;
        footer.timestamp = child.timestamp;
        footer.unique_id = child.unique_id;
        match &self.written.layers[self.parent].stored {
            Stored::File(parent) => ParentFile::open(parent.path.clone()).write_footers(&footer),
            Stored::Dir(parent) => {
                // XO leaves maxTableEntries of a directory as it was, even if the disk grew.
                let header = self.stored_header(self.parent);
                let mut numbers = parent.blocks.clone();
                numbers.extend(self.blocks().into_keys());
                let length = BatLength::EightTimes;
                let bat = bat_bits(&numbers, header.max_table_entries, length);
                write_file(&parent.path.join("bat"), &parent.filter.encode(&bat));
                let footer = parent.filter.encode(&footer.to_bytes());
                write_file(&parent.path.join("footer"), &footer);
            }
        }
    }

    fn clean_up(&self, stage: Cleanup) {
        let parent = &self.written.layers[self.parent];
        let child = &self.written.layers[self.child];
        let is_directory = matches!(parent.stored, Stored::Dir(_));
        assert!(
            is_directory == matches!(child.stored, Stored::Dir(_)) || stage < Cleanup::ChildRemoved,
            "a file cannot take an alias's place"
        );
        if stage >= Cleanup::MiddleRemoved {
            for layer in self.parent + 1..self.child {
                self.remove(layer);
            }
        }
        match stage {
            Cleanup::UuidWritten | Cleanup::MiddleRemoved => {}
            Cleanup::ChildRemoved => self.remove(self.child),
            Cleanup::AliasRewritten | Cleanup::OldDataRemoved => {
                assert!(is_directory);
                let name = &self.chain.layers[self.parent].name;
                write_alias(&child.head, &format!("data/{name}.vhd"));
                if stage == Cleanup::OldDataRemoved {
                    fs::remove_dir_all(child.data()).unwrap();
                }
            }
            Cleanup::Renamed | Cleanup::Finished => {
                self.remove(self.child);
                fs::rename(&parent.head, &child.head).unwrap();
            }
        }
        if stage == Cleanup::Finished {
            fs::remove_file(self.state_path()).unwrap();
        }
    }

    fn remove(&self, layer: usize) {
        let layer = &self.written.layers[layer];
        fs::remove_file(&layer.head).unwrap();
        if let Stored::Dir(dir) = &layer.stored {
            fs::remove_dir_all(&dir.path).unwrap();
        }
    }

    fn stored_footer(&self, layer: usize) -> Footer {
        Footer::from_bytes(&self.stored_part(layer, "footer", 0, FOOTER_BYTES))
    }

    fn stored_header(&self, layer: usize) -> Header {
        Header::from_bytes(&self.stored_part(layer, "header", FOOTER_BYTES, HEADER_BYTES))
    }

    fn stored_part(&self, layer: usize, part: &str, offset: usize, len: usize) -> Vec<u8> {
        match &self.written.layers[layer].stored {
            Stored::File(file) => {
                let mut bytes = vec![0; len];
                let file = File::open(&file.path).unwrap();
                file.read_exact_at(&mut bytes, offset as u64).unwrap();
                bytes
            }
            Stored::Dir(dir) => dir.filter.decode(&fs::read(dir.path.join(part)).unwrap()),
        }
    }
}

/// Removes the metadata of a disk's layers `range`, as XO does before it merges them away.
///
/// Only makes sense where the VM's other disks have no layer of these dates, or are merged as well.
pub fn forget_points(
    vm: &Vm,
    vm_dir: &std::path::Path,
    disk: usize,
    range: std::ops::Range<usize>,
) {
    for layer in &vm.disks[disk].chain.layers[range] {
        fs::remove_file(vm_dir.join(format!("{}.json", layer.name))).unwrap();
    }
}
