//! The contents of NTFS streams: where their clusters are, sparse and compressed ones included.
//!
//! The crate reads a stream cluster by cluster, finds it again for every call, and unpacks a compressed
//! one as a whole. Here its runs are collected once, over all the records that an attribute list
//! names; plain streams are then read straight from the volume, compressed ones unit by unit. Layouts:
//! the attribute header in `layout.h` of ntfs-3g and Microsoft's [MS-XCA] for LZNT1.

use std::sync::Arc;

use fs_ntfs::attr_io::{self, AttrLocation, AttrType};
use fs_ntfs::data_runs::{self, DataRun};
use fs_ntfs::mft_io::BootParams;
use fs_ntfs::read;

use super::from_ntfs;
use super::volume::{NUMBER_MASK, Volume};
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::chunked::ChunkedFile;
use crate::guestfs::device::{Cached, Device};
use crate::guestfs::run_file::{Run, RunFile, RunMap};
use crate::io::{Extent, ExtentKind, ReadAt, check_range};

const FLAG_COMPRESSED: u16 = 0x00FF;
const FLAG_ENCRYPTED: u16 = 0x4000;
/// Records that one attribute list may lead to.
const MAX_INSTANCES: usize = 100_000;
/// Windows ends at 256 KiB; this leaves room for others.
const MAX_LIST_BYTES: u64 = 4 << 20;
/// An LZNT1 chunk unpacks to at most this.
const CHUNK_BYTES: usize = 4096;

/// A located stream.
pub enum Stream {
    /// Kept in its record.
    Resident(Vec<u8>),
    /// Kept in clusters.
    Clusters(Clusters),
}

/// A stream in clusters.
pub struct Clusters {
    runs: Vec<DataRun>,
    len_bytes: u64,
    /// What lies behind this was never written and reads as zeros.
    initialized_bytes: u64,
    allocated_bytes: u64,
    flags: u16,
    /// Clusters of a compression unit as a power of two.
    unit_shift: u16,
}

impl Stream {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Stream::Resident(bytes) => bytes.len() as u64,
            Stream::Clusters(clusters) => clusters.len_bytes,
        }
    }

    /// Allocated bytes. What is in a record counts as long as it is, as with ntfs-3g: `tar -S` takes a file
    /// without blocks for one hole.
    pub fn allocated_bytes(&self) -> u64 {
        match self {
            Stream::Resident(bytes) => bytes.len() as u64,
            Stream::Clusters(clusters) => clusters.allocated_bytes,
        }
    }

    /// Whether a part of it is stored nowhere. Of a compressed stream only whether all of it is not.
    pub fn has_holes(&self) -> bool {
        match self {
            Stream::Resident(_) => false,
            Stream::Clusters(clusters) => {
                let mut runs = clusters.runs.iter();
                match clusters.flags & FLAG_COMPRESSED {
                    0 => runs.any(|run| run.lcn.is_none()),
                    _ => clusters.len_bytes > 0 && runs.all(|run| run.lcn.is_none()),
                }
            }
        }
    }

    /// The content.
    ///
    /// # Errors
    /// `Unsupported` for encrypted streams.
    pub fn into_content(self, volume: &Volume) -> Result<Arc<dyn ReadAt>> {
        self.into_content_on(volume.device.volume().clone(), volume)
    }

    /// The content, read by way of `bytes`, which are those of the volume.
    ///
    /// # Errors
    /// As [`Stream::into_content`].
    pub fn into_content_on(
        self,
        bytes: Arc<dyn ReadAt>,
        volume: &Volume,
    ) -> Result<Arc<dyn ReadAt>> {
        let boot = &volume.boot;
        let clusters = match self {
            Stream::Resident(bytes) => return Ok(Arc::new(bytes)),
            Stream::Clusters(clusters) => clusters,
        };
        if clusters.flags & FLAG_ENCRYPTED != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a file that Windows encrypted (EFS) cannot be read without the key of its user",
            ));
        }
        let len = clusters.len_bytes;
        if clusters.flags & FLAG_COMPRESSED != 0 {
            let source = Compressed::new(volume.device.clone(), clusters, boot.cluster_size)?;
            return Ok(Arc::new(ChunkedFile::new(source)?));
        }
        let map = Plain {
            clusters,
            cluster_bytes: boot.cluster_size,
        };
        Ok(Arc::new(RunFile::new(bytes, map, len)?))
    }
}

