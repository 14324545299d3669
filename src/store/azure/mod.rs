//! Repositories on Azure Blob storage, and on its emulator Azurite.
//!
//! Three requests: List Blobs, Get Blob and Get Blob Properties, signed with the account's key or
//! a shared access signature. Connections, retries and the checks on answers are those of S3
//! (`remote`).

mod answer;
mod client;
mod config;
mod listing;
mod sign;

use std::fmt;

use bytes::Bytes;

use self::client::Client;
pub use self::config::{AzureConfig, AzureCredentials};
use super::remote::blocking::{BlockingStore, ObjectApi};
use super::{Entry, Meta, Store, StoreLayer};
use crate::error::{Error, ErrorKind, Result};

/// A directory in a container as a store.
pub struct AzureStore(BlockingStore<Client>);

impl AzureStore {
    /// Sets the client up and starts its threads (do it after any `fork`). Nothing is asked of
    /// the container yet.
    ///
    /// # Errors
    /// `Invalid` for a CA file or a key that cannot be used, or an endpoint that is no URL.
    pub fn open(config: AzureConfig) -> Result<Self> {
        let known = ["https://", "http://"];
        if !known.iter().any(|k| config.endpoint.starts_with(k)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the Azure endpoint must start with https:// or http://",
            ));
        }
        BlockingStore::start("brfs-azure", async { Client::new(config) }).map(AzureStore)
    }
}

impl ObjectApi for Client {
    async fn head_object(&self, key: &str) -> Result<Meta> {
        self.head_blob(key).await
    }

    async fn get_object(&self, key: &str, max_len: u64) -> Result<(Bytes, Meta)> {
        self.get_blob(key, max_len).await
    }

    async fn get_range(&self, key: &str, start: u64, len: u64, opened: Meta) -> Result<Bytes> {
        self.get_blob_range(key, start, len, opened).await
    }

    async fn list_prefix(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.list_blobs(prefix).await
    }

    fn dir(&self) -> &str {
        &self.config.dir
    }

    fn parallelism(&self) -> usize {
        self.transport.limiter.current()
    }

    fn describe(&self) -> String {
        let config = &self.config;
        let host = config.endpoint.split_once("://").map_or("", |(_, h)| h);
        let parts = [host, config.container.as_str(), config.dir.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        format!("azure://{}", parts.join("/"))
    }
}

impl fmt::Debug for AzureStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AzureStore({:?})", self.0)
    }
}

impl StoreLayer for AzureStore {
    fn inner(&self) -> &dyn Store {
        &self.0
    }
}
