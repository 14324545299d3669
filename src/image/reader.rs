//! One reader of a disk: notices when it reads in sequence, and has blocks decoded before it asks.
//!
//! The kernel asks for 128 KiB to 1 MiB at a time, several requests at once and slightly out of
//! order. A reader in sequence keeps its current block and the blocks on their way to itself, so
//! that a scan leaves no traces of use in the cache. What all readers keep comes out of one budget;
//! those that have stopped reading lose it to those that read.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::chain::{BlockSource, Chain, Owner, Source};
use super::disk::Disk;
use super::readahead::{Ahead, Recent, Stream};
use crate::cache::{Access, Block, BlockKey};
use crate::error::Result;
use crate::io::{Chunk, Extent, ReadAt, check_range};
use crate::sync;

/// Requests that may overtake each other this far still count as one sequence.
const SLACK_BYTES: u64 = 4 << 20;

/// Bytes in sequence after which reading ahead begins: more than a program reads of a partition
/// table or a superblock.
const SEQUENCE_BYTES: u64 = 384 << 10;

/// Most look-ups of owners for one request; holes are passed in such steps.
const MAX_PLANNED_UNITS: u64 = 4096;

/// One reader's view of a disk. Used from several threads at once.
pub struct DiskReader {
    disk: Arc<Disk>,
    stream: Arc<Mutex<Stream>>,
}

impl Disk {
    /// A reader with a position of its own.
    pub fn reader(self: &Arc<Self>) -> DiskReader {
        DiskReader::new(Arc::clone(self))
    }
}

impl DiskReader {
    fn new(disk: Arc<Disk>) -> Self {
        let stream = Arc::default();
        disk.context().readers.add(&stream);
        DiskReader { disk, stream }
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        sync::lock(&self.stream)
    }

    /// The disk that is read.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    fn read_chain(
        &self,
        chain: &Chain,
        offset: u64,
        buf: &mut [u8],
        access: Access,
    ) -> Result<Chunk> {
        let len = buf.len() as u64;
        let window = Window {
            reader: self,
            access,
        };
        if let Some((link, block)) = self.disk.single_block(chain, offset, len)? {
            let source = window.block(chain, link, block)?;
            if let Source::Loaded(loaded) = source
                && loaded.full
            {
                let image = chain.links[link].image();
                let within = offset & (u64::from(image.block_size()) - 1);
                let start = image.facts.bitmap_bytes as usize + within as usize;
                return Ok(Chunk::Shared(
                    loaded.bytes.slice(start..start + len as usize),
                ));
            }
        }
        let io = self.disk.context().io();
        chain.read(&io, &window, offset, buf)?;
        Ok(Chunk::Filled)
    }

    /// Whether a block is in memory.
    fn has(&self, key: BlockKey) -> bool {
        let stream = self.stream();
        stream.recent.iter().any(|r| r.key == key)
            || stream
                .ahead
                .iter()
                .any(|a| a.key == key && a.ticket.is_ready())
            || self
                .disk
                .context()
                .block_cache()
                .get(key, Access::Sequential)
                .is_some()
    }

    /// Notes a request; tells whether it belongs to a sequence.
    fn advance(&self, offset: u64, len: u64) -> Access {
        let mut stream = self.stream();
        let stream = &mut *stream;
        stream.used = Some(Instant::now());
        let near = offset.abs_diff(stream.next) <= SLACK_BYTES && stream.next > 0;
        let first = stream.next == 0 && offset == 0;
        if near || first {
            let end = offset + len;
            // What was skipped was not read: random reads near each other are no sequence.
            stream.sequence += end.saturating_sub(stream.next).min(len);
            stream.next = stream.next.max(end);
        } else {
            stream.next = offset + len;
            stream.sequence = 0;
            stream.planned = 0;
            stream.ahead.clear();
            stream.recent.clear();
        }
        if stream.sequence >= SEQUENCE_BYTES {
            Access::Sequential
        } else {
            Access::Random
        }
    }

    /// Has the blocks after `position` fetched, as far as the sequence so far justifies.
    fn plan(&self, chain: &Arc<Chain>, position: u64) -> Result<()> {
        let context = self.disk.context();
        let mut stream = self.stream();
        if stream.sequence < SEQUENCE_BYTES {
            return Ok(());
        }
        let window = context.window_bytes.min(stream.sequence * 4).max(4 << 20);
        // What the reader has passed, it no longer needs.
        stream
            .ahead
            .retain(|a| a.unit_start + SLACK_BYTES >= position);
        let unit_log2 = chain.unit_log2();
        let unit_bytes = 1u64 << unit_log2;
        let from = stream.planned.max(position).next_multiple_of(unit_bytes);
        let mut pending: u64 = stream.ahead.len() as u64 * unit_bytes.max(2 << 20);
        drop(stream);

        let mut at = from;
        let mut found = Vec::new();
        let mut steps = 0;
        let furthest = position.saturating_add(window.max(unit_bytes) * 8);
        while at < chain.size() && at < furthest && pending < window && steps < MAX_PLANNED_UNITS {
            let unit = at >> unit_log2;
            if let Owner::Link(link) = chain.owner(&context.io(), unit)? {
                let image = chain.links[link].image();
                if image.reads_whole_blocks() {
                    pending += u64::from(image.block_size());
                } else if at >= position.saturating_add(window) {
                    // Nothing counts what the storage itself reads ahead, so it stays near.
                    break;
                }
                let block = chain.block_of_unit(image, unit);
                if found
                    .last()
                    .is_none_or(|&(_, l, b)| (l, b) != (link, block))
                {
                    found.push((at, link, block));
                }
            }
            at += unit_bytes;
            steps += 1;
        }
        if at == from {
            return Ok(());
        }
        let mut stream = self.stream();
        if stream.planned > from {
            // Another request of this reader has planned the same meanwhile.
            return Ok(());
        }
        stream.planned = at;
        let mut in_place = Vec::new();
        for (unit_start, link, block) in found {
            let key = chain.block_key(link, block);
            let image = chain.links[link].image();
            if !image.reads_whole_blocks() {
                in_place.push((image, block));
                continue;
            }
            if stream.ahead.iter().any(|a| a.key == key)
                || context.block_cache().get(key, Access::Sequential).is_some()
                || image.format.has_copy(block)
            {
                continue;
            }
            let bytes = u64::from(image.block_size());
            let submit = || {
                let (chain, disk) = (Arc::clone(chain), Arc::clone(&self.disk));
                let load = move || {
                    disk.context()
                        .load_block(&chain, link, block, Access::Sequential)
                };
                context.ahead.submit(bytes, load)
            };
            let ticket = submit().or_else(|| {
                context.readers.reclaim();
                submit()
            });
            let Some(ticket) = ticket else {
                stream.planned = unit_start;
                break;
            };
            stream.ahead.push_back(Ahead {
                key,
                unit_start,
                ticket,
            });
        }
        drop(stream);
        for (image, block) in in_place {
            image.format.will_read(block);
        }
        Ok(())
    }
}

