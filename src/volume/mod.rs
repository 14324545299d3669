//! Volumes inside a disk: partition tables, LVM2, md arrays, and what a volume holds.
//!
//! Stands between `image` (a disk as [`ReadAt`]) and `guestfs` (the files in a volume). Everything
//! here is a pure parser over bytes plus views that map one range of bytes to others; nothing knows
//! of repositories, mounts or the host's own devices. All input is hostile: sizes are bounded by
//! constants, arithmetic is checked, chains are counted, and a damaged part becomes a
//! [`Problem`] instead of hiding its neighbours.

mod assemble;
pub(crate) mod bits;
mod claim;
pub mod detect;
pub mod gpt;
pub mod lvm;
pub mod mbr;
pub mod md;
pub mod signature;
pub mod slice;

use std::sync::Arc;

pub use assemble::{
    DiskVolumes, PartitionVolume, PlacedVolume, Volumes, assemble, find_all, scan_disk,
};
pub use detect::{Layout, Table, TableKind, lay_out, read_table};
pub use signature::{Content, identify};
pub use slice::Slice;

use crate::io::ReadAt;

/// A volume that is shared by its readers.
pub type Volume = Arc<dyn ReadAt>;

/// What a partition is for, as far as the table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionType {
    /// The type byte of an MBR entry.
    Mbr(u8),
    /// The type GUID of a GPT entry, in its usual text form, lower case.
    Gpt(String),
}

/// One partition: a byte range of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The number Linux would give it (`sda5` is 5).
    pub number: u32,
    /// First byte.
    pub start_bytes: u64,
    /// Length in bytes, cut to the end of the disk.
    pub len_bytes: u64,
    /// The type.
    pub kind: PartitionType,
    /// The name in a GPT entry.
    pub name: Option<String>,
    /// The unique GUID of a GPT entry.
    pub guid: Option<String>,
    /// What is wrong with its entry, though it is shown.
    pub problems: Vec<String>,
}

impl Partition {
    /// A word for well-known types; the number or GUID otherwise.
    pub fn type_name(&self) -> String {
        match &self.kind {
            PartitionType::Mbr(byte) => match mbr::type_name(*byte) {
                Some(name) => name.to_string(),
                None => format!("mbr-{byte:02x}"),
            },
            PartitionType::Gpt(guid) => match gpt::type_name(guid) {
                Some(name) => name.to_string(),
                None => guid.clone(),
            },
        }
    }
}

/// Something that could not be read as it should, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The disk, partition, group or volume it concerns.
    pub subject: String,
    /// A sentence for people.
    pub message: String,
}

impl Problem {
    /// A problem of `subject`.
    pub fn new(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Problem {
            subject: subject.into(),
            message: message.into(),
        }
    }

    /// The problem in words, as told where it is clear that `name` is meant.
    pub fn within(&self, name: &str) -> String {
        let rest = self.subject.strip_prefix(name);
        let subject = rest.map_or(&*self.subject, |rest| {
            rest.trim_start_matches([':', '/', ' '])
        });
        format!("{subject}: {}", self.message)
    }
}
