//! One VHD as a plain file: fixed, dynamic or differencing, laid out as tidily or as oddly as asked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::blocks::{BlockSource, bitmap_bytes};
use super::files::write_sparse_at;
use super::rng::{Rng, Uuid};
use super::sparse::{SECTOR_BYTES, SparseDisk};
use super::vhd::{
    BAT_UNUSED, Creator, FOOTER_BYTES, Footer, Header, ParentLocator, USUAL_TABLE_OFFSET,
    checksum_of, disk_type,
};

/// In which order the blocks stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOrder {
    Ascending,
    Descending,
    Shuffled(u64),
}

/// What stands where a footer belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FooterState {
    Good,
    /// Zeros at the start of the file; nothing at all at its end.
    Missing,
    /// The right bytes but one.
    Flipped,
    Garbage,
    /// A sound footer that says something else.
    Other(Box<Footer>),
    /// The 511-byte footer that old Virtual PC versions wrote (at the end only).
    Short,
}

/// Where one parent locator's data goes and what it is.
#[derive(Clone, Debug)]
pub struct LocatorSpec {
    pub platform_code: [u8; 4],
    pub data: Vec<u8>,
    /// Count the reserved room in bytes, as some writers do, instead of sectors.
    pub space_in_bytes: bool,
}

impl LocatorSpec {
    /// `W2ku` (absolute) or `W2ru` (relative): UTF-16LE.
    pub fn windows(platform_code: &[u8; 4], path: &str) -> Self {
        Self {
            platform_code: *platform_code,
            data: path.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            space_in_bytes: false,
        }
    }

    /// `MacX`: a file URL in UTF-8.
    pub fn mac(url: &str) -> Self {
        Self {
            platform_code: *b"MacX",
            data: url.as_bytes().to_vec(),
            space_in_bytes: true,
        }
    }
}

/// Everything about a VHD file except its blocks.
#[derive(Clone, Debug)]
pub struct VhdFileSpec {
    pub footer: Footer,
    pub header: Header,
    pub order: BlockOrder,
    /// Unused sectors before each block; their content is garbage.
    pub gap_sectors: u64,
    /// Put the BAT behind the blocks instead of in front of them.
    pub bat_after_blocks: bool,
    /// Write tapdisk's `tdbatmap` after the BAT.
    pub batmap: bool,
    pub leading: FooterState,
    pub trailing: FooterState,
    pub locators: Vec<LocatorSpec>,
}

/// Where things ended up in a written VHD file; all offsets in bytes.
#[derive(Clone, Debug)]
pub struct WrittenVhdFile {
    pub path: PathBuf,
    pub len_bytes: u64,
    pub block_size: u32,
    /// `None` for a fixed disk.
    pub bat_offset: Option<u64>,
    pub bat_entries: u32,
    pub batmap_offset: Option<u64>,
    /// block number -> offset of its bitmap
    pub blocks: BTreeMap<u64, u64>,
    pub trailing_footer_offset: Option<u64>,
}

impl WrittenVhdFile {
    pub fn bat_entry_offset(&self, number: u64) -> u64 {
        self.bat_offset.expect("a fixed disk has no BAT") + 4 * number
    }

    pub fn bitmap_offset(&self, number: u64) -> u64 {
        self.blocks[&number]
    }

    pub fn data_offset(&self, number: u64) -> u64 {
        self.blocks[&number] + bitmap_bytes(self.block_size)
    }

    /// Ends the file after the first `data_bytes` of the data of a block, which must stand last, and
    /// puts the footer there.
    pub fn cut_last_block(&self, number: u64, data_bytes: u64) {
        let end = self.data_offset(number) + data_bytes;
        assert!(self.blocks.values().all(|at| *at <= self.blocks[&number]));
        let mut content = fs::read(&self.path).unwrap();
        let footer = content[self.trailing_footer_offset.unwrap() as usize..].to_vec();
        content.truncate(end as usize);
        content.extend(footer);
        fs::write(&self.path, content).unwrap();
    }
}

impl VhdFileSpec {
    fn with(disk_type: u32, size_bytes: u64, block_size: u32, unique_id: Uuid) -> Self {
        Self {
            footer: Footer::new(disk_type, size_bytes, unique_id),
            header: Header::new(size_bytes, block_size),
            order: BlockOrder::Ascending,
            gap_sectors: 0,
            bat_after_blocks: false,
            batmap: false,
            leading: FooterState::Good,
            trailing: FooterState::Good,
            locators: Vec::new(),
        }
    }

