//! All volumes of a set of disks: partitions of each, volume groups over all.

use std::sync::Arc;

use super::detect::{TableKind, read_table};
use super::lvm::{PhysicalVolume, VolumeGroup, assemble_groups};
use super::md::{Array, Member, assemble_arrays};
use super::signature::{Content, identify, identify_partition};
use super::{Partition, Problem, Slice};
use crate::error::Result;
use crate::io::ReadAt;

/// What the disks of one machine hold.
#[derive(Clone, Default)]
pub struct Volumes {
    /// Each disk, in the order given.
    pub disks: Vec<DiskVolumes>,
    /// md arrays over all disks.
    pub arrays: Vec<Array>,
    /// Volume groups over all disks and arrays.
    pub groups: Vec<VolumeGroup>,
    /// What could not be read, over all disks.
    pub problems: Vec<Problem>,
}

/// One disk.
#[derive(Clone)]
pub struct DiskVolumes {
    /// The name it was given.
    pub name: String,
    /// The kind of its partition table.
    pub table: TableKind,
    /// What the disk itself holds when it has no table.
    pub content: Content,
    /// Its partitions.
    pub partitions: Vec<PartitionVolume>,
}

/// One partition with its bytes.
#[derive(Clone)]
pub struct PartitionVolume {
    /// The entry in the table.
    pub partition: Partition,
    /// What it holds.
    pub content: Content,
    /// Its bytes.
    pub volume: Arc<dyn ReadAt>,
}

/// Reads the tables of one disk and what its volumes hold.
///
/// # Errors
/// Only when the table itself cannot be read; a partition that cannot becomes a problem.
pub fn scan_disk(
    name: &str,
    disk: &Arc<dyn ReadAt>,
    problems: &mut Vec<Problem>,
) -> Result<DiskVolumes> {
    let table = read_table(&**disk)?;
    for problem in table.problems {
        problems.push(Problem::new(
            format!("{name}: {}", problem.subject),
            problem.message,
        ));
    }
    let content = match table.kind {
        TableKind::None => identify(&**disk)?,
        _ => Content::Unknown,
    };
    let mut partitions = Vec::new();
    for partition in table.partitions {
        let volume: Arc<dyn ReadAt> = Arc::new(Slice::new(
            disk.clone(),
            partition.start_bytes,
            partition.len_bytes,
        )?);
        let content = match identify_partition(&partition, &*volume) {
            Ok(content) => content,
            Err(error) => {
                problems.push(Problem::new(
                    format!("{name}/part{}", partition.number),
                    error.to_string(),
                ));
                Content::Unknown
            }
        };
        partitions.push(PartitionVolume {
            partition,
            content,
            volume,
        });
    }
    Ok(DiskVolumes {
        name: name.to_string(),
        table: table.kind,
        content,
        partitions,
    })
}

/// Volumes with this content, the whole disk or its partitions: where they are, and their bytes.
fn holding(
    content: Content,
    found: &DiskVolumes,
    disk: &Arc<dyn ReadAt>,
) -> Vec<(String, Arc<dyn ReadAt>)> {
    let mut all = Vec::new();
    if found.content == content {
        all.push((found.name.clone(), disk.clone()));
    }
    for part in found.partitions.iter().filter(|p| p.content == content) {
        let place = format!("{}/part{}", found.name, part.partition.number);
        all.push((place, part.volume.clone()));
    }
    all
}

/// Reads partition tables, labels and metadata of all disks, and puts md arrays and volume groups
/// together; arrays may hold physical volumes. Costs some reads of the first MiB of each partition.
/// A disk that cannot be read becomes a problem and the others go on.
pub fn assemble(disks: &[(String, Arc<dyn ReadAt>)]) -> Volumes {
    let mut volumes = Volumes::default();
    let mut physical = Vec::new();
    let mut md = Vec::new();
    for (name, disk) in disks {
        match scan_disk(name, disk, &mut volumes.problems) {
            Ok(found) => {
                physical.extend(holding(Content::LvmMember, &found, disk));
                md.extend(holding(Content::MdMember, &found, disk));
                volumes.disks.push(found);
            }
            Err(error) => volumes.problems.push(Problem::new(name, error.to_string())),
        }
    }
    let members: Vec<Member> = md
        .into_iter()
        .map(|(place, volume)| Member { place, volume })
        .collect();
    let (arrays, problems) = assemble_arrays(&members);
    volumes.problems.extend(problems);
    for array in &arrays {
        let place = format!("md/{}", array.name);
        match scan_disk(&place, &array.volume, &mut volumes.problems) {
            Ok(found) => physical.extend(holding(Content::LvmMember, &found, &array.volume)),
            Err(error) => volumes
                .problems
                .push(Problem::new(place, error.to_string())),
        }
    }
    volumes.arrays = arrays;
    let members: Vec<PhysicalVolume> = physical
        .into_iter()
        .map(|(place, volume)| PhysicalVolume { place, volume })
        .collect();
    let (groups, problems) = assemble_groups(&members);
    volumes.groups = groups;
    volumes.problems.extend(problems);
    volumes
}
