//! Errors of this reader.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// What is stored does not make sense.
pub(super) fn bad(message: &str) -> Error {
    Error::corrupt(format!("btrfs: {message}"))
}

/// What is stored is of a kind that is not read.
pub(super) fn unsupported(message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Unsupported, format!("btrfs: {message}"))
}
