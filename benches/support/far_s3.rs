//! An S3 server that is far away: the files of a directory as objects, read only, every answer late
//! by a fixed time and, if wanted, all answers through one link of limited bandwidth.
//!
//! The protocol is the crate `s3s`', signatures included. What it serves is kept in memory, because
//! a server that shares the machine with who is measured should cost as little as it can. (`s3s-fs`
//! hashes an object for every request of it and reads 4 KiB at a time.)

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    CommonPrefix, ETag, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListObjectsV2Input, ListObjectsV2Output, Object, StreamingBlob, Timestamp,
};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::runtime::Runtime;
use tokio::time::{Instant, Sleep};

pub const KEY_ID: &str = "AKIATEST";
pub const SECRET: &str = "secretsecret";
pub const BUCKET: &str = "bucket";

/// How far away it is.
#[derive(Clone, Copy)]
pub struct Distance {
    /// Added to every request.
    pub delay: Duration,
    /// Bytes per second of all answers together; `None` for as fast as the machine can.
    pub bandwidth: Option<u64>,
}

/// Serves until it is dropped.
pub struct FarS3 {
    pub address: SocketAddr,
    shelf: Arc<Shelf>,
    runtime: Option<Runtime>,
}

impl FarS3 {
    /// The directories below `root` are repositories of the one bucket.
    pub fn start(root: &Path, distance: Distance) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("far-s3")
            .enable_all()
            .build()
            .expect("runtime");
        let shelf = Arc::new(Shelf {
            root: root.to_owned(),
            delay: distance.delay,
            link: distance.bandwidth.map(|b| Arc::new(Link::new(b))),
            taken: Mutex::default(),
            requests: AtomicU64::new(0),
        });
        let mut builder = S3ServiceBuilder::new(OnShelf(Arc::clone(&shelf)));
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("loopback");
        let address = listener.local_addr().expect("address");
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).ok();
                let service = service.clone();
                tokio::spawn(async move {
                    let http = Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        FarS3 {
            address,
            shelf,
            runtime: Some(runtime),
        }
    }

    /// XO's URL for a directory below the root.
    pub fn url(&self, name: &str) -> String {
        let address = self.address;
        format!("s3+http://{KEY_ID}:{SECRET}@{address}/{BUCKET}/{name}#us-east-1")
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.shelf.requests.load(Relaxed)
    }
}

impl Drop for FarS3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Shelf {
    root: PathBuf,
    delay: Duration,
    link: Option<Arc<Link>>,
    taken: Mutex<HashMap<String, Stored>>,
    requests: AtomicU64,
}

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    modified: Timestamp,
    etag: ETag,
}

impl Shelf {
    /// What every request waits for.
    async fn arrive(&self) {
        self.requests.fetch_add(1, Relaxed);
        tokio::time::sleep(self.delay).await;
    }

    fn stored(&self, bucket: &str, key: &str) -> S3Result<Stored> {
        if bucket != BUCKET {
            return Err(s3_error!(NoSuchBucket));
        }
        if let Some(stored) = self.taken.lock().expect("lock").get(key) {
            return Ok(stored.clone());
        }
        let path = self.root.join(key);
        let read = std::fs::read(&path).and_then(|b| Ok((b, std::fs::metadata(&path)?)));
        let (bytes, meta) = read.map_err(|_| s3_error!(NoSuchKey))?;
        let (modified, etag) = state(&meta);
        let stored = Stored {
            bytes: bytes.into(),
            modified,
            etag,
        };
        let mut taken = self.taken.lock().expect("lock");
        taken.insert(key.to_owned(), stored.clone());
        Ok(stored)
    }

    fn body(&self, bytes: Bytes) -> s3s::Body {
        match &self.link {
            None => bytes.into(),
            Some(link) => s3s::Body::http_body(Paced {
                left: bytes,
                link: Arc::clone(link),
                wait: None,
            }),
        }
    }

    /// Names below a prefix that ends with a slash or is empty: all of them, or those directly below
    /// it, with directories, which end with a slash.
    fn names(&self, prefix: &str, recursive: bool) -> BTreeMap<String, Option<Object>> {
        let entries = std::fs::read_dir(self.root.join(prefix));
        let mut names = BTreeMap::new();
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let key = format!("{prefix}{}", name.to_string_lossy());
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() && recursive {
                names.append(&mut self.names(&(key + "/"), true));
                continue;
            }
            if meta.is_dir() {
                names.insert(key + "/", None);
                continue;
            }
            let (modified, etag) = state(&meta);
            let object = Object {
                key: Some(key.clone()),
                size: Some(meta.len() as i64),
                last_modified: Some(modified),
                e_tag: Some(etag),
                ..Object::default()
            };
            names.insert(key, Some(object));
        }
        names
    }
}

