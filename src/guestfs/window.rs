//! A guest file that its reader can only give in pieces, at a cost per call.
//!
//! Readers that unpack (compressed NTFS) do the work of a whole unit, and of finding it, for every call. A
//! file is read here in windows of 1 MiB, and the last few are kept, so that a kernel reading 128 KiB at a
//! time pays once per window. Of a damaged window, what is asked for is read by itself: only the damaged
//! units of it fail.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ReadAt, check_range, read_pieces};

/// A multiple of every unit of compression (64 KiB).
const WINDOW_BYTES: u64 = 1 << 20;
/// Windows kept by one open file; readers on several threads need more than one.
const WINDOWS: usize = 4;

/// Gives a part of a file.
pub trait WindowRead: Send + Sync {
    /// Fills the buffer with the bytes at `offset`, which all lie within the file.
    fn read_window(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// The extent at an offset within the file; its end may lie behind that of the file.
    fn extent(&self, offset: u64) -> Result<Extent>;
}

/// A window's number and its bytes, `None` where they are damaged.
type Kept = (u64, Option<Arc<[u8]>>);

/// A file in windows.
pub struct WindowFile<S> {
    source: S,
    len_bytes: u64,
    /// The one used last in front.
    kept: Mutex<Vec<Kept>>,
}

impl<S: WindowRead> WindowFile<S> {
    /// A file of `len_bytes` bytes.
    ///
    /// # Errors
    /// `Corrupt` for a length that no file can have.
    pub fn new(source: S, len_bytes: u64) -> Result<Self> {
        if i64::try_from(len_bytes).is_err() {
            return Err(Error::corrupt("a file says it has more than 2^63 bytes"));
        }
        Ok(WindowFile {
            source,
            len_bytes,
            kept: Mutex::new(Vec::new()),
        })
    }

    /// A window, `None` for one that is damaged.
    fn window(&self, number: u64) -> Result<Option<Arc<[u8]>>> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(index) = kept.iter().position(|(known, _)| *known == number) {
                let found = kept.remove(index);
                let bytes = found.1.clone();
                kept.insert(0, found);
                return Ok(bytes);
            }
        }
        let start = number * WINDOW_BYTES;
        let mut bytes = vec![0; WINDOW_BYTES.min(self.len_bytes - start) as usize];
        let bytes: Option<Arc<[u8]>> = match self.source.read_window(&mut bytes, start) {
            Ok(()) => Some(bytes.into()),
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            Err(error) => return Err(error),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(WINDOWS - 1);
        kept.insert(0, (number, bytes.clone()));
        Ok(bytes)
    }
}

impl<S: WindowRead> ReadAt for WindowFile<S> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let locate = |at: u64| {
            let start = at - at % WINDOW_BYTES;
            let window = self.window(at / WINDOW_BYTES)?;
            Ok((window, self.len_bytes.min(start + WINDOW_BYTES)))
        };
        read_pieces(buf, offset, locate, |window, now, offset| {
            let Some(window) = window else {
                return self.source.read_window(now, offset);
            };
            let within = (offset % WINDOW_BYTES) as usize;
            now.copy_from_slice(&window[within..within + now.len()]);
            Ok(())
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let extent = self.source.extent(offset)?;
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

    struct Counted(AtomicUsize);
    impl WindowRead for Counted {
        fn read_window(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            for (index, byte) in buf.iter_mut().enumerate() {
                *byte = ((offset as usize + index) % 251) as u8;
            }
            Ok(())
        }
        fn extent(&self, _: u64) -> Result<Extent> {
            Ok(Extent {
                kind: ExtentKind::Data,
                end: u64::MAX,
            })
        }
    }

    #[test]
    fn sequential_reads_cost_one_call_per_window() {
        let len = 3 * WINDOW_BYTES + 77;
        let file = WindowFile::new(Counted(AtomicUsize::new(0)), len).unwrap();
        let mut offset = 0;
        let mut buf = vec![0; 100_000];
        while offset < len {
            let take = (len - offset).min(buf.len() as u64) as usize;
            file.read_exact_at(&mut buf[..take], offset).unwrap();
            assert!((0..take).all(|i| buf[i] == ((offset as usize + i) % 251) as u8));
            offset += take as u64;
        }
        assert_eq!(file.source.0.load(Ordering::Relaxed), 4);
        assert!(file.read_exact_at(&mut buf, len - 1).is_err());
        assert_eq!(file.extent_at(5).unwrap().end, len);
        assert!(file.extent_at(len).is_err());
    }

    /// A file with one bad byte, that kind of bad, and how many bytes were asked of it.
    struct Damaged(u64, ErrorKind, AtomicUsize);
    impl WindowRead for Damaged {
        fn read_window(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            self.2.fetch_add(buf.len(), Ordering::Relaxed);
            buf.fill(7);
            match (offset..offset + buf.len() as u64).contains(&self.0) {
                true => Err(Error::new(self.1, "bad")),
                false => Ok(()),
            }
        }
        fn extent(&self, _: u64) -> Result<Extent> {
            unreachable!()
        }
    }

    #[test]
    fn only_what_is_damaged_fails() {
        let len = 2 * WINDOW_BYTES;
        let bad = WINDOW_BYTES + 5000;
        let file = |kind| WindowFile::new(Damaged(bad, kind, AtomicUsize::new(0)), len).unwrap();
        let damaged = file(ErrorKind::Corrupt);
        let mut buf = [0; 4096];
        for (offset, is_read) in [
            (WINDOW_BYTES - 4000, true),
            (WINDOW_BYTES, true),
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
        // Both windows once, and what was asked of the second one, by itself.
        let asked = damaged.source.2.load(Ordering::Relaxed) as u64;
        assert_eq!(asked, len + 96 + 6 * 4096);
        // What may pass is no damage.
        let away = file(ErrorKind::Transient);
        for asked in 1..3 {
            assert!(away.read_exact_at(&mut buf, WINDOW_BYTES).is_err());
            let all = away.source.2.load(Ordering::Relaxed) as u64;
            assert_eq!(all, asked * WINDOW_BYTES);
        }
    }
}
