//! A disk read by many at once without saying who they are: guest file systems, mostly.
//!
//! Each sequence that shows itself gets a [`DiskReader`] of its own, and with it read-ahead; all
//! else goes through the cache. A reader holds on to blocks, so there are only a few.

use std::sync::{Arc, Mutex};

use super::disk::Disk;
use super::reader::DiskReader;
use crate::error::Result;
use crate::io::{Extent, ReadAt, check_range};
use crate::sync;

/// Sequences followed at once.
const MAX_STREAMS: usize = 4;
/// Ends of recent reads that a sequence may begin from.
const MAX_ENDS: usize = 32;
/// A read that begins at most this far behind the end of another continues it: file systems leave
/// out metadata blocks between the pieces of a file.
const GAP_BYTES: u64 = 256 << 10;

/// See the module.
pub struct DiskStreams {
    disk: Arc<Disk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    ends: Vec<u64>,
    /// Least recently used first, each with the end of its last read.
    streams: Vec<(u64, Arc<DiskReader>)>,
}

fn continues(offset: u64, end: u64) -> bool {
    offset.checked_sub(end).is_some_and(|gap| gap <= GAP_BYTES)
}

impl DiskStreams {
    /// A view of the disk with no sequence going on.
    pub fn new(disk: Arc<Disk>) -> Self {
        DiskStreams {
            disk,
            state: Mutex::default(),
        }
    }

    /// The reader whose sequence this read continues, if it continues one.
    fn stream(&self, offset: u64, len: u64) -> Option<Arc<DiskReader>> {
        let mut state = sync::lock(&self.state);
        let end = offset.saturating_add(len);
        let known = state
            .streams
            .iter()
            .position(|(last, _)| continues(offset, *last));
        if let Some(at) = known {
            let (_, reader) = state.streams.remove(at);
            state.streams.push((end, Arc::clone(&reader)));
            return Some(reader);
        }
        let begun = state.ends.iter().position(|last| continues(offset, *last));
        if let Some(at) = begun {
            state.ends.remove(at);
            if state.streams.len() >= MAX_STREAMS {
                state.streams.remove(0);
            }
            let reader = Arc::new(self.disk.reader());
            state.streams.push((end, Arc::clone(&reader)));
            return Some(reader);
        }
        if state.ends.len() >= MAX_ENDS {
            state.ends.remove(0);
        }
        state.ends.push(end);
        None
    }
}

impl ReadAt for DiskStreams {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes())?;
        let Some(reader) = self.stream(offset, buf.len() as u64) else {
            return self.disk.read_exact_at(buf, offset);
        };
        reader.read_exact_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.disk.extent_at(offset)
    }
}
