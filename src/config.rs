//! Where a repository is, as a person says it: a path or one of XO's repository URLs.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::store::{LocalStore, Store};

/// A parsed repository location. `Debug` and `Display` never show secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A local directory, or a bare `.vhd` / `.alias.vhd` file.
    Local(PathBuf),
}

impl Location {
    /// Parses a plain path, `file://…`, or another URL that XO knows.
    ///
    /// # Errors
    /// `Invalid` for malformed URLs, `Unsupported` for shares that the system must mount first.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "a file:// URL needs an absolute path, as in file:///srv/backups",
                ));
            }
            return Ok(Location::Local(PathBuf::from(path)));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            let message = match scheme {
                "nfs" | "smb" => format!(
                    "brfs does not mount {scheme}:// shares itself: mount the share first, then give \
                     its directory"
                ),
                _ => format!("{scheme}:// repositories are not supported"),
            };
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(Location::Local(PathBuf::from(text)))
    }

    /// Opens the store.
    pub fn open(&self) -> Result<Arc<dyn Store>> {
        match self {
            Location::Local(path) => Ok(Arc::new(LocalStore::open(path)?)),
        }
    }
}
