//! What was used last and took work to get: an index of a directory's names, unpacked blocks of a file.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::sync::lock;

struct Kept<T> {
    key: u64,
    weight: usize,
    value: Arc<T>,
}

/// A bounded number of values, by a number: a directory's inode, a block's place. The one used last is kept
/// whatever its weight.
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

    /// Keeps at most `count` values that weigh the same.
    pub fn of_count(count: usize) -> Self {
        Recent::new(count, count)
    }

    /// What is kept under a number.
    pub fn get(&self, key: u64) -> Option<Arc<T>> {
        let mut kept = self.lock();
        let index = kept.iter().position(|known| known.key == key)?;
        kept[..=index].rotate_right(1);
        Some(kept[0].value.clone())
    }

    /// Keeps a value.
    pub fn put(&self, key: u64, weight: usize, value: T) -> Arc<T> {
        let value = Arc::new(value);
        let new = Kept {
            key,
            weight,
            value: value.clone(),
        };
        let mut kept = self.lock();
        kept.retain(|known| known.key != key);
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
        lock(&self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ones_used_last_are_kept_within_bounds() {
        let recent = Recent::new(3, 100);
        for key in 1..=4 {
            recent.put(key, 10, key);
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

    #[test]
    fn a_value_takes_the_place_of_the_one_before_it() {
        let recent = Recent::of_count(2);
        for (key, value) in [(1, 'a'), (2, 'b'), (1, 'c')] {
            recent.put(key, 1, value);
        }
        assert_eq!(recent.get(2).as_deref(), Some(&'b'));
        recent.put(3, 1, 'd');
        assert_eq!(
            (recent.get(1), recent.get(2).as_deref()),
            (None, Some(&'b'))
        );
    }
}
