//! The superblock, and the blocks of 8 KiB that all of squashfs' metadata is packed in.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::unpack::Compression;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::host::device::Device;
use crate::guestfs::host::guard;

/// What a metadata block unpacks to; only a table's last one is shorter.
pub const METADATA_BYTES: usize = 8192;
/// In a metadata block's header: stored as it is.
const PLAIN_METADATA: u16 = 0x8000;
/// In a data block's size word: stored as it is.
const PLAIN_DATA: u32 = 1 << 24;
/// 4 MiB of metadata blocks.
const KEPT_BLOCKS: usize = 512;

pub fn bad(message: &str) -> Error {
    Error::corrupt(format!("squashfs: {message}"))
}

/// Little-endian 16 bits; 0 past the end.
pub fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |field| u16::from_le_bytes([field[0], field[1]]))
}

/// Little-endian 32 bits; 0 past the end.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

/// Little-endian 64 bits; 0 past the end.
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// What the superblock says.
#[derive(Debug, Clone)]
pub struct Superblock {
    pub block_bytes: u32,
    pub fragments: u32,
    pub compression: Compression,
    pub ids: u16,
    pub root: u64,
    pub id_table: u64,
    pub xattr_table: Option<u64>,
    pub inode_table: u64,
    pub directory_table: u64,
    pub fragment_table: u64,
}

impl Superblock {
    /// Parses the first 96 bytes of a volume.
    ///
    /// # Errors
    /// `Unsupported` for other versions and compressions, `Corrupt` for nonsense.
    pub fn parse(bytes: &[u8; 96]) -> Result<Self> {
        if &bytes[..4] != b"hsqs" {
            return Err(bad("there is no superblock"));
        }
        let version = (le16(bytes, 28), le16(bytes, 30));
        if version.0 != 4 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("squashfs {}.{} is not read", version.0, version.1),
            ));
        }
        let block_bytes = le32(bytes, 12);
        if !block_bytes.is_power_of_two() || !(4096..=1 << 20).contains(&block_bytes) {
            return Err(bad("the block size makes no sense"));
        }
        Ok(Superblock {
            block_bytes,
            fragments: le32(bytes, 16),
            compression: Compression::from_number(le16(bytes, 20))?,
            ids: le16(bytes, 26),
            root: le64(bytes, 32),
            id_table: le64(bytes, 48),
            xattr_table: Some(le64(bytes, 56)).filter(|&at| at != u64::MAX),
            inode_table: le64(bytes, 64),
            directory_table: le64(bytes, 72),
            fragment_table: le64(bytes, 80),
        })
    }
}

/// A metadata block, unpacked, and where the next one begins.
type Unpacked = (Arc<[u8]>, u64);

/// The volume's blocks.
pub struct Blocks {
    pub device: Arc<Device>,
    pub compression: Compression,
    kept: Cache<u64, Unpacked>,
}

impl Blocks {
    pub fn new(device: Arc<Device>, compression: Compression) -> Self {
        Blocks {
            device,
            compression,
            kept: Cache::new(KEPT_BLOCKS),
        }
    }

    /// The metadata block at a byte of the volume.
    fn metadata(&self, at: u64) -> Result<Unpacked> {
        // What is kept costs as well, or a directory could be read forever.
        guard::charge(METADATA_BYTES as u64)?;
        if let Some(found) = self.kept.get(&at) {
            return Ok(found);
        }
        let (len, is_plain) = self.metadata_header(at)?;
        let mut bytes = vec![0; len];
        self.device.read(&mut bytes, at + 2)?;
        if !is_plain {
            bytes = self.compression.unpack(&bytes, METADATA_BYTES)?;
        }
        let found: Unpacked = (bytes.into(), at + 2 + len as u64);
        self.kept.insert(at, found.clone());
        Ok(found)
    }

    /// Stored length of a metadata block, and whether it is not compressed.
    fn metadata_header(&self, at: u64) -> Result<(usize, bool)> {
        let mut header = [0; 2];
        self.device.read(&mut header, at)?;
        let word = u16::from_le_bytes(header);
        let len = usize::from(word & !PLAIN_METADATA);
        match len {
            1..=METADATA_BYTES => Ok((len, word & PLAIN_METADATA != 0)),
            _ => Err(bad("a metadata block has a length that none can have")),
        }
    }

    /// A data block of at most `max` bytes at a byte of the volume; `word` is its size word.
    pub fn data(&self, at: u64, word: u32, max: usize) -> Result<Vec<u8>> {
        let len = (word & !PLAIN_DATA) as usize;
        // Blocks that would grow are stored as they are.
        if len > max || word >> 25 != 0 {
            return Err(bad("a block is longer than it can be"));
        }
        let mut bytes = vec![0; len];
        self.device.read(&mut bytes, at)?;
        match word & PLAIN_DATA != 0 {
            true => Ok(bytes),
            false => self.compression.unpack(&bytes, max),
        }
    }

    /// Reads from the metadata block at `block`, from `offset` in what it unpacks to.
    pub fn cursor(&self, block: u64, offset: usize) -> Cursor<'_> {
        Cursor {
            blocks: self,
            block,
            offset,
            current: None,
        }
    }

    /// A part of a table that is found by a list of its metadata blocks: `list` is where that lies, and
    /// the part begins at byte `at` of the table.
    pub fn indexed(&self, list: u64, at: u64) -> Result<Cursor<'_>> {
        let number = at / METADATA_BYTES as u64;
        let mut place = [0; 8];
        let entry = list
            .checked_add(number * 8)
            .ok_or_else(|| bad("a table is nowhere"))?;
        self.device.read(&mut place, entry)?;
        let offset = (at % METADATA_BYTES as u64) as usize;
        Ok(self.cursor(u64::from_le_bytes(place), offset))
    }
}

/// A place in packed metadata.
pub struct Cursor<'a> {
    blocks: &'a Blocks,
    block: u64,
    offset: usize,
    /// The block that is being read.
    current: Option<Unpacked>,
}

impl Cursor<'_> {
    /// Fills the buffer, over as many blocks as it takes.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let (bytes, next) = match &self.current {
                Some(current) => current,
                None => self.current.insert(self.blocks.metadata(self.block)?),
            };
            let left = bytes.get(self.offset..).unwrap_or_default();
            if left.is_empty() {
                // Only a full block is followed by another.
                if self.offset != METADATA_BYTES || bytes.len() != METADATA_BYTES {
                    return Err(bad("metadata ends where there should be more"));
                }
                self.block = *next;
                self.offset = 0;
                self.current = None;
                continue;
            }
            let take = left.len().min(buf.len() - done);
            buf[done..done + take].copy_from_slice(&left[..take]);
            done += take;
            self.offset += take;
        }
        Ok(())
    }

    /// The next bytes.
    pub fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Goes on without reading what lies between, but for the lengths of blocks.
    pub fn skip(&mut self, len: u64) -> Result<()> {
        self.current = None;
        let mut at = self.offset as u64 + len;
        while at > METADATA_BYTES as u64 {
            let (len, _) = self.blocks.metadata_header(self.block)?;
            self.block += 2 + len as u64;
            at -= METADATA_BYTES as u64;
        }
        self.offset = at as usize;
        Ok(())
    }
}
