//! A volume as the file system crates want it: a read-only block device with a small cache.
//!
//! The crates read metadata in pieces of a few hundred bytes; each piece would be a trip through
//! every layer below. The cache holds pages of 16 KiB, is bounded, and belongs to one open file
//! system. Large reads pass it by.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quick_cache::sync::Cache;

use super::guard;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{ReadAt, check_range};

const PAGE_BYTES: u64 = 16 << 10;
/// 8 MiB of pages.
const PAGES: usize = 512;

/// Pages in memory, of all devices.
static PAGES_HELD: AtomicUsize = AtomicUsize::new(0);

/// The bytes that the caches of all devices hold.
pub(super) fn cached_bytes() -> u64 {
    PAGES_HELD.load(Ordering::Relaxed) as u64 * PAGE_BYTES
}

/// A part of a volume, which counts as long as it is in memory.
struct Page(Box<[u8]>);

impl Page {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        PAGES_HELD.fetch_add(1, Ordering::Relaxed);
        Arc::new(Page(bytes.into()))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        PAGES_HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A volume with its metadata cache.
pub struct Device {
    volume: Arc<dyn ReadAt>,
    pages: Cache<u64, Arc<Page>>,
}

impl Device {
    /// A device for one open file system.
    pub fn new(volume: Arc<dyn ReadAt>) -> Self {
        Device::one_of(volume, 1)
    }

    /// One of `count` devices of one open file system, which share what the cache may take.
    pub fn one_of(volume: Arc<dyn ReadAt>, count: usize) -> Self {
        Device {
            volume,
            pages: Cache::new((PAGES / count.max(1)).max(4)),
        }
    }

    /// The volume, for reads that need no cache.
    pub fn volume(&self) -> &Arc<dyn ReadAt> {
        &self.volume
    }

    /// Reads through the cache, on the budget of the call in progress.
    ///
    /// # Errors
    /// `Corrupt` past the end of the volume (a crate only asks for what the guest's metadata points
    /// to); otherwise what kept the bytes from being read.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let result = self.try_read(buf, offset);
        if let Err(error) = &result {
            guard::note_error(error);
        }
        result
    }

    /// As [`Self::read`], for callers that have another place to read from: a failure does not fail the call
    /// in progress.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn try_read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        guard::charge(buf.len() as u64)?;
        self.read_unmetered(buf, offset)
    }

    fn read_unmetered(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = self.volume.len_bytes();
        if check_range(offset, buf.len() as u64, len).is_err() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the file system points past the end of its volume ({len} bytes)"),
            )
            .at(offset));
        }
        if buf.len() as u64 > PAGE_BYTES {
            return self.volume.read_exact_at(buf, offset);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let page = self.page(at / PAGE_BYTES)?;
            let page = &page.0;
            let within = (at % PAGE_BYTES) as usize;
            let take = (page.len() - within).min(buf.len() - done);
            buf[done..done + take].copy_from_slice(&page[within..within + take]);
            done += take;
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Result<Arc<Page>> {
        if let Some(page) = self.pages.get(&number) {
            return Ok(page);
        }
        let start = number * PAGE_BYTES;
        let len = PAGE_BYTES.min(self.volume.len_bytes() - start) as usize;
        let mut page = vec![0; len];
        self.volume.read_exact_at(&mut page, start)?;
        let page = Page::new(page);
        self.pages.insert(number, page.clone());
        Ok(page)
    }
}

/// A volume whose reads go through a device's cache, for metadata that is kept in streams.
pub struct Cached(pub Arc<Device>);

impl ReadAt for Cached {
    fn len_bytes(&self) -> u64 {
        self.0.volume.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read(buf, offset)
    }
}

/// The device in the shape of `rust-fs-core`; errors travel inside `io::Error`.
impl fs_core::BlockRead for Device {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> fs_core::Result<()> {
        self.read(buf, offset)
            .map_err(|error| fs_core::Error::Io(std::io::Error::other(error)))
    }

    fn size_bytes(&self) -> u64 {
        self.volume.len_bytes()
    }
}

impl fs_core::BlockDevice for Device {}

/// The device in the shape of `rust-fs-ext4`.
impl fs_ext4::block_io::BlockDevice for Device {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> fs_ext4::Result<()> {
        self.read(buf, offset)
            .map_err(|error| fs_ext4::Error::Io(std::io::Error::other(error)))
    }

    fn size_bytes(&self) -> u64 {
        self.volume.len_bytes()
    }
}

/// Our own error back out of an `io::Error`, or a new one.
pub(crate) fn from_io(error: std::io::Error) -> Error {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    {
        Some(own) => own.clone(),
        None => Error::new(ErrorKind::Io, error.to_string()),
    }
}
