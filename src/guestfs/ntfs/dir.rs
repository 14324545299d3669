//! NTFS directories: the entries of a `$I30` index, in parts and by name.
//!
//! An index is a B-tree: its root is in the directory's record, its other nodes are blocks of a stream,
//! and a bitmap says which of them are in use. A listing goes over the blocks in their order; a look-up
//! goes down the tree. Blocks are counted in clusters, or in 512 bytes where a cluster is larger than a block,
//! whatever a sector has. (LIBFSNTFS documentation, "directory entries".)

use std::cmp::Ordering;
use std::sync::Arc;

use super::attribute::kind;
use super::error::bad;
use super::fields::{byte, le16, le32, le64, part, units};
use super::record::{NUMBER_MASK, fix_up};
use super::upcase::Upcase;
use super::volume::{File, Volume};
use crate::error::Result;
use crate::guestfs::common::utf16::ascii;
use crate::io::{ReadAt, check_range};
use crate::volume::bits::index;

const INDEX: [u16; 4] = ascii(b"$I30");
/// A root has a few entries: it is in its record.
const MAX_ROOT_BYTES: u64 = 64 << 10;
const MAX_BLOCK_BYTES: u64 = 64 << 10;
/// Blocks of one index: 16 million, of some 20 to 40 names each.
const MAX_BITMAP_BYTES: u64 = 2 << 20;
/// Bytes of blocks that are read at once.
const CHUNK_BYTES: u64 = 64 << 10;
/// A part of a listing ends after so many entries or bytes.
const BATCH_ENTRIES: usize = 4096;
const BATCH_BYTES: u64 = 2 << 20;
/// Nodes that one look-up may visit; a sound tree has less than ten levels.
const MAX_VISITED: usize = 1000;
/// The first record that is not one of the file system's own.
const FIRST_LISTED: u64 = 16;
const NAMESPACE_DOS: u8 = 2;
/// Where the header of a block's entries is.
pub const BLOCK_HEADER: usize = 24;
/// Where that of the root's entries is, in the root's value.
const ROOT_HEADER: usize = 16;
const HAS_CHILD: u16 = 1;
const IS_LAST: u16 = 2;

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name in UTF-16.
    pub name: Vec<u16>,
    /// The file reference: record number and sequence number.
    pub reference: u64,
    /// Windows' file attributes, as the index has them.
    pub attributes: u32,
    namespace: u8,
}

impl Entry {
    /// Whether it is shown: no 8.3 alias, no file of the file system's own (nor `.`).
    fn is_listed(&self) -> bool {
        self.namespace != NAMESPACE_DOS && self.reference & NUMBER_MASK >= FIRST_LISTED
    }
}

/// A directory's index.
pub struct Index {
    /// The value of `$INDEX_ROOT`.
    root: Vec<u8>,
    blocks: Option<Blocks>,
}

struct Blocks {
    content: Arc<dyn ReadAt>,
    bitmap: Vec<u8>,
    block_bytes: u64,
    /// What the numbers of blocks count.
    vcn_bytes: u64,
}

impl Index {
    /// The index of a directory's record.
    ///
    /// # Errors
    /// `Corrupt` when the index does not hold together, here and below.
    pub fn open(volume: &Volume, file: &File) -> Result<Self> {
        let root = volume
            .stream(file, kind::INDEX_ROOT, &INDEX)?
            .ok_or_else(|| bad("a directory has no index"))?
            .into_bytes(&volume.clusters, MAX_ROOT_BYTES)?
            .ok_or_else(|| bad("the root of an index is too long"))?;
        let has_blocks = byte(&root, ROOT_HEADER + 12)? & 1 != 0;
        let mut index = Index { root, blocks: None };
        if has_blocks {
            index.blocks = Some(Blocks::open(volume, file, &index.root)?);
        }
        Ok(index)
    }

