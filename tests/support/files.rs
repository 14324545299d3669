//! Writing files with holes: runs of zeros are left out, so that what is huge only looks huge.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE_BYTES: usize = 4096;

/// Writes `bytes` at `offset`, leaving whole zero pages of it unwritten; the caller sets the length.
///
/// The place must not hold other data yet: zeros are left out, not written over it.
pub fn write_sparse_at(file: &File, bytes: &[u8], offset: u64) {
    let zeros = [0; PAGE_BYTES];
    let is_zero = |page: &[u8]| page == &zeros[..page.len()];
    let mut start = 0;
    while start < bytes.len() {
        let end = (start + PAGE_BYTES).min(bytes.len());
        if is_zero(&bytes[start..end]) {
            start = end;
            continue;
        }
        let mut stop = end;
        while stop < bytes.len() {
            let next = (stop + PAGE_BYTES).min(bytes.len());
            if is_zero(&bytes[stop..next]) {
                break;
            }
            stop = next;
        }
        file.write_all_at(&bytes[start..stop], offset + start as u64)
            .unwrap();
        start = stop;
    }
}

/// Creates `path` (and its directories) with the given content, with holes where it is zero.
pub fn write_file(path: &Path, bytes: &[u8]) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap();
    }
    let file = File::create(path).unwrap();
    write_sparse_at(&file, bytes, 0);
    file.set_len(bytes.len() as u64).unwrap();
}

/// Creates a file of `len_bytes` that holds nothing but a hole.
pub fn write_hole(path: &Path, len_bytes: u64) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap();
    }
    File::create(path).unwrap().set_len(len_bytes).unwrap();
}
