//! One VHD in one file: fixed, dynamic or differencing.
//!
//! Only what is asked for is read: table pages, a block's bitmap, the sectors themselves. The file
//! may be the target of a merge and so be written to while it is open here. XO then copies a block
//! away before it overwrites its place, so a read counts only if the block's table entry is the
//! same after it as before it (see [`VhdFile::read_present`]). Where every request takes a round
//! trip, blocks are fetched whole instead (see [`whole`]).

mod ends;
mod whole;

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::bitmap;
use super::parent_name::MAX_LOCATOR_BYTES;
use super::recognise;
use super::vhd::{
    BAT_UNUSED, DiskType, FOOTER_BYTES, Footer, HEADER_BYTES, Header, ParentLocator, SECTOR_BYTES,
    blocks_of,
};
use super::vhd_dir::MAX_WHOLE_BLOCK_BYTES;
use crate::cache::{MetaCache, MetaKey, MetaKind};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Meta, Store, StorePath, StoredFile, Version};

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
pub(super) struct VhdFile {
    store: Arc<dyn Store>,
    file: Arc<dyn StoredFile>,
    path: StorePath,
    id: u64,
    meta: Arc<MetaCache>,
    layout: Layout,
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
    /// Whether blocks are fetched whole.
    whole: bool,
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

/// What opening a VHD tells besides the open file.
pub(super) struct Opened<T> {
    pub body: T,
    pub footer: Footer,
    pub header: Option<Header>,
    pub problems: Vec<String>,
    /// What is odd about the trailing footer. XO overwrites it while it merges into the file, so
    /// it is damage only when no merge does.
    pub trailing: Option<String>,
    pub versions: Vec<Version>,
}

/// Whether a read met a file that has changed since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stability {
    /// Nobody writes to it.
    Settled,
    /// It is, or may be, written to; what was read is sound, but see the chain's guard.
    Unsettled,
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
    /// Opens the file and reads its footers and header; of pinned files, the table with them where it
    /// is beside. `listed` is the file's state if a listing has just told it.
    ///
    /// # Errors
    /// `NotFound` when it is not there, `Corrupt` when neither footer is sound, the header is not,
    /// or the table cannot be in the file.
    pub(super) fn open(
        store: &Arc<dyn Store>,
        path: &StorePath,
        listed: Option<&Meta>,
        id: u64,
        meta: &Arc<MetaCache>,
    ) -> Result<Opened<VhdFile>> {
        let open = |listed| {
            let file = store.open(path, listed)?;
            Self::from_file(store, file, path, id, meta).map_err(|e| e.with_object(path))
        };
        match open(listed) {
            // It is not, or no longer, what was listed.
            Err(e) if e.kind() == ErrorKind::Changed && listed.is_some() => open(None),
            other => other,
        }
    }

    fn from_file(
        store: &Arc<dyn Store>,
        file: Arc<dyn StoredFile>,
        path: &StorePath,
        id: u64,
        meta: &Arc<MetaCache>,
    ) -> Result<Opened<VhdFile>> {
        let opened = file.opened_meta();
        let len = opened.len_bytes;
        if len < FOOTER_BYTES as u64 {
            let start = file.read_bytes_at(0, len as usize)?;
            let too_few = || Error::corrupt(format!("{len} bytes are too few for a VHD"));
            return Err(recognise::refuse_foreign(&start).unwrap_or_else(too_few));
        }
        let (start, tail) = ends::read_ends(&*file, len)?;

        let mut problems = Vec::new();
        let (trailing, footer_bytes) = ends::trailing_footer(&tail);
        let trailing_bytes = trailing.as_ref().map_or(0, |_| footer_bytes);
        let mut odd_trailing = None;
        let footer = ends::choose_footer(
            Footer::parse(&start[..FOOTER_BYTES]),
            trailing,
            len - footer_bytes,
            &mut problems,
            &mut odd_trailing,
        )
        .map_err(|e| recognise::refuse_foreign(&start).unwrap_or(e))?;

        let mut header = None;
        let mut head = Vec::new();
        let mut table = None;
        let mut block_size = FIXED_BLOCK_BYTES;
        if footer.disk_type == DiskType::Fixed {
            if footer.current_size > len - footer_bytes {
                return Err(Error::corrupt(format!(
                    "file of {len} bytes is too short for a fixed disk of {}",
                    footer.current_size
                )));
            }
        } else {
            head = match ends::part_of(&start, footer.data_offset, HEADER_BYTES) {
                Some(bytes) => bytes.to_vec(),
                None => ends::read_header(&*file, footer.data_offset, len)?,
            };
            let parsed = Header::parse(&head).map_err(|e| e.at(footer.data_offset))?;
            block_size = parsed.block_size;
            let is_far = file.is_pinned();
            table = Some(ends::table_of(
                &parsed,
                &footer,
                len,
                is_far,
                &mut problems,
            )?);
            header = Some(parsed);
        }
        let pinned = file.is_pinned();
        let body = VhdFile {
            store: Arc::clone(store),
            file,
            path: path.clone(),
            id,
            meta: Arc::clone(meta),
            layout: Layout {
                table,
                block_size,
                virtual_size: footer.current_size,
                blocks: blocks_of(footer.current_size, block_size)?,
                head,
                head_at: footer.data_offset,
                trailing_bytes,
                whole: pinned && block_size <= MAX_WHOLE_BLOCK_BYTES,
            },
            state: RwLock::new(State {
                version: opened.version,
                len_bytes: len,
                generation: 0,
                settled: pinned || is_settled(&opened),
            }),
        };
        body.keep_pages_of(&start);
        Ok(Opened {
            body,
            footer,
            header,
            problems,
            trailing: odd_trailing,
            versions: vec![opened.version],
        })
    }

