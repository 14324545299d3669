//! A guest file whose content lies in runs on its volume.
//!
//! The adapter says where a byte lies; the bytes themselves are read straight from the volume, a
//! whole run at a time, so that large files do not pass through a reader's block-sized steps.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};

/// A run of a file: where it ends in the file, and where its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte after the run, in the file; greater than the offset asked for.
    pub end: u64,
    /// The byte on the volume that holds the byte asked for; `None` for a hole.
    pub at: Option<u64>,
}

/// Where the bytes of a file are.
pub trait RunMap: Send + Sync {
    /// The run at `offset`, which is less than the file's length.
    ///
    /// # Errors
    /// `Corrupt` when the file's map makes no sense there.
    fn run_at(&self, offset: u64) -> Result<Run>;
}

/// A file in runs.
pub struct RunFile<M> {
    volume: Arc<dyn ReadAt>,
    map: M,
    len_bytes: u64,
    /// The run that the last read ended in: sequential readers need not walk the map again.
    last: Mutex<Option<(u64, Run)>>,
}

impl<M: RunMap> RunFile<M> {
    /// A file of `len_bytes` bytes on `volume`.
    ///
    /// # Errors
    /// `Corrupt` for a length that no file can have.
    pub fn new(volume: Arc<dyn ReadAt>, map: M, len_bytes: u64) -> Result<Self> {
        if i64::try_from(len_bytes).is_err() {
            return Err(Error::corrupt("a file says it has more than 2^63 bytes"));
        }
        Ok(RunFile {
            volume,
            map,
            len_bytes,
            last: Mutex::new(None),
        })
    }

    fn run_at(&self, offset: u64) -> Result<Run> {
        let last = self.last.lock().map_or(None, |last| *last);
        if let Some((start, run)) = last
            && (start..run.end).contains(&offset)
        {
            return Ok(Run {
                end: run.end,
                at: run.at.map(|at| at + (offset - start)),
            });
        }
        let run = self.map.run_at(offset)?;
        if run.end <= offset {
            return Err(Error::corrupt("a file's map goes backwards"));
        }
        // Where the bytes of the run end on the volume must be a number, too.
        if let Some(at) = run.at
            && at.checked_add(run.end - offset).is_none()
        {
            return Err(Error::corrupt(
                "a file's map points past the end of everything",
            ));
        }
        if let Ok(mut last) = self.last.lock() {
            *last = Some((offset, run));
        }
        Ok(run)
    }
}

impl<M: RunMap> ReadAt for RunFile<M> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let locate = |at| self.run_at(at).map(|run| (run.at, run.end));
        let fill = |place: Option<u64>, now: &mut [u8], _| {
            let Some(at) = place else {
                now.fill(0);
                return Ok(());
            };
            if check_range(at, now.len() as u64, self.volume.len_bytes()).is_err() {
                return Err(Error::corrupt("a file points past the end of its volume"));
            }
            self.volume.read_exact_at(now, at)
        };
        read_pieces(buf, offset, locate, fill)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let run = self.run_at(offset)?;
        Ok(Extent {
            kind: match run.at {
                None => ExtentKind::Hole,
                Some(_) => ExtentKind::Data,
            },
            end: run.end.min(self.len_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map(Vec<(u64, Option<u64>, u64)>);
    impl RunMap for Map {
        fn run_at(&self, offset: u64) -> Result<Run> {
            let (start, at, end) = *self
                .0
                .iter()
                .find(|(start, _, end)| (*start..*end).contains(&offset))
                .ok_or_else(|| Error::corrupt("gap"))?;
            Ok(Run {
                end,
                at: at.map(|at| at + (offset - start)),
            })
        }
    }

    #[test]
    fn runs_and_holes_are_read_in_one_go_and_bad_runs_fail() {
        let volume: Arc<dyn ReadAt> = Arc::new((0..100).collect::<Vec<u8>>());
        let map = Map(vec![
            (0, Some(50), 4),
            (4, None, 6),
            (6, Some(10), 9),
            (9, Some(99), 12),
        ]);
        let file = RunFile::new(volume.clone(), map, 12).unwrap();
        let mut buf = [1; 9];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [50, 51, 52, 53, 0, 0, 10, 11, 12]);
        file.read_exact_at(&mut buf[..2], 1).unwrap();
        assert_eq!(buf[..2], [51, 52]);
        assert!(file.read_exact_at(&mut buf[..3], 9).is_err());
        assert_eq!(file.extent_at(4).unwrap().kind, ExtentKind::Hole);
        let map = Map(vec![(0, Some(u64::MAX - 1), 12)]);
        let file = RunFile::new(volume, map, 12).unwrap();
        assert!(file.read_exact_at(&mut buf, 0).is_err());
    }
}
