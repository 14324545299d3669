//! Open guest file systems: opened when first needed, dropped when idle, replaced after a panic.
//!
//! An open file system costs up to some MiB (its metadata cache, group descriptors, a replayed journal). The pool keeps a
//! bounded number, and fewer while their caches are full; the ones not used for longest go first. What users of a dropped
//! one still hold (an open file) stays valid.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::device::cached_bytes;
use super::guard::{Budget, Outcome, guarded};
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::{GuestFs, GuestInode};
use crate::io::{Extent, ReadAt};
use crate::sync::lock;

/// File systems that a pool keeps open: of a restore point that is walked again and again usually all.
const DEFAULT_CAPACITY: usize = 64;
/// What the metadata caches of open file systems may take together. Beyond it, others are closed.
const CACHE_BYTES: u64 = 128 << 20;
/// A file system not used for so long is dropped when another one is opened.
const IDLE: Duration = Duration::from_secs(300);

/// Bounds how many guest file systems are open.
pub struct Pool {
    capacity: usize,
    start: Instant,
    open: Mutex<Vec<Weak<Pooled>>>,
}

impl Default for Pool {
    fn default() -> Self {
        Pool::new(DEFAULT_CAPACITY)
    }
}

impl Pool {
    /// A pool that keeps at most `capacity` file systems open (and at least one).
    pub fn new(capacity: usize) -> Self {
        Pool {
            capacity: capacity.max(1),
            start: Instant::now(),
            open: Mutex::new(Vec::new()),
        }
    }

    /// Drops file systems that nobody used for `idle`.
    pub fn drop_idle(&self, idle: Duration) {
        let before = self.now().saturating_sub(idle.as_millis() as u64);
        let mut stale = Vec::new();
        lock(&self.open).retain(|entry| match entry.upgrade() {
            Some(pooled) if pooled.last_used.load(Ordering::Relaxed) >= before => true,
            Some(pooled) => {
                stale.push(pooled);
                false
            }
            None => false,
        });
        for pooled in stale {
            pooled.close();
        }
    }

    /// How many file systems are open.
    pub fn open_count(&self) -> usize {
        lock(&self.open)
            .iter()
            .filter(|e| e.strong_count() > 0)
            .count()
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn enter(&self, pooled: &Arc<Pooled>) {
        self.drop_idle(IDLE);
        let is_full = {
            let mut open = lock(&self.open);
            open.push(Arc::downgrade(pooled));
            open.len() > self.capacity
        };
        if is_full {
            self.close_oldest(pooled);
        }
    }

    /// Closes the file system that was not used for longest, `pooled` excepted.
    fn close_oldest(&self, pooled: &Arc<Pooled>) {
        let oldest = {
            let mut open = lock(&self.open);
            let age = |entry: &Weak<Pooled>| match entry.upgrade() {
                Some(other) if Arc::ptr_eq(&other, pooled) => None,
                Some(other) => Some(other.last_used.load(Ordering::Relaxed)),
                None => Some(0),
            };
            let ages = open.iter().enumerate();
            let ages = ages.filter_map(|(index, entry)| Some((age(entry)?, index)));
            let oldest = ages.min();
            oldest.and_then(|(_, index)| open.swap_remove(index).upgrade())
        };
        // Outside the lock: dropping a file system frees a lot.
        if let Some(oldest) = oldest {
            oldest.close();
        }
    }
}

/// Makes the file system of one volume; may be called again and again.
pub type OpenFs = Box<dyn Fn() -> Result<Arc<dyn GuestFs>> + Send + Sync>;

enum State {
    Closed,
    Open(Arc<dyn GuestFs>),
    /// Opening failed for a reason that will not pass.
    Failed(Error),
}

/// One volume's file system, open or not.
pub struct Pooled {
    pool: Arc<Pool>,
    make: OpenFs,
    state: Mutex<State>,
    /// Held while opening, so that the readers who come together open it once.
    opening: Mutex<()>,
    last_used: AtomicU64,
}

impl Pooled {
    /// A file system that `make` opens when it is needed.
    pub fn new(pool: Arc<Pool>, make: OpenFs) -> Arc<Self> {
        Arc::new(Pooled {
            pool,
            make,
            state: Mutex::new(State::Closed),
            opening: Mutex::new(()),
            last_used: AtomicU64::new(0),
        })
    }