/// Finds a stream of a file's data; the unnamed one has the name "". `None` when there is none.
///
/// # Errors
/// `Corrupt` when its parts do not fit together.
pub fn locate(volume: &Volume, number: u64, record: &[u8], name: &str) -> Result<Option<Stream>> {
    locate_kind(volume, number, record, AttrType::Data, name)
}

/// As [`locate`], for any type of attribute.
///
/// # Errors
/// `Corrupt` when its parts do not fit together.
pub fn locate_kind(
    volume: &Volume,
    number: u64,
    record: &[u8],
    kind: AttrType,
    name: &str,
) -> Result<Option<Stream>> {
    let parts = parts(volume, number, record, kind, name)?;
    assemble(&volume.boot, &parts)
}

/// The record that holds an attribute which cannot be split, `None` when there is none.
///
/// # Errors
/// `Corrupt` when the attribute list leads astray.
pub fn holder(
    volume: &Volume,
    number: u64,
    record: &[u8],
    kind: AttrType,
    name: &str,
) -> Result<Option<(Vec<u8>, AttrLocation)>> {
    Ok(parts(volume, number, record, kind, name)?
        .into_iter()
        .next())
}

/// All instances of an attribute with the records that hold them, in the order of their clusters.
fn parts(
    volume: &Volume,
    number: u64,
    record: &[u8],
    kind: AttrType,
    name: &str,
) -> Result<Vec<(Vec<u8>, AttrLocation)>> {
    let mut parts = Vec::new();
    if let Some(entries) = attribute_list(volume, record)? {
        let mut wanted: Vec<_> = entries
            .into_iter()
            .filter(|entry| entry.type_code == kind as u32)
            .filter(|entry| entry.name.as_deref().unwrap_or("") == name)
            .collect();
        wanted.sort_by_key(|entry| entry.starting_vcn);
        for entry in wanted {
            let holder = match entry.record_number == number {
                true => record.to_vec(),
                false => extension(volume, number, entry.record_number)?,
            };
            let found = attr_io::iter_attributes(&holder).find(|location| {
                is_named(&holder, location, kind, name)
                    && first_vcn(&holder, location) == entry.starting_vcn
            });
            let location =
                found.ok_or_else(|| bad("a part of a stream is not where it should be"))?;
            parts.push((holder, location));
        }
    } else {
        let found = attr_io::iter_attributes(record)
            .find(|location| is_named(record, location, kind, name));
        if let Some(location) = found {
            parts.push((record.to_vec(), location));
        }
    }
    Ok(parts)
}

