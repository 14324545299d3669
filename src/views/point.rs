//! `vms/<name>/<date>/`: one restore point.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::ViewContext;
use super::disk::DiskFile;
use super::guests;
use super::json_file::JsonFile;
use super::nodes::{Xattrs, entry, is_ours, point_identity, stream};
use super::vms::point_time;
use crate::error::{Error, ErrorKind, Result};
use crate::repo::{RestorePoint, Vm};
use crate::store::Version;
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node, NodeKind};

/// The metadata as stored.
pub(super) const BACKUP_JSON: &str = "backup.json";

/// The directory of a restore point: its metadata and its disks.
pub(super) struct PointDir {
    context: Arc<ViewContext>,
    vm: Arc<Vm>,
    name: String,
    version: Version,
}

impl PointDir {
    pub(super) fn new(
        context: Arc<ViewContext>,
        vm: Arc<Vm>,
        name: String,
        version: Version,
    ) -> Self {
        PointDir {
            context,
            vm,
            name,
            version,
        }
    }

    /// The point as it is now: a directory promises no content, so one that was made again simply
    /// shows its new files, which have identities of their own.
    fn point(&self) -> Result<Arc<RestorePoint>> {
        let point = self.vm.point(&self.name)?;
        point.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "the restore point was removed")
                .with_object(self.vm.json_path(&self.name))
        })
    }

    fn xattrs(&self) -> Result<Xattrs> {
        let point = self.point()?;
        let mut xattrs = Xattrs::default();
        xattrs.add("job", point.job_id.clone());
        xattrs.add("schedule", point.schedule_id.clone());
        if !point.unreadable {
            xattrs.add("mode", point.mode.as_str().to_owned());
        }
        xattrs.add("vm_uuid", self.vm.folder().to_owned());
        xattrs.add("vm_name", point.vm_name.clone());
        xattrs.add("timestamp", point.timestamp_ms.map(|t| t.to_string()));
        xattrs.add("size", point.size_bytes.map(|s| s.to_string()));
        xattrs.add("problem", problem_of(&point));
        Ok(xattrs)
    }
}

/// What keeps a point from being read in full, in one text.
fn problem_of(point: &RestorePoint) -> Option<String> {
    let problems = point
        .problems
        .iter()
        .map(String::as_str)
        .chain(point.note());
    let problems: Vec<&str> = problems.collect();
    (!problems.is_empty()).then(|| problems.join("; "))
}

fn version_of(point: &RestorePoint) -> Option<Version> {
    point.json_meta.map(|m| m.version)
}

/// Whether a disk can hold file systems: a RAM image cannot.
fn is_guest_disk(point: &RestorePoint, index: usize) -> bool {
    point.json_meta.is_some() && !point.disks[index].suspend
}

fn has_guests(point: &RestorePoint) -> bool {
    (0..point.disks.len()).any(|index| is_guest_disk(point, index))
}

impl Base for PointDir {
    fn identity(&self) -> Identity {
        point_identity(&self.vm.json_path(&self.name), Some(self.version), "dir")
    }

    fn attr(&self) -> Result<Attr> {
        let since = self.context.since;
        Ok(Attr::dir(point_time(&self.name, since)))
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(self.xattrs()?.names())
    }
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if !is_ours(name) {
            return Ok(None);
        }
        Ok(self.xattrs()?.get(name))
    }
}

impl Directory for PointDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let Some(name) = name.to_str() else {
            return Ok(None);
        };
        if name == BACKUP_JSON {
            let time = point_time(&self.name, self.context.since);
            let file = JsonFile::new(self.vm.clone(), &self.name, time)?;
            return Ok(file.map(|file| Node::File(Arc::new(file))));
        }
        let point = self.point()?;
        let stem = name.strip_suffix(".raw");
        if let Some(index) = point
            .disks
            .iter()
            .position(|d| Some(d.name.as_str()) == stem)
        {
            let file = DiskFile::new(self.context.clone(), point, index);
            return Ok(file.map(|file| Node::File(Arc::new(file))));
        }
        if [guests::LVM_DIR, guests::MD_DIR].contains(&name) && has_guests(&point) {
            return Ok(guests::over_disks(&self.context, &point, name).map(Node::Dir));
        }
        let index = (0..point.disks.len())
            .find(|&i| is_guest_disk(&point, i) && guests::dir_name(&point, i) == name);
        let dir = index.and_then(|i| guests::disk_dir(&self.context, &point, i));
        Ok(dir.map(Node::Dir))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        let point = self.point()?;
        let version = version_of(&point);
        let mut entries = vec![entry(
            BACKUP_JSON,
            NodeKind::File,
            point_identity(&point.json_path, version, "json"),
        )];
        for disk in &point.disks {
            let identity = point_identity(&point.json_path, version, &disk.vdi_ref);
            entries.push(entry(&disk.file_name(), NodeKind::File, identity));
        }
        for index in (0..point.disks.len()).filter(|&i| is_guest_disk(&point, i)) {
            if let Some(dir) = guests::disk_dir(&self.context, &point, index) {
                let name = guests::dir_name(&point, index);
                entries.push(entry(&name, NodeKind::Dir, dir.identity()));
            }
        }
        for name in [guests::LVM_DIR, guests::MD_DIR] {
            if has_guests(&point)
                && !guests::is_known_empty(&self.context, &point, name)
                && let Some(dir) = guests::over_disks(&self.context, &point, name)
            {
                entries.push(entry(name, NodeKind::Dir, dir.identity()));
            }
        }
        stream(entries)
    }
}
