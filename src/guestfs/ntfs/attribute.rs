//! The attributes in a file record, and the list that says in which other records a file has some.
//!
//! An attribute has its type at 0, its length at 4, whether its value is in clusters at 8, its name at 9 and 10,
//! flags at 12. A value in the record has its length at 16 and its place at 20. One in clusters has the first
//! of its clusters that this attribute tells of at 16, the run list's place at 32, the unit of compression at
//! 34, and its allocated, full and initialized length at 40, 48 and 56; what sparse and compressed ones really
//! use is at 64. The entries of a list: type at 0, length at 4, name at 6 and 7, first cluster at 8, file
//! reference at 16. (LIBFSNTFS documentation, "MFT attribute" and "attribute list".)

use std::ops::Range;

use super::error::bad;
use super::fields::{byte, le16, le32, le64, part, units};
use crate::error::Result;

/// Types of attributes.
pub mod kind {
    #![allow(missing_docs)]
    pub const STANDARD_INFORMATION: u32 = 0x10;
    pub const ATTRIBUTE_LIST: u32 = 0x20;
    pub const FILE_NAME: u32 = 0x30;
    pub const VOLUME_INFORMATION: u32 = 0x70;
    pub const DATA: u32 = 0x80;
    pub const INDEX_ROOT: u32 = 0x90;
    pub const INDEX_ALLOCATION: u32 = 0xA0;
    pub const BITMAP: u32 = 0xB0;
    pub const REPARSE_POINT: u32 = 0xC0;
    pub const EXTENDED_ATTRIBUTES: u32 = 0xE0;
    pub(super) const END: u32 = 0xFFFF_FFFF;
}

/// The value is compressed.
pub const FLAG_COMPRESSED: u16 = 0x00FF;
/// The value is encrypted.
pub const FLAG_ENCRYPTED: u16 = 0x4000;
/// Parts of the value are stored nowhere.
const FLAG_SPARSE: u16 = 0x8000;
/// Instances that one attribute list may tell of.
const MAX_INSTANCES: usize = 100_000;
/// Bytes of a list's entry without its name.
const ENTRY_BYTES: usize = 26;

/// An attribute. Ranges are those of its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its type.
    pub kind: u32,
    /// Its name, mostly none.
    pub name: Vec<u16>,
    /// How its value is stored.
    pub flags: u16,
    /// Where its value is.
    pub value: Value,
}

/// Where an attribute's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// In the record.
    Resident(Range<usize>),
    /// In clusters.
    Clusters(InClusters),
}

/// A value in clusters, or a part of one. Lengths count in the first part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InClusters {
    /// The first cluster of the value that this part tells of.
    pub first_cluster: u64,
    /// The run list.
    pub runs: Range<usize>,
    /// Clusters of a unit of compression as a power of two.
    pub unit_shift: u8,
    /// Bytes of clusters that it uses.
    pub allocated_bytes: u64,
    /// Length of the value.
    pub len_bytes: u64,
    /// What lies behind this was never written and reads as zeros.
    pub initialized_bytes: u64,
}

impl Attribute {
    /// Whether it is one of this type and name.
    pub fn is(&self, kind: u32, name: &[u16]) -> bool {
        self.kind == kind && self.name == name
    }

    /// The first cluster of the value that it tells of.
    pub fn first_cluster(&self) -> u64 {
        match &self.value {
            Value::Resident(_) => 0,
            Value::Clusters(part) => part.first_cluster,
        }
    }

