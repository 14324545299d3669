//! Alias files: XO names a VHD directory by a small file that holds its relative path.

use crate::error::{Error, Result};
use crate::store::{Meta, Store, StorePath, read_listed_as};

/// Ending of alias files.
const ALIAS_SUFFIX: &str = ".alias.vhd";

/// Longest alias file, as XO writes them.
const MAX_ALIAS_BYTES: u64 = 1024;

/// Whether a path is named as an alias is.
pub(in crate::image) fn is_alias(path: &StorePath) -> bool {
    path.file_name().ends_with(ALIAS_SUFFIX)
}

/// Where the alias at `path` leads; `listed` is its state if a listing has just told it.
///
/// # Errors
/// `NotFound` when it is not there, `Corrupt` when it leads nowhere.
pub(in crate::image) fn resolve(
    store: &dyn Store,
    path: &StorePath,
    listed: Option<&Meta>,
) -> Result<StorePath> {
    read_listed_as(store, path, MAX_ALIAS_BYTES, listed, |text, _| {
        target_of(path, &text)
    })
}

fn target_of(path: &StorePath, text: &[u8]) -> Result<StorePath> {
    let corrupt = |what: &str| Error::corrupt(what).with_object(path);
    let target = std::str::from_utf8(text)
        .map_err(|_| corrupt("alias is not text"))?
        .trim_end_matches(['\n', '\r']);
    if target.is_empty() {
        return Err(corrupt("alias is empty"));
    }
    let target = path
        .parent()
        .join(target)
        .map_err(|e| e.with_object(path))?;
    if is_alias(&target) {
        return Err(corrupt("alias points to another alias"));
    }
    Ok(target)
}
