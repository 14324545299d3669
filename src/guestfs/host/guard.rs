//! The boundary around calls into file system crates.
//!
//! Three things must not pass it: panics, I/O errors that the crate turned into something harmless
//! (a missing block read as a hole would be a wrong byte), and endless work on cyclic structures. The
//! calls are synchronous, so the state of the call in progress lives in a thread-local that the
//! device (see [`super::device`]) writes to.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, ErrorKind, Result};

/// What one call may read.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Bytes asked of the device.
    pub bytes: u64,
    /// Requests to the device, answered from the metadata cache or not.
    pub requests: u64,
}

impl Budget {
    /// For opening a file system: journals of up to 1 GiB are read twice or thrice.
    pub const OPEN: Budget = Budget {
        bytes: 4 << 30,
        requests: 8 << 20,
    };
    /// For one look-up, read or part of a listing.
    pub const CALL: Budget = Budget {
        bytes: 256 << 20,
        requests: 1 << 19,
    };
}

#[derive(Default)]
struct State {
    active: bool,
    bytes: u64,
    requests: u64,
    error: Option<Error>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// How a guarded call ended.
pub enum Outcome<T> {
    /// It came back.
    Done(Result<T>),
    /// It panicked: the reader's state cannot be trusted any more.
    Panicked(Error),
}

/// Calls `work`; see the module's description.
pub fn guarded<T>(budget: Budget, work: impl FnOnce() -> Result<T>) -> Outcome<T> {
    let outer = STATE.with(|state| {
        state.replace(State {
            active: true,
            bytes: budget.bytes,
            requests: budget.requests,
            error: None,
        })
    });
    // Sound to assert: after a panic the reader is dropped, see `pool`.
    let result = catch_unwind(AssertUnwindSafe(work));
    let mut inner = STATE.with(|state| state.replace(outer));
    match (result, inner.error.take()) {
        (Err(panic), _) => Outcome::Panicked(Error::corrupt(format!(
            "the file system reader stumbled over damaged data ({})",
            panic_text(&*panic)
        ))),
        // Whatever the reader made of it, some bytes it wanted could not be had.
        (Ok(_), Some(error)) => Outcome::Done(Err(error)),
        (Ok(result), None) => Outcome::Done(result),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text.as_str(),
        (None, None) => "no reason given",
    };
    text.chars().take(200).collect()
}

/// Called by the device before a request: takes it off the budget.
///
/// # Errors
/// `Corrupt` when the budget of the call in progress is used up.
pub(crate) fn charge(bytes: u64) -> Result<()> {
    STATE.with(|state| {
        let mut state = state.borrow_mut();
        if !state.active {
            return Ok(());
        }
        match (
            state.bytes.checked_sub(bytes),
            state.requests.checked_sub(1),
        ) {
            (Some(bytes), Some(requests)) => {
                state.bytes = bytes;
                state.requests = requests;
                Ok(())
            }
            _ => {
                let error = Error::new(
                    ErrorKind::Corrupt,
                    "the file system makes its reader go over too much data",
                );
                state.error.get_or_insert(error.clone());
                Err(error)
            }
        }
    })
}

/// Called by the device when a request failed.
pub(crate) fn note_error(error: &Error) {
    STATE.with(|state| {
        let mut state = state.borrow_mut();
        if state.active {
            state.error.get_or_insert_with(|| error.clone());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swallowed_error_fails_the_call_and_the_next_call_starts_clean() {
        let outcome = guarded(Budget::CALL, || {
            note_error(&Error::new(ErrorKind::Transient, "gone"));
            Ok(1)
        });
        match outcome {
            Outcome::Done(Err(error)) => assert_eq!(error.kind(), ErrorKind::Transient),
            _ => panic!("the error got lost"),
        }
        assert!(matches!(
            guarded(Budget::CALL, || Ok(1)),
            Outcome::Done(Ok(1))
        ));
    }

    #[test]
    fn a_budget_runs_out() {
        let budget = Budget {
            bytes: 100,
            requests: 10,
        };
        let outcome = guarded(budget, || {
            while charge(30).is_ok() {}
            Ok(())
        });
        assert!(matches!(outcome, Outcome::Done(Err(_))));
        assert!(charge(u64::MAX).is_ok());
    }
}
