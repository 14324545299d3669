//! What there is to say about where a repository is, and how to get there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::secret::Secret;
use crate::store::StoreStats;

/// Where the keys come from.
#[derive(Debug, Clone)]
pub enum S3Credentials {
    /// From a repository URL.
    Keys {
        /// The access key id.
        id: String,
        /// The secret access key.
        secret: Secret,
    },
    /// From where AWS's own tools take them: environment, profiles, SSO, instance roles.
    Chain {
        /// A profile other than the default one.
        profile: Option<String>,
    },
    /// Requests are not signed.
    Anonymous,
}

/// What there is to say about a bucket.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// `http[s]://host[:port]`; AWS when absent.
    pub endpoint: Option<String>,
    /// The region to sign for; found out or guessed when absent.
    pub region: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// The repository's directory, without slashes at its ends; empty for the whole bucket.
    pub dir: String,
    /// Where the keys come from.
    pub credentials: S3Credentials,
    /// `bucket.host/key` instead of `host/bucket/key`.
    pub virtual_hosted_style: bool,
    /// Certificates (PEM) to trust besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Accept any TLS certificate.
    pub allow_unauthorized: bool,
    /// How long a connection may stay silent before it counts as lost.
    pub idle_timeout: Duration,
    /// How long one request is tried again.
    pub retry_budget: Duration,
    /// The wait before the first of these attempts; it doubles from there.
    pub first_delay: Duration,
    /// The most requests in flight at once.
    pub max_parallelism: usize,
    /// Counters to keep.
    pub stats: Arc<StoreStats>,
}
