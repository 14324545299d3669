//! Volumes inside a disk: partition tables, LVM2, md arrays, and what a volume holds.
//!
//! Stands between `image` (a disk as [`ReadAt`](crate::io::ReadAt)) and `guestfs` (the files in a volume). Everything
//! here is a pure parser over bytes plus views that map one range of bytes to others; nothing knows
//! of repositories, mounts or the host's own devices. All input is hostile: sizes are bounded by
//! constants, arithmetic is checked, chains are counted, and a damaged part becomes a
//! [`Problem`] instead of hiding its neighbours.

mod assemble;
pub(crate) mod bits;
mod claim;
pub mod gpt;
pub mod layout;
pub mod lvm;
pub mod map;
pub mod mbr;
pub mod md;
mod partition;
mod problem;
pub mod signature;
pub mod slice;
pub mod table;
mod type_names;

pub use assemble::{
    DiskVolumes, PartitionVolume, PlacedVolume, Volumes, assemble, find_all, scan_disk,
};
pub use layout::{Layout, lay_out};
pub use partition::{Partition, PartitionType};
pub use problem::Problem;
pub use signature::{Content, identify};
pub use slice::Slice;
pub use table::{Table, TableKind, read_table};
