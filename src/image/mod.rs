//! Disks of restore points: one VHD after another, as one flat range of bytes.

mod disk;
mod merge_state;

pub use disk::{Disk, DiskContext, DiskGuard, DiskReader, LinkReport};
pub use merge_state::{
    MAX_MERGE_STATE_BYTES, MergeState, MergeStep, merge_state_file_name, parent_of_merge_state,
};
