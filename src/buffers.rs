//! Large buffers that are used again.
//!
//! A block of 2 MiB that is allocated anew costs hundreds of page faults and is cleared for nothing,
//! and many threads that allocate and free such blocks leave the allocator's heaps full of holes:
//! several times the memory in use. A scan frees a block for each one it loads, so a few kept
//! buffers serve all of it.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::sync::lock;

use bytes::Bytes;
use memmap2::MmapMut;

/// Shorter buffers are the allocator's business.
const MIN_BYTES: usize = 128 << 10;

/// Room is allocated in such steps, so that buffers of like size fit each other's content.
const STEP_BYTES: usize = 256 << 10;

/// What comes on top of the steps: a block of a power of two has a bitmap in front.
const EXTRA_BYTES: usize = 4 << 10;

/// Most bytes kept for later.
const MAX_FREE_BYTES: usize = 16 << 20;

static FREE: Mutex<Free> = Mutex::new(Free {
    buffers: Vec::new(),
    bytes: 0,
});

struct Free {
    /// The one that was given back last stands last.
    buffers: Vec<Room>,
    bytes: usize,
}

/// Memory of its own from the system. Not the allocator's: what it gets back it may keep, scattered
/// over the heaps of all threads, and what it does give back costs the page faults anew that keeping
/// saves. Where no mapping can be had, the allocator has the last word.
#[derive(Debug)]
enum Room {
    Mapped(MmapMut),
    Heap(Vec<u8>),
}

impl Room {
    fn large(len: usize) -> Self {
        match MmapMut::map_anon(len) {
            Ok(map) => Room::Mapped(map),
            Err(_) => Room::Heap(vec![0; len]),
        }
    }
}

impl Deref for Room {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Room::Mapped(map) => map,
            Room::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Room::Mapped(map) => map,
            Room::Heap(bytes) => bytes,
        }
    }
}

/// The smallest kept buffer that `len` bytes fit into without wasting most of it.
fn take_free(len: usize) -> Option<Room> {
    let mut free = lock(&FREE);
    let at = (0..free.buffers.len())
        .filter(|&at| free.buffers[at].len() >= len && free.buffers[at].len() / 4 <= len)
        .min_by_key(|&at| free.buffers[at].len())?;
    let room = free.buffers.remove(at);
    free.bytes -= room.len();
    Some(room)
}

/// So many bytes, of unspecified content until they are written. Given back when dropped.
#[derive(Debug)]
pub struct Buffer {
    room: Room,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes that hold anything.
    pub fn new(len: usize) -> Self {
        if len < MIN_BYTES {
            let room = Room::Heap(vec![0; len]);
            return Buffer { room, len };
        }
        let room = take_free(len).unwrap_or_else(|| {
            let steps = len.saturating_sub(EXTRA_BYTES).div_ceil(STEP_BYTES);
            Room::large(steps * STEP_BYTES + EXTRA_BYTES)
        });
        Buffer { room, len }
    }

    /// The bytes as they are now, shared.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.room[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len < MIN_BYTES || self.room.len() > MAX_FREE_BYTES {
            return;
        }
        let mut surplus = Vec::new();
        let mut free = lock(&FREE);
        free.bytes += self.room.len();
        free.buffers
            .push(std::mem::replace(&mut self.room, Room::Heap(Vec::new())));
        while free.bytes > MAX_FREE_BYTES {
            let oldest = free.buffers.remove(0);
            free.bytes -= oldest.len();
            surplus.push(oldest);
        }
        // Memory is given back to the system without holding the lock.
        drop(free);
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_the_length_asked_for_whatever_they_were_before() {
        for len in [0, 1, MIN_BYTES, (2 << 20) + 512, 1 << 20, 900_000, 40 << 20] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            buffer.fill(1);
            let bytes = buffer.into_bytes();
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes.slice(len / 2..).len(), len - len / 2);
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let many: Vec<Buffer> = (0..40).map(|_| Buffer::new(2 << 20)).collect();
        drop(many);
        let free = lock(&FREE);
        assert!(free.bytes <= MAX_FREE_BYTES);
        assert_eq!(
            free.bytes,
            free.buffers.iter().map(|room| room.len()).sum::<usize>()
        );
    }
}
