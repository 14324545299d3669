//! The log of a journal: which blocks its committed transactions hold newer than the file system does.
//!
//! One pass over the log. What was revoked is known at its end only, so the blocks are collected first.

use std::collections::{BTreeMap, HashMap};

use super::place::{Blocks, Place};
use super::superblock::{Checksums, JournalSuperblock, MAGIC};
use crate::error::{Error, Result};
use crate::volume::bits::{be32, crc32_be_update, crc32c_update, has};

const HEADER_BYTES: usize = 12;
const TAIL_BYTES: usize = 4;
const UUID_BYTES: usize = 16;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;
/// In a commit block: the kind of its sum, the length of it, the sum, and the time in seconds and nanoseconds.
const COMMIT_KIND: usize = 12;
const COMMIT_SUM: usize = 16;
const COMMIT_SECONDS: usize = 48;
const COMMIT_NANOSECONDS: usize = 56;

/// A block of the journal that counts in place of one of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    /// Which block of the journal.
    pub block: u64,
    /// Its first four bytes are the magic number of the journal and are not stored.
    pub escaped: bool,
}

/// What a log holds.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// By the blocks of the file system.
    pub moved: BTreeMap<u64, Source>,
    /// The number of the transaction that would come next.
    pub next: u32,
}

#[derive(Debug)]
struct Write {
    sequence: u32,
    target: u64,
    source: Source,
    sound: bool,
}

/// A tag of a descriptor block.
struct Tag {
    target: u64,
    escaped: bool,
    sum: u32,
}

/// A transaction while it is read.
#[derive(Default)]
struct Open {
    writes: Vec<Write>,
    revoked: Vec<u64>,
    /// The sum of all blocks, where that is what proves them.
    sum: Option<u32>,
    /// Why it does not count.
    damaged: Option<&'static str>,
}

/// Whether `a` comes after `b`: transactions are numbered in a circle.
fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Reads the log.
///
/// # Errors
/// `Corrupt` when it makes no sense: also when a transaction has its commit and is damaged all the same. A commit is
/// written when all before it has reached the disk, so it is not one that was being written, and without it an older
/// state would be shown. Where commits may come before what they commit, only one that is followed by a sound one is
/// known to be damaged.
pub(super) fn read(place: &Place, superblock: &JournalSuperblock) -> Result<Log> {
    let mut reader = Reader {
        blocks: Blocks::new(place),
        superblock,
        at: superblock.start,
        left: superblock.end - superblock.first,
    };
    let mut writes: Vec<Write> = Vec::new();
    let mut revoked: HashMap<u64, u32> = HashMap::new();
    let mut sequence = superblock.sequence;
    let mut open = Open::default();
    // The first transaction that does not count, and why.
    let mut failed: Option<(u32, &'static str)> = None;
    let mut last_time = (0, 0);
    while superblock.start != 0 && reader.left > 0 {
        let block = reader.blocks.get(reader.at)?.to_vec();
        if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
            break;
        }
        reader.step();
        match be32(&block, 4) {
            DESCRIPTOR => reader.descriptor(&block, sequence, &mut open)?,
            REVOKE => reader.revoke(&block, &mut open),
            COMMIT => {
                let ended = std::mem::take(&mut open);
                let damaged = ended
                    .damaged
                    .or_else(|| reader.commit_fault(&block, &ended))
                    .or_else(|| reader.torn(&ended));
                let time = commit_time(&block);
                match (damaged, failed) {
                    (None, Some((failed, why))) => {
                        return Err(Error::corrupt(format!(
                            "transaction {failed} of the journal is damaged ({why}), and later ones are not"
                        )));
                    }
                    (None, None) => {
                        for block in ended.revoked {
                            let known = revoked.entry(block).or_insert(sequence);
                            if is_after(sequence, *known) {
                                *known = sequence;
                            }
                        }
                        writes.extend(ended.writes);
                        last_time = time;
                    }
                    // Left over from a file system that was here before, as it is from before the last one.
                    (Some(_), None) if time < last_time => break,
                    (Some(why), None) if !superblock.asynchronous => {
                        return Err(Error::corrupt(format!(
                            "transaction {sequence} of the journal is damaged ({why}); without it an older state would be shown"
                        )));
                    }
                    (Some(why), None) => failed = Some((sequence, why)),
                    (Some(_), Some(_)) => {}
                }
                sequence = sequence.wrapping_add(1);
            }
            _ => break,
        }
    }
    if let Some((failed, why)) = failed {
        tracing::warn!(
            "ext: the last transaction of the journal ({failed}) is incomplete ({why}); the file system is shown as it was before"
        );
        sequence = failed;
    }
    let moved = last_of_each(writes, &revoked)?;
    Ok(Log {
        moved,
        next: sequence,
    })
}

/// When a transaction was committed.
fn commit_time(block: &[u8]) -> (u64, u32) {
    let high = u64::from(be32(block, COMMIT_SECONDS));
    let seconds = high << 32 | u64::from(be32(block, COMMIT_SECONDS + 4));
    (seconds, be32(block, COMMIT_NANOSECONDS))
}

/// The newest write of each block that was not revoked since.
fn last_of_each(writes: Vec<Write>, revoked: &HashMap<u64, u32>) -> Result<BTreeMap<u64, Source>> {
    let mut moved = BTreeMap::new();
    let mut unsound = HashMap::new();
    for write in writes {
        if let Some(&by) = revoked.get(&write.target)
            && !is_after(write.sequence, by)
        {
            continue;
        }
        moved.insert(write.target, write.source);
        match write.sound {
            true => unsound.remove(&write.target),
            false => unsound.insert(write.target, write.sequence),
        };
    }
    match unsound.into_iter().min() {
        None => Ok(moved),
        Some((block, sequence)) => Err(Error::corrupt(format!(
            "block {block} in transaction {sequence} of the journal has a wrong checksum"
        ))),
    }
}

