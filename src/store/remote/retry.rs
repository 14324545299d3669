//! Trying again: jittered exponential backoff within a budget of minutes, and the faults that are
//! cured on the way (a wrong region, a wrong clock).

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::fault::{Fault, RetryAction};
use super::http::{ANSWERED, Http};
use super::limit::{Limiter, RequestClass};
use super::silence::IDLE_TIMEOUT;
use super::tls;
use crate::call::{self, Failing};
use crate::error::{Error, ErrorKind, Result};
use crate::store::notice::{self, LONG};
use crate::store::{Request, StoreStats};

const MAX_DELAY: Duration = Duration::from_secs(20);
/// A server that has never answered is given this long: a typing error in its name or port should
/// not take minutes to show.
const FIRST_CONTACT: Duration = Duration::from_secs(30);
/// After a time-out, the next attempt waits longer, up to this many times the idle time-out:
/// there are servers that take half a minute over one page of a listing.
const MAX_PATIENCE: u32 = 4;
/// What an attempt gets when the budget of its call is used up.
const LAST_ATTEMPT: Duration = Duration::from_secs(5);
/// How often a region or a clock is corrected within one request.
const MAX_CURES: u32 = 2;

/// What an attempt brought, with the number of content bytes for the statistics.
pub(crate) type Attempt<T> = Result<(T, u64), Fault>;

/// How patient to be.
#[derive(Debug, Clone)]
pub(crate) struct RetryPolicy {
    /// How long a connection may stay silent.
    pub(crate) idle_timeout: Duration,
    /// How long the requests of one call are tried again, all in all.
    pub(crate) retry_budget: Duration,
    /// The wait before the first of these attempts.
    pub(crate) first_delay: Duration,
}

/// What all requests of one store go through.
pub(crate) struct Transport {
    pub(crate) http: Http,
    pub(crate) limiter: Limiter,
    pub(crate) stats: Arc<StoreStats>,
    patience: RetryPolicy,
    reached: AtomicBool,
}

impl Transport {
    pub(crate) fn new(
        ca_file: Option<&Path>,
        allow_unauthorized: bool,
        patience: RetryPolicy,
        max_parallelism: usize,
        stats: Arc<StoreStats>,
    ) -> Result<Self> {
        let tls = tls::client_config(ca_file, allow_unauthorized)?;
        Ok(Transport {
            http: Http::new(tls, patience.idle_timeout),
            limiter: Limiter::new(max_parallelism, stats.clone()),
            stats,
            patience,
            reached: AtomicBool::new(false),
        })
    }

    /// How long an attempt may meet with silence: no longer than the budget lasts, but for a moment in
    /// any case.
    fn silence(&self, patience: u32, lost: Duration) -> Duration {
        let idle = self.patience.idle_timeout;
        let left = self.patience.retry_budget.saturating_sub(lost);
        (idle * patience).min(left.max(idle.min(LAST_ATTEMPT)))
    }

