//! The tree of trees: all subvolumes, and the tree of checksums.
//!
//! Source: `struct btrfs_root_item` in Linux' `btrfs_tree.h`.

use std::collections::HashMap;

use super::fault::{bad, unsupported};
use super::key::{CSUM_TREE, Key, ROOT_BACKREF, ROOT_ITEM, is_subvolume};
use super::superblock::Root;
use super::tree::Trees;
use crate::error::Result;
use crate::volume::bits::{byte, le64};

/// Bytes of an item of the oldest kind; newer ones have more behind.
const BYTES: usize = 239;

/// A subvolume.
pub struct Subvolume {
    /// Its tree.
    pub root: Root,
    /// The subvolume that holds it; 0 when none does.
    pub parent: u64,
}

/// What there is in the tree of trees.
pub struct Roots {
    /// Subvolumes by their ids.
    pub subvolumes: HashMap<u64, Subvolume>,
    /// The tree of checksums.
    pub sums: Option<Root>,
}

/// Parses a root item: an inode (of the top directory), the generation, a number, the block; the level at
/// the end.
///
/// # Errors
/// `Corrupt` when it is too short.
pub fn parse(item: &[u8]) -> Result<Root> {
    let item = item
        .get(..BYTES)
        .ok_or_else(|| bad("a root is too short"))?;
    Ok(Root {
        block: le64(item, 176),
        generation: le64(item, 160),
        level: byte(item, BYTES - 1),
    })
}

impl Roots {
    /// Reads the tree of trees. More than `most` subvolumes are too many.
    ///
    /// # Errors
    /// What kept it from being read; `Unsupported` for too many subvolumes.
    pub fn read(trees: &Trees, root: Root, most: usize) -> Result<Roots> {
        let mut roots = Roots {
            subvolumes: HashMap::new(),
            sums: None,
        };
        trees.scan(root, Key::new(0, 0, 0), |found, data| {
            roots.add(found, data)?;
            match roots.subvolumes.len() > most {
                true => Err(unsupported("there are too many subvolumes")),
                false => Ok(true),
            }
        })?;
        Ok(roots)
    }

    fn add(&mut self, key: Key, data: &[u8]) -> Result<()> {
        match (key.objectid, key.key_type) {
            (CSUM_TREE, ROOT_ITEM) => self.sums = Some(parse(data)?),
            (id, ROOT_ITEM) if is_subvolume(id) => {
                let root = parse(data)?;
                self.subvolumes.insert(id, Subvolume { root, parent: 0 });
            }
            // Comes right after the root it belongs to.
            (id, ROOT_BACKREF) => {
                if let Some(subvolume) = self.subvolumes.get_mut(&id) {
                    subvolume.parent = key.offset;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_where_its_item_says() {
        let mut item = vec![0xEE; 439];
        item[160..168].copy_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0]);
        item[176..184].copy_from_slice(&[0, 0x40, 0xE5, 0x01, 0, 0, 0, 0]);
        item[238] = 1;
        let root = Root {
            block: 0x1E5_4000,
            generation: 9,
            level: 1,
        };
        assert_eq!(parse(&item).unwrap(), root);
        assert_eq!(parse(&item[..239]).unwrap(), root);
        assert!(parse(&item[..238]).is_err());
    }

    #[test]
    fn a_subvolume_belongs_to_what_its_back_reference_names() {
        let mut roots = Roots {
            subvolumes: HashMap::new(),
            sums: None,
        };
        let item = [3; 439];
        let mut add = |id, key_type, offset| {
            roots.add(Key::new(id, key_type, offset), &item).unwrap();
        };
        for id in [2, 5, CSUM_TREE, 256, 257, u64::MAX - 8] {
            add(id, ROOT_ITEM, 0);
        }
        add(257, ROOT_BACKREF, 256);
        add(300, ROOT_BACKREF, 256);
        let mut found: Vec<(u64, u64)> = roots
            .subvolumes
            .iter()
            .map(|(id, subvolume)| (*id, subvolume.parent))
            .collect();
        found.sort_unstable();
        assert_eq!(found, [(5, 0), (256, 0), (257, 256)]);
        assert!(roots.sums.is_some());
    }
}
