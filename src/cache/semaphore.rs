//! Lets a fixed number of threads through at once, in the order in which they came: bounds what work
//! in progress takes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Thread;

use crate::sync::lock;

/// A counting semaphore for blocking code. Fair: work that was begun first, which is wanted first,
/// is not overtaken for ever.
pub struct Semaphore(Mutex<State>);

struct State {
    free: usize,
    waiting: VecDeque<Arc<Turn>>,
}

/// A thread that waits.
struct Turn {
    thread: Thread,
    has_come: AtomicBool,
}

impl Semaphore {
    /// A semaphore of so many permits (at least one).
    pub fn new(permits: usize) -> Self {
        Semaphore(Mutex::new(State {
            free: permits.max(1),
            waiting: VecDeque::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Waits for a permit; it is given back when it is dropped.
    pub fn acquire(&self) -> Permit<'_> {
        let mut state = self.state();
        // Whoever gives a permit back hands it to the first who waits: one that is free is nobody's.
        if state.free > 0 {
            state.free -= 1;
            return Permit(self);
        }
        let turn = Arc::new(Turn {
            thread: std::thread::current(),
            has_come: AtomicBool::new(false),
        });
        state.waiting.push_back(Arc::clone(&turn));
        drop(state);
        while !turn.has_come.load(Ordering::Acquire) {
            std::thread::park();
        }
        Permit(self)
    }
}

/// Leave to work; given back when dropped.
pub struct Permit<'a>(&'a Semaphore);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let Some(first) = state.waiting.pop_front() else {
            state.free += 1;
            return;
        };
        drop(state);
        first.has_come.store(true, Ordering::Release);
        first.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_than_the_permits_are_behind_it_and_all_get_there() {
        let semaphore = Semaphore::new(3);
        let (inside, most, passed) = (
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _permit = semaphore.acquire();
                        let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        passed.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 16 * 50);
        assert!(most.into_inner() <= 3);
        assert_eq!(semaphore.state().free, 3);
    }

    #[test]
    fn the_first_to_wait_is_the_first_to_acquire() {
        let semaphore = Semaphore::new(1);
        let order = Mutex::new(Vec::new());
        let held = semaphore.acquire();
        std::thread::scope(|scope| {
            for number in 0..5 {
                let (semaphore, order) = (&semaphore, &order);
                scope.spawn(move || {
                    let _permit = semaphore.acquire();
                    order.lock().unwrap().push(number);
                });
                while semaphore.state().waiting.len() <= number {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3, 4]);
    }
}