    fn set_reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    /// Sends a request until it succeeds, fails for good, or the budget is used up. `recover` sets
    /// right what a fault says is wrong with the requests; false when that cannot be.
    pub(crate) async fn run<T, F, Fut>(
        &self,
        kind: Request,
        lane: RequestClass,
        attempt: F,
        recover: impl Fn(&Fault) -> bool,
    ) -> Result<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Attempt<T>>,
    {
        let first = Instant::now();
        let call = call::current();
        let mut failing = None;
        let mut tries: u32 = 0;
        let mut bounded: u32 = 0;
        let mut cures: u32 = 0;
        let mut patience: u32 = 1;
        loop {
            let permit = self.limiter.acquire(lane).await;
            let started = Instant::now();
            let lost = call.as_ref().map_or(Duration::ZERO, |call| call.lost());
            let idle = self.silence(patience, lost);
            let result = tell_when_silent(first, IDLE_TIMEOUT.scope(idle, attempt())).await;
            drop(permit);
            let bytes = result.as_ref().map_or(0, |(_, bytes)| *bytes);
            let stats = &self.stats;
            stats.record(kind, bytes, started.elapsed(), result.is_ok());
            tries += 1;
            let fault = match result {
                Ok((value, _)) => {
                    self.limiter.success();
                    self.set_reached();
                    return Ok(value);
                }
                Err(fault) => fault,
            };
            if fault.overload {
                self.limiter.overload(started);
                self.http.renew();
            }
            if started.elapsed() >= idle {
                patience = (patience * 2).min(MAX_PATIENCE);
            }
            match &fault.next {
                RetryAction::Reconnect => {}
                _ => self.set_reached(),
            }
            let budget = match &fault.next {
                RetryAction::GiveUp => return Err(fault.error),
                RetryAction::Region(_) | RetryAction::Clock => {
                    cures += 1;
                    if cures > MAX_CURES || !recover(&fault) {
                        return Err(fault.error);
                    }
                    stats.record_retry(false);
                    continue;
                }
                RetryAction::RetryTimes(times) => {
                    bounded += 1;
                    if bounded > *times {
                        return Err(fault.error);
                    }
                    self.patience.retry_budget
                }
                RetryAction::Reconnect if !self.reached.load(Ordering::Relaxed) => {
                    // One that was reached but is silent may be busy with its first listing: it is
                    // asked once more, and waited for longer.
                    let patience = match fault.overload {
                        true => FIRST_CONTACT.max(self.patience.idle_timeout * 2),
                        false => FIRST_CONTACT,
                    };
                    patience.min(self.patience.retry_budget)
                }
                RetryAction::Reconnect | RetryAction::Retry => self.patience.retry_budget,
            };
            let delay =
                backoff(self.patience.first_delay, tries).max(fault.after.unwrap_or_default());
            if failing.is_none() {
                failing = call.clone().map(|call| Failing::begin(call, first));
            }
            let lost = call.as_ref().map_or(first.elapsed(), |call| call.lost());
            if lost.saturating_add(delay) > budget {
                if let Some(call) = &call {
                    call.give_up();
                }
                return Err(exhausted(&fault.error, tries, first.elapsed()));
            }
            if first.elapsed().saturating_add(delay) >= LONG {
                notice::say(|| format!("{}; trying again", fault.error));
            }
            tracing::debug!(
                error = fault.error.message(),
                tries,
                delay_ms = delay.as_millis() as u64,
                "request failed, trying again"
            );
            stats.record_retry(fault.throttled);
            tokio::time::sleep(delay).await;
        }
    }
}

/// Makes an attempt, and says so when its answer has not begun after a while.
async fn tell_when_silent<T>(first: Instant, attempt: impl Future<Output = T>) -> T {
    let answered = Arc::new(AtomicBool::new(false));
    let mut attempt = std::pin::pin!(ANSWERED.scope(answered.clone(), attempt));
    let wait = LONG.saturating_sub(first.elapsed());
    match tokio::time::timeout(wait, &mut attempt).await {
        Ok(result) => result,
        Err(_) => {
            if !answered.load(Ordering::Relaxed) {
                let seconds = first.elapsed().as_secs();
                notice::say(|| format!("storage has not answered for {seconds} s; still waiting"));
            }
            attempt.await
        }
    }
}

fn exhausted(last: &Error, tries: u32, elapsed: Duration) -> Error {
    let kind = match last.kind() {
        ErrorKind::Io => ErrorKind::Transient,
        other => other,
    };
    let times = match tries {
        1 => "once".to_owned(),
        _ => format!("{tries} times"),
    };
    let (why, seconds) = (last.message(), elapsed.as_secs());
    let message = format!("{why} (tried {times} in {seconds} s)");
    Error::new(kind, message)
}

/// Half of the delay is fixed, half is chance, so that readers that failed together do not come
/// back together.
fn backoff(first: Duration, tries: u32) -> Duration {
    let factor = 1u32 << (tries.saturating_sub(1)).min(10);
    let delay = first.saturating_mul(factor).min(MAX_DELAY);
    let chance = RandomState::new().build_hasher().finish();
    let fraction = (chance >> 11) as f64 / (1u64 << 53) as f64;
    delay.mul_f64(0.5 + fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_differ_and_stay_bounded() {
        let first = Duration::from_millis(200);
        for tries in 1..100 {
            let delay = backoff(first, tries);
            assert!(delay <= MAX_DELAY);
            assert!(delay >= first / 2);
        }
        assert!(backoff(first, 8) >= MAX_DELAY / 2);
        let delays: Vec<Duration> = (0..8).map(|_| backoff(first, 5)).collect();
        assert!(delays.iter().any(|d| *d != delays[0]));
    }
}
