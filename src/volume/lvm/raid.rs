//! RAID logical volumes: which of their images are current, and the bytes of those of more than copies.
//!
//! Each image has a small record volume (`…_rmeta_N`) whose first sector is a superblock of the
//! kernel's dm-raid target (`struct dm_raid_superblock` in `drivers/md/dm-raid.c`): a counter of
//! events, the devices known to have failed, and how far a rebuilt device got. Behind it is md's bitmap of
//! what was being written (`struct bitmap_super_s` in `drivers/md/md-bitmap.h`).

use std::sync::Arc;

use super::super::bits::{has, le32, le64};
use super::super::md::grid::{Grid, Parity};
use super::super::md::pattern::Pattern;
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;

/// The kernel's dm-raid has no more.
const MAX_IMAGES: usize = 253;
/// The superblock knows of reshapes.
const FEATURE_RESHAPES: u32 = 1;
const RESHAPE_ACTIVE: u32 = 1;
/// Where the bitmap is in a record.
const BITMAP_AT: u64 = 4096;
const BITMAP_HEADER: u64 = 256;

/// One image's superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The image's number.
    pub position: u32,
    /// Changes of state seen.
    pub events: u64,
    /// A bit for each failed image.
    pub failed: u64,
    /// Sectors rebuilt so far; all ones when the image is whole.
    pub recovered_sectors: u64,
    /// Sectors of the whole that have been in sync since it was made; all ones when all are.
    pub synced_sectors: u64,
    /// The level and the layout as md numbers them.
    pub shape: (u32, u32),
    /// Sectors taken from an image in turn.
    pub stripe_sectors: u32,
    /// Sectors before the data.
    pub data_offset: u64,
    /// Whether it is being changed into another shape.
    pub is_reshaping: bool,
}

/// Reads the superblock, `None` when the record was never written.
///
/// # Errors
/// When the record cannot be read.
pub fn read_superblock(record: &dyn ReadAt) -> Result<Option<Superblock>> {
    let mut sector = [0; 512];
    record.read_exact_at(&mut sector, 0)?;
    if !has(&sector, 0, &0x6452_6D44u32.to_le_bytes()) {
        return Ok(None);
    }
    let reshapes = le32(&sector, 4) & FEATURE_RESHAPES != 0;
    Ok(Some(Superblock {
        position: le32(&sector, 12),
        events: le64(&sector, 16),
        failed: le64(&sector, 24),
        recovered_sectors: le64(&sector, 32),
        synced_sectors: le64(&sector, 40),
        shape: (le32(&sector, 48), le32(&sector, 52)),
        stripe_sectors: le32(&sector, 56),
        data_offset: if reshapes { le64(&sector, 96) } else { 0 },
        is_reshaping: reshapes
            && (le32(&sector, 60) & RESHAPE_ACTIVE != 0
                || le64(&sector, 64) != u64::MAX
                || le32(&sector, 84) != 0),
    }))
}

fn freshest(copies: &[(bool, Option<Superblock>)]) -> Option<Superblock> {
    let records = copies.iter().filter_map(|(_, record)| *record);
    records.max_by_key(|record| record.events)
}

/// Whether each image is there and current. `copies` holds, for each, whether it can be read, and its
/// superblock when that could be read.
pub fn current(copies: &[(bool, Option<Superblock>)]) -> Vec<bool> {
    let Some(freshest) = freshest(copies) else {
        // Never active since it was made: nothing tells the images apart.
        return copies.iter().map(|(readable, _)| *readable).collect();
    };
    copies
        .iter()
        .enumerate()
        .map(|(index, (readable, record))| {
            let failed = index < 64 && freshest.failed & (1 << index) != 0;
            *readable
                && !failed
                && record.is_some_and(|record| {
                    // The kernel takes an image that is one event behind as current, too.
                    record.recovered_sectors == u64::MAX
                        && record.events.saturating_add(1) >= freshest.events
                })
        })
        .collect()
}

/// Whether data does not begin where images do, or is on its way to somewhere else.
pub fn has_moved(copies: &[(bool, Option<Superblock>)]) -> bool {
    let mut records = copies.iter().filter_map(|(_, record)| *record);
    records.any(|record| record.is_reshaping || record.data_offset != 0)
}

