//! A virtual disk at one restore point: a chain of images, linked again when the storage changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use super::chain::{self, BlockSource, Chain, Owner, Source};
use super::context::DiskContext;
use super::guard::RestorePointGuard;
use super::presence::BlockChecks;
use super::report::LinkReport;
use crate::cache::{Access, Block};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range};
use crate::repo::DiskRef;
use crate::store::{Meta, StorePath};
use crate::sync;

/// A disk that can be read at any offset.
pub struct Disk {
    context: Arc<DiskContext>,
    path: StorePath,
    guard: Option<RestorePointGuard>,
    chain: RwLock<Arc<Chain>>,
    /// Allocated bytes plus one once they have been counted, 0 before.
    allocated_plus_one: AtomicU64,
}

impl DiskContext {
    /// Opens a disk of a repository.
    ///
    /// # Errors
    /// As [`Self::open_disk`].
    pub fn open(
        self: &Arc<Self>,
        disk: &DiskRef,
        guard: Option<RestorePointGuard>,
    ) -> Result<Arc<Disk>> {
        match disk {
            DiskRef::VhdChain(path) => self.open_disk(path, guard),
        }
    }

    /// Opens the disk whose youngest image is `path` (`.vhd` or `.alias.vhd`). Reads footers and
    /// headers of the whole chain. A chain that is broken below the youngest image opens all the
    /// same: what is readable is readable, the rest fails when it is read.
    ///
    /// # Errors
    /// When the youngest image itself cannot be opened: its size would not be known.
    pub fn open_disk(
        self: &Arc<Self>,
        path: &StorePath,
        guard: Option<RestorePointGuard>,
    ) -> Result<Arc<Disk>> {
        let chain = chain::linker::link(&self.registry, &self.store, path, guard.clone())?;
        Ok(Arc::new(Disk {
            context: Arc::clone(self),
            path: path.clone(),
            guard,
            chain: RwLock::new(Arc::new(chain)),
            allocated_plus_one: AtomicU64::new(0),
        }))
    }
}

impl Disk {
    /// Bytes allocated over the whole chain, in whole blocks. Reads every block table of the chain
    /// the first time.
    pub fn allocated_bytes(&self) -> Result<u64> {
        match self.allocated_plus_one.load(Ordering::Relaxed) {
            0 => {
                let bytes = self.with_chain(|chain| chain.allocated_bytes(&self.context.io()))?;
                self.allocated_plus_one.store(bytes + 1, Ordering::Relaxed);
                Ok(bytes)
            }
            known => Ok(known - 1),
        }
    }

    /// [`Self::allocated_bytes`] if it has been counted, else the virtual size.
    pub fn allocated_bytes_guess(&self) -> u64 {
        match self.allocated_plus_one.load(Ordering::Relaxed) {
            0 => self.len_bytes(),
            known => known - 1,
        }
    }

    /// The images of the chain, youngest first, with what reads have found to be damaged.
    pub fn links(&self) -> Vec<LinkReport> {
        let chain = self.chain();
        let io = self.context.io();
        let mut reports = LinkReport::of_chain(&chain);
        for (index, report) in reports.iter_mut().enumerate() {
            report.problems.extend(chain.known_damage(&io, index));
        }
        reports
    }

    /// Images in the chain.
    pub fn chain_length(&self) -> usize {
        self.chain().links.len()
    }

    /// The same as [`Self::links`], with what only reading the tables, listing the blocks and examining
    /// some of them tells: tables that cannot be read or lead out of the file, blocks that lie over each
    /// other, are not there, or are stored in an odd way.
    pub fn checked_links(&self, checks: &BlockChecks) -> Vec<LinkReport> {
        let io = self.context.io();
        let mut chain = self.chain();
        chain.prepare_tables(&io);
        let (mut blocks, any_missing) = checks.of_chain(&io, &chain);
        if any_missing {
            // A merge may have begun, or ended, since the chain was linked.
            checks.forget_missing();
            chain = self.relink(&chain).unwrap_or(chain);
            (blocks, _) = checks.of_chain(&io, &chain);
        }
        let mut reports = LinkReport::of_chain(&chain);
        let numbered = chain.links.iter().enumerate();
        for (((index, link), report), blocks) in numbered.zip(&mut reports).zip(blocks) {
            match link.image().format.check_table() {
                Ok(problems) => report.problems.extend(problems),
                Err(e) => {
                    let problem = format!("its block table cannot be read: {e}");
                    report.problems.push(problem);
                    continue;
                }
            }
            let examined = chain.examine(&io, index);
            report.problems.extend(examined.problems);
            report.notes.extend(examined.notes);
            report.problems.extend(blocks);
        }
        reports
    }

    /// Why part of the disk cannot be read although its youngest image is sound, or `None`.
    pub fn broken(&self) -> Option<Error> {
        self.chain().broken.clone()
    }

