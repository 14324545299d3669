//! The content of objects: whatever an answer says about itself is checked against what was asked
//! for before a byte of it is believed.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::{Bytes, BytesMut};

use super::fault::{Fault, RetryAction};
use super::retry::Attempt;
use crate::buffers::Buffer;
use crate::error::{ErrorKind, Result};
use crate::store::{Meta, Version};

/// A server that ignores `Range` sends the whole object. Up to this length that is put up with.
const MAX_UNASKED: u64 = 64 << 20;

/// The most memory that is set aside for a body before any of it has come.
const MAX_TRUSTED: u64 = 8 << 20;

/// What an answer says about its content.
pub(crate) struct ResponseHeaders {
    pub(crate) length: Option<i64>,
    pub(crate) content_range: Option<String>,
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<DateTime>,
}

/// The content of an answer that was to bring a whole object of at most `max_len` bytes.
pub(crate) async fn take_whole(
    told: ResponseHeaders,
    body: ByteStream,
    max_len: u64,
) -> Attempt<(Bytes, Meta)> {
    if told.content_range.is_some() {
        return Err(Fault::protocol(
            "the server answered with a part where the whole was asked for",
        ));
    }
    let len = length(told.length)?;
    if len > max_len {
        return Err(Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Corrupt,
            format!("is {len} bytes long where at most {max_len} are possible"),
        ));
    }
    let meta = meta(len, told.etag.as_deref(), told.modified.as_ref());
    let data = collect(body, len, 0, len).await?;
    Ok(((data, meta), len))
}

/// The content of an answer that was to bring `start..start + len`, of the object that was opened
/// as `opened` if that is given.
pub(crate) async fn take_range(
    told: ResponseHeaders,
    body: ByteStream,
    start: u64,
    len: u64,
    opened: Option<Meta>,
) -> Attempt<(Bytes, Meta)> {
    let said = told.content_range.as_deref();
    let sent = length(told.length)?;
    let part = said.map(ContentRange::parse);
    let total = match &part {
        None => sent,
        Some(Some(part)) => part.total,
        Some(None) => return Err(bad_range(said, start, len)),
    };
    let found = meta(total, told.etag.as_deref(), told.modified.as_ref());
    // The ETag alone decides whether it is still the same object; the total only whether the
    // answer makes sense.
    if opened.is_some_and(|o| o.version != found.version) {
        return Err(Fault::new(
            RetryAction::GiveUp,
            ErrorKind::Changed,
            "was replaced while it was read",
        ));
    }
    if opened.is_some_and(|o| o.len_bytes != total) {
        return Err(bad_range(said, start, len));
    }
    let skip = match part.flatten() {
        Some(part) if (part.start, part.len(), sent) == (start, len, len) => 0,
        Some(_) => return Err(bad_range(said, start, len)),
        None if total > MAX_UNASKED => {
            return Err(Fault::new(
                RetryAction::GiveUp,
                ErrorKind::Unsupported,
                format!(
                    "the server does not send ranges of objects, and this one is {total} bytes \
                     long"
                ),
            ));
        }
        None if total < start + len => return Err(bad_range(None, start, len)),
        None => start,
    };
    let data = collect(body, sent, skip, len).await?;
    Ok(((data, found), sent))
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
pub(crate) fn length(told: Option<i64>) -> Result<u64, Fault> {
    told.and_then(|n| u64::try_from(n).ok())
        .ok_or_else(|| Fault::protocol("the server did not tell the length of its answer"))
}

/// Reads a body of exactly `len` bytes and keeps `skip..skip + keep` of it.
async fn collect(mut body: ByteStream, len: u64, skip: u64, keep: u64) -> Result<Bytes, Fault> {
    let mut kept = Kept::new(keep);
    let mut at = 0u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| Fault::broken_body(&e))?;
        let end = at + chunk.len() as u64;
        let from = skip.clamp(at, end) - at;
        let to = (skip + keep).clamp(at, end) - at;
        kept.add(&chunk[from as usize..to as usize]);
        at = end;
        if at > len {
            break;
        }
    }
    match kept.finish(keep) {
        Some(bytes) if at == len => Ok(bytes),
        _ => Err(Fault::protocol(format!(
            "the answer has {at} bytes where {len} were announced"
        ))),
    }
}

