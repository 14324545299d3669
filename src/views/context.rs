//! What all nodes of a mounted repository share.

use std::time::SystemTime;

use super::guest::Guests;
use super::pool::DiskPool;
use crate::repo::{Catalogue, date};

/// Where nodes find what they show, and the caches they share.
pub(super) struct ViewContext {
    pub(super) catalogue: Catalogue,
    pub(super) disks: DiskPool,
    pub(super) guests: Guests,
    /// When the mount was made: the time of directories that have none of their own.
    pub(super) since: SystemTime,
}

/// The time of a restore point, for nodes that know its name only.
pub(super) fn point_time(name: &str, otherwise: SystemTime) -> SystemTime {
    date::system_time(name).unwrap_or(otherwise)
}
