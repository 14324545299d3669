//! Volume groups put together from the physical volumes that are there.
//!
//! Groups are told apart by id, never by name: two disks of one restore point may well carry groups
//! of the same name. Of several metadata texts of a group the one with the highest number counts.
//! A missing physical volume makes the ranges on it fail; everything else stays readable.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::super::{Problem, Slice};
use super::map::{Mapped, Source};
use super::metadata::{self, Area, Group, Logical, Segment, SegmentKind};
use super::{label, raid, thin};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;

/// Volumes within volumes (a mirror of stripes of …).
const MAX_NESTING: usize = 8;

/// A volume with an LVM label.
#[derive(Clone)]
pub struct PhysicalVolume {
    /// Where it is, for people (`xvdb`, `xvda/part2`).
    pub place: String,
    /// Its bytes.
    pub volume: Arc<dyn ReadAt>,
}

/// A volume group.
#[derive(Clone)]
pub struct VolumeGroup {
    /// A name that is unique among the groups found together.
    pub name: String,
    /// The id, without dashes.
    pub id: String,
    /// Volumes that can be read, at least in part, in the order of the metadata.
    pub volumes: Vec<LogicalVolume>,
    /// What is missing or not supported.
    pub problems: Vec<Problem>,
}

/// A logical volume.
#[derive(Clone)]
pub struct LogicalVolume {
    /// Its name, unique within the group.
    pub name: String,
    /// Its id, without dashes.
    pub id: String,
    /// Its bytes.
    pub volume: Arc<dyn ReadAt>,
    /// Whether all of it is there; reads of what is not fail.
    pub complete: bool,
}

/// Finds the groups on these physical volumes. Reads labels and metadata areas only.
///
/// Volumes that cannot be read, or whose metadata is damaged, become problems.
pub fn assemble_groups(candidates: &[PhysicalVolume]) -> (Vec<VolumeGroup>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut present: HashMap<String, &PhysicalVolume> = HashMap::new();
    // By id; the order of discovery gives stable names.
    let mut groups: Vec<Group> = Vec::new();
    for candidate in candidates {
        let label = match label::read_label(&*candidate.volume) {
            Ok(Some(label)) => label,
            Ok(None) => continue,
            Err(error) => {
                problems.push(Problem::new(&candidate.place, error.to_string()));
                continue;
            }
        };
        if let Some(other) = present.get(&label.id) {
            problems.push(Problem::new(
                &candidate.place,
                format!(
                    "it is a copy of the physical volume on {}; that one is used",
                    other.place
                ),
            ));
            continue;
        }
        present.insert(label.id.clone(), candidate);
        for &area in &label.metadata_areas {
            let group = label::read_text(&*candidate.volume, area)
                .and_then(|text| text.map(|text| metadata::parse(&text)).transpose());
            match group {
                Ok(Some(group)) => add_group(&mut groups, group),
                Ok(None) => {}
                Err(error) => problems.push(Problem::new(&candidate.place, error.to_string())),
            }
        }
    }
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    let assembled = groups
        .iter()
        .map(|group| {
            let name = unique_name(&group.name, &mut taken);
            Builder::new(group, &present).build(name)
        })
        .collect();
    (assembled, problems)
}

fn add_group(groups: &mut Vec<Group>, group: Group) {
    match groups.iter_mut().find(|known| known.id == group.id) {
        Some(known) if known.seqno >= group.seqno => {}
        Some(known) => *known = group,
        None => groups.push(group),
    }
}

/// LVM allows letters, digits and `+_.-` in names; anything else is hostile and replaced.
fn unique_name(name: &str, taken: &mut BTreeMap<String, u32>) -> String {
    let mut clean: String = name
        .chars()
        .take(120)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "+_.-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    if clean.is_empty() || clean.chars().all(|c| c == '.') {
        clean = "_".to_string();
    }
    let count = taken.entry(clean.clone()).or_insert(0);
    *count += 1;
    match *count {
        1 => clean,
        // `~` is not allowed in names, so this cannot meet another group.
        n => format!("{clean}~{n}"),
    }
}

struct Builder<'a> {
    group: &'a Group,
    present: &'a HashMap<String, &'a PhysicalVolume>,
    logical: HashMap<&'a str, &'a Logical>,
    physical: HashMap<&'a str, &'a metadata::Physical>,
    built: HashMap<&'a str, Arc<Mapped>>,
    pools: HashMap<&'a str, (Arc<thin::Pool>, bool)>,
    problems: Vec<Problem>,
}

