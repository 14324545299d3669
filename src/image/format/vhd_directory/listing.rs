//! What a listing of its blocks tells of a VHD directory.

use std::collections::HashMap;

use super::{PAGE_BITS, VhdDirectory};
use crate::error::{ErrorKind, Result};
use crate::image::format::bitmap;
use crate::image::format::{Flaws, ImageFormat};
use crate::parallel::parallel_map;
use crate::store::{EntryKind, Meta};

/// Blocks that are found to be missing before a table is not checked any further: 2 TiB of a disk.
const MAX_MISSING: usize = 1 << 20;

impl VhdDirectory {
    /// What listing the blocks tells of those that the table allocates: some are not there, or are
    /// empty.
    ///
    /// # Errors
    /// When the table cannot be read or the blocks cannot be listed.
    pub(super) fn list_block_flaws(&self) -> Result<Flaws> {
        let mut flaws = Flaws::default();
        let mut first = 0;
        while first < self.blocks && flaws.missing.len() < MAX_MISSING {
            let count = PAGE_BITS.min(self.blocks - first);
            let mut bits = vec![0; count.div_ceil(64) as usize];
            self.allocated(first, count, &mut bits)?;
            let allocated = (first..first + count).filter(|n| bitmap::get(&bits, n - first));
            self.add_flaws(&allocated.collect::<Vec<_>>(), &mut flaws)?;
            first += count;
        }
        Ok(flaws)
    }

    fn add_flaws(&self, allocated: &[u64], flaws: &mut Flaws) -> Result<()> {
        let listed = self.listed(allocated)?;
        let is_near = !self.store.traits().remote;
        for &block in allocated {
            let Some(told) = listed.get(&block) else {
                flaws.missing.push(block);
                continue;
            };
            let len = match told {
                Some(meta) => Ok(Some(meta.len_bytes)),
                None if is_near => {
                    let head = self.store.head(&self.block_path(block));
                    head.map(|meta| Some(meta.len_bytes))
                }
                None => Ok(None),
            };
            let wrong = match len {
                Ok(Some(0)) => "is empty".to_owned(),
                Ok(_) => continue,
                // Moved since it was listed.
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    flaws.missing.push(block);
                    continue;
                }
                Err(e) => e.message().to_owned(),
            };
            flaws.wrong.entry(wrong).or_default().push(block);
        }
        Ok(())
    }

    /// Those of these blocks (in ascending order) for which there is no file.
    pub(super) fn blocks_without_file(&self, blocks: &[u64]) -> Result<Vec<u64>> {
        let listed = self.listed(blocks)?;
        let absent = blocks.iter().filter(|block| !listed.contains_key(block));
        Ok(absent.copied().collect())
    }

    /// The blocks that are there in the directories of these (in ascending order), with their states
    /// where the listing tells them.
    fn listed(&self, blocks: &[u64]) -> Result<HashMap<u64, Option<Meta>>> {
        let mut thousands: Vec<u64> = blocks.iter().map(|block| block / 1000).collect();
        thousands.dedup();
        let threads = self.store.traits().parallelism;
        let listings = parallel_map(&thousands, threads, |thousand| {
            let dir = self.base.child("blocks").child(&thousand.to_string());
            match self.store.list(&dir) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
                other => other,
            }
        });
        let mut listed = HashMap::new();
        for (thousand, entries) in thousands.iter().zip(listings) {
            for entry in entries? {
                let number = entry.name.parse::<u64>().ok();
                let number = number.filter(|n| *n < 1000 && n.to_string() == entry.name);
                if let Some(number) = number.filter(|_| entry.kind == EntryKind::File) {
                    listed.insert(thousand * 1000 + number, entry.meta);
                }
            }
        }
        Ok(listed)
    }
}
