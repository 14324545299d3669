//! Errors of files that Windows compressed.

use crate::error::Error;

pub(super) fn damaged() -> Error {
    bad("a chunk is damaged")
}

pub(super) fn bad(message: &str) -> Error {
    Error::corrupt(format!("ntfs: system compression (WOF): {message}"))
}
