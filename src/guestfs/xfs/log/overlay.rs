//! A volume under the sectors that its log holds newer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range};

/// What the map is kept in. Larger sectors hold several.
pub(super) const SECTOR_BYTES: u64 = 512;

/// A volume, and sectors that count in place of its own.
pub(super) struct Overlay {
    base: Arc<dyn ReadAt>,
    sectors: BTreeMap<u64, Box<[u8; SECTOR_BYTES as usize]>>,
    /// How many sectors may be held.
    limit: u64,
    /// Bytes that read as zeros, but for sectors that are held.
    blank: Range<u64>,
}

impl Overlay {
    /// Nothing over `base` yet; room for `limit` sectors.
    pub fn new(base: Arc<dyn ReadAt>, limit: u64) -> Self {
        Overlay {
            base,
            sectors: BTreeMap::new(),
            limit,
            blank: 0..0,
        }
    }

    /// The same sectors over another view of the same volume.
    pub fn over(self, base: Arc<dyn ReadAt>) -> Self {
        Overlay { base, ..self }
    }

    /// Lets a range of bytes read as zeros, and forgets what was held there.
    pub fn blank(&mut self, range: Range<u64>) {
        self.sectors
            .retain(|&at, _| !range.contains(&(at * SECTOR_BYTES)));
        self.blank = range;
    }

    /// Puts `bytes` in place of what is at `offset`.
    ///
    /// # Errors
    /// `Corrupt` outside of the volume, `Unsupported` when that is more than may be held, and whatever kept
    /// the rest of a sector from being read.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        check_range(offset, bytes.len() as u64, self.base.len_bytes()).map_err(|_| {
            Error::corrupt("the log of XFS writes past the end of the volume").at(offset)
        })?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % SECTOR_BYTES) as usize;
            let take = (SECTOR_BYTES as usize - within).min(bytes.len() - done);
            let sector = self.sector(at / SECTOR_BYTES)?;
            sector[within..within + take].copy_from_slice(&bytes[done..done + take]);
            done += take;
        }
        Ok(())
    }

    fn sector(&mut self, number: u64) -> Result<&mut [u8; SECTOR_BYTES as usize]> {
        if !self.sectors.contains_key(&number) {
            if self.sectors.len() as u64 >= self.limit {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the log of XFS changes more than can be held in memory",
                ));
            }
            let mut sector = Box::new([0; SECTOR_BYTES as usize]);
            // The last sector of a volume that ends within one.
            let start = number * SECTOR_BYTES;
            let len = SECTOR_BYTES.min(self.base.len_bytes() - start) as usize;
            self.base.read_exact_at(&mut sector[..len], start)?;
            self.sectors.insert(number, sector);
        }
        self.sectors
            .get_mut(&number)
            .map(Box::as_mut)
            .ok_or_else(|| Error::corrupt("a sector of the log of XFS is lost"))
    }
}

impl ReadAt for Overlay {
    fn len_bytes(&self) -> u64 {
        self.base.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.base.read_exact_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        // The part of `from..to` that was asked for, as places in the buffer.
        let asked = |from: u64, to: u64| {
            let (from, to) = (from.max(offset), to.min(end));
            (from < to).then(|| (from - offset) as usize..(to - offset) as usize)
        };
        if let Some(blank) = asked(self.blank.start, self.blank.end) {
            buf[blank].fill(0);
        }
        for (number, sector) in self
            .sectors
            .range(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES))
        {
            let start = number * SECTOR_BYTES;
            if let Some(part) = asked(start, start + SECTOR_BYTES) {
                let skip = (offset + part.start as u64 - start) as usize;
                let len = part.len();
                buf[part].copy_from_slice(&sector[skip..skip + len]);
            }
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let extent = self.base.extent_at(offset)?;
        if extent.kind == ExtentKind::Data {
            return Ok(extent);
        }
        // A sector that is held in what is a hole below is not one.
        let first = offset / SECTOR_BYTES;
        let end = match self.sectors.range(first..).next() {
            Some((&number, _)) if number == first => {
                return Ok(Extent {
                    kind: ExtentKind::Data,
                    end: ((number + 1) * SECTOR_BYTES).min(self.len_bytes()),
                });
            }
            Some((number, _)) => extent.end.min(number * SECTOR_BYTES),
            None => extent.end,
        };
        Ok(Extent {
            kind: extent.kind,
            end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_counts_and_the_rest_is_the_volume() {
        let base: Vec<u8> = (0..2000u32).map(|i| i as u8).collect();
        let mut expected = base.clone();
        let mut overlay = Overlay::new(Arc::new(base), 4);
        overlay.blank(600..700);
        expected[600..700].fill(0);
        overlay.write(500, &[0xAA; 30]).unwrap();
        expected[500..530].fill(0xAA);
        overlay.write(1999, &[0xBB]).unwrap();
        expected[1999] = 0xBB;
        // What the second sector held of the volume stays what it was when it was taken.
        let mut all = vec![0; 2000];
        overlay.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(all[..600], expected[..600]);
        assert_eq!(all[1024..], expected[1024..]);
        for (offset, len) in [(0, 1), (499, 2), (511, 3), (529, 1), (1500, 500)] {
            let mut part = vec![0; len];
            overlay.read_exact_at(&mut part, offset as u64).unwrap();
            assert_eq!(part, all[offset..offset + len]);
        }
    }

    #[test]
    fn it_has_an_end_and_a_limit() {
        let mut overlay = Overlay::new(Arc::new(vec![0; 2048]), 2);
        let past = overlay.write(2040, &[0; 9]).unwrap_err();
        assert_eq!(past.kind(), ErrorKind::Corrupt);
        overlay.write(0, &[0; 1024]).unwrap();
        let third = overlay.write(1024, &[0]).unwrap_err();
        assert_eq!(third.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_held_sector_is_no_hole() {
        struct Hole;
        impl ReadAt for Hole {
            fn len_bytes(&self) -> u64 {
                4096
            }
            fn read_exact_at(&self, buf: &mut [u8], _: u64) -> Result<()> {
                buf.fill(0);
                Ok(())
            }
            fn extent_at(&self, _: u64) -> Result<Extent> {
                Ok(Extent {
                    kind: ExtentKind::Hole,
                    end: 4096,
                })
            }
        }
        let mut overlay = Overlay::new(Arc::new(Hole), 9);
        overlay.write(1024, &[1]).unwrap();
        let found: Vec<(ExtentKind, u64)> = [0, 1024, 1535, 1536]
            .map(|at| overlay.extent_at(at).unwrap())
            .map(|extent| (extent.kind, extent.end))
            .into();
        assert_eq!(
            found,
            [
                (ExtentKind::Hole, 1024),
                (ExtentKind::Data, 1536),
                (ExtentKind::Data, 1536),
                (ExtentKind::Hole, 4096),
            ]
        );
    }
}