    /// A parent locator of the header, as it stands in the file.
    ///
    /// # Errors
    /// As the storage says; `Corrupt` when it is not within the file.
    pub(super) fn locator(&self, locator: &ParentLocator) -> Result<Vec<u8>> {
        let mut bytes = vec![0; locator.len_bytes.min(MAX_LOCATOR_BYTES) as usize];
        self.file.read_exact_at(&mut bytes, locator.offset)?;
        Ok(bytes)
    }

    /// Bytes of a block's data.
    pub(super) fn block_size(&self) -> u32 {
        self.layout.block_size
    }

    /// Sets bit `n - first` of `bits` for each block `n` of `first..first + count` that the table
    /// announces. Blocks past the end are left alone.
    pub(super) fn announced(&self, first: u64, count: u64, bits: &mut [u64]) -> Result<()> {
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
                // A block that a short table has no entry for counts as announced: reading it is
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

    /// Reads those bytes of `within` (a range of block `block`, in bytes) that the block holds into
    /// `buf`, which is as long as `within`; pushes the ranges (relative to `within`) that it does
    /// not hold to `absent`. On success every byte is either read or reported absent.
    ///
    /// # Errors
    /// `Changed` when the file has become another one or changes faster than it can be read;
    /// `Corrupt` when the table leads out of the file or into its tables.
    pub(super) fn read_present(
        &self,
        block: u64,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
    ) -> Result<Stability> {
        for _ in 0..4 {
            let state = self.snapshot();
            absent.clear();
            let entry = match &self.layout.table {
                None => {
                    let at = block * u64::from(self.layout.block_size) + within.start;
                    self.file.read_exact_at(buf, at)?;
                    BAT_UNUSED
                }
                Some(table) => {
                    let entry = self.entry(table, block, state)?;
                    self.read_block(table, entry, block, within.clone(), buf, absent, state)?;
                    entry
                }
            };
            if let Some(stability) = self.verify(state, block, entry)? {
                return Ok(stability);
            }
        }
        Err(Error::new(
            ErrorKind::Changed,
            "is written to faster than it can be read",
        )
        .with_object(&self.path))
    }

    /// Tells the storage that a block will be read soon, if its place is already known to be sound.
    pub(super) fn will_read(&self, block: u64) {
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

    #[allow(clippy::too_many_arguments)]
    fn read_block(
        &self,
        table: &Table,
        entry: u32,
        block: u64,
        within: Range<u64>,
        buf: &mut [u8],
        absent: &mut Vec<Range<usize>>,
        state: State,
    ) -> Result<()> {
        if entry == BAT_UNUSED {
            absent.push(0..buf.len());
            return Ok(());
        }
        let start = self.check_entry(table, entry, block, state)?;
        let data = start + u64::from(table.bitmap_bytes);
        let present = self.bitmap(table, start, block, state)?;
        if present.is_empty() {
            return self.file.read_exact_at(buf, data + within.start);
        }
        bitmap::split(&present, within.clone(), |run, is_present| {
            let part = (run.start - within.start) as usize..(run.end - within.start) as usize;
            if is_present {
                self.file.read_exact_at(&mut buf[part], data + run.start)
            } else {
                absent.push(part);
                Ok(())
            }
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
        self.meta.get_or_load(self.page_key(page, generation), || {
            let place = table.page_place(page);
            let mut bytes = vec![0; (place.end - place.start) as usize];
            self.file.read_exact_at(&mut bytes, place.start)?;
            Ok(Arc::from(bytes))
        })
    }

    fn page_key(&self, page: u64, generation: u32) -> MetaKey {
        MetaKey {
            of: self.id,
            generation,
            kind: MetaKind::Bat,
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
        let key = MetaKey {
            of: self.id,
            generation: state.generation,
            kind: MetaKind::Bitmap,
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
            self.meta.get_or_load(key, load)
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
        let mut shared = self.state.write().unwrap_or_else(PoisonError::into_inner);
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
        *self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with the table, one sentence each: entries that lead out of the file or into its
    /// tables, two blocks that lie over each other. Reads all of it.
    ///
    /// # Errors
    /// `Corrupt` when the table announces more blocks than the file has room for.
    pub(super) fn check_table(&self) -> Result<Vec<String>> {
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
                    "the table announces more blocks than the {room} there is room for"
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
