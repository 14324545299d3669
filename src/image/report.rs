//! What people and scripts are told of a chain's images.

use serde::Serialize;

use super::chain::ChainLink;

/// One image of a chain.
#[derive(Debug, Clone, Serialize)]
pub struct LinkReport {
    /// Path in the repository (of the alias, when there is one).
    pub path: String,
    /// Path of the VHD directory that an alias leads to.
    pub data_path: Option<String>,
    /// `VHD file` or `VHD directory`.
    pub format: &'static str,
    /// `fixed`, `dynamic` or `differencing`.
    pub disk_type: &'static str,
    /// `none`, `gzip`, `brotli`.
    pub compression: &'static str,
    /// Footer uuid.
    pub uuid: String,
    /// Parent's uuid as the header tells it (differencing only).
    pub parent_uuid: Option<String>,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Block size in bytes (of the pieces in which fixed disks are read).
    pub block_size: u32,
    /// Creator application of the footer, four characters at most.
    pub creator: String,
    /// What was found to be wrong with it, one sentence each.
    pub problems: Vec<String>,
    /// What is worth knowing of its place in this chain but no damage.
    pub notes: Vec<String>,
}

impl LinkReport {
    pub(super) fn new(link: &ChainLink) -> Self {
        let image = link.image();
        let alias = link.found.path != image.data_path;
        let header = image.header.as_ref().filter(|_| image.is_differencing());
        LinkReport {
            path: link.found.path.to_string(),
            data_path: alias.then(|| image.data_path.to_string()),
            format: image.format(),
            disk_type: image.footer.disk_type.as_str(),
            compression: image.compression(),
            uuid: image.uuid().to_string(),
            parent_uuid: header.map(|h| h.parent_uuid.to_string()),
            virtual_size: image.size(),
            block_size: image.block_size(),
            creator: image.footer.creator(),
            problems: image.problems.clone(),
            notes: link.notes.clone(),
        }
    }
}
