//! Whether the restore point of a chain is still there (see [`DiskGuard`]).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::disk::DiskGuard;
use super::vouch::Vouched;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Meta, Store, StorePath};

/// How many copies of blocks are remembered: those that some readers are at.
const MAX_KEPT: usize = 16;

/// Looks at a restore point's metadata file for one chain, and remembers what that has vouched for.
pub(super) struct Watch {
    guard: Option<DiskGuard>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vouched: Vouched,
    /// When a look began that found the file, and what it found.
    seen: Option<(Instant, Meta)>,
    /// When all images of the chain were open.
    linked: Option<Instant>,
    /// The copies of blocks that were checked last, and the states they are of.
    kept: VecDeque<(u64, Meta)>,
}

impl Watch {
    /// Nothing is vouched for yet; without a guard, nothing needs to be.
    pub(super) fn new(guard: Option<DiskGuard>) -> Self {
        Watch {
            guard,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that is looked at.
    pub(super) fn path(&self) -> Option<&StorePath> {
        self.guard.as_ref().map(|guard| &guard.path)
    }

    /// Notes that the storage has told of a modification, when it was heard of.
    pub(super) fn hear(&self, modified: SystemTime, at: Instant) {
        let today = SystemTime::now();
        self.state().vouched.hear(modified, at, today);
    }

    /// Notes that all images of the chain are open now.
    pub(super) fn linked(&self) {
        self.state().linked = Some(Instant::now());
    }

    /// Looks whether the file is there; `None` when there is none to look at.
    ///
    /// # Errors
    /// `NotFound` when it is gone; otherwise as the storage says.
    pub(super) fn look(&self, store: &dyn Store) -> Result<Option<Meta>> {
        let Some(guard) = &self.guard else {
            return Ok(None);
        };
        let begun = Instant::now();
        let claim = self.state().vouched.claim(begun, SystemTime::now());
        // XO writes the file again when a merge has changed the backup's size: being there is what
        // counts.
        let meta = store.head(&guard.path)?;
        let mut state = self.state();
        state.vouched.seen(claim);
        if state.seen.is_none_or(|(last, _)| last <= begun) {
            state.seen = Some((begun, meta));
        }
        Ok(Some(meta))
    }

    /// What a look found that began no longer ago than this.
    pub(super) fn seen_within(&self, age: Duration) -> Option<Meta> {
        let seen = self.state().seen;
        seen.filter(|(begun, _)| begun.elapsed() <= age)
            .map(|(_, meta)| meta)
    }

    /// Fails when the file is gone: XO may then be merging another point into the youngest image.
    ///
    /// # Errors
    /// `Changed` then; otherwise as the storage says.
    pub(super) fn check(&self, store: &dyn Store) -> Result<()> {
        match self.look(store) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let what = "the restore point was removed and its disk may be being merged";
                let gone = Error::new(ErrorKind::Changed, what);
                Err(match self.path() {
                    Some(path) => gone.with_object(path),
                    None => gone,
                })
            }
            Err(e) => Err(e),
        }
    }

    /// [`Self::check`], unless the file was seen since the chain was linked: for images that are as they
    /// were when they were opened, one look after that is enough. (One that was taken meanwhile is not:
    /// the file may have been opened after it.)
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(super) fn check_once(&self, store: &dyn Store) -> Result<()> {
        let seen_since = {
            let state = self.state();
            let linked = state.linked;
            (state.seen).is_some_and(|(begun, _)| linked.is_some_and(|linked| linked <= begun))
        };
        match seen_since {
            true => Ok(()),
            false => self.check(store),
        }
    }

    /// [`Self::check`], unless an earlier look vouches for what was modified at this time.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(super) fn check_for(&self, store: &dyn Store, modified: Option<SystemTime>) -> Result<()> {
        // On file systems blocks keep their times when a merge moves them, and a look costs little.
        if self.guard.is_none() || !store.traits().remote {
            return self.check(store);
        }
        {
            let mut state = self.state();
            if state.vouched.covers(modified) {
                return Ok(());
            }
            if let Some(modified) = modified {
                let (now, today) = (Instant::now(), SystemTime::now());
                state.vouched.hear(modified, now, today);
            }
        }
        self.check(store)
    }

    /// [`Self::check_for`] of a block that is read from a copy, in many parts: the copy was made before
    /// it was opened, so one look after that is enough.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(super) fn check_kept(&self, store: &dyn Store, block: u64, copy: Meta) -> Result<()> {
        if self.state().kept.contains(&(block, copy)) {
            return Ok(());
        }
        self.check_for(store, copy.modified)?;
        let mut state = self.state();
        if state.kept.len() >= MAX_KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back((block, copy));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    #[test]
    fn a_look_before_all_images_were_open_does_not_vouch_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("point.json");
        let store = LocalStore::open(dir.path()).unwrap();
        let path = StorePath::new("point.json").unwrap();
        for looks_after in [false, true] {
            std::fs::write(&file, b"{}").unwrap();
            let watch = Watch::new(Some(DiskGuard { path: path.clone() }));
            watch.look(&store).unwrap();
            watch.linked();
            if looks_after {
                watch.check_once(&store).unwrap();
            }
            std::fs::remove_file(&file).unwrap();
            let checked = watch.check_once(&store).map_err(|e| e.kind());
            match looks_after {
                true => assert_eq!(checked, Ok(())),
                false => assert_eq!(checked, Err(ErrorKind::Changed)),
            }
        }
    }
}
