//! Extended attributes: a list of keys and values for each set that some inode has.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::table::{Blocks, METADATA_BYTES, bad, le16, le32, le64};
use crate::error::Result;

/// Linux' limits: 64 KiB for the names of a file, and for each value.
const MAX_ATTRIBUTES: u32 = 4096;
const MAX_VALUE_BYTES: u32 = 64 << 10;
/// All values of one file.
const MAX_TOTAL_BYTES: usize = 4 << 20;
/// In a key's type: the value is elsewhere.
const OUT_OF_LINE: u16 = 0x100;

/// The attributes of the set with this number.
///
/// # Errors
/// `Corrupt` when the table leads astray.
pub fn read(blocks: &Blocks, table: u64, number: u32) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut header = [0; 16];
    blocks.device.read(&mut header, table)?;
    let (start, count) = (le64(&header, 0), le32(&header, 8));
    if number >= count {
        return Err(bad("a file has attributes that are not there"));
    }
    let list = table
        .checked_add(16)
        .ok_or_else(|| bad("the attributes are nowhere"))?;
    let entry = blocks.indexed(list, u64::from(number) * 16)?.bytes(16)?;
    let count = le32(&entry, 8);
    if count > MAX_ATTRIBUTES {
        return Err(bad("a file has more attributes than any"));
    }
    let place = |reference: u64| -> Result<(u64, usize)> {
        let block = start
            .checked_add(reference >> 16)
            .ok_or_else(|| bad("an attribute is nowhere"))?;
        let offset = (reference & 0xFFFF) as usize;
        match offset < METADATA_BYTES {
            true => Ok((block, offset)),
            false => Err(bad("an attribute is nowhere")),
        }
    };
    let (block, offset) = place(le64(&entry, 0))?;
    let mut cursor = blocks.cursor(block, offset);
    let mut found = Vec::new();
    let mut total = 0;
    for _ in 0..count {
        let head = cursor.bytes(4)?;
        let (kind, len) = (le16(&head, 0), le16(&head, 2));
        let name = cursor.bytes(usize::from(len))?;
        let len = le32(&cursor.bytes(4)?, 0);
        if len > MAX_VALUE_BYTES {
            return Err(bad("an attribute is longer than any"));
        }
        let mut value = cursor.bytes(len as usize)?;
        if kind & OUT_OF_LINE != 0 {
            let (block, offset) = place(le64(&value, 0))?;
            let mut there = blocks.cursor(block, offset);
            let len = le32(&there.bytes(4)?, 0);
            if len > MAX_VALUE_BYTES {
                return Err(bad("an attribute is longer than any"));
            }
            value = there.bytes(len as usize)?;
        }
        total += value.len();
        if total > MAX_TOTAL_BYTES {
            return Err(bad("a file's attributes are too much"));
        }
        let prefix: &[u8] = match kind & 0xFF {
            0 => b"user.",
            1 => b"trusted.",
            2 => b"security.",
            // Linux leaves out what it does not know.
            _ => continue,
        };
        found.push((OsString::from_vec([prefix, &name].concat()), value));
    }
    Ok(found)
}
