//! Disks of restore points: one VHD after another, as one flat range of bytes.

mod disk;
pub mod vhd;

pub use disk::{Disk, DiskContext, DiskGuard, DiskReader, LinkReport};
