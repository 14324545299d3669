//! What an item says of a part of a file.
//!
//! Source: `struct btrfs_file_extent_item` in Linux' `btrfs_tree.h`, `check_extent_data_item` in
//! `tree-checker.c`.

use super::fault::{bad, unsupported};
use super::unpack::{Compression, MAX_UNPACKED_BYTES};
use crate::error::Result;
use crate::volume::bits::{byte, le16, le64};

const HEAD_BYTES: usize = 21;
const BYTES: usize = 53;
/// What a compressed extent takes at most.
const MAX_STORED_BYTES: u64 = 128 << 10;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileExtent<'a> {
    /// How it is compressed.
    pub method: Option<Compression>,
    /// Bytes of the extent that this is a part of, unpacked. For a compressed one at most
    /// [`MAX_UNPACKED_BYTES`].
    pub unpacked_bytes: u64,
    /// Where it is.
    pub place: Place<'a>,
}

/// Where a part of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// Here.
    Inline(&'a [u8]),
    /// Nowhere: that many zeros, never written.
    Hole(u64),
    /// In an extent.
    Extent {
        /// The extent's logical address.
        logical: u64,
        /// The bytes that it takes.
        stored_bytes: u64,
        /// Where in the unpacked extent the part begins.
        within: u64,
        /// Bytes of the part, all of them within the extent.
        len_bytes: u64,
    },
}

impl FileExtent<'_> {
    /// Parses an item.
    ///
    /// # Errors
    /// `Corrupt` when it does not make sense, `Unsupported` for what is encrypted or encoded in an unknown way.
    pub fn parse(item: &[u8]) -> Result<FileExtent<'_>> {
        const INLINE: u8 = 0;
        const REGULAR: u8 = 1;
        const PREALLOCATED: u8 = 2;
        let short = || bad("a file's extent is too short");
        let (head, behind) = item.split_at_checked(HEAD_BYTES).ok_or_else(short)?;
        let unpacked_bytes = le64(head, 8);
        if byte(head, 17) != 0 || le16(head, 18) != 0 {
            return Err(unsupported("an encrypted or encoded extent is not read"));
        }
        let method = Compression::from_number(byte(head, 16))?;
        if method.is_some() && unpacked_bytes > MAX_UNPACKED_BYTES as u64 {
            return Err(bad("a compressed extent is too large"));
        }
        let extent = |place| {
            Ok(FileExtent {
                method,
                unpacked_bytes,
                place,
            })
        };
        let kind = byte(head, 20);
        if kind == INLINE {
            return extent(Place::Inline(behind));
        }
        if item.len() < BYTES {
            return Err(short());
        }
        let (logical, stored_bytes) = (le64(item, 21), le64(item, 29));
        let (within, len_bytes) = (le64(item, 37), le64(item, 45));
        match kind {
            REGULAR if logical == 0 => return extent(Place::Hole(len_bytes)),
            // Reserved and never written.
            PREALLOCATED => return extent(Place::Hole(len_bytes)),
            REGULAR => {}
            _ => return Err(bad("a file's extent is of an unknown kind")),
        }
        if within
            .checked_add(len_bytes)
            .is_none_or(|end| end > unpacked_bytes)
        {
            return Err(bad("a file's extent leaves what it is a part of"));
        }
        if method.is_some() && stored_bytes > MAX_STORED_BYTES {
            return Err(bad("a compressed extent is too large"));
        }
        extent(Place::Extent {
            logical,
            stored_bytes,
            within,
            len_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 KiB at 0xD0B000 that unpack to 128 KiB (zstd), as Linux wrote it.
    const PACKED: [u8; BYTES] = *b"\x07\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\x03\0\0\0\x01\
        \0\xB0\xD0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0";
    /// "1", as Linux wrote it.
    const INLINE: &[u8] = b"\x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x001";

    /// [`PACKED`] with other bytes from a place on.
    fn with(at: usize, bytes: &[u8]) -> [u8; BYTES] {
        let mut item = PACKED;
        item[at..at + bytes.len()].copy_from_slice(bytes);
        item
    }

    fn place(item: &[u8]) -> Place<'_> {
        FileExtent::parse(item).unwrap().place
    }

    #[test]
    fn parts_are_where_their_items_say() {
        let packed = FileExtent {
            method: Some(Compression::Zstd),
            unpacked_bytes: 128 << 10,
            place: Place::Extent {
                logical: 0xD0_B000,
                stored_bytes: 4096,
                within: 0,
                len_bytes: 128 << 10,
            },
        };
        assert_eq!(FileExtent::parse(&PACKED).unwrap(), packed);
        // The last 64 KiB of an extent of 1 GiB, as it is.
        let mut plain = with(8, &[0, 0, 0, 0x40, 0, 0, 0, 0, 0]);
        plain[29..33].copy_from_slice(&[0, 0, 0, 0x40]);
        plain[37..53].copy_from_slice(&[0, 0, 0xFF, 0x3F, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        let plain = FileExtent::parse(&plain).unwrap();
        assert_eq!((plain.method, plain.unpacked_bytes), (None, 1 << 30));
        let expected = Place::Extent {
            logical: 0xD0_B000,
            stored_bytes: 1 << 30,
            within: 0x3FFF_0000,
            len_bytes: 1 << 16,
        };
        assert_eq!(plain.place, expected);
        let inline = FileExtent::parse(INLINE).unwrap();
        assert_eq!((inline.method, inline.unpacked_bytes), (None, 1));
        assert_eq!(inline.place, Place::Inline(b"1"));
        assert_eq!(place(&INLINE[..21]), Place::Inline(b""));
    }

    #[test]
    fn what_was_never_written_is_a_hole() {
        assert_eq!(place(&with(21, &[0; 8])), Place::Hole(128 << 10));
        assert_eq!(place(&with(20, &[2])), Place::Hole(128 << 10));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let changes: [(&str, usize, &[u8]); 9] = [
            ("unpacks to more than 128 KiB", 8, &[1]),
            ("a compression that is not known", 16, &[4]),
            ("encrypted", 17, &[1]),
            ("encoded", 19, &[1]),
            ("a kind that is not known", 20, &[3]),
            ("takes more than 128 KiB", 29, &[1, 0, 2]),
            ("begins at the end", 37, &[1]),
            ("longer than the extent", 45, &[1]),
            ("ends past all numbers", 37, &[0xFF; 8]),
        ];
        for (what, at, bytes) in changes {
            assert!(FileExtent::parse(&with(at, bytes)).is_err(), "{what}");
        }
        for len in 0..BYTES {
            assert!(FileExtent::parse(&PACKED[..len]).is_err(), "{len}");
        }
    }
}
