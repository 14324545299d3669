//! What kept a proxy from connecting us.

use std::error::Error as StdError;
use std::fmt;

/// What kept a proxy from connecting us.
#[derive(Debug)]
pub(super) struct ProxyError {
    pub(super) what: String,
    /// Whether trying again cannot help.
    pub(super) hopeless: bool,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for ProxyError {}