    fn parse(bytes: &[u8], start: usize) -> Result<(Self, usize)> {
        let len = le32(bytes, start + 4)? as usize;
        let own = part(bytes, start, len)?;
        // The place of a part of the attribute in the record.
        let place = |at: usize, len: usize| -> Result<Range<usize>> {
            part(own, at, len)?;
            Ok(start + at..start + at + len)
        };
        let flags = le16(own, 12)?;
        let value = match byte(own, 8)? {
            0 => {
                let (len, at) = (le32(own, 16)? as usize, usize::from(le16(own, 20)?));
                Value::Resident(place(at, len)?)
            }
            _ => {
                let runs_at = usize::from(le16(own, 32)?);
                let runs_len = len
                    .checked_sub(runs_at)
                    .ok_or_else(|| bad("a run list leaves its attribute"))?;
                let unit_shift = byte(own, 34)?;
                let is_partial = unit_shift != 0 || flags & (FLAG_SPARSE | FLAG_COMPRESSED) != 0;
                Value::Clusters(InClusters {
                    first_cluster: le64(own, 16)?,
                    runs: place(runs_at, runs_len)?,
                    unit_shift,
                    allocated_bytes: match is_partial && runs_at >= 72 {
                        true => le64(own, 64)?,
                        false => le64(own, 40)?,
                    },
                    len_bytes: le64(own, 48)?,
                    initialized_bytes: le64(own, 56)?,
                })
            }
        };
        let attribute = Attribute {
            kind: le32(own, 0)?,
            name: name(own, byte(own, 9)?, usize::from(le16(own, 10)?))?,
            flags,
            value,
        };
        Ok((attribute, len))
    }
}

/// A name that may not be there: its place means nothing then.
fn name(bytes: &[u8], count: u8, at: usize) -> Result<Vec<u16>> {
    match count {
        0 => Ok(Vec::new()),
        _ => units(bytes, at, usize::from(count)),
    }
}

/// All attributes of a record, of which the bytes in use are given and where the first attribute is.
///
/// # Errors
/// `Corrupt` when one of them leaves the record, or they do not end.
pub fn parse_all(record: &[u8], first: usize) -> Result<Vec<Attribute>> {
    let mut found = Vec::new();
    let mut at = first;
    while le32(record, at)? != kind::END {
        let (attribute, len) = Attribute::parse(record, at)?;
        found.push(attribute);
        // At least 24 bytes: `parse` has read so far.
        at += len;
    }
    Ok(found)
}

/// An entry of an attribute list: a part of an attribute, and the record that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// The attribute's type.
    pub kind: u32,
    /// The attribute's name.
    pub name: Vec<u16>,
    /// The first cluster of the value that the part tells of.
    pub first_cluster: u64,
    /// The file reference of the record.
    pub reference: u64,
}