    /// About what it takes in memory.
    pub fn weight_bytes(&self) -> usize {
        let bitmap = self.blocks.as_ref().map_or(0, |blocks| blocks.bitmap.len());
        self.root.len() + bitmap + 1024
    }

    fn blocks(&self) -> Result<&Blocks> {
        let blocks = self.blocks.as_ref();
        blocks.ok_or_else(|| bad("an index lacks its blocks"))
    }

    /// The entries from `cursor` on (0, or what the last part gave), and where to go on.
    pub fn part(&self, cursor: u64) -> Result<(Vec<Entry>, Option<u64>)> {
        let mut found = Vec::new();
        let mut keep = |bytes: &[u8], header| -> Result<usize> {
            for node in nodes(bytes, header)? {
                // A block that the bitmap has lost would be missing without a word.
                if let Some(child) = node.child {
                    self.blocks()?.number_of(child)?;
                }
                found.extend(node.entry.filter(Entry::is_listed));
            }
            Ok(found.len())
        };
        if cursor == 0 {
            keep(&self.root, ROOT_HEADER)?;
        }
        let Some(blocks) = &self.blocks else {
            return Ok((found, None));
        };
        let per_chunk = (CHUNK_BYTES / blocks.block_bytes).max(1);
        let mut read_bytes = 0;
        let mut next = cursor;
        while let Some(first) = blocks.next_in_use(next) {
            let mut count = 1;
            while count < per_chunk && blocks.is_in_use(first + count) {
                count += 1;
            }
            let mut chunk = blocks.read(first, count)?;
            let mut total = 0;
            for (block, number) in chunk
                .chunks_exact_mut(index(blocks.block_bytes))
                .zip(first..)
            {
                blocks.check(block, number)?;
                total = keep(block, BLOCK_HEADER)?;
            }
            next = first + count;
            read_bytes += count * blocks.block_bytes;
            if total >= BATCH_ENTRIES || read_bytes >= BATCH_BYTES {
                return Ok((found, Some(next)));
            }
        }
        Ok((found, None))
    }

    /// The file reference of a name, matched exactly. The tree is in the order of names in upper case;
    /// names that differ in case only may be anywhere among each other.
    pub fn find(&self, name: &[u16], upcase: &Upcase) -> Result<Option<u64>> {
        let mut below = Vec::new();
        let mut block;
        let (mut bytes, mut header) = (&self.root[..], ROOT_HEADER);
        for _ in 0..MAX_VISITED {
            for node in nodes(bytes, header)? {
                let order = match &node.entry {
                    // The last one, which has no name, is behind all names.
                    None => Ordering::Less,
                    Some(entry) => upcase.compare(name, &entry.name),
                };
                if let Some(entry) = node.entry.filter(Entry::is_listed)
                    && entry.name == name
                {
                    return Ok(Some(entry.reference));
                }
                // What is in the child comes before the entry.
                if order != Ordering::Greater {
                    below.extend(node.child);
                }
                if order == Ordering::Less {
                    break;
                }
            }
            let Some(child) = below.pop() else {
                return Ok(None);
            };
            block = self.blocks()?.by_place(child)?;
            (bytes, header) = (&block[..], BLOCK_HEADER);
        }
        Err(bad("an index goes in a circle"))
    }
}

impl Blocks {
    fn open(volume: &Volume, file: &File, root: &[u8]) -> Result<Self> {
        let block_bytes = u64::from(le32(root, 8)?);
        if !block_bytes.is_power_of_two() || !(512..=MAX_BLOCK_BYTES).contains(&block_bytes) {
            return Err(bad("an index has blocks of a strange size"));
        }
        let stream = |kind| {
            volume
                .stream(file, kind, &INDEX)?
                .ok_or_else(|| bad("an index lacks its blocks"))
        };
        let bitmap = stream(kind::BITMAP)?
            .into_bytes(&volume.clusters, MAX_BITMAP_BYTES)?
            .ok_or_else(|| bad("an index is too large"))?;
        let cluster_bytes = volume.clusters.cluster_bytes;
        Ok(Blocks {
            content: stream(kind::INDEX_ALLOCATION)?.into_metadata(&volume.clusters)?,
            bitmap,
            block_bytes,
            vcn_bytes: match cluster_bytes <= block_bytes {
                true => cluster_bytes,
                false => 512,
            },
        })
    }

