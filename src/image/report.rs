//! What people and scripts are told of a chain's images.

use serde::Serialize;

use super::chain::{Chain, ChainLink};

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
    /// All images of a chain, youngest first.
    pub(in crate::image) fn of_chain(chain: &Chain) -> Vec<Self> {
        let links = chain.links.iter();
        links
            .map(|link| Self::new(link, chain.is_merged_into(link)))
            .collect()
    }

    /// What is wrong with it, each sentence with the image's path, as a disk's list of problems
    /// has it.
    pub fn told_problems(&self) -> impl Iterator<Item = String> {
        let told = self.problems.iter();
        told.map(|problem| format!("{}: {problem}", self.path))
    }

    /// `merged_into`: whether a merge into this image is running or was interrupted.
    fn new(link: &ChainLink, merged_into: bool) -> Self {
        let image = link.image();
        let (mut problems, mut notes) = (image.facts.problems.clone(), link.notes.clone());
        let odd = if merged_into {
            &mut notes
        } else {
            &mut problems
        };
        odd.extend(image.facts.trailing.clone());
        let alias = link.found.path != image.data_path;
        let facts = &image.facts;
        LinkReport {
            path: link.found.path.to_string(),
            data_path: alias.then(|| image.data_path.to_string()),
            format: facts.format,
            disk_type: facts.disk_type,
            compression: facts.compression,
            uuid: image.uuid().to_string(),
            parent_uuid: facts.parent.as_ref().map(|parent| parent.uuid.to_string()),
            virtual_size: image.size(),
            block_size: image.block_size(),
            creator: facts.creator.clone(),
            problems,
            notes,
        }
    }
}
