//! Whether attributes of guest files are wanted along with their names.
//!
//! The kernel asks for the beginning of every listing with attributes, to see whether they are used. It
//! does not say whether they were; but where they are wanted and were not given, it looks files up. So the
//! beginning is given in full while there are such look-ups now and then, and as a sample of a few entries
//! otherwise: a million names without `stat` shall not cost the making of inodes that nobody looks at.

use std::sync::atomic::{AtomicU32, Ordering};

/// Entries of a sample. When one of them is used between two parts of a listing, the kernel asks for the
/// next part with attributes by itself.
const SAMPLE: usize = 8;
/// Look-ups that show a program which wants attributes; with each listing a quarter of them is forgotten.
const SHOWN: u32 = 12;
/// Listings that are given in full after the last look-up.
const PATIENCE: u32 = 64;

/// How much attributes were wanted lately. Races cost an answer that is too short or too long, no more.
#[derive(Default)]
pub(super) struct ReaddirplusPolicy {
    lookups: AtomicU32,
    full: AtomicU32,
}

impl ReaddirplusPolicy {
    /// A guest file was looked up.
    pub(super) fn looked_up(&self) {
        if self.lookups.fetch_add(1, Ordering::Relaxed) + 1 >= SHOWN {
            self.lookups.store(0, Ordering::Relaxed);
            self.full.store(PATIENCE, Ordering::Relaxed);
        }
    }

    /// How many entries the beginning of a listing shall have attributes for.
    pub(super) fn at_start(&self) -> usize {
        let lookups = self.lookups.load(Ordering::Relaxed);
        self.lookups
            .store(lookups - lookups.div_ceil(4), Ordering::Relaxed);
        match self.full.load(Ordering::Relaxed) {
            0 => SAMPLE,
            full => {
                self.full.store(full - 1, Ordering::Relaxed);
                usize::MAX
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_full_for_a_while_after_many_lookups() {
        let demand = ReaddirplusPolicy::default();
        assert_eq!(demand.at_start(), SAMPLE);
        (1..SHOWN).for_each(|_| demand.looked_up());
        assert_eq!(demand.at_start(), SAMPLE);
        (0..SHOWN).for_each(|_| demand.looked_up());
        for _ in 0..PATIENCE {
            assert_eq!(demand.at_start(), usize::MAX);
        }
        assert_eq!(demand.at_start(), SAMPLE);
    }

    #[test]
    fn a_few_lookups_in_each_directory_add_up() {
        let demand = ReaddirplusPolicy::default();
        let is_full = (0..20).any(|_| {
            (0..5).for_each(|_| demand.looked_up());
            demand.at_start() > SAMPLE
        });
        assert!(is_full);
        let demand = ReaddirplusPolicy::default();
        let is_full = (0..100).any(|_| {
            demand.looked_up();
            demand.at_start() > SAMPLE
        });
        assert!(!is_full);
    }
}
