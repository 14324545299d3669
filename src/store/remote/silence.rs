//! How long the other side may say nothing.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

tokio::task_local! {
    /// The silence that the request of this task puts up with; the client's default otherwise.
    pub(crate) static IDLE_TIMEOUT: Duration;
}

/// The other side said nothing for this long.
#[derive(Debug)]
pub(crate) struct Silence(pub(crate) Duration);

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing came for {} s", self.0.as_secs_f32())
    }
}

impl StdError for Silence {}
