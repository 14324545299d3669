//! One error type for every layer: a stable [`ErrorKind`] for decisions, a sentence for people.
//!
//! Errors are cheap to clone because one failed fetch can have many waiters (see `cache`).
//! This module knows nothing of errno: only `fuse` maps kinds to numbers.

use std::fmt;
use std::sync::Arc;

/// What went wrong, as far as a caller may want to decide on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The object, directory or name is not there.
    NotFound,
    /// What was read does not follow its format, or a checksum or tag does not match.
    Corrupt,
    /// The encryption key is missing or is not the one the repository was written with.
    WrongKey,
    /// The storage refused access, or a path leads out of the repository.
    Denied,
    /// A symbolic link that is not followed: out of the repository, to nothing, or in a circle.
    Link,
    /// Sound, but of a kind that brfs does not read.
    Unsupported,
    /// The object is no longer the one that was opened.
    Changed,
    /// A fault that may pass: time-outs, throttling, lost connections, after all retries.
    Transient,
    /// The caller asked for something that makes no sense (a malformed URL, an unknown VM).
    Invalid,
    /// Any other input/output error of the storage.
    Io,
}

impl ErrorKind {
    /// A short fixed word for logs and `--json` output.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not-found",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::WrongKey => "wrong-key",
            ErrorKind::Denied => "denied",
            ErrorKind::Link => "link",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Changed => "changed",
            ErrorKind::Transient => "transient",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Io => "io",
        }
    }
}

/// An error with the object and the byte offset it concerns.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    object: Option<String>,
    offset: Option<u64>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand used by every layer below `cli`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error. `message` says what was found and, where it helps, what a person can do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Arc::new(Inner {
            kind,
            message: message.into(),
            object: None,
            offset: None,
            source: None,
        }))
    }

    /// Shorthand for [`ErrorKind::Corrupt`], the most common kind in parsers.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Wraps an operating system error, keeping the kinds that callers decide on.
    pub fn from_io(source: std::io::Error, what: &str) -> Self {
        use std::io::ErrorKind as Os;
        let kind = match source.kind() {
            Os::NotFound | Os::NotADirectory => ErrorKind::NotFound,
            Os::PermissionDenied => ErrorKind::Denied,
            Os::UnexpectedEof => ErrorKind::Corrupt,
            Os::TimedOut | Os::StaleNetworkFileHandle | Os::Interrupted => ErrorKind::Transient,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("{what}: {source}")).with_source(source)
    }

    /// Names the object (a path within the repository) unless a lower layer already has.
    pub fn with_object(mut self, object: impl fmt::Display) -> Self {
        if self.0.object.is_none() {
            Arc::make_mut(&mut self.0).object = Some(object.to_string());
        }
        self
    }

    /// Names the byte offset within the object unless a lower layer already has.
    pub fn at(mut self, offset: u64) -> Self {
        if self.0.offset.is_none() {
            Arc::make_mut(&mut self.0).offset = Some(offset);
        }
        self
    }

    /// Keeps the underlying error for `{:#}`-style reports.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// The kind to decide on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the object could not be fetched: nothing is known of what it holds, and another time
    /// it may be read. Whoever needs it fails; to go on as if it were absent would hide what is there.
    pub fn is_fetch_failure(&self) -> bool {
        match self.kind() {
            ErrorKind::Io | ErrorKind::Transient | ErrorKind::Denied => true,
            // Read once, and now another object.
            ErrorKind::Changed
            | ErrorKind::NotFound
            | ErrorKind::Corrupt
            | ErrorKind::WrongKey
            | ErrorKind::Link
            | ErrorKind::Unsupported
            | ErrorKind::Invalid => false,
        }
    }

    /// Whether the failure says nothing about what the object holds: it could not be fetched, or not in the state
    /// that was opened. Another time it may be read.
    pub fn may_pass(&self) -> bool {
        self.is_fetch_failure() || self.kind() == ErrorKind::Changed
    }

    /// The object the error concerns, when known.
    pub fn object(&self) -> Option<&str> {
        self.0.object.as_deref()
    }

    /// The sentence without object and offset.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(object) = &self.0.object {
            write!(f, "{object}: ")?;
        }
        if let Some(offset) = self.0.offset {
            write!(f, "at byte {offset}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({self})", self.0.kind.as_str())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|e| e as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_object_and_offset_once() {
        let e = Error::corrupt("bad checksum")
            .with_object("a/b.vhd")
            .at(512)
            .with_object("outer")
            .at(0);
        assert_eq!(e.to_string(), "a/b.vhd: at byte 512: bad checksum");
        assert_eq!(e.kind(), ErrorKind::Corrupt);
    }
}
