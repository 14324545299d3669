//! Fast commits: what was synced since the last full commit, as tags with values.
//!
//! A commit ends in a tag that carries the sum of all of it. One that has none was being written when the machine
//! stopped, and nobody was told that it was done.

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;

use super::place::{Blocks, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::volume::bits::{crc32c_update, le16, le32};

const TAG_BYTES: usize = 4;
const ADD_RANGE: u16 = 1;
const DEL_RANGE: u16 = 2;
const CREATE: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PAD: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;
/// Longer extents are shorter ones that were never written.
const MAX_WRITTEN: u16 = 32768;
/// More than any journal has for fast commits.
const MAX_AREA_BYTES: u64 = 64 << 20;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Blocks of a file lie here; `physical` is `None` for a hole, or for what was never written.
    Range {
        /// The inode.
        inode: u32,
        /// Its blocks.
        blocks: Range<u64>,
        /// Where the first of them is.
        physical: Option<u64>,
    },
    /// An inode as it is now, but for where its blocks are.
    Inode {
        /// The inode.
        inode: u32,
        /// The start of it.
        raw: Vec<u8>,
    },
    /// A name leads here.
    Link {
        /// The directory.
        parent: u32,
        /// The inode.
        inode: u32,
        /// The name.
        name: OsString,
        /// The inode is a new one.
        is_new: bool,
    },
    /// A name is gone.
    Unlink {
        /// The directory.
        parent: u32,
        /// What it led to.
        inode: u32,
        /// The name.
        name: OsString,
    },
}

/// What was committed together.
pub(super) type FastCommit = Vec<Change>;

/// Reads the fast commits on top of the log, whose next transaction is `next`.
///
/// # Errors
/// `Corrupt` for a commit that has its end and is damaged all the same, `Unsupported` for features that are not known,
/// and whatever kept the blocks from being read.
pub(super) fn read(place: &Place, area: Range<u64>, next: u32) -> Result<Vec<FastCommit>> {
    if (area.end - area.start).saturating_mul(place.block_bytes()) > MAX_AREA_BYTES {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the journal has a strange amount of fast commits",
        ));
    }
    let mut parser = Parser {
        next,
        sum: 0,
        started: false,
        open: Vec::new(),
        done: Vec::new(),
    };
    let mut blocks = Blocks::new(place);
    for block in area {
        if !parser.block(blocks.get(block)?)? {
            break;
        }
    }
    if !parser.open.is_empty() {
        tracing::warn!(
            "ext: the last fast commit of the journal is incomplete; the file system is shown as it was before"
        );
    }
    Ok(parser.done)
}

struct Parser {
    next: u32,
    /// The sum of the commit so far.
    sum: u32,
    /// The first tag says which transaction it is all on top of.
    started: bool,
    open: FastCommit,
    done: Vec<FastCommit>,
}

impl Parser {
    /// Reads the tags of a block; whether more may follow.
    fn block(&mut self, block: &[u8]) -> Result<bool> {
        let mut at = 0;
        while let Some(head) = block.get(at..at + TAG_BYTES) {
            let (tag, len) = (le16(head, 0), usize::from(le16(head, 2)));
            let Some(whole) = block.get(at..at + TAG_BYTES + len) else {
                return Ok(false);
            };
            at += whole.len();
            let Some(value) = whole.get(TAG_BYTES..) else {
                return Ok(false);
            };
            if !self.started && tag != HEAD {
                return Ok(false);
            }
            match tag {
                HEAD => {
                    if len < 8 || le32(value, 4) != self.next {
                        return Ok(false);
                    }
                    let features = le32(value, 0);
                    if features != 0 {
                        return Err(Error::new(
                            ErrorKind::Unsupported,
                            format!(
                                "the journal has fast commits with unsupported features ({features:#x})"
                            ),
                        ));
                    }
                    self.started = true;
                }
                PAD => {}
                TAIL => {
                    if len < 8 {
                        return Ok(false);
                    }
                    let Some(summed) = whole.get(..TAG_BYTES + 4) else {
                        return Ok(false);
                    };
                    let sum = crc32c_update(self.sum, summed);
                    if le32(value, 0) != self.next {
                        return Ok(false);
                    }
                    // It is written when all before it has reached the disk.
                    if le32(value, 4) != sum {
                        return Err(Error::corrupt(
                            "a fast commit of the journal has a wrong checksum; without it an older state would be shown",
                        ));
                    }
                    self.done.push(std::mem::take(&mut self.open));
                    self.sum = 0;
                    continue;
                }
                _ => match change(tag, value) {
                    Some(change) => self.open.push(change),
                    None => return Ok(false),
                },
            }
            self.sum = crc32c_update(self.sum, whole);
        }
        Ok(true)
    }
}

/// What a tag says, if it can.
fn change(tag: u16, value: &[u8]) -> Option<Change> {
    let inode = le32(value, 0);
    let named = |value: &[u8]| {
        let name = value
            .get(8..)
            .filter(|name| !name.is_empty() && name.len() <= 255)?;
        Some((inode, le32(value, 4), OsString::from_vec(name.to_vec())))
    };
    Some(match tag {
        ADD_RANGE if value.len() == 16 => {
            let first = u64::from(le32(value, 4));
            let stored = le16(value, 8);
            let start = u64::from(le16(value, 10)) << 32 | u64::from(le32(value, 12));
            let (len, written) = match stored {
                ..=MAX_WRITTEN => (stored, true),
                _ => (stored - MAX_WRITTEN, false),
            };
            Change::Range {
                inode,
                blocks: first..first + u64::from(len),
                physical: written.then_some(start),
            }
        }
        DEL_RANGE if value.len() == 12 => {
            let first = u64::from(le32(value, 4));
            Change::Range {
                inode,
                blocks: first..first + u64::from(le32(value, 8)),
                physical: None,
            }
        }
        CREATE | LINK => {
            let (parent, inode, name) = named(value)?;
            Change::Link {
                parent,
                inode,
                name,
                is_new: tag == CREATE,
            }
        }
        UNLINK => {
            let (parent, inode, name) = named(value)?;
            Change::Unlink {
                parent,
                inode,
                name,
            }
        }
        INODE => Change::Inode {
            inode,
            raw: value.get(4..).filter(|raw| raw.len() >= 128)?.to_vec(),
        },
        _ => return None,
    })
}
