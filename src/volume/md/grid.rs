//! Arrays whose chunks lie over the members in a pattern: RAID 4, 5, 6 and 10, of md and of LVM.
//!
//! While all that is needed is there, bytes come from the members that hold them, as in the kernel. For
//! members that are not there RAID 4, 5 and 6 work their bytes out from the others.

use std::sync::Arc;

use super::galois;
use super::pattern::{Pattern, Row, parity_spot, powers};
use crate::error::{Error, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};

/// Bytes worked out at a time.
const REBUILD_BYTES: usize = 64 << 10;

/// A member's bytes and where its data begins.
pub type Place = Option<(Arc<dyn ReadAt>, u64)>;

/// Whether parity is known to fit the data.
pub enum Parity {
    /// Everywhere.
    Fits,
    /// Nowhere: what is not there cannot be worked out.
    Unknown,
    /// But for some ranges of each member's data: asked with a range of bytes, says whether it fits there.
    FitsWhere(Box<dyn Fn(u64, u64) -> bool + Send + Sync>),
}

impl Parity {
    fn fits(&self, at: u64, len: u64) -> bool {
        match self {
            Parity::Fits => true,
            Parity::Unknown => false,
            Parity::FitsWhere(fits) => fits(at, len),
        }
    }
}

/// An array.
pub struct Grid {
    members: Vec<Place>,
    pattern: Pattern,
    parity: Parity,
    chunk_bytes: u64,
    /// Chunks that each member has room for.
    each: u64,
    len_bytes: u64,
}

/// Where a range within a chunk has to come from.
enum Found<'a> {
    Member(&'a dyn ReadAt, u64),
    /// The member that has it is not there; `at` is in each member's data.
    Rebuild {
        row: Row,
        member: u64,
        at: u64,
    },
    Nowhere,
}

impl Grid {
    /// An array of members of `used_bytes` each.
    ///
    /// # Errors
    /// `Corrupt` when too many members are gone, or sizes make no sense.
    pub fn new(
        members: Vec<Place>,
        pattern: Pattern,
        chunk_bytes: u64,
        used_bytes: u64,
        parity: Parity,
    ) -> Result<Grid> {
        if chunk_bytes == 0 || !chunk_bytes.is_multiple_of(512) {
            return Err(Error::corrupt("an array without a chunk size"));
        }
        let count = members.len() as u64;
        let gone = members.iter().filter(|member| member.is_none()).count() as u64;
        let can_be_gone = match pattern {
            Pattern::Parity { parities, .. } => parities,
            // Chunk by chunk: some may have lost all their copies.
            Pattern::Copies { .. } => count.saturating_sub(1),
        };
        if gone > can_be_gone {
            return Err(Error::corrupt(format!(
                "{gone} of {count} members are not there or not current"
            )));
        }
        let each = used_bytes / chunk_bytes;
        for (volume, start) in members.iter().flatten() {
            check_range(*start, each * chunk_bytes, volume.len_bytes())
                .map_err(|_| Error::corrupt("a member is shorter than its array says"))?;
        }
        let len_bytes = pattern
            .chunks(each, count)
            .and_then(|chunks| chunks.checked_mul(chunk_bytes))
            .filter(|&len| len < 1 << 63)
            .ok_or_else(|| Error::corrupt("an array of nearly 2^64 bytes"))?;
        Ok(Grid {
            members,
            pattern,
            parity,
            chunk_bytes,
            each,
            len_bytes,
        })
    }

