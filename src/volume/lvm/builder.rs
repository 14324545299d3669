//! Logical volumes from their segments: each becomes a piece of a [`Mapped`] volume, whose bytes come from
//! physical volumes and from other logical ones.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::map::{Mapped, Source};
use super::super::slice::Slice;
use super::cache::Cached;
use super::metadata::{self, Area, CacheParts, Group, Logical, Segment, SegmentKind};
use super::physical::PhysicalVolume;
use super::pieces::Budget;
use super::snapshot::Snapshot;
use super::{raid, thin};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;

/// Volumes within volumes (a mirror of stripes of …).
const MAX_NESTING: usize = 8;

/// What a volume is built of, in the worst case.
#[derive(Debug, Clone, Copy, Default)]
struct Below {
    /// Volumes that lie upon one another: so deep reads go.
    height: usize,
    /// Whether one is an array that may have to read all of its images for a byte: such within such would read
    /// without end.
    has_grid: bool,
}

impl Below {
    fn add(&mut self, other: Below) {
        self.height = self.height.max(other.height);
        self.has_grid |= other.has_grid;
    }
}

/// Builds the volumes of one group.
pub struct Builder<'a> {
    group: &'a Group,
    present: &'a HashMap<String, &'a PhysicalVolume>,
    logical: HashMap<&'a str, &'a Logical>,
    physical: HashMap<&'a str, &'a metadata::Physical>,
    built: HashMap<&'a str, (Arc<Mapped>, Below)>,
    /// Volumes that could not be built upon which so many others were to be built, or more: none is tried again
    /// and again. A volume that is being built is here, too, lest it be built of itself.
    failed: HashMap<&'a str, (usize, Error)>,
    pools: HashMap<&'a str, (Arc<thin::Pool>, bool, Below)>,
    /// What the volume that is being built has been found to be built of so far.
    below: Below,
    /// What has to be said about the volume that is being built.
    notes: Vec<String>,
    budget: Arc<Budget>,
}

impl<'a> Builder<'a> {
    /// Of a group, from the physical volumes that are there, by their ids.
    pub fn new(
        group: &'a Group,
        present: &'a HashMap<String, &'a PhysicalVolume>,
        budget: Arc<Budget>,
    ) -> Self {
        Builder {
            group,
            present,
            logical: group.logical.iter().map(|l| (l.name.as_str(), l)).collect(),
            physical: group
                .physical
                .iter()
                .map(|p| (p.name.as_str(), p))
                .collect(),
            built: HashMap::new(),
            failed: HashMap::new(),
            pools: HashMap::new(),
            below: Below::default(),
            notes: Vec::new(),
            budget,
        }
    }

    /// What has to be said about the volume that was built last.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// A snapshot, by the segment that tells of it.
    ///
    /// # Errors
    /// When it, its store or its origin cannot be read.
    pub fn snapshot(&mut self, segment: &Segment) -> Result<Arc<Mapped>> {
        let SegmentKind::Snapshot {
            origin,
            store,
            is_merging: false,
        } = &segment.kind
        else {
            return Err(unsupported("a snapshot that is being merged"));
        };
        let origin = self.volume(origin, 1)?;
        let store = self.volume(store, 1)?;
        let mut whole = Mapped::new();
        if !origin.is_complete() || !store.is_complete() {
            whole.mark_incomplete();
        }
        let len = self.bytes(segment.extents)?;
        let snapshot = Snapshot::open(origin, store, len, self.budget.clone())?;
        whole.push(len, Source::Linear(Arc::new(snapshot), 0))?;
        Ok(Arc::new(whole))
    }

    /// A volume, visible or not; `depth` volumes are built upon it.
    ///
    /// # Errors
    /// `Unsupported` for what is not read; `Corrupt` when the metadata makes no sense.
    pub fn volume(&mut self, name: &str, depth: usize) -> Result<Arc<Mapped>> {
        if let Some((mapped, below)) = self.built.get(name) {
            self.below.add(*below);
            return Ok(mapped.clone());
        }
        let nested = || Error::corrupt("logical volumes are nested too deeply or in a loop");
        if depth > MAX_NESTING {
            return Err(nested());
        }
        let logical = *self
            .logical
            .get(name)
            .ok_or_else(|| Error::corrupt(format!("there is no logical volume {name}")))?;
        if let Some((at, error)) = self.failed.get(name)
            && depth >= *at
        {
            return Err(error.clone());
        }
        let name = logical.name.as_str();
        self.failed.insert(name, (0, nested()));
        let outer = std::mem::take(&mut self.below);
        let built = self.build(logical, depth);
        let mut below = std::mem::replace(&mut self.below, outer);
        below.height += 1;
        let built = match below.height > MAX_NESTING + 1 {
            true => Err(nested()),
            false => built,
        };
        match built {
            Ok(mapped) => {
                self.failed.remove(name);
                self.built.insert(name, (mapped.clone(), below));
                self.below.add(below);
                Ok(mapped)
            }
            Err(error) => {
                self.failed.insert(name, (depth, error.clone()));
                Err(error)
            }
        }
    }

