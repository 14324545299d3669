//! File records, and the update sequences that protect them and index blocks.
//!
//! A structure with an update sequence has its magic at 0, the place of the update sequence array at 4 and
//! the number of its 16-bit words at 6. The last two bytes of every 512 bytes, whatever a sector has, are
//! those of the first word while it is stored; the other words are what belongs there. A write that was cut
//! leaves some that differ. A file record has its sequence number at 16, the number of its names at 18, its
//! first attribute at 20, flags at 22, the bytes in use at 24 and the record it belongs to at 32.

use std::ops::Range;

use super::attribute::{self, Attribute};
use super::error::bad;
use super::fields::{le16, le32, le64, part};
use crate::error::Result;

/// What an update sequence counts in: not the volume's sectors.
const STRIDE: usize = 512;
const IN_USE: u16 = 1;
const DIRECTORY: u16 = 2;
/// The record number in a file reference; the sequence number is above it, 0 for "any".
pub const NUMBER_MASK: u64 = (1 << 48) - 1;

/// Makes sure that a structure was written as a whole, and puts back what its update sequence stands for.
///
/// # Errors
/// `Corrupt` when it has another magic, or was not written as a whole.
pub fn fix_up(bytes: &mut [u8], magic: &[u8; 4]) -> Result<()> {
    if !bytes.starts_with(magic) {
        return Err(bad(match bytes.starts_with(b"BAAD") {
            true => "a structure is marked as damaged by an earlier check of the volume",
            false => "a structure lacks its signature",
        }));
    }
    let at = usize::from(le16(bytes, 4)?);
    let words = usize::from(le16(bytes, 6)?);
    let strides = bytes.len() / STRIDE;
    // The array must not lie over what it stands for.
    if !bytes.len().is_multiple_of(STRIDE) || words != strides + 1 || at + 2 * words > STRIDE - 2 {
        return Err(bad("an update sequence does not fit its structure"));
    }
    let array = part(bytes, at, 2 * words)?.to_vec();
    let (number, stored) = array.split_at(2);
    for (stride, word) in bytes.chunks_exact_mut(STRIDE).zip(stored.chunks_exact(2)) {
        let (_, tail) = stride.split_at_mut(STRIDE - 2);
        if tail != number {
            return Err(bad("a structure was not written as a whole"));
        }
        tail.copy_from_slice(word);
    }
    Ok(())
}

/// A file record in use.
#[derive(Debug)]
pub struct Record {
    bytes: Vec<u8>,
    /// Its sequence number.
    pub sequence: u16,
    /// Names that lead to it.
    pub links: u16,
    /// The file reference of the record that it extends, 0 for a file's own.
    pub base: u64,
    /// Its attributes.
    pub attributes: Vec<Attribute>,
    flags: u16,
}

impl Record {
    /// Reads a record as it is stored.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged or not in use.
    pub fn parse(mut bytes: Vec<u8>) -> Result<Self> {
        fix_up(&mut bytes, b"FILE")?;
        let flags = le16(&bytes, 22)?;
        if flags & IN_USE == 0 {
            return Err(bad("a name leads to a record that is not in use"));
        }
        let first = usize::from(le16(&bytes, 20)?);
        let used = le32(&bytes, 24)? as usize;
        let in_use = bytes
            .get(..used)
            .ok_or_else(|| bad("a record is longer than it can be"))?;
        Ok(Record {
            sequence: le16(&bytes, 16)?,
            links: le16(&bytes, 18)?,
            base: le64(&bytes, 32)?,
            attributes: attribute::parse_all(in_use, first)?,
            flags,
            bytes,
        })
    }

    /// Whether it is a directory's.
    pub fn is_directory(&self) -> bool {
        self.flags & DIRECTORY != 0
    }

    /// An attribute of this type and name that begins with this cluster of the stream.
    pub fn find(&self, kind: u32, name: &[u16], first_cluster: u64) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| {
            attribute.is(kind, name) && attribute.first_cluster() == first_cluster
        })
    }

    /// Bytes of it that an attribute refers to.
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        // Ranges come from `attribute`, which has looked whether they are there.
        self.bytes.get(range.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Protects a structure whose update sequence array is at `at`.
    pub fn protect(bytes: &mut [u8], at: usize) {
        let words = bytes.len() / STRIDE + 1;
        bytes[4..6].copy_from_slice(&(at as u16).to_le_bytes());
        bytes[6..8].copy_from_slice(&(words as u16).to_le_bytes());
        let mut array = vec![0x5A, 0xA5];
        for stride in bytes.chunks_exact_mut(STRIDE) {
            array.extend_from_slice(&stride[STRIDE - 2..]);
            stride[STRIDE - 2..].copy_from_slice(&[0x5A, 0xA5]);
        }
        bytes[at..at + array.len()].copy_from_slice(&array);
    }

    /// A record in use with these attributes, as it is stored.
    pub fn stored(len: usize, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(b"FILE");
        bytes[16] = 3;
        bytes[18] = 1;
        bytes[20] = 72;
        bytes[22] = 1;
        let used = 72 + attributes.len() + 8;
        bytes[24..28].copy_from_slice(&(used as u32).to_le_bytes());
        bytes[72..72 + attributes.len()].copy_from_slice(attributes);
        bytes[72 + attributes.len()..][..4].fill(0xFF);
        protect(&mut bytes, 48);
        bytes
    }

    #[test]
    fn update_sequences_go_by_512_bytes_whatever_a_sector_has() {
        for len in [512, 1024, 4096, 65536] {
            let plain: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut bytes = plain.clone();
            bytes[..4].copy_from_slice(b"INDX");
            protect(&mut bytes, 40);
            let mut torn = bytes.clone();
            torn[len - 1] ^= 1;
            fix_up(&mut bytes, b"INDX").unwrap();
            let behind_array = 40 + 2 * (len / STRIDE + 1);
            assert_eq!(bytes[behind_array..], plain[behind_array..], "{len}");
            assert!(fix_up(&mut torn, b"INDX").is_err());
        }
        let mut bytes = stored(1024, &[]);
        assert!(fix_up(&mut bytes.clone(), b"INDX").is_err());
        // By sectors of 1024 bytes: not what is there.
        bytes[6] = 2;
        assert!(fix_up(&mut bytes, b"FILE").is_err());
        for (at, value) in [(4, 0xFF), (5, 0xFF), (6, 0xFF), (7, 0xFF), (510, 0)] {
            let mut damaged = stored(1024, &[]);
            damaged[at] = value;
            assert!(fix_up(&mut damaged, b"FILE").is_err(), "{at}");
        }
    }

    #[test]
    fn records_that_are_not_in_use_or_too_long_are_refused() {
        let record = Record::parse(stored(1024, &[])).unwrap();
        assert_eq!((record.sequence, record.links), (3, 1));
        assert!(!record.is_directory() && record.attributes.is_empty());
        for (at, value) in [(22, 0), (25, 0x04), (24, 70), (20, 200), (20, 0xFF)] {
            let mut damaged = stored(1024, &[]);
            damaged[at] = value;
            assert!(Record::parse(damaged).is_err(), "{at} {value}");
        }
    }
}