    fn is_in_use(&self, number: u64) -> bool {
        let byte = self.bitmap.get((number / 8) as usize);
        byte.is_some_and(|byte| byte & (1 << (number % 8)) != 0)
    }

    /// The first block from `number` on that is in use.
    fn next_in_use(&self, number: u64) -> Option<u64> {
        (number..self.bitmap.len() as u64 * 8).find(|&number| self.is_in_use(number))
    }

    /// Some blocks as they are stored.
    fn read(&self, first: u64, count: u64) -> Result<Vec<u8>> {
        let (start, len) = (first * self.block_bytes, count * self.block_bytes);
        if check_range(start, len, self.content.len_bytes()).is_err() {
            return Err(bad("an index uses blocks that it does not have"));
        }
        let mut bytes = vec![0; index(len)];
        self.content.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }

    /// Makes sure that a block is whole and the one it should be.
    fn check(&self, block: &mut [u8], number: u64) -> Result<()> {
        fix_up(block, b"INDX")?;
        match le64(block, 16)? == number * self.block_bytes / self.vcn_bytes {
            true => Ok(()),
            false => Err(bad("an index block is not the one it should be")),
        }
    }

    /// The number of the block that an entry names as its child.
    fn number_of(&self, vcn: u64) -> Result<u64> {
        vcn.checked_mul(self.vcn_bytes)
            .filter(|at| at % self.block_bytes == 0)
            .map(|at| at / self.block_bytes)
            .filter(|&number| self.is_in_use(number))
            .ok_or_else(|| bad("an index entry names a block that is not there"))
    }

    /// The block that an entry names as its child.
    fn by_place(&self, vcn: u64) -> Result<Vec<u8>> {
        let number = self.number_of(vcn)?;
        let mut block = self.read(number, 1)?;
        self.check(&mut block, number)?;
        Ok(block)
    }
}

/// An entry of a node as it is in the tree; the last one of a node has no name.
pub struct Node {
    /// The name.
    pub entry: Option<Entry>,
    /// The place of the block with the names before it.
    pub child: Option<u64>,
}

