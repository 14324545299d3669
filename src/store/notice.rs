//! What a person should know who waits: that storage does not answer, and why.
//!
//! It goes to the log, and to a terminal where somebody waits at one.

use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Waiting for this long is worth a word.
pub const LONG: Duration = Duration::from_secs(3);

/// As long as it goes on, the word is repeated this often.
const QUIET: Duration = Duration::from_secs(30);

type Listener = Box<dyn Fn(&str) + Send + Sync>;

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// Has every notice passed on, as well as logged. The first call in a process counts.
pub fn listen(listener: impl Fn(&str) + Send + Sync + 'static) {
    LISTENER.set(Box::new(listener)).ok();
}

/// Says it, unless something was said a short while ago.
pub fn say(text: impl FnOnce() -> String) {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = lock(&SAID);
    if said.is_some_and(|said| said.elapsed() < QUIET) {
        return;
    }
    *said = Some(Instant::now());
    drop(said);
    let text = text();
    tracing::warn!("{text}");
    if let Some(listener) = LISTENER.get() {
        listener(&text);
    }
}
