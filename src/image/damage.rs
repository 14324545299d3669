//! What reads have found to be damaged, so that it is told wherever the image is shown.
//!
//! A block is remembered with the reason when reading it fails for one that does not pass by itself,
//! and forgotten when it can be read again: somebody has put a good copy in its place.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::format::image::Image;
use super::uuid::Uuid;
use crate::error::{Error, ErrorKind};
use crate::store::StorePath;
use crate::sync;

/// Most images, and most blocks of each, that are remembered: a directory that lost all its blocks
/// is told as well by a few of them.
const MAX_IMAGES: usize = 256;
const MAX_BLOCKS: usize = 64;
/// Most disks that are remembered to have met one damaged block.
const MAX_DISKS: usize = 32;

/// The damaged blocks of all images.
#[derive(Default)]
pub(in crate::image) struct KnownDamage {
    /// Whether anything is known: sound blocks, which are nearly all, take no lock.
    any: AtomicBool,
    images: Mutex<HashMap<Key, BTreeMap<u64, DamagedBlock>>>,
}

/// A merge gives its target another uuid: what was known of its blocks is then of no use.
type Key = (StorePath, Uuid);

struct DamagedBlock {
    reason: String,
    /// Uuids of the youngest images of the disks whose reads met it.
    met_by: Vec<Uuid>,
}

/// Whether trying again later may help without anybody repairing anything. What changed or was
/// removed is not damaged either.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Transient | ErrorKind::Changed | ErrorKind::Invalid
    )
}

impl KnownDamage {
    fn images(&self) -> MutexGuard<'_, HashMap<Key, BTreeMap<u64, DamagedBlock>>> {
        sync::lock(&self.images)
    }

    /// Notes how reading a block of `image` went, for the disk whose youngest image is `top`.
    pub(in crate::image) fn note<T>(
        &self,
        image: &Image,
        block: u64,
        top: Uuid,
        read: &Result<T, Error>,
    ) {
        let error = match read {
            Ok(_) if !self.any.load(Ordering::Relaxed) => return,
            Ok(_) => None,
            Err(e) if may_pass(e.kind()) => return,
            Err(e) => Some(e),
        };
        let key = (image.data_path.clone(), image.uuid());
        let mut images = self.images();
        match error {
            None => {
                if let Some(blocks) = images.get_mut(&key) {
                    blocks.remove(&block);
                    images.retain(|_, blocks| !blocks.is_empty());
                }
            }
            Some(e) => {
                if images.len() >= MAX_IMAGES && !images.contains_key(&key) {
                    return;
                }
                let blocks = images.entry(key).or_default();
                if blocks.len() >= MAX_BLOCKS && !blocks.contains_key(&block) {
                    return;
                }
                let damaged = blocks.entry(block).or_insert_with(|| DamagedBlock {
                    reason: reason(e),
                    met_by: Vec::new(),
                });
                if !damaged.met_by.contains(&top) && damaged.met_by.len() < MAX_DISKS {
                    damaged.met_by.push(top);
                }
            }
        }
        self.any.store(!images.is_empty(), Ordering::Relaxed);
    }

    /// What is known of an image as part of the disk whose youngest image is `top`, in one sentence:
    /// the blocks that this disk has met, and those of which `is_needed` is true.
    pub(in crate::image) fn of_image(
        &self,
        image: &Image,
        top: Uuid,
        is_needed: impl Fn(u64) -> bool,
    ) -> Option<String> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let known: Vec<(u64, bool, String)> = {
            let images = self.images();
            let blocks = images.get(&(image.data_path.clone(), image.uuid()))?;
            let blocks = blocks.iter();
            blocks
                .map(|(&n, found)| (n, found.met_by.contains(&top), found.reason.clone()))
                .collect()
        };
        // May read tables: not under the lock.
        let mut known = known.into_iter().filter(|&(n, met, _)| met || is_needed(n));
        let (first, _, reason) = known.next()?;
        let rest: Vec<u64> = known.map(|(n, ..)| n).collect();
        let numbers: Vec<u64> = std::iter::once(first).chain(rest).collect();
        let which = name_blocks(&numbers);
        Some(match numbers.len() {
            1 => format!("{which} cannot be read: {reason}"),
            _ => format!("{which} cannot be read; block {first}: {reason}"),
        })
    }
}

/// The sentence without the image's path, which stands in front of it anyway.
fn reason(e: &Error) -> String {
    match e.kind() {
        ErrorKind::NotFound => "it is missing".to_owned(),
        _ => e.message().to_owned(),
    }
}

/// Block numbers for people: all of a few, the first of many.
pub(in crate::image) fn name_blocks(numbers: &[u64]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = numbers.iter().take(SHOWN).map(u64::to_string).collect();
    let shown = shown.join(", ");
    match numbers.len() {
        1 => format!("block {shown}"),
        count if count > SHOWN => format!("{count} blocks ({shown}, …)"),
        _ => format!("blocks {shown}"),
    }
}
