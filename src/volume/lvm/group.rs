//! Volume groups put together from the physical volumes that are there.
//!
//! Groups are told apart by id, never by name: two disks of one restore point may well carry groups
//! of the same name. Of several metadata texts of a group the one with the highest number counts.
//! A missing physical volume makes the ranges on it fail; everything else stays readable.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::super::problem::Problem;
use super::builder::{Builder, unsupported};
use super::label;
use super::metadata::{self, Group, Segment, SegmentKind};
use super::physical::PhysicalVolume;
use super::pieces::Budget;
use crate::io::ReadAt;

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
    let budget = Arc::new(Budget::default());
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    let assembled = groups
        .iter()
        .map(|group| {
            let name = unique_name(&group.name, &mut taken);
            build(group, &present, &budget, name)
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

fn build(
    group: &Group,
    present: &HashMap<String, &PhysicalVolume>,
    budget: &Arc<Budget>,
    name: String,
) -> VolumeGroup {
    let mut builder = Builder::new(group, present, budget.clone());
    let mut problems = Vec::new();
    for physical in &group.physical {
        if !present.contains_key(&physical.id) {
            let device = physical.device.as_deref().unwrap_or("unknown");
            problems.push(Problem::new(
                &name,
                format!(
                    "the physical volume {} (last seen as {device}) is not among these disks",
                    physical.name
                ),
            ));
        }
    }
    // The visible volume of a snapshot is its store: raw differences, not the snapshot.
    let mut snapshots: HashMap<&str, (&Segment, bool)> = HashMap::new();
    let mut merged_into: HashSet<&str> = HashSet::new();
    for segment in group.logical.iter().flat_map(|l| &l.segments) {
        match &segment.kind {
            SegmentKind::Snapshot {
                origin,
                store,
                is_merging,
            } => {
                snapshots.insert(store, (segment, *is_merging));
                if *is_merging {
                    merged_into.insert(origin);
                }
            }
            SegmentKind::Thin {
                merged_into: Some(origin),
                ..
            } => {
                merged_into.insert(origin);
            }
            _ => {}
        }
    }
    let mut taken = BTreeMap::new();
    let mut volumes = Vec::new();
    for logical in &group.logical {
        // A pool is not a volume, and a snapshot is shown under the name of its store.
        let is_apart = logical.segments.iter().any(|segment| {
            matches!(
                segment.kind,
                SegmentKind::Snapshot { .. }
                    | SegmentKind::ThinPool { .. }
                    | SegmentKind::CachePool { .. }
            )
        });
        // A store has no mark of its own: its snapshot is seen as long as it is not being merged.
        let snapshot = snapshots.get(logical.name.as_str());
        let is_seen = snapshot.map_or(logical.visible, |(_, is_merging)| !is_merging);
        if !is_seen || is_apart {
            continue;
        }
        let subject = format!("{name}/{}", logical.name);
        let built = match snapshot {
            Some((segment, _)) => builder.snapshot(segment),
            // Whether that has begun, and so which of the two it is, cannot be seen.
            None if merged_into.contains(logical.name.as_str()) => Err(unsupported(
                "a volume that a snapshot is, or will be, merged into",
            )),
            None => builder.volume(&logical.name, 0),
        };
        for note in builder.take_notes() {
            problems.push(Problem::new(&subject, note));
        }
        match built {
            Ok(mapped) => {
                if !mapped.is_complete() {
                    let reason = mapped.first_missing().unwrap_or("a volume below it is");
                    problems.push(Problem::new(
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
            Err(error) => problems.push(Problem::new(subject, error.to_string())),
        }
    }
    VolumeGroup {
        name,
        id: group.id.clone(),
        volumes,
        problems,
    }
}
