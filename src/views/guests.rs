//! What is inside the disks of a restore point: `xvda/` beside `xvda.raw`, `lvm/` and `md/`.
//!
//! The directories are kept for a while: what was found out about a disk (its partition table, its
//! file systems) lives in them. Making one does no I/O; entering it does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::ViewContext;
use super::disk::DiskFile;
use super::guest::GuestOptions;
use super::guest::Machine;
use super::guest::{GuestContext, OpenDisk, disk_children, lvm_root, md_root};
use super::nodes::point_identity;
use super::vms::point_time;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::host::pool::Pool;
use crate::image::DiskStreams;
use crate::io::ReadAt;
use crate::repo::RestorePoint;
use crate::tree::{Directory, Identity};

/// The directory of the volume groups over all disks of a point.
pub(super) const LVM_DIR: &str = "lvm";
/// The directory of the md arrays over all disks of a point.
pub(super) const MD_DIR: &str = "md";
/// Directories kept; each may hold a disk open.
const KEPT: usize = 24;
/// Restore points of which it is kept what their disks hold.
const MACHINES: usize = 512;
/// Guest file systems that nobody used for so long are dropped.
const IDLE: Duration = Duration::from_secs(120);

/// The guest directories of a mount.
pub(crate) struct Guests {
    pool: Arc<Pool>,
    options: GuestOptions,
    /// Least recently used first.
    kept: Mutex<VecDeque<(u64, Arc<dyn Directory>)>>,
    /// The oldest first.
    machines: Mutex<VecDeque<(u64, Arc<Machine>)>>,
}

/// The disks of one restore point, and what is known of them.
pub(super) struct Disks {
    pub(super) all: Vec<(String, OpenDisk)>,
    pub(super) machine: Arc<Machine>,
}

impl Guests {
    pub(crate) fn new(options: GuestOptions) -> Self {
        let pool = Arc::new(Pool::default());
        let weak = Arc::downgrade(&pool);
        // Ends with the pool. Without the thread, idle ones are dropped when others are opened.
        let _ = std::thread::Builder::new()
            .name("guests-idle".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(IDLE / 4);
                    match weak.upgrade() {
                        Some(pool) => pool.drop_idle(IDLE),
                        None => break,
                    }
                }
            });
        Guests {
            pool,
            options,
            kept: Mutex::default(),
            machines: Mutex::default(),
        }
    }

    /// What is known of the disks of the restore point with this identity.
    pub(super) fn machine(&self, identity: Identity) -> Arc<Machine> {
        let identity = number(identity);
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = machines.iter().find(|(known, _)| *known == identity) {
            return known.clone();
        }
        if machines.len() >= MACHINES {
            machines.pop_front();
        }
        let machine = Arc::<Machine>::default();
        machines.push_back((identity, machine.clone()));
        machine
    }

    /// The directory called `place` of something with this identity: the one that is kept, or a new
    /// one.
    fn keep(
        &self,
        identity: u64,
        make: impl FnOnce(GuestContext) -> Arc<dyn Directory>,
        time: std::time::SystemTime,
        disks: impl FnOnce() -> Disks,
    ) -> Arc<dyn Directory> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(known, _)| *known == identity)
            && let Some(found) = kept.remove(at)
        {
            kept.push_back(found.clone());
            return found.1;
        }
        let disks = disks();
        let dir = make(GuestContext {
            pool: Arc::clone(&self.pool),
            options: self.options,
            time,
            identity,
            disks: disks.all.into(),
            machine: disks.machine,
        });
        kept.push_back((identity, Arc::clone(&dir)));
        let dropped = (kept.len() > KEPT).then(|| kept.pop_front());
        // Closing what it held may take a while: not under the lock.
        drop(kept);
        drop(dropped);
        dir
    }

    /// The inside of a disk that is opened by `open`, one of `disks`.
    pub(super) fn of_disk(
        &self,
        identity: Identity,
        name: &str,
        time: std::time::SystemTime,
        open: OpenDisk,
        disks: impl FnOnce() -> Disks,
    ) -> Arc<dyn Directory> {
        self.keep(
            number(identity),
            |context| disk_children(context, name, open),
            time,
            disks,
        )
    }

    /// The volumes called `name` (one of [`LVM_DIR`] and [`MD_DIR`]) over these disks.
    pub(super) fn of_disks(
        &self,
        name: &str,
        identity: Identity,
        time: std::time::SystemTime,
        disks: Disks,
    ) -> Arc<dyn Directory> {
        // Other numbers than that of a disk with the same identity.
        let (add, root) = match name {
            MD_DIR => (2, md_root as fn(_) -> _),
            _ => (1, lvm_root as fn(_) -> _),
        };
        let identity = number(identity).wrapping_add(add);
        self.keep(identity, root, time, || disks)
    }
}

