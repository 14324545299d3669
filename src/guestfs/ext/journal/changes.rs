//! What fast commits make of a file system: inodes, ranges of files and names that count before those on the volume.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::Arc;

use super::fast_commit::{Change, FastCommit};
use crate::error::{Error, Result};
use crate::volume::bits::{le16, le32};

/// Of an inode: where its blocks are, or its target, or its content.
const BLOCK: Range<usize> = 0x28..0x64;
const FLAGS: usize = 0x20;
const LINKS: usize = 0x1A;
const GENERATION: Range<usize> = 0x64..0x68;
const EXTRA_BYTES: usize = 0x80;
const CREATED: Range<usize> = 0x90..0x94;
const FLAG_EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xF30A;
/// An extent tree in an inode that has no extents: magic, none of at most four, no levels.
const NO_EXTENTS: [u8; 8] = [0x0A, 0xF3, 0, 0, 4, 0, 0, 0];

/// What counts before the volume.
#[derive(Default)]
pub(crate) struct Changes {
    inodes: HashMap<u32, Vec<u8>>,
    ranges: HashMap<u32, Arc<Ranges>>,
    names: HashMap<u32, BTreeMap<OsString, Option<u32>>>,
    /// How many directories more a directory has got than its inode knows.
    subdirectories: HashMap<u32, i64>,
    /// What is on the volume under these numbers belongs to others.
    new: HashSet<u32>,
}

/// Ranges of a file that lie elsewhere than its inode says: their ends, and where they begin.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ranges(BTreeMap<u64, (u64, Option<u64>)>);

impl Ranges {
    fn insert(&mut self, blocks: Range<u64>, physical: Option<u64>) {
        if blocks.is_empty() {
            return;
        }
        let overlapping: Vec<u64> = self
            .0
            .range(..blocks.end)
            .rev()
            .take_while(|(_, (end, _))| *end > blocks.start)
            .map(|(&start, _)| start)
            .collect();
        for start in overlapping {
            let Some((end, at)) = self.0.remove(&start) else {
                continue;
            };
            if start < blocks.start {
                self.0.insert(start, (blocks.start, at));
            }
            if end > blocks.end {
                let at = at.map(|at| at.saturating_add(blocks.end - start));
                self.0.insert(blocks.end, (end, at));
            }
        }
        self.0.insert(blocks.start, (blocks.end, physical));
    }

    /// What is known of a block: where it is and up to where that goes on; or where the next one begins of which
    /// something is known.
    pub(crate) fn at(&self, block: u64) -> std::result::Result<(Option<u64>, u64), u64> {
        if let Some((&start, &(end, at))) = self.0.range(..=block).next_back()
            && block < end
        {
            return Ok((at.map(|at| at.saturating_add(block - start)), end));
        }
        Err(self
            .0
            .range(block..)
            .next()
            .map_or(u64::MAX, |(&start, _)| start))
    }
}

impl Changes {
    /// The sum of all commits. `stored` gives inodes as they are on the volume.
    ///
    /// # Errors
    /// What `stored` gave.
    pub(crate) fn of(
        commits: Vec<FastCommit>,
        inode_bytes: usize,
        stored: &dyn Fn(u32) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let mut changes = Changes::default();
        for commit in commits {
            changes.apply(commit, inode_bytes, stored)?;
        }
        Ok(changes)
    }

    fn apply(
        &mut self,
        commit: FastCommit,
        inode_bytes: usize,
        stored: &dyn Fn(u32) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let mut created = HashSet::new();
        // Inodes are of the end of the commit, whatever comes before or after them.
        let mut counted = HashSet::new();
        for change in &commit {
            match change {
                Change::Link {
                    inode,
                    is_new: true,
                    ..
                } => {
                    created.insert(*inode);
                }
                Change::Inode { inode, .. } => {
                    counted.insert(*inode);
                }
                _ => {}
            }
        }
        for inode in &counted {
            self.subdirectories.remove(inode);
        }
        for change in commit {
            match change {
                Change::Range {
                    inode,
                    blocks,
                    physical,
                } => {
                    let ranges = self.ranges.entry(inode).or_default();
                    Arc::make_mut(ranges).insert(blocks, physical);
                }
                Change::Inode { inode, raw } => {
                    let first = created.remove(&inode);
                    self.inode(inode, &raw, first, inode_bytes, stored)?;
                }
                Change::Link {
                    parent,
                    inode,
                    name,
                    ..
                } => {
                    if !counted.contains(&parent) && self.is_directory(inode, stored)? {
                        *self.subdirectories.entry(parent).or_default() += 1;
                    }
                    let names = self.names.entry(parent).or_default();
                    names.insert(name, Some(inode));
                }
                Change::Unlink {
                    parent,
                    inode,
                    name,
                } => {
                    if !counted.contains(&parent) && self.is_directory(inode, stored)? {
                        *self.subdirectories.entry(parent).or_default() -= 1;
                    }
                    self.names.entry(parent).or_default().insert(name, None);
                }
            }
        }
        Ok(())
    }

