//! A chain of images as one range of bytes: who owns which unit, and reading from the owner down.
//!
//! Mapping is separate from reading: [`Chain::owner`] answers from block tables alone. The unit is
//! the smallest block size of the chain, so that each unit lies within one block of every image.

use std::ops::Range;
use std::sync::Arc;

use super::bitmap;
use super::damage::KnownDamage;
use super::link::{Merge, current_merges};
use super::open::{Found, Image};
use super::tables;
use super::vhd::Uuid;
use super::vhd_dir::{Examined, Fetched, InPlace};
use super::vhd_file::Stability;
use super::watch::Watch;
use crate::cache::{Block, BlockKey, MetaCache, MetaKey, MetaKind};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Store, StoredFile};

/// Units per page of the owner map.
const PAGE_UNITS: u64 = 1024;
/// Pages whose tables are read at once when all are wanted: 256 GiB of a disk of 2 MiB blocks.
const PAGES_AHEAD: u64 = 128;
/// Owner of a unit that no image announces: zeros.
const HOLE: u16 = 0xFFFF;
/// Owner of a unit that would be in an ancestor that cannot be used.
const BROKEN: u16 = 0xFFFE;

/// One image of a chain.
pub(super) struct ChainLink {
    pub found: Found,
    /// What is remarkable about it in this chain.
    pub notes: Vec<String>,
    /// The child above it is no longer needed (end of a merge).
    pub replaces_child: bool,
    /// Bytes of this image that can be seen through its descendants.
    limit: u64,
}

impl ChainLink {
    pub(super) fn new(found: Found) -> Self {
        ChainLink {
            found,
            notes: Vec::new(),
            replaces_child: false,
            limit: 0,
        }
    }

    pub(super) fn image(&self) -> &Arc<Image> {
        &self.found.image
    }
}

/// A linked chain, youngest first. Immutable; when the storage changes a new one is made.
pub(super) struct Chain {
    id: u64,
    pub links: Vec<ChainLink>,
    /// Why the chain ends before an image that has no parent.
    pub broken: Option<Error>,
    /// Whether a relative name of a parent led above the root of the store.
    pub leads_out: bool,
    merges: Vec<Merge>,
    pub problems: Vec<String>,
    unit_log2: u32,
    size: u64,
    /// Whether any image's blocks are fetched whole, so that reading ahead is worth its while.
    has_whole: bool,
    /// What vouches for the youngest image.
    pub watch: Watch,
}

/// What a chain reads with; owned by the disk context.
pub(super) struct ChainIo<'a> {
    pub store: &'a dyn Store,
    pub meta: &'a MetaCache,
    pub damage: &'a KnownDamage,
}

/// Who gets blocks: a cache, possibly a reader's own window in front of it.
pub(super) trait BlockSource {
    /// The block `block` of the image at `link`: from memory, as it is kept nearby, or by
    /// [`Self::load`].
    fn block(&self, chain: &Chain, link: usize, block: u64) -> Result<Source>;

    /// The block, from memory or by `chain.load_block`.
    fn load(&self, chain: &Chain, link: usize, block: u64) -> Result<Block>;
}

/// What a block is read from.
pub(super) enum Source {
    /// The decoded block.
    Loaded(Block),
    /// A copy of it that is read in place; see `VhdDir::kept_block`.
    Kept(Arc<dyn StoredFile>),
}

/// Where a unit's newest bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The image at this index of the chain announces the unit.
    Link(usize),
    /// Nobody does: zeros.
    Hole,
    /// It may be in an ancestor that cannot be used.
    Broken,
}

impl Chain {
    pub(super) fn new(
        id: u64,
        mut links: Vec<ChainLink>,
        broken: Option<Error>,
        merges: Vec<Merge>,
        problems: Vec<String>,
        watch: Watch,
    ) -> Self {
        let mut limit = u64::MAX;
        for link in &mut links {
            limit = limit.min(link.image().size());
            link.limit = limit;
        }
        let youngest = links.first().and_then(|l| l.image().newest_part());
        if let Some((modified, heard)) = youngest {
            watch.hear(modified, heard);
        }
        watch.linked();
        let unit = links.iter().map(|l| l.image().block_size()).min();
        Chain {
            id,
            unit_log2: unit.map_or(21, u32::trailing_zeros),
            has_whole: links.iter().any(|l| l.image().is_whole()),
            size: links.first().map_or(0, |l| l.image().size()),
            links,
            broken,
            leads_out: false,
            merges,
            problems,
            watch,
        }
    }

