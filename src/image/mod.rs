//! Disks of restore points: chains of images as one flat range of bytes each.
//!
//! `format` knows image formats and opens one image, `chain` links images, maps and reads them, `guard`
//! watches over the restore point whose disk that is. `context` is what disks share, `disk` keeps a chain
//! current, `reader` reads ahead of who reads in sequence (`readahead`: what it then holds), `streams` is a
//! disk that many read without saying who they are, `report` what people are told. `presence`
//! checks that blocks are there, `damage` remembers which could not be read.

mod chain;
mod context;
mod damage;
mod disk;
mod format;
mod guard;
mod presence;
mod readahead;
mod reader;
mod report;
mod streams;
mod uuid;

pub use crate::cache::BlockCacheStats;
pub use chain::merge_state;
pub use context::DiskContext;
pub use disk::Disk;
pub use format::recognise::is_image_name;
pub use format::vhd;
pub use guard::RestorePointGuard;
pub use presence::BlockChecks;
pub use reader::DiskReader;
pub use report::LinkReport;
pub use streams::DiskStreams;
