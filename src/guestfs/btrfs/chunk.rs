//! Chunks: which bytes of which devices a range of logical addresses is stored in.
//!
//! Pure arithmetic on what was parsed; `space` reads. Source: `struct btrfs_chunk` in Linux'
//! `btrfs_tree.h`, `btrfs_check_chunk_valid` in `tree-checker.c`, `btrfs_map_block` in `volumes.c`.

use std::collections::BTreeMap;

use super::fault::bad;
use super::key::{CHUNK_ITEM, FIRST_CHUNK_TREE, Key};
use super::superblock::{DeviceId, uuid};
use crate::error::Result;
use crate::volume::bits::{index, le16, le64};

/// The kernel knows no other length of a stripe.
pub const STRIPE_BYTES: u64 = 64 << 10;
const HEAD_BYTES: usize = 48;
const ITEM_STRIPE_BYTES: usize = 32;
/// All chunks together, as stored: some 800,000 of them, and of a usual size 800 TiB.
const MAX_CHUNK_BYTES: usize = 64 << 20;

/// A part of a chunk on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripe {
    /// The device.
    pub device: DeviceId,
    /// Where on it, in bytes.
    pub offset: u64,
}

/// How a chunk's bytes lie on its stripes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Each stripe has all of them: single, DUP, RAID 1, 1C3 and 1C4.
    Copies,
    /// In turn on groups of so many stripes that are copies: RAID 0 (of 1) and RAID 10.
    Striped(u64),
    /// In turn on all but so many stripes, which hold sums: RAID 5 and 6.
    Parity(u64),
}

/// A range of logical addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    start: u64,
    len_bytes: u64,
    layout: Layout,
    stripes: Box<[Stripe]>,
}

/// Where a byte is.
#[derive(Debug, PartialEq, Eq)]
pub struct Spot {
    /// Bytes from here that lie in one run.
    pub len_bytes: u64,
    /// Where on each stripe, from the stripe's start.
    pub within: u64,
    /// The stripes.
    pub places: Places,
}

/// The stripes that have to do with a byte.
#[derive(Debug, PartialEq, Eq)]
pub enum Places {
    /// Each of these (first and number) has it.
    Copies(usize, usize),
    /// One has it, the others can tell it.
    Parity(Row),
}

/// A row of a chunk with parity: what is at the same place on all its stripes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The stripe of the first data.
    first: usize,
    stripes: usize,
    /// How many hold data. Sums come behind them: the plain one, and Reed and Solomon's.
    pub data: usize,
    /// How many hold sums.
    pub parities: usize,
    /// Which of the data has the byte.
    pub wanted: usize,
}

impl Row {
    /// The stripe with data `column`, or with a sum (from `data` on).
    pub fn stripe(&self, column: usize) -> usize {
        (self.first + column) % self.stripes
    }
}

impl Chunk {
    /// Parses a chunk item (a longer slice is fine) filed under the address `start`.
    ///
    /// # Errors
    /// `Corrupt` for what the kernel would not take, either.
    pub fn parse(start: u64, item: &[u8], sector_bytes: u32) -> Result<Chunk> {
        const DATA_SYSTEM_METADATA: u64 = 7;
        if item.len() < HEAD_BYTES {
            return Err(bad("a chunk is too short"));
        }
        let (len_bytes, kind) = (le64(item, 0), le64(item, 24));
        let (count, sub_stripes) = (le16(item, 44), le16(item, 46));
        let count = usize::from(count);
        let stripes = item
            .get(HEAD_BYTES..HEAD_BYTES + count * ITEM_STRIPE_BYTES)
            .ok_or_else(|| bad("a chunk has more stripes than it has room for"))?;
        // Profiles as bits from 3 on; of each, the number of stripes that it can have.
        let (layout, counts) = match (kind >> 3) & 0xFF {
            0x00 => (Layout::Copies, 1..=1),
            0x01 => (Layout::Striped(1), 1..=usize::MAX),
            0x02 | 0x04 => (Layout::Copies, 2..=2),
            0x08 => (Layout::Striped(2), 2..=usize::MAX),
            0x10 => (Layout::Parity(1), 2..=usize::MAX),
            0x20 => (Layout::Parity(2), 3..=usize::MAX),
            0x40 => (Layout::Copies, 3..=3),
            0x80 => (Layout::Copies, 4..=4),
            _ => return Err(bad("a chunk has several profiles")),
        };
        let is_sound = counts.contains(&count)
            && (layout != Layout::Striped(2) || sub_stripes == 2 && count.is_multiple_of(2))
            && kind & DATA_SYSTEM_METADATA != 0
            && kind >> 11 == 0
            && le64(item, 16) == STRIPE_BYTES
            && len_bytes > 0
            && start.checked_add(len_bytes).is_some();
        if !is_sound {
            return Err(bad("a chunk does not make sense"));
        }
        let sector = u64::from(sector_bytes);
        let mut parsed = Vec::with_capacity(count);
        for stripe in stripes.chunks_exact(ITEM_STRIPE_BYTES) {
            let offset = le64(stripe, 8);
            if !offset.is_multiple_of(sector) || offset.checked_add(len_bytes).is_none() {
                return Err(bad("a chunk is past the end of everything"));
            }
            parsed.push(Stripe {
                device: DeviceId {
                    number: le64(stripe, 0),
                    uuid: uuid(stripe, 16),
                },
                offset,
            });
        }
        if !start.is_multiple_of(sector) || !len_bytes.is_multiple_of(sector) {
            return Err(bad("a chunk is not of whole sectors"));
        }
        Ok(Chunk {
            start,
            len_bytes,
            layout,
            stripes: parsed.into(),
        })
    }

