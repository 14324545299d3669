//! A guest file that its reader can only give in pieces, at a cost per call.
//!
//! Readers that unpack (compressed NTFS) do the work of a whole unit, and of finding it, for every call. A
//! file is read here in chunks of 1 MiB, and the last few are kept, so that a kernel reading 128 KiB at a
//! time pays once per chunk. Of a damaged chunk, what is asked for is read by itself: only the damaged
//! units of it fail.

use std::sync::Arc;

use super::recent::Recent;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ReadAt, check_range, read_pieces};

/// A multiple of every unit of compression (64 KiB).
const CHUNK_BYTES: u64 = 1 << 20;
/// Chunks kept by one open file; readers on several threads need more than one.
const CHUNKS: usize = 4;

/// A file in chunks.
pub struct ChunkedFile<S> {
    source: S,
    len_bytes: u64,
    /// Chunks by their numbers, `None` for those that are damaged.
    kept: Recent<Option<Vec<u8>>>,
}

impl<S: ReadAt> ChunkedFile<S> {
    /// The file that `source` gives in pieces of any size. (Its extents may end behind its end.)
    ///
    /// # Errors
    /// `Corrupt` for a length that no file can have.
    pub fn new(source: S) -> Result<Self> {
        let len_bytes = source.len_bytes();
        if i64::try_from(len_bytes).is_err() {
            return Err(Error::corrupt("a file says it has more than 2^63 bytes"));
        }
        Ok(ChunkedFile {
            source,
            len_bytes,
            kept: Recent::of_count(CHUNKS),
        })
    }

    /// A chunk, `None` for one that is damaged.
    fn chunk(&self, number: u64) -> Result<Arc<Option<Vec<u8>>>> {
        if let Some(chunk) = self.kept.get(number) {
            return Ok(chunk);
        }
        let start = number * CHUNK_BYTES;
        let mut bytes = vec![0; CHUNK_BYTES.min(self.len_bytes - start) as usize];
        let chunk = match self.source.read_exact_at(&mut bytes, start) {
            Ok(()) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            Err(error) => return Err(error),
        };
        Ok(self.kept.put(number, 1, chunk))
    }
}

impl<S: ReadAt> ReadAt for ChunkedFile<S> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let locate = |at: u64| {
            let start = at - at % CHUNK_BYTES;
            let chunk = self.chunk(at / CHUNK_BYTES)?;
            Ok((chunk, self.len_bytes.min(start + CHUNK_BYTES)))
        };
        read_pieces(buf, offset, locate, |chunk, now, offset| {
            let Some(chunk) = &*chunk else {
                return self.source.read_exact_at(now, offset);
            };
            let within = (offset % CHUNK_BYTES) as usize;
            now.copy_from_slice(&chunk[within..within + now.len()]);
            Ok(())
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let extent = self.source.extent_at(offset)?;
        Ok(Extent {
            end: extent.end.min(self.len_bytes),
            ..extent
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::io::ExtentKind;

    struct Counted(u64, AtomicUsize);
    impl ReadAt for Counted {
        fn len_bytes(&self) -> u64 {
            self.0
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            for (index, byte) in buf.iter_mut().enumerate() {
                *byte = ((offset as usize + index) % 251) as u8;
            }
            Ok(())
        }
        fn extent_at(&self, _: u64) -> Result<Extent> {
            Ok(Extent {
                kind: ExtentKind::Data,
                end: u64::MAX,
            })
        }
    }

    #[test]
    fn sequential_reads_cost_one_call_per_chunk() {
        let len = 3 * CHUNK_BYTES + 77;
        let file = ChunkedFile::new(Counted(len, AtomicUsize::new(0))).unwrap();
        let mut offset = 0;
        let mut buf = vec![0; 100_000];
        while offset < len {
            let take = (len - offset).min(buf.len() as u64) as usize;
            file.read_exact_at(&mut buf[..take], offset).unwrap();
            assert!((0..take).all(|i| buf[i] == ((offset as usize + i) % 251) as u8));
            offset += take as u64;
        }
        assert_eq!(file.source.1.load(Ordering::Relaxed), 4);
        assert!(file.read_exact_at(&mut buf, len - 1).is_err());
        assert_eq!(file.extent_at(5).unwrap().end, len);
        assert!(file.extent_at(len).is_err());
    }

    /// A file with one bad byte, that kind of bad, and how many bytes were asked of it.
    struct Damaged(u64, ErrorKind, AtomicUsize);
    impl ReadAt for Damaged {
        fn len_bytes(&self) -> u64 {
            2 * CHUNK_BYTES
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            self.2.fetch_add(buf.len(), Ordering::Relaxed);
            buf.fill(7);
            match (offset..offset + buf.len() as u64).contains(&self.0) {
                true => Err(Error::new(self.1, "bad")),
                false => Ok(()),
            }
        }
    }

    #[test]
    fn only_what_is_damaged_fails() {
        let len = 2 * CHUNK_BYTES;
        let bad = CHUNK_BYTES + 5000;
        let file = |kind| ChunkedFile::new(Damaged(bad, kind, AtomicUsize::new(0))).unwrap();
        let damaged = file(ErrorKind::Corrupt);
        let mut buf = [0; 4096];
        for (offset, is_read) in [
            (CHUNK_BYTES - 4000, true),
            (CHUNK_BYTES, true),
            (bad - 4096, true),
            (bad - 4095, false),
            (bad, false),
            (bad + 1, true),
            (len - 4096, true),
        ] {
            buf.fill(0);
            assert_eq!(damaged.read_exact_at(&mut buf, offset).is_ok(), is_read);
            assert!(!is_read || buf == [7; 4096], "{offset}");
        }
        // Both chunks once, and what was asked of the second one, by itself.
        let asked = damaged.source.2.load(Ordering::Relaxed) as u64;
        assert_eq!(asked, len + 96 + 6 * 4096);
        // What may pass is no damage.
        let away = file(ErrorKind::Transient);
        for asked in 1..3 {
            assert!(away.read_exact_at(&mut buf, CHUNK_BYTES).is_err());
            let all = away.source.2.load(Ordering::Relaxed) as u64;
            assert_eq!(all, asked * CHUNK_BYTES);
        }
    }
}