/// The entries of a node whose header is at this byte.
///
/// # Errors
/// `Corrupt` when one of them leaves the node.
pub fn nodes(bytes: &[u8], header: usize) -> Result<Vec<Node>> {
    let misfit = || bad("an index entry makes no sense");
    let first = le32(bytes, header)? as usize;
    let used = le32(bytes, header + 4)? as usize;
    let all = bytes
        .get(..header.saturating_add(used))
        .ok_or_else(misfit)?;
    let mut at = header.saturating_add(first);
    let mut found = Vec::new();
    loop {
        let len = usize::from(le16(all, at.saturating_add(8))?);
        if len < 16 || !len.is_multiple_of(8) {
            return Err(misfit());
        }
        let entry = part(all, at, len)?;
        let key_len = usize::from(le16(entry, 10)?);
        let flags = le16(entry, 12)?;
        let child = match flags & HAS_CHILD {
            0 => None,
            _ => Some(le64(entry, len - 8)?),
        };
        if flags & IS_LAST != 0 {
            found.push(Node { entry: None, child });
            return Ok(found);
        }
        let key = part(entry, 16, key_len)?;
        found.push(Node {
            entry: Some(Entry {
                name: units(key, 66, usize::from(byte(key, 64)?))?,
                reference: le64(entry, 0)?,
                attributes: le32(key, 56)?,
                namespace: byte(key, 65)?,
            }),
            child,
        });
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these names, or just its last entry.
    fn root(names: &[&str]) -> Vec<u8> {
        let mut entries = Vec::new();
        for (name, reference) in names.iter().zip(100u64..) {
            let units: Vec<u16> = name.encode_utf16().collect();
            let key_len = 66 + 2 * units.len();
            let len = (16 + key_len).next_multiple_of(8);
            let mut entry = vec![0; len];
            entry[..8].copy_from_slice(&reference.to_le_bytes());
            entry[8..10].copy_from_slice(&(len as u16).to_le_bytes());
            entry[10..12].copy_from_slice(&(key_len as u16).to_le_bytes());
            entry[16 + 64] = units.len() as u8;
            entry[16 + 65] = 1;
            for (unit, pair) in units.iter().zip(entry[16 + 66..].chunks_exact_mut(2)) {
                pair.copy_from_slice(&unit.to_le_bytes());
            }
            entries.extend(entry);
        }
        entries.extend([0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0]);
        let mut root = vec![0; 32];
        root[16..20].copy_from_slice(&16u32.to_le_bytes());
        root[20..24].copy_from_slice(&(16 + entries.len() as u32).to_le_bytes());
        root.extend(entries);
        root
    }

    #[test]
    fn entries_that_leave_their_node_are_refused() {
        let good = root(&["a", "name"]);
        assert_eq!(nodes(&good, ROOT_HEADER).unwrap().len(), 3);
        for len in 0..good.len() {
            assert!(nodes(&good[..len], ROOT_HEADER).is_err(), "{len}");
        }
        for (at, value) in [
            (32 + 8, 15),
            (32 + 8, 0),
            (32 + 10, 200),
            (32 + 16 + 64, 99),
        ] {
            let mut damaged = good.clone();
            damaged[at] = value;
            assert!(nodes(&damaged, ROOT_HEADER).is_err(), "{at} {value}");
        }
    }

    #[test]
    fn a_listing_does_not_pass_over_a_block_that_the_bitmap_has_lost() {
        const BLOCK: usize = 4096;
        // A root whose last entry has the block behind `child` clusters below it.
        let root_over = |child: u64| {
            let mut root = root(&["z"]);
            let (last, used) = (root.len() - 16, root.len() - 16 + 8);
            root[last + 8] = 24;
            root[last + 12] = 3;
            root[20..24].copy_from_slice(&(used as u32).to_le_bytes());
            root.extend(child.to_le_bytes());
            root
        };
        let entries = root(&["a"])[32..].to_vec();
        let mut block = vec![0; BLOCK];
        block[..4].copy_from_slice(b"INDX");
        block[24] = 40;
        block[28..32].copy_from_slice(&(40 + entries.len() as u32).to_le_bytes());
        block[64..64 + entries.len()].copy_from_slice(&entries);
        super::super::record::tests::protect(&mut block, 40);
        let listed = |bitmap: Option<u8>, child| {
            let index = Index {
                root: root_over(child),
                blocks: bitmap.map(|bits| Blocks {
                    content: Arc::new(block.clone()),
                    bitmap: vec![bits],
                    block_bytes: BLOCK as u64,
                    vcn_bytes: 1024,
                }),
            };
            let (entries, next) = index.part(0)?;
            assert_eq!(next, None);
            let names = entries.into_iter().map(|entry| entry.name);
            Ok::<_, crate::error::Error>(names.collect::<Vec<_>>())
        };
        assert_eq!(listed(Some(1), 0).unwrap(), [ascii(b"z"), ascii(b"a")]);
        for (bitmap, child) in [(Some(0), 0), (Some(1), 4), (Some(1), 1), (None, 0)] {
            let error = listed(bitmap, child).unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_listing_of_a_small_directory_has_one_part() {
        let index = Index {
            root: root(&["a", "b"]),
            blocks: None,
        };
        let (entries, next) = index.part(0).unwrap();
        assert_eq!((entries.len(), next), (2, None));
        assert_eq!(entries[1].reference, 101);
    }
}
