//! What there is to say about where a repository is, and how to get there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::secret::Secret;
use crate::store::StoreStats;

/// How requests are authorised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AzureCredentials {
    /// One of the account's two keys (base64).
    Key(Secret),
    /// A shared access signature: `sv=…&sig=…`. It needs read and list on the container.
    Sas(Secret),
    /// Containers with public access.
    Anonymous,
}

/// What there is to say about a container.
#[derive(Debug, Clone)]
pub struct AzureConfig {
    /// `http[s]://host[:port]`.
    pub endpoint: String,
    /// The storage account.
    pub account: String,
    /// Azurite: the account is the first part of the path rather than of the host.
    pub account_in_path: bool,
    /// How requests are authorised.
    pub credentials: AzureCredentials,
    /// The container.
    pub container: String,
    /// The repository's directory, without slashes at its ends; empty for the whole container.
    pub dir: String,
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