    /// Whether the chain is broken where an image names its parent by a path that leads above the root of
    /// the store.
    pub fn leads_out(&self) -> bool {
        let chain = self.chain();
        chain.broken.is_some() && chain.leads_out
    }

    /// All that is wrong, one sentence each: with the chain, and with its images as `links` (from
    /// [`Self::links`] or [`Self::checked_links`]) tell it.
    pub fn problems(&self, links: &[LinkReport]) -> Vec<String> {
        let chain = self.chain();
        let broken = chain.broken.iter();
        let of_chain = broken.map(|e| format!("readable in part only: {e}"));
        let of_links = links.iter().flat_map(LinkReport::told_problems);
        of_chain
            .chain(chain.problems.iter().cloned())
            .chain(of_links)
            .collect()
    }

    /// The state of the restore point's metadata file: as it was seen no longer than `age` ago, or else
    /// as it is now. `None` without a guard.
    ///
    /// # Errors
    /// `NotFound` when it is gone; otherwise as the storage says.
    pub fn guard_state(&self, age: Duration) -> Result<Option<Meta>> {
        let chain = self.chain();
        match chain.guard.seen_within(age) {
            Some(seen) => Ok(Some(seen)),
            None => chain.guard.check_state(self.context.store.as_ref()),
        }
    }

    pub(in crate::image) fn context(&self) -> &Arc<DiskContext> {
        &self.context
    }

    pub(in crate::image) fn chain(&self) -> Arc<Chain> {
        Arc::clone(&sync::read(&self.chain))
    }

    /// Calls `read` with the chain; when something has gone missing or changed, links the chain
    /// again, once, and calls it with the new one.
    pub(in crate::image) fn with_chain<T>(
        &self,
        mut read: impl FnMut(&Arc<Chain>) -> Result<T>,
    ) -> Result<T> {
        let chain = self.chain();
        let error = match read(&chain) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Changed) => e,
            other => return other,
        };
        let again = self.relink(&chain).and_then(|fresh| read(&fresh));
        again.map_err(|e| {
            if e.kind() != ErrorKind::NotFound {
                return e;
            }
            // A missing part after a second look is damage, whatever the storage calls it.
            Error::corrupt(format!("is missing ({})", error.message()))
                .with_object(e.object().unwrap_or(self.path.as_str()))
                .with_source(e.clone())
        })
    }

    fn relink(&self, stale: &Arc<Chain>) -> Result<Arc<Chain>> {
        let current = self.chain();
        if !Arc::ptr_eq(&current, stale) {
            return Ok(current);
        }
        let (registry, store) = (&self.context.registry, &self.context.store);
        let fresh = chain::linker::link(registry, store, &self.path, self.guard.clone())?;
        if fresh.links[0].image().uuid() != stale.links[0].image().uuid()
            || fresh.size() != stale.size()
        {
            return Err(Error::new(
                ErrorKind::Changed,
                "is another disk than the one that was opened",
            )
            .with_object(&self.path));
        }
        let fresh = Arc::new(fresh);
        *sync::write(&self.chain) = Arc::clone(&fresh);
        Ok(fresh)
    }
}

/// Blocks for accesses that belong to no reader.
struct FromCache<'a>(&'a DiskContext);

impl BlockSource for FromCache<'_> {
    fn block(&self, chain: &Chain, link: usize, block: u64) -> Result<Source> {
        self.0.find_block(chain, link, block, Access::Random)
    }

    fn load(&self, chain: &Chain, link: usize, block: u64) -> Result<Block> {
        self.0.load_block(chain, link, block, Access::Random)
    }
}

impl ReadAt for Disk {
    fn len_bytes(&self) -> u64 {
        self.chain().size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes())?;
        self.with_chain(|chain| {
            chain.read(&self.context.io(), &FromCache(&self.context), offset, buf)
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes())?;
        self.with_chain(|chain| {
            let unit_log2 = chain.unit_log2();
            let (end, is_data) = chain.run(&self.context.io(), offset >> unit_log2)?;
            Ok(Extent {
                kind: if is_data {
                    ExtentKind::Data
                } else {
                    ExtentKind::Hole
                },
                end: (end << unit_log2).min(chain.size()),
            })
        })
    }
}

impl Disk {
    /// The image, and the block of it, that a range can be taken from in one piece: decoded whole,
    /// wholly visible. Used by readers for the short way.
    pub(in crate::image) fn single_block(
        &self,
        chain: &Chain,
        offset: u64,
        len: u64,
    ) -> Result<Option<(usize, u64)>> {
        let unit = offset >> chain.unit_log2();
        if len == 0 || (offset + len - 1) >> chain.unit_log2() != unit {
            return Ok(None);
        }
        let Owner::Link(link) = chain.owner(&self.context.io(), unit)? else {
            return Ok(None);
        };
        let image = chain.links[link].image();
        if !image.reads_whole_blocks() || offset + len > chain.visible_until(link) {
            return Ok(None);
        }
        Ok(Some((link, chain.block_of_unit(image, unit))))
    }
}
