//! The contents of NTFS streams: where their clusters are, sparse and compressed ones included.
//!
//! A stream is put together from the attributes that tell of it, which may be in several records; plain ones
//! are then read straight from the volume, compressed ones unit by unit.

use std::sync::Arc;

use super::attribute::{Attribute, FLAG_COMPRESSED, FLAG_ENCRYPTED, Value};
use super::error::bad;
use super::lznt1;
use super::record::Record;
use super::runs::{self, ClusterRun};
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::chunked::ChunkedFile;
use crate::guestfs::common::run_file::{Run, RunFile, RunMap};
use crate::guestfs::host::device::{Cached, Device};
use crate::io::{Extent, ExtentKind, ReadAt, check_range};
use crate::volume::bits::index;

/// The largest unit of compression that is unpacked; Windows makes units of 64 KiB at most.
const MAX_UNIT_BYTES: u64 = 1 << 20;

/// A volume as clusters.
#[derive(Clone)]
pub struct ClusterDevice {
    /// The volume.
    pub device: Arc<Device>,
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
}

/// A located stream.
#[derive(Clone)]
pub enum Stream {
    /// Kept in its record.
    Resident(Vec<u8>),
    /// Kept in clusters.
    Clusters(Clusters),
}

/// A stream in clusters.
#[derive(Clone)]
pub struct Clusters {
    runs: Vec<ClusterRun>,
    len_bytes: u64,
    /// What lies behind this was never written and reads as zeros.
    initialized_bytes: u64,
    allocated_bytes: u64,
    flags: u16,
    /// Clusters of a compression unit as a power of two.
    unit_shift: u8,
}

/// A stream while it is put together.
pub(super) struct Assembly {
    cluster_bytes: u64,
    found: Option<Stream>,
    /// The cluster of the stream that the next part must begin with.
    next: u64,
}

impl Assembly {
    /// Nothing yet.
    pub(super) fn new(cluster_bytes: u64) -> Self {
        Assembly {
            cluster_bytes,
            found: None,
            next: 0,
        }
    }

    /// Adds the next attribute of a record that tells of the stream.
    ///
    /// # Errors
    /// `Corrupt` when it does not continue what is there.
    pub(super) fn push(&mut self, record: &Record, attribute: &Attribute) -> Result<()> {
        let part = match (&attribute.value, &self.found) {
            (Value::Resident(value), None) => {
                self.found = Some(Stream::Resident(record.bytes(value).to_vec()));
                return Ok(());
            }
            (Value::Clusters(part), None | Some(Stream::Clusters(_)))
                if part.first_cluster == self.next =>
            {
                part
            }
            _ => return Err(bad("the parts of a stream leave gaps")),
        };
        let stream = self.found.get_or_insert_with(|| {
            Stream::Clusters(Clusters {
                runs: Vec::new(),
                len_bytes: part.len_bytes,
                initialized_bytes: part.initialized_bytes,
                allocated_bytes: part.allocated_bytes,
                flags: attribute.flags,
                unit_shift: part.unit_shift,
            })
        });
        if let Stream::Clusters(clusters) = stream {
            let list = record.bytes(&part.runs);
            self.next = runs::decode(list, self.next, self.cluster_bytes, &mut clusters.runs)?;
        }
        Ok(())
    }

    /// The beginning of the stream, as far as parts have told of it.
    pub(super) fn so_far(&self) -> Option<Stream> {
        let mut stream = self.found.clone()?;
        if let Stream::Clusters(clusters) = &mut stream {
            clusters.len_bytes = clusters.len_bytes.min(self.covered_bytes());
        }
        Some(stream)
    }

    /// The whole stream, `None` when there were no parts.
    ///
    /// # Errors
    /// `Corrupt` when parts are missing at its end.
    pub(super) fn finish(self) -> Result<Option<Stream>> {
        match &self.found {
            Some(stream @ Stream::Clusters(_)) if stream.len_bytes() > self.covered_bytes() => {
                Err(bad("a stream is longer than its clusters"))
            }
            _ => Ok(self.found),
        }
    }

    fn covered_bytes(&self) -> u64 {
        // `runs::decode` has made sure that it is a number.
        self.next.saturating_mul(self.cluster_bytes)
    }
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
                    0 => runs.any(|run| run.at.is_none()),
                    _ => clusters.len_bytes > 0 && runs.all(|run| run.at.is_none()),
                }
            }
        }
    }

    /// The content.
    ///
    /// # Errors
    /// `Unsupported` for encrypted streams, and for compressed ones with very large units.
    pub fn into_content(self, from: &ClusterDevice) -> Result<Arc<dyn ReadAt>> {
        self.into_content_on(from.device.volume().clone(), from)
    }

    /// The content, read through the device's cache: for what the file system itself keeps in streams.
    ///
    /// # Errors
    /// As [`Stream::into_content`].
    pub fn into_metadata(self, from: &ClusterDevice) -> Result<Arc<dyn ReadAt>> {
        self.into_content_on(Arc::new(Cached(from.device.clone())), from)
    }

    /// All of the content, if it has at most `limit_bytes`, else `None`.
    ///
    /// # Errors
    /// As [`Stream::into_content`].
    pub fn into_bytes(self, from: &ClusterDevice, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        if self.len_bytes() > limit_bytes {
            return Ok(None);
        }
        if let Stream::Resident(bytes) = self {
            return Ok(Some(bytes));
        }
        let content = self.into_metadata(from)?;
        let mut bytes = vec![0; index(content.len_bytes())];
        content.read_exact_at(&mut bytes, 0)?;
        Ok(Some(bytes))
    }

    /// Whether Windows encrypted it.
    pub fn is_encrypted(&self) -> bool {
        match self {
            Stream::Resident(_) => false,
            Stream::Clusters(clusters) => clusters.flags & FLAG_ENCRYPTED != 0,
        }
    }

    fn into_content_on(
        self,
        bytes: Arc<dyn ReadAt>,
        from: &ClusterDevice,
    ) -> Result<Arc<dyn ReadAt>> {
        if self.is_encrypted() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a file that Windows encrypted (EFS) cannot be read without the key of its user",
            ));
        }
        let clusters = match self {
            Stream::Resident(bytes) => return Ok(Arc::new(bytes)),
            Stream::Clusters(clusters) => clusters,
        };
        let len = clusters.len_bytes;
        if clusters.flags & FLAG_COMPRESSED != 0 {
            let source = Compressed::new(from, clusters)?;
            return Ok(Arc::new(ChunkedFile::new(source)?));
        }
        let map = Plain {
            clusters,
            cluster_bytes: from.cluster_bytes,
        };
        Ok(Arc::new(RunFile::new(bytes, map, len)?))
    }
}

