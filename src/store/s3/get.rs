//! Objects: their state, their content, ranges of it. Whatever an answer says about itself is
//! checked against what was asked for before a byte of it is believed.

use std::time::{Duration, Instant, SystemTime};

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_smithy_runtime_api::client::result::SdkError;
use bytes::{Bytes, BytesMut};

use super::client::{Client, Connection};
use super::fault::{Fault, Next, Operation};
use super::limit::Lane;
use super::retry::Attempt;
use crate::error::{ErrorKind, Result};
use crate::store::{Meta, Request, Version};

/// A server that ignores `Range` sends the whole object. Up to this length that is put up with.
const MAX_UNASKED: u64 = 64 << 20;

/// The most memory that is set aside for a body before any of it has come.
const MAX_TRUSTED: u64 = 8 << 20;

impl Client {
    /// The state of an object.
    pub(super) async fn head_object(&self, key: &str) -> Result<Meta> {
        self.run(Request::Head, Lane::Names, |connection| async move {
            match self.try_head(&connection, key).await {
                Err(fault) if self.needs_explanation(&fault) => {
                    self.explain(&connection, key, fault).await
                }
                other => other,
            }
        })
        .await
    }

    async fn try_head(&self, connection: &Connection, key: &str) -> Attempt<Meta> {
        let request = connection.sdk.head_object();
        let request = request.bucket(&self.config.bucket).key(key);
        let output = request
            .send()
            .await
            .map_err(|e| Fault::of(Operation::Head, e))?;
        self.set_bucket_seen();
        let len = length(output.content_length())?;
        Ok((meta(len, output.e_tag(), output.last_modified()), 0))
    }

    /// Answers to HEAD have no body, so that errors come without a code: "404" can mean that the
    /// key or that the bucket is not there (or that a proxy has no idea), "400" and "403" can mean
    /// nearly anything.
    fn needs_explanation(&self, fault: &Fault) -> bool {
        let settled =
            fault.error.kind() == ErrorKind::NotFound && fault.from_s3 && self.bucket_was_seen();
        fault.unexplained && !settled
    }

    /// Asks for the first byte instead, which either tells what is wrong or is as good as a HEAD.
    async fn explain(&self, connection: &Connection, key: &str, unclear: Fault) -> Attempt<Meta> {
        let started = Instant::now();
        let result = self.try_range(connection, key, 0, 1, None).await;
        let stats = &self.config.stats;
        stats.record(Request::GetRange, 0, started.elapsed(), result.is_ok());
        match result {
            Ok(((_, meta), _)) => Ok((meta, 0)),
            // An empty object has no first byte.
            Err(fault) if fault.error.kind() == ErrorKind::Corrupt => Err(unclear),
            Err(fault) => Err(fault),
        }
    }

    /// A whole object of at most `max_len` bytes.
    pub(super) async fn get_object(&self, key: &str, max_len: u64) -> Result<(Bytes, Meta)> {
        self.run(Request::Get, Lane::Data, |connection| async move {
            let output = self.send_get(&connection, key, None).await?;
            if output.content_range().is_some() {
                return Err(Fault::protocol(
                    "the server answered with a part where the whole was asked for",
                ));
            }
            let len = length(output.content_length())?;
            if len > max_len {
                return Err(Fault::new(
                    Next::GiveUp,
                    ErrorKind::Corrupt,
                    format!("is {len} bytes long where at most {max_len} are possible"),
                ));
            }
            let meta = meta(len, output.e_tag(), output.last_modified());
            let data = collect(output.body, len, 0, len).await?;
            Ok(((data, meta), len))
        })
        .await
    }

    /// The bytes `start..start + len` of the object that was opened as `opened`.
    pub(super) async fn get_range(
        &self,
        key: &str,
        start: u64,
        len: u64,
        opened: Meta,
    ) -> Result<Bytes> {
        let ranged = |connection| async move {
            let connection: std::sync::Arc<Connection> = connection;
            let (found, bytes) = self
                .try_range(&connection, key, start, len, Some(opened))
                .await?;
            Ok((found.0, bytes))
        };
        self.run(Request::GetRange, Lane::Data, ranged).await
    }

    async fn try_range(
        &self,
        connection: &Connection,
        key: &str,
        start: u64,
        len: u64,
        opened: Option<Meta>,
    ) -> Attempt<(Bytes, Meta)> {
        let range = format!("bytes={start}-{}", start + len - 1);
        let output = self.send_get(connection, key, Some(range)).await?;
        let sent = length(output.content_length())?;
        let part = output.content_range().map(ContentRange::parse);
        // The ETag alone decides whether it is still the same object; the total only whether the
        // answer makes sense.
        let total = match &part {
            None => sent,
            Some(Some(part)) => part.total,
            Some(None) => return Err(bad_range(output.content_range(), start, len)),
        };
        let found = meta(total, output.e_tag(), output.last_modified());
        if opened.is_some_and(|o| o.version != found.version) {
            return Err(Fault::new(
                Next::GiveUp,
                ErrorKind::Changed,
                "was replaced while it was read",
            ));
        }
        if opened.is_some_and(|o| o.len_bytes != total) {
            return Err(bad_range(output.content_range(), start, len));
        }
        let skip = match part.flatten() {
            Some(part) if (part.start, part.len(), sent) == (start, len, len) => 0,
            Some(_) => return Err(bad_range(output.content_range(), start, len)),
            None if total > MAX_UNASKED => {
                return Err(Fault::new(
                    Next::GiveUp,
                    ErrorKind::Unsupported,
                    format!(
                        "the server does not send ranges of objects, and this one is {total} \
                         bytes long"
                    ),
                ));
            }
            None if total < start + len => return Err(bad_range(None, start, len)),
            None => start,
        };
        let data = collect(output.body, sent, skip, len).await?;
        Ok(((data, found), sent))
    }

