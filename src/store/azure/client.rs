//! Requests to Blob storage, one attempt each, and the four that a store is made of.

use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::answer::{self, Operation};
use super::config::{AzureConfig, AzureCredentials};
use super::listing::Page;
use super::sign::SigningKey;
use crate::error::{Error, ErrorKind, Result};
use crate::store::remote::fault::{Fault, RetryAction};
use crate::store::remote::limit::RequestClass;
use crate::store::remote::names::Names;
use crate::store::remote::object::{ResponseHeaders, length, meta, take_range, take_whole};
use crate::store::remote::retry::{Attempt, RetryPolicy, Transport};
use crate::store::{Entry, Meta, Request};

/// The protocol version that is spoken: old enough for Azure Stack, new enough for all that is
/// sent.
const VERSION: &str = "2019-12-12";
/// All but the unreserved characters of URLs.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// The same, within a path.
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');
/// The longest listing page that is taken in.
const MAX_PAGE: u64 = 32 << 20;
/// More pages than a directory of any repository has.
const MAX_PAGES: usize = 10_000;

/// Everything that requests of one store share.
pub(crate) struct Client {
    pub(super) config: AzureConfig,
    pub(super) transport: Transport,
    key: Option<SigningKey>,
}

impl Client {
    pub(super) fn new(config: AzureConfig) -> Result<Self> {
        let patience = RetryPolicy {
            idle_timeout: config.idle_timeout,
            retry_budget: config.retry_budget,
            first_delay: config.first_delay,
        };
        let key = match &config.credentials {
            AzureCredentials::Key(key) => Some(SigningKey::new(key.expose())?),
            _ => None,
        };
        let transport = Transport::new(
            config.ca_file.as_deref(),
            config.allow_unauthorized,
            patience,
            config.max_parallelism,
            config.stats.clone(),
        )?;
        Ok(Client {
            config,
            transport,
            key,
        })
    }

