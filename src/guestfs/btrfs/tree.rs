//! btrfs trees: finding items by key, and going on from there.
//!
//! The crate parses and verifies tree blocks. Walking them is done here: the crate copies a block and all
//! its items for every step, keeps 16 MiB of them for each subvolume, and gives a directory or a file's
//! extents only as a whole.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use fs_btrfs::Filesystem;
use fs_btrfs::btree::{Body, Item, TreeBlock, TreeGeometry, compare_keys};
use fs_btrfs::chunk::DiskKey;
use fs_core::BlockRead;
use quick_cache::sync::Cache;

use super::from_btrfs;
use crate::error::{Error, Result};

/// A tree has at most this many levels.
const MAX_LEVELS: u8 = 8;
/// Bytes of verified blocks that are kept.
const KEPT_BYTES: usize = 8 << 20;

/// A key from its parts.
pub fn key(objectid: u64, key_type: u8, offset: u64) -> DiskKey {
    DiskKey {
        objectid,
        key_type,
        offset,
    }
}

/// Reads the trees of one file system. Which tree is told by the address of its root block.
pub struct Trees {
    device: Arc<dyn BlockRead>,
    fs: Arc<Filesystem>,
    geometry: TreeGeometry,
    kept: Cache<u64, Arc<TreeBlock>>,
    /// Generations of roots by their places: below them, parents tell.
    generations: HashMap<u64, u64>,
}

/// A place in a leaf.
pub struct Place {
    leaf: Arc<TreeBlock>,
    index: usize,
    /// Where the next leaf begins.
    next: Option<DiskKey>,
}

impl Place {
    fn items(&self) -> &[Item] {
        match &self.leaf.body {
            Body::Leaf(items) => items,
            Body::Node(_) => &[],
        }
    }

    /// The item here: its key and data; `None` at the end of the leaf.
    pub fn item(&self) -> Option<(DiskKey, &[u8])> {
        let item = self.items().get(self.index)?;
        Some((item.key, self.leaf.item_data(item)?))
    }
}

impl Trees {
    /// For an open file system on a device.
    /// `generations`: of the roots, by their places, as far as they are known.
    pub fn new(
        device: Arc<dyn BlockRead>,
        fs: Arc<Filesystem>,
        generations: HashMap<u64, u64>,
    ) -> Self {
        let geometry = TreeGeometry::from_superblock(fs.superblock());
        let kept = KEPT_BYTES / geometry.nodesize.max(4096) as usize;
        Trees {
            device,
            fs,
            geometry,
            kept: Cache::new(kept),
            generations,
        }
    }

    /// The crate's view, for what is in the superblock and the chunk map.
    pub fn fs(&self) -> &Filesystem {
        &self.fs
    }

    /// The item with exactly this key.
    ///
    /// # Errors
    /// `Corrupt` when the tree does not hold together, here and below.
    pub fn get(&self, root: u64, wanted: &DiskKey) -> Result<Option<Place>> {
        let place = self.descend(root, wanted)?;
        let is_it = place.item().is_some_and(|(found, _)| found == *wanted);
        Ok(is_it.then_some(place))
    }

    /// The item with this key or the last one before it, `None` when the tree begins later.
    pub fn at_or_before(&self, root: u64, wanted: &DiskKey) -> Result<Option<Place>> {
        let mut place = self.descend(root, wanted)?;
        if place.item().is_some_and(|(found, _)| found == *wanted) {
            return Ok(Some(place));
        }
        // `descend` made sure that a leaf's first key is what led to it, so only in the first leaf of
        // the tree can all keys be greater.
        match place.index.checked_sub(1) {
            Some(index) => {
                place.index = index;
                Ok(Some(place))
            }
            None => Ok(None),
        }
    }

