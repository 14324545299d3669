//! The HTTP side of the S3 client: one connection pool, TLS, and time-outs on silence.
//!
//! The SDK's own HTTP client has time-outs for the start of an answer only, cannot be told to
//! trust any certificate, and cannot be told to leave its connections. This one is the same
//! hyper and rustls underneath, with those three things added.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::sync::lock;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Sleep, sleep, timeout};

use super::connect::InTime;
use super::proxy::{Connector, ProxyRules};
use super::silence::{IDLE_TIMEOUT, Silence};

/// How long one address of a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections are left before servers and firewalls forget them.
const POOL_IDLE: Duration = Duration::from_secs(20);
/// What is read from a connection at once. hyper's own 400 KiB are memory fresh from the system each
/// time, whose pages cost more than the calls that they save. Heads of answers must fit in.
const READ_BYTES: usize = 64 << 10;
/// Pools are not renewed more often than this, however many requests fail at once.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Headers that only AWS's own statistics want. Strict servers refuse what they do not know.
const NEVER_SENT: [&str; 3] = [
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "x-amz-user-agent",
];
/// The longest listing page or error that is taken in; pages of 1000 keys have at most some 4 MB.
const MAX_MESSAGE: u64 = 32 << 20;
const USER_AGENT: &str = concat!("brfs/", env!("CARGO_PKG_VERSION"));

tokio::task_local! {
    /// Whether an answer to the request of this task has begun.
    pub(crate) static ANSWERED: Arc<AtomicBool>;
}

type Pool = Client<InTime<HttpsConnector<Connector>>, SdkBody>;

/// Hands requests of the SDK to hyper. Clones share the pool.
#[derive(Clone)]
pub(crate) struct Http(Arc<Inner>);

struct Inner {
    tls: rustls::ClientConfig,
    route: ProxyRules,
    idle: Duration,
    pool: Mutex<(Pool, Option<Instant>)>,
}

impl Http {
    pub(crate) fn new(tls: rustls::ClientConfig, idle: Duration) -> Self {
        Self::over(ProxyRules::of_environment(), tls, idle)
    }

    pub(super) fn over(route: ProxyRules, tls: rustls::ClientConfig, idle: Duration) -> Self {
        let pool = Mutex::new((new_pool(&route, &tls, idle), None));
        Http(Arc::new(Inner {
            tls,
            route,
            idle,
            pool,
        }))
    }

    /// Leaves all idle connections and resolves the server's name anew: after a fault the next
    /// attempt should not meet the same machine over the same connection. Requests under way are
    /// not disturbed.
    pub(crate) fn renew(&self) {
        let mut pool = lock(&self.0.pool);
        if pool.1.is_none_or(|last| last.elapsed() >= RENEW_INTERVAL) {
            let (route, tls) = (&self.0.route, &self.0.tls);
            *pool = (new_pool(route, tls, self.0.idle), Some(Instant::now()));
        }
    }

    fn pool(&self) -> Pool {
        let pool = lock(&self.0.pool);
        pool.0.clone()
    }
}

fn new_pool(route: &ProxyRules, tls: &rustls::ClientConfig, idle: Duration) -> Pool {
    let connector = route.connector(|tcp| {
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(Duration::from_secs(30)));
    });
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(READ_BYTES)
        .build(InTime::new(connector, idle))
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl HttpClient for Http {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Http {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let http = self.clone();
        HttpConnectorFuture::new(async move {
            let request = request
                .try_into_http1x()
                .map_err(|e| ConnectorError::user(e.into()))?;
            let is_list = request
                .uri()
                .query()
                .is_some_and(|q| q.contains("list-type="));
            let response = http.send(request, is_list).await?;
            HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

impl Http {
    /// Sends one request. Where the answer will be taken into memory as a whole (`limited`; errors
    /// always are), its length is limited.
    pub(crate) async fn send(
        &self,
        mut request: http::Request<SdkBody>,
        limited: bool,
    ) -> Result<http::Response<SdkBody>, ConnectorError> {
        let idle = IDLE_TIMEOUT.try_with(|idle| *idle).unwrap_or(self.0.idle);
        let for_proxy = self.0.route.authorization(request.uri());
        let is_clear = request.uri().scheme() == Some(&http::uri::Scheme::HTTP);
        let headers = request.headers_mut();
        if let Some(auth) = for_proxy {
            headers.insert(http::header::PROXY_AUTHORIZATION, auth);
        }
        for name in NEVER_SENT {
            headers.remove(name);
        }
        // A proxy may keep what was asked for without credentials, and give it later without asking.
        let is_open = !headers.contains_key(http::header::AUTHORIZATION);
        if is_clear && is_open {
            let anew = http::HeaderValue::from_static("no-cache");
            headers.insert(http::header::CACHE_CONTROL, anew);
        }
        let agent = http::HeaderValue::from_static(USER_AGENT);
        headers.insert("user-agent", agent);
        let response = timeout(idle, self.pool().request(request))
            .await
            .map_err(|_| ConnectorError::timeout(Silence(idle).into()))?
            .map_err(|e| ConnectorError::io(e.into()))?;
        let _ = ANSWERED.try_with(|answered| answered.store(true, Ordering::Relaxed));
        let limited = limited || !response.status().is_success();
        let limit = if limited { MAX_MESSAGE } else { u64::MAX };
        Ok(response.map(|body| SdkBody::from_body_1_x(GuardedBody::new(body, idle, limit))))
    }
}

/// The other side would not end.
#[derive(Debug)]
pub(crate) struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is longer than {MAX_MESSAGE} bytes")
    }
}

impl StdError for TooLong {}

/// A body that fails when no byte of it has come for a while, or too many have.
struct GuardedBody<B> {
    inner: B,
    idle: Duration,
    left: u64,
    timer: Pin<Box<Sleep>>,
    done: bool,
}

impl<B> GuardedBody<B> {
    fn new(inner: B, idle: Duration, left: u64) -> Self {
        GuardedBody {
            inner,
            idle,
            left,
            timer: Box::pin(sleep(idle)),
            done: false,
        }
    }
}

impl<B> Body for GuardedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            let deadline = tokio::time::Instant::now() + self.idle;
            self.timer.as_mut().reset(deadline);
            self.done = !matches!(frame, Some(Ok(_)));
            let data = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref());
            let len = data.map_or(0, |d| d.len() as u64);
            match self.left.checked_sub(len) {
                Some(left) => self.left = left,
                None => {
                    self.done = true;
                    return Poll::Ready(Some(Err(TooLong.into())));
                }
            }
            return Poll::Ready(frame.map(|f| f.map_err(Into::into)));
        }
        ready!(self.timer.as_mut().poll(cx));
        self.done = true;
        Poll::Ready(Some(Err(Silence(self.idle).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
