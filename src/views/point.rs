//! `vms/<name>/<date>/`: one restore point.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::children::{Child, Children};
use super::context::{ViewContext, point_time};
use super::disk::DiskFile;
use super::guest::Over;
use super::json_file::{BACKUP_JSON, JsonFile};
use super::nodes::{Xattrs, is_ours, point_identity};
use super::point_guests;
use crate::error::{Error, ErrorKind, Result};
use crate::repo::{RestorePoint, Vm};
use crate::store::Version;
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node, NodeKind};

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

impl PointDir {
    fn backup_json(&self, version: Option<Version>) -> Child<'_> {
        let json = self.vm.json_path(&self.name);
        let identity = point_identity(&json, version, "json");
        Child::new(BACKUP_JSON, NodeKind::File, identity, || {
            let time = point_time(&self.name, self.context.since);
            let file = JsonFile::new(self.vm.clone(), &self.name, time)?;
            Ok(file.map(|file| Node::File(Arc::new(file))))
        })
    }

    fn children<'a>(&'a self, point: &'a Arc<RestorePoint>) -> Children<'a> {
        let context = &self.context;
        let version = version_of(point);
        let disk_file = |index: usize| {
            let disk = &point.disks[index];
            let identity = point_identity(&point.json_path, version, &disk.vdi_ref);
            Child::new(disk.file_name(), NodeKind::File, identity, move || {
                let file = DiskFile::new(context.clone(), point.clone(), index);
                Ok(file.map(|file| Node::File(Arc::new(file))))
            })
        };
        let disk_dir = |(index, name): (usize, String)| {
            let identity = point_guests::disk_dir_identity(point, index);
            Child::new(name, NodeKind::Dir, identity, move || {
                Ok(point_guests::disk_dir(context, point, index).map(Node::Dir))
            })
        };
        let over_disks = |over: Over| {
            let identity = point_guests::over_disks_identity(point, over);
            let make = move || {
                let dir = point_guests::over_disks(context, point, over);
                Ok(Some(Node::Dir(dir)))
            };
            let is_listed = !point_guests::is_known_empty(context, point, over);
            Child::new(over.name(), NodeKind::Dir, identity, make).listed_if(is_listed)
        };
        let names = point_guests::dir_names(point).into_iter().enumerate();
        let guests = names.filter(|(index, _)| point_guests::is_guest_disk(point, *index));
        let over = Over::ALL.into_iter();
        let over = over.filter(|_| point_guests::has_guests(point));
        std::iter::once(self.backup_json(version))
            .chain((0..point.disks.len()).map(disk_file))
            .chain(guests.map(disk_dir))
            .chain(over.map(over_disks))
            .collect()
    }
}

impl Directory for PointDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        // The metadata as a file is there whether it can be read as metadata or not.
        if name == BACKUP_JSON {
            return self.backup_json(Some(self.version)).node();
        }
        self.children(&self.point()?).lookup(name)
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(self.children(&self.point()?).list())
    }
}
