//! Lets a fixed number of threads through at once: bounds the memory of work in progress.

use std::sync::{Condvar, Mutex, PoisonError};

/// A counting semaphore for blocking code.
pub struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    /// A gate for `permits` threads at once (at least one).
    pub fn new(permits: usize) -> Self {
        Gate {
            free: Mutex::new(permits.max(1)),
            freed: Condvar::new(),
        }
    }

    /// Waits for a place; it is given back when the pass is dropped.
    pub fn enter(&self) -> GatePass<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        GatePass(self)
    }
}

/// A place behind the gate.
pub struct GatePass<'a>(&'a Gate);

impl Drop for GatePass<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}
