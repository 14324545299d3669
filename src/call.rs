//! What one call of a program may cost in waiting for storage that fails.
//!
//! A call (a look-up, a read, a whole `brfs ls`) can mean many requests to storage, one after another
//! and side by side. Each of them is tried again while storage fails, but all together no longer than
//! one would be.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sync::lock;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Call>>> = const { RefCell::new(None) };
}

/// The time that a call has lost to failing storage.
#[derive(Debug, Default)]
pub struct Call(Mutex<Lost>);

#[derive(Debug, Default)]
struct Lost {
    before: Duration,
    /// Requests that fail now, and since when any has.
    failing: usize,
    since: Option<Instant>,
    /// One was tried again as long as there was time.
    given_up: bool,
}

/// A request of a call that fails and is tried again; it does no longer when this is dropped.
#[derive(Debug)]
pub struct Failing(Arc<Call>);

impl Call {
    fn lock(&self) -> MutexGuard<'_, Lost> {
        lock(&self.0)
    }

    /// Notes that a request was given up: storage had all the time that there is for this call.
    pub fn give_up(&self) {
        self.lock().given_up = true;
    }

    /// How long storage has failed the call, all in all; for ever once it was given up.
    pub fn lost(&self) -> Duration {
        let lost = self.lock();
        if lost.given_up {
            return Duration::MAX;
        }
        lost.before + lost.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Failing {
    /// A request of this call fails, and was begun at `since`.
    pub fn begin(call: Arc<Call>, since: Instant) -> Self {
        let mut lost = call.lock();
        lost.failing += 1;
        lost.since.get_or_insert(since);
        drop(lost);
        Failing(call)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let mut lost = self.0.lock();
        lost.failing = lost.failing.saturating_sub(1);
        if lost.failing == 0
            && let Some(since) = lost.since.take()
        {
            lost.before += since.elapsed();
        }
    }
}

/// The call that this thread works for, if it does for one.
pub fn current() -> Option<Arc<Call>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Does a new call's work on this thread. Within a call it is part of that one.
pub fn on_call<T>(work: impl FnOnce() -> T) -> T {
    match current() {
        Some(_) => work(),
        None => for_call(Some(Arc::default()), work),
    }
}

/// Does work of a call that another thread has begun.
pub fn for_call<T>(call: Option<Arc<Call>>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Arc<Call>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _restore = Restore(CURRENT.replace(call));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_lost_once_however_many_requests_fail_at_the_same_time() {
        let minute = Duration::from_secs(60);
        let Some(since) = Instant::now().checked_sub(minute) else {
            return;
        };
        on_call(|| {
            let call = current().unwrap();
            let first = Failing::begin(call.clone(), since);
            let second = Failing::begin(call.clone(), since);
            assert!(call.lost() >= minute && call.lost() < 2 * minute);
            drop((first, second));
            // The next one finds the budget used.
            let _third = Failing::begin(call.clone(), Instant::now());
            assert!(call.lost() >= minute && call.lost() < 2 * minute);
        });
        assert!(current().is_none());
    }

    #[test]
    fn helpers_work_for_the_call_that_needs_them() {
        on_call(|| {
            let call = current();
            let helper = || for_call(call.clone(), current).unwrap();
            let theirs = std::thread::scope(|s| s.spawn(helper).join().unwrap());
            assert!(Arc::ptr_eq(&theirs, &current().unwrap()));
            // What is begun within it is the same call.
            on_call(|| assert!(Arc::ptr_eq(&theirs, &current().unwrap())));
        });
    }
}
