//! A failed request and what to do about it, whichever protocol it was.

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, SystemTime};

use aws_smithy_types::date_time::{DateTime, Format};

use super::proxy_error::ProxyError;
use super::silence::Silence;
use crate::error::{Error, ErrorKind};

/// What to do about a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RetryAction {
    /// Nothing that is done again could help.
    GiveUp,
    /// Try again until the time budget is used up.
    Retry,
    /// Try again, but not for ever: it may also be for good.
    RetryTimes(u32),
    /// The server has not answered. Worth waiting for if it ever has.
    Reconnect,
    /// The bucket is in another region.
    Region(String),
    /// Our clock is wrong. The SDK has taken over the server's and signs with that from now on.
    Clock,
}

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct Fault {
    pub error: Error,
    pub next: RetryAction,
    /// The storage could not keep up: send less at once.
    pub overload: bool,
    /// The storage said so itself.
    pub throttled: bool,
    /// How long it asked us to wait.
    pub after: Option<Duration>,
    /// A HEAD was refused, which has no body: only a GET can tell why.
    pub unexplained: bool,
    /// The answer bears the mark of an S3 server.
    pub from_s3: bool,
}

impl Fault {
    pub(crate) fn new(next: RetryAction, kind: ErrorKind, message: impl Into<String>) -> Self {
        Fault {
            error: Error::new(kind, message),
            next,
            overload: false,
            throttled: false,
            after: None,
            unexplained: false,
            from_s3: false,
        }
    }

    /// An answer that breaks the protocol. The next one may be sound, or the server may never be.
    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(RetryAction::RetryTimes(4), ErrorKind::Io, message)
    }

    pub(crate) fn overloaded(mut self) -> Self {
        self.overload = true;
        self
    }

    /// No answer at all: name lookup, connection, TLS, silence.
    pub(crate) fn of_transport(error: &(dyn StdError + 'static)) -> Self {
        let words = root_message(error);
        if let Some(tls) = find::<rustls::Error>(error) {
            return of_tls(tls);
        }
        let retry = |next, what| Self::new(next, ErrorKind::Transient, what);
        if let Some(proxy) = find::<ProxyError>(error) {
            let next = match proxy.hopeless {
                true => RetryAction::GiveUp,
                false => RetryAction::Reconnect,
            };
            return retry(
                next,
                format!("the server cannot be reached through {proxy}"),
            );
        }
        if find::<Silence>(error).is_some() {
            let what = format!("the server does not answer: {words}");
            return retry(RetryAction::Reconnect, what).overloaded();
        }
        if find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
            let what = "the server does not speak HTTP on this port: is it an s3:// one (TLS)?";
            return Self::new(RetryAction::RetryTimes(2), ErrorKind::Invalid, what);
        }
        if words.contains("tls handshake eof") {
            let what = "the server closed the connection within the TLS handshake: is it an \
                        s3+http:// one?";
            return retry(RetryAction::Reconnect, what.to_owned());
        }
        if is_connect(error) {
            let what = format!("the server cannot be reached: {words}");
            return retry(RetryAction::Reconnect, what);
        }
        let what = format!("the connection was lost: {words}");
        retry(RetryAction::Reconnect, what).overloaded()
    }

    /// A connection that failed or went silent within the answer's body.
    pub(crate) fn broken_body(cause: &(dyn StdError + 'static)) -> Self {
        let what = format!("the answer broke off: {}", root_message(cause));
        Self::new(RetryAction::Retry, ErrorKind::Transient, what).overloaded()
    }
}

pub(crate) fn throttle(words: &str) -> Fault {
    let what = format!("the server asks to slow down ({words})");
    let mut fault = Fault::new(RetryAction::Retry, ErrorKind::Transient, what).overloaded();
    fault.throttled = true;
    fault
}

/// Of an `http://` server that was asked for through a proxy.
pub(crate) fn proxy_refuses(words: &str) -> Fault {
    let what = format!(
        "the proxy of the environment asks for a name and password: \
         HTTP_PROXY=http://NAME:PASSWORD@HOST:PORT ({words})"
    );
    Fault::new(RetryAction::GiveUp, ErrorKind::Denied, what)
}

pub(crate) fn transient(words: &str) -> Fault {
    let what = format!("the server failed ({words})");
    Fault::new(RetryAction::Retry, ErrorKind::Transient, what).overloaded()
}

/// The text of the first such element, made fit to be printed. Bodies of errors are tiny and
/// flat; no parser is needed to find a word in them.
pub(crate) fn element(body: &str, name: &str) -> String {
    let open = format!("<{name}>");
    let close = format!("</{name}>");
    let text = body
        .split_once(&open)
        .and_then(|(_, rest)| rest.split_once(&close))
        .map_or("", |(text, _)| text);
    text.chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect::<String>()
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

/// `Retry-After`: seconds or a date.
pub(crate) fn parse_retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::from_str(text, Format::HttpDate).ok()?;
    let date = SystemTime::try_from(date).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn of_tls(error: &rustls::Error) -> Fault {
    match error {
        rustls::Error::InvalidCertificate(why) => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Denied,
            format!(
                "the server's TLS certificate is not trusted ({why}): give its authority with \
                 --ca-file, or accept any certificate with --allow-unauthorized"
            ),
        ),
        rustls::Error::InvalidMessage(_) => Fault::new(
            RetryAction::RetryTimes(2),
            ErrorKind::Invalid,
            "the server does not speak TLS on this port: is it an s3+http:// one?",
        ),
        other => Fault::new(
            RetryAction::RetryTimes(4),
            ErrorKind::Io,
            format!("TLS with the server failed: {other}"),
        ),
    }
}

fn is_connect(error: &(dyn StdError + 'static)) -> bool {
    find::<hyper_util::client::legacy::Error>(error).is_some_and(|e| e.is_connect())
}

/// The first error of a type in a chain. `io::Error` hides what it wraps from `source()`.
pub(crate) fn find<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a T> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        at = match error.downcast_ref::<io::Error>().and_then(|e| e.get_ref()) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The innermost message: the SDK's outer ones say "dispatch failure" and the like.
pub(crate) fn root_message(error: &(dyn StdError + 'static)) -> String {
    let mut at = error;
    loop {
        let inner = match at.downcast_ref::<io::Error>().and_then(|e| e.get_ref()) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => at.source(),
        };
        match inner {
            Some(inner) => at = inner,
            None => return at.to_string().chars().filter(|c| !c.is_control()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(parse_retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(
            parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(Duration::ZERO)
        );
        assert_eq!(parse_retry_after("soon"), None);
    }

    #[test]
    fn elements_are_found_and_made_printable() {
        let body = "<Error><Code>A&amp;B</Code><Message>x\u{1b}[31my</Message></Error>";
        assert_eq!(element(body, "Code"), "A&B");
        assert_eq!(element(body, "Message"), "x[31my");
        assert_eq!(element(body, "Region"), "");
    }
}
