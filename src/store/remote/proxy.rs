//! The way to a server: directly, or through the proxy that the environment names.
//!
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (and in lower case) are read much as curl reads
//! them. `https://` servers are reached through a tunnel (CONNECT), `http://` ones by asking the proxy
//! for them. Loopback and link-local addresses are never asked of a proxy: the first are servers on
//! this machine, the second (and Amazon's `fd00:ec2::/32`) where clouds hand out credentials.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tower_service::Service;

use super::fault::root_message;
use super::proxy_error::ProxyError;

type BoxError = Box<dyn StdError + Send + Sync>;
type BoxFuture<T, E = BoxError> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
type Tcp = <HttpConnector<Names> as Service<Uri>>::Response;

/// What is the same for all connections of a client.
#[derive(Clone)]
pub(super) struct ProxyRules(Arc<Inner>);

struct Inner {
    proxies: Matcher,
    names: Names,
    told: AtomicBool,
}

impl ProxyRules {
    /// As the environment says.
    pub(super) fn of_environment() -> Self {
        Self::new(Matcher::from_env(), Names::System(GaiResolver::new()))
    }

    pub(super) fn new(proxies: Matcher, names: Names) -> Self {
        ProxyRules(Arc::new(Inner {
            proxies,
            names,
            told: AtomicBool::new(false),
        }))
    }

    fn proxy_of(&self, server: &Uri) -> Option<Intercept> {
        match is_near(server.host()?) {
            true => None,
            false => self.0.proxies.intercept(server),
        }
    }

    /// What a proxy that is asked for an `http://` server wants to know of us.
    pub(super) fn authorization(&self, server: &Uri) -> Option<HeaderValue> {
        if server.scheme_str() != Some("http") {
            return None;
        }
        let mut auth = self.proxy_of(server)?.basic_auth()?.clone();
        auth.set_sensitive(true);
        Some(auth)
    }

    /// Makes connections, set up as `configure` does it.
    pub(super) fn connector(&self, configure: impl FnOnce(&mut HttpConnector<Names>)) -> Connector {
        let mut tcp = HttpConnector::new_with_resolver(self.0.names.clone());
        configure(&mut tcp);
        Connector {
            route: self.clone(),
            tcp,
        }
    }
}

/// On this machine, or a cloud's own address for credentials.
fn is_near(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => {
            // Amazon's addresses for credentials are unique-local ones here: fd00:ec2::/32.
            let is_ec2 = ip.segments()[..2] == [0xfd00, 0x0ec2];
            ip.is_loopback() || ip.is_unicast_link_local() || is_ec2
        }
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Finds addresses: asked anew for each connection, so that a server that has moved is found.
#[derive(Clone)]
pub(super) enum Names {
    System(GaiResolver),
    /// Tests only.
    #[cfg(test)]
    ResponseHeaders(Arc<dyn Fn() -> SocketAddr + Send + Sync>),
}

impl Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        match self {
            Names::System(system) => {
                let found = system.call(name);
                Box::pin(async move { Ok(found.await?.collect::<Vec<_>>().into_iter()) })
            }
            #[cfg(test)]
            Names::ResponseHeaders(address) => {
                let address = address();
                Box::pin(async move { Ok(vec![address].into_iter()) })
            }
        }
    }
}

/// Makes the connection below TLS.
#[derive(Clone)]
pub(super) struct Connector {
    route: ProxyRules,
    tcp: HttpConnector<Names>,
}

impl Service<Uri> for Connector {
    type Response = Hopped;
    type Error = BoxError;
    type Future = BoxFuture<Hopped>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let Some(proxy) = self.route.proxy_of(&server) else {
            let connecting = self.tcp.call(server);
            return Box::pin(async move { Ok(Hopped::new(connecting.await?, false)) });
        };
        let at = Via::new(proxy.uri());
        if proxy.uri().scheme_str() != Some("http") {
            let why = "brfs speaks to http:// proxies only";
            return Box::pin(async move { Err(at.fails(why.to_owned(), true)) });
        }
        if !self.route.0.told.swap(true, Ordering::Relaxed) {
            tracing::info!("requests go through the proxy {}", at.0);
        }
        if server.scheme_str() == Some("http") {
            let connecting = self.tcp.call(proxy.uri().clone());
            return Box::pin(async move {
                let connected = connecting.await;
                let tcp = connected.map_err(|e| at.fails(root_message(&e), false))?;
                Ok(Hopped::new(tcp, true))
            });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = tunnel.call(server);
        Box::pin(async move {
            let connected = connecting.await;
            let tcp = connected.map_err(|e| {
                // The connector names its errors by these words only.
                let words = root_message(&e);
                let refused = words.contains("proxy authorization required");
                let why = match words.as_str() {
                    _ if refused => {
                        "it asks for a name and password: http://NAME:PASSWORD@HOST:PORT"
                    }
                    "tunnel error: unsuccessful" => "it refuses to connect to the server",
                    other => other,
                };
                at.fails(why.to_owned(), refused)
            })?;
            Ok(Hopped::new(tcp, false))
        })
    }
}

/// A proxy as people may see it: without what it is told of us.
struct Via(String);

