//! NTFS directories: the entries of a `$I30` index.
//!
//! The crate parses the entries of an index block. Which blocks there are is worked out here, by bytes:
//! the crate counts them in clusters, and where a cluster holds several blocks it reads the first one
//! again and again.

use std::sync::Arc;

use fs_ntfs::attr_io::{self, AttrType};
use fs_ntfs::index_io::{self, DirEntryRaw};
use fs_ntfs::mft_io::{self, BootParams};

use super::device::Device;
use super::ntfs::from_ntfs;
use super::ntfs_data;
use crate::error::{Error, Result};

const INDEX: &str = "$I30";
const HAS_SUBNODES: u8 = 1;
const MAX_BLOCK_BYTES: u64 = 64 << 10;
/// Blocks of one index: 16 million, of some 20 to 40 names each.
const MAX_BITMAP_BYTES: u64 = 2 << 20;
/// The first record that is not one of the file system's own.
const FIRST_LISTED: u64 = 16;
const NAMESPACE_DOS: u8 = 2;

/// All entries of a directory but `.`, 8.3 aliases and the file system's own files.
///
/// # Errors
/// `Corrupt` when the index does not hold together; never a part of it.
pub fn entries(
    device: &Arc<Device>,
    boot: &BootParams,
    number: u64,
    record: &[u8],
) -> Result<Vec<DirEntryRaw>> {
    let root = ntfs_data::holder(device, number, record, AttrType::IndexRoot, INDEX)?;
    let (holder, location) = root.ok_or_else(|| bad("a directory has no index"))?;
    let mut found = Vec::new();
    index_io::collect_index_root_entries(&holder, &mut found).map_err(from_ntfs)?;
    let flags = index_io::index_root_flags(&holder).ok_or_else(|| bad("an index has no header"))?;
    if flags & HAS_SUBNODES != 0 {
        let start = attr_io::resident_value_start(&location);
        let block_bytes = start
            .and_then(|start| holder.get(start + 8..start + 12))
            .and_then(|bytes| bytes.try_into().ok())
            .map(|bytes| u64::from(u32::from_le_bytes(bytes)))
            .filter(|bytes| bytes.is_power_of_two() && (512..=MAX_BLOCK_BYTES).contains(bytes))
            .ok_or_else(|| bad("an index has blocks of a strange size"))?;
        collect_blocks(device, boot, number, record, block_bytes, &mut found)?;
    }
    found.retain(|entry| {
        entry.namespace != NAMESPACE_DOS && entry.file_record_number >= FIRST_LISTED
    });
    Ok(found)
}

fn collect_blocks(
    device: &Arc<Device>,
    boot: &BootParams,
    number: u64,
    record: &[u8],
    block_bytes: u64,
    found: &mut Vec<DirEntryRaw>,
) -> Result<()> {
    let part = |kind| {
        ntfs_data::locate_kind(device, boot, number, record, kind, INDEX)?
            .ok_or_else(|| bad("an index lacks its blocks"))?
            .into_content(device, boot)
    };
    let blocks = part(AttrType::IndexAllocation)?;
    let in_use = part(AttrType::Bitmap)?;
    if in_use.len_bytes() > MAX_BITMAP_BYTES {
        return Err(bad("an index is too large"));
    }
    let mut bitmap = vec![0; in_use.len_bytes() as usize];
    in_use.read_exact_at(&mut bitmap, 0)?;
    let mut block = vec![0; block_bytes as usize];
    for (byte, group) in bitmap.iter().zip((0u64..).step_by(8)) {
        for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
            let offset = (group + bit) * block_bytes;
            if offset + block_bytes > blocks.len_bytes() {
                return Err(bad("an index uses blocks that it does not have"));
            }
            blocks.read_exact_at(&mut block, offset)?;
            if !block.starts_with(b"INDX") {
                return Err(bad("an index block has no signature"));
            }
            mft_io::apply_fixup_on_read_magic(&mut block, boot.bytes_per_sector, b"INDX")
                .map_err(from_ntfs)?;
            index_io::collect_indx_block_entries(&block, found).map_err(from_ntfs)?;
        }
    }
    Ok(())
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("ntfs: {message}"))
}
