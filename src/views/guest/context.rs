//! What the nodes of one machine's disks share.

use std::sync::Arc;
use std::time::SystemTime;

use super::machine::Machine;
use super::options::GuestOptions;
use crate::error::Result;
use crate::guestfs::host::pool::Pool;
use crate::hash::StableHash;
use crate::io::ReadAt;
use crate::tree::Identity;

/// Opens a disk; called again after a failure.
pub type OpenDisk = Arc<dyn Fn() -> Result<Arc<dyn ReadAt>> + Send + Sync>;

/// Disks by their names.
pub type Disks = Arc<[(String, OpenDisk)]>;

/// What all guest nodes of one restore point share.
#[derive(Clone)]
pub struct GuestContext {
    /// Bounds the file systems that are open at once; one for the whole mount.
    pub pool: Arc<Pool>,
    /// How files are presented.
    pub options: GuestOptions,
    /// The time of directories and raw files that have none of their own.
    pub time: SystemTime,
    /// Differs between restore points (and changes when one is replaced).
    pub identity: u64,
    /// All disks of the restore point, for what lies over several.
    pub disks: Disks,
    /// What was found out about them.
    pub machine: Arc<Machine>,
}

impl GuestContext {
    /// A stable number for something within this restore point.
    pub(super) fn number_of(&self, path: &str) -> u64 {
        number_within(self.identity, path)
    }

    /// The identity of something within this restore point.
    pub(super) fn identity_of(&self, path: &str) -> Identity {
        Identity::Named(self.number_of(path))
    }
}

/// What [`GuestContext::identity_of`] makes of a path where `identity` is the context's.
pub(super) fn identity_within(identity: u64, path: &str) -> Identity {
    Identity::Named(number_within(identity, path))
}

fn number_within(identity: u64, path: &str) -> u64 {
    let hash = StableHash::new().number(identity).part(path);
    hash.finish_u64()
}
