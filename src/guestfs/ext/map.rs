//! Where the blocks of an ext2/3/4 inode are: extent trees and old block maps.
//!
//! `rust-fs-ext4` maps one block at a time and says nothing about the length of a hole. Large and
//! sparse files need whole runs, so the two kinds of map are walked here; the crate still parses the
//! entries, verifies checksums and reads blocks (also those its journal replay holds).

use std::sync::Arc;

use fs_ext4::Filesystem;
use fs_ext4::extent::{EXT4_EXT_MAX_DEPTH, Extent, ExtentHeader, ExtentIdx};
use fs_ext4::inode::Inode;

use super::error::from_ext;
use super::journal::changes::Ranges;
use crate::error::{Error, Result};
use crate::guestfs::common::run_file::{Run, RunMap};

const ENTRY_BYTES: usize = 12;
const DIRECT_POINTERS: u64 = 12;

/// A run of blocks: `physical` is the volume's block, `None` for a hole; `end` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// The block that holds the one asked for.
    pub physical: Option<u64>,
    /// First block of the file after the run.
    pub end: u64,
}

/// The map of one inode.
pub struct InodeMap {
    fs: Arc<Filesystem>,
    number: u32,
    inode: Inode,
    block_bytes: u64,
    /// What counts before the inode's own map.
    changed: Option<Arc<Ranges>>,
}

impl InodeMap {
    /// The map of an inode that has no inline data.
    pub fn new(fs: Arc<Filesystem>, number: u32, inode: Inode) -> Self {
        let block_bytes = u64::from(fs.sb.block_size());
        InodeMap {
            fs,
            number,
            inode,
            block_bytes,
            changed: None,
        }
    }

    /// The same map under ranges that lie elsewhere.
    pub fn with(self, changed: Option<Arc<Ranges>>) -> Self {
        InodeMap { changed, ..self }
    }

    /// The run at a block of the file.
    ///
    /// # Errors
    /// `Corrupt` when the map makes no sense or points out of the file system.
    pub fn block_run(&self, logical: u64) -> Result<BlockRun> {
        let run = match self.changed.as_ref().map(|ranges| ranges.at(logical)) {
            Some(Ok((physical, end))) => BlockRun { physical, end },
            Some(Err(next)) => {
                let run = self.own_run(logical)?;
                BlockRun {
                    end: run.end.min(next),
                    ..run
                }
            }
            None => self.own_run(logical)?,
        };
        if run.end <= logical {
            return Err(Error::corrupt("an inode's map goes backwards"));
        }
        if let Some(physical) = run.physical {
            let last = physical.checked_add(run.end - logical);
            if physical == 0 || last.is_none_or(|last| last > self.fs.sb.blocks_count) {
                return Err(Error::corrupt("an inode points out of its file system"));
            }
        }
        Ok(run)
    }

    fn own_run(&self, logical: u64) -> Result<BlockRun> {
        if self.inode.has_extents() {
            self.extent_run(logical)
        } else {
            self.pointer_run(logical)
        }
    }

    fn extent_run(&self, logical: u64) -> Result<BlockRun> {
        let mut node = self.inode.block.to_vec();
        let mut header = ExtentHeader::parse(&node).map_err(from_ext)?;
        // Everything below an index entry lies before the next entry's first block.
        let mut bound = u64::MAX;
        for _ in 0..=EXT4_EXT_MAX_DEPTH {
            if header.is_leaf() {
                return leaf_run(&node, &header, logical, bound);
            }
            let mut child = None;
            for index in 0..usize::from(header.entries) {
                let entry = ExtentIdx::parse(entry(&node, index)?).map_err(from_ext)?;
                let first = u64::from(entry.logical_block);
                if first > logical {
                    bound = bound.min(first);
                    break;
                }
                child = Some(entry.leaf_block);
            }
            let Some(child) = child else {
                // Before the first entry, or a node without any: a hole.
                if header.entries == 0 {
                    return Err(Error::corrupt("an extent tree has an empty index node"));
                }
                return Ok(BlockRun {
                    physical: None,
                    end: bound,
                });
            };
            let depth = header.depth;
            node = self.fs.read_block(child).map_err(from_ext)?;
            if self.fs.csum.enabled
                && !self
                    .fs
                    .csum
                    .verify_extent_tail(self.number, self.inode.generation, &node)
            {
                return Err(Error::corrupt(
                    "a block of an extent tree has a wrong checksum",
                ));
            }
            header = ExtentHeader::parse(&node).map_err(from_ext)?;
            if header.depth.checked_add(1) != Some(depth) {
                return Err(Error::corrupt(
                    "an extent tree has nodes at the wrong depth",
                ));
            }
        }
        Err(Error::corrupt("an extent tree is too deep"))
    }

