//! One VHD as a directory (XO's form on object stores, and on file systems when asked for), and the
//! alias file that stands for it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::blocks::BlockSource;
use super::files::write_file;
use super::rng::Uuid;
use super::vhd::{Footer, Header, disk_type};

/// What `chunk-filters.json` says, and so how every other part is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// No `chunk-filters.json` at all (what XO does without compression).
    Absent,
    /// `[]`
    EmptyList,
    Gzip,
    Brotli,
}

impl Filter {
    pub const ALL: [Self; 4] = [Self::Absent, Self::EmptyList, Self::Gzip, Self::Brotli];

    /// Content of `chunk-filters.json`.
    pub fn json(self) -> Option<&'static str> {
        match self {
            Filter::Absent => None,
            Filter::EmptyList => Some("[]"),
            Filter::Gzip => Some(r#"["gzip"]"#),
            Filter::Brotli => Some(r#"["brotli"]"#),
        }
    }

    /// Whether parts can be moved between directories of these two filters.
    pub fn encodes_like(self, other: Self) -> bool {
        let plain = |filter| matches!(filter, Self::Absent | Self::EmptyList);
        self == other || plain(self) && plain(other)
    }

    pub fn encode(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Filter::Absent | Filter::EmptyList => bytes.to_vec(),
            Filter::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            // XO uses brotli's lowest quality.
            Filter::Brotli => brotli_encode(bytes, 0),
        }
    }

    /// The inverse, for changing parts that the generator itself wrote.
    pub fn decode(self, bytes: &[u8]) -> Vec<u8> {
        let mut decoded = Vec::new();
        match self {
            Filter::Absent | Filter::EmptyList => return bytes.to_vec(),
            Filter::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut decoded),
            Filter::Brotli => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut decoded),
        }
        .unwrap();
        decoded
    }
}

/// Brotli with the usual 4 MiB window.
pub fn brotli_encode(bytes: &[u8], quality: u32) -> Vec<u8> {
    let mut encoded = Vec::new();
    let mut encoder = brotli::CompressorWriter::new(&mut encoded, 1 << 16, quality, 22);
    encoder.write_all(bytes).unwrap();
    drop(encoder);
    encoded
}

/// How long the `bat` part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatLength {
    /// A byte where a bit would do, as XO writes it.
    EightTimes,
    /// Just the bytes needed.
    Exact,
    /// This many bytes (at least those that the present blocks need).
    Given(usize),
}

/// Everything about a VHD directory except its blocks.
#[derive(Clone, Debug)]
pub struct VhdDirSpec {
    pub footer: Footer,
    pub header: Header,
    pub filter: Filter,
    pub bat_length: BatLength,
    /// Content of `parentLocatorEntry<n>` parts.
    pub locators: Vec<(usize, Vec<u8>)>,
}

/// Where a directory's parts are.
#[derive(Clone, Debug)]
pub struct WrittenVhdDir {
    pub path: PathBuf,
    pub filter: Filter,
    pub blocks: Vec<u64>,
}

impl WrittenVhdDir {
    pub fn block_path(&self, number: u64) -> PathBuf {
        block_path(&self.path, number)
    }

    /// Stores a block again with just the first `data_bytes` of its data behind its bitmap.
    pub fn cut_block(&self, number: u64, bitmap_bytes: u64, data_bytes: u64) {
        let path = self.block_path(number);
        let mut decoded = self.filter.decode(&std::fs::read(&path).unwrap());
        decoded.truncate((bitmap_bytes + data_bytes) as usize);
        write_file(&path, &self.filter.encode(&decoded));
    }
}

/// `blocks/<n / 1000>/<n % 1000>`, not zero-padded.
pub fn block_path(directory: &Path, number: u64) -> PathBuf {
    directory
        .join("blocks")
        .join((number / 1000).to_string())
        .join((number % 1000).to_string())
}

/// The bit array of a `bat` part, most significant bit first.
///
/// Long enough for every number given, even when `max_table_entries` would not be: that happens
/// after XO merged a grown child into a smaller parent.
pub fn bat_bits(numbers: &[u64], max_table_entries: u32, length: BatLength) -> Vec<u8> {
    let entries = max_table_entries as usize;
    let needed = numbers.iter().max().map_or(0, |max| *max as usize / 8 + 1);
    let len_bytes = match length {
        BatLength::EightTimes => entries,
        BatLength::Exact => entries.div_ceil(8),
        BatLength::Given(len_bytes) => len_bytes,
    };
    let mut bits = vec![0; len_bytes.max(needed)];
    for number in numbers {
        bits[(number / 8) as usize] |= 0x80 >> (number % 8);
    }
    bits
}

impl VhdDirSpec {
    pub fn dynamic(size_bytes: u64, block_size: u32, unique_id: Uuid, filter: Filter) -> Self {
        Self {
            footer: Footer::new(disk_type::DYNAMIC, size_bytes, unique_id),
            header: Header::new(size_bytes, block_size),
            filter,
            bat_length: BatLength::EightTimes,
            locators: Vec::new(),
        }
    }

    pub fn differencing(
        size_bytes: u64,
        block_size: u32,
        unique_id: Uuid,
        filter: Filter,
        parent: Uuid,
        parent_name: &str,
    ) -> Self {
        let mut spec = Self::dynamic(size_bytes, block_size, unique_id, filter);
        spec.footer.disk_type = disk_type::DIFFERENCING;
        spec.header = spec.header.with_parent(parent, parent_name);
        spec
    }

    /// Writes all parts below `directory`.
    pub fn write(&self, directory: &Path, source: &dyn BlockSource) -> WrittenVhdDir {
        let numbers = source.block_numbers();
        for number in &numbers {
            let bytes = source.block(*number).to_bytes();
            write_file(&block_path(directory, *number), &self.filter.encode(&bytes));
        }
        self.write_parts(directory, &numbers);
        WrittenVhdDir {
            path: directory.to_owned(),
            filter: self.filter,
            blocks: numbers,
        }
    }

    /// Writes everything but the blocks; `numbers` are those the `bat` announces.
    pub fn write_parts(&self, directory: &Path, numbers: &[u64]) {
        if let Some(json) = self.filter.json() {
            write_file(&directory.join("chunk-filters.json"), json.as_bytes());
        }
        let bat = bat_bits(numbers, self.header.max_table_entries, self.bat_length);
        let parts = [
            ("footer", &self.footer.to_bytes()[..]),
            ("header", &self.header.to_bytes()[..]),
            ("bat", &bat[..]),
        ];
        for (name, bytes) in parts {
            write_file(&directory.join(name), &self.filter.encode(bytes));
        }
        for (slot, bytes) in &self.locators {
            let name = format!("parentLocatorEntry{slot}");
            write_file(&directory.join(name), &self.filter.encode(bytes));
        }
    }
}

/// Writes an alias: a text file, without a line end, that holds a path relative to its directory.
pub fn write_alias(path: &Path, target: &str) {
    write_file(path, target.as_bytes());
}
