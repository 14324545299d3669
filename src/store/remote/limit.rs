//! How many requests may be in flight: halved when the storage asks to slow down, one more for
//! every round that went well (additive increase, multiplicative decrease, as TCP does it).
//!
//! Listings and heads have a lane of their own, so that an `ls` goes on while readers of data
//! wait for a storage that is throttling them.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::Notify;

use crate::store::StoreStats;
use crate::sync::lock;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestClass {
    /// Content of objects.
    Data,
    /// Listings and heads.
    Names,
}

/// Names are never held to fewer requests than this.
const MIN_NAMES: usize = 4;

/// Shared by all requests of one store.
pub(crate) struct Limiter {
    max: usize,
    state: Mutex<State>,
    data: Notify,
    names: Notify,
    stats: Arc<StoreStats>,
}

struct State {
    limit: f64,
    data: usize,
    names: usize,
    last_decrease: Option<Instant>,
}

impl State {
    fn has_room(&self, lane: RequestClass) -> bool {
        let limit = self.limit as usize;
        match lane {
            RequestClass::Data => self.data < limit.max(1),
            RequestClass::Names => self.names < limit.max(MIN_NAMES),
        }
    }

    fn in_flight(&mut self, lane: RequestClass) -> &mut usize {
        match lane {
            RequestClass::Data => &mut self.data,
            RequestClass::Names => &mut self.names,
        }
    }
}

/// The right to have one request in flight; given back when dropped.
pub(crate) struct Permit<'a> {
    limiter: &'a Limiter,
    lane: RequestClass,
}

impl Limiter {
    pub(crate) fn new(max: usize, stats: Arc<StoreStats>) -> Self {
        let max = max.max(1);
        stats.set_parallelism(max);
        Limiter {
            max,
            state: Mutex::new(State {
                limit: max as f64,
                data: 0,
                names: 0,
                last_decrease: None,
            }),
            data: Notify::new(),
            names: Notify::new(),
            stats,
        }
    }

    /// Waits until one more request may go out.
    pub(crate) async fn acquire(&self, lane: RequestClass) -> Permit<'_> {
        loop {
            let changed = self.notify(lane).notified();
            {
                let mut state = self.state();
                if state.has_room(lane) {
                    *state.in_flight(lane) += 1;
                    // The limit may have grown by more than the one that woke us.
                    if state.has_room(lane) {
                        self.notify(lane).notify_one();
                    }
                    return Permit {
                        limiter: self,
                        lane,
                    };
                }
            }
            changed.await;
        }
    }

    /// A request went well.
    pub(crate) fn success(&self) {
        let mut state = self.state();
        let grown = state.limit + 1.0 / state.limit;
        state.limit = grown.min(self.max as f64);
        self.stats.set_parallelism(state.limit as usize);
    }

    /// A request that was sent at `started` met a storage that could not keep up. Of all requests
    /// that were in flight together, the first one halves the limit.
    pub(crate) fn overload(&self, started: Instant) {
        let mut state = self.state();
        if state.last_decrease.is_some_and(|last| started <= last) {
            return;
        }
        state.limit = (state.limit / 2.0).max(1.0);
        state.last_decrease = Some(Instant::now());
        self.stats.set_parallelism(state.limit as usize);
    }

    /// The limit as it is now.
    pub(crate) fn current(&self) -> usize {
        self.state().limit as usize
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn notify(&self, lane: RequestClass) -> &Notify {
        match lane {
            RequestClass::Data => &self.data,
            RequestClass::Names => &self.names,
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.limiter.state().in_flight(self.lane) -= 1;
        self.limiter.notify(self.lane).notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(max: usize) -> Limiter {
        Limiter::new(max, Arc::default())
    }

    #[test]
    fn one_burst_of_faults_halves_once_and_successes_recover() {
        let limiter = limiter(64);
        let sent = Instant::now();
        for _ in 0..20 {
            limiter.overload(sent);
        }
        assert_eq!(limiter.current(), 32);
        limiter.overload(Instant::now());
        assert_eq!(limiter.current(), 16);
        for _ in 0..16 * 20 {
            limiter.success();
        }
        assert!((24..=40).contains(&limiter.current()));
        for _ in 0..10_000 {
            limiter.success();
        }
        assert_eq!(limiter.current(), 64);
        for _ in 0..20 {
            limiter.overload(Instant::now());
        }
        assert_eq!(limiter.current(), 1);
    }

    #[test]
    fn permits_hold_the_limit_and_names_go_on() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let limiter = limiter(1);
            let held = limiter.acquire(RequestClass::Data).await;
            let wait = std::time::Duration::from_millis(20);
            let second = tokio::time::timeout(wait, limiter.acquire(RequestClass::Data)).await;
            assert!(second.is_err());
            let _names = limiter.acquire(RequestClass::Names).await;
            drop(held);
            let _third = limiter.acquire(RequestClass::Data).await;
        });
    }
}
