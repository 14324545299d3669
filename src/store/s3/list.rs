//! Directories: all pages of a listing, or an error. Never a part of it.
//!
//! Asked for with `ListObjectsV2`; servers that do not know it are asked with `ListObjects`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use aws_sdk_s3::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::types::{CommonPrefix, EncodingType, Object};

use super::client::{Client, Connection};
use super::fault::{Operation, Version};
use crate::codec::percent::percent_decode;
use crate::error::{Error, ErrorKind, Result};
use crate::store::remote::fault::Fault;
use crate::store::remote::limit::RequestClass;
use crate::store::remote::names::{Listed, Names};
use crate::store::remote::object::{is_empty_etag, meta};
use crate::store::remote::retry::Attempt;
use crate::store::{Entry, Request};
use crate::sync;

/// More pages than a directory of any repository has: ten million names.
const MAX_PAGES: usize = 10_000;

/// One answer, of either version.
struct Page {
    objects: Vec<Object>,
    prefixes: Vec<CommonPrefix>,
    encoded: bool,
    is_truncated: Option<bool>,
    next: Option<String>,
    /// Whether the answer is one to `ListObjects`: a server that does not know `ListObjectsV2` passes
    /// over what it does not know of the request.
    is_v1: bool,
}

impl Client {
    /// The names below a prefix (which ends with a slash unless it is empty).
    ///
    /// # Errors
    /// `NotFound` when there is no key with that prefix.
    pub(super) async fn list_prefix(&self, prefix: &str) -> Result<Vec<Entry>> {
        if !self.lists_v1() {
            match self.list_all(prefix, Version::V2).await {
                Ok(Some(entries)) => return Ok(entries),
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::Unsupported => {}
                Err(e) => return Err(e),
            }
            tracing::info!("the server does not know ListObjectsV2; listing with ListObjects");
            self.set_lists_v1();
        }
        let listed = self.list_all(prefix, Version::V1).await?;
        listed.ok_or_else(|| no_next(Version::V1).error)
    }

    /// All pages; `None` when the server answers another version than it was asked and there is more
    /// than one page.
    async fn list_all(&self, prefix: &str, version: Version) -> Result<Option<Vec<Entry>>> {
        let mut names = Names::default();
        let mut passed = HashSet::new();
        let mut next: Option<String> = None;
        loop {
            // Retries are those of the page: what was listed before it is kept.
            let at = next.as_deref();
            let page = self
                .run(Request::List, RequestClass::Names, |connection| async move {
                    self.try_page(&connection, prefix, version, at).await
                })
                .await?;
            if version == Version::V2 && page.is_v1 && page.is_truncated != Some(false) {
                return Ok(None);
            }
            add_page(&mut names, prefix, &page)?;
            next = match (page.is_truncated, page.next) {
                (Some(false), _) | (None, None) => break,
                (_, Some(next)) => Some(next),
                (Some(true), None) => return Err(no_next(version).error),
            };
            if !passed.insert(next.clone()) || passed.len() > MAX_PAGES {
                return Err(Error::new(
                    ErrorKind::Io,
                    "the server repeats itself while listing: the listing would never end",
                ));
            }
        }
        names.into_entries(prefix).map(Some)
    }

    async fn try_page(
        &self,
        connection: &Connection,
        prefix: &str,
        version: Version,
        at: Option<&str>,
    ) -> Attempt<Page> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let looks = LooksAtXml(Arc::clone(&seen));
        let given_prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
        let at = at.map(str::to_owned);
        let mut page = match version {
            Version::V2 => {
                let request = connection.sdk.list_objects_v2();
                let request = request.bucket(&self.config.bucket).delimiter("/");
                let request = request.set_prefix(given_prefix).set_continuation_token(at);
                let sent = request.customize().interceptor(looks).send().await;
                let answer = sent.map_err(|e| Fault::of(Operation::List(version), e))?;
                Page {
                    encoded: answer.encoding_type() == Some(&EncodingType::Url),
                    is_truncated: answer.is_truncated(),
                    objects: answer.contents.unwrap_or_default(),
                    prefixes: answer.common_prefixes.unwrap_or_default(),
                    next: answer.next_continuation_token,
                    is_v1: false,
                }
            }
            Version::V1 => {
                let request = connection.sdk.list_objects();
                let request = request.bucket(&self.config.bucket).delimiter("/");
                let request = request.set_prefix(given_prefix).set_marker(at);
                let sent = request.customize().interceptor(looks).send().await;
                let answer = sent.map_err(|e| Fault::of(Operation::List(version), e))?;
                Page {
                    encoded: answer.encoding_type() == Some(&EncodingType::Url),
                    is_truncated: answer.is_truncated(),
                    objects: answer.contents.unwrap_or_default(),
                    prefixes: answer.common_prefixes.unwrap_or_default(),
                    next: answer.next_marker.filter(|marker| !marker.is_empty()),
                    is_v1: true,
                }
            }
        };
        let seen = *sync::lock(&seen);
        if !seen.end {
            return Err(Fault::protocol("the listing was cut short"));
        }
        if version == Version::V1 {
            page.next = next_marker(&page).map_err(broken)?;
        }
        page.is_v1 |= seen.is_v1 && page.next.is_none();
        if page.is_truncated == Some(true) && page.next.is_none() && !page.is_v1 {
            return Err(no_next(version));
        }
        self.set_bucket_seen();
        Ok((page, 0))
    }
}