    fn raw(&self, inode: u32, stored: &dyn Fn(u32) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        match self.inodes.get(&inode) {
            Some(raw) => Ok(raw.clone()),
            None => stored(inode),
        }
    }

    fn is_directory(&self, inode: u32, stored: &dyn Fn(u32) -> Result<Vec<u8>>) -> Result<bool> {
        Ok(le16(&self.raw(inode, stored)?, 0) & 0xF000 == 0x4000)
    }

    fn inode(
        &mut self,
        number: u32,
        logged: &[u8],
        created: bool,
        inode_bytes: usize,
        stored: &dyn Fn(u32) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let before = self.raw(number, stored)?;
        if logged.len() > inode_bytes || before.len() != inode_bytes {
            return Err(Error::corrupt(
                "a fast commit has an inode of another size than the file system",
            ));
        }
        let new = created || is_another(&before, logged);
        let mut raw = match new {
            true => vec![0; inode_bytes],
            false => before,
        };
        if new {
            self.new.insert(number);
            self.ranges.remove(&number);
            self.names.remove(&number);
        }
        let too_short = || Error::corrupt("an inode has no room for its blocks");
        let blocks = raw.get(BLOCK).ok_or_else(too_short)?.to_vec();
        let (changed, _) = raw
            .split_at_mut_checked(logged.len())
            .ok_or_else(too_short)?;
        changed.copy_from_slice(logged);
        let (flags, has_map) = (le32(&raw, FLAGS), has_block_map(&raw));
        let place = raw.get_mut(BLOCK).ok_or_else(too_short)?;
        if flags & FLAG_EXTENTS != 0 {
            // Ranges tell what has changed; blocks of the tree itself are not on the volume yet.
            place.copy_from_slice(&blocks);
            if le16(&blocks, 0) != EXTENT_MAGIC {
                place.fill(0);
                for (to, byte) in place.iter_mut().zip(NO_EXTENTS) {
                    *to = byte;
                }
            }
        } else if has_map {
            place.copy_from_slice(&blocks);
        }
        self.inodes.insert(number, raw);
        Ok(())
    }

    /// An inode that has changed.
    pub(crate) fn inode_of(&self, inode: u32) -> Option<&[u8]> {
        self.inodes.get(&inode).map(Vec::as_slice)
    }

    /// Whether what is on the volume under this number belongs to another file.
    pub(crate) fn is_new(&self, inode: u32) -> bool {
        self.new.contains(&inode)
    }

    /// What has changed of where a file's blocks are.
    pub(crate) fn ranges_of(&self, inode: u32) -> Option<Arc<Ranges>> {
        self.ranges.get(&inode).cloned()
    }

    /// The link count of a directory, whose inode has this one.
    pub(crate) fn links_of(&self, inode: u32, links: u16) -> u16 {
        match self.subdirectories.get(&inode) {
            // 1: more than can be counted.
            Some(more) if links != 1 => {
                u16::try_from(i64::from(links).saturating_add(*more)).unwrap_or(1)
            }
            _ => links,
        }
    }

    /// The names of a directory that have changed, each with what it leads to now, if anything.
    pub(crate) fn names_of(&self, dir: u32) -> Option<&BTreeMap<OsString, Option<u32>>> {
        self.names.get(&dir)
    }

    /// What a name leads to, if that has changed: `Some(None)` for one that is gone.
    pub(crate) fn lookup(&self, dir: u32, name: &OsStr) -> Option<Option<u32>> {
        self.names.get(&dir)?.get(name).copied()
    }
}

/// Whether an inode number was given to another file between two states of it.
fn is_another(before: &[u8], after: &[u8]) -> bool {
    if le16(before, 0) == 0 {
        return true;
    }
    let has_other_generation = before.get(GENERATION) != after.get(GENERATION);
    // No name leads there: a file that was deleted, or one that had none yet (`O_TMPFILE`) and keeps its blocks.
    if le16(before, LINKS) == 0 {
        return has_other_generation;
    }
    // A generation can be set by hand; when a file was made cannot.
    let has_created = le16(after, EXTRA_BYTES) >= 20;
    has_other_generation && (!has_created || before.get(CREATED) != after.get(CREATED))
}

/// Whether an inode without extents has pointers to blocks: no device, pipe or socket, nor a link or content that is
/// kept in it.
fn has_block_map(raw: &[u8]) -> bool {
    const FLAG_INLINE: u32 = 0x1000_0000;
    if le32(raw, FLAGS) & FLAG_INLINE != 0 {
        return false;
    }
    matches!(le16(raw, 0) & 0xF000, 0x4000 | 0x8000)
}
