//! What a mount shows: the catalogue of a repository as a tree of nodes.
//!
//! ```text
//! vms/<name (uuid8)>/<date>/{backup.json, xvda.raw, …}
//! vms/<name (uuid8)>/<date>/{xvda/part1.raw, xvda/part1/…, lvm/<group>/<volume>/…}
//! vms/<name (uuid8)>/latest -> <date>
//! by-uuid/<vm uuid> -> ../vms/<name (uuid8)>
//! by-date/<day>/<name (uuid8)>/<date> -> ../../../vms/<name (uuid8)>/<date>
//! ```
//!
//! Nodes hold no state of their own but names: every call asks the catalogue, which re-checks what
//! may have changed. A node of something that is gone answers `NotFound`. Nothing here knows FUSE.

mod bare;
mod by_date;
mod by_uuid;
mod children;
mod context;
mod disk;
pub mod guest;
mod json_file;
mod link_dir;
mod nodes;
mod point;
mod point_guests;
mod pool;
mod stats;
mod vms;
mod windows;
mod windows_names;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use bare::{bare_root, split_bare_path};
pub use pool::DiskPool;
pub use stats::{MountStats, STATS_XATTR, with_stats};
pub use windows::with_windows_names;

use crate::image::DiskContext;
use crate::repo::{Catalogue, OpenRepository};
use crate::tree::Node;
use context::ViewContext;
use guest::{GuestOptions, Guests};
use nodes::StaticDir;

/// The root of a mounted repository. Listings of remote storage are re-made when they are older
/// than `refresh`; those of local storage practically always. Does no I/O.
pub fn repository_root(
    opened: OpenRepository,
    disks: Arc<DiskContext>,
    refresh: Duration,
    guests: GuestOptions,
) -> Node {
    let max_age = Catalogue::max_age_for(opened.store.traits(), refresh);
    repository_root_with(Catalogue::of(opened, max_age), disks, guests)
}

/// The root of a mounted repository over a catalogue with its own idea of staleness.
pub fn repository_root_with(
    catalogue: Catalogue,
    disks: Arc<DiskContext>,
    guests: GuestOptions,
) -> Node {
    let context = Arc::new(ViewContext {
        catalogue,
        disks: DiskPool::new(disks),
        guests: Guests::new(guests),
        since: SystemTime::now(),
    });
    let by_date = by_date::DaysDir::new(context.clone());
    let by_uuid = by_uuid::ByUuidDir::new(context.clone());
    let vms = vms::VmsDir::new(context.clone());
    let children = vec![
        ("by-date", Node::Dir(Arc::new(by_date))),
        ("by-uuid", Node::Dir(Arc::new(by_uuid))),
        ("vms", Node::Dir(Arc::new(vms))),
    ];
    Node::Dir(Arc::new(StaticDir::new("root", children, context.since)))
}