    /// One attempt. `query` is sorted by name.
    async fn send(
        &self,
        operation: Operation,
        key: &str,
        query: &[(&str, &str)],
        range: Option<&str>,
    ) -> Result<http::Response<SdkBody>, Fault> {
        let config = &self.config;
        let mut path = String::new();
        if config.account_in_path {
            path.push_str(&format!(
                "/{}",
                utf8_percent_encode(&config.account, RESERVED)
            ));
        }
        path.push_str(&format!(
            "/{}",
            utf8_percent_encode(&config.container, RESERVED)
        ));
        if !key.is_empty() {
            path.push_str(&format!("/{}", utf8_percent_encode(key, RESERVED_IN_PATH)));
        }
        let mut pairs: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, RESERVED)))
            .collect();
        if let AzureCredentials::Sas(sas) = &config.credentials {
            // Encoded already, as the portal hands it out.
            pairs.push(sas.expose().trim_start_matches('?').to_owned());
        }
        let query_text = match pairs.is_empty() {
            true => String::new(),
            false => format!("?{}", pairs.join("&")),
        };
        let method = match operation {
            Operation::Head => "HEAD",
            Operation::Get | Operation::List => "GET",
        };
        let date = DateTime::from(SystemTime::now())
            .fmt(Format::HttpDate)
            .unwrap_or_default();
        let headers = [("x-ms-date", date.as_str()), ("x-ms-version", VERSION)];
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}{query_text}", config.endpoint));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        if let Some(key) = &self.key {
            let account = &config.account;
            let signed = key.authorization(account, method, range, &headers, &path, query);
            request = request.header("authorization", signed);
        }
        let request = request.body(SdkBody::empty()).map_err(|_| {
            // The cause would quote the URL, which may hold a signature.
            let what = "the request cannot be made: check account, container and endpoint";
            Fault::new(RetryAction::GiveUp, ErrorKind::Invalid, what)
        })?;
        let limited = operation == Operation::List;
        let response = self.transport.http.send(request, limited).await;
        let response = response.map_err(|e| Fault::of_transport(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(answer::fault(operation, response).await)
    }

    async fn run<T, F, Fut>(&self, kind: Request, lane: RequestClass, attempt: F) -> Result<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Attempt<T>>,
    {
        self.transport.run(kind, lane, attempt, |_| false).await
    }

    pub(super) async fn head_blob(&self, key: &str) -> Result<Meta> {
        self.run(Request::Head, RequestClass::Names, || async move {
            let response = self.send(Operation::Head, key, &[], None).await?;
            let (told, _) = told(response);
            let len = length(told.length)?;
            Ok((meta(len, told.etag.as_deref(), told.modified.as_ref()), 0))
        })
        .await
    }

    pub(super) async fn get_blob(&self, key: &str, max_len: u64) -> Result<(Bytes, Meta)> {
        self.run(Request::Get, RequestClass::Data, || async move {
            let response = self.send(Operation::Get, key, &[], None).await?;
            let (told, body) = told(response);
            take_whole(told, body, max_len).await
        })
        .await
    }

    pub(super) async fn get_blob_range(
        &self,
        key: &str,
        start: u64,
        len: u64,
        opened: Meta,
    ) -> Result<Bytes> {
        self.run(Request::GetRange, RequestClass::Data, || async move {
            let range = format!("bytes={start}-{}", start + len - 1);
            let response = self.send(Operation::Get, key, &[], Some(&range)).await?;
            let (told, body) = told(response);
            let (found, bytes) = take_range(told, body, start, len, Some(opened)).await?;
            Ok((found.0, bytes))
        })
        .await
    }

    pub(super) async fn list_blobs(&self, prefix: &str) -> Result<Vec<Entry>> {
        let mut names = Names::default();
        let mut markers = std::collections::HashSet::new();
        let mut marker = String::new();
        loop {
            let mut query = vec![("comp", "list"), ("delimiter", "/")];
            if !marker.is_empty() {
                query.push(("marker", marker.as_str()));
            }
            if !prefix.is_empty() {
                query.push(("prefix", prefix));
            }
            query.push(("restype", "container"));
            let query = &query;
            let page = self
                .run(Request::List, RequestClass::Names, || async move {
                    let response = self.send(Operation::List, "", query, None).await?;
                    let (told, body) = told(response);
                    // Azure announces no length here: the document's own end is looked for.
                    let body = match told.length {
                        Some(_) => take_whole(told, body, MAX_PAGE).await?.0.0,
                        None => answer::collect(body).await?,
                    };
                    Ok((Page::parse(&body)?, 0))
                })
                .await?;
            page.add_to(&mut names, prefix)?;
            if page.next.is_empty() {
                return names.into_entries(prefix);
            }
            marker = page.next;
            if !markers.insert(marker.clone()) || markers.len() > MAX_PAGES {
                return Err(Error::new(
                    ErrorKind::Io,
                    "the server repeats itself while listing: the listing would never end",
                ));
            }
        }
    }
}

fn told(response: http::Response<SdkBody>) -> (ResponseHeaders, ByteStream) {
    let header = |name| {
        let value = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let told = ResponseHeaders {
        length: header("content-length").and_then(|n| n.parse().ok()),
        content_range: header("content-range"),
        etag: header("etag"),
        modified: header("last-modified")
            .and_then(|d| DateTime::from_str(&d, Format::HttpDate).ok()),
    };
    (told, ByteStream::new(response.into_body()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_byte_by_byte() {
        let encoded = |text, set| utf8_percent_encode(text, set).to_string();
        assert_eq!(encoded("a/b +é", RESERVED_IN_PATH), "a/b%20%2B%C3%A9");
        assert_eq!(encoded("a/b", RESERVED), "a%2Fb");
        assert_eq!(encoded("aZ09-_.~", RESERVED), "aZ09-_.~");
        assert_eq!(encoded("%\0\x7F", RESERVED), "%25%00%7F");
    }
}
