//! What a mount is asked for, as it travels to the process that serves it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::storage_args::{CollectedSecrets, StorageArgs};
use crate::store::DiskCacheOptions;

/// Everything the serving process needs. It travels through a file without a name rather than the
/// command line, where every user of the machine could read a repository URL's secrets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) repository: CollectedSecrets,
    pub(super) storage: StorageArgs,
    pub(super) mountpoint: PathBuf,
    /// What the mount table is to say, where that is not the repository's own name.
    pub(super) source: Option<String>,
    pub(super) foreground: bool,
    pub(super) verbose: u8,
    pub(super) cache_bytes: u64,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) cache_dir_bytes: u64,
    pub(super) allow_other: bool,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) umask: u16,
    pub(super) no_exec: bool,
    pub(super) guest_owner: bool,
    pub(super) windows_names: bool,
    pub(super) log_file: Option<PathBuf>,
    pub(super) refresh_seconds: Option<u64>,
}

impl Request {
    /// Where to keep blocks across mounts.
    pub(super) fn disk_cache(&self) -> Option<DiskCacheOptions> {
        Some(DiskCacheOptions {
            dir: self.cache_dir.clone()?,
            max_bytes: self.cache_dir_bytes,
        })
    }
}