fn state(meta: &std::fs::Metadata) -> (Timestamp, ETag) {
    let modified = meta.modified().expect("a time");
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let etag = format!("{:x}-{:x}", meta.len(), since.as_nanos());
    (Timestamp::from(modified), ETag::Strong(etag))
}

/// The service that `s3s` wants to own.
struct OnShelf(Arc<Shelf>);

#[async_trait::async_trait]
impl S3 for OnShelf {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.0.arrive().await;
        let input = request.input;
        let stored = self.0.stored(&input.bucket, &input.key)?;
        let total = stored.bytes.len() as u64;
        let (bytes, content_range) = match input.range {
            None => (stored.bytes, None),
            Some(range) => {
                let range = range.check(total)?;
                let told = format!("bytes {}-{}/{total}", range.start, range.end - 1);
                let part = range.start as usize..range.end as usize;
                (stored.bytes.slice(part), Some(told))
            }
        };
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            content_range,
            body: Some(StreamingBlob::from(self.0.body(bytes))),
            last_modified: Some(stored.modified),
            e_tag: Some(stored.etag),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.0.arrive().await;
        let stored = self.0.stored(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(stored.bytes.len() as i64),
            last_modified: Some(stored.modified),
            e_tag: Some(stored.etag),
            ..HeadObjectOutput::default()
        }))
    }

    /// With the delimiter `/` or none; pages of 1,000.
    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.0.arrive().await;
        let input = request.input;
        let recursive = match input.delimiter.as_deref() {
            Some("/") => false,
            None | Some("") => true,
            Some(_) => return Err(s3_error!(NotImplemented, "lists by / only")),
        };
        let prefix = input.prefix.clone().unwrap_or_default();
        let (dir, _) = prefix.rsplit_once('/').unwrap_or_default();
        let dir = match dir {
            "" => String::new(),
            dir => format!("{dir}/"),
        };
        let mut names = self.0.names(&dir, recursive);
        let after = input.continuation_token.clone().or(input.start_after);
        names.retain(|name, _| {
            name.starts_with(&prefix) && after.as_ref().is_none_or(|after| name > after)
        });
        let page = input.max_keys.unwrap_or(1000).clamp(1, 1000) as usize;
        let more = names.len() > page;
        let names: Vec<_> = names.into_iter().take(page).collect();
        let last = names.last().map(|(name, _)| name.clone());
        let (mut contents, mut prefixes) = (Vec::new(), Vec::new());
        for (name, object) in names {
            match object {
                Some(object) => contents.push(object),
                None => prefixes.push(CommonPrefix { prefix: Some(name) }),
            }
        }
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some((contents.len() + prefixes.len()) as i32),
            max_keys: Some(page as i32),
            is_truncated: Some(more),
            next_continuation_token: last.filter(|_| more),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            continuation_token: input.continuation_token,
            delimiter: input.delimiter,
            name: Some(input.bucket),
            prefix: Some(prefix),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn head_bucket(
        &self,
        _: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.0.arrive().await;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        _: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.0.arrive().await;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }
}

/// One link for all: whoever sends takes the next free stretch of time on it.
struct Link {
    bandwidth: u64,
    free: Mutex<Instant>,
}

impl Link {
    fn new(bandwidth: u64) -> Self {
        let free = Mutex::new(Instant::now());
        Link { bandwidth, free }
    }

    /// When so many bytes will have gone through.
    fn send(&self, len: usize) -> Instant {
        let took = Duration::from_nanos(len as u64 * 1_000_000_000 / self.bandwidth);
        let mut free = self.free.lock().expect("lock");
        // Timers are late by a millisecond or two, which is made up for.
        let earliest = Instant::now() - Duration::from_millis(5);
        *free = (*free).max(earliest) + took;
        *free
    }
}

/// A piece that goes over the link at once.
const PIECE: usize = 64 << 10;

/// A body that comes as fast as the link allows.
struct Paced {
    left: Bytes,
    link: Arc<Link>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.left.len().min(PIECE);
        if self.wait.is_none() {
            let arrival = self.link.send(len);
            self.wait = Some(Box::pin(tokio::time::sleep_until(arrival)));
        }
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
        }
        self.wait = None;
        let piece = self.left.split_to(len);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