/// What is said about an image that is not there or not current.
pub fn done_without(index: usize, image: &Image) -> String {
    match image.is_complete {
        true => format!("image {index} is not current; it is done without"),
        // Nothing on the others would tell.
        false => format!(
            "image {index} is not there; it is done without. Should the volume have gone on with it and without \
             one of the others, what is shown is old"
        ),
    }
}

/// An image with its record.
pub struct Image {
    /// Its bytes.
    pub volume: Arc<dyn ReadAt>,
    /// Whether all of them are there.
    pub is_complete: bool,
    /// The record volume, when it can be read.
    pub record: Option<Arc<dyn ReadAt>>,
}

impl Image {
    /// Whether it can be read, and its superblock when it has one. Of an image whose record cannot be read nothing
    /// tells whether it is current: that is not the same as a record that was never written.
    pub fn state(&self) -> (bool, Option<Superblock>) {
        match self
            .record
            .as_ref()
            .map(|record| read_superblock(&**record))
        {
            Some(Ok(record)) => (self.is_complete, record),
            Some(Err(_)) | None => (false, None),
        }
    }
}

/// A volume with parity, or RAID 10, from what is current of its images; and a sentence on each that is not.
///
/// # Errors
/// `Unsupported` while it changes its shape; `Corrupt` when too little is left of it, or records and volume
/// group do not agree.
pub fn grid(
    images: &[Image],
    level: i32,
    layout: u32,
    stripe_bytes: u64,
) -> Result<(Grid, Vec<String>)> {
    let count = images.len();
    if count > MAX_IMAGES {
        return Err(Error::corrupt("a RAID volume of too many images"));
    }
    let pattern = Pattern::of(level, layout, count as u64)?;
    let mut states = Vec::with_capacity(count);
    for (image, index) in images.iter().zip(0u32..) {
        let state = image.state();
        states.push(state);
        let Some(block) = state.1 else { continue };
        if block.is_reshaping {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a RAID volume in the middle of a reshape is not read",
            ));
        }
        let shape = (level as u32, layout);
        let sectors = u64::from(block.stripe_sectors);
        if block.position != index || block.shape != shape || sectors * 512 != stripe_bytes {
            return Err(Error::corrupt(
                "the records of a RAID volume do not agree with its volume group",
            ));
        }
    }
    let current = current(&states);
    let freshest = freshest(&states);
    let data_offset = freshest.map_or(0, |block| block.data_offset);
    let data_start = data_offset
        .checked_mul(512)
        .ok_or_else(|| Error::corrupt("a RAID volume begins near 2^64"))?;
    let mut notes = Vec::new();
    let mut places = Vec::with_capacity(count);
    let mut used_bytes = u64::MAX;
    let mut parity = Parity::Fits;
    for (index, image) in images.iter().enumerate() {
        if current[index] {
            used_bytes = used_bytes.min(image.volume.len_bytes().saturating_sub(data_start));
            places.push(Some((image.volume.clone(), data_start)));
            continue;
        }
        notes.push(done_without(index, image));
        places.push(None);
        // The machine itself went on without this image: what others add up to is what it saw.
        let was_done_without = freshest.is_some_and(|block| {
            index < 64 && block.failed & (1 << index) != 0
                || states[index]
                    .1
                    .is_some_and(|own| own.recovered_sectors != u64::MAX)
        });
        if !was_done_without && matches!(parity, Parity::Fits) {
            parity = fits_where(images, &states, &current);
        }
    }
    if freshest.is_some_and(|block| block.synced_sectors != u64::MAX) {
        parity = Parity::Unknown;
    }
    let grid = Grid::new(places, pattern, stripe_bytes, used_bytes, parity)?;
    Ok((grid, notes))
}

