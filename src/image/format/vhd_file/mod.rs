//! One VHD in one file: fixed, dynamic or differencing.
//!
//! Only what is asked for is read: table pages, a block's bitmap, the sectors themselves. The file
//! may be the target of a merge and so be written to while it is open here. XO then copies a block
//! away before it overwrites its place, so a read counts only if the block's table entry is the
//! same after it as before it (see [`VhdFile::read_in_place`]). Where every request takes a round
//! trip, blocks are fetched whole instead (see [`whole_block`]).

pub(in crate::image) mod open;
mod whole_block;

use std::ops::Range;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use super::vhd::parent_locator::{self, MAX_LOCATOR_BYTES};
use super::vhd::{BAT_UNUSED, FOOTER_BYTES, HEADER_BYTES, ParentLocator, SECTOR_BYTES};
use super::{Fetched, ImageFormat, InPlace, SectorRead, Stability};
use crate::cache::{TablePageCache, TablePageKey, TablePageKind};
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::bitmap;
use crate::store::{Meta, Store, StorePath, StoredFile, Version};
use crate::sync;

/// Table entries per cached page: 4 KiB of the file, 2 GiB of a disk with 2 MiB blocks.
const BAT_PAGE_ENTRIES: u64 = 1024;

/// The same where a page costs a round trip: 64 KiB, 32 GiB of a disk.
const FAR_BAT_PAGE_ENTRIES: u64 = 16_384;

/// A file that was modified this recently may be modified again without its time stamp showing it
/// (kernels count in ticks, servers and FAT in seconds), so it is not trusted to stay as it is.
const SETTLING: Duration = Duration::from_secs(3);

/// Most blocks whose places are compared with each other: 32 TiB at the usual block size, 128 MiB
/// of memory while it lasts.
const MAX_COMPARED_BLOCKS: u64 = 1 << 24;

/// Fixed disks have no blocks; for chains they are cut into pieces of this size.
const FIXED_BLOCK_BYTES: u32 = 2 << 20;

/// An open VHD file.
pub(in crate::image) struct VhdFile {
    store: Arc<dyn Store>,
    file: Arc<dyn StoredFile>,
    path: StorePath,
    id: u64,
    pages: Arc<TablePageCache>,
    layout: Layout,
    parent_locators: Vec<ParentLocator>,
    state: RwLock<State>,
}

/// Where things are in the file.
struct Layout {
    table: Option<Table>,
    block_size: u32,
    virtual_size: u64,
    blocks: u64,
    /// The header as it was when the file was opened, and where: it may not change under us.
    head: Vec<u8>,
    head_at: u64,
    /// Bytes of the footer at the end, into which no block can reach; 0 when there is none.
    trailing_bytes: u64,
    reads_whole_blocks: bool,
}

struct Table {
    offset: u64,
    entries: u64,
    /// Entries that are read, and kept, together.
    page_entries: u64,
    bitmap_bytes: u32,
}

#[derive(Clone, Copy)]
struct State {
    version: Version,
    len_bytes: u64,
    generation: u32,
    settled: bool,
}

fn is_settled(meta: &Meta) -> bool {
    match (meta.modified, SystemTime::now()) {
        (Some(modified), now) => now.duration_since(modified).is_ok_and(|age| age > SETTLING),
        (None, _) => false,
    }
}

impl Table {
    /// The bytes of the file that a page of the table is.
    fn page_place(&self, page: u64) -> Range<u64> {
        let first = (page * self.page_entries).min(self.entries);
        let end = (first + self.page_entries).min(self.entries);
        self.offset + first * 4..self.offset + end * 4
    }
}

impl VhdFile {
    fn read_block(
        &self,
        table: &Table,
        entry: u32,
        state: State,
        read: &mut SectorRead<'_>,
    ) -> Result<()> {
        if entry == BAT_UNUSED {
            read.all_absent();
            return Ok(());
        }
        let start = self.check_entry(table, entry, read.block, state)?;
        let data = start + u64::from(table.bitmap_bytes);
        let present = self.bitmap(table, start, read.block, state)?;
        read.read_present(&present, |part, offset| {
            self.file.read_exact_at(part, data + offset)
        })
    }

    /// The byte offset of a block's bitmap, once it is sure that the block's bytes are the block's.
    fn check_entry(&self, table: &Table, entry: u32, block: u64, state: State) -> Result<u64> {
        let wrong = |what: &str| {
            Err(
                Error::corrupt(format!("table entry {entry:#x} of block {block} {what}"))
                    .with_object(&self.path)
                    .at(table.offset + block * 4),
            )
        };
        let start = u64::from(entry) * SECTOR_BYTES;
        // The last block of a disk needs to be there only as far as the disk goes.
        let end = start + u64::from(table.bitmap_bytes) + self.data_len(block);
        let mut limit = state.len_bytes;
        if end > limit && !state.settled {
            limit = self.file.head()?.len_bytes;
        }
        if state.generation == 0 && limit == state.len_bytes {
            limit -= self.layout.trailing_bytes;
        }
        if end > limit {
            return wrong("leads past the end of the file");
        }
        let first_free = FOOTER_BYTES as u64 + HEADER_BYTES as u64;
        let table_end = table.offset + table.entries * 4;
        if start < first_free || (start < table_end && end > table.offset) {
            return wrong("leads into the file's own tables");
        }
        Ok(start)
    }

