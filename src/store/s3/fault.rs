//! What a failed request means: for good or for now, and what to tell the person.
//!
//! Decisions are made on the answer itself (status, headers, body), not on what the SDK makes of
//! it: providers send codes that the SDK does not know, empty bodies, and bodies that are no XML.

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::date_time::{DateTime, Format};

use super::http::{Silence, TooLong};
use crate::error::{Error, ErrorKind};

/// Which of the three requests failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    Head,
    List,
}

impl Operation {
    /// The action that a policy must allow.
    fn permission(self) -> &'static str {
        match self {
            Operation::Get | Operation::Head => "s3:GetObject on the objects",
            Operation::List => "s3:ListBucket on the bucket",
        }
    }
}

/// What to do about a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing that is done again could help.
    GiveUp,
    /// Try again until the time budget is used up.
    Retry,
    /// Try again, but not for ever: it may also be for good.
    RetryTimes(u32),
    /// The server was not reached. Worth waiting for if it ever was.
    Reconnect,
    /// The bucket is in another region.
    Region(String),
    /// Our clock is wrong. The SDK has taken over the server's and signs with that from now on.
    Clock,
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Fault {
    pub error: Error,
    pub next: Next,
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
    pub(super) fn new(next: Next, kind: ErrorKind, message: impl Into<String>) -> Self {
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
    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::new(Next::RetryTimes(4), ErrorKind::Io, message)
    }

    fn overloaded(mut self) -> Self {
        self.overload = true;
        self
    }

    /// A connection that failed or went silent within the answer's body.
    pub(super) fn broken_body(cause: &(dyn StdError + 'static)) -> Self {
        let what = format!("the answer broke off: {}", root_message(cause));
        Self::new(Next::Retry, ErrorKind::Transient, what).overloaded()
    }

    /// Makes sense of what the SDK returned for one attempt.
    pub(super) fn of<E>(operation: Operation, error: SdkError<E, HttpResponse>) -> Self
    where
        E: StdError + Send + Sync + 'static,
    {
        if let Some(response) = error.raw_response() {
            let status = response.status().as_u16();
            if status >= 300 {
                return of_answer(operation, &Answer::new(response));
            }
            let what = format!("the answer cannot be understood: {}", root_message(&error));
            if find::<Silence>(&error).is_some() {
                return Self::new(Next::Retry, ErrorKind::Transient, what).overloaded();
            }
            if find::<TooLong>(&error).is_some() {
                return Self::new(Next::GiveUp, ErrorKind::Io, what);
            }
            return Self::protocol(what);
        }
        of_connection(&error)
    }
}

/// The parts of an answer that matter.
struct Answer<'a> {
    status: u16,
    body: &'a str,
    code: String,
    message: String,
    response: &'a HttpResponse,
}

impl<'a> Answer<'a> {
    fn new(response: &'a HttpResponse) -> Self {
        let body = response.body().bytes().unwrap_or_default();
        let body = &body[..body.len().min(64 << 10)];
        let body = match std::str::from_utf8(body) {
            Ok(text) => text,
            Err(e) => std::str::from_utf8(&body[..e.valid_up_to()]).unwrap_or_default(),
        };
        Answer {
            status: response.status().as_u16(),
            body,
            code: element(body, "Code"),
            message: element(body, "Message"),
            response,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)
    }

    fn region(&self) -> Option<String> {
        let told = match self.header("x-amz-bucket-region") {
            Some(region) => region.to_owned(),
            None => element(self.body, "Region"),
        };
        let plausible = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (!told.is_empty() && told.len() <= 64 && told.bytes().all(plausible)).then_some(told)
    }

    /// The provider's own words, for the end of a message.
    fn words(&self) -> String {
        match (self.code.is_empty(), self.message.is_empty()) {
            (true, _) => format!("HTTP {}", self.status),
            (false, true) => format!("HTTP {} {}", self.status, self.code),
            (false, false) => format!("HTTP {} {}: {}", self.status, self.code, self.message),
        }
    }
}

