//! What snapshots and caches have in common: a volume of which some pieces are elsewhere, and the list of
//! them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt};

/// Pieces that the snapshots and caches of one machine may consist of: 72 MiB.
const MAX_PIECES: u64 = 3 << 20;

/// What is left of the memory for lists of pieces.
pub(super) struct Budget(AtomicU64);

impl Default for Budget {
    fn default() -> Self {
        Budget(AtomicU64::new(MAX_PIECES))
    }
}

impl Budget {
    /// # Errors
    /// `Unsupported` when there is not so much left.
    pub(super) fn allows(&self, pieces: usize) -> Result<()> {
        match pieces as u64 <= self.0.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(over_budget()),
        }
    }

    /// Takes so much of it, for good.
    ///
    /// # Errors
    /// `Unsupported` when there is not so much left.
    fn take(&self, pieces: usize) -> Result<()> {
        let less = |left: u64| left.checked_sub(pieces as u64);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.map(drop).map_err(|_| over_budget())
    }
}

fn over_budget() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "snapshots and caches in more than three million pieces are not read",
    )
}

/// A list of pieces, read when it is needed for the first time.
pub(super) struct Pieces<T> {
    list: OnceLock<Arc<Vec<T>>>,
    budget: Arc<Budget>,
}

impl<T> Pieces<T> {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Pieces {
            list: OnceLock::new(),
            budget,
        }
    }

    /// The list; by `read`, which asks the budget as it goes, if nobody has read it yet.
    ///
    /// # Errors
    /// Those of `read`; `Unsupported` when the list is longer than the budget has room for.
    pub(super) fn get(&self, read: impl FnOnce(&Budget) -> Result<Vec<T>>) -> Result<Arc<Vec<T>>> {
        if let Some(list) = self.list.get() {
            return Ok(list.clone());
        }
        // Nobody waits for another who reads; that several read at the same time is rare and does no harm.
        let list = Arc::new(read(&self.budget)?);
        self.budget.take(list.len())?;
        Ok(self.list.get_or_init(|| list).clone())
    }
}

/// The extent at a place: whether it is elsewhere, the offset there or in the origin, and its end.
pub(super) fn extent(
    origin: &dyn ReadAt,
    ((is_elsewhere, at), end): ((bool, u64), u64),
) -> Result<Extent> {
    if is_elsewhere {
        return Ok(Extent {
            kind: ExtentKind::Data,
            end,
        });
    }
    let inner = origin.extent_at(at)?;
    Ok(Extent {
        kind: inner.kind,
        end: inner.end.min(end),
    })
}