    fn build(&mut self, logical: &'a Logical, depth: usize) -> Result<Arc<Mapped>> {
        let mut mapped = Mapped::new();
        let mut next_extent = 0;
        for segment in &logical.segments {
            if segment.start_extent != next_extent {
                return Err(Error::corrupt("its segments overlap or leave gaps"));
            }
            next_extent = segment
                .start_extent
                .checked_add(segment.extents)
                .ok_or_else(|| Error::corrupt("a segment is too long"))?;
            self.push_segment(&mut mapped, segment, depth)?;
        }
        Ok(Arc::new(mapped))
    }

    fn push_segment(&mut self, mapped: &mut Mapped, segment: &Segment, depth: usize) -> Result<()> {
        let len = self.bytes(segment.extents)?;
        let source = match &segment.kind {
            SegmentKind::Striped { areas, .. } if areas.len() == 1 => {
                self.area(mapped, &areas[0], len, depth)?
            }
            SegmentKind::Striped {
                stripe_bytes,
                areas,
            } => {
                let each = len / areas.len() as u64;
                let sources = areas
                    .iter()
                    .map(|area| self.area(mapped, area, each, depth))
                    .collect::<Result<Vec<_>>>()?;
                striped(sources, *stripe_bytes)
            }
            SegmentKind::Mirror {
                areas,
                log,
                region_bytes,
            } => {
                let log = match log {
                    Some(log) => self.volume(log, depth + 1).ok(),
                    None => None,
                };
                let is_synced = log.is_some_and(|log| is_in_sync(&*log, len, *region_bytes));
                self.mirror(mapped, areas, is_synced, len, depth)?
            }
            SegmentKind::Raid1(pairs) => {
                if segment.start_extent != 0 {
                    return Err(unsupported("a RAID 1 volume of several segments"));
                }
                self.raid1(mapped, pairs, depth)?
            }
            SegmentKind::Raid {
                level,
                layout,
                stripe_bytes,
                pairs,
            } => {
                if segment.start_extent != 0 {
                    return Err(unsupported("a RAID volume of several segments"));
                }
                let images = self.raid_images(pairs, depth)?;
                if std::mem::replace(&mut self.below.has_grid, true) {
                    return Err(unsupported("a RAID volume within another one"));
                }
                let (grid, notes) = raid::grid(&images, *level, *layout, *stripe_bytes)?;
                self.notes.extend(notes);
                Source::Linear(Arc::new(grid), 0)
            }
            SegmentKind::Raid0 {
                stripe_bytes,
                images,
            } => {
                let sources = images
                    .iter()
                    .map(|image| self.logical_area(mapped, image, 0, depth))
                    .collect::<Result<Vec<_>>>()?;
                striped(sources, *stripe_bytes)
            }
            SegmentKind::Thin {
                pool,
                device,
                outside,
                merged_into: _,
            } => {
                if segment.start_extent != 0 {
                    return Err(unsupported("a thin volume of several segments"));
                }
                let (pool, is_complete) = self.pool(pool, depth)?;
                if !is_complete {
                    mapped.mark_incomplete();
                }
                let outside = match outside {
                    Some(name) => {
                        let volume = self.volume(name, depth + 1)?;
                        if !volume.is_complete() {
                            mapped.mark_incomplete();
                        }
                        Some(volume as Arc<dyn ReadAt>)
                    }
                    None => None,
                };
                Source::Linear(pool.volume(*device, len, outside)?, 0)
            }
            SegmentKind::Cache {
                origin,
                cache,
                parts,
            } => {
                if segment.start_extent != 0 {
                    return Err(unsupported("a cached volume of several segments"));
                }
                let cached = self.cached(mapped, origin, cache, *parts, depth)?;
                Source::Linear(Arc::new(cached), 0)
            }
            SegmentKind::CachePool { .. } => return Err(unsupported("a cache pool")),
            SegmentKind::ThinPool { .. } => return Err(unsupported("a thin pool")),
            SegmentKind::Zero => Source::Zero,
            SegmentKind::Snapshot { .. } => return Err(unsupported("a snapshot")),
            SegmentKind::Unsupported(kind) => {
                return Err(unsupported(&format!("a volume of type {kind}")));
            }
        };
        mapped.push(len, source)
    }

