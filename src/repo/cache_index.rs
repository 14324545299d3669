//! `cache.json.gz`: the metadata of all restore points of a VM in one file. A hint, never the truth.
//!
//! XO rewrites it after it has written or removed a `<date>.json`; it can be missing, stale or
//! broken. Decompressed and parsed as a stream with bounds on both, so that a bomb costs time but no
//! memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufReader, Read};

use flate2::read::MultiGzDecoder;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::json::Pruned;
use super::layout::{self, CACHE_FILE};
use super::metadata::{self, RestorePoint};
use crate::error::{Error, Result};
use crate::store::{Meta, Store, StorePath};

/// Largest file that is read, in bytes.
pub const MAX_COMPRESSED_BYTES: u64 = 16 << 20;
/// Most bytes that are decompressed: some 1,600 restore points of 20 KiB. A single text can be as
/// long as that and is held in memory whole, so there is no room for generosity; without the index
/// the points are read one by one.
pub const MAX_DECOMPRESSED_BYTES: u64 = 32 << 20;
/// Most memory that the entries may take, in bytes.
pub const MAX_KEPT_BYTES: u64 = 32 << 20;

/// The parsed file.
#[derive(Debug)]
pub struct CacheIndex {
    /// The file's state when it was read.
    pub meta: Meta,
    /// The points by date name. Their `json_meta` is empty: the file does not tell it.
    pub points: BTreeMap<String, RestorePoint>,
}

impl CacheIndex {
    /// Reads the file of a VM; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` when it is too long, not gzip or not JSON; otherwise as the storage says.
    pub fn load(store: &dyn Store, vm_dir: &StorePath) -> Result<Option<Self>> {
        use crate::error::ErrorKind::NotFound;
        let path = vm_dir.child(CACHE_FILE);
        let (data, meta) = match store.read(&path, MAX_COMPRESSED_BYTES) {
            Ok(read) => read,
            Err(e) if e.kind() == NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let points = parse(vm_dir, &data).map_err(|e| e.with_object(&path))?;
        Ok(Some(CacheIndex { meta, points }))
    }

    /// The entry of a point unless its `.json` was written after the index. Storage that tells no
    /// times cannot vouch for an entry.
    pub fn fresh(&self, name: &str, json: &Meta) -> Option<&RestorePoint> {
        let fresh = json.modified? <= self.meta.modified?;
        self.points.get(name).filter(|_| fresh)
    }
}

fn parse(vm_dir: &StorePath, data: &[u8]) -> Result<BTreeMap<String, RestorePoint>> {
    let decoder = MultiGzDecoder::new(data).take(MAX_DECOMPRESSED_BYTES);
    let mut deserializer = serde_json::Deserializer::from_reader(BufReader::new(decoder));
    Entries { vm_dir }
        .deserialize(&mut deserializer)
        .and_then(|points| deserializer.end().map(|()| points))
        .map_err(|e| Error::corrupt(format!("is not a valid list of restore points: {e}")))
}

struct Entries<'a> {
    vm_dir: &'a StorePath,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = BTreeMap<String, RestorePoint>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = BTreeMap<String, RestorePoint>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one member per restore point")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut points = BTreeMap::new();
        let mut kept_bytes = 0;
        while let Some(key) = members.next_key::<String>()? {
            // "/xo-vm-backups/<vm>/<date>.json"
            let file = key.rsplit('/').next().unwrap_or("");
            let Some(name) = layout::point_of_file(file) else {
                members.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = members.next_value_seed(Pruned(metadata::schema()))?;
            let point = RestorePoint::from_value(self.vm_dir, name, None, &value);
            kept_bytes += point.weight();
            if kept_bytes > MAX_KEPT_BYTES {
                return Err(A::Error::custom("more entries than there can be"));
            }
            points.insert(name.to_owned(), point);
        }
        Ok(points)
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
