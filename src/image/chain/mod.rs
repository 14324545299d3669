//! A chain of images as one range of bytes.
//!
//! `linker` finds the images: from the youngest to the last of its ancestors (`parent_name`: by what others
//! than XO call them; `merge`: past merges that run or were interrupted). `owner_map` answers from block
//! tables alone who owns which unit (`table_pages` loads them ahead), `read` reads from the owner down.
//! The unit is the smallest block size of the chain, so that each unit lies within one block of every
//! image.

mod link;
pub(in crate::image) mod linker;
mod merge;
pub mod merge_state;
mod owner_map;
mod parent_name;
mod read;
mod table_pages;

pub(in crate::image) use link::ChainLink;
pub(in crate::image) use owner_map::Owner;
pub(in crate::image) use read::{BlockSource, Source};

use self::merge::Merge;
use super::damage::KnownDamage;
use super::format::image::Image;
use super::guard::Guard;
use super::uuid::Uuid;
use crate::cache::{BlockKey, TablePageCache};
use crate::error::Error;
use crate::store::Store;

/// A linked chain, youngest first. Immutable; when the storage changes a new one is made.
pub(in crate::image) struct Chain {
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
    reads_whole_blocks: bool,
    /// What tells whether the youngest image still is what it was.
    pub guard: Guard,
}

/// What a chain reads with; owned by the disk context.
pub(in crate::image) struct ChainIo<'a> {
    pub store: &'a dyn Store,
    pub pages: &'a TablePageCache,
    pub damage: &'a KnownDamage,
}

impl Chain {
    pub(in crate::image) fn new(
        id: u64,
        mut links: Vec<ChainLink>,
        broken: Option<Error>,
        merges: Vec<Merge>,
        problems: Vec<String>,
        guard: Guard,
    ) -> Self {
        let mut limit = u64::MAX;
        for link in &mut links {
            limit = limit.min(link.image().size());
            link.limit = limit;
        }
        let youngest = links.first().and_then(|l| l.image().facts.newest_part);
        if let Some((modified, told)) = youngest {
            guard.note_modified(modified, told);
        }
        guard.note_linked();
        let unit = links.iter().map(|l| l.image().block_size()).min();
        Chain {
            id,
            unit_log2: unit.map_or(21, u32::trailing_zeros),
            reads_whole_blocks: links.iter().any(|l| l.image().reads_whole_blocks()),
            size: links.first().map_or(0, |l| l.image().size()),
            links,
            broken,
            leads_out: false,
            merges,
            problems,
            guard,
        }
    }

    /// Whether a merge into this image was running, or interrupted, when the chain was linked.
    pub(in crate::image) fn is_merged_into(&self, link: &ChainLink) -> bool {
        let (alias, data) = (&link.found.path, &link.image().data_path);
        self.merges
            .iter()
            .any(|m| m.target == *alias || m.target == *data)
    }

    /// The uuid of the youngest image: what tells the disk from others with the same ancestors.
    fn top_uuid(&self) -> Uuid {
        self.links[0].image().uuid()
    }

    /// Virtual size of the disk in bytes.
    pub(in crate::image) fn size(&self) -> u64 {
        self.size
    }

    /// log2 of the bytes of a unit.
    pub(in crate::image) fn unit_log2(&self) -> u32 {
        self.unit_log2
    }

    pub(in crate::image) fn reads_whole_blocks(&self) -> bool {
        self.reads_whole_blocks
    }

    fn units(&self) -> u64 {
        self.size.div_ceil(1 << self.unit_log2)
    }

    /// The block of `image` that holds `unit`.
    pub(in crate::image) fn block_of_unit(&self, image: &Image, unit: u64) -> u64 {
        unit >> (image.block_size().trailing_zeros() - self.unit_log2)
    }

    /// The key under which a decoded block of the image at `link` is cached.
    pub(in crate::image) fn block_key(&self, link: usize, block: u64) -> BlockKey {
        BlockKey {
            image: self.links[link].image().id,
            block,
        }
    }

    /// The byte offset up to which the image at `link` can be seen.
    pub(in crate::image) fn visible_until(&self, link: usize) -> u64 {
        self.links[link].limit
    }
}
