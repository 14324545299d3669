//! Repositories on S3-compatible object storage, of every provider that XO can write to.
//!
//! Only three requests are ever sent: GetObject, HeadObject and ListObjectsV2 (ListObjects to servers
//! that do not know it). The AWS SDK makes
//! and signs single attempts; whether and when to try again is decided here (`fault`,
//! `remote::retry`), as is how many requests are in flight (`remote::limit`). The calls block: a small runtime of its own
//! does the waiting, so that nothing above knows of `async`.

mod client;
mod config;
mod fault;
mod get;
mod list;

use std::fmt;

use bytes::Bytes;

use self::client::Client;
pub use self::config::{S3Config, S3Credentials};
use super::remote::blocking::{BlockingStore, ObjectApi};
use super::{Entry, Meta, Store, StoreLayer};
use crate::error::{Error, ErrorKind, Result};

/// A directory in a bucket as a store.
pub struct S3Store(BlockingStore<Client>);

impl ObjectApi for Client {
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
        BlockingStore::start("brfs-s3", Client::new(config)).map(S3Store)
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
