//! A volume that is put together from pieces of others.
//!
//! Used for logical volumes and for md arrays: each piece is a straight run, stripes over several
//! volumes, zeros, or something that is not there, which fails and never reads as zeros.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};

/// Where the bytes of a piece come from.
#[derive(Clone)]
pub enum Source {
    /// A run of another volume, from this byte on.
    Linear(Arc<dyn ReadAt>, u64),
    /// Runs of several volumes, taken in turn.
    Striped {
        /// The volumes and the byte each run starts at; never empty.
        members: Vec<(Arc<dyn ReadAt>, u64)>,
        /// Bytes taken from a member in turn; never 0.
        stripe_bytes: u64,
    },
    /// Zeros.
    Zero,
    /// Not there, with the reason.
    Missing(String),
}

#[derive(Clone)]
struct Piece {
    start: u64,
    end: u64,
    source: Source,
}

/// A volume made of pieces.
pub struct Mapped {
    pieces: Vec<Piece>,
    len_bytes: u64,
    complete: bool,
}

impl Mapped {
    /// An empty volume, to which pieces are added in order.
    pub fn new() -> Self {
        Mapped {
            pieces: Vec::new(),
            len_bytes: 0,
            complete: true,
        }
    }

    /// Appends a piece. Parts that leave the volume they come from become missing pieces.
    ///
    /// # Errors
    /// `Corrupt` when the length is zero or the whole would be longer than 2^63 bytes.
    pub fn push(&mut self, len_bytes: u64, source: Source) -> Result<()> {
        let end = self
            .len_bytes
            .checked_add(len_bytes)
            .filter(|&end| end > self.len_bytes && end < 1 << 63)
            .ok_or_else(|| Error::corrupt("a piece of a volume has a length of 0 or near 2^64"))?;
        let source = if source_fits(&source, len_bytes) {
            source
        } else {
            Source::Missing("it lies past the end of the disk that should hold it".to_string())
        };
        if matches!(source, Source::Missing(_)) {
            self.complete = false;
        }
        self.pieces.push(Piece {
            start: self.len_bytes,
            end,
            source,
        });
        self.len_bytes = end;
        Ok(())
    }

    /// Whether no piece is missing.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Marks the volume as built on another one that is itself incomplete.
    pub fn mark_incomplete(&mut self) {
        self.complete = false;
    }

    /// Why the first missing piece is missing.
    pub fn first_missing(&self) -> Option<&str> {
        self.pieces.iter().find_map(|piece| match &piece.source {
            Source::Missing(reason) => Some(reason.as_str()),
            _ => None,
        })
    }

    fn piece_at(&self, offset: u64) -> Result<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.end <= offset);
        self.pieces
            .get(index)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "offset past the end of a volume"))
    }
}

impl Default for Mapped {
    fn default() -> Self {
        Self::new()
    }
}

fn source_fits(source: &Source, len_bytes: u64) -> bool {
    match source {
        Source::Linear(volume, start) => check_range(*start, len_bytes, volume.len_bytes()).is_ok(),
        Source::Striped {
            members,
            stripe_bytes,
        } => {
            if members.is_empty() || *stripe_bytes == 0 {
                return false;
            }
            // The length each member must have if it held every remainder: off by at most a stripe.
            let rounds = len_bytes / stripe_bytes / members.len() as u64;
            let Some(each) = rounds.checked_mul(*stripe_bytes) else {
                return false;
            };
            members
                .iter()
                .all(|(volume, start)| check_range(*start, each, volume.len_bytes()).is_ok())
        }
        Source::Zero | Source::Missing(_) => true,
    }
}

/// The member, the offset within its run, and the bytes up to the end of the stripe.
fn locate(within: u64, stripe_bytes: u64, members: usize) -> (usize, u64, u64) {
    let members = members as u64;
    let stripe = within / stripe_bytes;
    let inside = within % stripe_bytes;
    (
        (stripe % members) as usize,
        stripe / members * stripe_bytes + inside,
        stripe_bytes - inside,
    )
}