    fn entry(&self, table: &Table, block: u64, state: State) -> Result<u32> {
        if !state.settled {
            return self.fresh_entry(table, block);
        }
        let page = self.bat_page(table, block / table.page_entries, state.generation)?;
        let within = (block % table.page_entries) as usize;
        let bytes = page.as_chunks::<4>().0.get(within);
        bytes.map(|b| u32::from_be_bytes(*b)).ok_or_else(|| {
            Error::corrupt(format!("the table has no entry for block {block}"))
                .with_object(&self.path)
        })
    }

    fn fresh_entry(&self, table: &Table, block: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.file
            .read_exact_at(&mut bytes, table.offset + block * 4)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn bat_page(&self, table: &Table, page: u64, generation: u32) -> Result<Arc<[u8]>> {
        self.pages.get_or_load(self.page_key(page, generation), || {
            let place = table.page_place(page);
            let mut bytes = vec![0; (place.end - place.start) as usize];
            self.file.read_exact_at(&mut bytes, place.start)?;
            Ok(Arc::from(bytes))
        })
    }

    fn page_key(&self, page: u64, generation: u32) -> TablePageKey {
        TablePageKey {
            of: self.id,
            generation,
            kind: TablePageKind::Bat,
            index: page,
        }
    }

    /// Bytes of a block that belong to the disk: the last block may reach past its end.
    fn data_len(&self, block: u64) -> u64 {
        let block_size = u64::from(self.layout.block_size);
        let left = self.layout.virtual_size.saturating_sub(block * block_size);
        block_size.min(left)
    }

    /// The block's bitmap, empty when every sector of the disk in it is present.
    fn bitmap(&self, table: &Table, start: u64, block: u64, state: State) -> Result<Arc<[u8]>> {
        let key = TablePageKey {
            of: self.id,
            generation: state.generation,
            kind: TablePageKind::Bitmap,
            index: block,
        };
        let load = || {
            let mut bytes = vec![0; table.bitmap_bytes as usize];
            self.file.read_exact_at(&mut bytes, start)?;
            let sectors = self.data_len(block).div_ceil(SECTOR_BYTES);
            Ok(if bitmap::is_full(&bytes, sectors) {
                Arc::from([])
            } else {
                Arc::from(bytes)
            })
        };
        if state.settled {
            self.pages.get_or_load(key, load)
        } else {
            load()
        }
    }

    /// Decides whether what was read under `state` is sound: `None` means "read again".
    fn verify(&self, state: State, block: u64, entry: u32) -> Result<Option<Stability>> {
        let now = self.file.head()?;
        if now.version == state.version && state.settled {
            return Ok(Some(if state.generation == 0 {
                Stability::Settled
            } else {
                Stability::Unsettled
            }));
        }
        let sound = match &self.layout.table {
            Some(table) => {
                self.check_head()?;
                self.fresh_entry(table, block)? == entry
            }
            // Without a table there is nothing that tells which bytes were rewritten.
            None if now.version != state.version => {
                return Err(
                    Error::new(ErrorKind::Changed, "was written to while it was open")
                        .with_object(&self.path),
                );
            }
            None => true,
        };
        let mut shared = sync::write(&self.state);
        if shared.version != now.version || (is_settled(&now) && !shared.settled) {
            // Pages read so far may be older than the file: start a new generation of them.
            *shared = State {
                version: now.version,
                len_bytes: now.len_bytes,
                generation: shared.generation + 1,
                settled: is_settled(&now),
            };
        }
        Ok(sound.then_some(Stability::Unsettled))
    }

    /// Fails unless the header is still byte for byte the one that was opened.
    fn check_head(&self) -> Result<()> {
        let mut bytes = vec![0; self.layout.head.len()];
        self.file.read_exact_at(&mut bytes, self.layout.head_at)?;
        if bytes != self.layout.head {
            return Err(
                Error::new(ErrorKind::Changed, "its header was rewritten").with_object(&self.path)
            );
        }
        Ok(())
    }

    fn snapshot(&self) -> State {
        *sync::read(&self.state)
    }
}

impl ImageFormat for VhdFile {
    fn allocated(&self, first: u64, count: u64, bits: &mut [u64]) -> Result<()> {
        let end = (first + count).min(self.layout.blocks);
        let Some(table) = &self.layout.table else {
            (first..end).for_each(|block| bitmap::set(bits, block - first));
            return Ok(());
        };
        let state = self.snapshot();
        let mut block = first;
        while block < end {
            let page = block / table.page_entries;
            let entries = self.bat_page(table, page, state.generation)?;
            let page_end = ((page + 1) * table.page_entries).min(end);
            let within = (block % table.page_entries) as usize;
            let entries = &entries.as_chunks::<4>().0;
            for n in block..page_end {
                // A block that a short table has no entry for counts as allocated: reading it is
                // an error then, where zeros would be a lie.
                let entry = entries.get(within + (n - block) as usize);
                if entry.is_none_or(|e| u32::from_be_bytes(*e) != BAT_UNUSED) {
                    bitmap::set(bits, n - first);
                }
            }
            block = page_end;
        }
        Ok(())
    }

