//! All volumes of a set of disks: partitions of each, volume groups over all.

use std::sync::Arc;

use super::detect::{TableKind, read_table};
use super::lvm::{PhysicalVolume, VolumeGroup, assemble_groups};
use super::signature::{Content, identify, identify_partition};
use super::{Partition, Problem, Slice};
use crate::error::Result;
use crate::io::ReadAt;

/// What the disks of one machine hold.
#[derive(Clone, Default)]
pub struct Volumes {
    /// Each disk, in the order given.
    pub disks: Vec<DiskVolumes>,
    /// Volume groups over all disks.
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

/// Reads partition tables, labels and metadata of all disks, and puts volume groups together.
/// Costs some reads of the first MiB of each partition. A disk that cannot be read becomes a
/// problem and the others go on.
pub fn assemble(disks: &[(String, Arc<dyn ReadAt>)]) -> Volumes {
    let mut volumes = Volumes::default();
    let mut members = Vec::new();
    for (name, disk) in disks {
        match scan_disk(name, disk, &mut volumes.problems) {
            Ok(found) => {
                if found.content == Content::LvmMember {
                    members.push(PhysicalVolume {
                        place: name.clone(),
                        volume: disk.clone(),
                    });
                }
                for part in &found.partitions {
                    if part.content == Content::LvmMember {
                        members.push(PhysicalVolume {
                            place: format!("{name}/part{}", part.partition.number),
                            volume: part.volume.clone(),
                        });
                    }
                }
                volumes.disks.push(found);
            }
            Err(error) => volumes.problems.push(Problem::new(name, error.to_string())),
        }
    }
    let (groups, problems) = assemble_groups(&members);
    volumes.groups = groups;
    volumes.problems.extend(problems);
    volumes
}
