//! btrfs trees: finding items by key, and going on from there.
//!
//! The crate parses and verifies tree blocks. Walking them is done here: the crate copies a block and all
//! its items for every step, keeps 16 MiB of them for each subvolume, and gives a directory or a file's
//! extents only as a whole.

use std::cmp::Ordering;
use std::sync::Arc;

use fs_btrfs::btree::{Body, Item, TreeBlock, TreeGeometry, compare_keys};
use fs_btrfs::chunk::DiskKey;
use quick_cache::sync::Cache;

use super::space::{Space, keep_failure};
use super::superblock::{MAX_LEVELS, Root, Superblock};
use super::{bad, from_btrfs};
use crate::error::Result;
use crate::volume::bits::has;

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

/// Reads the trees of one file system.
pub struct Trees {
    space: Space,
    geometry: TreeGeometry,
    seeds: Vec<[u8; 16]>,
    kept: Cache<u64, Arc<TreeBlock>>,
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
    /// The trees in a space. `seeds`: what blocks of the file systems carry that this one grew from.
    pub fn new(space: Space, superblock: &Superblock, seeds: &[[u8; 16]]) -> Self {
        let geometry = superblock.geometry();
        let kept = KEPT_BYTES / geometry.nodesize.max(4096) as usize;
        Trees {
            space,
            geometry,
            seeds: seeds.to_vec(),
            kept: Cache::new(kept),
        }
    }

    /// The space, for what is not in trees.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The item with exactly this key.
    ///
    /// # Errors
    /// `Corrupt` when the tree does not hold together, here and below.
    pub fn get(&self, root: Root, wanted: &DiskKey) -> Result<Option<Place>> {
        let place = self.descend(root, wanted)?;
        let is_it = place.item().is_some_and(|(found, _)| found == *wanted);
        Ok(is_it.then_some(place))
    }

    /// The item with this key or the last one before it, `None` when the tree begins later.
    pub fn at_or_before(&self, root: Root, wanted: &DiskKey) -> Result<Option<Place>> {
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
        root: Root,
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
    fn descend(&self, root: Root, wanted: &DiskKey) -> Result<Place> {
        let mut block = self.block(root.block, root.generation)?;
        if block.header.level != root.level {
            return Err(bad(
                "the root of a tree is of another level than it should be",
            ));
        }
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
            let child = self.block(pointer.blockptr, pointer.generation)?;
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

    fn parse(&self, bytes: Vec<u8>, logical: u64) -> Result<TreeBlock> {
        let mut geometry = self.geometry;
        if let Some(seed) = self.seeds.iter().find(|seed| has(&bytes, 0x20, *seed)) {
            geometry.fsid = *seed;
        }
        TreeBlock::parse(bytes, logical, &geometry).map_err(from_btrfs)
    }

    /// A verified block, from whichever copy is good.
    fn block(&self, logical: u64, generation: u64) -> Result<Arc<TreeBlock>> {
        let is_wanted = |block: &TreeBlock| block.header.generation == generation;
        if let Some(block) = self.kept.get(&logical).filter(|block| is_wanted(block)) {
            return Ok(block);
        }
        let len_bytes = self.geometry.nodesize;
        let mut failed = None;
        for way in 0..self.space.ways_to(logical, u64::from(len_bytes))? {
            let mut bytes = vec![0; len_bytes as usize];
            let block = self
                .space
                .read(logical, way, &mut bytes)
                .and_then(|()| self.parse(bytes, logical))
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
                Err(error) => keep_failure(&mut failed, error),
            }
        }
        Err(failed.unwrap_or_else(|| bad("a block has no copies")))
    }
}
