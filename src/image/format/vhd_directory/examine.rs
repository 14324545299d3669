//! A look at some blocks of a VHD directory, for `brfs info`: whether they are what the directory
//! says, and whether the last one goes as far as the disk.

use super::VhdDirectory;
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::bitmap;
use crate::image::format::{Examined, ImageFormat};
use crate::parallel::parallel_map;

/// Blocks that are looked at, spread over the disk: where a look costs an open file and two bytes, and
/// where it is a request or the whole block.
const LOOKS: u64 = 4096;
const FAR_LOOKS: u64 = 64;

/// Bits of the table that are asked for at once.
const PAGE: u64 = 65_536;

impl VhdDirectory {
    /// Looks at the block in which the disk ends, and at some others for the filter they are stored
    /// with; with `only_last`, at the former only. What was found is kept.
    pub(super) fn examine_blocks(&self, only_last: bool) -> Examined {
        if let Some(examined) = self.examined.get() {
            return examined.clone();
        }
        let mut examined = Examined::default();
        let looked = self
            .examine_last(&mut examined)
            .and_then(|()| match only_last {
                true => Ok(()),
                false => self.examine_filters(&mut examined),
            });
        if let Err(e) = looked {
            examined
                .problems
                .push(format!("its blocks cannot be looked at: {e}"));
        } else if !only_last {
            let _ = self.examined.set(examined.clone());
        }
        examined
    }

    fn examine_last(&self, examined: &mut Examined) -> Result<()> {
        let Some(last) = self.blocks.checked_sub(1) else {
            return Ok(());
        };
        let disk_bytes = self.data_len(last);
        if disk_bytes == u64::from(self.block_size) || !self.allocates(last)? {
            return Ok(());
        }
        match self.fetch_block(last, false) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => examined.missing_last = Some(last),
            Err(e) => examined
                .problems
                .push(format!("its last block cannot be read: {e}")),
        }
        Ok(())
    }

    fn allocates(&self, block: u64) -> Result<bool> {
        let mut bits = [0];
        self.allocated(block, 1, &mut bits)?;
        Ok(bits[0] != 0)
    }

    fn examine_filters(&self, examined: &mut Examined) -> Result<()> {
        let traits = self.store.traits();
        let most = match traits.cheap_ranges {
            true => LOOKS,
            false => FAR_LOOKS,
        };
        let blocks = self.some_allocated(most)?;
        let threads = traits.parallelism;
        let suspects = parallel_map(&blocks, threads, |&block| {
            match self.looks_like_another(block) {
                Ok(suspect) => Ok(suspect.then_some(block)),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        });
        let suspects: Vec<Option<u64>> = suspects.into_iter().collect::<Result<_>>()?;
        let suspects: Vec<u64> = suspects.into_iter().flatten().collect();
        // One of them is decoded; the others look alike.
        let Some(&first) = suspects.first() else {
            return Ok(());
        };
        match self.fetch_block(first, false) {
            Ok(fetched) if fetched.filter != self.filter => examined.notes.push(format!(
                "{} of {} blocks looked at are stored as {}, not as {}, as its \
                 chunk-filters.json has it; a merge left them so, and they are read (block {first} is \
                 the first)",
                suspects.len(),
                blocks.len(),
                words(fetched.filter),
                words(self.filter),
            )),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => examined
                .problems
                .push(format!("block {first} cannot be read: {e}")),
        }
        Ok(())
    }

    /// At most `most` of the blocks that the table allocates, spread evenly.
    fn some_allocated(&self, most: u64) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        let mut first = 0;
        while first < self.blocks {
            let count = PAGE.min(self.blocks - first);
            let mut bits = vec![0u64; count.div_ceil(64) as usize];
            self.allocated(first, count, &mut bits)?;
            all.extend(
                (0..count)
                    .filter(|&n| bitmap::get(&bits, n))
                    .map(|n| first + n),
            );
            first += count;
        }
        let step = (all.len() as u64).div_ceil(most).max(1);
        Ok(all.into_iter().step_by(step as usize).collect())
    }

    /// Whether a block does not begin, or end, as one of the directory's filter does.
    fn looks_like_another(&self, block: u64) -> Result<bool> {
        let file = self.store.open(&self.block_path(block), None)?;
        let len = file.opened_meta().len_bytes;
        let mut start = [0; 4];
        if len < start.len() as u64 {
            return Err(
                Error::corrupt(format!("has {len} bytes")).with_object(self.block_path(block))
            );
        }
        file.read_exact_at(&mut start, 0)?;
        let is_gzip = start.starts_with(&[0x1F, 0x8B, 8]);
        Ok(match self.filter {
            Filter::Gzip => !is_gzip,
            // A stream of brotli has no mark of its own.
            Filter::Brotli => is_gzip || start == [0xFF; 4],
            Filter::None => start != [0xFF; 4] && len != self.whole_bytes(),
        })
    }

    fn whole_bytes(&self) -> u64 {
        u64::from(self.bitmap_bytes) + u64::from(self.block_size)
    }
}

fn words(filter: Filter) -> &'static str {
    match filter {
        Filter::None => "plain blocks",
        Filter::Gzip => "gzip",
        Filter::Brotli => "brotli",
    }
}
