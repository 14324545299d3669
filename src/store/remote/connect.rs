//! Connections that are made in time or given up.
//!
//! A request that waits for a connection may be given one that others have finished with. The client
//! then goes on connecting by itself, so that the next has one, and nobody waits for that any more: a
//! server that takes connections and says nothing would keep one descriptor for each, for ever.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use tokio::time::timeout;
use tower_service::Service;

use super::silence::{IDLE_TIMEOUT, Silence};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connector whose connections, TLS included, are made within the silence that the request puts up
/// with.
#[derive(Clone)]
pub(super) struct InTime<C> {
    connector: C,
    /// For connections that no request of ours asks for.
    idle: Duration,
}

impl<C> InTime<C> {
    pub(super) fn new(connector: C, idle: Duration) -> Self {
        InTime { connector, idle }
    }
}

impl<C> Service<Uri> for InTime<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let idle = IDLE_TIMEOUT.try_with(|idle| *idle).unwrap_or(self.idle);
        let connecting = self.connector.call(server);
        Box::pin(async move {
            match timeout(idle, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(Silence(idle).into()),
            }
        })
    }
}
