//! Errors of the log.

use crate::error::Error;

/// A log that makes no sense at a sector of it.
pub(super) fn corrupt_at(what: &str, block: u64) -> Error {
    Error::corrupt(format!(
        "the log of XFS is damaged at its sector {block}: {what}"
    ))
}

/// Content of a log that makes no sense.
pub(super) fn corrupt(what: &str) -> Error {
    Error::corrupt(format!("the log of XFS is damaged: {what}"))
}
