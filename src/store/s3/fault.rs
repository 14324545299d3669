//! What a failed request means: for good or for now, and what to tell the person.
//!
//! Decisions are made on the answer itself (status, headers, body), not on what the SDK makes of
//! it: providers send codes that the SDK does not know, empty bodies, and bodies that are no XML.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;

use crate::error::ErrorKind;
use crate::store::remote::fault::*;
use crate::store::remote::http::TooLong;
use crate::store::remote::silence::Silence;

/// How a listing is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// `ListObjects`: where to go on is a name, the marker.
    V1,
    /// `ListObjectsV2`: where to go on is an opaque token.
    V2,
}

impl Version {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Version::V1 => "ListObjects",
            Version::V2 => "ListObjectsV2",
        }
    }
}

/// Which of the three requests failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    Head,
    List(Version),
}

impl Operation {
    /// The action that a policy must allow.
    fn permission(self) -> &'static str {
        match self {
            Operation::Get | Operation::Head => "s3:GetObject on the objects",
            Operation::List(_) => "s3:ListBucket on the bucket",
        }
    }
}

impl Fault {
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
            let words = root_message(&error);
            let what = match operation {
                // What the SDK says of it is about XML.
                Operation::List(_) if words.contains("XML") => format!(
                    "the answer is not that of an S3 server, or is damaged: check the endpoint \
                     ({words:.60}…)"
                ),
                _ => format!("the answer cannot be understood: {words}"),
            };
            if find::<Silence>(&error).is_some() {
                return Self::new(RetryAction::Retry, ErrorKind::Transient, what).overloaded();
            }
            if find::<TooLong>(&error).is_some() {
                return Self::new(RetryAction::GiveUp, ErrorKind::Io, what);
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

fn of_answer(operation: Operation, answer: &Answer<'_>) -> Fault {
    let mut fault = by_code(operation, answer).unwrap_or_else(|| by_status(operation, answer));
    fault.after = answer.header("retry-after").and_then(parse_retry_after);
    fault.from_s3 = answer.header("x-amz-request-id").is_some();
    fault
}

/// What the provider's error code says.
fn by_code(operation: Operation, answer: &Answer<'_>) -> Option<Fault> {
    let words = answer.words();
    let fatal = |kind, message: String| Some(Fault::new(RetryAction::GiveUp, kind, message));
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
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "Forbidden"
        | "UnauthorizedAccess" | "AccessForbidden" => {
            denied(denied_message(operation, answer.code.as_str(), &words))
        }
        "InvalidAccessKeyId" | "NotSignedUp" => denied(format!(
            "the server does not know the access key: check the key and the endpoint ({words})"
        )),
        // The provider's message is left out: it would bring the string that was signed.
        "SignatureDoesNotMatch" => denied(
            "the server refuses the signature: the secret key is wrong, or not properly \
             percent-encoded in the URL (HTTP 403 SignatureDoesNotMatch)"
                .into(),
        ),
        "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException" => Some(Fault::new(
            RetryAction::RetryTimes(1),
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
        "NotImplemented" => match operation {
            Operation::List(version) => fatal(
                ErrorKind::Unsupported,
                format!(
                    "the server does not implement {} ({words})",
                    version.as_str()
                ),
            ),
            Operation::Get | Operation::Head => None,
        },
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
            Fault::new(RetryAction::RetryTimes(6), ErrorKind::Transient, what).overloaded()
        }
        401 => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Denied,
            format!("the server refuses the credentials ({words})"),
        ),
        403 => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Denied,
            denied_message(operation, "", &words),
        ),
        404 if operation == Operation::Head => {
            Fault::new(RetryAction::GiveUp, ErrorKind::NotFound, "is not there")
        }
        // A proxy's or web server's page: taking it for "not there" would hide data.
        404 => Fault::protocol(format!(
            "the answer does not come from an S3 server: check the endpoint ({words})"
        )),
        407 => proxy_refuses(&words),
        408 | 425 => transient(&words),
        429 | 503 | 509 => throttle(&words),
        500 | 502 | 504 | 520..=599 => transient(&words),
        412 => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Changed,
            "was replaced while it was read",
        ),
        416 => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Corrupt,
            "ends before the bytes that were expected",
        ),
        _ => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Io,
            format!("the server refuses the request ({words})"),
        ),
    };
    let unclear = matches!(fault.next, RetryAction::GiveUp | RetryAction::RetryTimes(_));
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
        (Operation::List(_), _) => "",
    };
    format!("access denied: the credentials need {permission}{hint} ({words})")
}

fn elsewhere(answer: &Answer<'_>) -> Fault {
    let words = answer.words();
    if let Some(region) = answer.region() {
        let what = format!(
            "the bucket is in region {region}: write #{region} at the end of the URL, or --region \
             {region} ({words})"
        );
        return Fault::new(RetryAction::Region(region), ErrorKind::Invalid, what);
    }
    let endpoint = element(answer.body, "Endpoint");
    let endpoint = match (endpoint.as_str(), answer.header("location")) {
        ("", None) => String::new(),
        ("", Some(at)) => format!(" at {at:.200}"),
        (at, _) => format!(" at {at}"),
    };
    Fault::new(
        RetryAction::GiveUp,
        ErrorKind::Invalid,
        format!("the bucket is elsewhere{endpoint}: check endpoint and region ({words})"),
    )
}

fn skewed(answer: &Answer<'_>) -> Fault {
    let what = "the clock of this machine and that of the server differ too much: set the clock";
    let next = match answer.header("date") {
        Some(_) => RetryAction::Clock,
        None => RetryAction::GiveUp,
    };
    Fault::new(
        next,
        ErrorKind::Denied,
        format!("{what} ({})", answer.words()),
    )
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
            RetryAction::GiveUp,
            ErrorKind::Denied,
            format!(
                "no usable AWS credentials: give them in the URL, in the environment \
                 (AWS_ACCESS_KEY_ID), by --profile, or use --no-sign-request ({words})"
            ),
        );
    }
    match error {
        SdkError::DispatchFailure(failure) if failure.is_user() => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Invalid,
            format!("the request cannot be sent: {words}"),
        ),
        SdkError::ConstructionFailure(_) => Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Invalid,
            format!("the request cannot be made: {words}"),
        ),
        _ => Fault::of_transport(error),
    }
}
