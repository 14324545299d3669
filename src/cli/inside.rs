//! What `brfs info` tells of the inside of a disk: its partition table, and what the volumes hold.

use std::sync::Arc;

use serde::Serialize;

use crate::error::Result;
use crate::image::{Disk, DiskStreams};
use crate::io::ReadAt;
use crate::volume::{TableKind, scan_disk};

/// A disk, as far as its table and the starts of its volumes tell.
#[derive(Debug, Serialize)]
pub(super) struct Inside {
    /// `mbr`, `gpt`, `none`.
    pub table: &'static str,
    /// What the disk holds as a whole, when it has no table.
    pub content: Option<&'static str>,
    pub partitions: Vec<PartitionRow>,
    /// What is wrong with the table: the guest's own affair, no damage of the backup.
    #[serde(skip)]
    pub problems: Vec<String>,
}

/// One partition.
#[derive(Debug, Serialize)]
pub(super) struct PartitionRow {
    pub number: u32,
    /// First byte.
    pub start: u64,
    pub size: u64,
    #[serde(rename = "type")]
    pub kind: String,
    pub content: &'static str,
}

/// Reads the table of a disk and the starts of its volumes.
///
/// # Errors
/// When they cannot be read.
pub(super) fn look_inside(disk: &Arc<Disk>) -> Result<Inside> {
    let disk: Arc<dyn ReadAt> = Arc::new(DiskStreams::new(disk.clone()));
    let mut problems = Vec::new();
    let found = scan_disk("disk", &disk, &mut problems)?;
    let rows = found.partitions.iter().map(|part| PartitionRow {
        number: part.partition.number,
        start: part.partition.start_bytes,
        size: part.partition.len_bytes,
        kind: part.partition.type_name(),
        content: part.content.as_str(),
    });
    Ok(Inside {
        table: found.table.as_str(),
        content: (found.table == TableKind::None).then_some(found.content.as_str()),
        partitions: rows.collect(),
        problems: problems.iter().map(|p| p.within(&found.name)).collect(),
    })
}