    pub fn dynamic(size_bytes: u64, block_size: u32, unique_id: Uuid) -> Self {
        Self::with(disk_type::DYNAMIC, size_bytes, block_size, unique_id)
    }

    pub fn differencing(
        size_bytes: u64,
        block_size: u32,
        unique_id: Uuid,
        parent: Uuid,
        parent_name: &str,
    ) -> Self {
        let mut spec = Self::with(disk_type::DIFFERENCING, size_bytes, block_size, unique_id);
        spec.header = spec.header.with_parent(parent, parent_name);
        spec
    }

    pub fn creator(mut self, creator: Creator) -> Self {
        self.footer.creator = creator;
        self
    }

    /// Out-of-order blocks with gaps between them, BAT at the end, batmap: all legal, all odd.
    pub fn odd_layout(mut self, seed: u64) -> Self {
        self.order = BlockOrder::Shuffled(seed);
        self.gap_sectors = 1 + seed % 7;
        self.bat_after_blocks = seed & 1 == 0;
        self.batmap = seed & 2 == 0;
        self
    }

    /// Writes a dynamic or differencing disk.
    pub fn write(&self, path: &Path, source: &dyn BlockSource) -> WrittenVhdFile {
        let file = create(path);
        let mut numbers = source.block_numbers();
        match self.order {
            BlockOrder::Ascending => {}
            BlockOrder::Descending => numbers.reverse(),
            BlockOrder::Shuffled(seed) => Rng::new(seed).shuffle(&mut numbers),
        }

        let mut header = self.header.clone();
        let mut at = self.write_locators(&file, &mut header);
        let entries = u64::from(header.max_table_entries);
        let bat_bytes = (4 * entries).next_multiple_of(SECTOR_BYTES);
        let map_bytes = entries.div_ceil(8).next_multiple_of(SECTOR_BYTES);
        let tables_bytes = bat_bytes
            + if self.batmap {
                SECTOR_BYTES + map_bytes
            } else {
                0
            };
        let mut tables_offset = at;
        if !self.bat_after_blocks {
            at += tables_bytes;
        }

        // XO fills the last sector of the table with ones as well.
        let mut bat = vec![0xff; bat_bytes as usize];
        let mut full_map = vec![0; map_bytes as usize];
        let mut blocks = BTreeMap::new();
        for number in numbers {
            if self.gap_sectors > 0 {
                let garbage = vec![0x5a; (self.gap_sectors * SECTOR_BYTES) as usize];
                file.write_all_at(&garbage, at).unwrap();
                at += garbage.len() as u64;
            }
            let image = source.block(number);
            file.write_all_at(&image.bitmap, at).unwrap();
            write_sparse_at(&file, &image.data, at + image.bitmap.len() as u64);
            let sector = u32::try_from(at / SECTOR_BYTES).expect("VHD file beyond 2 TiB");
            assert_ne!(sector, BAT_UNUSED);
            bat[4 * number as usize..][..4].copy_from_slice(&sector.to_be_bytes());
            if image.is_full() {
                full_map[(number / 8) as usize] |= 0x80 >> (number % 8);
            }
            blocks.insert(number, at);
            at += (image.bitmap.len() + image.data.len()) as u64;
        }
        if self.bat_after_blocks {
            tables_offset = at;
            at += tables_bytes;
        }
        header.table_offset = if self.header.table_offset == USUAL_TABLE_OFFSET {
            tables_offset
        } else {
            // Somebody wants the header to lie.
            self.header.table_offset
        };
        file.write_all_at(&bat, tables_offset).unwrap();
        let batmap_offset = self.batmap.then_some(tables_offset + bat_bytes);
        if let Some(offset) = batmap_offset {
            write_batmap(&file, offset, &full_map);
        }
        file.write_all_at(&header.to_bytes(), FOOTER_BYTES as u64)
            .unwrap();
        file.set_len(at).unwrap();
        let (trailing_footer_offset, len_bytes) = self.write_footers(&file, at, true);
        WrittenVhdFile {
            path: path.to_owned(),
            len_bytes,
            block_size: self.header.block_size,
            bat_offset: Some(tables_offset),
            bat_entries: self.header.max_table_entries,
            batmap_offset,
            blocks,
            trailing_footer_offset,
        }
    }

