//! What the metadata of device-mapper's thin pools and caches is made of: blocks with a checksum that know
//! where they lie, and B-trees of them.
//!
//! Layouts: `drivers/md/persistent-data` of Linux (`dm-btree-internal.h`, `dm-array.c`).

use super::super::bits::{crc32c, le32, le64};
use crate::error::{Error, Result};
use crate::io::{ReadAt, check_range};

/// Metadata is in blocks of this size.
pub const BLOCK_BYTES: u64 = 4096;
/// Levels of one tree; 252 entries in a node make 2^64 keys in nine.
pub const MAX_LEVELS: usize = 12;
const HEADER_BYTES: usize = 32;
const INTERNAL_NODE: u32 = 1;
const LEAF_NODE: u32 = 2;

/// What a block is: each kind changes its checksum in a way of its own, and keeps its number in a place of its own.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What the checksum is combined with.
    pub xor: u32,
    /// Where the block's number is.
    pub number_at: usize,
}

/// A node of a tree.
pub const NODE: Kind = Kind {
    xor: 121_107,
    number_at: 8,
};

fn bad(message: &str) -> Error {
    Error::corrupt(format!("device-mapper metadata: {message}"))
}

/// A metadata block whose checksum holds and that knows where it lies.
///
/// # Errors
/// `Corrupt` when it does not.
pub fn read_block(metadata: &dyn ReadAt, number: u64, kind: Kind) -> Result<Vec<u8>> {
    let at = number
        .checked_mul(BLOCK_BYTES)
        .filter(|&at| check_range(at, BLOCK_BYTES, metadata.len_bytes()).is_ok())
        .ok_or_else(|| bad("a block lies past the end"))?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    metadata.read_exact_at(&mut block, at)?;
    // Linux leaves out the final inversion.
    let sum = !crc32c(&block[4..]) ^ kind.xor;
    if sum != le32(&block, 0) || le64(&block, kind.number_at) != number {
        return Err(bad("a block has a wrong checksum").at(at));
    }
    Ok(block)
}

/// A node of a tree whose values are of 8 bytes, checked.
pub struct Node {
    /// Whether the values are those of the keys, rather than further nodes.
    pub is_leaf: bool,
    /// In ascending order.
    pub keys: Vec<u64>,
    /// As many as keys.
    pub values: Vec<u64>,
}

impl Node {
    /// Reads a node.
    ///
    /// # Errors
    /// `Corrupt` when it makes no sense.
    pub fn read(metadata: &dyn ReadAt, number: u64) -> Result<Node> {
        let block = read_block(metadata, number, NODE)?;
        let (flags, entries, room, value_bytes) = (
            le32(&block, 4),
            le32(&block, 16) as usize,
            le32(&block, 20) as usize,
            le32(&block, 24),
        );
        let fits = room <= (BLOCK_BYTES as usize - HEADER_BYTES) / 16;
        // All trees that are read have values of 8 bytes, in their inner nodes and in their leaves.
        if !matches!(flags, INTERNAL_NODE | LEAF_NODE) || value_bytes != 8 || !fits {
            return Err(bad("a node of a tree makes no sense"));
        }
        if entries > room || (entries == 0 && flags == INTERNAL_NODE) {
            return Err(bad("a node of a tree has more entries than room"));
        }
        let numbers = |start: usize| -> Vec<u64> {
            (0..entries).map(|i| le64(&block, start + i * 8)).collect()
        };
        let keys = numbers(HEADER_BYTES);
        if !keys.is_sorted_by(|a, b| a < b) {
            return Err(bad("the keys of a tree are not in order"));
        }
        Ok(Node {
            is_leaf: flags == LEAF_NODE,
            keys,
            values: numbers(HEADER_BYTES + room * 8),
        })
    }
}