/// A stream from its instances.
fn assemble(boot: &BootParams, parts: &[(Vec<u8>, AttrLocation)]) -> Result<Option<Stream>> {
    let Some((holder, location)) = parts.first() else {
        return Ok(None);
    };
    if location.is_resident {
        let start = attr_io::resident_value_start(location);
        let len = location.resident_value_length;
        let value = start
            .zip(len)
            .and_then(|(start, len)| holder.get(start..start.checked_add(len as usize)?))
            .ok_or_else(|| bad("a stream leaves its record"))?;
        return Ok(Some(Stream::Resident(value.to_vec())));
    }
    let header = |at: usize| le64(holder, location.attr_offset + at);
    let flags = le16(holder, location.attr_offset + 0x0C);
    let unit_shift = le16(holder, location.attr_offset + 0x22) & 0xFF;
    let mut clusters = Clusters {
        runs: Vec::new(),
        len_bytes: header(0x30),
        initialized_bytes: header(0x38),
        allocated_bytes: match unit_shift {
            0 => header(0x28),
            // Sparse and compressed streams record what they really use.
            _ => header(0x40),
        },
        flags,
        unit_shift,
    };
    let mut next_vcn = 0u64;
    for (holder, location) in parts {
        if location.is_resident || first_vcn(holder, location) != next_vcn {
            return Err(bad("the parts of a stream leave gaps"));
        }
        let pairs = location
            .non_resident_mapping_pairs_offset
            .and_then(|at| {
                let start = location.attr_offset.checked_add(usize::from(at))?;
                holder.get(start..location.attr_offset.checked_add(location.attr_length)?)
            })
            .ok_or_else(|| bad("a stream's run list leaves its record"))?;
        for run in data_runs::decode_runs(pairs).map_err(from_ntfs)? {
            let starting_vcn = next_vcn;
            next_vcn = next_vcn
                .checked_add(run.length)
                .filter(|&end| end.checked_mul(boot.cluster_size).is_some())
                .ok_or_else(|| bad("a stream has too many clusters"))?;
            clusters.runs.push(DataRun {
                starting_vcn,
                ..run
            });
        }
    }
    if clusters.len_bytes > next_vcn.saturating_mul(boot.cluster_size) {
        return Err(bad("a stream is longer than its clusters"));
    }
    Ok(Some(Stream::Clusters(clusters)))
}

/// The names of a file's alternate streams.
///
/// # Errors
/// `Corrupt` when the attribute list makes no sense.
pub fn stream_names(volume: &Volume, record: &[u8]) -> Result<Vec<String>> {
    let mut names: Vec<String> = match attribute_list(volume, record)? {
        Some(entries) => entries
            .into_iter()
            .filter(|entry| entry.type_code == AttrType::Data as u32)
            .filter_map(|entry| entry.name)
            .collect(),
        None => attr_io::iter_attributes(record)
            .filter(|location| location.type_code == AttrType::Data as u32)
            .map(|location| attr_io::decode_attr_name(record, &location))
            .collect(),
    };
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    Ok(names)
}

fn attribute_list(volume: &Volume, record: &[u8]) -> Result<Option<Vec<read::AttrListEntry>>> {
    let found = attr_io::iter_attributes(record)
        .find(|location| location.type_code == AttrType::AttributeList as u32);
    let Some(location) = found else {
        return Ok(None);
    };
    // A list has no list of its own: all of it is in one place.
    let list = assemble(&volume.boot, &[(record.to_vec(), location)])?
        .ok_or_else(|| bad("an attribute list is not there"))?;
    if list.len_bytes() > MAX_LIST_BYTES {
        return Err(bad("an attribute list is too long"));
    }
    let list = list.into_content_on(Arc::new(Cached(volume.device.clone())), volume)?;
    let mut value = vec![0; list.len_bytes() as usize];
    list.read_exact_at(&mut value, 0)?;
    let entries = read::parse_attribute_list(&value).map_err(from_ntfs)?;
    match entries.len() <= MAX_INSTANCES {
        true => Ok(Some(entries)),
        false => Err(bad("an attribute list is too long")),
    }
}

/// A further record of a file, which must name the file's own.
fn extension(volume: &Volume, base: u64, number: u64) -> Result<Vec<u8>> {
    let (_, record) = volume.record_in_use(number)?;
    match le64(&record, 0x20) & NUMBER_MASK == base {
        true => Ok(record),
        false => Err(bad("a part of a stream is in a record of another file")),
    }
}

fn is_named(record: &[u8], location: &AttrLocation, kind: AttrType, name: &str) -> bool {
    location.type_code == kind as u32 && attr_io::decode_attr_name(record, location) == name
}

fn first_vcn(record: &[u8], location: &AttrLocation) -> u64 {
    match location.is_resident {
        true => 0,
        false => le64(record, location.attr_offset + 0x10),
    }
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("ntfs: {message}"))
}

impl Clusters {
    /// The run that holds a cluster of the stream.
    fn run_of(&self, vcn: u64) -> Result<DataRun> {
        let index = self
            .runs
            .partition_point(|run| run.starting_vcn + run.length <= vcn);
        self.runs
            .get(index)
            .copied()
            .ok_or_else(|| bad("a stream is longer than its clusters"))
    }
}