    async fn send_get(
        &self,
        connection: &Connection,
        key: &str,
        range: Option<String>,
    ) -> Result<GetObjectOutput, Fault> {
        let request = connection.sdk.get_object();
        let request = request.bucket(&self.config.bucket).key(key);
        match request.set_range(range).send().await {
            Ok(output) => {
                self.set_bucket_seen();
                Ok(output)
            }
            Err(error) => {
                let no_key =
                    matches!(&error, SdkError::ServiceError(e) if e.err().is_no_such_key());
                if no_key {
                    self.set_bucket_seen();
                }
                Err(Fault::of(Operation::Get, error))
            }
        }
    }
}

fn bad_range(found: Option<&str>, start: u64, len: u64) -> Fault {
    Fault::protocol(format!(
        "the server sent {:.60} where {len} bytes at {start} were asked for",
        found.unwrap_or("the whole object with a wrong length")
    ))
}

/// `bytes FIRST-LAST/TOTAL`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    start: u64,
    last: u64,
    total: u64,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, last) = range.split_once('-')?;
        let range = ContentRange {
            start: start.trim().parse().ok()?,
            last: last.trim().parse().ok()?,
            total: total.trim().parse().ok()?,
        };
        (range.start <= range.last && range.last < range.total).then_some(range)
    }

    fn len(&self) -> u64 {
        self.last - self.start + 1
    }
}

/// Without a length, an answer that was cut short could not be told from a whole one.
fn length(told: Option<i64>) -> Result<u64, Fault> {
    told.and_then(|n| u64::try_from(n).ok())
        .ok_or_else(|| Fault::protocol("the server did not tell the length of its answer"))
}

/// Reads a body of exactly `len` bytes and keeps `skip..skip + keep` of it.
async fn collect(mut body: ByteStream, len: u64, skip: u64, keep: u64) -> Result<Bytes, Fault> {
    // What is announced is not believed before it comes: a lie must not cost memory.
    let mut kept = BytesMut::with_capacity(keep.min(MAX_TRUSTED) as usize);
    let mut at = 0u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| Fault::broken_body(&e))?;
        let end = at + chunk.len() as u64;
        let from = skip.clamp(at, end) - at;
        let to = (skip + keep).clamp(at, end) - at;
        kept.extend_from_slice(&chunk[from as usize..to as usize]);
        at = end;
        if at > len {
            break;
        }
    }
    if at != len || kept.len() as u64 != keep {
        return Err(Fault::protocol(format!(
            "the answer has {at} bytes where {len} were announced"
        )));
    }
    Ok(kept.freeze())
}

/// The state of an object, made of what HEAD, GET and LIST all tell in the same way: times have
/// whole seconds, and the version stands for the ETag without its quotes.
pub(super) fn meta(len_bytes: u64, etag: Option<&str>, modified: Option<&DateTime>) -> Meta {
    let seconds = modified.map(DateTime::secs);
    let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"'));
    let mark = match etag {
        Some(etag) if !etag.is_empty() => etag.to_owned(),
        _ => format!("no etag, {len_bytes} bytes, {seconds:?}"),
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, mark.as_bytes());
    let mut version = [0; 16];
    version.copy_from_slice(&digest.as_ref()[..16]);
    Meta {
        len_bytes,
        modified: seconds
            .and_then(|s| u64::try_from(s).ok())
            .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s))),
        version: Version(u128::from_le_bytes(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_must_make_sense() {
        let range = ContentRange::parse("bytes 5-9/100").unwrap();
        assert_eq!((range.start, range.len(), range.total), (5, 5, 100));
        for bad in [
            "",
            "bytes",
            "bytes */100",
            "bytes 5-9/*",
            "bytes 9-5/100",
            "bytes 5-100/100",
            "bytes -1-5/10",
            "5-9/100",
            "bytes 5-9",
            "bytes 5-18446744073709551616/9",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn versions_follow_the_etag_whatever_its_quotes() {
        let date = DateTime::from_millis(1_700_000_000_123);
        let a = meta(5, Some("\"abc\""), Some(&date));
        assert_eq!(a.version, meta(5, Some("abc"), None).version);
        assert_eq!(a.version, meta(5, Some("W/\"abc\""), None).version);
        assert_ne!(a.version, meta(5, Some("abd"), Some(&date)).version);
        assert_ne!(
            meta(5, None, Some(&date)).version,
            meta(6, None, Some(&date)).version
        );
        let whole = Duration::from_secs(1_700_000_000);
        assert_eq!(a.modified, Some(SystemTime::UNIX_EPOCH + whole));
    }
}