impl Via {
    fn new(uri: &Uri) -> Self {
        let scheme = uri.scheme_str().unwrap_or("http");
        let host = uri.host().unwrap_or_default();
        let port = uri.port().map_or(String::new(), |port| format!(":{port}"));
        Via(format!("{scheme}://{host}{port}"))
    }

    fn fails(&self, why: String, hopeless: bool) -> BoxError {
        let what = format!("the proxy {} of the environment: {why}", self.0);
        Box::new(ProxyError { what, hopeless })
    }
}

/// A connection, which knows whether requests over it are for a proxy to pass on: then they name
/// the server.
pub(super) struct Hopped {
    tcp: Tcp,
    to_proxy: bool,
}

impl Hopped {
    fn new(tcp: Tcp, to_proxy: bool) -> Self {
        Hopped { tcp, to_proxy }
    }
}

impl Connection for Hopped {
    fn connected(&self) -> Connected {
        self.tcp.connected().proxy(self.to_proxy)
    }
}

impl Read for Hopped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl Write for Hopped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Mutex;
    use std::time::Duration;

    use aws_smithy_types::body::SdkBody;

    use super::super::fault::{Fault, transient};
    use super::super::http::Http;
    use super::super::limit::RequestClass;
    use super::super::retry::{RetryPolicy, Transport};
    use super::*;
    use crate::store::Request;

    /// How a server ends.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum End {
        /// Its machine is gone: connections are closed, new ones refused.
        Dead,
        /// It takes requests and says nothing.
        Silent,
        /// It says that it cannot serve any more.
        Unwell,
    }

    /// Answers requests, over connections that stay open, until the end.
    fn serve(listener: TcpListener, ended: Arc<Mutex<Option<End>>>) {
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if *ended.lock().unwrap() == Some(End::Dead) {
                    return;
                }
                let ended = ended.clone();
                std::thread::spawn(move || answer(stream, &ended));
            }
        });
    }

    fn answer(stream: TcpStream, ended: &Mutex<Option<End>>) {
        let mut lines = BufReader::new(&stream).lines();
        while let Some(Ok(line)) = lines.next() {
            if !line.is_empty() {
                continue;
            }
            let status = match *ended.lock().unwrap() {
                None => 200,
                Some(End::Unwell) => 503,
                Some(End::Silent) => continue,
                Some(End::Dead) => return,
            };
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
            (&stream).write_all(answer.as_bytes()).unwrap();
        }
    }

    /// The same port at two addresses of this machine.
    fn two_listeners() -> [TcpListener; 2] {
        loop {
            let first = TcpListener::bind("127.0.0.2:0").unwrap();
            let port = first.local_addr().unwrap().port();
            if let Ok(second) = TcpListener::bind(("127.0.0.3", port)) {
                return [first, second];
            }
        }
    }

    #[test]
    fn a_server_that_has_moved_is_found_at_its_new_address() {
        for end in [End::Dead, End::Silent, End::Unwell] {
            let [old, new] = two_listeners();
            let (at_old, at_new) = (old.local_addr().unwrap(), new.local_addr().unwrap());
            let (ended, never) = (Arc::default(), Arc::default());
            serve(old, Arc::clone(&ended));
            serve(new, never);
            let address = Arc::new(Mutex::new(at_old));
            let told = address.clone();
            let names = Names::ResponseHeaders(Arc::new(move || *told.lock().unwrap()));
            let route = ProxyRules::new(Matcher::builder().build(), names);
            let patience = RetryPolicy {
                idle_timeout: Duration::from_millis(300),
                retry_budget: Duration::from_secs(20),
                first_delay: Duration::from_millis(20),
            };
            let stats = Arc::default();
            let mut transport = Transport::new(None, false, patience.clone(), 4, stats).unwrap();
            let tls = super::super::tls::client_config(None, false).unwrap();
            transport.http = Http::over(route, tls, patience.idle_timeout);
            let transport = Arc::new(transport);

            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let ask = || {
                let url = format!("http://storage.test:{}/", at_old.port());
                let attempt = || async {
                    let request = http::Request::get(&url).body(SdkBody::empty()).unwrap();
                    let response = transport.http.send(request, true).await;
                    let response = response.map_err(|e| Fault::of_transport(&e))?;
                    match response.status().is_success() {
                        true => Ok(((), 0)),
                        false => Err(transient("503")),
                    }
                };
                runtime
                    .block_on(transport.run(Request::Get, RequestClass::Data, attempt, |_| false))
            };
            ask().unwrap();
            // Later failures of the first are not seen by the second: it answers all that comes.
            *ended.lock().unwrap() = Some(end);
            if end == End::Dead {
                // Wakes the listener, which goes; and the connection that is open.
                TcpStream::connect(at_old).unwrap();
            }
            *address.lock().unwrap() = at_new;
            ask().unwrap_or_else(|e| panic!("{end:?}: {e}"));
            ask().unwrap();
        }
    }

    #[test]
    fn what_is_near_is_never_asked_of_a_proxy() {
        for near in [
            "127.0.0.1",
            "127.8.0.1",
            "[::1]",
            "localhost",
            "169.254.169.254",
            "[fe80::1]",
        ] {
            assert!(is_near(near), "{near}");
        }
        for far in [
            "10.0.0.1",
            "192.168.1.1",
            "localhost.example",
            "[2001:db8::1]",
        ] {
            assert!(!is_near(far), "{far}");
        }
    }
}
