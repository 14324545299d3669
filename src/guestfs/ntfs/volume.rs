//! The file records of a volume, and the streams of files over all the records that these have.
//!
//! `$MFT` is a file of its own whose content is all file records. Where it is in many pieces, some of these are
//! told by records further on, which lie in the pieces before them.

use std::sync::Arc;

use super::attribute::{self, Attribute, ListEntry, kind};
use super::boot::{BOOT_BYTES, Boot};
use super::data::{Assembly, ClusterDevice, Stream};
use super::error::bad;
use super::record::{NUMBER_MASK, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::host::device::Device;
use crate::io::{ReadAt, check_range};
use crate::volume::bits::index;

/// Windows ends at 256 KiB; this leaves room for others.
const MAX_LIST_BYTES: u64 = 4 << 20;
/// How often the table may be found to go on while it is opened.
const MAX_TABLE_STEPS: usize = 4096;

/// An NTFS volume.
pub struct Volume {
    /// The device, as clusters.
    pub clusters: ClusterDevice,
    record_bytes: u64,
    /// The content of `$MFT`.
    table: Arc<dyn ReadAt>,
}

/// A file: the number of its own record, and that record.
#[derive(Clone)]
pub struct File {
    /// The number.
    pub number: u64,
    /// The record.
    pub record: Arc<Record>,
}

impl Volume {
    /// Reads the boot sector and finds the master file table.
    ///
    /// # Errors
    /// `Corrupt` when they make no sense.
    pub fn open(device: Arc<Device>) -> Result<Self> {
        let mut sector = [0; BOOT_BYTES];
        device.read(&mut sector, 0)?;
        let boot = Boot::parse(&sector)?;
        let mut first = vec![0; index(boot.record_bytes)];
        device.read(&mut first, boot.table_start()?)?;
        let clusters = ClusterDevice {
            device,
            cluster_bytes: boot.cluster_bytes,
        };
        let file = File {
            number: 0,
            record: Arc::new(Record::parse(first)?),
        };
        let nowhere = || bad("the master file table has no content");
        let mut table = Assembly::new(boot.cluster_bytes);
        let own = file.record.find(kind::DATA, &[], 0);
        table.push(&file.record, own.ok_or_else(nowhere)?)?;
        let table_of = |stream: Option<Stream>| -> Result<Arc<dyn ReadAt>> {
            stream.ok_or_else(nowhere)?.into_metadata(&clusters)
        };
        let mut volume = Volume {
            record_bytes: boot.record_bytes,
            table: table_of(table.so_far())?,
            clusters: clusters.clone(),
        };
        let Some(list) = volume.attribute_list(&file)? else {
            volume.table = table_of(table.finish()?)?;
            return Ok(volume);
        };
        let mut steps = 0;
        let mut last = None;
        // The first one is in there.
        for entry in wanted(list, kind::DATA, &[]).iter().skip(1) {
            if volume.place(entry.reference & NUMBER_MASK).is_err() {
                steps += 1;
                if steps > MAX_TABLE_STEPS {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "ntfs: a master file table in so many pieces is not supported",
                    ));
                }
                volume.table = table_of(table.so_far())?;
            }
            let holder = volume.holder(&file, entry, &mut last)?;
            table.push(&holder, named(&holder, entry)?)?;
        }
        volume.table = table_of(table.finish()?)?;
        Ok(volume)
    }

    /// The byte of the master file table where a record begins.
    fn place(&self, number: u64) -> Result<u64> {
        number
            .checked_mul(self.record_bytes)
            .filter(|&at| check_range(at, self.record_bytes, self.table.len_bytes()).is_ok())
            .ok_or_else(|| bad("a record number is out of range"))
    }

    /// The record of a file reference, which names a file's own record or one that extends it.
    fn record(&self, reference: u64) -> Result<Record> {
        let at = self.place(reference & NUMBER_MASK)?;
        let mut bytes = vec![0; index(self.record_bytes)];
        self.table.read_exact_at(&mut bytes, at)?;
        let record = Record::parse(bytes)?;
        match reference >> 48 {
            0 => Ok(record),
            sequence if sequence == u64::from(record.sequence) => Ok(record),
            _ => Err(bad(
                "a name leads to a record that is in use for another file",
            )),
        }
    }

    /// The file of a file reference.
    ///
    /// # Errors
    /// `Corrupt` when its record is damaged, not in use, or in use for another file.
    pub fn file(&self, reference: u64) -> Result<File> {
        Ok(File {
            number: reference & NUMBER_MASK,
            record: Arc::new(self.record(reference)?),
        })
    }

    /// A stream of a file: an attribute of this type and name, `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` when its parts do not fit together.
    pub fn stream(&self, file: &File, kind: u32, name: &[u16]) -> Result<Option<Stream>> {
        let mut stream = Assembly::new(self.clusters.cluster_bytes);
        let Some(list) = self.attribute_list(file)? else {
            let mut own = file.record.attributes.iter();
            if let Some(attribute) = own.find(|attribute| attribute.is(kind, name)) {
                stream.push(&file.record, attribute)?;
            }
            return stream.finish();
        };
        let mut last = None;
        for entry in wanted(list, kind, name) {
            let holder = self.holder(file, &entry, &mut last)?;
            stream.push(&holder, named(&holder, &entry)?)?;
        }
        stream.finish()
    }

    /// The names of a file's alternate streams.
    ///
    /// # Errors
    /// `Corrupt` when the attribute list makes no sense.
    pub fn stream_names(&self, file: &File) -> Result<Vec<Vec<u16>>> {
        let mut names: Vec<Vec<u16>> = match self.attribute_list(file)? {
            Some(entries) => entries
                .into_iter()
                .filter(|entry| entry.kind == kind::DATA)
                .map(|entry| entry.name)
                .collect(),
            None => {
                let own = file.record.attributes.iter();
                own.filter(|attribute| attribute.kind == kind::DATA)
                    .map(|attribute| attribute.name.clone())
                    .collect()
            }
        };
        names.retain(|name| !name.is_empty());
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn attribute_list(&self, file: &File) -> Result<Option<Vec<ListEntry>>> {
        let mut own = file.record.attributes.iter();
        let Some(attribute) = own.find(|attribute| attribute.kind == kind::ATTRIBUTE_LIST) else {
            return Ok(None);
        };
        // A list has no list of its own: all of it is in one place.
        let mut stream = Assembly::new(self.clusters.cluster_bytes);
        stream.push(&file.record, attribute)?;
        let Some(stream) = stream.finish()? else {
            return Ok(None);
        };
        let value = stream
            .into_bytes(&self.clusters, MAX_LIST_BYTES)?
            .ok_or_else(|| bad("an attribute list is too long"))?;
        attribute::parse_list(&value).map(Some)
    }

    /// The record that holds a part of a file. `last` is the one before, which often holds several.
    fn holder(
        &self,
        file: &File,
        entry: &ListEntry,
        last: &mut Option<(u64, Arc<Record>)>,
    ) -> Result<Arc<Record>> {
        if entry.reference & NUMBER_MASK == file.number {
            return Ok(file.record.clone());
        }
        if let Some((_, record)) = last.as_ref().filter(|(of, _)| *of == entry.reference) {
            return Ok(record.clone());
        }
        let record = self.record(entry.reference)?;
        // It must name the file's own.
        if record.base & NUMBER_MASK != file.number {
            return Err(bad("a part of a stream is in a record of another file"));
        }
        let record = Arc::new(record);
        *last = Some((entry.reference, record.clone()));
        Ok(record)
    }
}

