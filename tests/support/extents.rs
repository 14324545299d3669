//! Where a file has data and where it has holes, as the system tells any program.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// The ranges of data, by `SEEK_DATA` and `SEEK_HOLE`.
pub fn data_ranges(file: &File) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return ranges,
            Err(e) => panic!("SEEK_DATA from {at}: {e}"),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        assert!(end > start);
        ranges.push(start..end);
        at = end;
    }
}

/// Bytes that `st_blocks` says are allocated.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}
