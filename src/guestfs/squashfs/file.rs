//! The content of files: whole blocks, one after the other, and a piece of a shared fragment block.

use std::sync::Arc;

use super::inode::Layout;
use super::table::{Blocks, Superblock, bad, le32, le64};
use crate::error::{ErrorKind, Result};
use crate::guestfs::common::recent::Recent;
use crate::io::{Extent, ExtentKind, ReadAt, read_pieces};

/// The place of a block is found from the last of these before it.
const STEP: usize = 256;
/// Fragment blocks kept unpacked: small files that lie together share one.
const KEPT_FRAGMENTS: usize = 4;

/// The fragment blocks of a volume.
pub struct Fragments {
    table: u64,
    count: u32,
    block_bytes: usize,
    /// Unpacked blocks by their numbers; damaged ones, too, because many files would try them.
    kept: Recent<Result<Vec<u8>>>,
}

impl Fragments {
    pub fn new(superblock: &Superblock) -> Self {
        Fragments {
            table: superblock.fragment_table,
            count: superblock.fragments,
            block_bytes: superblock.block_bytes as usize,
            kept: Recent::of_count(KEPT_FRAGMENTS),
        }
    }

    fn get(&self, blocks: &Blocks, number: u32) -> Result<Arc<Result<Vec<u8>>>> {
        let number = u64::from(number);
        if let Some(block) = self.kept.get(number) {
            return Ok(block);
        }
        if number >= u64::from(self.count) {
            return Err(bad("a file's end is in a fragment that is not there"));
        }
        let entry = blocks.indexed(self.table, number * 16)?.bytes(16)?;
        match blocks.data(le64(&entry, 0), le32(&entry, 8), self.block_bytes) {
            Err(error) if error.kind() != ErrorKind::Corrupt => Err(error),
            block => Ok(self.kept.put(number, 1, block)),
        }
    }
}

/// An open file.
pub struct Content {
    blocks: Arc<Blocks>,
    fragments: Arc<Fragments>,
    layout: Layout,
    /// The size word of each block: 0 for one that was never written.
    words: Vec<u32>,
    /// Where blocks 0, `STEP`, 2 × `STEP` … begin on the volume.
    starts: Vec<u64>,
    block_bytes: u64,
}

impl Content {
    pub fn new(
        blocks: Arc<Blocks>,
        fragments: Arc<Fragments>,
        layout: Layout,
        words: Vec<u32>,
    ) -> Result<Self> {
        let mut starts = Vec::with_capacity(words.len() / STEP + 1);
        let mut at = layout.start;
        for (word, index) in words.iter().zip(0..) {
            if index % STEP == 0 {
                starts.push(at);
            }
            at = at
                .checked_add(stored_bytes(*word))
                .ok_or_else(|| bad("a file's blocks are nowhere"))?;
        }
        let block_bytes = fragments.block_bytes as u64;
        Ok(Content {
            blocks,
            fragments,
            layout,
            words,
            starts,
            block_bytes,
        })
    }

    /// Block `number`, of `len` bytes.
    fn block(&self, number: usize, len: usize) -> Result<Vec<u8>> {
        let word = self.words[number];
        if word == 0 {
            return Ok(vec![0; len]);
        }
        let first = number - number % STEP;
        let before: u64 = self.words[first..number]
            .iter()
            .map(|word| stored_bytes(*word))
            .sum();
        let at = self.starts[number / STEP] + before;
        let bytes = self.blocks.data(at, word, self.block_bytes as usize)?;
        match bytes.len() == len {
            true => Ok(bytes),
            false => Err(bad("a block has another length than its file says")),
        }
    }

    /// The bytes behind the whole blocks.
    fn tail(&self, len: usize) -> Result<Vec<u8>> {
        let Some((fragment, offset)) = self.layout.tail else {
            return Err(bad("a file is longer than its blocks"));
        };
        let block = self.fragments.get(&self.blocks, fragment)?;
        let bytes = block.as_ref().as_ref().map_err(Clone::clone)?;
        bytes
            .get(offset as usize..)
            .and_then(|behind| behind.get(..len))
            .map(<[u8]>::to_vec)
            .ok_or_else(|| bad("a file's end is not in its fragment"))
    }
}

fn stored_bytes(word: u32) -> u64 {
    u64::from(word & 0x00FF_FFFF)
}

impl ReadAt for Content {
    fn len_bytes(&self) -> u64 {
        self.layout.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let locate = |at: u64| {
            let start = at - at % self.block_bytes;
            let len = self.block_bytes.min(self.layout.len_bytes - start) as usize;
            let number = (start / self.block_bytes) as usize;
            let bytes = match number < self.words.len() {
                true => self.block(number, len)?,
                false => self.tail(len)?,
            };
            Ok(((start, bytes), start + len as u64))
        };
        read_pieces(buf, offset, locate, |(start, bytes), now, offset| {
            let within = (offset - start) as usize;
            now.copy_from_slice(&bytes[within..within + now.len()]);
            Ok(())
        })
    }

    /// Blocks that were never written are holes; what is in a fragment is data.
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let number = (offset / self.block_bytes) as usize;
        let Some(words @ [first, ..]) = self.words.get(number..) else {
            return Ok(Extent {
                kind: ExtentKind::Data,
                end: u64::MAX,
            });
        };
        let is_hole = |word: &u32| *word == 0;
        let alike = words.iter().take_while(|w| is_hole(w) == is_hole(first));
        let end = (number + alike.count()) as u64;
        Ok(Extent {
            kind: match is_hole(first) {
                true => ExtentKind::Hole,
                false => ExtentKind::Data,
            },
            end: end.saturating_mul(self.block_bytes),
        })
    }
}