    fn area(&mut self, into: &mut Mapped, area: &Area, len: u64, depth: usize) -> Result<Source> {
        let at = self.bytes(area.start_extent)?;
        let Some(physical) = self.physical.get(area.name.as_str()).copied() else {
            return self.logical_area(into, &area.name, at, depth);
        };
        let within = at.checked_add(len);
        let most = self.bytes(physical.extents)?;
        if within.is_none_or(|end| end > most) {
            return Err(Error::corrupt("a segment leaves its physical volume"));
        }
        let Some(present) = self.present.get(&physical.id) else {
            return Ok(Source::Missing(format!(
                "the physical volume {} is not among these disks",
                physical.name
            )));
        };
        let start = physical.start_bytes.checked_add(at);
        let slice = start.map(|start| Slice::new(present.volume.clone(), start, len));
        Ok(match slice {
            Some(Ok(slice)) => Source::Linear(Arc::new(slice), 0),
            _ => Source::Missing(format!(
                "{} is shorter than its volume group says",
                present.place
            )),
        })
    }

    fn logical_area(
        &mut self,
        into: &mut Mapped,
        name: &str,
        at: u64,
        depth: usize,
    ) -> Result<Source> {
        let volume = self.volume(name, depth + 1)?;
        if !volume.is_complete() {
            into.mark_incomplete();
        }
        Ok(Source::Linear(volume, at))
    }

    /// Copy 0 is the one that others are filled from; a copy that fails is removed from the metadata. Whether the
    /// others are whole only a log tells: extents that are being moved have none.
    fn mirror(
        &mut self,
        into: &mut Mapped,
        areas: &[Area],
        is_synced: bool,
        len: u64,
        depth: usize,
    ) -> Result<Source> {
        for (index, area) in areas.iter().enumerate() {
            let mut probe = Mapped::new();
            let source = self.area(&mut probe, area, len, depth)?;
            let is_there = probe.is_complete() && !matches!(source, Source::Missing(_));
            if is_there && (index == 0 || is_synced) {
                return Ok(source);
            }
        }
        into.mark_incomplete();
        Ok(Source::Missing(
            "its first copy is not there, and no log tells that another one is whole".to_string(),
        ))
    }

    fn raid1(
        &mut self,
        into: &mut Mapped,
        pairs: &[(String, String)],
        depth: usize,
    ) -> Result<Source> {
        let images = self.raid_images(pairs, depth)?;
        let states: Vec<_> = images.iter().map(raid::Image::state).collect();
        if raid::has_moved(&states) {
            return Err(unsupported("a RAID 1 volume that is or was reshaped"));
        }
        let current = raid::current(&states);
        let others = images.iter().zip(&current).enumerate();
        let notes = others.filter(|(_, (_, is_current))| !**is_current);
        self.notes
            .extend(notes.map(|(index, (image, _))| raid::done_without(index, image)));
        match current.iter().position(|is_current| *is_current) {
            Some(index) => Ok(Source::Linear(images[index].volume.clone(), 0)),
            None => {
                into.mark_incomplete();
                Ok(Source::Missing(
                    "none of its copies is there and current".to_string(),
                ))
            }
        }
    }

    fn raid_images(
        &mut self,
        pairs: &[(String, String)],
        depth: usize,
    ) -> Result<Vec<raid::Image>> {
        let mut images = Vec::new();
        for (record, image) in pairs {
            let volume = self.volume(image, depth + 1)?;
            let record = self.volume(record, depth + 1);
            images.push(raid::Image {
                is_complete: volume.is_complete(),
                volume,
                record: record.map(|record| record as Arc<dyn ReadAt>).ok(),
            });
        }
        Ok(images)
    }