    /// Bytes of the item.
    fn item_bytes(&self) -> usize {
        HEAD_BYTES + self.stripes.len() * ITEM_STRIPE_BYTES
    }

    fn end(&self) -> u64 {
        // Cannot overflow: `parse` checked.
        self.start + self.len_bytes
    }

    /// Its stripes.
    pub fn stripes(&self) -> &[Stripe] {
        &self.stripes
    }

    /// Where the byte at a logical address within the chunk is.
    fn spot(&self, logical: u64) -> Spot {
        let offset = logical - self.start;
        let left = self.end() - logical;
        let count = self.stripes.len() as u64;
        let (number, rest) = (offset / STRIPE_BYTES, offset % STRIPE_BYTES);
        let in_row = |row: u64| row * STRIPE_BYTES + rest;
        match self.layout {
            Layout::Copies => Spot {
                len_bytes: left,
                within: offset,
                places: Places::Copies(0, self.stripes.len()),
            },
            Layout::Striped(copies) => {
                let groups = count / copies;
                Spot {
                    len_bytes: left.min(STRIPE_BYTES - rest),
                    within: in_row(number / groups),
                    places: Places::Copies(index(number % groups * copies), index(copies)),
                }
            }
            Layout::Parity(parities) => {
                let data = count - parities;
                let row = number / data;
                Spot {
                    len_bytes: left.min(STRIPE_BYTES - rest),
                    within: in_row(row),
                    places: Places::Parity(Row {
                        // Each row begins one stripe later than the one before it.
                        first: index(row % count),
                        stripes: self.stripes.len(),
                        data: index(data),
                        parities: index(parities),
                        wanted: index(number % data),
                    }),
                }
            }
        }
    }
}

/// All chunks that are known.
#[derive(Debug, Default)]
pub struct Chunks {
    by_start: BTreeMap<u64, Chunk>,
    item_bytes: usize,
}

impl Chunks {
    /// The chunks in a superblock, which hold the tree of all chunks.
    ///
    /// # Errors
    /// `Corrupt` for a list that does not hold together.
    pub fn of_superblock(list: &[u8], sector_bytes: u32) -> Result<Chunks> {
        let mut chunks = Chunks::default();
        let mut rest = list;
        while !rest.is_empty() {
            let key = Key::parse(rest)
                .filter(|key| (key.objectid, key.key_type) == (FIRST_CHUNK_TREE, CHUNK_ITEM))
                .ok_or_else(|| bad("the superblock's chunks do not make sense"))?;
            let item = rest.get(Key::BYTES..).unwrap_or_default();
            let chunk = Chunk::parse(key.offset, item, sector_bytes)?;
            rest = item.get(chunk.item_bytes()..).unwrap_or_default();
            chunks.insert(chunk)?;
        }
        Ok(chunks)
    }

    /// Adds a chunk; the same one again is fine.
    ///
    /// # Errors
    /// `Corrupt` when another one has some of its addresses, and when there are too many.
    pub fn insert(&mut self, chunk: Chunk) -> Result<()> {
        let before = self.by_start.range(..chunk.end()).next_back();
        if let Some((_, known)) = before
            && known.end() > chunk.start
        {
            return match *known == chunk {
                true => Ok(()),
                false => Err(bad("two chunks have the same addresses")),
            };
        }
        self.item_bytes += chunk.item_bytes();
        if self.item_bytes > MAX_CHUNK_BYTES {
            return Err(bad("there are too many chunks"));
        }
        self.by_start.insert(chunk.start, chunk);
        Ok(())
    }

