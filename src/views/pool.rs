//! Opened disks, shared: a look-up, a `stat`, an open and a read of one disk open its chain once.
//!
//! A small number of disks is kept alive; those that open files hold are shared beyond it. A disk
//! that is damaged is remembered as such for a moment, so that one `ls -l` asks once. That one could not
//! be fetched is not: the next who asks finds the storage as it then is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::image::{Disk, DiskContext, RestorePointGuard};
use crate::repo::DiskRef;
use crate::store::{StorePath, Version};
use crate::sync;

/// Disks kept open although nobody reads them: of a restore point that is looked at again and again usually all.
const KEPT: usize = 64;
/// How long damage is believed.
const FAILURE_AGE: Duration = Duration::from_secs(1);

/// The disk, and the state of the metadata that vouches for it.
type Key = (DiskRef, Option<(StorePath, Version)>);
/// Filled by the first who asks; all others wait for it, and nobody holds a lock meanwhile.
type Cell = Arc<OnceLock<(Result<Arc<Disk>>, Instant)>>;

#[derive(Default)]
struct State {
    kept: HashMap<Key, (Cell, u64)>,
    in_use: HashMap<Key, Weak<Disk>>,
    clock: u64,
}

/// The opened disks of a mount.
pub struct DiskPool {
    context: Arc<DiskContext>,
    state: Mutex<State>,
}

impl DiskPool {
    /// An empty pool.
    pub fn new(context: Arc<DiskContext>) -> Self {
        DiskPool {
            context,
            state: Mutex::default(),
        }
    }

    /// What the disks share.
    pub fn context(&self) -> &Arc<DiskContext> {
        &self.context
    }

    /// The disk at `place`, opened if it is not. `vouched` is the restore
    /// point's metadata file and its state: a point that was made again is another disk. Blocks on
    /// storage.
    ///
    /// # Errors
    /// As [`DiskContext::open`], possibly that of a try up to a second ago.
    pub fn open(
        &self,
        place: &DiskRef,
        vouched: Option<(StorePath, Version)>,
    ) -> Result<Arc<Disk>> {
        let guard = vouched
            .as_ref()
            .map(|(path, _)| RestorePointGuard { path: path.clone() });
        let key: Key = (place.clone(), vouched);
        let cell = self.cell(&key);
        let (result, _) = cell.get_or_init(|| {
            let result = self.context.open(place, guard);
            (result, Instant::now())
        });
        if let Ok(disk) = result {
            let mut state = sync::lock(&self.state);
            state.in_use.insert(key, Arc::downgrade(disk));
        }
        result.clone()
    }

    fn cell(&self, key: &Key) -> Cell {
        let mut dropped = Vec::new();
        let mut state = sync::lock(&self.state);
        state.clock += 1;
        let now = state.clock;
        if let Some((cell, used)) = state.kept.get_mut(key) {
            let failed = match cell.get() {
                Some((Err(e), at)) => e.is_fetch_failure() || at.elapsed() > FAILURE_AGE,
                _ => false,
            };
            if !failed {
                *used = now;
                return cell.clone();
            }
        }
        let cell = Cell::default();
        if let Some(disk) = state.in_use.get(key).and_then(Weak::upgrade) {
            let _ = cell.set((Ok(disk), Instant::now()));
        }
        state.in_use.retain(|_, disk| disk.strong_count() > 0);
        state.kept.insert(key.clone(), (cell.clone(), now));
        while state.kept.len() > KEPT {
            let oldest = state.kept.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            dropped.extend(state.kept.remove(&oldest));
        }
        // Closing the files of a long chain takes a while: not under the lock.
        drop(state);
        drop(dropped);
        cell
    }
}
