//! What a person can say about the storage besides where it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::aead::Key;
use crate::store::{DiskCacheOptions, StoreStats};

/// Settings for [`super::Location::open`]. The defaults suit everything XO can write to.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The repository's encryption key, if it is encrypted.
    pub encryption_key: Option<Key>,
    /// Certificates (PEM) to trust besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Accept any TLS certificate. Also switched on by `allowUnauthorized=true` in a URL.
    pub allow_unauthorized: bool,
    /// The server to talk to, for `s3://bucket/dir`.
    pub endpoint_url: Option<String>,
    /// The region to sign for, before the one in a URL.
    pub region: Option<String>,
    /// The profile of the AWS configuration files to take credentials from.
    pub profile: Option<String>,
    /// Send requests without credentials (public buckets).
    pub no_sign_request: bool,
    /// `bucket.host/key` instead of `host/bucket/key`.
    pub virtual_hosted_style: bool,
    /// How long a connection may stay silent before it counts as lost.
    pub idle_timeout: Duration,
    /// How long one request is tried again before its reader gets an error.
    pub retry_budget: Duration,
    /// The most requests in flight at once.
    pub max_parallelism: usize,
    /// Where to keep blocks of remote storage across mounts.
    pub disk_cache: Option<DiskCacheOptions>,
    /// Counters to keep; shared with whoever shows them.
    pub stats: Arc<StoreStats>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            encryption_key: None,
            ca_file: None,
            allow_unauthorized: false,
            endpoint_url: None,
            region: None,
            profile: None,
            no_sign_request: false,
            virtual_hosted_style: false,
            idle_timeout: Duration::from_secs(30),
            retry_budget: Duration::from_secs(300),
            max_parallelism: 64,
            disk_cache: None,
            stats: Arc::default(),
        }
    }
}
