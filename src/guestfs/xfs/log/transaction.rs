//! Transactions, put together from the operations in records.
//!
//! An operation (`xlog_op_header`, big-endian) is a piece of one transaction: its start, its commit, or a region of
//! bytes. A region that did not fit into a record goes on in the next. The first region is the transaction's header; the
//! others form items: a format, which says how many regions belong to it, and those. Regions are in the byte
//! order of the machine that wrote them, which is little-endian here.

use std::collections::HashMap;

use super::error::corrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::volume::bits::{be32, le16, le32};

const OP_HEADER_BYTES: usize = 12;
/// `struct xfs_trans_header`, and what it begins with.
const HEADER_BYTES: usize = 16;
const HEADER_MAGIC: u32 = 0x5452_414E;
/// `XFS_TRANSACTION` and `XFS_LOG`: who writes operations.
const CLIENTS: [u8; 2] = [0x69, 0xAA];
/// `XLOG_MAX_REGIONS_IN_ITEM`.
const REGIONS: usize = 257;
/// Memory for transactions that are not complete yet. The kernel writes no more than some 64 MiB at once.
const OPEN_BYTES: usize = 256 << 20;
/// What a region takes beside its bytes, at most.
const REGION_COST: usize = 64;

const START: u8 = 0x01;
const COMMIT: u8 = 0x02;
const CONTINUE: u8 = 0x04;
const WAS_CONTINUED: u8 = 0x08;
const END: u8 = 0x10;

/// One logged change: its format first, then the regions that belong to it.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub regions: Vec<Vec<u8>>,
    /// Regions there have to be.
    count: usize,
}

impl Item {
    /// What it changes: `XFS_LI_…`.
    pub fn kind(&self) -> u16 {
        le16(self.format(), 0)
    }

    /// The first region.
    pub fn format(&self) -> &[u8] {
        self.regions.first().map_or(&[], Vec::as_slice)
    }

    /// Whether all its regions are there.
    pub fn is_whole(&self) -> bool {
        self.regions.len() == self.count
    }
}

#[derive(Default)]
struct Open {
    header: Vec<u8>,
    items: Vec<Item>,
    cost: usize,
}

/// Transactions that have begun and not ended yet.
#[derive(Default)]
pub(super) struct Transactions {
    open: HashMap<u32, Open>,
    cost: usize,
}

impl Transactions {
    /// Takes the operations of a record; `commit` gets the items of each transaction that is complete now. What
    /// began before the first record is left out: it was written home.
    ///
    /// # Errors
    /// Those of `commit`; `Corrupt` for operations that make no sense, `Unsupported` for more than is held.
    pub fn feed(
        &mut self,
        data: &[u8],
        ops: u32,
        mut commit: impl FnMut(Vec<Item>) -> Result<()>,
    ) -> Result<()> {
        let mut rest = data;
        for _ in 0..ops {
            if rest.is_empty() {
                break;
            }
            let (header, behind) = rest
                .split_at_checked(OP_HEADER_BYTES)
                .ok_or_else(|| corrupt("an operation is cut off"))?;
            let len = be32(header, 4) as usize;
            let (region, behind) = behind
                .split_at_checked(len)
                .ok_or_else(|| corrupt("an operation is longer than its record"))?;
            rest = behind;
            if !CLIENTS.contains(&header[8]) {
                return Err(corrupt("an operation is nobody's"));
            }
            if let Some(items) = self.operation(be32(header, 0), header[9], region)? {
                commit(items)?;
            }
        }
        Ok(())
    }

    /// The items of the transaction, when this operation commits it.
    fn operation(&mut self, id: u32, flags: u8, region: &[u8]) -> Result<Option<Vec<Item>>> {
        let Some(open) = self.open.get_mut(&id) else {
            if flags & START != 0 {
                self.cost += REGION_COST;
                let cost = REGION_COST;
                self.open.insert(
                    id,
                    Open {
                        cost,
                        ..Open::default()
                    },
                );
            }
            return self.within_bounds().map(|()| None);
        };
        let mut flags = flags & !END;
        if flags & WAS_CONTINUED != 0 {
            flags &= !CONTINUE;
        }
        match flags {
            0 | CONTINUE => open.add(region)?,
            WAS_CONTINUED => open.go_on(region)?,
            COMMIT => {
                let open = self.open.remove(&id).unwrap_or_default();
                self.cost = self.cost.saturating_sub(open.cost);
                return Ok(Some(open.items));
            }
            _ => return Err(corrupt("an operation has no known meaning")),
        }
        let cost = region.len() + REGION_COST;
        open.cost += cost;
        self.cost += cost;
        self.within_bounds().map(|()| None)
    }

    fn within_bounds(&self) -> Result<()> {
        match self.cost > OPEN_BYTES {
            true => Err(Error::new(
                ErrorKind::Unsupported,
                "the log of XFS holds larger transactions than can be held in memory",
            )),
            false => Ok(()),
        }
    }
}

