//! Directory entries, and attributes, which are stored in the same way.
//!
//! An item holds one or several of them, one after the other: those whose names have the same hash. Source:
//! `struct btrfs_dir_item` in Linux' `btrfs_tree.h`, `btrfs_name_hash` in `ctree.h`.

use super::fault::bad;
use super::key::{INODE_ITEM, Key};
use crate::error::Result;
use crate::kind::NodeKind;
use crate::volume::bits::le16;

const HEAD_BYTES: usize = Key::BYTES + 13;
const MAX_NAME_BYTES: usize = 255;

/// An entry or an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// What an entry leads to: an inode of the same subvolume, or another subvolume.
    pub target: Key,
    /// The name.
    pub name: &'a [u8],
    /// The value of an attribute.
    pub value: &'a [u8],
    kind: u8,
}

impl Record<'_> {
    /// Whether the entry leads to an inode of the same subvolume.
    pub fn is_inode(&self) -> bool {
        self.target.key_type == INODE_ITEM
    }

    /// Whether this is an attribute.
    pub fn is_attribute(&self) -> bool {
        self.kind == 8
    }

    /// The type of what the entry leads to, if it says.
    ///
    /// # Errors
    /// `Corrupt` for a type that there is not.
    pub fn kind(&self) -> Result<Option<NodeKind>> {
        Ok(Some(match self.kind {
            0 => return Ok(None),
            1 => NodeKind::File,
            2 => NodeKind::Dir,
            3 => NodeKind::CharDevice,
            4 => NodeKind::BlockDevice,
            5 => NodeKind::Fifo,
            6 => NodeKind::Socket,
            7 => NodeKind::Symlink,
            _ => return Err(bad("a directory entry is of an unknown type")),
        }))
    }
}

/// The records of an item, in turn. After an error there are no more.
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Those in the bytes of an item.
    pub fn of(item: &'a [u8]) -> Self {
        Records(item)
    }

    fn cut(&mut self) -> Option<Record<'a>> {
        let (head, behind) = self.0.split_at_checked(HEAD_BYTES)?;
        let value_bytes = usize::from(le16(head, Key::BYTES + 8));
        let name_bytes = usize::from(le16(head, Key::BYTES + 10));
        let (name, behind) = behind.split_at_checked(name_bytes)?;
        let (value, behind) = behind.split_at_checked(value_bytes)?;
        self.0 = behind;
        (1..=MAX_NAME_BYTES)
            .contains(&name_bytes)
            .then_some(Record {
                target: Key::parse(head)?,
                name,
                value,
                kind: *head.last()?,
            })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.cut();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record.ok_or_else(|| bad("a directory entry or attribute does not make sense")))
    }
}

/// What an entry or an attribute with this name is filed under: a CRC-32C that begins with -2, and is
/// not inverted.
pub fn name_hash(name: &[u8]) -> u64 {
    u64::from(!crc32c::crc32c_append(1, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as Linux wrote it: "block", a file with inode 305.
    const ENTRY: &[u8] = b"\x31\x01\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\
        \x07\0\0\0\0\0\0\0\0\0\x05\0\x01block";
    /// An attribute as Linux wrote it: `user.small`.
    const ATTRIBUTE: &[u8] = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
        \x08\0\0\0\0\0\0\0\x05\0\x0A\0\x08user.smallvalue";

    fn all(item: &[u8]) -> Result<Vec<Record<'_>>> {
        Records::of(item).collect()
    }

    #[test]
    fn entries_and_attributes_are_read() {
        let entry = Record {
            target: Key::new(305, INODE_ITEM, 0),
            name: b"block",
            value: b"",
            kind: 1,
        };
        let attribute = Record {
            target: Key::new(0, 0, 0),
            name: b"user.small",
            value: b"value",
            kind: 8,
        };
        assert_eq!(all(ENTRY).unwrap(), [entry]);
        assert_eq!(all(ATTRIBUTE).unwrap(), [attribute]);
        let both = [ATTRIBUTE, ENTRY].concat();
        assert_eq!(all(&both).unwrap(), [attribute, entry]);
        assert!(all(b"").unwrap().is_empty());
        assert!(entry.is_inode() && !entry.is_attribute());
        assert!(attribute.is_attribute() && !attribute.is_inode());
    }

    #[test]
    fn what_is_cut_or_has_no_name_is_an_error_and_the_end() {
        let both = [ENTRY, ATTRIBUTE].concat();
        for len in 1..both.len() {
            let is_whole = len == ENTRY.len();
            assert_eq!(all(&both[..len]).is_ok(), is_whole, "{len}");
            assert!(Records::of(&both[..len]).count() <= 2);
        }
        let mut nameless = ENTRY.to_vec();
        nameless[27] = 0;
        assert!(all(&nameless).is_err());
        let mut long = ENTRY[..30].to_vec();
        long.resize(30 + 256, b'a');
        (long[27], long[28]) = (255, 0);
        assert_eq!(all(&long[..285]).unwrap()[0].name, [b'a'; 255]);
        (long[27], long[28]) = (0, 1);
        assert!(all(&long).is_err());
    }

    #[test]
    fn types_are_those_of_linux() {
        use NodeKind::{BlockDevice, CharDevice, Dir, Fifo, File, Socket, Symlink};
        let known = [File, Dir, CharDevice, BlockDevice, Fifo, Socket, Symlink];
        let mut item = ENTRY.to_vec();
        let mut kind_of = |number| {
            item[29] = number;
            all(&item).unwrap()[0].kind()
        };
        assert_eq!(kind_of(0).unwrap(), None);
        for (kind, number) in known.into_iter().zip(1..) {
            assert_eq!(kind_of(number).unwrap(), Some(kind));
        }
        assert!(kind_of(8).is_err() && kind_of(0x81).is_err());
    }

    #[test]
    fn names_have_the_hashes_that_linux_filed_them_under() {
        assert_eq!(name_hash(b"block"), 152_464_153);
        assert_eq!(name_hash(b"link-long"), 244_503_652);
        assert_eq!(name_hash(b"user.small"), 95_888_091);
        assert_eq!(name_hash(&[b'a'; 255]), 1_528_964_270);
    }
}