    /// Calls `each` with the items from `from` on, in the order of keys, until it says stop.
    pub fn scan(
        &self,
        root: u64,
        from: &DiskKey,
        mut each: impl FnMut(&DiskKey, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut from = *from;
        loop {
            let mut place = self.descend(root, &from)?;
            while let Some((key, data)) = place.item() {
                if !each(&key, data)? {
                    return Ok(());
                }
                place.index += 1;
            }
            match place.next {
                Some(next) if compare_keys(&next, &from) == Ordering::Greater => from = next,
                Some(_) => return Err(bad("the keys of a node are out of order")),
                None => return Ok(()),
            }
        }
    }

    /// The leaf that holds a key or would hold it, at the first item that is not before the key.
    fn descend(&self, root: u64, wanted: &DiskKey) -> Result<Place> {
        let mut block = self.block(root, self.generations.get(&root).copied())?;
        let mut next = None;
        for _ in 0..MAX_LEVELS {
            let pointers = match &block.body {
                Body::Leaf(items) => {
                    let index = items
                        .partition_point(|item| compare_keys(&item.key, wanted) == Ordering::Less);
                    return Ok(Place {
                        leaf: block,
                        index,
                        next,
                    });
                }
                Body::Node(pointers) => pointers,
            };
            let after =
                pointers.partition_point(|p| compare_keys(&p.key, wanted) != Ordering::Greater);
            let index = after.saturating_sub(1);
            let pointer = pointers
                .get(index)
                .ok_or_else(|| bad("a node has no children"))?;
            if let Some(later) = pointers.get(index + 1) {
                next = Some(later.key);
            }
            let child = self.block(pointer.blockptr, Some(pointer.generation))?;
            let first = match &child.body {
                Body::Leaf(items) => items.first().map(|item| item.key),
                Body::Node(pointers) => pointers.first().map(|p| p.key),
            };
            if first != Some(pointer.key) || child.header.level + 1 != block.header.level {
                return Err(bad("a block is not what its parent says"));
            }
            block = child;
        }
        Err(bad("a tree is too high"))
    }

    /// A verified block, from whichever copy is good.
    fn block(&self, logical: u64, generation: Option<u64>) -> Result<Arc<TreeBlock>> {
        let is_wanted =
            |block: &TreeBlock| generation.is_none_or(|wanted| block.header.generation == wanted);
        if let Some(block) = self.kept.get(&logical).filter(|block| is_wanted(block)) {
            return Ok(block);
        }
        let mut failed = None;
        for copy in 0..self.copies(logical)? {
            let mut bytes = vec![0; self.geometry.nodesize as usize];
            let block = self
                .read(logical, copy, &mut bytes)
                .and_then(|()| TreeBlock::parse(bytes, logical, &self.geometry).map_err(from_btrfs))
                .and_then(|block| match is_wanted(&block) {
                    true => Ok(block),
                    false => Err(bad("a block is of another time than its parent says")),
                });
            match block {
                Ok(block) => {
                    let block = Arc::new(block);
                    self.kept.insert(logical, block.clone());
                    return Ok(block);
                }
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        Err(failed.unwrap_or_else(|| bad("a block has no copies")))
    }

    /// How many copies there are of what is at a logical address.
    pub fn copies(&self, logical: u64) -> Result<usize> {
        self.fs.chunk_map().mirrors_at(logical).map_err(from_btrfs)
    }

    /// Reads one copy of the bytes at a logical address.
    pub fn read(&self, logical: u64, copy: usize, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = logical
                .checked_add(done as u64)
                .ok_or_else(|| bad("an address is too large"))?;
            let mapped = self
                .fs
                .chunk_map()
                .map_mirror(at, copy)
                .map_err(from_btrfs)?;
            let take = mapped.len.min((buf.len() - done) as u64) as usize;
            if take == 0 {
                return Err(bad("an address leads nowhere"));
            }
            self.device
                .read_at(mapped.physical, &mut buf[done..done + take])
                .map_err(|error| from_btrfs(error.into()))?;
            done += take;
        }
        Ok(())
    }
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("btrfs: {message}"))
}
