//! Directories: all pages of a listing, or an error. Never a part of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;

use super::client::{Client, Connection};
use super::fault::Operation;
use crate::codec::percent::percent_decode;
use crate::error::{Error, ErrorKind, Result};
use crate::store::remote::fault::Fault;
use crate::store::remote::limit::Lane;
use crate::store::remote::names::{Listed, Names};
use crate::store::remote::object::{is_empty_etag, meta};
use crate::store::remote::retry::Attempt;
use crate::store::{Entry, Request};

/// More pages than a directory of any repository has: ten million names.
const MAX_PAGES: usize = 10_000;

impl Client {
    /// The names below a prefix (which ends with a slash unless it is empty).
    ///
    /// # Errors
    /// `NotFound` when there is no key with that prefix.
    pub(super) async fn list_prefix(&self, prefix: &str) -> Result<Vec<Entry>> {
        let mut names = Names::default();
        let mut tokens = HashSet::new();
        let mut token: Option<String> = None;
        loop {
            // Retries are those of the page: what was listed before it is kept.
            let at = token.as_deref();
            let page = self
                .run(Request::List, Lane::Names, |connection| async move {
                    self.try_page(&connection, prefix, at).await
                })
                .await?;
            add_page(&mut names, prefix, &page)?;
            token = match (page.is_truncated(), page.next_continuation_token()) {
                (Some(false), _) | (None, None) => break,
                (_, Some(next)) => Some(next.to_owned()),
                (Some(true), None) => return Err(no_token().error),
            };
            if !tokens.insert(token.clone()) || tokens.len() > MAX_PAGES {
                return Err(Error::new(
                    ErrorKind::Io,
                    "the server repeats itself while listing: the listing would never end",
                ));
            }
        }
        names.into_entries(prefix)
    }

    async fn try_page(
        &self,
        connection: &Connection,
        prefix: &str,
        token: Option<&str>,
    ) -> Attempt<ListObjectsV2Output> {
        let complete = Arc::new(AtomicBool::new(false));
        let request = connection
            .sdk
            .list_objects_v2()
            .bucket(&self.config.bucket)
            .delimiter("/")
            .set_prefix((!prefix.is_empty()).then(|| prefix.to_owned()))
            .set_continuation_token(token.map(str::to_owned));
        let output = request
            .customize()
            .interceptor(SeesTheEnd(complete.clone()))
            .send()
            .await
            .map_err(|e| Fault::of(Operation::List, e))?;
        if !complete.load(Ordering::Relaxed) {
            return Err(Fault::protocol("the listing was cut short"));
        }
        if output.is_truncated() == Some(true) && output.next_continuation_token().is_none() {
            return Err(no_token());
        }
        self.set_bucket_seen();
        Ok((output, 0))
    }
}

fn no_token() -> Fault {
    Fault::protocol("the server says that there is more to list, but not where to go on")
}

fn add_page(names: &mut Names, prefix: &str, page: &ListObjectsV2Output) -> Result<()> {
    let encoded = page.encoding_type() == Some(&EncodingType::Url);
    for object in page.contents() {
        let key = decode(object.key(), encoded)?;
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
    for below in page.common_prefixes() {
        let key = decode(below.prefix(), encoded)?;
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

/// The SDK's XML reader takes a document that breaks off for one that ends: this looks whether
/// the end was really there.
#[derive(Debug)]
struct SeesTheEnd(Arc<AtomicBool>);

impl Intercept for SeesTheEnd {
    fn name(&self) -> &'static str {
        "SeesTheEnd"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_sdk_s3::error::BoxError> {
        let body = context.response().body().bytes().unwrap_or_default();
        let complete = body.trim_ascii_end().ends_with(b"</ListBucketResult>");
        self.0.store(complete, Ordering::Relaxed);
        Ok(())
    }
}
