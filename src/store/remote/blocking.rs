//! From keys and futures to paths and blocking calls: what makes a [`Store`](crate::store::Store)
//! of a client. A small runtime of its own does the waiting, so that nothing above knows of
//! `async`.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;

use super::object::has_etag;
use crate::buffers::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{ReadAt, check_range};
use crate::store::{Entry, Meta, Store, StorePath, StoreTraits, StoredFile, Validity};

/// Longer reads are made of pieces, so that a lost connection does not cost all of one.
const MAX_RANGE: u64 = 8 << 20;

/// The requests of one protocol, by key.
pub(crate) trait ObjectApi: Send + Sync + 'static {
    fn head_object(&self, key: &str) -> impl Future<Output = Result<Meta>>;
    fn get_object(&self, key: &str, max_len: u64) -> impl Future<Output = Result<(Bytes, Meta)>>;
    fn get_range(
        &self,
        key: &str,
        start: u64,
        len: u64,
        opened: Meta,
    ) -> impl Future<Output = Result<Bytes>>;
    fn list_prefix(&self, prefix: &str) -> impl Future<Output = Result<Vec<Entry>>>;
    /// The repository's directory, without slashes at its ends.
    fn dir(&self) -> &str;
    /// How many requests may be in flight now.
    fn parallelism(&self) -> usize;
    /// Where the repository is, for people: never with secrets.
    fn describe(&self) -> String;
}

/// A client with its threads.
pub(crate) struct BlockingStore<C>(Arc<Shared<C>>);

struct Shared<C> {
    objects: C,
    // Only `None` while it is dropped.
    runtime: Option<Runtime>,
}

impl<C: ObjectApi> Shared<C> {
    fn wait<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let runtime = self.runtime.as_ref();
        let runtime = runtime.ok_or_else(|| Error::new(ErrorKind::Io, "the store is closed"))?;
        runtime.block_on(future)
    }

    /// The key of a file: the root is none.
    fn key(&self, path: &StorePath) -> Result<String> {
        match (path.as_str(), self.objects.dir()) {
            ("", _) => Err(Error::new(ErrorKind::NotFound, "is not a file")),
            (path, "") => Ok(path.to_owned()),
            (path, dir) => Ok(format!("{dir}/{path}")),
        }
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.key(path)
            .and_then(|key| self.wait(self.objects.head_object(&key)))
            .map_err(|e| e.with_object(path))
    }
}

impl<C> Drop for Shared<C> {
    fn drop(&mut self) {
        // Do not wait for a name lookup that hangs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl<C: ObjectApi> BlockingStore<C> {
    /// Starts the threads and makes the client on them.
    pub(crate) fn start(name: &str, client: impl Future<Output = Result<C>>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(name)
            .enable_all()
            .build()
            .map_err(|e| Error::from_io(e, "cannot start the threads of the storage client"))?;
        let objects = runtime.block_on(client)?;
        let runtime = Some(runtime);
        Ok(BlockingStore(Arc::new(Shared { objects, runtime })))
    }
}

impl<C: ObjectApi> fmt::Debug for BlockingStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl<C: ObjectApi> Store for BlockingStore<C> {
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        let parts = [self.0.objects.dir(), dir.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        let mut prefix = parts.join("/");
        if !prefix.is_empty() {
            prefix.push('/');
        }
        self.0
            .wait(self.0.objects.list_prefix(&prefix))
            .map_err(|e| match dir.as_str() {
                // The repository itself: for callers to name.
                "" => e,
                _ => e.with_object(dir),
            })
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.0.head(path)
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        _validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        let shared = &self.0;
        shared
            .key(path)
            .and_then(|key| shared.wait(shared.objects.get_object(&key, max_len)))
            .map_err(|e| e.with_object(path))
    }

    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        let meta = match listed {
            Some(&meta) => {
                self.0.key(path).map_err(|e| e.with_object(path))?;
                meta
            }
            None => self.0.head(path)?,
        };
        Ok(Arc::new(RemoteFile {
            meta,
            shared: self.0.clone(),
            path: path.clone(),
        }))
    }

    fn read_range(
        &self,
        _path: &StorePath,
        file: &dyn StoredFile,
        offset: u64,
        len: usize,
    ) -> Result<Bytes> {
        file.read_bytes_at(offset, len)
    }

    fn has_copy(&self, _path: &StorePath, _generation: Option<u128>) -> bool {
        false
    }

    fn open_copy(&self, _: &StorePath, _: u64, _: u128) -> Option<Arc<dyn StoredFile>> {
        None
    }

    fn traits(&self) -> StoreTraits {
        StoreTraits {
            cheap_ranges: false,
            remote: true,
            // Shrinks while the storage asks for less, and read-ahead with it.
            parallelism: self.0.objects.parallelism(),
            exact_lengths: true,
        }
    }

    fn describe(&self) -> String {
        self.0.objects.describe()
    }
}

/// An object at the version it had when it was opened.
struct RemoteFile<C> {
    shared: Arc<Shared<C>>,
    path: StorePath,
    meta: Meta,
}

impl<C: ObjectApi> ReadAt for RemoteFile<C> {
    fn len_bytes(&self) -> u64 {
        self.opened_meta().len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len())?;
        let mut at = offset;
        for piece in buf.chunks_mut(MAX_RANGE as usize) {
            piece.copy_from_slice(&self.range(at, piece.len() as u64)?);
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl<C: ObjectApi> StoredFile for RemoteFile<C> {
    fn opened_meta(&self) -> Meta {
        self.meta
    }

    fn head(&self) -> Result<Meta> {
        self.shared.head(&self.path)
    }

    fn read_bytes_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        if len > 0 && len as u64 <= MAX_RANGE {
            self.check(offset, len)?;
            return self.range(offset, len as u64);
        }
        let mut buf = Buffer::new(len);
        self.read_exact_at(&mut buf, offset)?;
        Ok(buf.into_bytes())
    }

    /// Where only length and time tell one state from another, an answer can be of another state.
    fn is_pinned(&self) -> bool {
        has_etag(&self.meta)
    }
}

impl<C: ObjectApi> RemoteFile<C> {
    /// Refuses a range that leaves the object.
    fn check(&self, offset: u64, len: usize) -> Result<()> {
        check_range(offset, len as u64, self.meta.len_bytes).map_err(|_| {
            Error::corrupt(format!("object ends within the {len} bytes expected here"))
                .with_object(&self.path)
                .at(offset)
        })
    }

    /// Whether there is another state of the object now.
    fn is_replaced(&self) -> bool {
        let now = self.head();
        now.is_ok_and(|now| now.version != self.meta.version)
    }

    /// A range by one request, which is answered of the opened state or not at all.
    fn range(&self, at: u64, len: u64) -> Result<Bytes> {
        let key = self.shared.key(&self.path)?;
        let ranged = self.shared.objects.get_range(&key, at, len, self.meta);
        let ranged = self.shared.wait(ranged).map_err(|e| match e.kind() {
            // That is also what is said of a range behind the end of a shorter one in its place.
            ErrorKind::Corrupt if self.is_replaced() => {
                Error::new(ErrorKind::Changed, "was replaced while it was read")
            }
            _ => e,
        });
        ranged.map_err(|e| e.with_object(&self.path).at(at))
    }
}
