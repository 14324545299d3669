//! What is inside the disks of a restore point: `xvda/` beside `xvda.raw`, `lvm/` and `md/`.

use std::collections::HashSet;
use std::sync::Arc;

use super::context::{ViewContext, point_time};
use super::disk::DiskFile;
use super::guest::{Machine, OpenDisk, Over, PointDisks, identity_of_disk, identity_of_disks};
use super::json_file::BACKUP_JSON;
use super::nodes::point_identity;
use crate::error::{Error, ErrorKind, Result};
use crate::image::DiskStreams;
use crate::io::ReadAt;
use crate::repo::RestorePoint;
use crate::tree::{Directory, Identity};

/// Whether a disk can hold file systems: a RAM image cannot.
pub(super) fn is_guest_disk(point: &RestorePoint, index: usize) -> bool {
    point.json_meta.is_some() && !point.disks[index].suspend
}

pub(super) fn has_guests(point: &RestorePoint) -> bool {
    (0..point.disks.len()).any(|index| is_guest_disk(point, index))
}

/// The names of the directories of all disks: those of the disks, unless another entry of the point has it.
pub(super) fn dir_names(point: &RestorePoint) -> Vec<String> {
    let ours = Over::ALL.map(Over::name).into_iter().chain([BACKUP_JSON]);
    let files = point.disks.iter().map(|disk| disk.file_name());
    let taken: HashSet<String> = ours.map(str::to_owned).chain(files).collect();
    let disks: HashSet<&str> = point.disks.iter().map(|disk| disk.name.as_str()).collect();
    let names = point.disks.iter().map(|disk| {
        let mut name = disk.name.clone();
        while taken.contains(&name) || name != disk.name && disks.contains(name.as_str()) {
            name.push('~');
        }
        name
    });
    names.collect()
}

/// The directory that is entered is there; what it is made of is not.
pub(super) fn missing_is_damage(e: Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => {
            let damage = Error::corrupt(format!("the disk cannot be opened: {}", e.message()));
            damage.with_object(e.object().unwrap_or("disk"))
        }
        _ => e,
    }
}

fn opener(context: &Arc<ViewContext>, point: &Arc<RestorePoint>, index: usize) -> Option<OpenDisk> {
    let file = DiskFile::new(Arc::clone(context), Arc::clone(point), index)?;
    Some(Arc::new(move || -> Result<Arc<dyn ReadAt>> {
        let disk = file.disk().map_err(missing_is_damage)?;
        Ok(Arc::new(DiskStreams::new(disk)))
    }))
}

/// What is inside disk `index`, in the state of the point that its metadata is of.
fn identity_inside(point: &RestorePoint, index: usize) -> Identity {
    identity_in(point, &format!("in {}", point.disks[index].vdi_ref))
}

fn identity_in(point: &RestorePoint, what: &str) -> Identity {
    let version = point.json_meta.map(|meta| meta.version);
    point_identity(&point.json_path, version, what)
}

/// The identity of what [`disk_dir`] gives.
pub(super) fn disk_dir_identity(point: &RestorePoint, index: usize) -> Identity {
    identity_of_disk(identity_inside(point, index), &point.disks[index].name)
}

/// The inside of disk `index` of a point.
pub(super) fn disk_dir(
    context: &Arc<ViewContext>,
    point: &Arc<RestorePoint>,
    index: usize,
) -> Option<Arc<dyn Directory>> {
    let name = &point.disks[index].name;
    let identity = identity_inside(point, index);
    let time = point_time(&point.name, context.since);
    let open = opener(context, point, index)?;
    let disks = || all_disks(context, point);
    let guests = &context.guests;
    Some(guests.of_disk(identity, name, time, open, disks))
}

/// The identity of what [`over_disks`] gives.
pub(super) fn over_disks_identity(point: &RestorePoint, over: Over) -> Identity {
    identity_of_disks(identity_in(point, over.name()), over)
}

/// The volumes over the disks of a point.
pub(super) fn over_disks(
    context: &Arc<ViewContext>,
    point: &Arc<RestorePoint>,
    over: Over,
) -> Arc<dyn Directory> {
    let identity = identity_in(point, over.name());
    let time = point_time(&point.name, context.since);
    let disks = || all_disks(context, point);
    context.guests.of_disks(identity, over, time, disks)
}

/// All disks of a point. ([`DiskFile::new`] refuses none of a point that has guests.)
fn all_disks(context: &Arc<ViewContext>, point: &Arc<RestorePoint>) -> PointDisks {
    let named = |index: usize| {
        let name = point.disks[index].name.clone();
        Some((name, opener(context, point, index)?))
    };
    PointDisks {
        all: (0..point.disks.len()).filter_map(named).collect(),
        machine: machine(context, point),
    }
}

fn machine(context: &Arc<ViewContext>, point: &RestorePoint) -> Arc<Machine> {
    context.guests.machine(identity_in(point, "machine"))
}

/// Whether it is known that no disk of a point has anything that would be shown of `over`: all were looked at, and could
/// be read. The name is not listed then. Looking it up still works, so that whoever listed it before finds it, empty.
pub(super) fn is_known_empty(
    context: &Arc<ViewContext>,
    point: &Arc<RestorePoint>,
    over: Over,
) -> bool {
    let machine = machine(context, point);
    let disks = point.disks.iter().map(|disk| disk.name.as_str());
    match over {
        Over::Md => machine.has_no_md(disks),
        Over::Lvm => machine.has_no_lvm(disks),
    }
}