fn number(identity: Identity) -> u64 {
    match identity {
        Identity::Named(number) => number,
        Identity::Shared(system, inode) => system ^ inode.rotate_left(32),
    }
}

/// The name of the directory of disk `index`: that of the disk, unless another entry of the point
/// has it.
pub(super) fn dir_name(point: &RestorePoint, index: usize) -> String {
    let mut name = point.disks[index].name.clone();
    let taken = |name: &str| {
        name == LVM_DIR
            || name == MD_DIR
            || name == super::point::BACKUP_JSON
            || point.disks.iter().any(|d| d.file_name() == name)
            || point
                .disks
                .iter()
                .enumerate()
                .any(|(other, d)| other != index && d.name == name)
    };
    while taken(&name) {
        name.push('~');
    }
    name
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

/// The inside of disk `index` of a point.
pub(super) fn disk_dir(
    context: &Arc<ViewContext>,
    point: &Arc<RestorePoint>,
    index: usize,
) -> Option<Arc<dyn Directory>> {
    let disk = &point.disks[index];
    let version = point.json_meta.map(|m| m.version);
    let identity = point_identity(&point.json_path, version, &format!("in {}", disk.vdi_ref));
    let time = point_time(&point.name, context.since);
    let open = opener(context, point, index)?;
    let disks = all_disks(context, point)?;
    let disks = || disks;
    let guests = &context.guests;
    Some(guests.of_disk(identity, &disk.name, time, open, disks))
}

/// The volumes called `name` over the disks of a point.
pub(super) fn over_disks(
    context: &Arc<ViewContext>,
    point: &Arc<RestorePoint>,
    name: &str,
) -> Option<Arc<dyn Directory>> {
    let version = point.json_meta.map(|m| m.version);
    let identity = point_identity(&point.json_path, version, name);
    let time = point_time(&point.name, context.since);
    let disks = all_disks(context, point)?;
    Some(context.guests.of_disks(name, identity, time, disks))
}

/// All disks of a point.
fn all_disks(context: &Arc<ViewContext>, point: &Arc<RestorePoint>) -> Option<Disks> {
    let named = |index: usize| {
        let name = point.disks[index].name.clone();
        Some((name, opener(context, point, index)?))
    };
    let all: Option<Vec<_>> = (0..point.disks.len()).map(named).collect();
    Some(Disks {
        all: all?,
        machine: machine(context, point),
    })
}

fn machine(context: &Arc<ViewContext>, point: &RestorePoint) -> Arc<Machine> {
    let version = point.json_meta.map(|m| m.version);
    let identity = point_identity(&point.json_path, version, "machine");
    context.guests.machine(identity)
}

/// Whether it is known that no disk of a point has anything that would be shown in `name` (one of [`LVM_DIR`] and
/// [`MD_DIR`]): all were looked at, and could be read. The name is not listed then. Looking it up still works, so that
/// whoever listed it before finds it, empty.
pub(super) fn is_known_empty(
    context: &Arc<ViewContext>,
    point: &Arc<RestorePoint>,
    name: &str,
) -> bool {
    let machine = machine(context, point);
    let disks = point.disks.iter().map(|disk| disk.name.as_str());
    match name {
        MD_DIR => machine.has_no_md(disks),
        _ => machine.has_no_lvm(disks),
    }
}
