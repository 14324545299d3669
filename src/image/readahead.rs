//! What a reader keeps of its sequence, and who keeps what.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::{Duration, Instant};

use crate::cache::{AheadShare, AheadTicket, Block, BlockKey};
use crate::sync;

/// A reader that has asked for nothing this long gives up what it keeps when others need room.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Stream {
    /// When the last request came.
    pub(super) used: Option<Instant>,
    /// End of the furthest request of the sequence.
    pub(super) next: u64,
    /// Bytes read in sequence so far.
    pub(super) sequence: u64,
    /// Up to where (byte offset) blocks have been planned.
    pub(super) planned: u64,
    /// The block asked for last: pieces of one block in a row are one use of it.
    pub(super) last: Option<BlockKey>,
    /// Blocks used last: requests overtake each other at block borders.
    pub(super) recent: VecDeque<Recent>,
    pub(super) ahead: VecDeque<Ahead>,
}

pub(super) struct Recent {
    pub(super) key: BlockKey,
    pub(super) block: Block,
    pub(super) _share: AheadShare,
}

pub(super) struct Ahead {
    pub(super) key: BlockKey,
    pub(super) unit_start: u64,
    pub(super) ticket: AheadTicket,
}

/// The readers that there are, so that one can have what others keep and do not use.
#[derive(Default)]
pub(in crate::image) struct Readers(Mutex<Vec<Weak<Mutex<Stream>>>>);

impl Readers {
    pub(super) fn add(&self, stream: &Arc<Mutex<Stream>>) {
        let mut all = sync::lock(&self.0);
        if all.len() == all.capacity() {
            all.retain(|stream| stream.strong_count() > 0);
        }
        all.push(Arc::downgrade(stream));
    }

    /// Takes away what readers keep that are idle.
    pub(super) fn reclaim(&self) {
        let all = sync::lock(&self.0);
        for stream in all.iter().filter_map(Weak::upgrade) {
            let mut stream = match stream.try_lock() {
                Ok(stream) => stream,
                Err(TryLockError::Poisoned(stream)) => stream.into_inner(),
                // In use, not least by who calls this.
                Err(TryLockError::WouldBlock) => continue,
            };
            if stream.used.is_some_and(|used| used.elapsed() > IDLE) {
                stream.recent.clear();
                stream.ahead.clear();
                stream.planned = 0;
            }
        }
    }
}