struct Plain {
    clusters: Clusters,
    cluster_bytes: u64,
}

impl RunMap for Plain {
    fn run_at(&self, offset: u64) -> Result<Run> {
        let initialized = self.clusters.initialized_bytes;
        if offset >= initialized {
            return Ok(Run {
                end: u64::MAX,
                at: None,
            });
        }
        let run = self.clusters.run_of(offset / self.cluster_bytes)?;
        // `locate` checked that the end of all runs in bytes is a number.
        let start = run.starting_vcn * self.cluster_bytes;
        let end = start + run.length * self.cluster_bytes;
        let at = match run.lcn {
            None => None,
            Some(lcn) => Some(
                lcn.checked_mul(self.cluster_bytes)
                    .and_then(|at| at.checked_add(offset - start))
                    .ok_or_else(|| bad("a run points past the end of everything"))?,
            ),
        };
        Ok(Run {
            end: end.min(initialized),
            at,
        })
    }
}

/// A compressed stream. A unit with all its clusters is stored plainly, one with none is zeros, and one
/// with some holds LZNT1 in them.
struct Compressed {
    device: Arc<Device>,
    clusters: Clusters,
    cluster_bytes: u64,
    unit_clusters: u64,
}

impl Compressed {
    fn new(device: Arc<Device>, clusters: Clusters, cluster_bytes: u64) -> Result<Self> {
        // Windows compresses in units of 16 clusters of at most 4 KiB.
        if !(1..=4).contains(&clusters.unit_shift) || cluster_bytes > 64 << 10 {
            return Err(bad("a compression unit of a strange size"));
        }
        Ok(Compressed {
            unit_clusters: 1 << clusters.unit_shift,
            device,
            clusters,
            cluster_bytes,
        })
    }

    /// The bytes of one unit.
    fn unit(&self, number: u64) -> Result<Vec<u8>> {
        let first = number * self.unit_clusters;
        let unit_bytes = (self.unit_clusters * self.cluster_bytes) as usize;
        let mut stored = Vec::new();
        let mut allocated = 0;
        let mut vcn = first;
        while vcn < first + self.unit_clusters {
            // The last unit of a stream may have fewer clusters; the rest counts as a hole.
            let Ok(run) = self.clusters.run_of(vcn) else {
                break;
            };
            let count = (run.starting_vcn + run.length).min(first + self.unit_clusters) - vcn;
            if let Some(lcn) = run.lcn {
                if vcn != first + allocated {
                    return Err(bad("a compressed unit has clusters behind a hole"));
                }
                let at = lcn
                    .checked_add(vcn - run.starting_vcn)
                    .and_then(|lcn| lcn.checked_mul(self.cluster_bytes))
                    .ok_or_else(|| bad("a run points past the end of everything"))?;
                let len = (count * self.cluster_bytes) as usize;
                let volume = self.device.volume();
                if check_range(at, len as u64, volume.len_bytes()).is_err() {
                    return Err(bad("a stream points past the end of its volume"));
                }
                let start = stored.len();
                stored.resize(start + len, 0);
                volume.read_exact_at(&mut stored[start..], at)?;
                allocated += count;
            }
            vcn += count;
        }
        if allocated == 0 {
            return Ok(vec![0; unit_bytes]);
        }
        if allocated == self.unit_clusters {
            return Ok(stored);
        }
        unpack(&stored, unit_bytes)
    }
}

