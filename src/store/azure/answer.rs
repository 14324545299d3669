//! What Blob storage answers: listing pages, and errors with their meaning.

use std::time::Duration;

use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use aws_smithy_types::date_time::Format;
use bytes::{Bytes, BytesMut};

use crate::error::{ErrorKind, Result};
use crate::store::remote::fault::{
    Fault, Next, element, parse_retry_after, proxy_refuses, throttle, transient,
};
use crate::store::remote::names::{Listed, Names};
use crate::store::remote::object::{is_empty_etag, meta};

/// Which request was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    Head,
    List,
}

/// One page of a listing: keys with size, ETag and time, or prefixes without.
pub(super) struct Page {
    items: Vec<(String, Option<Blob>)>,
    /// Where the next page starts; empty on the last one.
    pub(super) next: String,
}

struct Blob {
    size: u64,
    etag: String,
    modified: Option<DateTime>,
}

impl Page {
    /// Reads the XML. The documents are flat and their text is escaped, so that a tag's name in
    /// angle brackets is always that tag; whatever could make this untrue is refused.
    pub(super) fn parse(xml: &[u8]) -> Result<Self, Fault> {
        let bad = |what: &str| Fault::protocol(format!("the listing {what}"));
        let text = std::str::from_utf8(xml).map_err(|_| bad("is not text"))?;
        if !text.trim_end().ends_with("</EnumerationResults>") {
            return Err(bad("was cut short"));
        }
        if text.contains("<!") || text.contains("Encoded=\"true\"") {
            return Err(bad("is written in a way that cannot be read"));
        }
        let mut items = Vec::new();
        for part in text.split("<Blob>").skip(1) {
            let (blob, _) = part
                .split_once("</Blob>")
                .ok_or_else(|| bad("is malformed"))?;
            let size = field(blob, "Content-Length")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| bad("has a blob without its size"))?;
            let blob = (
                field(blob, "Name").ok_or_else(|| bad("has a blob without a name"))?,
                Some(Blob {
                    size,
                    etag: field(blob, "Etag").unwrap_or_default(),
                    modified: field(blob, "Last-Modified")
                        .and_then(|d| DateTime::from_str(&d, Format::HttpDate).ok()),
                }),
            );
            items.push(blob);
        }
        for part in text.split("<BlobPrefix>").skip(1) {
            let (prefix, _) = part
                .split_once("</BlobPrefix>")
                .ok_or_else(|| bad("is malformed"))?;
            let name = field(prefix, "Name").ok_or_else(|| bad("has a prefix without a name"))?;
            items.push((name, None));
        }
        if !text.contains("<NextMarker") {
            return Err(bad("does not tell whether it is complete"));
        }
        let next = field(text, "NextMarker").unwrap_or_default();
        Ok(Page { items, next })
    }

    pub(super) fn add_to(&self, names: &mut Names, prefix: &str) -> Result<()> {
        for (key, blob) in &self.items {
            let listed = match blob {
                None => Listed::Prefix,
                Some(blob) => {
                    let modified = blob.modified.as_ref();
                    let known = !is_empty_etag(&blob.etag);
                    Listed::Object {
                        size: blob.size,
                        meta: known.then(|| meta(blob.size, Some(&blob.etag), modified)),
                    }
                }
            };
            names.add(prefix, key, listed)?;
        }
        Ok(())
    }
}

/// The unescaped text of an element; `None` when it is absent or escaped in an unknown way.
fn field(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (escaped, _) = rest.split_once(&format!("</{name}>"))?;
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((before, after)) = rest.split_once('&') {
        text.push_str(before);
        let (entity, after) = after.split_once(';')?;
        text.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            other => {
                let number = other.strip_prefix('#')?;
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(code)?
            }
        });
        rest = after;
    }
    text.push_str(rest);
    Some(text)
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
    let fatal = |kind, what: String| Fault::new(Next::GiveUp, kind, what);
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

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\u{feff}<?xml version=\"1.0\"?><EnumerationResults><Blobs><Blob><Name>d/a&amp;b\
        &#xE9;</Name><Properties><Etag>0x1</Etag><Content-Length>5</Content-Length></Properties>\
        </Blob><BlobPrefix><Name>d/sub/</Name></BlobPrefix></Blobs><NextMarker>m&lt;</NextMarker>\
        </EnumerationResults>";

    #[test]
    fn pages_are_read_and_cut_ones_refused() {
        let page = Page::parse(PAGE.as_bytes()).unwrap();
        assert_eq!(page.next, "m<");
        let mut names = Names::default();
        page.add_to(&mut names, "d/").unwrap();
        let mut names: Vec<String> = names
            .into_entries("d/")
            .unwrap()
            .into_iter()
            .map(|e| e.name)
            .collect();
        names.sort();
        assert_eq!(names, ["a&bé", "sub"]);
        for cut in 0..PAGE.len() {
            assert!(Page::parse(&PAGE.as_bytes()[..cut]).is_err(), "{cut}");
        }
        let last = PAGE.replace("<NextMarker>m&lt;</NextMarker>", "<NextMarker />");
        assert_eq!(Page::parse(last.as_bytes()).unwrap().next, "");
        let none = PAGE.replace("<NextMarker>m&lt;</NextMarker>", "");
        assert!(Page::parse(none.as_bytes()).is_err());
    }
}