impl ReadAt for Mapped {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let locate_piece = |at: u64| {
            let piece = self.piece_at(at)?;
            let end = match &piece.source {
                Source::Striped {
                    members,
                    stripe_bytes,
                } => {
                    let left = locate(at - piece.start, *stripe_bytes, members.len()).2;
                    piece.end.min(at.saturating_add(left))
                }
                _ => piece.end,
            };
            Ok((piece, end))
        };
        read_pieces(buf, offset, locate_piece, |piece, now, offset| {
            let within = offset - piece.start;
            match &piece.source {
                Source::Linear(volume, start) => volume.read_exact_at(now, start + within),
                Source::Striped {
                    members,
                    stripe_bytes,
                } => {
                    let (member, at, _) = locate(within, *stripe_bytes, members.len());
                    let (volume, start) = &members[member];
                    volume.read_exact_at(now, start.saturating_add(at))
                }
                Source::Zero => {
                    now.fill(0);
                    Ok(())
                }
                Source::Missing(reason) => Err(Error::corrupt(format!(
                    "this part of the volume is not there: {reason}"
                ))
                .at(offset)),
            }
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let piece = self.piece_at(offset)?;
        let within = offset - piece.start;
        match &piece.source {
            Source::Linear(volume, start) => {
                let inner = volume.extent_at(start + within)?;
                Ok(Extent {
                    kind: inner.kind,
                    end: inner
                        .end
                        .saturating_sub(*start)
                        .saturating_add(piece.start)
                        .min(piece.end),
                })
            }
            Source::Striped {
                members,
                stripe_bytes,
            } => {
                let (member, at, left) = locate(within, *stripe_bytes, members.len());
                let (volume, start) = &members[member];
                let at = start.saturating_add(at);
                let inner = volume.extent_at(at)?;
                Ok(Extent {
                    kind: inner.kind,
                    end: (offset + left.min(inner.end.saturating_sub(at))).min(piece.end),
                })
            }
            Source::Zero => Ok(Extent {
                kind: ExtentKind::Hole,
                end: piece.end,
            }),
            // Said to be data, so that whoever copies by extents meets the error.
            Source::Missing(_) => Ok(Extent {
                kind: ExtentKind::Data,
                end: piece.end,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_across_their_borders_and_missing_ones_fail() {
        let a: Arc<dyn ReadAt> = Arc::new(vec![1u8; 10]);
        let b: Arc<dyn ReadAt> = Arc::new((0..12).collect::<Vec<u8>>());
        let mut mapped = Mapped::new();
        mapped.push(4, Source::Linear(a.clone(), 6)).unwrap();
        let striped = Source::Striped {
            members: vec![(a.clone(), 0), (b.clone(), 4)],
            stripe_bytes: 2,
        };
        mapped.push(8, striped).unwrap();
        mapped.push(2, Source::Zero).unwrap();
        assert!(mapped.is_complete());
        mapped.push(4, Source::Linear(b, 9)).unwrap();
        assert!(!mapped.is_complete());
        let mut buf = [9; 14];
        mapped.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [1, 1, 1, 1, 1, 1, 4, 5, 1, 1, 6, 7, 0, 0]);
        assert!(mapped.read_exact_at(&mut buf, 2).is_err());
        assert!(mapped.read_exact_at(&mut buf, 10).is_err());
        let mut offset = 0;
        while offset < mapped.len_bytes() {
            let extent = mapped.extent_at(offset).unwrap();
            assert!(extent.end > offset);
            offset = extent.end;
        }
    }

    #[test]
    fn lengths_that_make_no_sense_are_refused() {
        let mut mapped = Mapped::new();
        assert!(mapped.push(0, Source::Zero).is_err());
        assert!(mapped.push(u64::MAX, Source::Zero).is_err());
    }
}
