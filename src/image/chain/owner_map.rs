//! Which image of a chain owns which unit, from block tables alone.

use std::sync::Arc;

use super::{Chain, ChainIo, table_pages};
use crate::cache::{TablePageKey, TablePageKind};
use crate::error::Result;
use crate::image::format::bitmap;
use crate::image::format::image::Image;

/// Units per page of the owner map.
const PAGE_UNITS: u64 = 1024;
/// Pages whose tables are read at once when all are wanted: 256 GiB of a disk of 2 MiB blocks.
const PAGES_AHEAD: u64 = 128;
/// Owner of a unit that no image allocates: zeros.
const HOLE: u16 = 0xFFFF;
/// Owner of a unit that would be in an ancestor that cannot be used.
const BROKEN: u16 = 0xFFFE;

/// Where a unit's newest bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Owner {
    /// The image at this index of the chain allocates the unit.
    Link(usize),
    /// Nobody does: zeros.
    Hole,
    /// It may be in an ancestor that cannot be used.
    Broken,
}

impl Chain {
    /// The owner of a unit. May read table pages.
    pub(in crate::image) fn owner(&self, io: &ChainIo<'_>, unit: u64) -> Result<Owner> {
        let page = self.owner_page(io, unit / PAGE_UNITS, true)?;
        Ok(owner_at(&page, unit % PAGE_UNITS))
    }

    /// A page of owners, empty when all are holes. `keep` is false for scans of whole disks, which
    /// would push everything else out.
    fn owner_page(&self, io: &ChainIo<'_>, page: u64, keep: bool) -> Result<Arc<[u8]>> {
        let key = TablePageKey {
            of: self.id,
            generation: 0,
            kind: TablePageKind::Owner,
            index: page,
        };
        if let Some(owners) = io.pages.get(&key) {
            return Ok(owners);
        }
        let first = page * PAGE_UNITS;
        table_pages::prepare(io.store, &self.links, self.unit_log2, first, PAGE_UNITS);
        let owners = self.compute_owners(page)?;
        if keep {
            io.pages.insert(key, Arc::clone(&owners));
        }
        Ok(owners)
    }

    fn compute_owners(&self, page: u64) -> Result<Arc<[u8]>> {
        let first = page * PAGE_UNITS;
        let count = PAGE_UNITS.min(self.units().saturating_sub(first));
        if count == 0 {
            return Ok(Arc::from([]));
        }
        let mut owners = vec![HOLE; count as usize];
        let mut open: Vec<u64> = vec![u64::MAX; (PAGE_UNITS / 64) as usize];
        let mut allocated = vec![0u64; (PAGE_UNITS / 64) as usize];
        for (index, link) in self.links.iter().enumerate() {
            // Units that begin past what can be seen of this image are holes, whatever lies below.
            let visible = link
                .limit
                .div_ceil(1 << self.unit_log2)
                .saturating_sub(first);
            for unit in visible..PAGE_UNITS {
                open[(unit / 64) as usize] &= !(1 << (unit % 64));
            }
            if open.iter().all(|&word| word == 0) {
                break;
            }
            allocated.fill(0);
            self.allocated_units(link.image(), first, count, &mut allocated)?;
            for (word, (left, here)) in open.iter_mut().zip(&allocated).enumerate() {
                let mut new = *left & *here;
                *left &= !*here;
                while new != 0 {
                    let unit = word * 64 + new.trailing_zeros() as usize;
                    if let Some(owner) = owners.get_mut(unit) {
                        *owner = index as u16;
                    }
                    new &= new - 1;
                }
            }
        }
        if self.broken.is_some() {
            for (unit, owner) in owners.iter_mut().enumerate() {
                if bitmap::get(&open, unit as u64) {
                    *owner = BROKEN;
                }
            }
        }
        if owners.iter().all(|&owner| owner == HOLE) {
            return Ok(Arc::from([]));
        }
        Ok(owners.iter().flat_map(|o| o.to_ne_bytes()).collect())
    }

    fn allocated_units(
        &self,
        image: &Image,
        first: u64,
        count: u64,
        bits: &mut [u64],
    ) -> Result<()> {
        let shift = image.block_size().trailing_zeros() - self.unit_log2;
        if shift == 0 {
            return image.format.allocated(first, count, bits);
        }
        // Larger blocks than units: one bit of the table stands for several units.
        let first_block = first >> shift;
        let last_block = (first + count - 1) >> shift;
        let blocks = last_block - first_block + 1;
        let mut table = vec![0u64; blocks.div_ceil(64) as usize];
        image.format.allocated(first_block, blocks, &mut table)?;
        for unit in first..first + count {
            if bitmap::get(&table, (unit >> shift) - first_block) {
                bitmap::set(bits, unit - first);
            }
        }
        Ok(())
    }

    /// The run of units from `unit` on that are all owned (or broken) or all holes: its end (a unit
    /// number) and whether it is data.
    pub(in crate::image) fn run(&self, io: &ChainIo<'_>, unit: u64) -> Result<(u64, bool)> {
        let units = self.units();
        let is_data = self.owner(io, unit)? != Owner::Hole;
        let mut at = unit + 1;
        while at < units {
            let page = self.owner_page(io, at / PAGE_UNITS, false)?;
            let page_end = ((at / PAGE_UNITS + 1) * PAGE_UNITS).min(units);
            if page.is_empty() {
                if is_data {
                    return Ok((at, true));
                }
                at = page_end;
                continue;
            }
            for other in at..page_end {
                if (owner_at(&page, other % PAGE_UNITS) != Owner::Hole) != is_data {
                    return Ok((other, is_data));
                }
            }
            at = page_end;
        }
        Ok((units, is_data))
    }

    /// Has the tables in memory, where they are many requests and fit.
    pub(in crate::image) fn prepare_tables(&self, io: &ChainIo<'_>) {
        table_pages::prepare(io.store, &self.links, self.unit_log2, 0, self.units());
    }

    /// Bytes in owned units, over the whole disk. Reads every table of the chain.
    pub(in crate::image) fn allocated_bytes(&self, io: &ChainIo<'_>) -> Result<u64> {
        let units = self.units();
        let unit_bytes = 1u64 << self.unit_log2;
        let mut total = 0;
        let pages = units.div_ceil(PAGE_UNITS);
        let ahead = pages.min(PAGES_AHEAD);
        for page in 0..pages {
            if page % ahead == 0 {
                let first = page * PAGE_UNITS;
                let count = ahead * PAGE_UNITS;
                table_pages::prepare(io.store, &self.links, self.unit_log2, first, count);
            }
            let owners = self.owner_page(io, page, false)?;
            let data = owners
                .as_chunks::<2>()
                .0
                .iter()
                .filter(|o| u16::from_ne_bytes(**o) != HOLE)
                .count() as u64;
            total += data * unit_bytes;
        }
        if units > 0 && self.owner(io, units - 1)? != Owner::Hole {
            total -= units * unit_bytes - self.size;
        }
        Ok(total)
    }
}

fn owner_at(page: &[u8], index: u64) -> Owner {
    match page.as_chunks::<2>().0.get(index as usize) {
        None => Owner::Hole,
        Some(bytes) => match u16::from_ne_bytes(*bytes) {
            HOLE => Owner::Hole,
            BROKEN => Owner::Broken,
            link => Owner::Link(usize::from(link)),
        },
    }
}
