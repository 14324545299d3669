//! Keys, by which items are filed in trees, and the numbers that occur in them.
//!
//! Source: `struct btrfs_disk_key` in Linux' `btrfs_tree.h`, and the constants there.

use crate::volume::bits::le64;

/// An inode.
pub const INODE_ITEM: u8 = 1;
/// An attribute of an inode, filed by the hash of its name.
pub const XATTR_ITEM: u8 = 24;
/// A directory entry, filed by the hash of its name.
pub const DIR_ITEM: u8 = 84;
/// The same entry, filed in the order of creation.
pub const DIR_INDEX: u8 = 96;
/// A part of a file.
pub const EXTENT_DATA: u8 = 108;
/// Checksums of file contents.
pub const EXTENT_CSUM: u8 = 128;
/// A tree.
pub const ROOT_ITEM: u8 = 132;
/// Which tree holds a subvolume.
pub const ROOT_BACKREF: u8 = 144;
/// A device.
pub const DEV_ITEM: u8 = 216;
/// A chunk.
pub const CHUNK_ITEM: u8 = 228;

/// What devices are filed under, in the tree of chunks.
pub const DEV_ITEMS: u64 = 1;
/// What chunks are filed under.
pub const FIRST_CHUNK_TREE: u64 = 256;
/// The tree of the top level.
pub const FS_TREE: u64 = 5;
/// The tree of checksums.
pub const CSUM_TREE: u64 = 7;
/// What all checksums are filed under (-10).
pub const CSUM_OBJECT: u64 = u64::MAX - 9;
/// The smallest number of an inode, and of a subvolume that is not the top level. The directory at the
/// top of each subvolume has it.
pub const FIRST_FREE: u64 = 256;
/// The greatest one; what is behind counts down from 0 (-1, -2 …).
const LAST_FREE: u64 = u64::MAX - 255;

/// Items are in this order: by object, type, offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What the item is about: an inode, say.
    pub objectid: u64,
    /// The type of the item.
    pub key_type: u8,
    /// What tells apart items of one type about one object.
    pub offset: u64,
}

impl Key {
    /// Bytes of a stored key.
    pub const BYTES: usize = 17;

    /// A key from its parts.
    pub fn new(objectid: u64, key_type: u8, offset: u64) -> Key {
        Key {
            objectid,
            key_type,
            offset,
        }
    }

    /// The key at the beginning of `bytes`, `None` when they are too few.
    pub fn parse(bytes: &[u8]) -> Option<Key> {
        let bytes = bytes.get(..Key::BYTES)?;
        Some(Key::new(le64(bytes, 0), *bytes.get(8)?, le64(bytes, 9)))
    }
}

/// Whether a tree with this number is a subvolume.
pub fn is_subvolume(id: u64) -> bool {
    id == FS_TREE || (FIRST_FREE..=LAST_FREE).contains(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_packed_and_ordered_by_their_parts() {
        let bytes = [
            0x01, 0x02, 0, 0, 0, 0, 0, 0, 0x54, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 9,
        ];
        let key = Key::parse(&bytes).unwrap();
        assert_eq!(key, Key::new(0x201, DIR_ITEM, CSUM_OBJECT));
        assert_eq!(Key::parse(&bytes[..16]), None);
        assert!(key < Key::new(0x201, DIR_INDEX, 0));
        assert!(key < Key::new(0x202, 0, 0));
        assert!(key > Key::new(0x201, DIR_ITEM, CSUM_OBJECT - 1));
    }

    #[test]
    fn trees_of_the_file_system_itself_are_no_subvolumes() {
        for (id, expected) in [
            (4, false),
            (5, true),
            (7, false),
            (255, false),
            (256, true),
            (u64::MAX - 255, true),
            (u64::MAX - 254, false),
            (CSUM_OBJECT, false),
        ] {
            assert_eq!(is_subvolume(id), expected, "{id}");
        }
    }
}