/// Where the volume was being written, parity may not fit: as the bitmap of an image that is current tells.
fn fits_where(images: &[Image], states: &[(bool, Option<Superblock>)], current: &[bool]) -> Parity {
    let events = freshest(states).map_or(0, |block| block.events);
    let is_fresh = |state: &(bool, Option<Superblock>)| state.1.is_some_and(|b| b.events == events);
    let record = (0..images.len())
        .filter(|&index| current[index] && is_fresh(&states[index]))
        .find_map(|index| images[index].record.as_ref());
    let Some(record) = record.cloned() else {
        return Parity::Unknown;
    };
    let Ok(Some((region_bytes, regions))) = read_bitmap(&*record, events) else {
        return Parity::Unknown;
    };
    Parity::FitsWhere(Box::new(move |at, len| {
        let first = at / region_bytes;
        let last = at.saturating_add(len.saturating_sub(1)) / region_bytes;
        if last >= regions {
            return false;
        }
        let from = first / 8;
        let mut bits = vec![0u8; (last / 8 - from + 1) as usize];
        let read = record.read_exact_at(&mut bits, BITMAP_AT + BITMAP_HEADER + from);
        read.is_ok()
            && (first..=last).all(|region| {
                let byte = bits[(region / 8 - from) as usize];
                byte & (1 << (region % 8)) == 0
            })
    }))
}

/// The bytes of a region and their number; behind the header follows a bit for each, set while it is being
/// written. `None` when there is no bitmap, or one that was left behind: the kernel writes it before the
/// superblock, and does not believe one that is older.
fn read_bitmap(record: &dyn ReadAt, events: u64) -> Result<Option<(u64, u64)>> {
    let mut head = [0; BITMAP_HEADER as usize];
    record.read_exact_at(&mut head, BITMAP_AT)?;
    let (sync_sectors, region_bytes) = (le64(&head, 40), u64::from(le32(&head, 52)));
    let is_known = has(&head, 0, b"bitm") && (3..=5).contains(&le32(&head, 4));
    // The bits 1 and 2: given up, and could not be written.
    let is_stale = le32(&head, 48) & 0b110 != 0 || le64(&head, 24) < events;
    if !is_known || is_stale || region_bytes < 512 {
        return Ok(None);
    }
    let regions = sync_sectors.div_ceil(region_bytes / 512);
    Ok(Some((region_bytes, regions)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(copies: &[(bool, Option<Superblock>)]) -> Option<usize> {
        current(copies).iter().position(|current| *current)
    }

    fn record(position: u32, events: u64, failed: u64, recovered: u64) -> Option<Superblock> {
        Some(Superblock {
            position,
            events,
            failed,
            recovered_sectors: recovered,
            synced_sectors: u64::MAX,
            shape: (1, 0),
            stripe_sectors: 0,
            data_offset: 0,
            is_reshaping: false,
        })
    }

    #[test]
    fn stale_failed_and_half_rebuilt_copies_are_not_read() {
        let whole = u64::MAX;
        let fresh = record(1, 9, 0, whole);
        assert_eq!(
            choose(&[(true, record(0, 9, 0, whole)), (true, fresh)]),
            Some(0)
        );
        assert_eq!(
            choose(&[(false, record(0, 9, 0, whole)), (true, fresh)]),
            Some(1)
        );
        assert_eq!(
            choose(&[(true, record(0, 3, 0, whole)), (true, fresh)]),
            Some(1)
        );
        assert_eq!(
            choose(&[(true, record(0, 9, 0, 100)), (true, fresh)]),
            Some(1)
        );
        let says_failed = record(1, 9, 1, whole);
        assert_eq!(
            choose(&[(true, record(0, 8, 0, whole)), (true, says_failed)]),
            Some(1)
        );
        assert_eq!(
            choose(&[(true, record(0, 3, 0, whole)), (false, fresh)]),
            None
        );
        assert_eq!(choose(&[(true, None), (true, None)]), Some(0));
    }

    /// Taken for one that was never written, it would make its image as good as any.
    #[test]
    fn an_image_whose_record_cannot_be_read_is_not_taken_for_current() {
        let image = |record: Option<Vec<u8>>| Image {
            volume: Arc::new(vec![0; 512]),
            is_complete: true,
            record: record.map(|record| Arc::new(record) as Arc<dyn ReadAt>),
        };
        let never_written = image(Some(vec![0; 4096])).state();
        assert_eq!(never_written, (true, None));
        for unread in [image(None), image(Some(Vec::new()))] {
            assert_eq!(choose(&[unread.state(), unread.state()]), None);
            assert_eq!(choose(&[unread.state(), never_written]), Some(1));
        }
    }
}