    /// Parent locator data comes right after the header; returns where it ends.
    fn write_locators(&self, file: &File, header: &mut Header) -> u64 {
        let mut at = USUAL_TABLE_OFFSET;
        for (slot, locator) in self.locators.iter().take(8).enumerate() {
            let room = (locator.data.len() as u64).next_multiple_of(SECTOR_BYTES);
            file.write_all_at(&locator.data, at).unwrap();
            header.parent_locators[slot] = ParentLocator {
                platform_code: locator.platform_code,
                platform_data_space: if locator.space_in_bytes {
                    room as u32
                } else {
                    (room / SECTOR_BYTES) as u32
                },
                platform_data_length: locator.data.len() as u32,
                reserved: 0,
                platform_data_offset: at,
            };
            at += room;
        }
        at
    }

    fn write_footers(&self, file: &File, end: u64, leading: bool) -> (Option<u64>, u64) {
        let bytes_of = |state: &FooterState| -> Option<Vec<u8>> {
            let mut bytes = self.footer.to_bytes().to_vec();
            match state {
                FooterState::Good => {}
                FooterState::Missing => return None,
                // A bit of the current size: wrong data, unless the checksum is verified.
                FooterState::Flipped => bytes[53] ^= 0x10,
                FooterState::Garbage => Rng::new(end).fill(&mut bytes),
                FooterState::Other(footer) => bytes = footer.to_bytes().to_vec(),
                FooterState::Short => bytes.truncate(511),
            }
            Some(bytes)
        };
        if leading && let Some(bytes) = bytes_of(&self.leading) {
            file.write_all_at(&bytes, 0).unwrap();
        }
        match bytes_of(&self.trailing) {
            Some(bytes) => {
                file.write_all_at(&bytes, end).unwrap();
                (Some(end), end + bytes.len() as u64)
            }
            None => (None, end),
        }
    }
}

/// Writes a fixed disk: the raw content, then one footer.
pub fn write_fixed(
    path: &Path,
    footer: &Footer,
    trailing: FooterState,
    writes: &SparseDisk,
) -> WrittenVhdFile {
    let file = create(path);
    let size_bytes = footer.current_size;
    file.set_len(size_bytes).unwrap();
    for run in writes.runs_in(0, size_bytes / SECTOR_BYTES) {
        // In pieces: a run can be larger than memory should be.
        let mut sector = run.first_sector;
        while sector < run.end_sector {
            let count = (run.end_sector - sector).min(2048);
            let mut bytes = vec![0; (count * SECTOR_BYTES) as usize];
            run.fill.render(sector, &mut bytes);
            write_sparse_at(&file, &bytes, sector * SECTOR_BYTES);
            sector += count;
        }
    }
    let mut spec = VhdFileSpec::dynamic(0, super::vhd::USUAL_BLOCK_BYTES, footer.unique_id);
    spec.footer = footer.clone();
    spec.trailing = trailing;
    let (trailing_footer_offset, len_bytes) = spec.write_footers(&file, size_bytes, false);
    WrittenVhdFile {
        path: path.to_owned(),
        len_bytes,
        block_size: 0,
        bat_offset: None,
        bat_entries: 0,
        batmap_offset: None,
        blocks: BTreeMap::new(),
        trailing_footer_offset,
    }
}

fn create(path: &Path) -> File {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap();
    }
    File::create(path).unwrap()
}

/// Tapdisk's batmap (blktap's `vhd.h`): a header sector, then a bit per block, set when every
/// sector of the block is present.
fn write_batmap(file: &File, offset: u64, map: &[u8]) {
    let mut header = vec![0; SECTOR_BYTES as usize];
    header[0..8].copy_from_slice(b"tdbatmap");
    header[8..16].copy_from_slice(&(offset + SECTOR_BYTES).to_be_bytes());
    let sectors = map.len() as u64 / SECTOR_BYTES;
    header[16..20].copy_from_slice(&(sectors as u32).to_be_bytes());
    header[20..24].copy_from_slice(&0x0001_0002u32.to_be_bytes());
    header[24..28].copy_from_slice(&checksum_of(map, map.len()).to_be_bytes());
    file.write_all_at(&header, offset).unwrap();
    file.write_all_at(map, offset + SECTOR_BYTES).unwrap();
}