impl ReadAt for DiskReader {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if let Chunk::Shared(bytes) = self.read_chunk_at(buf, offset)? {
            buf.copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn read_chunk_at(&self, buf: &mut [u8], offset: u64) -> Result<Chunk> {
        let len = buf.len() as u64;
        check_range(offset, len, self.len_bytes())?;
        if buf.is_empty() {
            return Ok(Chunk::Filled);
        }
        let access = self.advance(offset, len);
        self.disk.with_chain(|chain| {
            self.plan(chain, offset + len)?;
            self.read_chain(chain, offset, buf, access)
        })
    }

    fn is_non_blocking(&self, offset: u64, len: usize) -> bool {
        let context = self.disk.context();
        if context.store().traits().remote {
            return false;
        }
        let chain = self.disk.chain();
        if !chain.reads_whole_blocks() {
            return true;
        }
        let len = (len as u64).min(chain.size().saturating_sub(offset));
        match self.disk.single_block(&chain, offset, len) {
            Ok(Some((link, block))) => self.has(chain.block_key(link, block)),
            _ => false,
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.disk.extent_at(offset)
    }
}

/// Blocks for a reader: its own first, then the cache's.
struct Window<'a> {
    reader: &'a DiskReader,
    access: Access,
}

/// Blocks a reader keeps: with requests that overtake each other, the one before and the current.
const RECENT_BLOCKS: usize = 2;

impl BlockSource for Window<'_> {
    fn load(&self, chain: &Chain, link: usize, block: u64) -> Result<Block> {
        let context = self.reader.disk.context();
        context.load_block(chain, link, block, self.access)
    }

    fn block(&self, chain: &Chain, link: usize, block: u64) -> Result<Source> {
        let key = chain.block_key(link, block);
        let mut stream = self.reader.stream();
        if let Some(recent) = stream.recent.iter().find(|r| r.key == key) {
            return Ok(Source::Loaded(recent.block.clone()));
        }
        let again = stream.last.replace(key) == Some(key);
        let access = if again {
            Access::Sequential
        } else {
            self.access
        };
        // A block that is ready is taken over. One that is not may not have been begun: asking the
        // cache joins the work or begins it. One that failed is tried again.
        let ready = stream
            .ahead
            .iter()
            .position(|a| a.key == key && a.ticket.is_ready());
        let taken = ready
            .and_then(|at| stream.ahead.remove(at))
            .and_then(|ahead| ahead.ticket.wait().ok());
        drop(stream);
        let context = self.reader.disk.context();
        let (block, share) = match taken {
            Some((block, share)) => (block, Some(share)),
            None => match context.find_block(chain, link, block, access)? {
                Source::Loaded(block) => (block, None),
                copy @ Source::Copy(_) => return Ok(copy),
            },
        };
        // Who reads at random finds it in the cache again, where it counts as wanted.
        if self.access == Access::Random {
            return Ok(Source::Loaded(block));
        }
        let mut stream = self.reader.stream();
        stream.ahead.retain(|a| a.key != key);
        if !stream.recent.iter().any(|r| r.key == key) {
            if stream.recent.len() >= RECENT_BLOCKS {
                stream.recent.pop_front();
            }
            let share = share.or_else(|| context.ahead.reserve(block.bytes.len() as u64));
            if let Some(share) = share {
                stream.recent.push_back(Recent {
                    key,
                    block: block.clone(),
                    _share: share,
                });
            }
        }
        Ok(Source::Loaded(block))
    }
}
