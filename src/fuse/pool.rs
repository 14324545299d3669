//! Threads for requests that may wait: for storage, for decoding, for another reader's fetch.
//!
//! The kernel's requests arrive on a few session threads that everybody shares. What cannot be
//! answered from memory is handed to a pool, so that one reader of slow storage never keeps the
//! others from listing directories. A pool starts threads when there is work and nobody free, up to
//! its limit, and lets them go when they have had nothing to do for a while. The queue needs no
//! bound of its own: the kernel admits a limited number of requests per reader.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sync::{lock, wait_timeout};

/// Idle threads leave after this long.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Inner {
    name: &'static str,
    limit: usize,
    state: Mutex<State>,
    work: Condvar,
}

/// A group of threads that grows on demand. Dropping it lets idle threads go; those that are still
/// busy finish their request and leave then.
pub(super) struct Pool(Arc<Inner>);

impl Pool {
    /// A pool of at most `limit` threads; none is started yet.
    pub(super) fn new(name: &'static str, limit: usize) -> Self {
        Pool(Arc::new(Inner {
            name,
            limit: limit.max(1),
            state: Mutex::new(State {
                queue: VecDeque::new(),
                threads: 0,
                idle: 0,
                closed: false,
            }),
            work: Condvar::new(),
        }))
    }

    /// Runs the job on one of the pool's threads, or here when no thread can be started at all.
    pub(super) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() || state.threads >= self.0.limit {
            drop(state);
            self.0.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let inner = Arc::clone(&self.0);
        let started = std::thread::Builder::new()
            .name(self.0.name.to_owned())
            .spawn(move || inner.run());
        if let Err(error) = started {
            tracing::warn!("cannot start another worker thread: {error}");
            let mut state = self.0.lock();
            state.threads -= 1;
            let stranded = if state.threads == 0 {
                state.queue.pop_front()
            } else {
                None
            };
            drop(state);
            if let Some(job) = stranded {
                guarded(job);
            }
        }
    }

    #[cfg(test)]
    fn threads(&self) -> usize {
        self.0.lock().threads
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.work.notify_all();
    }
}

impl Inner {
    /// Jobs run outside the lock, so a poisoned one is still consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                guarded(job);
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            let since = Instant::now();
            state.idle += 1;
            state = wait_timeout(&self.work, state, IDLE);
            state.idle -= 1;
            if state.queue.is_empty() && since.elapsed() >= IDLE {
                break;
            }
        }
        state.threads -= 1;
    }
}

/// Runs a request's handler. A panic in it is a bug of ours, but one that concerns one request: it
/// is logged, and the request's reply, dropped on the way out, answers `EIO` by itself.
pub(super) fn guarded(handler: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(handler)) {
        tracing::error!(
            "a request failed by a bug in brfs, please report it: {}",
            panic_text(&*panic)
        );
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn pool_grows_for_waiting_jobs_and_not_past_its_limit() {
        let pool = Pool::new("test", 3);
        let (done, finished) = mpsc::channel();
        let gates: Vec<_> = (0..5)
            .map(|_| {
                let (open, gate) = mpsc::channel::<()>();
                let done = done.clone();
                pool.submit(move || {
                    gate.recv().ok();
                    done.send(()).ok();
                });
                open
            })
            .collect();
        assert_eq!(pool.threads(), 3);
        for gate in &gates {
            gate.send(()).unwrap();
        }
        for _ in 0..5 {
            finished.recv_timeout(Duration::from_secs(10)).unwrap();
        }
    }

    #[test]
    fn pool_survives_a_panic_in_a_job() {
        let pool = Pool::new("test", 1);
        pool.submit(|| panic!("on purpose"));
        let (done, finished) = mpsc::channel();
        pool.submit(move || done.send(()).unwrap());
        finished.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(pool.threads(), 1);
    }
}
