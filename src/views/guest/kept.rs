//! The directories of what is inside disks, kept while they are used.
//!
//! What was found out about a disk (its partition table, its file systems) lives in its directory, so who looks one up
//! again gets the same. Making one does no I/O; entering it does. How many are kept is bounded by what they hold: those
//! that were never entered hold nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::Opens;
use super::context::{Disks, GuestContext, OpenDisk, identity_within};
use super::disk::DiskDir;
use super::machine::Machine;
use super::options::GuestOptions;
use super::over_disks::{Over, OverDisks};
use crate::guestfs::host::pool::Pool;
use crate::sync::lock;
use crate::tree::{Directory, Identity};

/// Directories kept that hold a disk open, or several. More than a restore point usually has: one that is walked again
/// and again is opened once.
const OPEN: usize = 64;
/// Directories kept that hold nothing open.
const CLOSED: usize = 512;
/// Restore points of which it is kept what their disks hold.
const MACHINES: usize = 512;
/// Guest file systems that nobody used for so long are dropped.
const IDLE: Duration = Duration::from_secs(120);

/// The guest directories of a mount.
pub(crate) struct Guests {
    pool: Arc<Pool>,
    options: GuestOptions,
    kept: Mutex<Kept>,
    /// The oldest first.
    machines: Mutex<VecDeque<(u64, Arc<Machine>)>>,
}

/// Least recently used first.
type Kept = VecDeque<(u64, Arc<dyn Opens>)>;

/// The disks of one restore point, and what is known of them.
pub(crate) struct PointDisks {
    pub(crate) all: Disks,
    pub(crate) machine: Arc<Machine>,
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
    pub(crate) fn machine(&self, identity: Identity) -> Arc<Machine> {
        let identity = number(identity);
        let mut machines = lock(&self.machines);
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

    /// The directory with this number: the one that is kept, or a new one.
    fn keep(&self, number: u64, make: impl FnOnce() -> Arc<dyn Opens>) -> Arc<dyn Opens> {
        let mut kept = lock(&self.kept);
        if let Some(at) = kept.iter().position(|(known, _)| *known == number)
            && let Some(found) = kept.remove(at)
        {
            kept.push_back(found.clone());
            return found.1;
        }
        let dir = make();
        kept.push_back((number, Arc::clone(&dir)));
        let dropped = surplus(&mut kept);
        // Closing what they held may take a while: not under the lock.
        drop(kept);
        drop(dropped);
        dir
    }

    fn context(&self, identity: u64, time: SystemTime, disks: PointDisks) -> GuestContext {
        GuestContext {
            pool: Arc::clone(&self.pool),
            options: self.options,
            time,
            identity,
            disks: disks.all,
            machine: disks.machine,
        }
    }

    /// The inside of a disk that is opened by `open`, one of `disks`.
    pub(crate) fn of_disk(
        &self,
        identity: Identity,
        name: &str,
        time: SystemTime,
        open: OpenDisk,
        disks: impl FnOnce() -> PointDisks,
    ) -> Arc<dyn Directory> {
        let number = number(identity);
        self.keep(number, || {
            DiskDir::new(self.context(number, time, disks()), name, open)
        })
    }

    /// The volumes over these disks.
    pub(crate) fn of_disks(
        &self,
        identity: Identity,
        over: Over,
        time: SystemTime,
        disks: impl FnOnce() -> PointDisks,
    ) -> Arc<dyn Directory> {
        let number = number_over(identity, over);
        self.keep(number, || {
            OverDisks::new(self.context(number, time, disks()), over)
        })
    }
}

/// The identity of the directory that [`Guests::of_disk`] gives.
pub(crate) fn identity_of_disk(identity: Identity, name: &str) -> Identity {
    identity_within(number(identity), name)
}

/// The identity of the directory that [`Guests::of_disks`] gives.
pub(crate) fn identity_of_disks(identity: Identity, over: Over) -> Identity {
    identity_within(number_over(identity, over), over.name())
}

/// Takes out what is not kept any longer: the least recently used ones of those that hold something open, and of the
/// others.
fn surplus(kept: &mut Kept) -> Vec<Arc<dyn Opens>> {
    let (mut open, mut closed) = (0, 0);
    let mut dropped = Vec::new();
    for at in (0..kept.len()).rev() {
        let (count, most) = match kept[at].1.is_open() {
            true => (&mut open, OPEN),
            false => (&mut closed, CLOSED),
        };
        *count += 1;
        if *count > most {
            dropped.extend(kept.remove(at).map(|(_, dir)| dir));
        }
    }
    dropped
}

fn number(identity: Identity) -> u64 {
    match identity {
        Identity::Named(number) => number,
        Identity::Shared(system, inode) => system ^ inode.rotate_left(32),
    }
}

/// Another number than that of a disk with the same identity.
fn number_over(identity: Identity, over: Over) -> u64 {
    number(identity).wrapping_add(match over {
        Over::Lvm => 1,
        Over::Md => 2,
    })
}
