//! Image formats: one trait, one folder for each, and one place that makes them.
//!
//! `recognise` tells formats apart by names and first bytes, `alias` follows XO's aliases, `registry` opens
//! an image at a path, whatever it is, and shares it. A format knows nothing of chains, merges, caches of
//! blocks or other formats (`vhd` holds the structures that VHD files and VHD directories have in common).
//! A new format is a folder with an `open` that returns [`Opened`], and a line in `registry`.

mod alias;
pub(in crate::image) mod bitmap;
pub(in crate::image) mod image;
pub(in crate::image) mod recognise;
pub(in crate::image) mod registry;
pub mod vhd;
mod vhd_directory;
mod vhd_file;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::uuid::Uuid;
use crate::cache::Block;
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{StoredFile, Version};

/// Largest block that is fetched whole: it has to fit into the cache's slack several times.
const MAX_WHOLE_BLOCK_BYTES: u32 = 16 << 20;

/// What an open image of any format does. It is divided into blocks of equal size, which it holds or does
/// not; blocks it does not hold are its parent's, or zeros.
pub(in crate::image) trait ImageFormat: Send + Sync {
    /// Sets bit `n - first` of `bits` for each block `n` of `first..first + count` that the image's table
    /// says is allocated. Blocks past the end are left alone.
    ///
    /// # Errors
    /// As the storage says; `Corrupt` when the table is damaged.
    fn allocated(&self, first: u64, count: u64, bits: &mut [u64]) -> Result<()>;

    /// Fetches and decodes an allocated block. With `may_copy`, the storage may answer from a copy that it
    /// has of this state of the image.
    ///
    /// # Errors
    /// `NotFound` when the block is not where it should be (a merge may have moved it), `Changed` when the
    /// image was replaced, `Corrupt` when it is no block.
    fn fetch(&self, block: u64, may_copy: bool) -> Result<Fetched>;

    /// Reads a part of an allocated block in place. On success every byte is either read or noted as
    /// absent. Only for images whose facts do not say [`Facts::reads_whole_blocks`].
    ///
    /// # Errors
    /// As [`Self::fetch`].
    fn read_in_place(&self, read: &mut SectorRead<'_>) -> Result<InPlace>;

    /// Whether merges move blocks into images of this format, so that a block that is missing elsewhere
    /// may be here.
    fn takes_moved_blocks(&self) -> bool {
        false
    }

    /// Fetches a block that a merge has moved here from an image that has `disk_bytes` of it.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    fn fetch_moved(&self, block: u64, _disk_bytes: u64) -> Result<Fetched> {
        self.fetch(block, false)
    }

    /// Whether the storage has a copy of a block nearby that [`Self::open_copy`] would open.
    fn has_copy(&self, _block: u64) -> bool {
        false
    }

    /// A block that the storage has a copy of nearby, where reading a part of that in place (with
    /// [`Self::read_copy`]) is cheaper than all of it.
    fn open_copy(&self, _block: u64) -> Option<Arc<dyn StoredFile>> {
        None
    }

    /// Reads a part of a block from its copy; the contract is that of [`Self::read_in_place`].
    ///
    /// # Errors
    /// As the storage says.
    fn read_copy(&self, _copy: &dyn StoredFile, _read: &mut SectorRead<'_>) -> Result<()> {
        let what = "blocks of this format are not read from copies";
        Err(Error::new(ErrorKind::Unsupported, what))
    }

    /// Tells the storage that a block will be read in place soon.
    fn will_read(&self, _block: u64) {}

    /// The pages of the block table for these blocks that would cost a round trip each; the first `most`
    /// of them.
    fn missing_table_pages(&self, _blocks: Range<u64>, _most: usize) -> Vec<u64> {
        Vec::new()
    }

    /// Reads a page that [`Self::missing_table_pages`] has told, and keeps it.
    ///
    /// # Errors
    /// As the storage says.
    fn load_table_page(&self, _page: u64) -> Result<()> {
        Ok(())
    }

    /// Reads the block table now, where it is not read in pages.
    ///
    /// # Errors
    /// As the storage says; `Corrupt` when it is damaged.
    fn load_table(&self) -> Result<()> {
        Ok(())
    }

