//! Cached volumes: the origin, but for the blocks that the cache has.
//!
//! What the cache has counts in every mode, as in the kernel: written through, it is the same as what the
//! origin has; written back, it may be all there is. The metadata is a superblock that names an array: for
//! each block of the cache the block of the origin that it holds, if any. Layouts: `dm-cache-metadata.c` and
//! `dm-array.c` of Linux.

use std::sync::Arc;

use super::super::bits::{le32, le64};
use super::persistent::{BLOCK_BYTES, Kind, MAX_LEVELS, Node, read_block};
use super::pieces::{Budget, Pieces, extent};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ReadAt, check_range, read_pieces};

const SUPERBLOCK: Kind = Kind {
    xor: 9_031_977,
    number_at: 8,
};
const ARRAY: Kind = Kind {
    xor: 595_846_735,
    number_at: 16,
};
/// Octal, as Linux has it.
const MAGIC: u64 = 0o6_142_003;
const NEEDS_CHECK: u32 = 2;
const ARRAY_HEADER: usize = 24;
const ARRAY_ENTRIES: u64 = (BLOCK_BYTES - ARRAY_HEADER as u64) / 8;
/// In an entry, the bits below the origin's block are flags.
const FLAG_BITS: u32 = 16;
const VALID: u64 = 1;
/// LVM makes caches of a million blocks at most.
const MAX_BLOCKS: u64 = 2 << 20;

fn bad(message: &str) -> Error {
    Error::corrupt(format!("cache: {message}"))
}

/// A block of the origin and the block of the cache that holds it.
type Held = (u64, u64);

/// A cached volume.
pub struct Cached {
    origin: Arc<dyn ReadAt>,
    metadata: Arc<dyn ReadAt>,
    data: Arc<dyn ReadAt>,
    block_bytes: u64,
    blocks: u64,
    root: u64,
    /// In the order of the origin. Read when it is needed for the first time.
    held: Pieces<Held>,
}

impl Cached {
    /// Opens a cached volume. Reads the metadata's superblock.
    ///
    /// # Errors
    /// `Corrupt` when that is damaged; `Unsupported` for versions and features that are not known, for
    /// caches that the kernel wants checked before it uses them, and for very large ones.
    pub fn open(
        origin: Arc<dyn ReadAt>,
        metadata: Arc<dyn ReadAt>,
        data: Arc<dyn ReadAt>,
        budget: Arc<Budget>,
    ) -> Result<Cached> {
        let block = read_block(&*metadata, 0, SUPERBLOCK)?;
        if le64(&block, 32) != MAGIC {
            return Err(bad("there is no superblock"));
        }
        let (version, incompatible) = (le32(&block, 40), le32(&block, 252));
        let blocks = u64::from(le32(&block, 240));
        let reason = if !(1..=2).contains(&version) || incompatible != 0 {
            Some("cache metadata of an unknown version is not read")
        } else if le32(&block, 4) & NEEDS_CHECK != 0 {
            Some("a cache whose metadata needs a check is not read")
        } else if blocks > MAX_BLOCKS {
            Some("a cache of more than two million blocks is not read")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(Error::new(ErrorKind::Unsupported, reason));
        }
        let block_bytes = u64::from(le32(&block, 232)) * 512;
        if block_bytes == 0 {
            return Err(bad("its blocks have no size"));
        }
        Ok(Cached {
            origin,
            data,
            block_bytes,
            blocks,
            root: le64(&block, 192),
            metadata,
            held: Pieces::new(budget),
        })
    }

    /// The array's blocks are the values of a tree, and their numbers in the array its keys.
    fn read_held(&self, budget: &Budget) -> Result<Vec<Held>> {
        let bad_length = || bad("its array is not as long as the superblock says");
        let expected = self.blocks.div_ceil(ARRAY_ENTRIES);
        let mut held = Vec::new();
        let mut nodes = vec![(self.root, 0)];
        // Each node has something in it: there are fewer of them than blocks of the array on each level.
        let mut left = (expected + 1) * MAX_LEVELS as u64;
        let mut arrays = 0;
        while let Some((number, level)) = nodes.pop() {
            left = left.checked_sub(1).ok_or_else(bad_length)?;
            let node = Node::read(&*self.metadata, number)?;
            if !node.is_leaf {
                if level >= MAX_LEVELS {
                    return Err(bad("its tree is deeper than any"));
                }
                let below = node.values.iter().rev();
                nodes.extend(below.map(|&below| (below, level + 1)));
                continue;
            }
            for (&key, &block) in node.keys.iter().zip(&node.values) {
                // In order and none twice: otherwise a block that is held would be taken from the origin.
                if key != arrays || arrays == expected {
                    return Err(bad_length());
                }
                arrays += 1;
                self.read_array(key, block, &mut held)?;
                budget.allows(held.len())?;
            }
        }
        if arrays != expected {
            return Err(bad_length());
        }
        held.sort_unstable();
        match held.is_sorted_by(|a, b| a.0 < b.0) {
            true => Ok(held),
            false => Err(bad("it holds a block of the origin twice")),
        }
    }

