//! All volumes of a set of disks: partitions of each, volume groups over all.

use std::sync::Arc;

use super::layout::{Layout, lay_out};
use super::lvm::{PhysicalVolume, VolumeGroup, assemble_groups};
use super::md::{Array, Member, assemble_arrays};
use super::partition::Partition;
use super::problem::Problem;
use super::signature::{Content, identify, identify_partition};
use super::slice::Slice;
use super::table::TableKind;
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
    /// What the disk itself holds when it has no table; a member of an array also when it has one, where nothing tells
    /// which of the two is newer.
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
    /// Whether it could be read where that is seen.
    pub is_identified: bool,
    /// What is wrong with it, though it is shown.
    pub problems: Vec<String>,
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
    let Layout { table, content } = lay_out(&**disk)?;
    for problem in table.problems {
        problems.push(Problem::new(
            format!("{name}: {}", problem.subject),
            problem.message,
        ));
    }
    let mut partitions = Vec::new();
    for partition in table.partitions {
        let volume: Arc<dyn ReadAt> = Arc::new(Slice::new(
            disk.clone(),
            partition.start_bytes,
            partition.len_bytes,
        )?);
        let mut own = partition.problems.clone();
        let mut is_identified = true;
        let content = match identify_partition(&partition, &*volume) {
            Ok(content) => content,
            Err(error) => {
                is_identified = false;
                own.push(error.to_string());
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
            is_identified,
            problems: own,
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

/// A volume, and where it is: `xvda/part1`, `md/NAME`, `lvm/GROUP/NAME`.
pub type PlacedVolume = (String, Arc<dyn ReadAt>);

/// A disk itself, its partitions, or both, with what each holds.
fn volumes_of(found: &DiskVolumes, disk: &Arc<dyn ReadAt>) -> Vec<(Content, PlacedVolume)> {
    let place = |part: &PartitionVolume| format!("{}/part{}", found.name, part.partition.number);
    let parts = found.partitions.iter();
    let parts = parts.map(|part| (part.content, (place(part), part.volume.clone())));
    let is_volume = found.table == TableKind::None || found.content == Content::MdMember;
    let whole = is_volume.then(|| (found.content, (found.name.clone(), disk.clone())));
    whole.into_iter().chain(parts).collect()
}

/// Those with this content.
fn holding(content: Content, all: &[(Content, PlacedVolume)]) -> Vec<PlacedVolume> {
    let same = all.iter().filter(|(found, _)| *found == content);
    same.map(|(_, volume)| volume.clone()).collect()
}

/// Reads partition tables, labels and metadata of all disks, and puts md arrays and volume groups
/// together; arrays may hold physical volumes. Costs some reads of the first MiB of each partition.
/// A disk that cannot be read becomes a problem and the others go on.
pub fn assemble(disks: &[(String, Arc<dyn ReadAt>)]) -> Volumes {
    survey(disks).0
}

/// The volumes with this content: on disks, partitions, md arrays and in volume groups. Also what could not
/// be read on the way.
pub fn find_all(
    content: Content,
    disks: &[(String, Arc<dyn ReadAt>)],
) -> (Vec<PlacedVolume>, Vec<Problem>) {
    let (volumes, all) = survey(disks);
    let mut problems = volumes.problems;
    let mut found = holding(content, &all);
    for group in volumes.groups {
        problems.extend(group.problems);
        for logical in group.volumes {
            let place = format!("lvm/{}/{}", group.name, logical.name);
            match identify(&*logical.volume) {
                Ok(is) if is == content => found.push((place, logical.volume)),
                Ok(_) => {}
                Err(error) => problems.push(Problem::new(place, error.to_string())),
            }
        }
    }
    (found, problems)
}

/// All volumes, and those of disks and arrays with what they hold.
fn survey(disks: &[(String, Arc<dyn ReadAt>)]) -> (Volumes, Vec<(Content, PlacedVolume)>) {
    let mut volumes = Volumes::default();
    let mut all = Vec::new();
    for (name, disk) in disks {
        match scan_disk(name, disk, &mut volumes.problems) {
            Ok(found) => {
                all.extend(volumes_of(&found, disk));
                volumes.disks.push(found);
            }
            Err(error) => volumes.problems.push(Problem::new(name, error.to_string())),
        }
    }
    let members: Vec<Member> = holding(Content::MdMember, &all)
        .into_iter()
        .map(|(place, volume)| Member { place, volume })
        .collect();
    let (arrays, problems) = assemble_arrays(&members);
    volumes.problems.extend(problems);
    for array in &arrays {
        let place = format!("md/{}", array.name);
        match scan_disk(&place, &array.volume, &mut volumes.problems) {
            Ok(found) => all.extend(volumes_of(&found, &array.volume)),
            Err(error) => volumes
                .problems
                .push(Problem::new(place, error.to_string())),
        }
    }
    volumes.arrays = arrays;
    let members: Vec<PhysicalVolume> = holding(Content::LvmMember, &all)
        .into_iter()
        .map(|(place, volume)| PhysicalVolume { place, volume })
        .collect();
    let (groups, problems) = assemble_groups(&members);
    volumes.groups = groups;
    volumes.problems.extend(problems);
    (volumes, all)
}