impl<'a> Builder<'a> {
    fn new(group: &'a Group, present: &'a HashMap<String, &'a PhysicalVolume>) -> Self {
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
            pools: HashMap::new(),
            problems: Vec::new(),
        }
    }

    fn build(mut self, name: String) -> VolumeGroup {
        for physical in &self.group.physical {
            if !self.present.contains_key(&physical.id) {
                let device = physical.device.as_deref().unwrap_or("unknown");
                self.problems.push(Problem::new(
                    &name,
                    format!(
                        "the physical volume {} (last seen as {device}) is not among these disks",
                        physical.name
                    ),
                ));
            }
        }
        // The visible volume of a snapshot is its store: raw differences, not the snapshot.
        let stores: HashSet<&str> = self
            .group
            .logical
            .iter()
            .flat_map(|logical| &logical.segments)
            .filter_map(|segment| match &segment.kind {
                SegmentKind::Snapshot { store } => Some(store.as_str()),
                _ => None,
            })
            .collect();
        let mut taken = BTreeMap::new();
        let mut volumes = Vec::new();
        for logical in &self.group.logical {
            // A pool is not a volume, and a snapshot is shown under the name of its store.
            let is_apart = logical.segments.iter().any(|segment| {
                matches!(
                    segment.kind,
                    SegmentKind::Snapshot { .. } | SegmentKind::ThinPool { .. }
                )
            });
            if !logical.visible || is_apart {
                continue;
            }
            let subject = format!("{name}/{}", logical.name);
            if stores.contains(logical.name.as_str()) {
                self.problems.push(Problem::new(
                    subject,
                    "snapshots are not read; their origin is",
                ));
                continue;
            }
            match self.volume(&logical.name, 0) {
                Ok(mapped) => {
                    if !mapped.is_complete() {
                        let reason = mapped.first_missing().unwrap_or("a volume below it is");
                        self.problems.push(Problem::new(
                            &subject,
                            format!("parts are missing: {reason}"),
                        ));
                    }
                    volumes.push(LogicalVolume {
                        name: unique_name(&logical.name, &mut taken),
                        id: logical.id.clone(),
                        complete: mapped.is_complete(),
                        volume: mapped,
                    });
                }
                Err(error) => self.problems.push(Problem::new(subject, error.to_string())),
            }
        }
        VolumeGroup {
            name,
            id: self.group.id.clone(),
            volumes,
            problems: self.problems,
        }
    }

    fn volume(&mut self, name: &str, depth: usize) -> Result<Arc<Mapped>> {
        if let Some(mapped) = self.built.get(name) {
            return Ok(mapped.clone());
        }
        if depth > MAX_NESTING {
            return Err(Error::corrupt(
                "logical volumes are nested too deeply or in a loop",
            ));
        }
        let logical = *self
            .logical
            .get(name)
            .ok_or_else(|| Error::corrupt(format!("there is no logical volume {name}")))?;
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
        let mapped = Arc::new(mapped);
        self.built.insert(logical.name.as_str(), mapped.clone());
        Ok(mapped)
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
            SegmentKind::Mirror(areas) => self.mirror(mapped, areas, len, depth)?,
            SegmentKind::Raid1(pairs) => {
                if segment.start_extent != 0 {
                    return Err(unsupported("a RAID 1 volume of several segments"));
                }
                self.raid1(mapped, pairs, depth)?
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
            SegmentKind::Thin { pool, device } => {
                if segment.start_extent != 0 {
                    return Err(unsupported("a thin volume of several segments"));
                }
                let (pool, is_complete) = self.pool(pool, depth)?;
                if !is_complete {
                    mapped.mark_incomplete();
                }
                Source::Linear(pool.volume(*device, len)?, 0)
            }
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

    /// Old mirrors keep no record on the copies; a copy that fails is removed from the metadata, so
    /// all that are listed are current. Copy 0 is the one that others are filled from.
    fn mirror(
        &mut self,
        into: &mut Mapped,
        areas: &[Area],
        len: u64,
        depth: usize,
    ) -> Result<Source> {
        let mut first = None;
        for area in areas {
            let mut probe = Mapped::new();
            let source = self.area(&mut probe, area, len, depth)?;
            if probe.is_complete() && !matches!(source, Source::Missing(_)) {
                return Ok(source);
            }
            first.get_or_insert(source);
        }
        into.mark_incomplete();
        first.ok_or_else(|| Error::corrupt("a mirror without copies"))
    }

    fn raid1(
        &mut self,
        into: &mut Mapped,
        pairs: &[(Option<String>, String)],
        depth: usize,
    ) -> Result<Source> {
        let mut images = Vec::new();
        let mut states = Vec::new();
        for (record, image) in pairs {
            let image = self.volume(image, depth + 1)?;
            let record = match record {
                Some(record) => self
                    .volume(record, depth + 1)
                    .and_then(|record| raid::read_superblock(&*record))
                    .unwrap_or(None),
                None => None,
            };
            states.push((image.is_complete(), record));
            images.push(image);
        }
        match raid::choose(&states) {
            Some(index) => Ok(Source::Linear(images[index].clone(), 0)),
            None => {
                into.mark_incomplete();
                Ok(Source::Missing(
                    "none of its copies is there and current".to_string(),
                ))
            }
        }
    }

    /// A thin pool, and whether all of its data is there.
    fn pool(&mut self, name: &str, depth: usize) -> Result<(Arc<thin::Pool>, bool)> {
        if let Some(pool) = self.pools.get(name) {
            return Ok(pool.clone());
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
        let metadata = self.volume(metadata, depth + 1)?;
        let data = self.volume(data, depth + 1)?;
        let is_complete = metadata.is_complete() && data.is_complete();
        let pool = (thin::Pool::open(metadata, data, *chunk_bytes)?, is_complete);
        self.pools.insert(logical.name.as_str(), pool.clone());
        Ok(pool)
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

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} is not read"))
}