    fn read_array(&self, key: u64, number: u64, held: &mut Vec<Held>) -> Result<()> {
        let block = read_block(&*self.metadata, number, ARRAY)?;
        let entries = u64::from(le32(&block, 8));
        let first = key.saturating_mul(ARRAY_ENTRIES);
        let expected = self.blocks.saturating_sub(first).min(ARRAY_ENTRIES);
        if entries != expected || le32(&block, 12) != 8 {
            return Err(bad("a block of its array makes no sense"));
        }
        for index in 0..entries {
            let value = le64(&block, ARRAY_HEADER + index as usize * 8);
            if value & VALID != 0 {
                held.push((value >> FLAG_BITS, first + index));
            }
        }
        Ok(())
    }

    /// Whether the byte at `offset` is in the cache, where there or in the origin, and up to where that can
    /// be said.
    fn place(&self, offset: u64) -> Result<((bool, u64), u64)> {
        let held = self.held.get(|budget| self.read_held(budget))?;
        let (block, within) = (offset / self.block_bytes, offset % self.block_bytes);
        let behind = held.partition_point(|(old, _)| *old <= block);
        let end_of = |block: u64| {
            let end = block.saturating_mul(self.block_bytes);
            end.min(self.len_bytes())
        };
        if let Some((old, new)) = behind.checked_sub(1).map(|index| held[index])
            && old == block
        {
            return Ok(((true, new * self.block_bytes + within), end_of(block + 1)));
        }
        let end = held.get(behind).map_or(u64::MAX, |(old, _)| *old);
        Ok(((false, offset), end_of(end)))
    }
}

impl ReadAt for Cached {
    fn len_bytes(&self) -> u64 {
        self.origin.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes())?;
        read_pieces(
            buf,
            offset,
            |at| self.place(at),
            |(is_cached, at), now, _| match is_cached {
                false => self.origin.read_exact_at(now, at),
                true if check_range(at, now.len() as u64, self.data.len_bytes()).is_err() => {
                    Err(bad("a block lies past the end of the cache"))
                }
                true => self.data.read_exact_at(now, at),
            },
        )
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes())?;
        extent(&*self.origin, self.place(offset)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::bits::crc32c;
    use super::super::persistent::NODE;
    use super::*;

    const SECTOR: usize = 512;
    const PART: u32 = ARRAY_ENTRIES as u32;

    fn block(number: u64, kind: Kind, words: &[(usize, u32)]) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        for (at, word) in words {
            block[*at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        block[kind.number_at..kind.number_at + 8].copy_from_slice(&number.to_le_bytes());
        let sum = !crc32c(&block[4..]) ^ kind.xor;
        block[..4].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// A node with these keys and values.
    fn node(number: u64, flags: u32, entries: &[(u32, u32)]) -> Vec<u8> {
        let mut words = vec![(4, flags), (16, entries.len() as u32), (20, 252), (24, 8)];
        for (index, (key, value)) in entries.iter().enumerate() {
            words.extend([(32 + index * 8, *key), (32 + (252 + index) * 8, *value)]);
        }
        block(number, NODE, &words)
    }

    /// A cache in blocks of a sector, of which block 700 holds block 3 of the origin. Its array is in two parts, to
    /// which the leaves in blocks 2 and 3 lead.
    fn open(leaves: [u32; 2]) -> Cached {
        let head = [
            (32, MAGIC as u32),
            (40, 2),
            (192, 1),
            (232, 1),
            (240, 2 * PART),
        ];
        let array = |number, more: &[(usize, u32)]| {
            block(number, ARRAY, &[&[(8, PART), (12, 8)], more].concat())
        };
        let metadata = [
            block(0, SUPERBLOCK, &head),
            node(1, 1, &[(0, leaves[0]), (1, leaves[1])]),
            node(2, 2, &[(0, 4)]),
            node(3, 2, &[(1, 5)]),
            array(4, &[]),
            array(
                5,
                &[(ARRAY_HEADER + (700 - PART as usize) * 8, 3 << FLAG_BITS | 1)],
            ),
        ];
        let origin = vec![0xEE; 10 * SECTOR];
        let data: Vec<u8> = (0..2 * PART).flat_map(|n| [n as u8; SECTOR]).collect();
        let (metadata, budget) = (Arc::new(metadata.concat()), Arc::default());
        Cached::open(Arc::new(origin), metadata, Arc::new(data), budget).unwrap()
    }

    fn blocks(cached: &Cached) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 10 * SECTOR];
        cached.read_exact_at(&mut bytes, 0)?;
        Ok(bytes.chunks(SECTOR).map(|block| block[0]).collect())
    }

    #[test]
    fn what_the_cache_has_goes_before_the_origin() {
        let mut expected = [0xEE; 10];
        expected[3] = 700u32 as u8;
        assert_eq!(blocks(&open([2, 3])).unwrap(), expected);
    }

    /// With a part of the array twice, another one would be missing, and with it what the cache holds.
    #[test]
    fn an_array_that_is_not_all_there_once_is_refused() {
        for leaves in [[2, 2], [3, 2], [3, 3], [1, 1], [2, 4]] {
            assert!(blocks(&open(leaves)).is_err(), "{leaves:?}");
        }
    }
}
