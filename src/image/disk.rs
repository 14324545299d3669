//! A virtual disk at one restore point: a chain of images, re-checked while the storage changes.

use std::sync::Arc;

use crate::error::Result;
use crate::io::{Chunk, Extent, ReadAt};
use crate::store::{Meta, Store, StorePath};

/// What disks share: the store and the caches.
pub struct DiskContext {
    store: Arc<dyn Store>,
}

/// The restore point's metadata file that vouches for a disk. XO removes it before it merges
/// anything into the disk's youngest image, so as long as it is there with this version, the
/// youngest image still holds what the restore point promised.
#[derive(Debug, Clone)]
pub struct DiskGuard {
    /// The `<date>.json`.
    pub path: StorePath,
    /// Its state when the restore point was read.
    pub meta: Meta,
}

/// One image of a chain, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LinkReport {
    /// Path in the repository (of the alias, when there is one).
    pub path: String,
    /// Path of the VHD directory that an alias leads to.
    pub data_path: Option<String>,
    /// `VHD file` or `VHD directory`.
    pub format: &'static str,
    /// `fixed`, `dynamic` or `differencing`.
    pub disk_type: &'static str,
    /// `none`, `gzip`, `brotli`.
    pub compression: &'static str,
    /// Footer uuid.
    pub uuid: String,
    /// Parent's uuid as the header tells it (differencing only).
    pub parent_uuid: Option<String>,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Block size in bytes (0 for fixed disks).
    pub block_size: u32,
    /// Four-character creator application of the footer.
    pub creator: String,
    /// What was found to be wrong or odd, one sentence each.
    pub problems: Vec<String>,
}

/// A disk that can be read at any offset.
pub struct Disk {}

/// One reader's view of a disk: knows the reader's position and reads ahead.
pub struct DiskReader {}

impl DiskContext {
    /// A context with a block cache of `cache_bytes`.
    pub fn new(store: Arc<dyn Store>, cache_bytes: u64) -> Arc<Self> {
        let _ = cache_bytes;
        Arc::new(DiskContext { store })
    }

    /// The store the disks are on.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
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
        guard: Option<DiskGuard>,
    ) -> Result<Arc<Disk>> {
        let _ = (path, guard);
        todo!()
    }
}

impl Disk {
    /// Bytes allocated over the whole chain, in whole blocks. May read every block table of the
    /// chain the first time; kept afterwards.
    pub fn allocated_bytes(&self) -> Result<u64> {
        todo!()
    }

    /// A guess at [`Self::allocated_bytes`] from what is in memory.
    pub fn allocated_bytes_guess(&self) -> u64 {
        todo!()
    }

    /// The images of the chain, youngest first.
    pub fn links(&self) -> Vec<LinkReport> {
        todo!()
    }

    /// Why part of the disk cannot be read although its youngest image is sound, or `None`.
    pub fn broken(&self) -> Option<crate::error::Error> {
        todo!()
    }

    /// A reader with a position of its own.
    pub fn reader(self: &Arc<Self>) -> DiskReader {
        todo!()
    }
}

impl ReadAt for Disk {
    fn len_bytes(&self) -> u64 {
        todo!()
    }
    fn read_exact_at(&self, _buf: &mut [u8], _offset: u64) -> Result<()> {
        todo!()
    }
    fn extent_at(&self, _offset: u64) -> Result<Extent> {
        todo!()
    }
}

impl DiskReader {
    /// See [`crate::tree::OpenFile::read`].
    pub fn read(&self, _offset: u64, _len: usize, _buf: &mut [u8]) -> Result<Chunk> {
        todo!()
    }

    /// Whether the read would be answered without waiting for slow storage or decoding.
    pub fn is_quick(&self, _offset: u64, _len: usize) -> bool {
        todo!()
    }
}