    fn fetch(&self, block: u64, _may_copy: bool) -> Result<Fetched> {
        // What is copied of a file is copied of one state of it.
        self.fetch_block(block)
    }

    fn read_in_place(&self, read: &mut SectorRead<'_>) -> Result<InPlace> {
        for _ in 0..4 {
            let state = self.snapshot();
            read.start_over();
            let entry = match &self.layout.table {
                None => {
                    let start = read.block * u64::from(self.layout.block_size);
                    let at = start + read.within.start;
                    self.file.read_exact_at(read.buf, at)?;
                    BAT_UNUSED
                }
                Some(table) => {
                    let entry = self.entry(table, read.block, state)?;
                    self.read_block(table, entry, state, read)?;
                    entry
                }
            };
            if let Some(stability) = self.verify(state, read.block, entry)? {
                return Ok(InPlace::Read(stability));
            }
        }
        Err(Error::new(
            ErrorKind::Changed,
            "is written to faster than it can be read",
        )
        .with_object(&self.path))
    }

    fn will_read(&self, block: u64) {
        let state = self.snapshot();
        let block_size = u64::from(self.layout.block_size);
        let (start, len) = match &self.layout.table {
            None => (block * block_size, block_size),
            Some(_) if !state.settled => return,
            Some(table) => {
                let entry = self.entry(table, block, state);
                let place = entry
                    .ok()
                    .filter(|&entry| entry != BAT_UNUSED)
                    .and_then(|entry| self.check_entry(table, entry, block, state).ok());
                let Some(start) = place else { return };
                (start, u64::from(table.bitmap_bytes) + block_size)
            }
        };
        self.file.will_read(start, len);
    }

    fn missing_table_pages(&self, blocks: Range<u64>, most: usize) -> Vec<u64> {
        self.missing_pages(blocks, most)
    }

    fn load_table_page(&self, page: u64) -> Result<()> {
        self.load_page(page)
    }

    fn other_parent_names(&self) -> Result<Vec<String>> {
        parent_locator::parent_names(&self.parent_locators, |locator| {
            let mut bytes = vec![0; locator.len_bytes.min(MAX_LOCATOR_BYTES) as usize];
            self.file.read_exact_at(&mut bytes, locator.offset)?;
            Ok(bytes)
        })
    }

    fn check_table(&self) -> Result<Vec<String>> {
        let Some(table) = &self.layout.table else {
            return Ok(Vec::new());
        };
        let mut problems = Vec::new();
        let mut astray = 0u64;
        let state = self.snapshot();
        let block_bytes = u64::from(table.bitmap_bytes) + u64::from(self.layout.block_size);
        let room = (state.len_bytes / block_bytes + 1).min(MAX_COMPARED_BLOCKS);
        let mut places = Vec::new();
        for block in 0..self.layout.blocks {
            let entry = self.entry(table, block, state)?;
            if entry == BAT_UNUSED {
                continue;
            }
            if places.len() as u64 > room {
                return Err(Error::corrupt(format!(
                    "the table allocates more blocks than the {room} there is room for"
                ))
                .with_object(&self.path));
            }
            places.push((entry, block as u32));
            if let Err(e) = self.check_entry(table, entry, block, state) {
                if astray == 0 {
                    problems.push(e.message().to_owned());
                }
                astray += 1;
            }
        }
        if astray > 1 {
            problems.push(format!("{astray} entries of the table lead astray in all"));
        }
        places.sort_unstable();
        let sectors = block_bytes / SECTOR_BYTES;
        let overlapping = places
            .windows(2)
            .find(|pair| u64::from(pair[1].0 - pair[0].0) < sectors);
        if let Some(pair) = overlapping {
            problems.push(format!(
                "blocks {} and {} lie over each other in the file",
                pair[0].1, pair[1].1
            ));
        }
        Ok(problems)
    }
}