    /// Whether a merge into this image was running, or interrupted, when the chain was linked.
    pub(super) fn is_merged_into(&self, link: &ChainLink) -> bool {
        let (alias, data) = (&link.found.path, &link.image().data_path);
        self.merges
            .iter()
            .any(|m| m.target == *alias || m.target == *data)
    }

    /// Virtual size of the disk in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// log2 of the bytes of a unit.
    pub(super) fn unit_log2(&self) -> u32 {
        self.unit_log2
    }

    pub(super) fn has_whole(&self) -> bool {
        self.has_whole
    }

    fn units(&self) -> u64 {
        self.size.div_ceil(1 << self.unit_log2)
    }

    /// The block of `image` that holds `unit`.
    pub(super) fn block_of_unit(&self, image: &Image, unit: u64) -> u64 {
        unit >> (image.block_size().trailing_zeros() - self.unit_log2)
    }

    /// The owner of a unit. May read table pages.
    pub(super) fn owner(&self, io: &ChainIo<'_>, unit: u64) -> Result<Owner> {
        let page = self.owner_page(io, unit / PAGE_UNITS, true)?;
        Ok(owner_at(&page, unit % PAGE_UNITS))
    }

    /// A page of owners, empty when all are holes. `keep` is false for scans of whole disks, which
    /// would push everything else out.
    fn owner_page(&self, io: &ChainIo<'_>, page: u64, keep: bool) -> Result<Arc<[u8]>> {
        let key = MetaKey {
            of: self.id,
            generation: 0,
            kind: MetaKind::Owner,
            index: page,
        };
        if let Some(owners) = io.meta.get(&key) {
            return Ok(owners);
        }
        let first = page * PAGE_UNITS;
        tables::prepare(io.store, &self.links, self.unit_log2, first, PAGE_UNITS);
        let owners = self.compute_owners(page)?;
        if keep {
            io.meta.insert(key, Arc::clone(&owners));
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
        let mut announced = vec![0u64; (PAGE_UNITS / 64) as usize];
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
            announced.fill(0);
            self.announced_units(link.image(), first, count, &mut announced)?;
            for (word, (left, here)) in open.iter_mut().zip(&announced).enumerate() {
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

    fn announced_units(
        &self,
        image: &Image,
        first: u64,
        count: u64,
        bits: &mut [u64],
    ) -> Result<()> {
        let shift = image.block_size().trailing_zeros() - self.unit_log2;
        if shift == 0 {
            return image.announced(first, count, bits);
        }
        // Larger blocks than units: one bit of the table stands for several units.
        let first_block = first >> shift;
        let last_block = (first + count - 1) >> shift;
        let blocks = last_block - first_block + 1;
        let mut table = vec![0u64; blocks.div_ceil(64) as usize];
        image.announced(first_block, blocks, &mut table)?;
        for unit in first..first + count {
            if bitmap::get(&table, (unit >> shift) - first_block) {
                bitmap::set(bits, unit - first);
            }
        }
        Ok(())
    }

    /// The run of units from `unit` on that are all owned (or broken) or all holes: its end (a unit
    /// number) and whether it is data.
    pub(super) fn run(&self, io: &ChainIo<'_>, unit: u64) -> Result<(u64, bool)> {
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
    pub(super) fn prepare_tables(&self, io: &ChainIo<'_>) {
        tables::prepare(io.store, &self.links, self.unit_log2, 0, self.units());
    }

    /// Bytes in owned units, over the whole disk. Reads every table of the chain.
    pub(super) fn allocated_bytes(&self, io: &ChainIo<'_>) -> Result<u64> {
        let units = self.units();
        let unit_bytes = 1u64 << self.unit_log2;
        let mut total = 0;
        let pages = units.div_ceil(PAGE_UNITS);
        let ahead = pages.min(PAGES_AHEAD);
        for page in 0..pages {
            if page % ahead == 0 {
                let first = page * PAGE_UNITS;
                let count = ahead * PAGE_UNITS;
                tables::prepare(io.store, &self.links, self.unit_log2, first, count);
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

    /// Fetches and decodes a block, following it where a merge has moved it.
    ///
    /// # Errors
    /// `NotFound` when it is not where it should be, `Changed` when the youngest image no longer
    /// belongs to its restore point.
    pub(super) fn load_block(&self, io: &ChainIo<'_>, link: usize, block: u64) -> Result<Block> {
        let image = self.links[link].image();
        let fetched = match image.fetch(block, true) {
            Err(e) if e.kind() == ErrorKind::NotFound => self.fetch_moved(io.store, link, block, e),
            other => other,
        };
        io.damage.note(image, block, self.top_uuid(), &fetched);
        let fetched = fetched?;
        if link == 0 {
            self.watch.check_for(io.store, fetched.modified)?;
        }
        Ok(fetched.block)
    }

    /// The image to which a merge has moved a missing block of the image at `link`.
    ///
    /// # Errors
    /// What kept the state of a merge from being fetched.
    pub(super) fn merge_target(
        &self,
        store: &dyn Store,
        link: usize,
    ) -> Result<Option<&ChainLink>> {
        let child = &self.links[link].found.path;
        let below = &self.links[link + 1..];
        let is_target = |merge: &Merge, at: usize| {
            let target = &below[at];
            target.image().is_dir()
                && target.image().block_size() == self.links[link].image().block_size()
                && merge.concerns(&target.found.path, child, at == 0)
        };
        // The state as it was when the chain was linked, or as it is now: a merge may have begun since.
        let known = (0..below.len()).find(|&at| self.merges.iter().any(|m| is_target(m, at)));
        if let Some(at) = known {
            return Ok(Some(&below[at]));
        }
        for (at, link) in below.iter().enumerate() {
            let merges = current_merges(store, &link.found.path)?;
            if merges.iter().any(|m| is_target(m, at)) {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    fn fetch_moved(
        &self,
        store: &dyn Store,
        link: usize,
        block: u64,
        missing: Error,
    ) -> Result<Fetched> {
        let Some(target) = self.merge_target(store, link)? else {
            return Err(missing);
        };
        target.image().fetch_moved(self.links[link].image(), block)
    }

    /// A look at some of the blocks of the image at `link`, for people.
    pub(super) fn examine(&self, io: &ChainIo<'_>, link: usize) -> Examined {
        let younger = self.links[..link].iter();
        let filters: Vec<&str> = younger.map(|l| l.image().compression()).collect();
        let mut examined = self.links[link].image().examine(io.store, &filters);
        if let Some(last) = examined.missing_last
            && let Err(e) = self.load_block(io, link, last)
        {
            let problem = format!("its last block cannot be read: {e}");
            examined.problems.push(problem);
        }
        examined
    }

    /// Fills `buf` with the bytes at `offset`, which must lie within the disk.
    pub(super) fn read(
        &self,
        io: &ChainIo<'_>,
        blocks: &dyn BlockSource,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let unit = at >> self.unit_log2;
            let unit_end = ((unit + 1) << self.unit_log2).min(end);
            let owner = self.owner(io, unit)?;
            let part = &mut buf[(at - offset) as usize..(unit_end - offset) as usize];
            match owner {
                Owner::Hole => part.fill(0),
                Owner::Broken => return Err(self.broken_error()),
                Owner::Link(link) => self.read_unit(io, blocks, link, at, part)?,
            }
            at = unit_end;
        }
        Ok(())
    }

    fn broken_error(&self) -> Error {
        self.broken.clone().unwrap_or_else(|| {
            Error::corrupt("a part of the disk is in an image that cannot be used")
        })
    }

    /// Reads bytes of one unit whose topmost announcing image is at `link`, going down wherever a
    /// sector bitmap says so.
    fn read_unit(
        &self,
        io: &ChainIo<'_>,
        blocks: &dyn BlockSource,
        link: usize,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        // Ranges of `buf` still to be filled, and from which link down. Each pass goes at least
        // one link down, so this ends.
        let mut todo: Vec<(Range<usize>, usize)> = vec![(0..buf.len(), link)];
        let mut absent = Vec::new();
        while let Some((range, from)) = todo.pop() {
            let start = offset + range.start as u64;
            let Some((index, visible)) = self.next_announcing(from, start, range.clone())? else {
                buf[range].fill(0);
                continue;
            };
            buf[visible..range.end].fill(0);
            let range = range.start..visible;
            let image = self.links[index].image();
            let shift = image.block_size().trailing_zeros();
            let block = start >> shift;
            let within = start - (block << shift);
            let within = within..within + range.len() as u64;
            let part = &mut buf[range.clone()];
            absent.clear();
            if image.is_whole() {
                let source = blocks.block(self, index, block)?;
                self.read_whole(
                    io,
                    blocks,
                    (index, block),
                    source,
                    within,
                    part,
                    &mut absent,
                )?;
            } else {
                self.read_in_place(io, blocks, (index, block), within, part, &mut absent)?;
            }
            for gap in absent.drain(..) {
                let gap = range.start + gap.start..range.start + gap.end;
                if image.is_differencing() {
                    todo.push((gap, index + 1));
                } else {
                    buf[gap].fill(0);
                }
            }
        }
        Ok(())
    }

    /// Reads bytes of a block that is fetched whole, or was before it was kept.
    #[allow(clippy::too_many_arguments)] // `read_present`, and where to read.
    fn read_whole(
        &self,
        io: &ChainIo<'_>,
        blocks: &dyn BlockSource,
        (link, block): (usize, u64),
        source: Source,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let image = self.links[link].image();
        let loaded = match source {
            Source::Loaded(loaded) => loaded,
            Source::Kept(file) => {
                let read = image.read_kept(&*file, block, within.clone(), buf, absent);
                if read.is_ok() {
                    if link == 0 {
                        self.watch.check_kept(io.store, block, file.opened_meta())?;
                    }
                    return Ok(());
                }
                // The copy is damaged: read whole, that is found out once more, and mended.
                absent.clear();
                blocks.load(self, link, block)?
            }
        };
        image.copy_present(&loaded, within, buf, absent)
    }

    /// The first image from `from` down that announces the block at byte `start`, and how much of
    /// `range` (of which `start` is the first byte) is visible there; `None` for zeros.
    fn next_announcing(
        &self,
        from: usize,
        start: u64,
        range: Range<usize>,
    ) -> Result<Option<(usize, usize)>> {
        let mut end = range.end;
        for (index, link) in self.links.iter().enumerate().skip(from) {
            let Some(visible) = link.limit.checked_sub(start).filter(|&v| v > 0) else {
                return Ok(None);
            };
            end = end.min(
                range
                    .start
                    .saturating_add(visible.min(usize::MAX as u64) as usize),
            );
            let mut bit = [0u64];
            let block = start >> link.image().block_size().trailing_zeros();
            link.image().announced(block, 1, &mut bit)?;
            if bit[0] != 0 {
                return Ok(Some((index, end)));
            }
        }
        if self.broken.is_some() {
            return Err(self.broken_error());
        }
        Ok(None)
    }

    fn read_in_place(
        &self,
        io: &ChainIo<'_>,
        blocks: &dyn BlockSource,
        (link, block): (usize, u64),
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let image = self.links[link].image();
        let read = match image.read_in_place(block, within.clone(), buf, absent) {
            // A merge has moved it here under another filter.
            Ok(InPlace::Encoded) => {
                absent.clear();
                let loaded = blocks.load(self, link, block)?;
                return image.copy_present(&loaded, within, buf, absent);
            }
            Ok(InPlace::Read(stability)) => Ok(Some(stability)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // Moved by a merge: rare, so the block is simply read whole.
                absent.clear();
                let moved = self.fetch_moved(io.store, link, block, e);
                moved
                    .and_then(|moved| image.copy_present(&moved.block, within, buf, absent))
                    .map(|()| None)
            }
            Err(e) => Err(e),
        };
        io.damage.note(image, block, self.top_uuid(), &read);
        match read? {
            // Also when the chain was linked anew, to a file that a merge has left alone since.
            Some(Stability::Settled) if link == 0 => self.watch.check_once(io.store),
            Some(Stability::Unsettled) if link == 0 => self.watch.check(io.store),
            _ => Ok(()),
        }
    }

    /// The uuid of the youngest image: what tells the disk from others with the same ancestors.
    fn top_uuid(&self) -> Uuid {
        self.links[0].image().uuid()
    }

    /// What reads have found to be damaged of the image at `link`, as far as it concerns this disk.
    pub(super) fn known_damage(&self, io: &ChainIo<'_>, link: usize) -> Option<String> {
        let image = self.links[link].image();
        let shift = image.block_size().trailing_zeros() - self.unit_log2;
        let is_needed = |block: u64| {
            let first = block << shift;
            let end = (first + (1 << shift)).min(self.units());
            // What cannot be told may be needed.
            (first..end).any(
                |unit| !matches!(self.owner(io, unit), Ok(owner) if owner != Owner::Link(link)),
            )
        };
        io.damage.of_image(image, self.top_uuid(), is_needed)
    }

    /// The key under which a decoded block of the image at `link` is cached.
    pub(super) fn block_key(&self, link: usize, block: u64) -> BlockKey {
        BlockKey {
            image: self.links[link].image().id,
            block,
        }
    }

    /// The byte offset up to which the image at `link` can be seen.
    pub(super) fn visible_until(&self, link: usize) -> u64 {
        self.links[link].limit
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
