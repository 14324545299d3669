//! Tree blocks: leaves, which hold items, and nodes, which point to the blocks below them.
//!
//! A [`Block`] has proved what it is: its checksum holds, it is where it says it is, of this file system,
//! its keys ascend and its items lie where items can. Keys and items are read out of its bytes when they are
//! asked for. Source: `struct btrfs_header`, `btrfs_item` and `btrfs_key_ptr` in Linux' `btrfs_tree.h`,
//! `btrfs_check_leaf` and `btrfs_check_node` in `tree-checker.c`.

use super::checksum::Checksum;
use super::fault::bad;
use super::key::Key;
use crate::error::Result;
use crate::volume::bits::{byte, has, le32, le64};

/// Levels of a tree.
pub const MAX_LEVELS: u8 = 8;
/// The checksum, which comes first, has room for the longest kind.
pub const SUM_BYTES: usize = 32;
const HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = Key::BYTES + 8;
const POINTER_BYTES: usize = Key::BYTES + 16;

/// A sound block.
pub struct Block {
    /// 0 for a leaf.
    pub level: u8,
    /// When it was written.
    pub generation: u64,
    /// Items of a leaf, pointers of a node.
    count: usize,
    bytes: Vec<u8>,
}

/// What a node says of a block below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Its first key.
    pub key: Key,
    /// Its logical address.
    pub block: u64,
    /// Its generation.
    pub generation: u64,
}

impl Block {
    /// Checks what was read at a logical address. `uuids`: those that blocks of this file system may carry.
    ///
    /// # Errors
    /// `Corrupt` when it is not sound.
    pub fn parse(
        bytes: Vec<u8>,
        logical: u64,
        sums: Checksum,
        uuids: &[[u8; 16]],
    ) -> Result<Block> {
        let wrong = |what: &str| bad(&format!("a tree block {what}")).at(logical);
        let (Some(header), Some(summed)) = (bytes.get(..HEADER_BYTES), bytes.get(SUM_BYTES..))
        else {
            return Err(wrong("is too short"));
        };
        if !sums.verify(summed, header) {
            return Err(wrong("has a wrong checksum"));
        }
        if le64(header, 0x30) != logical {
            return Err(wrong("is not where it says it is"));
        }
        if !uuids.iter().any(|uuid| has(header, 0x20, uuid)) {
            return Err(wrong("is of another file system"));
        }
        let block = Block {
            level: byte(header, 0x64),
            generation: le64(header, 0x50),
            count: le32(header, 0x60) as usize,
            bytes,
        };
        let sound = match block.level {
            0 => block.has_sound_items(),
            1..MAX_LEVELS => block.has_sound_pointers(),
            _ => return Err(wrong("is of a level that no tree has")),
        };
        match sound && block.has_ascending_keys() {
            true => Ok(block),
            false => Err(wrong("does not hold together")),
        }
    }

    /// Items are described from the front on and stored from the back on, without gaps. (The last of them is
    /// where the free space ends.)
    fn has_sound_items(&self) -> bool {
        let Some(free) = self.room_behind(ITEM_BYTES) else {
            return false;
        };
        let mut end = self.bytes.len();
        for index in 0..self.count {
            let Some((_, start, len)) = self.item_place(index) else {
                return false;
            };
            if start < free || start.checked_add(len) != Some(end) {
                return false;
            }
            end = start;
        }
        true
    }

    fn has_sound_pointers(&self) -> bool {
        let is_sound = |index| self.pointer(index).is_some_and(|p| p.block != 0);
        self.count > 0 && self.room_behind(POINTER_BYTES).is_some() && (0..self.count).all(is_sound)
    }

    fn has_ascending_keys(&self) -> bool {
        let mut keys = (0..self.count).map_while(|index| self.key(index));
        let Some(mut last) = keys.next() else {
            return self.count == 0;
        };
        keys.all(|key| std::mem::replace(&mut last, key) < key)
    }

