//! Snapshots of ordinary logical volumes: the origin, but for the chunks that a store has copies of.
//!
//! The store is a volume of its own. Its first chunk is a header; then follow areas, each a chunk of pairs
//! (chunk of the origin, chunk of the store) and the chunks that the pairs tell of. The first pair without a
//! chunk of the store ends it. Layout: `dm-snap-persistent.c` of Linux.

use std::sync::Arc;

use super::super::bits::{le32, le64};
use super::pieces::{Budget, Pieces, extent};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ReadAt, check_range, read_pieces};

const MAGIC: u32 = 0x7041_6E53;
const VERSION: u32 = 1;
const SECTOR_BYTES: u64 = 512;
const PAIR_BYTES: u64 = 16;
/// Chunks of more than this are not believed (16 MiB).
const MAX_CHUNK_BYTES: u64 = 16 << 20;

fn bad(message: &str) -> Error {
    Error::corrupt(format!("snapshot: {message}"))
}

/// Chunks of the origin that follow one another in the store, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    old: u64,
    new: u64,
    count: u64,
}

/// A snapshot.
pub struct Snapshot {
    origin: Arc<dyn ReadAt>,
    store: Arc<dyn ReadAt>,
    chunk_bytes: u64,
    len_bytes: u64,
    /// In the order of the origin. Read when it is needed for the first time: a store has one chunk of
    /// pairs for some hundred chunks of data.
    runs: Pieces<Run>,
}

impl Snapshot {
    /// A snapshot of `len_bytes`. Reads the store's header.
    ///
    /// # Errors
    /// `Corrupt` when the store has none; `Unsupported` when the snapshot was given up (its store was full), or
    /// is of a form that is not known.
    pub fn open(
        origin: Arc<dyn ReadAt>,
        store: Arc<dyn ReadAt>,
        len_bytes: u64,
        budget: Arc<Budget>,
    ) -> Result<Snapshot> {
        let mut header = [0; 16];
        store.read_exact_at(&mut header, 0)?;
        if le32(&header, 0) != MAGIC {
            return Err(bad("its store does not begin with a header"));
        }
        let refuse = |message: &str| Err(Error::new(ErrorKind::Unsupported, message));
        if le32(&header, 4) == 0 {
            return refuse("the snapshot is invalid: its store was full, or could not be written");
        }
        if le32(&header, 8) != VERSION {
            return refuse("the snapshot's store is of an unknown version");
        }
        let chunk_bytes = u64::from(le32(&header, 12)) * SECTOR_BYTES;
        if !chunk_bytes.is_power_of_two() || chunk_bytes > MAX_CHUNK_BYTES {
            return Err(bad("the size of its chunks makes no sense"));
        }
        Ok(Snapshot {
            origin,
            store,
            chunk_bytes,
            len_bytes,
            runs: Pieces::new(budget),
        })
    }

