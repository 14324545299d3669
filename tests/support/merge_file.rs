//! A VHD file that a merge writes into, changed the way XO's `VhdFile` does: in place where the block
//! is present, at the end (over the footer) where it is not, with the table grown when it must be.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::blocks::bitmap_bytes;
use super::sparse::SECTOR_BYTES;
use super::vhd::{BAT_UNUSED, FOOTER_BYTES, Footer, HEADER_BYTES, Header};

/// The parent of a merge.
pub struct ParentFile {
    file: File,
    header: Header,
    bat: Vec<u32>,
}

impl ParentFile {
    pub fn open(path: PathBuf) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut bytes = vec![0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, FOOTER_BYTES as u64).unwrap();
        let header = Header::from_bytes(&bytes);
        let mut table = vec![0; 4 * header.max_table_entries as usize];
        file.read_exact_at(&mut table, header.table_offset).unwrap();
        let entry = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let bat = table.chunks_exact(4).map(entry).collect();
        Self { file, header, bat }
    }

    fn stored_block_bytes(&self) -> u64 {
        bitmap_bytes(self.header.block_size) + u64::from(self.header.block_size)
    }

    fn set_entry(&mut self, number: usize, offset: u64) {
        let sector = (offset / SECTOR_BYTES) as u32;
        self.bat[number] = sector;
        let at = self.header.table_offset + 4 * number as u64;
        self.file.write_all_at(&sector.to_be_bytes(), at).unwrap();
    }

    /// End of the last block (or of the table, when there is none).
    fn end_of_data(&self) -> u64 {
        let last = self.bat.iter().filter(|entry| **entry != BAT_UNUSED).max();
        last.map_or(
            (self.header.table_offset + 4 * self.bat.len() as u64).next_multiple_of(SECTOR_BYTES),
            |sector| u64::from(*sector) * SECTOR_BYTES + self.stored_block_bytes(),
        )
    }

    /// Makes room for more BAT entries by moving the blocks behind the table to the end.
    pub fn ensure_bat_size(&mut self, entries: u32) {
        if entries <= self.header.max_table_entries {
            return;
        }
        let table_end =
            (self.header.table_offset + 4 * u64::from(entries)).next_multiple_of(SECTOR_BYTES);
        loop {
            let in_use = self
                .bat
                .iter()
                .enumerate()
                .filter(|(_, e)| **e != BAT_UNUSED);
            let Some((number, sector)) = in_use.min_by_key(|(_, entry)| **entry) else {
                break;
            };
            let from = u64::from(*sector) * SECTOR_BYTES;
            if from >= table_end {
                break;
            }
            let mut block = vec![0; self.stored_block_bytes() as usize];
            self.file.read_exact_at(&mut block, from).unwrap();
            let to = self.end_of_data().max(table_end);
            self.file.write_all_at(&block, to).unwrap();
            self.set_entry(number, to);
        }
        self.bat.resize(entries as usize, BAT_UNUSED);
        let old_end = self.header.table_offset + 4 * u64::from(self.header.max_table_entries);
        let fill = vec![0xff; (table_end - old_end) as usize];
        self.file.write_all_at(&fill, old_end).unwrap();
        self.header.max_table_entries = entries;
        self.file
            .write_all_at(&self.header.to_bytes(), FOOTER_BYTES as u64)
            .unwrap();
    }

    /// Overwrites a present block, appends an absent one: over the footer at the end.
    pub fn write_block(&mut self, number: u64, bytes: &[u8]) {
        let at = match self.bat[number as usize] {
            BAT_UNUSED => {
                let end = self.end_of_data();
                self.set_entry(number as usize, end);
                end
            }
            sector => u64::from(sector) * SECTOR_BYTES,
        };
        self.file.write_all_at(bytes, at).unwrap();
    }

    /// Writes the footer at both places.
    pub fn write_footers(&mut self, footer: &Footer) {
        let end = self.end_of_data();
        self.file.write_all_at(&footer.to_bytes(), 0).unwrap();
        self.file.write_all_at(&footer.to_bytes(), end).unwrap();
        self.file.set_len(end + FOOTER_BYTES as u64).unwrap();
    }

    /// Cuts the file in the middle of its last block: killed while appending.
    pub fn tear_last_block(&mut self) {
        let end = self.end_of_data();
        self.file
            .set_len(end - u64::from(self.header.block_size) / 2)
            .unwrap();
    }
}