    /// Where the records end, `None` when that is outside the block.
    fn room_behind(&self, record_bytes: usize) -> Option<usize> {
        let end = self
            .count
            .checked_mul(record_bytes)?
            .checked_add(HEADER_BYTES)?;
        (end <= self.bytes.len()).then_some(end)
    }

    /// The bytes of a record, and what is behind it.
    fn record(&self, index: usize, record_bytes: usize) -> Option<&[u8]> {
        let start = index.checked_mul(record_bytes)?.checked_add(HEADER_BYTES)?;
        match index < self.count {
            true => self.bytes.get(start..),
            false => None,
        }
    }

    /// An item's key, where its bytes begin in the block, and how many they are.
    fn item_place(&self, index: usize) -> Option<(Key, usize, usize)> {
        let record = self.record(index, ITEM_BYTES)?;
        let start = HEADER_BYTES.checked_add(le32(record, Key::BYTES) as usize)?;
        let len = le32(record, Key::BYTES + 4) as usize;
        Some((Key::parse(record)?, start, len))
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The key with this index.
    pub fn key(&self, index: usize) -> Option<Key> {
        let record_bytes = match self.level {
            0 => ITEM_BYTES,
            _ => POINTER_BYTES,
        };
        Key::parse(self.record(index, record_bytes)?)
    }

    /// An item of a leaf; `None` behind the last one, and for nodes.
    pub fn item(&self, index: usize) -> Option<(Key, &[u8])> {
        if self.level != 0 {
            return None;
        }
        let (key, start, len) = self.item_place(index)?;
        Some((key, self.bytes.get(start..start.checked_add(len)?)?))
    }

    /// What a node points to; `None` behind the last one, and for leaves.
    pub fn pointer(&self, index: usize) -> Option<Pointer> {
        if self.level == 0 {
            return None;
        }
        let record = self.record(index, POINTER_BYTES)?;
        Some(Pointer {
            key: Key::parse(record)?,
            block: le64(record, Key::BYTES),
            generation: le64(record, Key::BYTES + 8),
        })
    }

    /// How many keys come first of which this is true.
    pub fn partition_point(&self, is_true: impl Fn(Key) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle) {
                Some(key) if is_true(key) => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::{DIR_ITEM, INODE_ITEM};
    use super::*;

    const UUID: [u8; 16] = [7; 16];
    const AT: u64 = 0x1D0_4000;
    const BYTES: usize = 4096;

    fn seal(block: &mut [u8]) {
        let sum = crc32c::crc32c(&block[32..]);
        block[..4].copy_from_slice(&sum.to_le_bytes());
    }

    fn header(level: u8, count: u32) -> Vec<u8> {
        let mut block = vec![0; BYTES];
        block[0x20..0x30].copy_from_slice(&UUID);
        block[0x30..0x38].copy_from_slice(&AT.to_le_bytes());
        block[0x50..0x58].copy_from_slice(&9u64.to_le_bytes());
        block[0x60..0x64].copy_from_slice(&count.to_le_bytes());
        block[0x64] = level;
        block
    }

    /// "abcde" as inode 256 and "xyz" as an entry of it.
    fn leaf() -> Vec<u8> {
        let mut block = header(0, 2);
        block[101..126].copy_from_slice(&[
            0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x96, 0x0F, 0, 0, 5, 0, 0, 0,
        ]);
        block[126..151].copy_from_slice(&[
            0, 1, 0, 0, 0, 0, 0, 0, 84, 5, 0, 0, 0, 0, 0, 0, 0, 0x93, 0x0F, 0, 0, 3, 0, 0, 0,
        ]);
        block[BYTES - 8..].copy_from_slice(b"xyzabcde");
        seal(&mut block);
        block
    }

    fn node() -> Vec<u8> {
        let mut block = header(1, 2);
        block[101..134].copy_from_slice(&[
            0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, // key
            0, 0x40, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0,
        ]);
        block[134..167].copy_from_slice(&[
            2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, // key
            0, 0x80, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        ]);
        seal(&mut block);
        block
    }

    fn parse(block: Vec<u8>) -> Result<Block> {
        Block::parse(block, AT, Checksum::Crc32c, &[[1; 16], UUID])
    }

    #[test]
    fn leaves_give_their_items() {
        let block = parse(leaf()).unwrap();
        assert_eq!((block.level, block.generation, block.count()), (0, 9, 2));
        let (inode, entry) = (Key::new(256, INODE_ITEM, 0), Key::new(256, DIR_ITEM, 5));
        assert_eq!(block.item(0), Some((inode, &b"abcde"[..])));
        assert_eq!(block.item(1), Some((entry, &b"xyz"[..])));
        assert_eq!(block.item(2), None);
        assert_eq!(block.pointer(0), None);
        for (wanted, first) in [
            (Key::new(255, 0, 0), 0),
            (inode, 0),
            (Key::new(256, INODE_ITEM, 1), 1),
            (entry, 1),
            (Key::new(256, DIR_ITEM, 6), 2),
        ] {
            assert_eq!(block.partition_point(|key| key < wanted), first);
        }
    }

    #[test]
    fn nodes_give_their_pointers() {
        let block = parse(node()).unwrap();
        let pointer = |key, block, generation| Pointer {
            key: Key::new(key, INODE_ITEM, 0),
            block,
            generation,
        };
        assert_eq!(block.pointer(0), Some(pointer(256, 0x4000, 8)));
        assert_eq!(block.pointer(1), Some(pointer(258, 0x8000, 9)));
        assert_eq!((block.pointer(2), block.item(0)), (None, None));
    }

    #[test]
    fn a_block_that_is_not_what_it_should_be_is_refused() {
        let elsewhere = Block::parse(leaf(), AT + 4096, Checksum::Crc32c, &[UUID]);
        assert!(elsewhere.is_err());
        let foreign = Block::parse(leaf(), AT, Checksum::Crc32c, &[[1; 16]]);
        assert!(foreign.is_err());
        for at in [0, 3, 0x20, 101, BYTES - 1] {
            let mut block = leaf();
            block[at] ^= 1;
            assert!(parse(block).is_err(), "a changed byte at {at}");
        }
        for len in [0, 31, 32, 100, 101, 4095] {
            assert!(parse(leaf()[..len].to_vec()).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_does_not_hold_together_is_refused_though_its_checksum_holds() {
        type Change = (&'static str, fn() -> Vec<u8>, usize, u8);
        let changes: [Change; 14] = [
            ("a level too high", leaf, 0x64, 8),
            ("a leaf that says it is a node", leaf, 0x64, 1),
            ("an item more", leaf, 0x60, 3),
            ("very many items", leaf, 0x63, 0xFF),
            ("an item that begins too late", leaf, 117 + 1, 0x97),
            ("an item that is too long", leaf, 117 + 5, 6),
            ("a gap between items", leaf, 126 + 17, 0x92),
            ("an item of 4 GiB", leaf, 126 + 24, 0xFF),
            ("keys out of order", leaf, 126 + 8, 0),
            ("no pointers", node, 0x60, 0),
            ("more pointers than there is room for", node, 0x61, 1),
            ("a pointer to nothing", node, 101 + 18, 0),
            ("pointers out of order", node, 134, 0),
            ("a node that says it is a leaf", node, 0x64, 0),
        ];
        for (what, block, at, value) in changes {
            let mut block = block();
            block[at] = value;
            seal(&mut block);
            assert!(parse(block).is_err(), "{what}");
        }
        let mut twice = leaf();
        twice.copy_within(101..118, 126);
        seal(&mut twice);
        assert!(parse(twice).is_err(), "the same key twice");
        // An item within the list of items.
        let mut block = header(0, 1);
        block[101 + 21..101 + 25].copy_from_slice(&(BYTES as u32 - 101).to_le_bytes());
        seal(&mut block);
        assert!(parse(block).is_err());
        // A leaf without items is fine: an empty tree has one.
        let mut empty = header(0, 0);
        seal(&mut empty);
        assert_eq!(parse(empty).unwrap().item(0), None);
    }
}
