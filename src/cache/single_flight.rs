//! One piece of work, many waiters.
//!
//! The first who wants a block becomes its worker; the others wait for the same result. A failure
//! goes to all who waited, and is forgotten: the next who asks tries again.

use std::sync::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{lock, wait};

/// A result that will be there later.
pub struct SingleFlight<T> {
    state: Mutex<Option<Result<T>>>,
    completed: Condvar,
}

impl<T: Clone> SingleFlight<T> {
    /// Nothing there yet.
    pub fn new() -> Self {
        SingleFlight {
            state: Mutex::new(None),
            completed: Condvar::new(),
        }
    }

    /// Gives the result to all waiters. The first call counts.
    pub fn complete(&self, result: Result<T>) {
        let mut state = lock(&self.state);
        state.get_or_insert(result);
        drop(state);
        self.completed.notify_all();
    }

    /// The result if it is there.
    pub fn try_get(&self) -> Option<Result<T>> {
        lock(&self.state).clone()
    }

    /// Waits for the result.
    pub fn wait(&self) -> Result<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(result) = state.as_ref() {
                return result.clone();
            }
            state = wait(&self.completed, state);
        }
    }
}

impl<T: Clone> Default for SingleFlight<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Completes it with an error if the worker unwinds before there is a result, so that nobody waits for
/// ever.
pub struct CompleteOnDrop<'a, T: Clone>(pub &'a SingleFlight<T>);

impl<T: Clone> Drop for CompleteOnDrop<'_, T> {
    fn drop(&mut self) {
        self.0.complete(Err(Error::new(
            ErrorKind::Io,
            "the work was given up before it was done",
        )));
    }
}
