//! What was asked for while a repository was opened, for those who ask the same just after.
//!
//! Opening a repository on remote storage lists its root and looks at two small files there; the
//! commands then list the root again and the VMs next. All that is independent of each other, so it
//! is asked for at once and given out of memory: each answer once, and only for a moment, so that
//! nobody who asks again is told the same again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Entry, Meta, Store, StoreLayer, StorePath, Validity};
use crate::error::Result;
use crate::parallel::parallel_map;

/// How old an answer may be that is given.
const MAX_AGE: Duration = Duration::from_secs(3);

/// The decorator.
pub(super) struct PrimedStore {
    inner: Arc<dyn Store>,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    listings: HashMap<StorePath, (Instant, Vec<Entry>)>,
    files: HashMap<StorePath, (Instant, (Bytes, Meta))>,
}

impl PrimedStore {
    pub(super) fn new(inner: Arc<dyn Store>) -> Self {
        PrimedStore {
            inner,
            answers: Mutex::default(),
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists both directories at once. The first one's listing is given here and, once, to whoever
    /// lists it next; so is the other one's, if there is one.
    ///
    /// # Errors
    /// What kept the first from being listed.
    pub(super) fn list_both(&self, first: &StorePath, other: &StorePath) -> Result<Vec<Entry>> {
        let at = Instant::now();
        let listings = parallel_map(&[first, other], 2, |dir| self.inner.list(dir));
        let mut answers = self.answers();
        let mut given = None;
        for (dir, listing) in [first, other].into_iter().zip(listings) {
            if let Ok(entries) = &listing {
                let kept = (at, entries.clone());
                answers.listings.insert(dir.clone(), kept);
            }
            given.get_or_insert(listing);
        }
        drop(answers);
        given.unwrap_or_else(|| self.inner.list(first))
    }

    /// Reads these files at once, as [`Validity::Listed`] does; each is given to whoever reads it
    /// next. What fails is told then.
    pub(super) fn read_all(&self, files: &[(&StorePath, Option<Meta>)], max_len: u64) {
        let at = Instant::now();
        let read = parallel_map(files, files.len(), |(path, listed)| {
            (self.inner)
                .read(path, max_len, Validity::Listed(listed.as_ref()))
                .ok()
        });
        let mut answers = self.answers();
        for ((path, _), read) in files.iter().zip(read) {
            if let Some(read) = read {
                answers.files.insert((*path).clone(), (at, read));
            }
        }
    }
}

/// The answer, if it is not too old.
fn fresh<T>((at, answer): (Instant, T)) -> Option<T> {
    (at.elapsed() < MAX_AGE).then_some(answer)
}

impl fmt::Debug for PrimedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl StoreLayer for PrimedStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        let known = self.answers().listings.remove(dir);
        match known.and_then(fresh) {
            Some(entries) => Ok(entries),
            None => self.inner.list(dir),
        }
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        let known = match validity {
            Validity::Listed(_) => self.answers().files.remove(path),
            _ => None,
        };
        match known.and_then(fresh) {
            Some((content, meta)) if content.len() as u64 <= max_len => Ok((content, meta)),
            _ => self.inner.read(path, max_len, validity),
        }
    }
}
