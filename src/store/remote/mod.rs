//! What stores behind HTTP have in common: connections, TLS, trying again, and how much at once.
//!
//! Nothing here knows a protocol: `s3` and `azure` make the requests and read the answers.

pub(crate) mod blocking;
mod connect;
pub(crate) mod fault;
pub(crate) mod http;
pub(crate) mod limit;
pub(crate) mod names;
pub(crate) mod object;
mod proxy;
mod proxy_error;
pub(crate) mod retry;
pub(crate) mod silence;
mod tls;
