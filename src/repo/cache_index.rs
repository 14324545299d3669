//! `cache.json.gz`: the metadata of all restore points of a VM in one file. A hint, never the truth.
//!
//! XO rewrites it after it has written or removed a `<date>.json`; it can be missing, stale or
//! broken. Decompressed and parsed as a stream with bounds on both, so that a bomb costs time but no
//! memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufReader, Read};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::json::Pruned;
use super::layout::{self, CACHE_FILE};
use super::metadata::{self, RestorePoint};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Meta, Store, StorePath, read_listed_as};

/// Largest file that is read, in bytes.
pub const MAX_COMPRESSED_BYTES: u64 = 16 << 20;
/// Most bytes that are decompressed: some 1,600 restore points of 20 KiB. A single text can be as
/// long as that and is held in memory whole, so there is no room for generosity; without the index
/// the points are read one by one.
pub const MAX_DECOMPRESSED_BYTES: u64 = 32 << 20;
/// Most memory that the entries may take, in bytes.
pub const MAX_KEPT_BYTES: u64 = 32 << 20;

/// The same bounds for taking a name from the file: many VMs are named at once, and those few that
/// exceed them cost two requests more.
const MAX_COMPRESSED_FOR_NAME_BYTES: u64 = 2 << 20;
const MAX_DECOMPRESSED_FOR_NAME_BYTES: u64 = 8 << 20;

/// The parsed file.
#[derive(Debug)]
pub struct CacheIndex {
    /// The file's state when it was read.
    pub meta: Meta,
    /// The points by date name. Their `json_meta` is empty: the file does not tell it.
    pub points: BTreeMap<String, RestorePoint>,
}

/// What naming a VM takes of the file.
#[derive(Debug)]
pub struct Newest {
    /// The VM's name.
    pub vm_name: String,
    /// The newest restore point.
    pub date: String,
    /// When the file was written, if the name is that of the newest point, whose entry makes sense.
    /// Storage that tells no times cannot vouch for it.
    pub as_of: Option<SystemTime>,
}

impl CacheIndex {
    /// Reads the file of a VM; `None` when there is none. `listed` is what the listing of the VM's
    /// directory told of it, if that was asked for.
    ///
    /// # Errors
    /// `Corrupt` when it is too long, not gzip or not JSON; otherwise as the storage says.
    pub fn load(
        store: &dyn Store,
        vm_dir: &StorePath,
        listed: Option<&Meta>,
    ) -> Result<Option<Self>> {
        read(store, vm_dir, MAX_COMPRESSED_BYTES, listed, |data, meta| {
            let points = parse(vm_dir, data)?;
            Ok(CacheIndex { meta, points })
        })
    }

    /// The VM's name, as the newest restore point of the file that has one tells it, and the date
    /// name of the newest one. Keeps nothing else of the file in memory. `None` when there is no
    /// file or no name in it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn newest(
        store: &dyn Store,
        vm_dir: &StorePath,
        listed: Option<&Meta>,
    ) -> Result<Option<Newest>> {
        let max_len = MAX_COMPRESSED_FOR_NAME_BYTES;
        let newest = read(store, vm_dir, max_len, listed, |data, meta| {
            newest_of(vm_dir, data, meta.modified)
        });
        Ok(newest?.flatten())
    }

    /// The entry of a point unless its `.json` was written after the index. Storage that tells no
    /// times cannot vouch for an entry.
    pub fn fresh(&self, name: &str, json: &Meta) -> Option<&RestorePoint> {
        let fresh = json.modified? <= self.meta.modified?;
        self.points.get(name).filter(|_| fresh)
    }
}

/// The name of the VM and its newest point, if the file has a name.
fn newest_of(
    vm_dir: &StorePath,
    data: &[u8],
    written: Option<SystemTime>,
) -> Result<Option<Newest>> {
    let mut named: Option<(String, String)> = None;
    let mut newest = String::new();
    let mut is_readable = false;
    let note = |date: &str, point: RestorePoint| {
        if date > newest.as_str() {
            newest = date.to_owned();
            is_readable = !point.unreadable;
        }
        let name = point.vm_name.filter(|n| !n.trim().is_empty());
        if let Some(name) = name
            && named
                .as_ref()
                .is_none_or(|(known, _)| known.as_str() < date)
        {
            named = Some((date.to_owned(), name));
        }
        Ok(())
    };
    for_each(vm_dir, data, MAX_DECOMPRESSED_FOR_NAME_BYTES, note)?;
    Ok(named.map(|(date, vm_name)| Newest {
        vm_name,
        as_of: written.filter(|_| is_readable && date == newest),
        date: newest,
    }))
}

