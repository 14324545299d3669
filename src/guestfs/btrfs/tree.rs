//! btrfs trees: finding items by key, and going on from there.
//!
//! Blocks that were verified are kept, so that the way down from the root costs no reading.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::block::{Block, MAX_LEVELS};
use super::checksum::Checksum;
use super::fault::bad;
use super::key::Key;
use super::space::{Space, keep_failure};
use super::superblock::{Root, Superblock};
use crate::error::Result;

/// Bytes of verified blocks that are kept.
const KEPT_BYTES: usize = 8 << 20;

/// Reads the trees of one file system.
pub struct Trees {
    space: Space,
    node_bytes: u32,
    sums: Checksum,
    /// What blocks carry: of this file system, and of those that it grew from.
    uuids: Vec<[u8; 16]>,
    kept: Cache<u64, Arc<Block>>,
}

/// A place in a leaf.
pub struct Place {
    leaf: Arc<Block>,
    index: usize,
    /// Where the next leaf begins.
    next: Option<Key>,
}

impl Place {
    /// The item here: its key and data; `None` at the end of the leaf.
    pub fn item(&self) -> Option<(Key, &[u8])> {
        self.leaf.item(self.index)
    }
}

impl Trees {
    /// The trees in a space. `seeds`: what blocks of the file systems carry that this one grew from.
    pub fn new(space: Space, superblock: &Superblock, seeds: &[[u8; 16]]) -> Self {
        let mut uuids = vec![superblock.node_uuid];
        uuids.extend(seeds);
        Trees {
            space,
            node_bytes: superblock.node_bytes,
            sums: superblock.sums,
            uuids,
            kept: Cache::new(KEPT_BYTES / superblock.node_bytes.max(4096) as usize),
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
    pub fn get(&self, root: Root, wanted: Key) -> Result<Option<Place>> {
        let place = self.descend(root, wanted)?;
        let is_it = place.item().is_some_and(|(found, _)| found == wanted);
        Ok(is_it.then_some(place))
    }

    /// The item with this key or the last one before it, `None` when the tree begins later.
    pub fn at_or_before(&self, root: Root, wanted: Key) -> Result<Option<Place>> {
        let mut place = self.descend(root, wanted)?;
        if place.item().is_some_and(|(found, _)| found == wanted) {
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
        mut from: Key,
        mut each: impl FnMut(Key, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        loop {
            let mut place = self.descend(root, from)?;
            while let Some((key, data)) = place.item() {
                if !each(key, data)? {
                    return Ok(());
                }
                place.index += 1;
            }
            match place.next {
                Some(next) if next > from => from = next,
                Some(_) => return Err(bad("the keys of a node are out of order")),
                None => return Ok(()),
            }
        }
    }

    /// The leaf that holds a key or would hold it, at the first item that is not before the key.
    fn descend(&self, root: Root, wanted: Key) -> Result<Place> {
        let mut block = self.block(root.block, root.generation)?;
        if block.level != root.level {
            return Err(bad(
                "the root of a tree is of another level than it should be",
            ));
        }
        let mut next = None;
        for _ in 0..MAX_LEVELS {
            if block.level == 0 {
                let index = block.partition_point(|key| key < wanted);
                return Ok(Place {
                    leaf: block,
                    index,
                    next,
                });
            }
            let after = block.partition_point(|key| key <= wanted);
            let index = after.saturating_sub(1);
            let pointer = block
                .pointer(index)
                .ok_or_else(|| bad("a node has no children"))?;
            if let Some(later) = block.key(index + 1) {
                next = Some(later);
            }
            let child = self.block(pointer.block, pointer.generation)?;
            if child.key(0) != Some(pointer.key) || child.level + 1 != block.level {
                return Err(bad("a block is not what its parent says"));
            }
            block = child;
        }
        Err(bad("a tree is too high"))
    }

    /// A verified block, from whichever copy is good.
    fn block(&self, logical: u64, generation: u64) -> Result<Arc<Block>> {
        let is_wanted = |block: &Block| block.generation == generation;
        if let Some(block) = self.kept.get(&logical).filter(|block| is_wanted(block)) {
            return Ok(block);
        }
        let len_bytes = self.node_bytes;
        let mut failed = None;
        for way in 0..self.space.ways_to(logical, u64::from(len_bytes))? {
            let mut bytes = vec![0; len_bytes as usize];
            let block = self
                .space
                .read(logical, way, &mut bytes)
                .and_then(|()| Block::parse(bytes, logical, self.sums, &self.uuids))
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
