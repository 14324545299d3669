//! Inodes.
//!
//! Source: `struct btrfs_inode_item` in Linux' `btrfs_tree.h`.

use super::fault::bad;
use crate::error::Result;
use crate::volume::bits::{le32, le64};

const BYTES: usize = 160;
/// Contents have no checksums (`nodatasum`).
const WITHOUT_SUMS: u64 = 1;

/// Seconds since 1970, which may be negative, and nanoseconds.
pub type Time = (i64, u32);

/// What is read of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number, within its subvolume.
    pub number: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Bytes that its contents take.
    pub allocated_bytes: u64,
    /// How many names it has.
    pub links: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Major (12 bits) and minor number (20 bits) of a device node.
    pub rdev: u64,
    /// Whether its contents have checksums.
    pub has_sums: bool,
    /// When it was read last.
    pub atime: Time,
    /// When it was changed last.
    pub ctime: Time,
    /// When its contents were changed last.
    pub mtime: Time,
}

impl Inode {
    /// Parses the item (a longer one is fine) of the inode with this number.
    ///
    /// # Errors
    /// `Corrupt` when it is too short.
    pub fn parse(number: u64, item: &[u8]) -> Result<Inode> {
        if item.len() < BYTES {
            return Err(bad("an inode is too short"));
        }
        let time = |at| (le64(item, at).cast_signed(), le32(item, at + 8));
        Ok(Inode {
            number,
            len_bytes: le64(item, 16),
            allocated_bytes: le64(item, 24),
            links: le32(item, 40),
            uid: le32(item, 44),
            gid: le32(item, 48),
            mode: le32(item, 52),
            rdev: le64(item, 56),
            has_sums: le64(item, 64) & WITHOUT_SUMS == 0,
            atime: time(112),
            ctime: time(124),
            mtime: time(136),
        })
    }

    /// Whether the inode is of this type (`S_IFREG`, say).
    pub fn is(&self, kind: u32) -> bool {
        self.mode & 0o170_000 == kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block device 275:100000 as Linux wrote it, but for its times, which were all the same.
    const ITEM: [u8; BYTES] = *b"\
        \x08\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
        \0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x06\0\0\0\xA0\x61\0\0\xA0\x86\x31\x11\0\0\0\0\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xBD\x62\0\x6B\0\0\0\0\xFB\xD1\xCB\x02\
        \xBE\x62\0\x6B\0\0\0\0\0\0\0\0\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01\0\0\0\
        \xBD\x62\0\x6B\0\0\0\0\xFB\xD1\xCB\x02";

    #[test]
    fn all_fields_are_where_linux_puts_them() {
        let inode = Inode::parse(938, &ITEM).unwrap();
        let expected = Inode {
            number: 938,
            len_bytes: 0,
            allocated_bytes: 0,
            links: 1,
            uid: 0,
            gid: 6,
            mode: 0o060_640,
            rdev: 275 << 20 | 100_000,
            has_sums: true,
            atime: (1_795_187_389, 46_911_995),
            ctime: (1_795_187_390, 0),
            mtime: (-2, 1),
        };
        assert_eq!(inode, expected);
        assert!(inode.is(0o060_000) && !inode.is(0o020_000));
        let mut other = ITEM;
        other[16..32].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        (other[44], other[64]) = (0xE8, 0x11);
        let expected = Inode {
            len_bytes: 0x0807_0605_0403_0201,
            allocated_bytes: 16,
            uid: 232,
            has_sums: false,
            ..expected
        };
        assert_eq!(Inode::parse(938, &other).unwrap(), expected);
    }

    #[test]
    fn a_longer_item_is_fine_and_a_shorter_one_is_not() {
        let longer = [&ITEM[..], b"new"].concat();
        assert!(Inode::parse(1, &longer).is_ok());
        for len in 0..BYTES {
            assert!(Inode::parse(1, &ITEM[..len]).is_err(), "{len}");
        }
    }
}
