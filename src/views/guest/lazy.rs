//! Values that are made when they are first needed.

use std::sync::{Arc, Mutex, TryLockError};

use crate::error::Result;
use crate::sync::lock;

/// A value made on first use, once; a failure is not kept.
pub(super) struct Lazy<T> {
    value: Mutex<Option<Arc<T>>>,
}

impl<T> Lazy<T> {
    pub(super) fn new() -> Self {
        Lazy {
            value: Mutex::new(None),
        }
    }

    /// Those who come while it is made wait for it: that is the point of the lock.
    pub(super) fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut value = lock(&self.value);
        if let Some(value) = &*value {
            return Ok(value.clone());
        }
        let made = Arc::new(make()?);
        *value = Some(made.clone());
        Ok(made)
    }

    /// The value if it was made.
    pub(super) fn peek(&self) -> Option<Arc<T>> {
        let value = lock(&self.value);
        value.clone()
    }

    /// Whether the value was made, or is being made. Does not wait.
    pub(super) fn is_made(&self) -> bool {
        match self.value.try_lock() {
            Ok(value) => value.is_some(),
            Err(TryLockError::Poisoned(value)) => value.get_ref().is_some(),
            Err(TryLockError::WouldBlock) => true,
        }
    }
}
