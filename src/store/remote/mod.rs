//! What stores behind HTTP have in common: connections, TLS, trying again, and how much at once.
//!
//! Nothing here knows a protocol: `s3` and `azure` make the requests and read the answers.

mod connect;
pub(crate) mod fault;
mod hop;
pub(crate) mod http;
pub(crate) mod limit;
pub(crate) mod names;
pub(crate) mod object;
mod proxy_error;
pub(crate) mod retry;
pub(crate) mod silence;
pub(crate) mod store;
mod tls;
