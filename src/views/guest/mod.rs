//! What is inside the disks of a machine, as a tree: partitions, volumes over several disks, guest files.
//!
//! Flow: `volume` says what lies on a disk → [`disk`] shows it → `guestfs` opens the file systems in it → [`node`] shows
//! their files. Nothing here does I/O for a mere name.

mod disk;
mod machine;
mod node;
mod root;
mod search;

pub use disk::{Disks, GuestContext, OpenDisk, disk_children, lvm_root, md_root};
pub use machine::Machine;
pub use node::GuestOptions;
