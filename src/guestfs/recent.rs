//! What was worked out about the directories that were used last: where their blocks are, an index of
//! their names.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::GuestInode;

struct Kept<T> {
    dir: GuestInode,
    weight: usize,
    value: Arc<T>,
}

/// A bounded number of values, by directory. The one used last is kept whatever its weight.
pub struct Recent<T> {
    count: usize,
    weight: usize,
    /// The one used last in front.
    kept: Mutex<Vec<Kept<T>>>,
}

impl<T> Recent<T> {
    /// Keeps at most `count` values, of at most `weight` together.
    pub fn new(count: usize, weight: usize) -> Self {
        Recent {
            count,
            weight,
            kept: Mutex::new(Vec::new()),
        }
    }

    /// What is kept about a directory.
    pub fn get(&self, dir: GuestInode) -> Option<Arc<T>> {
        let mut kept = self.lock();
        let index = kept.iter().position(|known| known.dir == dir)?;
        kept[..=index].rotate_right(1);
        Some(kept[0].value.clone())
    }

    /// Keeps a value.
    pub fn put(&self, dir: GuestInode, weight: usize, value: T) -> Arc<T> {
        let value = Arc::new(value);
        let new = Kept {
            dir,
            weight,
            value: value.clone(),
        };
        let mut kept = self.lock();
        kept.retain(|known| known.dir != dir);
        kept.insert(0, new);
        let mut total = 0usize;
        let fitting = kept.iter().take(self.count).take_while(|known| {
            total = total.saturating_add(known.weight);
            total <= self.weight
        });
        let count = fitting.count().max(1);
        let gone = kept.split_off(count);
        drop(kept);
        // Outside the lock: freeing a large one takes a while.
        drop(gone);
        value
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept<T>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ones_used_last_are_kept_within_bounds() {
        let recent = Recent::new(3, 100);
        for dir in 1..=4 {
            recent.put(dir, 10, dir);
        }
        assert_eq!(recent.get(1), None);
        assert_eq!(recent.get(2).as_deref(), Some(&2));
        recent.put(5, 10, 5);
        assert_eq!((recent.get(2).is_some(), recent.get(3)), (true, None));
        recent.put(6, 1000, 6);
        assert_eq!((recent.get(6).is_some(), recent.get(2)), (true, None));
        recent.put(7, 10, 7);
        assert_eq!((recent.get(7).is_some(), recent.get(6)), (true, None));
    }
}