impl ReadAt for Compressed {
    fn len_bytes(&self) -> u64 {
        self.clusters.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let unit_bytes = self.unit_clusters * self.cluster_bytes;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let unit = self.unit(at / unit_bytes)?;
            let within = (at % unit_bytes) as usize;
            let take = (unit.len() - within).min(buf.len() - done);
            buf[done..done + take].copy_from_slice(&unit[within..within + take]);
            done += take;
        }
        // What was never written reads as zeros, whatever is there.
        let valid = self.clusters.initialized_bytes.saturating_sub(offset);
        if valid < buf.len() as u64 {
            buf[valid as usize..].fill(0);
        }
        Ok(())
    }

    /// A hole is whole units without clusters, and what was never written.
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let unit_bytes = self.unit_clusters * self.cluster_bytes;
        let unit_start = offset - offset % unit_bytes;
        let unit_end = unit_start.saturating_add(unit_bytes);
        let initialized = self.clusters.initialized_bytes;
        if offset >= initialized {
            return Ok(Extent {
                kind: ExtentKind::Hole,
                end: u64::MAX,
            });
        }
        let run = self.clusters.run_of(unit_start / self.cluster_bytes)?;
        // `assemble` checked that the end of all runs in bytes is a number.
        let run_end = (run.starting_vcn + run.length) * self.cluster_bytes;
        // Clusters come first in a unit: see `unit`.
        let end = match run.lcn {
            Some(_) => unit_end,
            None => unit_end.max(run_end - run_end % unit_bytes),
        };
        Ok(Extent {
            kind: match run.lcn {
                Some(_) => ExtentKind::Data,
                None => ExtentKind::Hole,
            },
            end: end.min(initialized),
        })
    }
}

/// Unpacks one unit. Each chunk stands for 4 KiB, whatever it unpacks to: that is where the next one
/// starts (the crate lets it start at once, which would shift what follows).
fn unpack(stored: &[u8], unit_bytes: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(unit_bytes);
    let mut at = 0;
    while out.len() < unit_bytes {
        let header = le16(stored, at);
        if at + 2 > stored.len() || header == 0 {
            break;
        }
        let len = usize::from(header & 0x0FFF) + 3;
        let chunk = stored
            .get(at..at + len)
            .ok_or_else(|| bad("a compressed chunk leaves its unit"))?;
        let plain = fs_ntfs::compression::decompress_unit(chunk, CHUNK_BYTES).map_err(from_ntfs)?;
        if plain.is_empty() {
            return Err(bad("a compressed chunk is empty"));
        }
        let start = out.len();
        out.extend_from_slice(&plain);
        out.resize(start + CHUNK_BYTES, 0);
        at += len;
    }
    out.resize(unit_bytes, 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_compressed_streams_are_whole_units_without_clusters() {
        let run = |starting_vcn, length, lcn| DataRun {
            starting_vcn,
            length,
            lcn,
        };
        // Units of 16 clusters of 512 bytes: packed, three empty ones, plain, never written.
        let clusters = Clusters {
            runs: vec![
                run(0, 5, Some(10)),
                run(5, 11, None),
                run(16, 48, None),
                run(64, 16, Some(50)),
                run(80, 16, Some(70)),
            ],
            len_bytes: 96 * 512,
            initialized_bytes: 80 * 512,
            allocated_bytes: 0,
            flags: 1,
            unit_shift: 4,
        };
        let device = Arc::new(Device::new(Arc::new(vec![0; 100 * 512])));
        let len = clusters.len_bytes;
        let stream = Compressed::new(device, clusters, 512).unwrap();
        let file = ChunkedFile::new(stream).unwrap();
        let mut found = Vec::new();
        let mut at = 0;
        while at < len {
            let extent = file.extent_at(at).unwrap();
            found.push((extent.kind == ExtentKind::Data, extent.end / 512));
            at = extent.end;
        }
        assert_eq!(found, [(true, 16), (false, 64), (true, 80), (false, 96)]);
        assert_eq!(file.extent_at(30 * 512).unwrap().end, 64 * 512);
    }

    #[test]
    fn short_chunks_do_not_shift_those_behind_them() {
        // Two plain chunks: 3 bytes, then 2.
        let stored = [0x02, 0x30, 1, 2, 3, 0x01, 0x30, 4, 5, 0, 0];
        let plain = unpack(&stored, 16384).unwrap();
        assert_eq!(plain.len(), 16384);
        assert_eq!(plain[..4], [1, 2, 3, 0]);
        assert_eq!(plain[4096..4099], [4, 5, 0]);
        assert!(unpack(&[0xFF, 0x3F, 1], 16384).is_err());
    }
}
