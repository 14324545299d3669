//! Which disk of a repository: what has to be opened to read it.

use std::fmt;

use crate::store::StorePath;

/// A disk of a repository, by what holds its data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DiskRef {
    /// A chain of VHDs, by the path of its youngest image (`.vhd` or `.alias.vhd`).
    VhdChain(StorePath),
}

impl DiskRef {
    /// The object that is opened first, which people know the disk by.
    pub fn path(&self) -> &StorePath {
        match self {
            DiskRef::VhdChain(path) => path,
        }
    }
}

impl fmt::Display for DiskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.path(), f)
    }
}
