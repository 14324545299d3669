//! What is inside the disks of a machine, as a tree: partitions, volumes over several disks, guest files.
//!
//! Flow: `volume` says what lies on a disk → `disk` and `over_disks` show it → `guestfs` opens the file systems in it →
//! `files` shows what they hold. Nothing here does I/O for a mere name.

mod attributes;
mod context;
mod disk;
mod files;
mod group;
mod kept;
mod lazy;
mod machine;
mod names;
mod options;
mod over_disks;
mod raw_file;
mod root;
mod search;
mod volume;

pub use context::{Disks, GuestContext, OpenDisk};
pub use disk::disk_children;
pub(crate) use kept::{Guests, PointDisks, identity_of_disk, identity_of_disks};
pub use machine::Machine;
pub use options::GuestOptions;
pub(crate) use over_disks::Over;
pub use over_disks::{lvm_root, md_root};

/// A directory that opens what it shows when it is entered.
trait Opens: crate::tree::Directory {
    /// Whether it holds something open. Does not wait.
    fn is_open(&self) -> bool;
}
