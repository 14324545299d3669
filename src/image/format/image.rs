//! One image, whatever its format: what chains are made of.

use std::sync::Arc;

use super::{Facts, ImageFormat, SectorRead};
use crate::cache::Block;
use crate::error::Result;
use crate::image::uuid::Uuid;
use crate::store::StorePath;

/// One open image. Shared by all chains that contain it.
pub(in crate::image) struct Image {
    /// Number of this image in the caches; never reused.
    pub id: u64,
    /// Where its data is (the directory, when an alias leads to it).
    pub data_path: StorePath,
    pub facts: Facts,
    pub format: Box<dyn ImageFormat>,
}

/// An image and the path by which a chain knows it.
#[derive(Clone)]
pub(in crate::image) struct Found {
    /// The alias, or the image itself.
    pub path: StorePath,
    pub image: Arc<Image>,
}

impl Image {
    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.facts.size
    }

    pub fn uuid(&self) -> Uuid {
        self.facts.uuid
    }

    pub fn block_size(&self) -> u32 {
        self.facts.block_size
    }

    /// Whether what it does not hold is its parent's.
    pub fn is_differencing(&self) -> bool {
        self.facts.parent.is_some()
    }

    /// Whether blocks must be fetched whole instead of read in place.
    pub fn reads_whole_blocks(&self) -> bool {
        self.facts.reads_whole_blocks
    }

    /// Bytes of a block that belong to the disk.
    pub fn data_len(&self, block: u64) -> u64 {
        let block_size = u64::from(self.block_size());
        let left = self.size().saturating_sub(block.saturating_mul(block_size));
        block_size.min(left)
    }

    /// Copies what a decoded block holds of what is wanted, and notes what it does not.
    ///
    /// # Errors
    /// None: the signature is that of the other ways to read sectors.
    pub fn copy_present(&self, block: &Block, read: &mut SectorRead<'_>) -> Result<()> {
        let (sectors, data) = block.bytes.split_at(self.facts.bitmap_bytes as usize);
        let sectors = if block.full { &[] } else { sectors };
        read.read_present(sectors, |part, offset| {
            part.copy_from_slice(&data[offset as usize..][..part.len()]);
            Ok(())
        })
    }
}
