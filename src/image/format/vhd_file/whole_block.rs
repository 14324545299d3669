//! VHD files of object stores: whole blocks, one request each.
//!
//! An object is replaced, never written to, and each ranged answer tells by its ETag of which state
//! it is ([`crate::store::StoredFile::is_pinned`]). So nothing has to be asked before or after a read: it is of the
//! state whose footer, header and table were read, or it fails with `Changed`.

use std::ops::Range;

use bytes::Bytes;

use super::VhdFile;
use super::open::part_of;
use crate::cache::Block;
use crate::codec::Filter;
use crate::error::{Error, Result};
use crate::image::format::Fetched;
use crate::image::format::bitmap;
use crate::image::format::vhd::{BAT_UNUSED, SECTOR_BYTES};

impl VhdFile {
    /// Keeps the pages of the table that lie in the start of a pinned file.
    pub(super) fn keep_pages_of(&self, start: &Bytes) {
        let Some(table) = self
            .layout
            .table
            .as_ref()
            .filter(|_| self.layout.reads_whole_blocks)
        else {
            return;
        };
        for page in 0..table.entries.div_ceil(table.page_entries) {
            let place = table.page_place(page);
            let len = (place.end - place.start) as usize;
            let Some(bytes) = part_of(start, place.start, len) else {
                return;
            };
            self.pages.insert(self.page_key(page, 0), bytes.into());
        }
    }

    /// The pages of the table for these blocks that would have to be read, if that takes a round trip
    /// each; the first `most` of them.
    pub(super) fn missing_pages(&self, blocks: Range<u64>, most: usize) -> Vec<u64> {
        let Some(table) = self
            .layout
            .table
            .as_ref()
            .filter(|_| self.layout.reads_whole_blocks)
        else {
            return Vec::new();
        };
        let end = blocks.end.min(table.entries).div_ceil(table.page_entries);
        (blocks.start / table.page_entries..end)
            .filter(|&page| self.pages.get(&self.page_key(page, 0)).is_none())
            .take(most)
            .collect()
    }

    /// Reads a page of the table that [`Self::missing_pages`] has told, and keeps it.
    ///
    /// # Errors
    /// As the storage says.
    pub(super) fn load_page(&self, page: u64) -> Result<()> {
        match &self.layout.table {
            Some(table) => self.bat_page(table, page, 0).map(drop),
            None => Ok(()),
        }
    }

    /// Fetches a allocated block: its bitmap (fixed disks have none), and of its data
    /// what belongs to the disk.
    ///
    /// # Errors
    /// `Changed` when the file has been replaced, `Corrupt` when the table leads out of the file or
    /// into its tables.
    pub(super) fn fetch_block(&self, block: u64) -> Result<Fetched> {
        let data_len = self.data_len(block);
        let (start, bitmap_bytes) = match &self.layout.table {
            None => (block * u64::from(self.layout.block_size), 0),
            Some(table) => {
                let state = self.snapshot();
                let entry = self.entry(table, block, state)?;
                if entry == BAT_UNUSED {
                    let what = format!("block {block} is not allocated");
                    return Err(Error::corrupt(what).with_object(&self.path));
                }
                let start = self.check_entry(table, entry, block, state)?;
                (start, table.bitmap_bytes as usize)
            }
        };
        let len = bitmap_bytes + data_len as usize;
        let bytes = self.store.read_range(&self.path, &*self.file, start, len)?;
        let full = self.layout.table.is_none()
            || bitmap::is_full(&bytes[..bitmap_bytes], data_len.div_ceil(SECTOR_BYTES));
        Ok(Fetched {
            block: Block { bytes, full },
            modified: self.file.opened_meta().modified,
            filter: Filter::None,
        })
    }
}