    /// The names of its parent that it holds besides the one in its facts.
    ///
    /// # Errors
    /// As the storage says.
    fn other_parent_names(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// What is wrong with the block table, one sentence each. Reads all of it.
    ///
    /// # Errors
    /// When it cannot be read, or makes no sense at all.
    fn check_table(&self) -> Result<Vec<String>> {
        self.load_table().map(|()| Vec::new())
    }

    /// What listing the blocks tells of those that the table allocates, where blocks are objects of their
    /// own; [`Self::check_table`] tells what is wrong with places in a file.
    ///
    /// # Errors
    /// When the table cannot be read or the blocks cannot be listed.
    fn list_flaws(&self) -> Result<Flaws> {
        Ok(Flaws::default())
    }

    /// Those of these blocks (in ascending order) that have no object of their own here.
    ///
    /// # Errors
    /// When the blocks cannot be listed.
    fn absent_blocks(&self, blocks: &[u64]) -> Result<Vec<u64>> {
        Ok(blocks.to_vec())
    }

    /// Examines some blocks, for people; with `only_last`, only the one in which the disk ends.
    fn examine(&self, _only_last: bool) -> Examined {
        Examined::default()
    }
}

/// What opening an image tells: a format's side of an [`image::Image`].
pub(in crate::image) struct Opened {
    pub format: Box<dyn ImageFormat>,
    pub facts: Facts,
    /// The states of the objects that were read: two images with equal ones are the same.
    pub versions: Vec<Version>,
}

/// What is known of an open image, whatever its format. It does not change while the image is open.
pub(in crate::image) struct Facts {
    /// `VHD file`, `VHD directory`.
    pub format: &'static str,
    /// `none`, `gzip`, `brotli`.
    pub compression: &'static str,
    /// `fixed`, `dynamic`, `differencing`.
    pub disk_type: &'static str,
    pub creator: String,
    /// The identifier by which children know it.
    pub uuid: Uuid,
    /// Of differencing images, what they say of their parent.
    pub parent: Option<ParentReference>,
    /// Virtual size in bytes.
    pub size: u64,
    /// Bytes of a block's data: a power of two.
    pub block_size: u32,
    /// Bytes of the sector bitmap in front of the data of a fetched block.
    pub bitmap_bytes: u32,
    /// Whether blocks must be fetched whole ([`ImageFormat::fetch`]) instead of read in place.
    pub reads_whole_blocks: bool,
    /// The latest time of modification among the objects it is made of, and when the storage told it; only
    /// where blocks are objects of their own.
    pub newest_part: Option<(SystemTime, Instant)>,
    /// What was odd when it was opened.
    pub problems: Vec<String>,
    /// What is odd about its trailing footer. XO overwrites that while it merges into the file, so it is
    /// damage only when no merge does.
    pub trailing: Option<String>,
}

/// What a differencing image says of its parent.
pub(in crate::image) struct ParentReference {
    pub uuid: Uuid,
    /// The recorded path, as XO writes it: relative to the child's directory.
    pub name: String,
}

/// A block, and when it was put where it was found, as the storage tells it.
pub(in crate::image) struct Fetched {
    pub block: Block,
    pub modified: Option<SystemTime>,
    /// How it was stored.
    pub filter: Filter,
}

/// What became of reading a block in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum InPlace {
    Read(Stability),
    /// It is not stored plainly, and has to be fetched whole.
    Encoded,
}

/// Whether a read met an image that has changed since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Stability {
    /// Nobody writes to it.
    Settled,
    /// It is, or may be, written to; what was read is sound, but see the chain's guard.
    Unsettled,
}

/// What examining an image's blocks has found.
#[derive(Debug, Clone, Default)]
pub(in crate::image) struct Examined {
    pub problems: Vec<String>,
    pub notes: Vec<String>,
    /// The last block, when the disk ends within it and the image does not have it: a merge may have
    /// moved it.
    pub missing_last: Option<u64>,
}

/// What a listing tells of an image's blocks.
#[derive(Default)]
pub(in crate::image) struct Flaws {
    /// Allocated by the table, and not there.
    pub missing: Vec<u64>,
    /// There, and not what a block can be, with the reason.
    pub wrong: BTreeMap<String, Vec<u64>>,
}

/// A read of a part of one block, and what has become of it.
pub(in crate::image) struct SectorRead<'a> {
    pub block: u64,
    /// The bytes of the block that are wanted.
    pub within: Range<u64>,
    /// Where they go: as long as `within`.
    pub buf: &'a mut [u8],
    /// Ranges of `buf` that the block does not hold.
    pub absent: &'a mut Vec<Range<usize>>,
}

impl SectorRead<'_> {
    /// Forgets what was found to be absent, to read once more.
    pub fn start_over(&mut self) {
        self.absent.clear();
    }

    /// Notes that the block holds nothing of what is wanted.
    pub fn all_absent(&mut self) {
        self.absent.push(0..self.buf.len());
    }

    /// Reads what a sector bitmap says is present, with `read(part, offset)`: `offset` counts from the
    /// start of the block's data. An empty bitmap stands for one that is all ones.
    ///
    /// # Errors
    /// As `read`.
    pub fn read_present(
        &mut self,
        bitmap: &[u8],
        mut read: impl FnMut(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        if bitmap.is_empty() {
            return read(self.buf, self.within.start);
        }
        let start = self.within.start;
        bitmap::split(bitmap, self.within.clone(), |run, is_present| {
            let part = (run.start - start) as usize..(run.end - start) as usize;
            if is_present {
                read(&mut self.buf[part], run.start)
            } else {
                self.absent.push(part);
                Ok(())
            }
        })
    }
}
