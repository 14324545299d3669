//! Threads that fetch and decode blocks before they are asked for.
//!
//! All readers share one pool and one budget of bytes: a block that was read ahead stays with its
//! reader, outside the cache, until it is used or dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use super::blocks::Block;
use super::single_flight::{CompleteOnDrop, SingleFlight};
use crate::error::Result;
use crate::sync::{lock, wait_timeout};

type Job = Box<dyn FnOnce() + Send>;

struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

/// The pool. Threads start when there is work and end with the pool.
pub struct AheadPool {
    queue: Mutex<Queue>,
    wake: Condvar,
    max_threads: usize,
    budget_bytes: u64,
    reserved_bytes: AtomicU64,
}

/// A block on its way. Dropping it gives its bytes back to the budget; the work itself is not
/// undone.
pub struct AheadTicket {
    share: AheadShare,
    flight: Arc<SingleFlight<Block>>,
}

/// Bytes of the budget, held by whoever keeps a block outside the cache; given back when dropped.
pub struct AheadShare {
    pool: Arc<AheadPool>,
    bytes: u64,
}

impl AheadPool {
    /// A pool of at most `max_threads` threads whose waiting blocks weigh at most `budget_bytes`.
    pub fn new(max_threads: usize, budget_bytes: u64) -> Arc<Self> {
        Arc::new(AheadPool {
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                idle: 0,
                threads: 0,
            }),
            wake: Condvar::new(),
            max_threads: max_threads.max(1),
            budget_bytes,
            reserved_bytes: AtomicU64::new(0),
        })
    }

    /// Starts loading a block of `bytes` bytes, or `None` when the budget is used up.
    pub fn submit(
        self: &Arc<Self>,
        bytes: u64,
        load: impl FnOnce() -> Result<Block> + Send + 'static,
    ) -> Option<AheadTicket> {
        let share = self.reserve(bytes)?;
        let flight = Arc::new(SingleFlight::new());
        let ticket = AheadTicket {
            share,
            flight: Arc::clone(&flight),
        };
        // A reader that has gone away before its turn comes needs no work done.
        let wanted = Arc::downgrade(&flight);
        drop(flight);
        self.push(Box::new(move || {
            if let Some(flight) = wanted.upgrade() {
                let unwound = CompleteOnDrop(&flight);
                flight.complete(load());
                drop(unwound);
            }
        }));
        Some(ticket)
    }

    /// Takes so many bytes of the budget, or `None` when it is used up.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<AheadShare> {
        self.reserved_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |reserved| {
                (reserved + bytes <= self.budget_bytes).then_some(reserved + bytes)
            })
            .ok()?;
        Some(AheadShare {
            pool: Arc::clone(self),
            bytes,
        })
    }

    fn push(self: &Arc<Self>, job: Job) {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(job);
        // Those who are idle wake later than the next jobs of a burst come.
        if queue.jobs.len() > queue.idle && queue.threads < self.max_threads {
            let pool = Arc::downgrade(self);
            let spawned = std::thread::Builder::new()
                .name(format!("ahead-{}", queue.threads))
                .spawn(move || work(&pool));
            if spawned.is_ok() {
                queue.threads += 1;
            } else if queue.threads == 0 {
                // No thread can be had: do without reading ahead. Dropping the job leaves the
                // flight without a result, so it is run here instead.
                let job = queue.jobs.pop_back();
                drop(queue);
                if let Some(job) = job {
                    job();
                }
                return;
            }
        }
        drop(queue);
        self.wake.notify_one();
    }
}

/// How long an idle thread waits before it looks whether the pool is still there.
const IDLE: std::time::Duration = std::time::Duration::from_millis(500);

fn work(pool: &Weak<AheadPool>) {
    while let Some(strong) = pool.upgrade() {
        let mut queue = lock(&strong.queue);
        let job = match queue.jobs.pop_front() {
            Some(job) => Some(job),
            None => {
                queue.idle += 1;
                let mut back = wait_timeout(&strong.wake, queue, IDLE);
                back.idle -= 1;
                let job = back.jobs.pop_front();
                queue = back;
                job
            }
        };
        drop(queue);
        if let Some(job) = job {
            // A job that panics has completed with an error by unwinding; the thread goes on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
        }
    }
}

impl AheadTicket {
    /// Waits for the block; the bytes stay reserved until the share is dropped.
    pub fn wait(self) -> Result<(Block, AheadShare)> {
        Ok((self.flight.wait()?, self.share))
    }

    /// Whether waiting would not block.
    pub fn is_ready(&self) -> bool {
        self.flight.try_get().is_some()
    }
}

impl Drop for AheadShare {
    fn drop(&mut self) {
        self.pool
            .reserved_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_burst_of_work_that_waits_is_done_all_at_once() {
        let pool = AheadPool::new(8, 100);
        let block = || Block {
            bytes: Bytes::from_static(b"x"),
            full: true,
        };
        // One thread, which has nothing to do any more.
        let only = pool.submit(1, move || Ok(block())).unwrap();
        only.wait().unwrap();
        // Nobody gets on before all are there.
        let all = Arc::new(std::sync::Barrier::new(8));
        let (begun, begins) = std::sync::mpsc::channel();
        let burst: Vec<AheadTicket> = (0..8)
            .map(|_| {
                let (all, begun) = (Arc::clone(&all), begun.clone());
                let load = move || {
                    begun.send(()).ok();
                    all.wait();
                    Ok(block())
                };
                pool.submit(1, load).unwrap()
            })
            .collect();
        for _ in 0..8 {
            let patience = std::time::Duration::from_secs(20);
            begins.recv_timeout(patience).expect("waits for another");
        }
        for ticket in burst {
            ticket.wait().unwrap();
        }
    }

    #[test]
    fn work_is_done_ahead_and_the_budget_is_kept() {
        let pool = AheadPool::new(2, 100);
        let load = || {
            Ok(Block {
                bytes: Bytes::from_static(b"x"),
                full: true,
            })
        };
        let first = pool.submit(60, load).unwrap();
        assert!(pool.submit(60, load).is_none());
        let (block, share) = first.wait().unwrap();
        assert_eq!(&block.bytes[..], b"x");
        assert!(pool.reserve(60).is_none());
        drop(share);
        assert_eq!(pool.reserved_bytes.load(Ordering::Relaxed), 0);
        let again = pool.submit(100, || panic!("on purpose")).unwrap();
        assert!(again.wait().is_err());
        assert!(pool.submit(100, load).unwrap().wait().is_ok());
    }
}
