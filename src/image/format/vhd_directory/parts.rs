//! The small parts of a VHD directory, read together where each takes a round trip.

use std::collections::HashMap;
use std::time::SystemTime;

use bytes::Bytes;

use crate::codec::{Filter, MAX_FILTERS_JSON_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::vhd::{FOOTER_BYTES, HEADER_BYTES};
use crate::parallel::parallel_map;
use crate::store::{EntryKind, Meta, Store, StorePath, Validity};

/// The parts that opening needs, as stored.
pub(super) struct Parts {
    pub filter: Result<(Bytes, Meta)>,
    pub footer: Result<(Bytes, Meta)>,
    pub header: Result<(Bytes, Meta)>,
    /// Only where waiting for it later would cost a round trip.
    pub bat: Option<Result<(Bytes, Meta)>>,
}

impl Parts {
    /// The latest time of modification among those that were read.
    pub fn newest(&self) -> Option<SystemTime> {
        let parts = [&self.filter, &self.footer, &self.header];
        let read = parts.into_iter().chain(&self.bat).flatten();
        read.filter_map(|(_, meta)| meta.modified).max()
    }
}

/// Tables longer than this are not read before they are needed.
const MAX_EAGER_BAT_BYTES: u64 = 256 << 10;

/// What a listing of the directory tells of its parts.
type ListedParts = HashMap<String, Option<Meta>>;

/// The parts of which the storage has copies, if there are any: then one listing tells whether they still
/// hold. `None` where that leads nowhere.
pub(super) fn read_copied_parts(store: &dyn Store, base: &StorePath) -> Option<Parts> {
    if !store.has_copy(&base.child("footer"), None) {
        return None;
    }
    let entries = match store.list(base) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(_) => return None,
    };
    let files = entries.into_iter().filter(|e| e.kind == EntryKind::File);
    let listed = files.map(|e| (e.name, e.meta)).collect();
    Some(read_parts(store, base, Some(&listed)))
}

pub(super) fn read_parts(
    store: &dyn Store,
    base: &StorePath,
    listed: Option<&ListedParts>,
) -> Parts {
    // Compressed or not is only known afterwards; brotli's allowance covers all.
    let stored = |len: usize| Filter::Brotli.max_stored_len(len as u64);
    let mut wanted = vec![
        ("chunk-filters.json", MAX_FILTERS_JSON_BYTES),
        ("footer", stored(FOOTER_BYTES)),
        ("header", stored(HEADER_BYTES)),
    ];
    let remote = !store.traits().cheap_ranges;
    if remote {
        wanted.push(("bat", MAX_EAGER_BAT_BYTES));
    }
    let threads = if remote { wanted.len() } else { 1 };
    let read = |(name, max_len): &(&str, u64)| {
        let path = base.child(name);
        let meta = match listed.map(|listed| listed.get(*name)) {
            None => None,
            Some(Some(meta)) => *meta,
            Some(None) => {
                let missing = Error::new(ErrorKind::NotFound, "is not there");
                return Err(missing.with_object(&path));
            }
        };
        store.read(&path, *max_len, Validity::Listed(meta.as_ref()))
    };
    let mut read = parallel_map(&wanted, threads, read).into_iter();
    let mut next = || {
        let missing = || Err(Error::new(ErrorKind::Io, "was not read"));
        read.next().unwrap_or_else(missing)
    };
    Parts {
        filter: next(),
        footer: next(),
        header: next(),
        bat: remote.then(next),
    }
}