/// Content as it comes. What is announced is not believed before it comes: a lie must not cost
/// memory.
enum Kept {
    /// All that is expected fits into what may be set aside for it: a block, mostly.
    Whole(Buffer, usize),
    /// Grows with what comes.
    Long(BytesMut),
}

impl Kept {
    fn new(expected: u64) -> Self {
        match expected {
            ..=MAX_TRUSTED => Kept::Whole(Buffer::new(expected as usize), 0),
            _ => Kept::Long(BytesMut::with_capacity(MAX_TRUSTED as usize)),
        }
    }

    /// Adds a piece; those of one answer are never longer together than what was expected.
    fn add(&mut self, piece: &[u8]) {
        match self {
            Kept::Long(bytes) => bytes.extend_from_slice(piece),
            Kept::Whole(buffer, filled) => {
                let end = *filled + piece.len();
                buffer[*filled..end].copy_from_slice(piece);
                *filled = end;
            }
        }
    }

    /// All of it, if that is what was expected.
    fn finish(self, expected: u64) -> Option<Bytes> {
        let (bytes, filled) = match self {
            Kept::Whole(buffer, filled) => (buffer.into_bytes(), filled),
            Kept::Long(bytes) => {
                let filled = bytes.len();
                (bytes.freeze(), filled)
            }
        };
        (filled as u64 == expected).then_some(bytes)
    }
}

/// What MinIO, where it shows a file system (its FS mode and NAS gateway, until 2022), tells of every
/// file that was not written through it: XO's, on a share that is also mounted by NFS.
const MINIO_FOREIGN: &str = "00000000000000000000000000000000-1";

/// Whether an ETag says nothing, as some gateways in front of other storage have it.
pub(crate) fn is_empty_etag(etag: &str) -> bool {
    matches!(bare(etag), "" | MINIO_FOREIGN)
}

/// Whether a state is told by an ETag. If not, it is by length and time: two states of one second can
/// look the same.
pub(crate) fn has_etag(meta: &Meta) -> bool {
    meta.version.0 & 1 == 1
}

fn bare(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

/// The state of an object, made of what HEAD, GET and LIST all tell in the same way: times have
/// whole seconds, and the version stands for the ETag without its quotes (see [`has_etag`]).
///
/// Without an ETag no time is told either: behind such a server is a file system, where a file that is
/// moved keeps its time, and one that is written to may. Nobody is to conclude from it that nothing
/// has happened since.
pub(crate) fn meta(len_bytes: u64, etag: Option<&str>, modified: Option<&DateTime>) -> Meta {
    let seconds = modified.map(DateTime::secs);
    let etag = etag.filter(|etag| !is_empty_etag(etag)).map(bare);
    let mark = match etag {
        Some(etag) => etag.to_owned(),
        None => format!("no etag, {len_bytes} bytes, {seconds:?}"),
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, mark.as_bytes());
    let mut version = [0; 16];
    version.copy_from_slice(&digest.as_ref()[..16]);
    let version = u128::from_le_bytes(version) & !1 | u128::from(etag.is_some());
    Meta {
        len_bytes,
        modified: seconds
            .filter(|_| etag.is_some())
            .and_then(|s| u64::try_from(s).ok())
            .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s))),
        version: Version(version),
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
        assert!(has_etag(&a));
        let whole = Duration::from_secs(1_700_000_000);
        assert_eq!(a.modified, Some(SystemTime::UNIX_EPOCH + whole));
    }

    #[test]
    fn etags_that_say_nothing_are_none() {
        let (then, later) = (DateTime::from_secs(5), DateTime::from_secs(6));
        for etag in [
            None,
            Some("\"\""),
            Some("\"00000000000000000000000000000000-1\""),
        ] {
            let state = meta(5, etag, Some(&then));
            assert_ne!(
                state.version,
                meta(5, etag, Some(&later)).version,
                "{etag:?}"
            );
            assert_ne!(
                state.version,
                meta(6, etag, Some(&then)).version,
                "{etag:?}"
            );
            assert_eq!(state.version, meta(5, None, Some(&then)).version);
            assert!(!has_etag(&state) && state.modified.is_none());
        }
    }
}
