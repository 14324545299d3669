//! Reading from the owner of a unit down, and following blocks that a merge has moved.

use std::ops::Range;
use std::sync::Arc;

use super::merge::{Merge, current_merges};
use super::owner_map::Owner;
use super::{Chain, ChainIo, ChainLink};
use crate::cache::Block;
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::{Examined, Fetched, InPlace, SectorRead, Stability};
use crate::store::{Store, StoredFile};

/// Who gets blocks: a cache, possibly a reader's own window in front of it.
pub(in crate::image) trait BlockSource {
    /// The block `block` of the image at `link`: from memory, from a copy nearby, or by
    /// [`Self::load`].
    fn block(&self, chain: &Chain, link: usize, block: u64) -> Result<Source>;

    /// The block, from memory or by `chain.load_block`.
    fn load(&self, chain: &Chain, link: usize, block: u64) -> Result<Block>;
}

/// What a block is read from.
pub(in crate::image) enum Source {
    /// The decoded block.
    Loaded(Block),
    /// A copy of it that is read in place; see `ImageFormat::open_copy`.
    Copy(Arc<dyn StoredFile>),
}

impl Chain {
    /// Fetches and decodes a block, following it where a merge has moved it.
    ///
    /// # Errors
    /// `NotFound` when it is not where it should be, `Changed` when the youngest image no longer
    /// belongs to its restore point.
    pub(in crate::image) fn load_block(
        &self,
        io: &ChainIo<'_>,
        link: usize,
        block: u64,
    ) -> Result<Block> {
        let image = self.links[link].image();
        let fetched = match image.format.fetch(block, true) {
            Err(e) if e.kind() == ErrorKind::NotFound => self.fetch_moved(io.store, link, block, e),
            other => other,
        };
        io.damage.note(image, block, self.top_uuid(), &fetched);
        let fetched = fetched?;
        if link == 0 {
            self.guard.check_modified(io.store, fetched.modified)?;
        }
        Ok(fetched.block)
    }

    /// The image to which a merge has moved a missing block of the image at `link`.
    ///
    /// # Errors
    /// What kept the state of a merge from being fetched.
    pub(in crate::image) fn merge_target(
        &self,
        store: &dyn Store,
        link: usize,
    ) -> Result<Option<&ChainLink>> {
        let child = &self.links[link].found.path;
        let below = &self.links[link + 1..];
        let is_target = |merge: &Merge, at: usize| {
            let target = &below[at];
            target.image().format.takes_moved_blocks()
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
        let disk_bytes = self.links[link].image().data_len(block);
        target.image().format.fetch_moved(block, disk_bytes)
    }

    /// Examines some of the blocks of the image at `link`, for people. Far away, only the last where
    /// brotli is all that a merge can have brought.
    pub(in crate::image) fn examine(&self, io: &ChainIo<'_>, link: usize) -> Examined {
        let mut images = self.links[..=link].iter();
        let is_one = images.all(|l| l.image().facts.compression == "brotli");
        let only_last = is_one && !io.store.traits().cheap_ranges;
        let mut examined = self.links[link].image().format.examine(only_last);
        if let Some(last) = examined.missing_last
            && let Err(e) = self.load_block(io, link, last)
        {
            let problem = format!("its last block cannot be read: {e}");
            examined.problems.push(problem);
        }
        examined
    }

    /// Fills `buf` with the bytes at `offset`, which must lie within the disk.
    pub(in crate::image) fn read(
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

    /// Reads bytes of one unit whose topmost allocating image is at `link`, going down wherever a
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
            let Some((index, visible)) = self.next_allocating(from, start, range.clone())? else {
                buf[range].fill(0);
                continue;
            };
            buf[visible..range.end].fill(0);
            let range = range.start..visible;
            let image = self.links[index].image();
            let shift = image.block_size().trailing_zeros();
            let block = start >> shift;
            let within = start - (block << shift);
            absent.clear();
            let mut read = SectorRead {
                block,
                within: within..within + range.len() as u64,
                buf: &mut buf[range.clone()],
                absent: &mut absent,
            };
            if image.reads_whole_blocks() {
                let source = blocks.block(self, index, block)?;
                self.read_whole(io, blocks, index, source, &mut read)?;
            } else {
                self.read_in_place(io, blocks, index, &mut read)?;
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

    /// Reads a part of a block that is fetched whole, or was before it was copied.
    fn read_whole(
        &self,
        io: &ChainIo<'_>,
        blocks: &dyn BlockSource,
        link: usize,
        source: Source,
        read: &mut SectorRead<'_>,
    ) -> Result<()> {
        let image = self.links[link].image();
        let loaded = match source {
            Source::Loaded(loaded) => loaded,
            Source::Copy(copy) => {
                if image.format.read_copy(&*copy, read).is_ok() {
                    if link == 0 {
                        let state = copy.opened_meta();
                        self.guard.check_copy(io.store, read.block, state)?;
                    }
                    return Ok(());
                }
                // The copy is damaged: read whole, that is found out once more, and mended.
                read.start_over();
                blocks.load(self, link, read.block)?
            }
        };
        image.copy_present(&loaded, read)
    }

    /// The first image from `from` down that allocates the block at byte `start`, and how much of
    /// `range` (of which `start` is the first byte) is visible there; `None` for zeros.
    fn next_allocating(
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
            link.image().format.allocated(block, 1, &mut bit)?;
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
        link: usize,
        read: &mut SectorRead<'_>,
    ) -> Result<()> {
        let image = self.links[link].image();
        let done = match image.format.read_in_place(read) {
            // A merge has moved it here under another filter.
            Ok(InPlace::Encoded) => {
                read.start_over();
                let loaded = blocks.load(self, link, read.block)?;
                return image.copy_present(&loaded, read);
            }
            Ok(InPlace::Read(stability)) => Ok(Some(stability)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // Moved by a merge: rare, so the block is simply read whole.
                read.start_over();
                let moved = self.fetch_moved(io.store, link, read.block, e);
                moved
                    .and_then(|moved| image.copy_present(&moved.block, read))
                    .map(|()| None)
            }
            Err(e) => Err(e),
        };
        io.damage.note(image, read.block, self.top_uuid(), &done);
        match done? {
            // Also when the chain was linked anew, to a file that a merge has left alone since.
            Some(Stability::Settled) if link == 0 => self.guard.check_once(io.store),
            Some(Stability::Unsettled) if link == 0 => self.guard.check(io.store),
            _ => Ok(()),
        }
    }

    /// What reads have found to be damaged of the image at `link`, as far as it concerns this disk.
    pub(in crate::image) fn known_damage(&self, io: &ChainIo<'_>, link: usize) -> Option<String> {
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
}