    /// Where the byte at a logical address is.
    ///
    /// # Errors
    /// `Corrupt` when no chunk has that address.
    pub fn find(&self, logical: u64) -> Result<(&Chunk, Spot)> {
        let before = self.by_start.range(..=logical).next_back();
        let (_, chunk) = before
            .filter(|(_, chunk)| logical < chunk.end())
            .ok_or_else(|| bad("an address leads nowhere").at(logical))?;
        Ok((chunk, chunk.spot(logical)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A chunk item of 8 MiB with so many stripes, of a kind (`1 << 4`: RAID 1) that holds data.
    fn item(kind: u64, stripes: u16) -> Vec<u8> {
        let mut item = vec![0; HEAD_BYTES];
        item[0..8].copy_from_slice(&(8 * MIB).to_le_bytes());
        item[16..24].copy_from_slice(&STRIPE_BYTES.to_le_bytes());
        item[24..32].copy_from_slice(&(kind | 1).to_le_bytes());
        item[44..46].copy_from_slice(&stripes.to_le_bytes());
        item[46..48].copy_from_slice(&2u16.to_le_bytes());
        for number in 1..=u64::from(stripes) {
            item.extend(number.to_le_bytes());
            item.extend((number * MIB).to_le_bytes());
            item.extend([number as u8; 16]);
        }
        item
    }

    fn parse(item: &[u8]) -> Result<Chunk> {
        Chunk::parse(MIB, item, 4096)
    }

    #[test]
    fn each_profile_has_its_number_of_stripes() {
        let known = [
            (0, 1..=1),
            (1 << 3, 1..=9),
            (1 << 4, 2..=2),
            (1 << 5, 2..=2),
            (1 << 6, 2..=9),
            (1 << 7, 2..=9),
            (1 << 8, 3..=9),
            (1 << 9, 3..=3),
            (1 << 10, 4..=4),
        ];
        for (kind, counts) in known {
            for count in 0..9 {
                // RAID 10 has pairs.
                let fits = counts.contains(&count) && (kind != 1 << 6 || count % 2 == 0);
                assert_eq!(
                    parse(&item(kind, count)).is_ok(),
                    fits,
                    "{kind:#x} of {count}"
                );
            }
        }
        assert!(parse(&item(1 << 3 | 1 << 4, 2)).is_err(), "two profiles");
        assert!(parse(&item(1 << 11, 1)).is_err(), "an unknown profile");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let numbers = [
            (0, 0, "no length"),
            (0, !4095, "an end past all addresses"),
            (0, 4097, "no whole sectors"),
            (16, 0, "stripes of no length"),
            (16, 4096, "stripes of a length that Linux does not know"),
            (24, 1 << 6, "neither data nor metadata"),
            (56, !4095, "a stripe past the end of everything"),
            (56, 17, "a stripe that begins within a sector"),
        ];
        for (at, number, what) in numbers {
            let mut item = item(1 << 6, 4);
            item[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
            assert!(parse(&item).is_err(), "{what}");
        }
        for copies in [0u16, 1, 3, 4] {
            let mut item = item(1 << 6, 4);
            item[46..48].copy_from_slice(&copies.to_le_bytes());
            assert!(parse(&item).is_err(), "RAID 10 of {copies} copies");
        }
        let whole = item(1 << 3, 4);
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "cut to {len} bytes");
        }
    }

    #[test]
    fn addresses_belong_to_one_chunk() {
        let mut chunks = Chunks::default();
        chunks.insert(parse(&item(0, 1)).unwrap()).unwrap();
        chunks.insert(parse(&item(0, 1)).unwrap()).unwrap();
        assert!(chunks.insert(parse(&item(1 << 5, 2)).unwrap()).is_err());
        for start in [2 * MIB, 8 * MIB] {
            let over = Chunk::parse(start, &item(0, 1), 4096).unwrap();
            assert!(chunks.insert(over).is_err(), "{start}");
        }
        let next = Chunk::parse(9 * MIB, &item(0, 1), 4096).unwrap();
        chunks.insert(next).unwrap();
        assert!(chunks.find(MIB - 1).is_err() && chunks.find(17 * MIB).is_err());
        let (_, spot) = chunks.find(9 * MIB - 1).unwrap();
        assert_eq!((spot.within, spot.len_bytes), (8 * MIB - 1, 1));
    }

    /// Where the kernel puts the data and the parity of RAID 5 on three devices, row by row.
    #[test]
    fn parity_moves_on_by_one_with_each_row() {
        let mut chunks = Chunks::default();
        chunks.insert(parse(&item(1 << 7, 3)).unwrap()).unwrap();
        let places = (0..6).map(|number| {
            let (_, spot) = chunks.find(MIB + number * STRIPE_BYTES + 5).unwrap();
            let Places::Parity(row) = spot.places else {
                panic!("RAID 5 has parity");
            };
            (row.stripe(row.wanted), row.stripe(row.data), spot.within)
        });
        let places: Vec<_> = places.collect();
        let row = |row: u64| row * STRIPE_BYTES + 5;
        assert_eq!(
            places,
            [
                (0, 2, row(0)),
                (1, 2, row(0)),
                (1, 0, row(1)),
                (2, 0, row(1)),
                (2, 1, row(2)),
                (0, 1, row(2)),
            ]
        );
    }

    #[test]
    fn a_superblock_with_a_broken_list_of_chunks_is_refused() {
        let mut list = FIRST_CHUNK_TREE.to_le_bytes().to_vec();
        list.push(CHUNK_ITEM);
        list.extend(MIB.to_le_bytes());
        list.extend(item(1 << 5, 2));
        let whole = Chunks::of_superblock(&list, 4096).unwrap();
        assert!(whole.find(MIB).is_ok());
        for len in 1..list.len() {
            assert!(Chunks::of_superblock(&list[..len], 4096).is_err(), "{len}");
        }
        let twice = [&list[..], &list[..]].concat();
        assert!(Chunks::of_superblock(&twice, 4096).is_ok());
        assert!(Chunks::of_superblock(&twice[..list.len() + 9], 4096).is_err());
    }
}
