//! A volume under the blocks that its journal holds newer.
//!
//! Nothing is copied: what is known is where in the journal a block lies.

use std::sync::Arc;

use super::header::{SUPERBLOCK_AT, SUPERBLOCK_BYTES};
use super::log::{Log, Source};
use super::place::Place;
use super::superblock::MAGIC;
use crate::error::{Error, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};
use crate::volume::bits::index;

/// The volume as it is after its journal.
pub(super) struct Overlay {
    base: Arc<dyn ReadAt>,
    journal: Option<(Place, Log)>,
    /// Counts in place of what is on the volume and in the journal.
    superblock: Option<[u8; SUPERBLOCK_BYTES]>,
}

enum Piece {
    Base,
    Journal(Source),
    Superblock,
}

impl Overlay {
    /// `base` under the blocks of a log.
    ///
    /// # Errors
    /// `Corrupt` when they do not lie on the volume.
    pub(super) fn new(base: Arc<dyn ReadAt>, journal: Option<(Place, Log)>) -> Result<Self> {
        if let Some((place, log)) = &journal
            && let Some((&last, _)) = log.moved.last_key_value()
        {
            let end = last
                .checked_add(1)
                .and_then(|blocks| blocks.checked_mul(place.block_bytes()));
            if end.is_none_or(|end| end > base.len_bytes()) {
                return Err(Error::corrupt(
                    "the journal writes past the end of the file system",
                ));
            }
        }
        Ok(Overlay {
            base,
            journal,
            superblock: None,
        })
    }

    /// Puts a superblock in place of the one there is.
    pub(super) fn set_superblock(&mut self, bytes: [u8; SUPERBLOCK_BYTES]) {
        self.superblock = Some(bytes);
    }

    /// Whether nothing but the superblock differs from the volume.
    pub(super) fn is_bare(&self) -> bool {
        self.journal
            .as_ref()
            .is_none_or(|(_, log)| log.moved.is_empty())
    }

    /// What holds the byte at `offset`, and up to where.
    fn locate(&self, offset: u64) -> (Piece, u64) {
        let mut bound = u64::MAX;
        if self.superblock.is_some() {
            let end = SUPERBLOCK_AT + SUPERBLOCK_BYTES as u64;
            match offset {
                0..SUPERBLOCK_AT => bound = SUPERBLOCK_AT,
                _ if offset < end => return (Piece::Superblock, end),
                _ => {}
            }
        }
        let Some((place, log)) = &self.journal else {
            return (Piece::Base, bound);
        };
        let size = place.block_bytes();
        match log.moved.range(offset / size..).next() {
            Some((&block, source)) if block == offset / size => {
                (Piece::Journal(*source), bound.min((block + 1) * size))
            }
            Some((&block, _)) => (Piece::Base, bound.min(block * size)),
            None => (Piece::Base, bound),
        }
    }

    /// Reads within one block of the journal.
    fn read_moved(&self, source: Source, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some((place, _)) = &self.journal else {
            return Err(Error::corrupt("a block of a journal that is not there"));
        };
        let within = offset % place.block_bytes();
        let at = place.offset_of(source.block)? + within;
        place.device().volume().read_exact_at(buf, at)?;
        if source.escaped {
            for (place, byte) in (0u64..).zip(MAGIC.to_be_bytes()) {
                if let Some(place) = place
                    .checked_sub(within)
                    .and_then(|at| buf.get_mut(index(at)))
                {
                    *place = byte;
                }
            }
        }
        Ok(())
    }
}

impl ReadAt for Overlay {
    fn len_bytes(&self) -> u64 {
        self.base.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes())?;
        read_pieces(
            buf,
            offset,
            |offset| Ok(self.locate(offset)),
            |piece, buf, offset| match piece {
                Piece::Base => self.base.read_exact_at(buf, offset),
                Piece::Journal(source) => self.read_moved(source, buf, offset),
                Piece::Superblock => {
                    let at = index(offset - SUPERBLOCK_AT);
                    let bytes = self
                        .superblock
                        .as_ref()
                        .and_then(|bytes| bytes.get(at..at + buf.len()))
                        .ok_or_else(|| Error::corrupt("a read leaves the superblock"))?;
                    buf.copy_from_slice(bytes);
                    Ok(())
                }
            },
        )
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let (piece, end) = self.locate(offset);
        let end = end.min(self.len_bytes());
        match piece {
            Piece::Base => {
                let extent = self.base.extent_at(offset)?;
                Ok(Extent {
                    end: extent.end.min(end),
                    ..extent
                })
            }
            Piece::Journal(_) | Piece::Superblock => Ok(Extent {
                kind: ExtentKind::Data,
                end,
            }),
        }
    }
}
