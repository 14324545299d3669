//! What Blob storage answers: bodies, and errors with their meaning.

use std::time::Duration;

use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::{Bytes, BytesMut};

use crate::error::{ErrorKind, Result};
use crate::store::remote::fault::{
    Fault, RetryAction, element, parse_retry_after, proxy_refuses, throttle, transient,
};

/// Which request was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    Head,
    List,
}

/// A body without an announced length; how long it may get is limited by the transport.
pub(super) async fn collect(mut body: ByteStream) -> Result<Bytes, Fault> {
    let mut data = BytesMut::new();
    while let Some(chunk) = body.next().await {
        data.extend_from_slice(&chunk.map_err(|e| Fault::broken_body(&e))?);
    }
    Ok(data.freeze())
}

/// Makes sense of a refusal. Azure tells the code in a header, for HEAD as well.
pub(super) async fn fault(operation: Operation, response: http::Response<SdkBody>) -> Fault {
    let status = response.status().as_u16();
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let after: Option<Duration> = header("retry-after").and_then(|t| parse_retry_after(&t));
    let mut code = header("x-ms-error-code").unwrap_or_default();
    let body = collect(ByteStream::new(response.into_body())).await;
    let body = body.unwrap_or_default();
    let text = String::from_utf8_lossy(&body[..body.len().min(64 << 10)]);
    if code.is_empty() {
        code = element(&text, "Code");
    }
    let words = match code.is_empty() {
        true => format!("HTTP {status}"),
        false => format!("HTTP {status} {code:.80}"),
    };
    let mut fault = by_code(operation, status, &code, &words);
    fault.after = after;
    fault
}

fn by_code(operation: Operation, status: u16, code: &str, words: &str) -> Fault {
    let fatal = |kind, what: String| Fault::new(RetryAction::GiveUp, kind, what);
    match (code, status) {
        ("BlobNotFound" | "ResourceNotFound", _) => {
            fatal(ErrorKind::NotFound, "is not there".into())
        }
        ("ContainerNotFound" | "InvalidResourceName", _) => fatal(
            ErrorKind::Invalid,
            format!("the account has no such container: check its name ({words})"),
        ),
        ("ServerBusy" | "TooManyRequests", _) | (_, 429 | 503) => throttle(words),
        ("OperationTimedOut" | "InternalError", _) | (_, 408 | 500 | 502 | 504) => transient(words),
        ("BlobArchived" | "BlobBeingRehydrated", _) => fatal(
            ErrorKind::Unsupported,
            "is archived (access tier Archive) and cannot be read until it has been rehydrated"
                .into(),
        ),
        ("AuthenticationFailed" | "InvalidAuthenticationInfo", _) => fatal(
            ErrorKind::Denied,
            format!(
                "the server refuses the signature: the account's key or the SAS is wrong or has \
                 expired, or this machine's clock is wrong ({words})"
            ),
        ),
        ("ConditionNotMet", _) | (_, 412) => {
            fatal(ErrorKind::Changed, "was replaced while it was read".into())
        }
        ("InvalidRange", _) | (_, 416) => fatal(
            ErrorKind::Corrupt,
            "ends before the bytes that were expected".into(),
        ),
        (_, 401 | 403) => {
            let right = match operation {
                Operation::List => "list (l) on the container",
                Operation::Get | Operation::Head => "read (r) on the container's blobs",
            };
            fatal(
                ErrorKind::Denied,
                format!("access denied: the credentials need {right} ({words})"),
            )
        }
        (_, 407) => proxy_refuses(words),
        ("", 404) => Fault::protocol(format!(
            "the answer does not come from Azure Blob storage: check the endpoint ({words})"
        )),
        _ => fatal(
            ErrorKind::Io,
            format!("the server refuses the request ({words})"),
        ),
    }
}