    fn pointer_run(&self, logical: u64) -> Result<BlockRun> {
        let per_block = self.block_bytes / 4;
        if logical < DIRECT_POINTERS {
            let table = &self.inode.block[..DIRECT_POINTERS as usize * 4];
            return Ok(table_run(table, logical as usize, logical));
        }
        let mut within = logical - DIRECT_POINTERS;
        let mut span = 1u64;
        for level in 1..=3usize {
            span *= per_block;
            if within >= span {
                within -= span;
                continue;
            }
            let mut pointer = pointer_at(&self.inode.block, 11 + level);
            let mut below = span;
            loop {
                let start = within % below;
                if pointer == 0 {
                    return Ok(BlockRun {
                        physical: None,
                        end: logical - start + below,
                    });
                }
                let table = self.fs.read_block(pointer).map_err(from_ext)?;
                below /= per_block;
                let index = (start / below) as usize;
                if below == 1 {
                    return Ok(table_run(&table, index, logical));
                }
                pointer = pointer_at(&table, index);
            }
        }
        Err(Error::corrupt("a file is longer than its block map can be"))
    }
}

impl RunMap for InodeMap {
    fn run_at(&self, offset: u64) -> Result<Run> {
        let run = self.block_run(offset / self.block_bytes)?;
        let within = offset % self.block_bytes;
        Ok(Run {
            end: run.end.saturating_mul(self.block_bytes),
            // Cannot overflow: the block lies within the file system, which fits its volume.
            at: run.physical.map(|block| block * self.block_bytes + within),
        })
    }
}

fn leaf_run(node: &[u8], header: &ExtentHeader, logical: u64, bound: u64) -> Result<BlockRun> {
    for index in 0..usize::from(header.entries) {
        let extent = Extent::parse(entry(node, index)?).map_err(from_ext)?;
        let first = u64::from(extent.logical_block);
        if first > logical {
            return Ok(BlockRun {
                physical: None,
                end: bound.min(first),
            });
        }
        if extent.contains(logical) {
            return Ok(BlockRun {
                // Allocated but never written: reads as zeros.
                physical: (!extent.uninitialized).then(|| extent.map(logical)),
                end: first + u64::from(extent.length),
            });
        }
    }
    Ok(BlockRun {
        physical: None,
        end: bound,
    })
}

fn entry(node: &[u8], index: usize) -> Result<&[u8]> {
    let at = ENTRY_BYTES * (1 + index);
    node.get(at..at + ENTRY_BYTES)
        .ok_or_else(|| Error::corrupt("an extent node says it has more entries than fit"))
}

fn pointer_at(table: &[u8], index: usize) -> u64 {
    table
        .get(index * 4..index * 4 + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, |bytes| u64::from(u32::from_le_bytes(bytes)))
}

/// The run of consecutive blocks (or of holes) from `index` on in a table of pointers.
fn table_run(table: &[u8], index: usize, logical: u64) -> BlockRun {
    let first = pointer_at(table, index);
    let mut count = 1;
    while (index + count + 1) * 4 <= table.len() {
        let expected = if first == 0 { 0 } else { first + count as u64 };
        if pointer_at(table, index + count) != expected {
            break;
        }
        count += 1;
    }
    BlockRun {
        physical: (first != 0).then_some(first),
        end: logical + count as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_give_runs_of_neighbours_and_of_holes() {
        let pointers = [7u32, 8, 9, 20, 0, 0, 5];
        let table: Vec<u8> = pointers.iter().flat_map(|p| p.to_le_bytes()).collect();
        let run = |index| table_run(&table, index, 100 + index as u64);
        assert_eq!(
            run(0),
            BlockRun {
                physical: Some(7),
                end: 103
            }
        );
        assert_eq!(
            run(2),
            BlockRun {
                physical: Some(9),
                end: 103
            }
        );
        assert_eq!(
            run(3),
            BlockRun {
                physical: Some(20),
                end: 104
            }
        );
        assert_eq!(
            run(4),
            BlockRun {
                physical: None,
                end: 106
            }
        );
        assert_eq!(
            run(6),
            BlockRun {
                physical: Some(5),
                end: 107
            }
        );
    }
}