/// Where `ListObjects` goes on: with the marker that the server names, or else with the last name of
/// the page, as the API has it. `None` when there is nothing more.
fn next_marker(page: &Page) -> Result<Option<String>> {
    if let Some(marker) = &page.next {
        return decode(Some(marker), page.encoded).map(Some);
    }
    if page.is_truncated != Some(true) {
        return Ok(None);
    }
    let keys = page.objects.iter().map(Object::key);
    let names = keys.chain(page.prefixes.iter().map(CommonPrefix::prefix));
    let mut last: Option<String> = None;
    for name in names {
        let name = decode(name, page.encoded)?;
        if last.as_ref().is_none_or(|last| *last < name) {
            last = Some(name);
        }
    }
    Ok(last)
}

fn broken(e: Error) -> Fault {
    Fault::protocol(e.message())
}

fn no_next(version: Version) -> Fault {
    Fault::protocol(format!(
        "the server says that there is more to list, but not where to go on ({})",
        version.as_str()
    ))
}

fn add_page(names: &mut Names, prefix: &str, page: &Page) -> Result<()> {
    for object in &page.objects {
        let key = decode(object.key(), page.encoded)?;
        let size = object.size().and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or_else(|| {
            Error::new(ErrorKind::Io, "the server lists an object without its size")
                .with_object(&key)
        })?;
        // Without its ETag, the state could not be compared with what HEAD and GET tell.
        let meta = object
            .e_tag()
            .filter(|etag| !is_empty_etag(etag))
            .map(|etag| meta(size, Some(etag), object.last_modified()));
        let listed = Listed::Object { size, meta };
        names.add(prefix, &key, listed)?;
    }
    for below in &page.prefixes {
        let key = decode(below.prefix(), page.encoded)?;
        names.add(prefix, &key, Listed::Prefix)?;
    }
    Ok(())
}

/// The key as it is. We do not ask for URL encoding, but take it from servers that use it.
fn decode(key: Option<&str>, encoded: bool) -> Result<String> {
    let bad = |what| Error::new(ErrorKind::Io, format!("the server lists {what}"));
    let key = key.ok_or_else(|| bad("something without a name"))?;
    if !encoded {
        return Ok(key.to_owned());
    }
    percent_decode(key, true).ok_or_else(|| bad("a name with a broken encoding"))
}

/// What is asked of an answer besides what the SDK reads out of it.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// The SDK's XML reader takes a document that breaks off for one that ends.
    end: bool,
    /// Elements that only `ListObjects` answers with.
    is_v1: bool,
}

#[derive(Debug)]
struct LooksAtXml(Arc<Mutex<Seen>>);

impl Intercept for LooksAtXml {
    fn name(&self) -> &'static str {
        "LooksAtXml"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_sdk_s3::error::BoxError> {
        let body = context.response().body().bytes().unwrap_or_default();
        // In names, `<` is escaped.
        let has = |element: &[u8]| body.windows(element.len()).any(|at| at == element);
        let end = body.trim_ascii_end().ends_with(b"</ListBucketResult>");
        let truncated = has(b"<IsTruncated>true");
        let is_v1 = truncated
            && [
                &b"<Marker>"[..],
                b"<Marker/>",
                b"<Marker />",
                b"<NextMarker>",
            ]
            .map(has)
            .contains(&true);
        *sync::lock(&self.0) = Seen { end, is_v1 };
        Ok(())
    }
}
