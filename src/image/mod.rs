//! Disks of restore points: chains of VHDs as one flat range of bytes each.
//!
//! `vhd` parses structures, `recognise` knows what a thing is, `vhd_file` and `vhd_dir` read one image
//! each, `open` shares them, `link` finds parents (`parent_name`: by what others than XO call them),
//! `chain` maps and reads, `disk` keeps a chain current, `reader` reads ahead, `watch` looks after the
//! restore point, `vouch` and `tables` save waiting for storage, `presence` looks whether blocks are
//! there, `damage` remembers which could not be read.

mod bitmap;
mod chain;
mod damage;
mod disk;
mod link;
pub mod merge_state;
mod open;
mod parent_name;
mod presence;
mod reader;
mod recognise;
mod report;
mod streams;
mod tables;
pub mod vhd;
mod vhd_dir;
mod vhd_file;
mod vouch;
mod watch;

pub use crate::cache::BlockCacheStats;
pub use disk::{Disk, DiskContext, DiskGuard};
pub use presence::BlockChecks;
pub use reader::DiskReader;
pub use recognise::is_image_name;
pub use report::LinkReport;
pub use streams::DiskStreams;
