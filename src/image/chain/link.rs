//! One image in its place in a chain.

use std::sync::Arc;

use crate::image::format::image::{Found, Image};

/// One image of a chain.
pub(in crate::image) struct ChainLink {
    pub found: Found,
    /// What is remarkable about it in this chain.
    pub notes: Vec<String>,
    /// The child above it is no longer needed (end of a merge).
    pub replaces_child: bool,
    /// Bytes of this image that can be seen through its descendants.
    pub(super) limit: u64,
}

impl ChainLink {
    pub(in crate::image) fn new(found: Found) -> Self {
        ChainLink {
            found,
            notes: Vec::new(),
            replaces_child: false,
            limit: 0,
        }
    }

    pub(in crate::image) fn image(&self) -> &Arc<Image> {
        &self.found.image
    }
}