impl Open {
    /// `xlog_recover_add_to_trans`: another region.
    fn add(&mut self, region: &[u8]) -> Result<()> {
        if region.is_empty() {
            return Ok(());
        }
        if self.header.is_empty() {
            if le32(region, 0) != HEADER_MAGIC || region.len() > HEADER_BYTES {
                return Err(corrupt("a transaction has no header"));
            }
            self.header = region.to_vec();
            return Ok(());
        }
        if self.header.len() < HEADER_BYTES {
            return Err(corrupt("the header of a transaction is cut off"));
        }
        if self.items.last().is_none_or(Item::is_whole) {
            let count = usize::from(le16(region, 2));
            if region.len() < 4 || count == 0 || count > REGIONS {
                return Err(corrupt("an item has no known number of regions"));
            }
            self.items.push(Item {
                regions: Vec::new(),
                count,
            });
        }
        if let Some(item) = self.items.last_mut() {
            item.regions.push(region.to_vec());
        }
        Ok(())
    }

    /// `xlog_recover_add_to_cont_trans`: more of the last region.
    fn go_on(&mut self, region: &[u8]) -> Result<()> {
        let last = match self.header.len() < HEADER_BYTES {
            true if self.header.len() + region.len() <= HEADER_BYTES => Some(&mut self.header),
            true => None,
            false => self
                .items
                .last_mut()
                .and_then(|item| item.regions.last_mut()),
        };
        last.ok_or_else(|| corrupt("a region goes on that never began"))?
            .extend_from_slice(region);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An operation as it is in a record.
    fn op(id: u32, flags: u8, region: &[u8]) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend((region.len() as u32).to_be_bytes());
        bytes.extend([CLIENTS[0], flags, 0, 0]);
        bytes.extend(region);
        bytes
    }

    fn header() -> Vec<u8> {
        let mut header = HEADER_MAGIC.to_le_bytes().to_vec();
        header.resize(HEADER_BYTES, 0);
        header
    }

    fn feed(transactions: &mut Transactions, ops: &[Vec<u8>]) -> Result<Vec<Vec<Item>>> {
        let mut done = Vec::new();
        transactions.feed(&ops.concat(), ops.len() as u32, |items| {
            done.push(items);
            Ok(())
        })?;
        Ok(done)
    }

    /// An item of these regions, by way of a transaction.
    pub fn item(regions: &[&[u8]]) -> Item {
        let mut ops = vec![op(1, START, &[]), op(1, 0, &header())];
        ops.extend(regions.iter().map(|region| op(1, 0, region)));
        ops.push(op(1, COMMIT, &[]));
        let mut done = feed(&mut Transactions::default(), &ops).unwrap();
        done.remove(0).remove(0)
    }

    #[test]
    fn only_what_was_begun_and_committed_counts() {
        let mut transactions = Transactions::default();
        let format = [0x3C, 0x12, 2, 0];
        let first = [
            op(9, 0, &format),
            op(1, START, &[]),
            op(2, START, &[]),
            op(1, 0, &header()),
            op(2, 0, &header()),
            op(1, 0, &format),
            op(2, 0, &format),
            op(9, COMMIT, &[]),
        ];
        assert!(feed(&mut transactions, &first).unwrap().is_empty());
        let second = [op(1, 0, b"data"), op(1, COMMIT, &[])];
        let done = feed(&mut transactions, &second).unwrap();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].len(), 1);
        assert_eq!(done[0][0].kind(), 0x123C);
        assert_eq!(done[0][0].regions, [format.to_vec(), b"data".to_vec()]);
        assert!(done[0][0].is_whole());
    }

    #[test]
    fn regions_and_headers_go_on_in_the_next_record() {
        let mut transactions = Transactions::default();
        let header = header();
        let (begin, rest) = header.split_at(8);
        let first = [op(1, START, &[]), op(1, CONTINUE, begin)];
        feed(&mut transactions, &first).unwrap();
        let second = [
            op(1, WAS_CONTINUED | END, rest),
            op(1, CONTINUE, &[0x3B, 0x12, 1, 0, 7]),
        ];
        feed(&mut transactions, &second).unwrap();
        let middle = [op(1, WAS_CONTINUED | CONTINUE, &[8])];
        feed(&mut transactions, &middle).unwrap();
        let third = [op(1, WAS_CONTINUED | END, &[9]), op(1, COMMIT, &[])];
        let done = feed(&mut transactions, &third).unwrap();
        assert_eq!(done[0][0].regions, [[0x3B, 0x12, 1, 0, 7, 8, 9]]);
    }

    #[test]
    fn operations_that_make_no_sense_are_errors() {
        let begun = [op(1, START, &[]), op(1, 0, &header())];
        for wrong in [
            op(1, START, &[]),
            op(1, 0, &[1, 2]),
            op(1, 0, &[1, 2, 0, 0]),
            op(1, WAS_CONTINUED, &[1]),
            op(1, 0x40, &[]),
            vec![0; 7],
            vec![0; OP_HEADER_BYTES],
        ] {
            let ops = [&begun[..], &[wrong]].concat();
            let error = feed(&mut Transactions::default(), &ops).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        let headless = [op(1, START, &[]), op(1, 0, &[0; 16])];
        assert!(feed(&mut Transactions::default(), &headless).is_err());
    }
}