    /// Calls `work` with the file system, opening it if need be. Everything in `work` is behind the
    /// boundary of [`super::guard`].
    ///
    /// # Errors
    /// What opening or `work` gave; `Corrupt` when either panicked.
    pub fn with<T>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<dyn GuestFs>) -> Result<T>,
    ) -> Result<T> {
        let fs = self.get()?;
        self.guarded_on(&fs, || work(&fs))
    }

    /// Wraps a file that the file system gave, so that its reads are guarded, too.
    ///
    /// # Errors
    /// As [`Pooled::with`].
    pub fn open_file(self: &Arc<Self>, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let fs = self.get()?;
        let inner = self.guarded_on(&fs, || fs.open(inode))?;
        Ok(Arc::new(PooledFile {
            owner: self.clone(),
            fs,
            inner,
        }))
    }

    fn guarded_on<T>(&self, fs: &Arc<dyn GuestFs>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match guarded(Budget::CALL, work) {
            Outcome::Done(result) => result,
            Outcome::Panicked(error) => {
                self.discard(fs);
                Err(error)
            }
        }
    }

    fn get(self: &Arc<Self>) -> Result<Arc<dyn GuestFs>> {
        self.last_used.store(self.pool.now(), Ordering::Relaxed);
        if cached_bytes() > CACHE_BYTES {
            self.pool.close_oldest(self);
        }
        if let Some(known) = self.known() {
            return known;
        }
        let _one = lock(&self.opening);
        if let Some(known) = self.known() {
            return known;
        }
        let made = match guarded(Budget::OPEN, || (self.make)()) {
            Outcome::Done(made) => made,
            Outcome::Panicked(error) => Err(error),
        };
        match made {
            Ok(fs) => {
                *lock(&self.state) = State::Open(fs.clone());
                self.pool.enter(self);
                Ok(fs)
            }
            Err(error) => {
                if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) {
                    *lock(&self.state) = State::Failed(error.clone());
                }
                Err(error)
            }
        }
    }

    fn known(&self) -> Option<Result<Arc<dyn GuestFs>>> {
        match &*lock(&self.state) {
            State::Closed => None,
            State::Open(fs) => Some(Ok(fs.clone())),
            State::Failed(error) => Some(Err(error.clone())),
        }
    }

    fn close(&self) {
        let closed = {
            let mut state = lock(&self.state);
            match &*state {
                State::Open(_) => std::mem::replace(&mut *state, State::Closed),
                _ => State::Closed,
            }
        };
        drop(closed);
    }

    /// Forgets an instance whose state cannot be trusted any more; the next user opens a fresh one.
    fn discard(&self, broken: &Arc<dyn GuestFs>) {
        let mut state = lock(&self.state);
        if matches!(&*state, State::Open(fs) if Arc::ptr_eq(fs, broken)) {
            *state = State::Closed;
        }
    }
}

struct PooledFile {
    owner: Arc<Pooled>,
    fs: Arc<dyn GuestFs>,
    inner: Arc<dyn ReadAt>,
}

impl ReadAt for PooledFile {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.owner
            .guarded_on(&self.fs, || self.inner.read_exact_at(buf, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.owner
            .guarded_on(&self.fs, || self.inner.extent_at(offset))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{OsStr, OsString};
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::guestfs::{Batch, GuestAttr};

    struct Fake;
    impl GuestFs for Fake {
        fn root(&self) -> GuestInode {
            1
        }
        fn attr(&self, _: GuestInode) -> Result<GuestAttr> {
            panic!("damaged")
        }
        fn lookup(&self, _: GuestInode, _: &OsStr) -> Result<Option<GuestInode>> {
            Ok(None)
        }
        fn list(&self, _: GuestInode, _: u64) -> Result<Batch> {
            Ok(Batch::default())
        }
        fn read_link(&self, _: GuestInode) -> Result<OsString> {
            Err(Error::corrupt("none"))
        }
        fn open(&self, _: GuestInode) -> Result<Arc<dyn ReadAt>> {
            Ok(Arc::new(vec![1u8; 10]))
        }
    }

    fn counted(pool: &Arc<Pool>) -> (Arc<Pooled>, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let make: OpenFs = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::new(Fake))
        });
        (Pooled::new(pool.clone(), make), opened)
    }

    #[test]
    fn a_panic_becomes_an_error_and_the_next_call_gets_a_fresh_instance() {
        let pool = Arc::new(Pool::default());
        let (pooled, opened) = counted(&pool);
        let file = pooled.open_file(3).unwrap();
        let error = pooled.with(|fs| fs.attr(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(pooled.with(|fs| fs.lookup(1, "x".as_ref())).unwrap(), None);
        assert_eq!(opened.load(Ordering::Relaxed), 2);
        let mut byte = [0];
        file.read_exact_at(&mut byte, 9).unwrap();
        assert_eq!(byte, [1]);
    }

    #[test]
    fn the_pool_keeps_a_bounded_number_open() {
        let pool = Arc::new(Pool::new(2));
        let all: Vec<_> = (0..5).map(|_| counted(&pool)).collect();
        for (pooled, _) in &all {
            pooled.with(|fs| Ok(fs.root())).unwrap();
        }
        assert_eq!(pool.open_count(), 2);
        let (last, opened) = &all[4];
        last.with(|fs| Ok(fs.root())).unwrap();
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        pool.drop_idle(Duration::ZERO);
    }

    #[test]
    fn failures_that_will_not_pass_are_remembered() {
        let pool = Arc::new(Pool::default());
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let pooled = Pooled::new(
            pool,
            Box::new(move || {
                counter.fetch_add(1, Ordering::Relaxed);
                Err(Error::corrupt("no"))
            }),
        );
        assert!(pooled.with(|fs| Ok(fs.root())).is_err());
        assert!(pooled.with(|fs| Ok(fs.root())).is_err());
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
