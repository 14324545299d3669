//! Repositories on S3-compatible object storage, of every provider that XO can write to.
//!
//! Only three requests are ever sent: GetObject, HeadObject and ListObjectsV2. The AWS SDK makes
//! and signs single attempts; whether and when to try again is decided here (`fault`,
//! `remote::retry`), as is how many requests are in flight (`remote::limit`). The calls block: a small runtime of its own
//! does the waiting, so that nothing above knows of `async`.

mod client;
mod fault;
mod get;
mod list;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::client::Client;
use super::remote::store::{Objects, Remote};
use super::{Entry, Meta, Store, StoreLayer, StoreStats};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

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

/// A directory in a bucket as a store.
pub struct S3Store(Remote<Client>);

impl Objects for Client {
    async fn head_object(&self, key: &str) -> Result<Meta> {
        Client::head_object(self, key).await
    }

    async fn get_object(&self, key: &str, max_len: u64) -> Result<(Bytes, Meta)> {
        Client::get_object(self, key, max_len).await
    }

    async fn get_range(&self, key: &str, start: u64, len: u64, opened: Meta) -> Result<Bytes> {
        Client::get_range(self, key, start, len, opened).await
    }

    async fn list_prefix(&self, prefix: &str) -> Result<Vec<Entry>> {
        Client::list_prefix(self, prefix).await
    }

    fn dir(&self) -> &str {
        &self.config.dir
    }

    fn parallelism(&self) -> usize {
        self.transport.limiter.current()
    }

    fn describe(&self) -> String {
        let config = &self.config;
        let endpoint = config.endpoint.as_deref().unwrap_or("");
        let host = endpoint.split_once("://").map_or("", |(_, host)| host);
        let parts = [host, config.bucket.as_str(), config.dir.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        format!("s3://{}", parts.join("/"))
    }
}

impl S3Store {
    /// Sets the client up and starts its threads (do it after any `fork`). Nothing is asked of
    /// the bucket yet.
    ///
    /// # Errors
    /// `Invalid` for a CA file that cannot be used or an endpoint that is no URL.
    pub fn open(config: S3Config) -> Result<Self> {
        if let Some(endpoint) = &config.endpoint {
            let known = endpoint.starts_with("https://") || endpoint.starts_with("http://");
            if !known {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "the S3 endpoint must start with https:// or http://",
                ));
            }
        }
        Remote::start("brfs-s3", Client::new(config)).map(S3Store)
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({:?})", self.0)
    }
}

impl StoreLayer for S3Store {
    fn inner(&self) -> &dyn Store {
        &self.0
    }
}