/// The text of the first such element, made fit to be printed. Bodies of errors are tiny and
/// flat; no parser is needed to find a word in them.
fn element(body: &str, name: &str) -> String {
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

fn of_answer(operation: Operation, answer: &Answer<'_>) -> Fault {
    let mut fault = by_code(operation, answer).unwrap_or_else(|| by_status(operation, answer));
    fault.after = answer.header("retry-after").and_then(parse_retry_after);
    fault.from_s3 = answer.header("x-amz-request-id").is_some();
    fault
}

/// What the provider's error code says.
fn by_code(operation: Operation, answer: &Answer<'_>) -> Option<Fault> {
    let words = answer.words();
    let fatal = |kind, message: String| Some(Fault::new(Next::GiveUp, kind, message));
    let denied = |message: String| fatal(ErrorKind::Denied, message);
    match answer.code.as_str() {
        "SlowDown"
        | "SlowDownRead"
        | "ReduceYourRequestRate"
        | "TooManyRequests"
        | "TooManyRequestsException"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "RateLimitExceeded"
        | "ServiceUnavailable"
        | "Busy"
        | "ServerBusy" => Some(throttle(&words)),
        "InternalError"
        | "InternalServerError"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "OperationAborted"
        | "IncompleteBody"
        | "OperationTimedOut" => Some(transient(&words)),
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => Some(skewed(answer)),
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "IllegalLocationConstraintException"
        | "InvalidLocationConstraint"
        | "InvalidRegion" => Some(elsewhere(answer)),
        "NoSuchKey" | "NotFound" => fatal(ErrorKind::NotFound, "is not there".into()),
        "NoSuchBucket" | "InvalidBucketName" => fatal(
            ErrorKind::Invalid,
            format!("the server knows no such bucket: check its name and the endpoint ({words})"),
        ),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "NotSignedUp" | "Forbidden"
        | "UnauthorizedAccess" | "AccessForbidden" => {
            denied(denied_message(operation, answer.code.as_str(), &words))
        }
        "InvalidAccessKeyId" => denied(format!(
            "the server does not know the access key: check the key and the endpoint ({words})"
        )),
        // The provider's message is left out: it would bring the string that was signed.
        "SignatureDoesNotMatch" => denied(
            "the server refuses the signature: the secret key is wrong, or not properly \
             percent-encoded in the URL (HTTP 403 SignatureDoesNotMatch)"
                .into(),
        ),
        "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException" => Some(Fault::new(
            Next::RetryTimes(1),
            ErrorKind::Denied,
            format!("the temporary credentials have expired: log in again ({words})"),
        )),
        "InvalidToken" | "InvalidSecurity" | "MissingSecurityHeader" => {
            denied(format!("the server refuses the credentials ({words})"))
        }
        "InvalidObjectState" => {
            let class = element(answer.body, "StorageClass");
            let tier = element(answer.body, "AccessTier");
            let class = match (class.is_empty(), tier.is_empty()) {
                (true, _) => "an archive class".to_owned(),
                (false, true) => format!("storage class {class}"),
                (false, false) => format!("storage class {class}, tier {tier}"),
            };
            fatal(
                ErrorKind::Unsupported,
                format!(
                    "is archived ({class}) and cannot be read until it has been restored from \
                     the archive"
                ),
            )
        }
        "PreconditionFailed" => fatal(ErrorKind::Changed, "was replaced while it was read".into()),
        "InvalidRange" => fatal(
            ErrorKind::Corrupt,
            "ends before the bytes that were expected".into(),
        ),
        _ => None,
    }
}

/// What is left to go by when there is no code, or none that is known.
fn by_status(operation: Operation, answer: &Answer<'_>) -> Fault {
    let words = answer.words();
    let no_code = answer.code.is_empty();
    let mut fault = match answer.status {
        300..=399 => elsewhere(answer),
        400 if no_code && answer.region().is_some() => elsewhere(answer),
        // Seen at Wasabi under load: 400 and nothing else.
        400 if no_code => {
            let what = "the server answered 400 without saying why";
            Fault::new(Next::RetryTimes(6), ErrorKind::Transient, what).overloaded()
        }
        401 => Fault::new(
            Next::GiveUp,
            ErrorKind::Denied,
            format!("the server refuses the credentials ({words})"),
        ),
        403 => Fault::new(
            Next::GiveUp,
            ErrorKind::Denied,
            denied_message(operation, "", &words),
        ),
        404 if operation == Operation::Head => {
            Fault::new(Next::GiveUp, ErrorKind::NotFound, "is not there")
        }
        // A proxy's or web server's page: taking it for "not there" would hide data.
        404 => Fault::protocol(format!(
            "the answer does not come from an S3 server: check the endpoint ({words})"
        )),
        408 | 425 => transient(&words),
        429 | 503 | 509 => throttle(&words),
        500 | 502 | 504 | 520..=599 => transient(&words),
        412 => Fault::new(
            Next::GiveUp,
            ErrorKind::Changed,
            "was replaced while it was read",
        ),
        416 => Fault::new(
            Next::GiveUp,
            ErrorKind::Corrupt,
            "ends before the bytes that were expected",
        ),
        _ => Fault::new(
            Next::GiveUp,
            ErrorKind::Io,
            format!("the server refuses the request ({words})"),
        ),
    };
    let unclear = matches!(fault.next, Next::GiveUp | Next::RetryTimes(_));
    fault.unexplained = operation == Operation::Head && unclear;
    fault
}

fn denied_message(operation: Operation, code: &str, words: &str) -> String {
    let permission = operation.permission();
    let hint = match (operation, code) {
        // Without the right to list, S3 does not tell "not there" from "not for you".
        (Operation::Get | Operation::Head, _) => {
            ", or the object is not there and s3:ListBucket is not allowed either"
        }
        (Operation::List, _) => "",
    };
    format!("access denied: the credentials need {permission}{hint} ({words})")
}

fn throttle(words: &str) -> Fault {
    let what = format!("the server asks to slow down ({words})");
    let mut fault = Fault::new(Next::Retry, ErrorKind::Transient, what).overloaded();
    fault.throttled = true;
    fault
}

fn transient(words: &str) -> Fault {
    let what = format!("the server failed ({words})");
    Fault::new(Next::Retry, ErrorKind::Transient, what).overloaded()
}

fn elsewhere(answer: &Answer<'_>) -> Fault {
    let words = answer.words();
    if let Some(region) = answer.region() {
        let what = format!("the bucket is in region {region} ({words})");
        return Fault::new(Next::Region(region), ErrorKind::Invalid, what);
    }
    let endpoint = element(answer.body, "Endpoint");
    let endpoint = match (endpoint.as_str(), answer.header("location")) {
        ("", None) => String::new(),
        ("", Some(at)) => format!(" at {at:.200}"),
        (at, _) => format!(" at {at}"),
    };
    Fault::new(
        Next::GiveUp,
        ErrorKind::Invalid,
        format!("the bucket is elsewhere{endpoint}: check endpoint and region ({words})"),
    )
}

fn skewed(answer: &Answer<'_>) -> Fault {
    let what = "the clock of this machine and that of the server differ too much: set the clock";
    let next = match answer.header("date") {
        Some(_) => Next::Clock,
        None => Next::GiveUp,
    };
    Fault::new(
        next,
        ErrorKind::Denied,
        format!("{what} ({})", answer.words()),
    )
}

/// `Retry-After`: seconds or a date.
fn parse_retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::from_str(text, Format::HttpDate).ok()?;
    let date = SystemTime::try_from(date).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// No answer at all: the connection, TLS, or the credentials before it.
fn of_connection<E>(error: &SdkError<E, HttpResponse>) -> Fault
where
    E: StdError + Send + Sync + 'static,
{
    let words = root_message(error);
    if let Some(credentials) = find::<CredentialsError>(error) {
        let words = root_message(credentials);
        return Fault::new(
            Next::GiveUp,
            ErrorKind::Denied,
            format!(
                "no usable AWS credentials: give them in the URL, in the environment \
                 (AWS_ACCESS_KEY_ID), by --profile, or use --no-sign-request ({words})"
            ),
        );
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        return of_tls(tls);
    }
    if find::<Silence>(error).is_some() {
        return Fault::new(
            Next::Retry,
            ErrorKind::Transient,
            format!("the server does not answer: {words}"),
        )
        .overloaded();
    }
    match error {
        SdkError::DispatchFailure(failure) if failure.is_user() => Fault::new(
            Next::GiveUp,
            ErrorKind::Invalid,
            format!("the request cannot be sent: {words}"),
        ),
        SdkError::ConstructionFailure(_) => Fault::new(
            Next::GiveUp,
            ErrorKind::Invalid,
            format!("the request cannot be made: {words}"),
        ),
        SdkError::DispatchFailure(_) if words.contains("tls handshake eof") => Fault::new(
            Next::Reconnect,
            ErrorKind::Transient,
            "the server closed the connection within the TLS handshake: is it an s3+http:// one?",
        ),
        SdkError::DispatchFailure(_) if is_connect(error) => Fault::new(
            Next::Reconnect,
            ErrorKind::Transient,
            format!("the server cannot be reached: {words}"),
        ),
        _ => Fault::new(
            Next::Retry,
            ErrorKind::Transient,
            format!("the connection was lost: {words}"),
        )
        .overloaded(),
    }
}

fn of_tls(error: &rustls::Error) -> Fault {
    match error {
        rustls::Error::InvalidCertificate(why) => Fault::new(
            Next::GiveUp,
            ErrorKind::Denied,
            format!(
                "the server's TLS certificate is not trusted ({why}): give its authority with \
                 --ca-file, or accept any certificate with --allow-unauthorized"
            ),
        ),
        rustls::Error::InvalidMessage(_) => Fault::new(
            Next::RetryTimes(2),
            ErrorKind::Invalid,
            "the server does not speak TLS on this port: is it an s3+http:// one?",
        ),
        other => Fault::new(
            Next::RetryTimes(4),
            ErrorKind::Io,
            format!("TLS with the server failed: {other}"),
        ),
    }
}

fn is_connect(error: &(dyn StdError + 'static)) -> bool {
    find::<hyper_util::client::legacy::Error>(error).is_some_and(|e| e.is_connect())
}

/// The first error of a type in a chain. `io::Error` hides what it wraps from `source()`.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
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
fn root_message(error: &(dyn StdError + 'static)) -> String {
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
