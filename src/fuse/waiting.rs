//! Requests that wait: who waits is let go when told to stop, and when the mount is taken away.
//!
//! A program that waits for an answer from a mount cannot be stopped, not even by SIGKILL, until it has
//! one. The protocol tells the server of signals (`FUSE_INTERRUPT`), but `fuser` 0.18 declines that on
//! the server's behalf, once and for the whole mount. It would not say either *which* signal came, and
//! to fail a read because a window was resized is not what anybody wants. So what is asked, while a
//! request waits, is the kernel's list of the signals that are pending for the thread that made it.
//!
//! Only the answer is taken away from the work: that goes on, because others may wait for the same
//! bytes, and finds nobody to tell when it is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::sync::lock;

use fuser::{
    Errno, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyXattr,
};

use super::own::OwnMount;

/// How often those that wait are looked after.
const TICK: Duration = Duration::from_millis(200);

/// Waiting for this long is worth a line in the log, and how often there may be one.
const LONG: Duration = Duration::from_secs(3);
const QUIET: Duration = Duration::from_secs(30);

/// How long a request may go on once the mount has been taken away lazily.
const AFTER_DETACHED: Duration = Duration::from_secs(5);

/// Signals that ask a program to stop: HUP, INT, QUIT, KILL, ALRM and TERM, as bits of a mask. Where the
/// program leaves one of them to the kernel, the kernel makes a KILL of it for each thread.
const STOPPING: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 8 | 1 << 13 | 1 << 14;

/// A reply that can be an error.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {$(
        impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        }
    )*};
}
refuse!(
    ReplyAttr,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyXattr
);

/// A reply on its way: still there unless whoever asked was let go meanwhile.
pub(super) enum Pending<R: Refuse> {
    /// Of a request that does not wait.
    Quick(R),
    Watched(Watched<R>),
}

impl<R: Refuse> Pending<R> {
    /// The reply, if somebody still waits for it. References that an answer gives to the kernel may be
    /// counted only after this.
    pub(super) fn take(self) -> Option<R> {
        match self {
            Pending::Quick(reply) => Some(reply),
            Pending::Watched(watched) => watched.slot.lock().take(),
        }
    }

    /// Adds to the reply, if somebody still waits for it.
    pub(super) fn with<T>(&mut self, add: impl FnOnce(&mut R) -> T) -> Option<T> {
        match self {
            Pending::Quick(reply) => Some(add(reply)),
            Pending::Watched(watched) => watched.slot.lock().as_mut().map(add),
        }
    }

    pub(super) fn refuse(self, errno: Errno) {
        if let Some(reply) = self.take() {
            reply.refuse(errno);
        }
    }
}

/// A reply that the watcher can take away.
pub(super) struct Watched<R> {
    slot: Arc<Slot<R>>,
    number: u64,
    waiting: Arc<Waiting>,
}

impl<R> Drop for Watched<R> {
    fn drop(&mut self) {
        self.waiting.lock().calls.remove(&self.number);
    }
}

struct Slot<R>(Mutex<Option<R>>);

impl<R> Slot<R> {
    fn lock(&self) -> MutexGuard<'_, Option<R>> {
        lock(&self.0)
    }
}

/// Lets go of whoever waits for a reply.
trait LetGo: Send + Sync {
    /// Tells whether somebody still waited.
    fn let_go(&self, errno: Errno) -> bool;
}

impl<R: Refuse> LetGo for Slot<R> {
    fn let_go(&self, errno: Errno) -> bool {
        let reply = self.lock().take();
        reply.map(|reply| reply.refuse(errno)).is_some()
    }
}

struct Call {
    since: Instant,
    /// The thread that waits; 0 when it is of a pid namespace that this process cannot see.
    thread: u32,
    slot: Weak<dyn LetGo>,
}

#[derive(Default)]
struct State {
    next: u64,
    calls: HashMap<u64, Call>,
    /// The watcher runs as long as anybody waits.
    watched: bool,
    told: Option<Instant>,
}