    fn read_runs(&self, budget: &Budget) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut area = vec![0; self.chunk_bytes as usize];
        let pairs = self.chunk_bytes / PAIR_BYTES;
        let chunks = self.store.len_bytes() / self.chunk_bytes;
        let mut area_chunk = 1;
        'areas: while area_chunk < chunks {
            self.store
                .read_exact_at(&mut area, area_chunk * self.chunk_bytes)?;
            for index in 0..pairs as usize {
                let at = index * PAIR_BYTES as usize;
                let (old, new) = (le64(&area, at), le64(&area, at + 8));
                if new == 0 {
                    break 'areas;
                }
                if new >= chunks {
                    return Err(bad("a chunk lies past the end of the store"));
                }
                if let Some(last) = runs.last_mut()
                    && last.old.checked_add(last.count) == Some(old)
                    && last.new + last.count == new
                {
                    last.count += 1;
                    continue;
                }
                budget.allows(runs.len() + 1)?;
                runs.push(Run { old, new, count: 1 });
            }
            area_chunk += pairs + 1;
        }
        runs.sort_by_key(|run| run.old);
        let is_apart = runs
            .windows(2)
            .all(|pair| pair[0].old.saturating_add(pair[0].count) <= pair[1].old);
        if !is_apart {
            return Err(bad("its store has two copies of a chunk"));
        }
        Ok(runs)
    }

    /// Whether the byte at `offset` is in the store, where there or in the origin, and up to where that
    /// can be said.
    fn place(&self, offset: u64) -> Result<((bool, u64), u64)> {
        let runs = self.runs.get(|budget| self.read_runs(budget))?;
        let (chunk, within) = (offset / self.chunk_bytes, offset % self.chunk_bytes);
        let behind = runs.partition_point(|run| run.old <= chunk);
        let end_of = |chunk: u64| chunk.saturating_mul(self.chunk_bytes).min(self.len_bytes);
        if let Some(run) = behind.checked_sub(1).map(|index| runs[index])
            && chunk - run.old < run.count
        {
            let at = (run.new + (chunk - run.old)) * self.chunk_bytes + within;
            return Ok(((true, at), end_of(run.old.saturating_add(run.count))));
        }
        let end = runs.get(behind).map_or(u64::MAX, |run| run.old);
        Ok(((false, offset), end_of(end)))
    }

    fn side(&self, is_stored: bool) -> &dyn ReadAt {
        match is_stored {
            true => &*self.store,
            false => &*self.origin,
        }
    }
}

impl ReadAt for Snapshot {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        read_pieces(
            buf,
            offset,
            |at| self.place(at),
            |(is_stored, at), now, _| self.side(is_stored).read_exact_at(now, at),
        )
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        extent(&*self.origin, self.place(offset)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 512;

    /// A store with these pairs, whose chunk `n` is full of `n`.
    fn store(valid: u32, pairs: &[(u64, u64)], chunks: usize) -> Vec<u8> {
        let mut store: Vec<u8> = (0..chunks).flat_map(|n| [n as u8; CHUNK]).collect();
        store[..2 * CHUNK].fill(0);
        for (at, word) in [(0, MAGIC), (4, valid), (8, VERSION), (12, 1)] {
            store[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (index, (old, new)) in pairs.iter().enumerate() {
            let area = index / 32;
            let at = (1 + area * 33) * CHUNK + index % 32 * 16;
            store[at..at + 8].copy_from_slice(&old.to_le_bytes());
            store[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
        }
        store
    }

    fn open(store: Vec<u8>) -> Result<Snapshot> {
        let origin = Arc::new(vec![0xEE; 10 * CHUNK]);
        Snapshot::open(origin, Arc::new(store), 10 * CHUNK as u64, Arc::default())
    }

    fn chunks(snapshot: &Snapshot) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 10 * CHUNK];
        snapshot.read_exact_at(&mut bytes, 0)?;
        Ok(bytes.chunks(CHUNK).map(|chunk| chunk[0]).collect())
    }

    #[test]
    fn what_the_store_has_goes_before_the_origin() {
        let snapshot = open(store(1, &[(4, 2), (5, 3), (0, 4), (9, 7)], 9)).unwrap();
        let mut expected = [0xEE; 10];
        (expected[4], expected[5], expected[0], expected[9]) = (2, 3, 4, 7);
        assert_eq!(chunks(&snapshot).unwrap(), expected);
        assert_eq!(snapshot.extent_at(4 * 512).unwrap().end, 6 * 512);
        assert_eq!(snapshot.extent_at(512).unwrap().end, 4 * 512);
    }

    #[test]
    fn invalid_and_damaged_snapshots_are_refused() {
        assert!(open(store(0, &[], 9)).is_err());
        assert!(open(vec![0; 9 * CHUNK]).is_err());
        for pairs in [[(1, 9), (2, 2)], [(1, 2), (1, 3)]] {
            let snapshot = open(store(1, &pairs, 9)).unwrap();
            assert!(chunks(&snapshot).is_err(), "{pairs:?}");
        }
        let mut odd = store(1, &[], 9);
        odd[12] = 3;
        assert!(open(odd).is_err());
    }
}