    /// A thin pool, and whether all of its data is there.
    fn pool(&mut self, name: &str, depth: usize) -> Result<(Arc<thin::Pool>, bool)> {
        if let Some((pool, is_complete, below)) = self.pools.get(name) {
            self.below.add(*below);
            return Ok((pool.clone(), *is_complete));
        }
        let logical = *self
            .logical
            .get(name)
            .ok_or_else(|| Error::corrupt(format!("there is no thin pool {name}")))?;
        let [segment] = &logical.segments[..] else {
            return Err(Error::corrupt("a thin pool has other than one segment"));
        };
        let SegmentKind::ThinPool {
            metadata,
            data,
            chunk_bytes,
        } = &segment.kind
        else {
            return Err(Error::corrupt(format!("{name} is no thin pool")));
        };
        let outer = std::mem::take(&mut self.below);
        let parts = self.volume(metadata, depth + 1).and_then(|metadata| {
            let data = self.volume(data, depth + 1)?;
            Ok((metadata, data))
        });
        let below = std::mem::replace(&mut self.below, outer);
        let (metadata, data) = parts?;
        self.below.add(below);
        let is_complete = metadata.is_complete() && data.is_complete();
        let pool = thin::Pool::open(metadata, data, *chunk_bytes)?;
        let kept = (pool.clone(), is_complete, below);
        self.pools.insert(logical.name.as_str(), kept);
        Ok((pool, is_complete))
    }

    fn cached(
        &mut self,
        into: &mut Mapped,
        origin: &str,
        cache: &str,
        parts: Option<CacheParts>,
        depth: usize,
    ) -> Result<Cached> {
        let origin = self.volume(origin, depth + 1)?;
        let (metadata, data): (Arc<dyn ReadAt>, Arc<dyn ReadAt>) = match parts {
            Some(CacheParts { metadata, data }) => {
                let whole = self.volume(cache, depth + 1)?;
                if !whole.is_complete() {
                    into.mark_incomplete();
                }
                let part = |(start, len)| Slice::new(whole.clone(), start, len);
                (Arc::new(part(metadata)?), Arc::new(part(data)?))
            }
            None => {
                let pool = self.logical.get(cache).map(|logical| &logical.segments[..]);
                let Some([Segment { kind, .. }]) = pool else {
                    return Err(Error::corrupt(format!("there is no cache pool {cache}")));
                };
                let SegmentKind::CachePool { metadata, data } = kind else {
                    return Err(Error::corrupt(format!("{cache} is no cache pool")));
                };
                let metadata = self.volume(metadata, depth + 1)?;
                let data = self.volume(data, depth + 1)?;
                if !metadata.is_complete() || !data.is_complete() {
                    into.mark_incomplete();
                }
                (metadata, data)
            }
        };
        if !origin.is_complete() {
            into.mark_incomplete();
        }
        Cached::open(origin, metadata, data, self.budget.clone())
    }

    fn bytes(&self, extents: u64) -> Result<u64> {
        extents
            .checked_mul(self.group.extent_bytes)
            .ok_or_else(|| Error::corrupt("a number of extents is too large"))
    }
}

/// Stripes over sources that all are plain runs; one that is missing makes all of it missing, since
/// the smallest read touches them in turn.
fn striped(sources: Vec<Source>, stripe_bytes: u64) -> Source {
    let mut members = Vec::with_capacity(sources.len());
    for source in sources {
        match source {
            Source::Linear(volume, start) => members.push((volume, start)),
            other => return other,
        }
    }
    Source::Striped {
        members,
        stripe_bytes,
    }
}

/// Whether a mirror's log has all regions as the same on all copies (`struct log_header_disk` in `dm-log.c`: a
/// header, and behind two sectors a bit for each region).
fn is_in_sync(log: &dyn ReadAt, len_bytes: u64, region_bytes: u64) -> bool {
    const MAGIC_AND_VERSION: [u8; 8] = *b"rRiM\x02\0\0\0";
    const BITS_AT: u64 = 1024;
    const MAX_BITMAP: u64 = 4 << 20;
    let mut head = [0; 8];
    let regions = len_bytes.div_ceil(region_bytes.max(1));
    let is_log = log.read_exact_at(&mut head, 0).is_ok() && head == MAGIC_AND_VERSION;
    if !is_log || region_bytes == 0 || regions > MAX_BITMAP * 8 {
        return false;
    }
    let mut bits = vec![0u8; regions.div_ceil(8) as usize];
    log.read_exact_at(&mut bits, BITS_AT).is_ok()
        && (0..regions).all(|region| bits[(region / 8) as usize] >> (region % 8) & 1 == 1)
}

/// An error that tells what is not read.
pub fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} is not read"))
}
