//! `<disk>.raw`: a disk as it was at a restore point.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::context::{ViewContext, point_time};
use super::nodes::{Xattrs, is_ours, point_identity};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Disk;
use crate::io::ReadAt;
use crate::repo::{DiskRecord, DiskRef, RestorePoint};
use crate::store::Meta;
use crate::tree::{Attr, Base, File, Identity};

/// On remote storage, a look at the restore point as old as this is as good as one now: the kernel
/// keeps names for as long.
const FRESH: Duration = Duration::from_secs(1);

/// A disk of a restore point.
pub(super) struct DiskFile {
    context: Arc<ViewContext>,
    point: Arc<RestorePoint>,
    index: usize,
    json: Meta,
}

impl DiskFile {
    /// `None` when the metadata's state is unknown, which cannot be where it lists disks.
    pub(super) fn new(
        context: Arc<ViewContext>,
        point: Arc<RestorePoint>,
        index: usize,
    ) -> Option<Self> {
        let json = point.json_meta?;
        point.disks.get(index)?;
        Some(DiskFile {
            context,
            point,
            index,
            json,
        })
    }

    fn record(&self) -> &DiskRecord {
        &self.point.disks[self.index]
    }

    fn place(&self) -> Result<&DiskRef> {
        self.record().place.as_ref().map_err(|problem| {
            let message = format!("disk {:?}: {problem}", self.record().name);
            Error::corrupt(message).with_object(&self.point.json_path)
        })
    }

    pub(super) fn disk(&self) -> Result<Arc<Disk>> {
        let vouched = (self.point.json_path.clone(), self.json.version);
        self.context.disks.open(self.place()?, Some(vouched))
    }

    fn attr_with(&self, exact: bool) -> Result<Attr> {
        let time = point_time(&self.point.name, self.context.since);
        match self.disk() {
            Ok(disk) => disk_attr(&disk, exact, time),
            // Its size is not known, only what the metadata makes of it.
            Err(e) if e.is_fetch_failure() => Err(e),
            // Visible with the size it should have; reading it gives the error.
            Err(_) => {
                let size = self.record().virtual_size.unwrap_or(0);
                Ok(Attr::file(size, 0, time))
            }
        }
    }

    fn xattrs(&self, disk: &Result<Arc<Disk>>) -> Xattrs {
        let mut xattrs = Xattrs::default();
        xattrs.add("job", self.point.job_id.clone());
        xattrs.add("schedule", self.point.schedule_id.clone());
        xattrs.add("mode", self.point.mode.as_str().to_owned());
        xattrs.add("vdi_uuid", self.record().vdi_uuid.clone());
        xattrs.add("vdi_name", self.record().vdi_name.clone());
        add_disk_xattrs(&mut xattrs, disk);
        xattrs
    }
}

/// The attributes of an opened disk. Where the exact allocation cannot be told because a part of
/// the chain is damaged, the guess stands: the size is right all the same.
///
/// # Errors
/// What kept a part of the chain from being fetched, where the exact allocation is wanted.
pub(super) fn disk_attr(disk: &Disk, exact: bool, time: SystemTime) -> Result<Attr> {
    let allocated = match exact.then(|| disk.allocated_bytes()) {
        Some(Ok(allocated)) => allocated,
        Some(Err(e)) if e.is_fetch_failure() => return Err(e),
        Some(Err(e)) => {
            tracing::debug!("allocated size is a guess: {e}");
            disk.allocated_bytes_guess()
        }
        None => disk.allocated_bytes_guess(),
    };
    Ok(Attr::file(disk.len_bytes(), allocated, time))
}

/// What `xattrs` makes of a disk: the names of the attributes.
///
/// # Errors
/// What kept the disk from being fetched: which attributes it has is then not known.
pub(super) fn disk_xattr_names(
    disk: Result<Arc<Disk>>,
    xattrs: impl FnOnce(&Result<Arc<Disk>>) -> Xattrs,
) -> Result<Vec<OsString>> {
    match disk {
        Err(e) if e.is_fetch_failure() => Err(e),
        disk => Ok(xattrs(&disk).names()),
    }
}

/// What `xattrs` makes of a disk: one attribute. The reason can be read also while nothing else can.
///
/// # Errors
/// As [`disk_xattr_names`].
pub(super) fn disk_xattr(
    name: &OsStr,
    disk: impl FnOnce() -> Result<Arc<Disk>>,
    xattrs: impl FnOnce(&Result<Arc<Disk>>) -> Xattrs,
) -> Result<Option<Vec<u8>>> {
    if !is_ours(name) {
        return Ok(None);
    }
    match disk() {
        Err(e) if e.is_fetch_failure() && name != "user.brfs.problem" => Err(e),
        disk => Ok(xattrs(&disk).get(name)),
    }
}

/// Adds what the images themselves tell, or why they do not.
pub(super) fn add_disk_xattrs(xattrs: &mut Xattrs, disk: &Result<Arc<Disk>>) {
    let disk = match disk {
        Ok(disk) => disk,
        Err(e) => return xattrs.add("problem", e.to_string()),
    };
    let links = disk.links();
    if let Some(youngest) = links.first() {
        xattrs.add("uuid", youngest.uuid.clone());
        xattrs.add("parent_uuid", youngest.parent_uuid.clone());
        xattrs.add("format", youngest.format.to_owned());
        xattrs.add("compression", youngest.compression.to_owned());
    }
    xattrs.add("chain_length", links.len().to_string());
    xattrs.add("virtual_size", disk.len_bytes().to_string());
    xattrs.add("problem", disk.problems(&links).join("; "));
}

impl Base for DiskFile {
    fn identity(&self) -> Identity {
        let version = Some(self.json.version);
        point_identity(&self.point.json_path, version, &self.record().vdi_ref)
    }
    fn attr(&self) -> Result<Attr> {
        self.attr_with(true)
    }
    fn quick_attr(&self) -> Result<Attr> {
        self.attr_with(false)
    }
    fn xattr_names(&self) -> Result<Vec<OsString>> {
        disk_xattr_names(self.disk(), |disk| self.xattrs(disk))
    }
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        disk_xattr(name, || self.disk(), |disk| self.xattrs(disk))
    }
}

impl File for DiskFile {
    fn open(&self) -> Result<Arc<dyn ReadAt>> {
        // The kernel may hold this node for a while: what it promised must still be vouched for.
        let store = self.context.catalogue.store();
        let disk = self.disk();
        let seen = match &disk {
            Ok(disk) if store.traits().remote => disk.guard_state(FRESH)?,
            Ok(disk) => disk.guard_state(Duration::ZERO)?,
            Err(_) => None,
        };
        let json = match seen {
            Some(json) => json,
            None => store.head(&self.point.json_path)?,
        };
        if json.version != self.json.version {
            let e = Error::new(ErrorKind::Changed, "the restore point was written anew");
            return Err(e.with_object(&self.point.json_path));
        }
        let name = format!("{} of {}", self.record().name, self.point.json_path);
        open_disk(disk, name)
    }
}

/// Opens a disk for one reader. Errors are logged by whoever answers the request (`fuse::error_log`).
pub(super) fn open_disk(disk: Result<Arc<Disk>>, name: String) -> Result<Arc<dyn ReadAt>> {
    let disk = disk?;
    if let Some(e) = disk.broken() {
        tracing::error!("disk {name} is readable in part only: {e}");
    }
    Ok(Arc::new(disk.reader()))
}