fn read<T>(
    store: &dyn Store,
    vm_dir: &StorePath,
    max_len: u64,
    listed: Option<&Meta>,
    parse: impl Fn(&[u8], Meta) -> Result<T>,
) -> Result<Option<T>> {
    let path = vm_dir.child(CACHE_FILE);
    let read = read_listed_as(store, &path, max_len, listed, |data, meta| {
        parse(&data, meta).map_err(|e| e.with_object(&path))
    });
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Why an entry is refused.
type Refusal = std::result::Result<(), &'static str>;

fn parse(vm_dir: &StorePath, data: &[u8]) -> Result<BTreeMap<String, RestorePoint>> {
    let mut points = BTreeMap::new();
    let mut kept_bytes = 0;
    for_each(vm_dir, data, MAX_DECOMPRESSED_BYTES, |name, point| {
        kept_bytes += point.weight();
        points.insert(name.to_owned(), point);
        match kept_bytes > MAX_KEPT_BYTES {
            true => Err("more entries than there can be"),
            false => Ok(()),
        }
    })?;
    Ok(points)
}

/// Calls `each` with the date name and the content of every entry; what it refuses is damage.
fn for_each(
    vm_dir: &StorePath,
    data: &[u8],
    max_bytes: u64,
    each: impl FnMut(&str, RestorePoint) -> Refusal,
) -> Result<()> {
    let decoder = MultiGzDecoder::new(data).take(max_bytes);
    let mut deserializer = serde_json::Deserializer::from_reader(BufReader::new(decoder));
    Entries { vm_dir, each }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|e| Error::corrupt(format!("is not a valid list of restore points: {e}")))
}

struct Entries<'a, F> {
    vm_dir: &'a StorePath,
    each: F,
}

impl<'de, F: FnMut(&str, RestorePoint) -> Refusal> DeserializeSeed<'de> for Entries<'_, F> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, RestorePoint) -> Refusal> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one member per restore point")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key::<String>()? {
            // "/xo-vm-backups/<vm>/<date>.json"
            let file = key.rsplit('/').next().unwrap_or("");
            let Some(name) = layout::point_of_file(file) else {
                members.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = members.next_value_seed(Pruned(metadata::schema()))?;
            let point = RestorePoint::from_value(self.vm_dir, name, None, &value);
            (self.each)(name, point).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn vm_dir() -> StorePath {
        StorePath::new("xo-vm-backups/vm1").unwrap()
    }

    #[test]
    fn entries_become_restore_points() {
        let json = br#"{"/xo-vm-backups/vm1/20260301T013000Z.json":
            {"mode":"delta","vhds":{"r":"vdis/j/v/x.vhd"},"_filename":"x","id":"y"},
            "/xo-vm-backups/vm1/odd.json": {}, "/xo-vm-backups/vm1/20260302T013000Z.json": 3}"#;
        let points = parse(&vm_dir(), &gzip(json)).unwrap();
        assert_eq!(points.len(), 2);
        assert_eq!(points["20260301T013000Z"].disks.len(), 1);
        assert!(points["20260302T013000Z"].unreadable);
    }

    #[test]
    fn broken_and_truncated_files_are_refused() {
        let good = gzip(br#"{"/x/20260301T013000Z.json":{"mode":"delta"}}"#);
        for data in [
            &b"not gzip"[..],
            b"",
            &good[..good.len() / 2],
            &gzip(b"[]"),
            &gzip(b"{}x"),
        ] {
            let e = parse(&vm_dir(), data).unwrap_err();
            assert_eq!(e.kind(), crate::error::ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_bomb_ends_at_the_bound() {
        // 40 MiB of blanks in some 40 KiB.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let blanks = vec![b' '; 1 << 20];
        for _ in 0..40 {
            encoder.write_all(&blanks).unwrap();
        }
        encoder.write_all(b"{}").unwrap();
        assert!(parse(&vm_dir(), &encoder.finish().unwrap()).is_err());
    }
}