/// The entries that tell of a stream, in the order of its clusters.
fn wanted(list: Vec<ListEntry>, kind: u32, name: &[u16]) -> Vec<ListEntry> {
    let mut wanted: Vec<ListEntry> = list
        .into_iter()
        .filter(|entry| entry.kind == kind && entry.name == name)
        .collect();
    wanted.sort_by_key(|entry| entry.first_cluster);
    wanted
}

/// The attribute that an entry of a list is about.
fn named<'a>(holder: &'a Record, entry: &ListEntry) -> Result<&'a Attribute> {
    holder
        .find(entry.kind, &entry.name, entry.first_cluster)
        .ok_or_else(|| bad("a part of a stream is not where it should be"))
}

#[cfg(test)]
mod tests {
    use super::super::attribute::tests::{entry, in_clusters, resident};
    use super::super::boot::tests::sector;
    use super::super::record::tests::stored;
    use super::*;

    const CLUSTER: usize = 4096;
    const RECORD: usize = 1024;

    /// A volume whose table has three clusters, 4, 10 and 7: the first is told by record 0 in it, the
    /// second is told by record 2 in it, the third by record 5 in the second. Record 9 is in the third.
    fn volume() -> Vec<u8> {
        let mut bytes = vec![0; 16 * CLUSTER];
        let boot = sector(512, 8, 0xF6);
        bytes[..boot.len()].copy_from_slice(&boot);
        let list = [
            entry(kind::DATA, 0, 0),
            entry(kind::DATA, 1, 2 | 3 << 48),
            entry(kind::DATA, 2, 5),
        ];
        let len_bytes = 3 * CLUSTER as u64;
        let part = |first, cluster| in_clusters(kind::DATA, first, len_bytes, &[0x11, 1, cluster]);
        // Distances are those to the run before in the same list.
        for (cluster, index, attributes) in [
            (
                4,
                0,
                [
                    resident(kind::ATTRIBUTE_LIST, "", &list.concat()),
                    part(0, 4),
                ]
                .concat(),
            ),
            (4, 2, part(1, 10)),
            (10, 1, part(2, 7)),
            (7, 1, resident(kind::DATA, "", b"found")),
        ] {
            let record = stored(RECORD, &attributes);
            let at = cluster * CLUSTER + index * RECORD;
            bytes[at..at + RECORD].copy_from_slice(&record);
        }
        bytes
    }

    fn open(bytes: Vec<u8>) -> Result<Volume> {
        Volume::open(Arc::new(Device::new(Arc::new(bytes))))
    }

    #[test]
    fn a_table_is_found_whose_parts_are_told_by_each_other() {
        let volume = open(volume()).unwrap();
        let content = |reference: u64| {
            let file = volume.file(reference)?;
            let stream = volume.stream(&file, kind::DATA, &[])?.unwrap();
            stream.into_bytes(&volume.clusters, 100)
        };
        assert_eq!(content(9).unwrap().unwrap(), b"found");
        assert_eq!(content(9 | 3 << 48).unwrap().unwrap(), b"found");
        // Of an earlier file, and behind the table.
        assert!(content(9 | 2 << 48).is_err());
        assert!(content(12).is_err());
        let file = volume.file(0).unwrap();
        let table = volume.stream(&file, kind::DATA, &[]).unwrap().unwrap();
        assert_eq!(table.len_bytes(), 3 * CLUSTER as u64);
    }

    #[test]
    fn a_table_with_a_part_that_is_not_its_own_is_refused() {
        let extension = 4 * CLUSTER + 2 * RECORD;
        // In use by another file; for another file's; not in use; told to begin elsewhere.
        for (at, value) in [(16, 9), (32, 7), (22, 0), (72 + 16, 2)] {
            let mut bytes = volume();
            bytes[extension + at] = value;
            assert!(open(bytes).is_err(), "{at}");
        }
    }
}