impl Clusters {
    /// The run that holds a cluster of the stream.
    fn run_of(&self, vcn: u64) -> Result<ClusterRun> {
        let index = self.runs.partition_point(|run| run.end() <= vcn);
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
        // `runs::decode` checked that the end of all runs in bytes is a number.
        let start = run.start * self.cluster_bytes;
        let end = start + run.count * self.cluster_bytes;
        let at = match run.at {
            None => None,
            Some(at) => Some(
                at.checked_mul(self.cluster_bytes)
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
    fn new(from: &ClusterDevice, clusters: Clusters) -> Result<Self> {
        let unit_clusters = 1u64.checked_shl(u32::from(clusters.unit_shift));
        let unit_bytes = unit_clusters.and_then(|count| count.checked_mul(from.cluster_bytes));
        // Windows compresses in units of 16 clusters of at most 4 KiB.
        match (unit_clusters, unit_bytes) {
            (Some(unit_clusters @ 2..), Some(..=MAX_UNIT_BYTES)) => Ok(Compressed {
                device: from.device.clone(),
                unit_clusters,
                clusters,
                cluster_bytes: from.cluster_bytes,
            }),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "a file that is compressed in units of 2^{} clusters is not supported",
                    clusters.unit_shift
                ),
            )),
        }
    }

    /// The bytes of one unit.
    fn unit(&self, number: u64) -> Result<Vec<u8>> {
        let first = number * self.unit_clusters;
        let unit_bytes = index(self.unit_clusters * self.cluster_bytes);
        let mut stored = Vec::new();
        let mut allocated = 0;
        let mut vcn = first;
        while vcn < first + self.unit_clusters {
            // The last unit of a stream may have fewer clusters; the rest counts as a hole.
            let Ok(run) = self.clusters.run_of(vcn) else {
                break;
            };
            let count = run.end().min(first + self.unit_clusters) - vcn;
            if let Some(lcn) = run.at {
                if vcn != first + allocated {
                    return Err(bad("a compressed unit has clusters behind a hole"));
                }
                let at = lcn
                    .checked_add(vcn - run.start)
                    .and_then(|lcn| lcn.checked_mul(self.cluster_bytes))
                    .ok_or_else(|| bad("a run points past the end of everything"))?;
                let len = index(count * self.cluster_bytes);
                let volume = self.device.volume();
                if check_range(at, len as u64, volume.len_bytes()).is_err() {
                    return Err(bad("a stream points past the end of its volume"));
                }
                let start = stored.len();
                stored.resize(start + len, 0);
                let (_, new) = stored.split_at_mut(start);
                volume.read_exact_at(new, at)?;
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
        lznt1::unpack(&stored, unit_bytes)
    }
}

impl ReadAt for Compressed {
    fn len_bytes(&self) -> u64 {
        self.clusters.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let unit_bytes = self.unit_clusters * self.cluster_bytes;
        let (mut rest, mut at) = (&mut *buf, offset);
        while !rest.is_empty() {
            let unit = self.unit(at / unit_bytes)?;
            let there = unit.get(index(at % unit_bytes)..).unwrap_or_default();
            let take = there.len().min(rest.len());
            let (to, behind) = rest.split_at_mut(take);
            let from = there.get(..take).filter(|from| !from.is_empty());
            to.copy_from_slice(from.ok_or_else(|| bad("a compressed unit is short"))?);
            (rest, at) = (behind, at + take as u64);
        }
        // What was never written reads as zeros, whatever is there.
        let valid = self.clusters.initialized_bytes.saturating_sub(offset);
        if let Some(never_written) = buf.get_mut(index(valid)..) {
            never_written.fill(0);
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
        // `runs::decode` checked that the end of all runs in bytes is a number.
        let run_end = run.end() * self.cluster_bytes;
        // Clusters come first in a unit: see `unit`.
        let end = match run.at {
            Some(_) => unit_end,
            None => unit_end.max(run_end - run_end % unit_bytes),
        };
        Ok(Extent {
            kind: match run.at {
                Some(_) => ExtentKind::Data,
                None => ExtentKind::Hole,
            },
            end: end.min(initialized),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_compressed_streams_are_whole_units_without_clusters() {
        let run = |start, count, at| ClusterRun { start, count, at };
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
        let device = ClusterDevice {
            device: Arc::new(Device::new(Arc::new(vec![0; 100 * 512]))),
            cluster_bytes: 512,
        };
        let len = clusters.len_bytes;
        let stream = Compressed::new(&device, clusters).unwrap();
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
}