/// The entries of an attribute list.
///
/// # Errors
/// `Corrupt` when one of them leaves the list, or there are too many.
pub fn parse_list(value: &[u8]) -> Result<Vec<ListEntry>> {
    let mut found = Vec::new();
    let mut rest = value;
    // Nothing but padding may follow the last one.
    while rest.iter().any(|&byte| byte != 0) {
        let len = usize::from(le16(rest, 4)?);
        if len < ENTRY_BYTES || found.len() == MAX_INSTANCES {
            return Err(bad("an attribute list makes no sense"));
        }
        let own = part(rest, 0, len)?;
        found.push(ListEntry {
            kind: le32(own, 0)?,
            name: name(own, byte(own, 6)?, usize::from(byte(own, 7)?))?,
            first_cluster: le64(own, 8)?,
            reference: le64(own, 16)?,
        });
        rest = rest.get(len..).unwrap_or_default();
    }
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An attribute with its value in the record.
    pub fn resident(kind: u32, name: &str, value: &[u8]) -> Vec<u8> {
        let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let value_at = (24 + units.len()).next_multiple_of(8);
        let len = (value_at + value.len()).next_multiple_of(8);
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[9] = (units.len() / 2) as u8;
        bytes[10] = 24;
        bytes[16..20].copy_from_slice(&(value.len() as u32).to_le_bytes());
        bytes[20..22].copy_from_slice(&(value_at as u16).to_le_bytes());
        bytes[24..24 + units.len()].copy_from_slice(&units);
        bytes[value_at..value_at + value.len()].copy_from_slice(value);
        bytes
    }

    /// An attribute with its value in clusters.
    pub fn in_clusters(kind: u32, first_cluster: u64, len_bytes: u64, runs: &[u8]) -> Vec<u8> {
        let len = (64 + runs.len()).next_multiple_of(8);
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[8] = 1;
        bytes[16..24].copy_from_slice(&first_cluster.to_le_bytes());
        bytes[32] = 64;
        for at in [40, 48, 56] {
            bytes[at..at + 8].copy_from_slice(&len_bytes.to_le_bytes());
        }
        bytes[64..64 + runs.len()].copy_from_slice(runs);
        bytes
    }

    /// An entry of an attribute list.
    pub fn entry(kind: u32, first_cluster: u64, reference: u64) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4] = 32;
        bytes[7] = 26;
        bytes[8..16].copy_from_slice(&first_cluster.to_le_bytes());
        bytes[16..24].copy_from_slice(&reference.to_le_bytes());
        bytes
    }

    fn with_end(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = attributes.concat();
        bytes.extend([0xFF; 4]);
        bytes
    }

    #[test]
    fn attributes_are_found_in_and_outside_of_their_record() {
        let record = with_end(&[
            resident(kind::DATA, "", b"value"),
            resident(kind::DATA, "name", b"other"),
            in_clusters(kind::INDEX_ALLOCATION, 7, 9000, &[0x11, 3, 20, 0]),
        ]);
        let found = parse_all(&record, 0).unwrap();
        let value = |index: usize| match &found[index].value {
            Value::Resident(range) => record[range.clone()].to_vec(),
            Value::Clusters(part) => record[part.runs.clone()].to_vec(),
        };
        assert_eq!(value(0), b"value");
        assert_eq!(value(1), b"other");
        let name: Vec<u16> = "name".encode_utf16().collect();
        assert!(found[1].is(kind::DATA, &name) && !found[0].is(kind::DATA, &name));
        assert_eq!(value(2)[..4], [0x11, 3, 20, 0]);
        assert_eq!(found[2].first_cluster(), 7);
        for len in 0..record.len() {
            assert!(parse_all(&record[..len], 0).is_err(), "{len}");
        }
    }

    #[test]
    fn what_sparse_values_use_is_told_by_its_own_field() {
        let mut bytes = in_clusters(kind::DATA, 0, 9000, &[0; 16]);
        bytes[32] = 72;
        bytes[64..72].copy_from_slice(&5u64.to_le_bytes());
        let allocated = |bytes: &[u8]| {
            let found = parse_all(&with_end(&[bytes.to_vec()]), 0).unwrap();
            match &found[0].value {
                Value::Clusters(part) => part.allocated_bytes,
                Value::Resident(_) => panic!("in clusters"),
            }
        };
        assert_eq!(allocated(&bytes), 9000);
        bytes[13] = 0x80;
        assert_eq!(allocated(&bytes), 5);
        bytes[13] = 0;
        bytes[34] = 4;
        assert_eq!(allocated(&bytes), 5);
        // Flagged, without the field.
        bytes[32] = 64;
        assert_eq!(allocated(&bytes), 9000);
    }

    #[test]
    fn a_list_that_makes_no_sense_is_refused_and_padding_is_not() {
        let list = [
            entry(kind::DATA, 0, 40),
            entry(kind::DATA, 9, 41 | 5 << 48),
            vec![0; 6],
        ]
        .concat();
        let entries = parse_list(&list).unwrap();
        let short: Vec<_> = entries
            .iter()
            .map(|e| (e.first_cluster, e.reference))
            .collect();
        assert_eq!(short, [(0, 40), (9, 41 | 5 << 48)]);
        assert!(parse_list(&list[..60]).is_err());
        for (at, value) in [(4, 0), (4, 25), (5, 1), (6, 200)] {
            let mut damaged = list.clone();
            damaged[at] = value;
            assert!(parse_list(&damaged).is_err(), "{at} {value}");
        }
    }
}