/// All requests of a mount that wait.
#[derive(Default)]
pub(super) struct Waiting {
    state: Mutex<State>,
    own: OnceLock<Arc<OwnMount>>,
}

impl Waiting {
    /// The mount whose requests these are.
    pub(super) fn belongs_to(&self, own: Arc<OwnMount>) {
        self.own.set(own).ok();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Looks after the reply to a request of this thread until it is given.
    pub(super) fn watch<R: Refuse>(self: &Arc<Self>, thread: u32, reply: R) -> Pending<R> {
        let slot = Arc::new(Slot(Mutex::new(Some(reply))));
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let call = Call {
            since: Instant::now(),
            thread,
            slot: Arc::downgrade(&slot) as Weak<dyn LetGo>,
        };
        state.calls.insert(number, call);
        if !state.watched {
            let waiting = Arc::clone(self);
            let started = std::thread::Builder::new()
                .name("brfs-waiting".to_owned())
                .spawn(move || waiting.look_after());
            // Without a thread they wait as they always did; the next one tries again.
            state.watched = started.is_ok();
        }
        drop(state);
        Pending::Watched(Watched {
            slot,
            number,
            waiting: Arc::clone(self),
        })
    }

    /// Rounds until nobody has waited for a while.
    fn look_after(&self) {
        let mut idle = 0;
        let mut state = self.lock();
        loop {
            idle = if state.calls.is_empty() { idle + 1 } else { 0 };
            if idle > 50 {
                state.watched = false;
                return;
            }
            drop(state);
            std::thread::sleep(TICK);
            state = self.lock();
            let old = |call: &&Call| call.since.elapsed() >= TICK;
            let calls: Vec<(Instant, u32, Weak<dyn LetGo>)> = state
                .calls
                .values()
                .filter(old)
                .map(|call| (call.since, call.thread, Weak::clone(&call.slot)))
                .collect();
            let longest = calls.iter().map(|call| call.0.elapsed()).max();
            let longest = longest.unwrap_or_default();
            let tell = longest >= LONG && state.told.is_none_or(|told| told.elapsed() >= QUIET);
            if tell {
                state.told = Some(Instant::now());
            }
            drop(state);
            if tell {
                tracing::warn!(
                    "{} requests wait for storage, one of them for {} s",
                    calls.len(),
                    longest.as_secs()
                );
            }
            let detached =
                longest >= AFTER_DETACHED && self.own.get().is_some_and(|own| own.is_detached());
            for (since, thread, slot) in calls {
                let errno = if is_told_to_stop(thread) {
                    Errno::EINTR
                } else if detached && since.elapsed() >= AFTER_DETACHED {
                    Errno::EIO
                } else {
                    continue;
                };
                if let Some(slot) = slot.upgrade()
                    && slot.let_go(errno)
                {
                    tracing::debug!(thread, ?errno, "let go of a program that waited");
                }
            }
            state = self.lock();
        }
    }
}

/// Whether a signal that asks it to stop is pending for this thread.
fn is_told_to_stop(thread: u32) -> bool {
    thread != 0
        && std::fs::read_to_string(format!("/proc/{thread}/status"))
            .is_ok_and(|status| is_stopping(&status))
}

fn is_stopping(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & STOPPING != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64) -> String {
        format!(
            "Name:\tls\nSigQ:\t0/9\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t0000000000000000\n"
        )
    }

    #[test]
    fn only_signals_that_stop_a_program_and_reach_it_count() {
        let (kill, int, winch) = (1 << 8, 1 << 1, 1 << 27);
        assert!(is_stopping(&status(kill, 0, 0)));
        assert!(is_stopping(&status(0, int, 0)));
        assert!(!is_stopping(&status(0, int, int)));
        assert!(!is_stopping(&status(winch, winch, 0)));
        assert!(!is_stopping(&status(0, 0, 0)));
        assert!(!is_stopping(""));
    }
}
