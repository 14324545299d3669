//! Whether the restore point of a chain is still there (see [`RestorePointGuard`]).

mod timestamps;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use self::timestamps::Timestamps;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Meta, Store, StorePath};
use crate::sync;

/// How many copies of blocks are remembered: those that some readers are at.
const MAX_COPIES: usize = 16;

/// The restore point's metadata file that guards a disk. XO removes it before it merges
/// anything into the disk's youngest image, so as long as it is there, that image still holds what
/// the restore point promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePointGuard {
    /// The `<date>.json`.
    pub path: StorePath,
}

/// Checks for one chain that the restore point's metadata file exists, and remembers what that covers.
pub(in crate::image) struct Guard {
    guard: Option<RestorePointGuard>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    timestamps: Timestamps,
    /// When a check began that found the file, and its state.
    seen: Option<(Instant, Meta)>,
    /// When all images of the chain were open.
    linked: Option<Instant>,
    /// The copies of blocks that were checked last, and the states they are of.
    copies: VecDeque<(u64, Meta)>,
}

impl Guard {
    /// Nothing is checked yet; without a file, nothing needs to be.
    pub(in crate::image) fn new(guard: Option<RestorePointGuard>) -> Self {
        Guard {
            guard,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }

    /// The file that is checked.
    pub(in crate::image) fn path(&self) -> Option<&StorePath> {
        self.guard.as_ref().map(|guard| &guard.path)
    }

    /// Notes a time of modification that the storage has told, and when it told it.
    pub(in crate::image) fn note_modified(&self, modified: SystemTime, at: Instant) {
        let today = SystemTime::now();
        self.state().timestamps.note(modified, at, today);
    }

    /// Notes that all images of the chain are open now.
    pub(in crate::image) fn note_linked(&self) {
        self.state().linked = Some(Instant::now());
    }

    /// The state of the file as it is now; `None` when there is none to check.
    ///
    /// # Errors
    /// `NotFound` when it is gone; otherwise as the storage says.
    pub(in crate::image) fn check_state(&self, store: &dyn Store) -> Result<Option<Meta>> {
        let Some(guard) = &self.guard else {
            return Ok(None);
        };
        let begun = Instant::now();
        let claim = self.state().timestamps.claim(begun, SystemTime::now());
        // XO writes the file again when a merge has changed the backup's size: being there is what
        // counts.
        let meta = store.head(&guard.path)?;
        let mut state = self.state();
        state.timestamps.seen(claim);
        if state.seen.is_none_or(|(last, _)| last <= begun) {
            state.seen = Some((begun, meta));
        }
        Ok(Some(meta))
    }

    /// What a check found that began no longer ago than this.
    pub(in crate::image) fn seen_within(&self, age: Duration) -> Option<Meta> {
        let seen = self.state().seen;
        seen.filter(|(begun, _)| begun.elapsed() <= age)
            .map(|(_, meta)| meta)
    }

    /// Fails when the file is gone: XO may then be merging another point into the youngest image.
    ///
    /// # Errors
    /// `Changed` then; otherwise as the storage says.
    pub(in crate::image) fn check(&self, store: &dyn Store) -> Result<()> {
        match self.check_state(store) {
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
    /// were when they were opened, one check after that is enough. (One that was taken meanwhile is not:
    /// the file may have been opened after it.)
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(in crate::image) fn check_once(&self, store: &dyn Store) -> Result<()> {
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

    /// [`Self::check`], unless an earlier check covers what was modified at this time.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(in crate::image) fn check_modified(
        &self,
        store: &dyn Store,
        modified: Option<SystemTime>,
    ) -> Result<()> {
        // On file systems blocks keep their times when a merge moves them, and a check costs little.
        if self.guard.is_none() || !store.traits().remote {
            return self.check(store);
        }
        {
            let mut state = self.state();
            if state.timestamps.covers(modified) {
                return Ok(());
            }
            if let Some(modified) = modified {
                let (now, today) = (Instant::now(), SystemTime::now());
                state.timestamps.note(modified, now, today);
            }
        }
        self.check(store)
    }

    /// [`Self::check_modified`] of a block that is read from a copy, in many parts: the copy was made before
    /// it was opened, so one check after that is enough.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(in crate::image) fn check_copy(
        &self,
        store: &dyn Store,
        block: u64,
        copy: Meta,
    ) -> Result<()> {
        if self.state().copies.contains(&(block, copy)) {
            return Ok(());
        }
        self.check_modified(store, copy.modified)?;
        let mut state = self.state();
        if state.copies.len() >= MAX_COPIES {
            state.copies.pop_front();
        }
        state.copies.push_back((block, copy));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    #[test]
    fn a_check_before_all_images_were_open_does_not_cover_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("point.json");
        let store = LocalStore::open(dir.path()).unwrap();
        let path = StorePath::new("point.json").unwrap();
        for checks_after in [false, true] {
            std::fs::write(&file, b"{}").unwrap();
            let guard = Guard::new(Some(RestorePointGuard { path: path.clone() }));
            guard.check_state(&store).unwrap();
            guard.note_linked();
            if checks_after {
                guard.check_once(&store).unwrap();
            }
            std::fs::remove_file(&file).unwrap();
            let checked = guard.check_once(&store).map_err(|e| e.kind());
            match checks_after {
                true => assert_eq!(checked, Ok(())),
                false => assert_eq!(checked, Err(ErrorKind::Changed)),
            }
        }
    }
}
