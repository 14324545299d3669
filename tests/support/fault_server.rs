//! An S3 server that misbehaves on purpose: HTTP/1.1 by hand on plain threads, so that every
//! byte and every silence of an answer can be chosen.
//!
//! A script decides on each request; [`Bucket`] gives the sound answers in between.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Counts from 0 over all connections.
    pub number: usize,
    /// Which connection it came over.
    pub connection: usize,
    pub at: Instant,
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The decoded path without its leading slash.
    pub fn path(&self) -> String {
        let path = self.target.split('?').next().unwrap_or("");
        decode(path.trim_start_matches('/'))
    }

    /// A decoded query parameter.
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decode(value))
        })
    }

    pub fn is_list(&self) -> bool {
        self.query("list-type").is_some()
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(&tail[..2]).expect("digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("hex"));
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// How an answer is delivered.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// As it should be.
    Whole,
    /// Nothing is sent and the connection is closed.
    Reset,
    /// Only so many bytes of the body are sent before the connection is closed.
    Cut(usize),
    /// As `Cut`, and no Content-Length tells that anything is missing.
    CutUnannounced(usize),
    /// So many bytes of the body are sent, and then nothing more for ever.
    Stall(usize),
    /// Not even a head is sent, for ever.
    Silence,
    /// The head takes this long.
    Late(Duration),
    /// The body comes in so many pieces with a pause before each.
    Trickle(usize, Duration),
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub delivery: Delivery,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
            delivery: Delivery::Whole,
        }
    }

    /// An S3 error with its XML.
    pub fn error(status: u16, code: &str) -> Self {
        Self::error_with(status, code, "")
    }

    pub fn error_with(status: u16, code: &str, more: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>about {code}</Message>{more}<RequestId>1</RequestId></Error>"
        );
        Self::new(status, body).header("content-type", "application/xml")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn delivered(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// The server; it stops when dropped.
pub struct FaultServer {
    pub address: SocketAddr,
    pub log: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl FaultServer {
    pub fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_over(script, Ok)
    }

    /// Wraps every connection, in TLS for instance.
    pub fn start_over<S: Read + Write>(
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> io::Result<S> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("address");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let script: Arc<Script> = Arc::new(script);
        let wrap = Arc::new(wrap);
        let connections = AtomicUsize::new(0);
        let shared = (log.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.1.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let connection = connections.fetch_add(1, Ordering::Relaxed);
                let (log, stop) = shared.clone();
                let (script, wrap) = (script.clone(), wrap.clone());
                std::thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    if let Ok(stream) = wrap(stream) {
                        let _ = serve(stream, connection, &*script, &log, &stop);
                    }
                });
            }
        });
        FaultServer { address, log, stop }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().expect("log").clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve<S: Read + Write>(
    stream: S,
    connection: usize,
    script: &Script,
    log: &Mutex<Vec<Seen>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let mut seen = Seen {
            number: 0,
            connection,
            at: Instant::now(),
            method: words.next().unwrap_or("").to_owned(),
            target: words.next().unwrap_or("").to_owned(),
            headers: Vec::new(),
        };
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            let value = value.trim().to_owned();
            seen.headers.push((name.to_ascii_lowercase(), value));
        }
        {
            let mut log = log.lock().expect("log");
            seen.number = log.len();
            log.push(seen.clone());
        }
        let reply = script(&seen);
        if !deliver(stream.get_mut(), &seen, &reply, stop)? {
            return Ok(());
        }
    }
}