    fn place(&self, offset: u64) -> Found<'_> {
        let count = self.members.len() as u64;
        let (chunk, within) = (offset / self.chunk_bytes, offset % self.chunk_bytes);
        let member_at = |member: u64, row: u64| {
            let (volume, start) = self.members[member as usize].as_ref()?;
            let at = start + row * self.chunk_bytes + within;
            Some(Found::Member(&**volume, at))
        };
        match self.pattern {
            Pattern::Copies(copies) => copies
                .places(chunk, count, self.each)
                .into_iter()
                .find_map(|(member, row)| member_at(member, row))
                .unwrap_or(Found::Nowhere),
            Pattern::Parity { parities, layout } => {
                let (row, member) = parity_spot(parities, layout, chunk, count);
                member_at(member, row.number).unwrap_or(Found::Rebuild {
                    row,
                    member,
                    at: row.number * self.chunk_bytes + within,
                })
            }
        }
    }

    /// Works out bytes of `wanted`, `at` in each member's data, piece by piece.
    fn rebuild(&self, buf: &mut [u8], row: &Row, wanted: u64, at: u64) -> Result<()> {
        if !self.parity.fits(at, buf.len() as u64) {
            return Err(Error::corrupt(
                "the member that has this part is not there, and the parity may not fit: it was being written",
            ));
        }
        for (piece, index) in buf.chunks_mut(REBUILD_BYTES).zip(0u64..) {
            self.rebuild_piece(piece, row, wanted, at + index * REBUILD_BYTES as u64)?;
        }
        Ok(())
    }

    /// With D the data, P its sum, and Q the sum of each D times a power of the generator: one D is what is left of P;
    /// or of Q, over its power; two of them, x and y, come from both.
    fn rebuild_piece(&self, piece: &mut [u8], row: &Row, wanted: u64, at: u64) -> Result<()> {
        let gone = (0..)
            .zip(&self.members)
            .filter(|(number, place)| place.is_none() && *number != wanted)
            .map(|(number, _)| number)
            .next();
        let is_second = |member| row.second == Some(member);
        let Some(other) = gone.filter(|&other| !is_second(other)) else {
            return self.sum(piece, at, |member| (!is_second(member)).then_some(1));
        };
        let Pattern::Parity { layout, .. } = self.pattern else {
            return Err(Error::corrupt("an array without parity"));
        };
        let powers = powers(layout, row, self.members.len() as u64);
        let factor = |member: u64| powers[member as usize].map(galois::power);
        let of = |member: u64| factor(member).ok_or_else(|| Error::corrupt("a row without data"));
        // Of Q.
        let scaled = |member| match is_second(member) {
            true => Some(1),
            false => factor(member),
        };
        if other == row.parity {
            self.sum(piece, at, scaled)?;
            galois::scale(piece, galois::inverse(of(wanted)?));
            return Ok(());
        }
        let (x, y) = (of(wanted)?, of(other)?);
        self.sum(piece, at, |member| (!is_second(member)).then_some(1))?;
        let mut left_of_second = vec![0; piece.len()];
        self.sum(&mut left_of_second, at, scaled)?;
        galois::scale(piece, y);
        galois::add_scaled(piece, &left_of_second, 1);
        galois::scale(piece, galois::inverse(x ^ y));
        Ok(())
    }

    /// The sum of the members that are there, each times its factor; those without one are left out.
    fn sum(&self, sum: &mut [u8], at: u64, factor: impl Fn(u64) -> Option<u8>) -> Result<()> {
        sum.fill(0);
        let mut bytes = vec![0; sum.len()];
        for (member, number) in self.members.iter().zip(0..) {
            let (Some((volume, start)), Some(factor)) = (member, factor(number)) else {
                continue;
            };
            volume.read_exact_at(&mut bytes, start + at)?;
            galois::add_scaled(sum, &bytes, factor);
        }
        Ok(())
    }
}

impl ReadAt for Grid {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let chunk_end = |at: u64| at - at % self.chunk_bytes + self.chunk_bytes;
        read_pieces(
            buf,
            offset,
            |at| Ok((self.place(at), chunk_end(at))),
            |place, now, _| match place {
                Found::Member(volume, at) => volume.read_exact_at(now, at),
                Found::Rebuild { row, member, at } => self.rebuild(now, &row, member, at),
                Found::Nowhere => Err(Error::corrupt(
                    "no member that is there has this part of the array",
                )),
            },
        )
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let end = offset - offset % self.chunk_bytes + self.chunk_bytes;
        let Found::Member(volume, at) = self.place(offset) else {
            return Ok(Extent {
                kind: ExtentKind::Data,
                end,
            });
        };
        let inner = volume.extent_at(at)?;
        Ok(Extent {
            kind: inner.kind,
            end: end.min(offset + inner.end.saturating_sub(at)),
        })
    }
}
