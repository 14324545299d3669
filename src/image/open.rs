//! Opening one image by its path: alias or not, file or directory, shared with whoever has it open.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use super::bitmap;
use super::parent_name;
use super::recognise::ALIAS_SUFFIX;
use super::vhd::{DiskType, Footer, Header, Uuid};
use super::vhd_dir::{Examined, Fetched, Flaws, InPlace, VhdDir};
use super::vhd_file::{Opened, Stability, VhdFile};
use crate::cache::{Block, MetaCache};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Meta, Store, StorePath, StoredFile, Version, read_listed_as};

/// Longest alias file, as XO writes them.
const MAX_ALIAS_BYTES: u64 = 1024;

/// One VHD, file or directory. Shared by all chains that contain it.
pub(super) struct Image {
    /// Number of this image in the caches; never reused.
    pub id: u64,
    /// Where its data is (the directory, when an alias leads to it).
    pub data_path: StorePath,
    pub footer: Footer,
    pub header: Option<Header>,
    /// What was odd when it was opened.
    pub problems: Vec<String>,
    /// What is odd about its trailing footer, see `Opened::trailing`.
    pub trailing: Option<String>,
    body: Body,
}

enum Body {
    File(VhdFile),
    Dir(VhdDir),
}

impl Image {
    /// Virtual size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.footer.current_size
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.footer.uuid
    }

    pub(super) fn is_differencing(&self) -> bool {
        self.footer.disk_type == DiskType::Differencing
    }

    pub(super) fn block_size(&self) -> u32 {
        match &self.body {
            Body::File(f) => f.block_size(),
            Body::Dir(d) => d.block_size(),
        }
    }

    pub(super) fn format(&self) -> &'static str {
        match self.body {
            Body::File(_) => "VHD file",
            Body::Dir(_) => "VHD directory",
        }
    }

    pub(super) fn compression(&self) -> &'static str {
        match &self.body {
            Body::File(_) => "none",
            Body::Dir(d) => d.filter().as_str(),
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    /// Whether blocks must be fetched whole, with [`Self::fetch`], instead of read in place.
    pub(super) fn is_whole(&self) -> bool {
        match &self.body {
            Body::File(f) => f.is_whole(),
            Body::Dir(d) => d.is_whole(),
        }
    }

    /// Bytes in front of the data of a fetched block.
    pub(super) fn bitmap_bytes(&self) -> u32 {
        match &self.body {
            Body::File(f) => f.bitmap_bytes(),
            Body::Dir(d) => d.bitmap_bytes(),
        }
    }

    /// See `VhdFile::announced`.
    pub(super) fn announced(&self, first: u64, count: u64, bits: &mut [u64]) -> Result<()> {
        match &self.body {
            Body::File(f) => f.announced(first, count, bits),
            Body::Dir(d) => d.announced(first, count, bits),
        }
    }

    /// See `VhdDir::newest_part`.
    pub(super) fn newest_part(&self) -> Option<(SystemTime, Instant)> {
        match &self.body {
            Body::File(_) => None,
            Body::Dir(d) => d.newest_part(),
        }
    }

    /// Fetches and decodes a block: see `VhdDir::fetch`, and, for files that are [`Self::is_whole`],
    /// `VhdFile::fetch`.
    pub(super) fn fetch(&self, block: u64, may_keep: bool) -> Result<Fetched> {
        match &self.body {
            Body::Dir(d) => d.fetch(block, may_keep),
            // What is kept of a file is kept of one state of it.
            Body::File(f) => f.fetch(block),
        }
    }

    /// A block that a merge has moved into this image from `child`.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub(super) fn fetch_moved(&self, child: &Image, block: u64) -> Result<Fetched> {
        match &self.body {
            Body::Dir(d) => d.fetch_moved(block, child.data_len(block)),
            // XO copies blocks into files.
            Body::File(f) => f.fetch(block),
        }
    }

    /// Bytes of a block that belong to the disk.
    fn data_len(&self, block: u64) -> u64 {
        let block_size = u64::from(self.block_size());
        let left = self.size().saturating_sub(block.saturating_mul(block_size));
        block_size.min(left)
    }

    /// See `VhdDir::examine`. `filters`: what the younger images of the chain are compressed with. Far
    /// away, blocks are not looked at where brotli is all that a merge can have brought.
    pub(super) fn examine(&self, store: &dyn Store, filters: &[&str]) -> Examined {
        match &self.body {
            Body::File(_) => Examined::default(),
            Body::Dir(d) => {
                let own = self.compression();
                let is_one = filters.iter().chain(&[own]).all(|f| *f == "brotli");
                d.examine(is_one && !store.traits().cheap_ranges)
            }
        }
    }

    /// See `VhdFile::read_present`; only for images that are not [`Self::is_whole`].
    pub(super) fn read_in_place(
        &self,
        block: u64,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<InPlace<Stability>> {
        match &self.body {
            Body::File(f) => f
                .read_present(block, within, buf, absent)
                .map(InPlace::Read),
            Body::Dir(d) => Ok(match d.read_in_place(block, within, buf, absent)? {
                // A directory's blocks are replaced, not written to, and nothing shows it.
                InPlace::Read(()) => InPlace::Read(Stability::Unsettled),
                InPlace::Encoded => InPlace::Encoded,
            }),
        }
    }

    /// See `VhdDir::has_kept`.
    pub(super) fn has_kept(&self, block: u64) -> bool {
        matches!(&self.body, Body::Dir(d) if d.has_kept(block))
    }

    /// See `VhdDir::kept_block`.
    pub(super) fn kept_block(&self, block: u64) -> Option<Arc<dyn StoredFile>> {
        match &self.body {
            Body::File(_) => None,
            Body::Dir(d) => d.kept_block(block),
        }
    }

    /// See `VhdDir::read_from`.
    pub(super) fn read_kept(
        &self,
        file: &dyn StoredFile,
        block: u64,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        match &self.body {
            Body::File(_) => Err(Error::new(
                ErrorKind::Unsupported,
                "blocks of VHD files are not read in place from where they are kept",
            )),
            Body::Dir(d) => d.read_from(file, block, within, buf, absent),
        }
    }

    /// Copies what a decoded block holds of `within`; same contract as `VhdFile::read_present`.
    pub(super) fn copy_present(
        &self,
        block: &Block,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let (sectors, data) = block.bytes.split_at(self.bitmap_bytes() as usize);
        if block.full {
            buf.copy_from_slice(&data[within.start as usize..within.end as usize]);
            return Ok(());
        }
        bitmap::split(sectors, within.clone(), |run, is_present| {
            let part = (run.start - within.start) as usize..(run.end - within.start) as usize;
            if is_present {
                buf[part].copy_from_slice(&data[run.start as usize..run.end as usize]);
            } else {
                absent.push(part);
            }
            Ok(())
        })
    }

    /// Tells the storage that a block will be read in place soon.
    pub(super) fn will_read(&self, block: u64) {
        match &self.body {
            Body::File(f) => f.will_read(block),
            // Each block is a file of its own, which would have to be opened first.
            Body::Dir(_) => {}
        }
    }

    /// See `VhdFile::missing_pages`.
    pub(super) fn missing_pages(&self, blocks: Range<u64>, most: usize) -> Vec<u64> {
        match &self.body {
            Body::File(f) => f.missing_pages(blocks, most),
            Body::Dir(_) => Vec::new(),
        }
    }

    /// See `VhdFile::load_page`.
    pub(super) fn load_page(&self, page: u64) -> Result<()> {
        match &self.body {
            Body::File(f) => f.load_page(page),
            Body::Dir(_) => Ok(()),
        }
    }

    /// The names of its parent that its locators hold.
    ///
    /// # Errors
    /// As the storage says.
    pub(super) fn locator_names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for locator in self.header.iter().flat_map(|h| &h.parent_locators) {
            let data = match &self.body {
                Body::File(f) => f.locator(locator),
                Body::Dir(d) => d.locator(locator),
            };
            match data {
                Ok(data) => {
                    names.extend(parent_name::locator_path(locator.platform_code, &data));
                }
                // Not there, or not what it should be: there are other ways.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(names)
    }

    /// Reads the block table, where it is not read in pieces.
    pub(super) fn load_table(&self) -> Result<()> {
        match &self.body {
            Body::File(_) => Ok(()),
            Body::Dir(d) => d.load_table(),
        }
    }

    /// What is wrong with the block table, one sentence each. Reads all of it.
    ///
    /// # Errors
    /// When it cannot be read, or makes no sense at all.
    pub(super) fn check_table(&self) -> Result<Vec<String>> {
        match &self.body {
            Body::File(f) => f.check_table(),
            Body::Dir(d) => d.load_table().map(|()| Vec::new()),
        }
    }

    /// What listing the blocks tells of those that the table announces: see `VhdDir::list_flaws`.
    pub(super) fn list_flaws(&self) -> Result<Flaws> {
        match &self.body {
            // Blocks are places in the file, which `check_table` looks at.
            Body::File(_) => Ok(Flaws::default()),
            Body::Dir(d) => d.list_flaws(),
        }
    }

    /// Those of these blocks for which there is no file.
    pub(super) fn absent_blocks(&self, blocks: &[u64]) -> Result<Vec<u64>> {
        match &self.body {
            Body::File(_) => Ok(blocks.to_vec()),
            Body::Dir(d) => d.absent_blocks(blocks),
        }
    }
}

type RegistryKey = (StorePath, Vec<Version>);

/// All images that are open somewhere, so that restore points share their ancestors and blocks.
pub(super) struct Registry {
    store: Arc<dyn Store>,
    meta: Arc<MetaCache>,
    open: Mutex<HashMap<RegistryKey, Weak<Image>>>,
    next_id: AtomicU64,
}

/// An image and the path by which a chain knows it.
#[derive(Clone)]
pub(super) struct Found {
    /// The alias, or the image itself.
    pub path: StorePath,
    pub image: Arc<Image>,
}

impl Registry {
    pub(super) fn new(store: Arc<dyn Store>, meta: Arc<MetaCache>) -> Self {
        Registry {
            store,
            meta,
            open: Mutex::new(HashMap::new()),
            next_id: AtomicU64::new(1),
        }
    }

    /// A number for the caches that nobody else has.
    pub(super) fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens the image at `path`, through an alias if it is one. `listed` is the state of the file
    /// there, if a listing has just told it.
    pub(super) fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Found> {
        let data_path = if path.file_name().ends_with(ALIAS_SUFFIX) {
            match self.resolve_alias(path, listed) {
                Ok(target) => target,
                // One version of XO put the directory itself where the alias should be.
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    return match self.open_dir(path) {
                        Ok(image) => Ok(Found {
                            path: path.clone(),
                            image,
                        }),
                        Err(dir) if dir.kind() == ErrorKind::NotFound => Err(e),
                        Err(dir) => Err(dir),
                    };
                }
                Err(e) => return Err(e),
            }
        } else {
            path.clone()
        };
        // What was listed at an alias' path is the alias.
        let listed = listed.filter(|_| data_path == *path);
        let image = self.open_data(&data_path, listed)?;
        Ok(Found {
            path: path.clone(),
            image,
        })
    }

    fn resolve_alias(&self, path: &StorePath, listed: Option<&Meta>) -> Result<StorePath> {
        let store = self.store.as_ref();
        read_listed_as(store, path, MAX_ALIAS_BYTES, listed, |text, _| {
            Self::target_of(path, &text)
        })
    }

    fn target_of(path: &StorePath, text: &[u8]) -> Result<StorePath> {
        let corrupt = |what: &str| Error::corrupt(what).with_object(path);
        let target = std::str::from_utf8(text)
            .map_err(|_| corrupt("alias is not text"))?
            .trim_end_matches(['\n', '\r']);
        if target.is_empty() {
            return Err(corrupt("alias is empty"));
        }
        let target = path
            .parent()
            .join(target)
            .map_err(|e| e.with_object(path))?;
        if target.file_name().ends_with(ALIAS_SUFFIX) {
            return Err(corrupt("alias points to another alias"));
        }
        Ok(target)
    }

    fn open_data(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<Image>> {
        let id = self.new_id();
        let open_file = |listed| VhdFile::open(&self.store, path, listed, id, &self.meta);
        // A listing that tells a state has seen a file.
        if listed.is_some() {
            match open_file(listed) {
                Ok(opened) => return Ok(self.share(path, id, opened, Body::File)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        // A directory first: a file answers quickly.
        match self.open_dir(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => match open_file(None) {
                Ok(opened) => Ok(self.share(path, id, opened, Body::File)),
                Err(e) if e.kind() == ErrorKind::NotFound => Err(self.neither(path)),
                Err(e) => Err(e),
            },
            other => other,
        }
    }

    fn open_dir(&self, path: &StorePath) -> Result<Arc<Image>> {
        let id = self.new_id();
        let opened = VhdDir::open(&self.store, path, id, Arc::clone(&self.meta))?;
        Ok(self.share(path, id, opened, Body::Dir))
    }

    /// What is said of a path that is neither a file nor a VHD directory.
    fn neither(&self, path: &StorePath) -> Error {
        let what = match self.store.list(path) {
            Ok(_) => "is a directory without a footer, so not a VHD directory",
            Err(_) => "is not there",
        };
        Error::new(ErrorKind::NotFound, what).with_object(path)
    }

    fn share<T>(
        &self,
        path: &StorePath,
        id: u64,
        opened: Opened<T>,
        body: impl FnOnce(T) -> Body,
    ) -> Arc<Image> {
        let key = (path.clone(), opened.versions);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = open.get(&key).and_then(Weak::upgrade) {
            return image;
        }
        let image = Arc::new(Image {
            id,
            data_path: path.clone(),
            footer: opened.footer,
            header: opened.header,
            problems: opened.problems,
            trailing: opened.trailing,
            body: body(opened.body),
        });
        if open.len() >= open.capacity() {
            open.retain(|_, weak| weak.strong_count() > 0);
        }
        open.insert(key, Arc::downgrade(&image));
        image
    }
}