/// False when the connection is to be closed.
fn deliver<S: Write>(
    stream: &mut S,
    seen: &Seen,
    reply: &Reply,
    stop: &AtomicBool,
) -> io::Result<bool> {
    let forever = || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    match reply.delivery {
        Delivery::Reset => return Ok(false),
        Delivery::Silence => {
            forever();
            return Ok(false);
        }
        Delivery::Late(by) => std::thread::sleep(by),
        _ => {}
    }
    let announced = !matches!(reply.delivery, Delivery::CutUnannounced(_));
    let mut head = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
    let mut headers = reply.headers.clone();
    if announced && !headers.iter().any(|(n, _)| n == "content-length") {
        headers.push(("content-length".into(), reply.body.len().to_string()));
    }
    if !announced {
        headers.push(("connection".into(), "close".into()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.flush()?;
    let body = match seen.method.as_str() {
        "HEAD" => &[][..],
        _ => &reply.body[..],
    };
    match reply.delivery {
        Delivery::Cut(n) | Delivery::CutUnannounced(n) => {
            stream.write_all(&body[..n.min(body.len())])?;
            stream.flush()?;
            return Ok(false);
        }
        Delivery::Stall(n) => {
            stream.write_all(&body[..n.min(body.len())])?;
            stream.flush()?;
            forever();
            return Ok(false);
        }
        Delivery::Trickle(pieces, pause) => {
            for piece in body.chunks(body.len().div_ceil(pieces).max(1)) {
                std::thread::sleep(pause);
                stream.write_all(piece)?;
                stream.flush()?;
            }
        }
        _ => stream.write_all(body)?,
    }
    stream.flush()?;
    Ok(true)
}

/// What a server knows of listings.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Lists {
    #[default]
    V2,
    /// Passes over `list-type`, and names where to go on.
    V1,
    /// The same, and leaves it to the client to find that out from the names.
    V1WithoutNextMarker,
    /// Refuses `list-type`, and knows version 1.
    V1Only,
    Neither,
}

/// Objects under their keys, and sound answers about them.
#[derive(Clone, Default)]
pub struct Bucket {
    pub name: String,
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Names in one page of a listing.
    pub page: usize,
    /// What it knows of listings.
    pub lists: Lists,
}

impl Bucket {
    pub fn new(name: &str, objects: &[(&str, &[u8])]) -> Self {
        Bucket {
            name: name.to_owned(),
            objects: objects
                .iter()
                .map(|(key, data)| ((*key).to_owned(), data.to_vec()))
                .collect(),
            page: 1000,
            lists: Lists::V2,
        }
    }

    pub fn etag(data: &[u8]) -> String {
        let sum = data
            .iter()
            .fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(*b)));
        format!("\"{sum:016x}\"")
    }

    pub fn answer(&self, seen: &Seen) -> Reply {
        let path = seen.path();
        let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
        if bucket != self.name {
            return Reply::error(404, "NoSuchBucket");
        }
        match self.lists {
            Lists::V2 if seen.is_list() => return self.list(seen),
            Lists::V1Only | Lists::Neither if seen.is_list() => {
                return Reply::error(501, "NotImplemented");
            }
            Lists::Neither if key.is_empty() => return Reply::error(501, "NotImplemented"),
            _ if key.is_empty() => return self.list_v1(seen),
            _ => {}
        }
        let Some(data) = self.objects.get(key) else {
            return Reply::error(404, "NoSuchKey");
        };
        let reply = match seen.header("range") {
            None => Reply::new(200, data.clone()),
            Some(range) => {
                let (from, to) = range
                    .strip_prefix("bytes=")
                    .and_then(|r| r.split_once('-'))
                    .expect("range");
                let from: usize = from.parse().expect("number");
                let to: usize = to.parse().expect("number");
                if from >= data.len() {
                    return Reply::error(416, "InvalidRange");
                }
                let to = to.min(data.len() - 1);
                let range = format!("bytes {from}-{to}/{}", data.len());
                Reply::new(206, &data[from..=to]).header("content-range", &range)
            }
        };
        reply
            .header("etag", &Self::etag(data))
            .header("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT")
    }

    /// The names of a listing: objects, and prefixes up to the next slash.
    fn names(&self, prefix: &str) -> Vec<(String, Option<&Vec<u8>>)> {
        let mut names: Vec<(String, Option<&Vec<u8>>)> = Vec::new();
        for (key, data) in &self.objects {
            let Some(rest) = key.strip_prefix(prefix) else {
                continue;
            };
            let name = match rest.split_once('/') {
                Some((dir, _)) => (format!("{prefix}{dir}/"), None),
                None => (key.clone(), Some(data)),
            };
            if names.last().is_none_or(|(last, _)| *last != name.0) {
                names.push(name);
            }
        }
        names
    }

    /// Version 1: goes on after a name, not at a token.
    fn list_v1(&self, seen: &Seen) -> Reply {
        let prefix = seen.query("prefix").unwrap_or_default();
        let marker = seen.query("marker").unwrap_or_default();
        let mut names = self.names(&prefix);
        names.retain(|(name, _)| *name > marker);
        let truncated = names.len() > self.page;
        names.truncate(self.page);
        let escape = |name: &str| name.replace('&', "&amp;").replace('<', "&lt;");
        let mut head = format!("<Marker>{}</Marker>", escape(&marker));
        if let Some((last, _)) = names.last().filter(|_| truncated)
            && self.lists != Lists::V1WithoutNextMarker
        {
            head += &format!("<NextMarker>{}</NextMarker>", escape(last));
        }
        self.listing(truncated, &head, &names)
    }

    /// Tokens are as unpleasant as an opaque token may be.
    fn list(&self, seen: &Seen) -> Reply {
        let names = self.names(&seen.query("prefix").unwrap_or_default());
        let start = match seen.query("continuation-token") {
            None => 0,
            Some(token) => token
                .strip_prefix("1/+ =&é?")
                .and_then(|n| n.parse().ok())
                .expect("our own token"),
        };
        let end = (start + self.page).min(names.len());
        let truncated = end < names.len();
        let next = match truncated {
            true => format!("<NextContinuationToken>1/+ =&amp;é?{end}</NextContinuationToken>"),
            false => String::new(),
        };
        self.listing(truncated, &next, &names[start..end])
    }

    fn listing(&self, truncated: bool, head: &str, names: &[(String, Option<&Vec<u8>>)]) -> Reply {
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"\
             http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{}</Name><IsTruncated>{truncated}\
             </IsTruncated>",
            self.name
        );
        xml.push_str(head);
        for (name, data) in names {
            let name = name.replace('&', "&amp;").replace('<', "&lt;");
            xml.push_str(&match data {
                Some(data) => format!(
                    "<Contents><Key>{name}</Key><LastModified>2015-10-21T07:28:00.000Z\
                     </LastModified><ETag>{}</ETag><Size>{}</Size>\
                     <StorageClass>STANDARD</StorageClass></Contents>",
                    Self::etag(data).replace('"', "&quot;"),
                    data.len()
                ),
                None => format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
            });
        }
        xml.push_str("</ListBucketResult>\n");
        Reply::new(200, xml).header("content-type", "application/xml")
    }
}
