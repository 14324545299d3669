//! Repositories on S3-compatible object storage, of every provider that XO can write to.
//!
//! Only three requests are ever sent: GetObject, HeadObject and ListObjectsV2. The AWS SDK makes
//! and signs single attempts; whether and when to try again is decided here (`fault`, `retry`),
//! as is how many requests are in flight (`limit`). The calls block: a small runtime of its own
//! does the waiting, so that nothing above knows of `async`.

mod client;
mod fault;
mod get;
mod http;
mod limit;
mod list;
mod retry;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;

use self::client::Client;
use super::{Entry, Meta, Store, StorePath, StoreStats, StoreTraits, StoredFile};
use crate::error::{Error, ErrorKind, Result};
use crate::io::check_range;
use crate::secret::Secret;

/// Longer reads are made of pieces, so that a lost connection does not cost all of one.
const MAX_RANGE: u64 = 8 << 20;

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
pub struct S3Store(Arc<Shared>);

struct Shared {
    client: Client,
    // Only `None` while it is dropped.
    runtime: Option<Runtime>,
}

impl Shared {
    fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        let runtime = self.runtime.as_ref();
        let runtime = runtime.ok_or_else(|| Error::new(ErrorKind::Io, "the store is closed"))?;
        Ok(runtime.block_on(future))
    }

    fn key(&self, path: &StorePath) -> String {
        match self.client.config.dir.as_str() {
            "" => path.as_str().to_owned(),
            dir => format!("{dir}/{}", path.as_str()),
        }
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        if path.as_str().is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "is not a file").with_object(path));
        }
        self.wait(self.client.head_object(&self.key(path)))?
            .map_err(|e| e.with_object(path))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Do not wait for a name lookup that hangs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("brfs-s3")
            .enable_all()
            .build()
            .map_err(|e| Error::from_io(e, "cannot start the threads of the S3 client"))?;
        let client = runtime.block_on(Client::new(config))?;
        Ok(S3Store(Arc::new(Shared {
            client,
            runtime: Some(runtime),
        })))
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({})", self.describe())
    }
}

impl Store for S3Store {
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        let mut prefix = self.0.key(dir);
        if !prefix.is_empty() && !prefix.ends_with('/') {
            prefix.push('/');
        }
        self.0
            .wait(self.0.client.list_prefix(&prefix))?
            .map_err(|e| e.with_object(dir))
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.0.head(path)
    }

    fn read(&self, path: &StorePath, max_len: u64) -> Result<(Bytes, Meta)> {
        if path.as_str().is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "is not a file").with_object(path));
        }
        self.0
            .wait(self.0.client.get_object(&self.0.key(path), max_len))?
            .map_err(|e| e.with_object(path))
    }

    fn open(&self, path: &StorePath) -> Result<Arc<dyn StoredFile>> {
        Ok(Arc::new(S3File {
            meta: self.0.head(path)?,
            shared: self.0.clone(),
            path: path.clone(),
        }))
    }

    fn traits(&self) -> StoreTraits {
        StoreTraits {
            cheap_ranges: false,
            remote: true,
            // Shrinks while the storage asks for less, and read-ahead with it.
            parallelism: self.0.client.limiter.current(),
        }
    }

    fn describe(&self) -> String {
        let config = &self.0.client.config;
        let endpoint = config.endpoint.as_deref().unwrap_or("");
        let host = endpoint.split_once("://").map_or("", |(_, host)| host);
        let parts = [host, config.bucket.as_str(), config.dir.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        format!("s3://{}", parts.join("/"))
    }
}

/// An object at the version it had when it was opened.
struct S3File {
    shared: Arc<Shared>,
    path: StorePath,
    meta: Meta,
}

impl StoredFile for S3File {
    fn opened_meta(&self) -> Meta {
        self.meta
    }

    fn head(&self) -> Result<Meta> {
        self.shared.head(&self.path)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.meta.len_bytes).map_err(|_| {
            Error::corrupt(format!(
                "object ends within the {} bytes expected here",
                buf.len()
            ))
            .with_object(&self.path)
            .at(offset)
        })?;
        let key = self.shared.key(&self.path);
        let mut at = offset;
        for piece in buf.chunks_mut(MAX_RANGE as usize) {
            let len = piece.len() as u64;
            let ranged = self.shared.client.get_range(&key, at, len, self.meta);
            let data = self
                .shared
                .wait(ranged)?
                .map_err(|e| e.with_object(&self.path).at(at))?;
            piece.copy_from_slice(&data);
            at += len;
        }
        Ok(())
    }
}