struct Reader<'a> {
    blocks: Blocks<'a>,
    superblock: &'a JournalSuperblock,
    /// The next block.
    at: u64,
    /// How many blocks may still come before the log meets itself.
    left: u64,
}

impl Reader<'_> {
    fn step(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.at += 1;
        if self.at >= self.superblock.end {
            self.at = self.superblock.first;
        }
    }

    fn has_tails(&self) -> bool {
        matches!(self.superblock.checksums, Checksums::V2 | Checksums::V3)
    }

    /// What a descriptor or revoke block holds before its sum, and whether that sum holds.
    fn body<'b>(&self, block: &'b [u8]) -> (&'b [u8], bool) {
        if !self.has_tails() {
            return (block, true);
        }
        let (body, tail) = block.split_at(block.len() - TAIL_BYTES);
        let sum = crc32c_update(crc32c_update(self.superblock.seed, body), &[0; TAIL_BYTES]);
        (body, sum == be32(tail, 0))
    }

    fn descriptor(&mut self, block: &[u8], sequence: u32, open: &mut Open) -> Result<()> {
        let (body, sound) = self.body(block);
        if !sound {
            open.damaged
                .get_or_insert("a descriptor has a wrong checksum");
        }
        let by_one_sum = self.superblock.checksums == Checksums::V1;
        if by_one_sum {
            open.sum = Some(crc32_be_update(open.sum.unwrap_or(u32::MAX), block));
        }
        for tag in tags(body, self.superblock) {
            if self.left == 0 {
                open.damaged.get_or_insert("it has no end");
                break;
            }
            let source = Source {
                block: self.at,
                escaped: tag.escaped,
            };
            let mut sound = true;
            if self.superblock.checksums != Checksums::None {
                let data = self.blocks.get(self.at)?;
                if by_one_sum {
                    open.sum = open.sum.map(|sum| crc32_be_update(sum, data));
                } else {
                    let seed = crc32c_update(self.superblock.seed, &sequence.to_be_bytes());
                    let sum = crc32c_update(seed, data);
                    sound = match self.superblock.checksums {
                        Checksums::V2 => sum & 0xFFFF == tag.sum,
                        _ => sum == tag.sum,
                    };
                }
            }
            open.writes.push(Write {
                sequence,
                target: tag.target,
                source,
                sound,
            });
            self.step();
        }
        Ok(())
    }

    fn revoke(&self, block: &[u8], open: &mut Open) {
        let (body, sound) = self.body(block);
        let used = be32(block, HEADER_BYTES) as usize;
        let records = body.get(HEADER_BYTES + 4..used);
        let (Some(records), true) = (records, sound) else {
            let why = match sound {
                true => "a revoke block has a wrong length",
                false => "a revoke block has a wrong checksum",
            };
            open.damaged.get_or_insert(why);
            return;
        };
        let size = if self.superblock.wide { 8 } else { 4 };
        open.revoked
            .extend(records.chunks_exact(size).map(|record| {
                let number = u64::from(be32(record, 0));
                match self.superblock.wide {
                    true => number << 32 | u64::from(be32(record, 4)),
                    false => number,
                }
            }));
    }

    /// What is wrong with a commit block.
    fn commit_fault(&self, block: &[u8], open: &Open) -> Option<&'static str> {
        let stored = be32(block, COMMIT_SUM);
        let sound = match self.superblock.checksums {
            Checksums::None => true,
            Checksums::V1 => {
                // Without a sum: written while the option was off.
                has(block, COMMIT_KIND, &[1, 4]) && stored == open.sum.unwrap_or(u32::MAX)
                    || has(block, COMMIT_KIND, &[0, 0]) && stored == 0
            }
            Checksums::V2 | Checksums::V3 => {
                let mut blank = block.to_vec();
                let sum = blank.get_mut(COMMIT_SUM..COMMIT_SUM + 4);
                sum.map(|sum| sum.fill(0)).is_some()
                    && crc32c_update(self.superblock.seed, &blank) == stored
            }
        };
        (!sound).then_some("its commit has a wrong checksum")
    }

    /// Where a commit may reach the disk before what it commits: whether that has not.
    fn torn(&self, open: &Open) -> Option<&'static str> {
        let torn = self.superblock.asynchronous && open.writes.iter().any(|write| !write.sound);
        torn.then_some("a block has a wrong checksum")
    }
}

/// The tags of a descriptor block (`journal_block_tag_s`, `journal_block_tag3_s`).
fn tags(body: &[u8], superblock: &JournalSuperblock) -> Vec<Tag> {
    let size = match (superblock.checksums, superblock.wide) {
        (Checksums::V3, _) => 16,
        (Checksums::V2, true) => 14,
        (Checksums::V2, false) => 10,
        (_, true) => 12,
        (_, false) => 8,
    };
    let mut tags = Vec::new();
    let mut at = HEADER_BYTES;
    while let Some(raw) = body.get(at..at + size) {
        at += size;
        let (flags, sum) = match superblock.checksums {
            Checksums::V3 => (be32(raw, 4), be32(raw, 12)),
            _ => (be32(raw, 4) & 0xFFFF, be32(raw, 4) >> 16),
        };
        let high = if superblock.wide { be32(raw, 8) } else { 0 };
        tags.push(Tag {
            target: u64::from(high) << 32 | u64::from(be32(raw, 0)),
            escaped: flags & TAG_ESCAPED != 0,
            sum,
        });
        if flags & TAG_SAME_UUID == 0 {
            at += UUID_BYTES;
        }
        if flags & TAG_LAST != 0 {
            break;
        }
    }
    tags
}
