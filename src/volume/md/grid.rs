//! Arrays whose chunks lie over the members in a pattern: RAID 4, 5, 6, and RAID 10 with near copies.
//!
//! While all that is needed is there, bytes come from the members that hold them, as in the kernel. For
//! one member that is not there, RAID 4, 5 and 6 work its bytes out from the others.
//!
//! Source of the patterns: `raid5_compute_sector` and `raid10_find_phys` of Linux.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};

/// Bytes worked out at a time.
const REBUILD_BYTES: usize = 64 << 10;

/// How chunks lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// RAID 4, 5 (one parity) and 6 (two), with the layout's number.
    Parity { parities: u64, layout: u32 },
    /// RAID 10: each chunk on so many members next to each other.
    Near { copies: u64 },
}

/// A member's bytes and where its data begins.
pub type Place = Option<(Arc<dyn ReadAt>, u64)>;

/// An array.
pub struct Grid {
    members: Vec<Place>,
    pattern: Pattern,
    chunk_bytes: u64,
    len_bytes: u64,
}

/// Where a chunk is: the (first) member that holds it, the one with the second parity, and the row.
#[derive(Debug, PartialEq, Eq)]
struct Spot {
    first: u64,
    second_parity: Option<u64>,
    row: u64,
}

fn unsupported(message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}

impl Pattern {
    /// The pattern of an array of this level.
    ///
    /// # Errors
    /// `Unsupported` for layouts that are not known; `Corrupt` for too few members.
    pub fn of(level: i32, layout: u32, members: u64) -> Result<Pattern> {
        let pattern = match level {
            // RAID 4 is RAID 5 with all parity on the last member.
            4 => Pattern::Parity {
                parities: 1,
                layout: 5,
            },
            5 | 6 if layout <= 5 => Pattern::Parity {
                parities: if level == 6 { 2 } else { 1 },
                layout,
            },
            // One far copy, and near ones.
            10 if layout >> 8 == 1 => Pattern::Near {
                copies: u64::from(layout & 0xFF),
            },
            _ => {
                return Err(unsupported(&format!(
                    "md arrays of level {level} with layout {layout:#x} are not read"
                )));
            }
        };
        let enough = match pattern {
            Pattern::Parity { parities, .. } => members > parities,
            Pattern::Near { copies } => copies >= 1 && copies <= members,
        };
        match enough {
            true => Ok(pattern),
            false => Err(Error::corrupt("an array of too few members")),
        }
    }

    /// Where chunk `number` of the array is.
    fn spot(self, number: u64, members: u64) -> Spot {
        let (parities, layout) = match self {
            Pattern::Near { copies } => {
                // At most 384 members, and numbers of chunks are far from 2^64.
                let at = number * copies;
                return Spot {
                    first: at % members,
                    second_parity: None,
                    row: at / members,
                };
            }
            Pattern::Parity { parities, layout } => (parities, layout),
        };
        let data = members - parities;
        let (row, nth) = (number / data, number % data);
        let turn = row % members;
        let parity = match layout {
            // Left: parity moves down from the last member; right: up from the first.
            0 | 2 => members - 1 - turn,
            1 | 3 => turn,
            4 => 0,
            _ => data,
        };
        // The second parity follows the first, around the end.
        let second = (parity + 1) % members;
        let is_wrapped = parities == 2 && second == 0;
        let first = match layout {
            // Symmetric: data begins behind the parity.
            2 | 3 => (parity + parities + nth) % members,
            // Asymmetric: data leaves the parity out.
            0 | 1 if is_wrapped => nth + 1,
            0 | 1 if nth < parity => nth,
            0 | 1 | 4 => nth + parities,
            _ => nth,
        };
        Spot {
            first,
            second_parity: (parities == 2).then_some(second),
            row,
        }
    }

    /// Chunks of an array whose members have so many each.
    fn chunks(self, each: u64, members: u64) -> Option<u64> {
        match self {
            Pattern::Parity { parities, .. } => each.checked_mul(members - parities),
            Pattern::Near { copies } => Some(each.checked_mul(members)? / copies),
        }
    }
}

impl Grid {
    /// An array of members of `used_bytes` each. `is_clean` says that parity is known to fit the data.
    ///
    /// # Errors
    /// `Corrupt` when too many members are gone, or sizes make no sense.
    pub fn new(
        members: Vec<Place>,
        pattern: Pattern,
        chunk_bytes: u64,
        used_bytes: u64,
        is_clean: bool,
    ) -> Result<Grid> {
        if chunk_bytes == 0 || !chunk_bytes.is_multiple_of(512) {
            return Err(Error::corrupt("an array without a chunk size"));
        }
        let count = members.len() as u64;
        let gone = members.iter().filter(|member| member.is_none()).count();
        let can_be_gone = match pattern {
            Pattern::Parity { .. } => usize::from(is_clean),
            // Chunk by chunk: some may have lost all their copies.
            Pattern::Near { .. } => members.len() - 1,
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
            chunk_bytes,
            len_bytes,
        })
    }

    /// The member that has the byte at `offset`, and where; the spot when no such member is there.
    fn place(&self, offset: u64) -> Result<(&dyn ReadAt, u64), (Spot, u64)> {
        let count = self.members.len() as u64;
        let spot = self.pattern.spot(offset / self.chunk_bytes, count);
        let within = offset % self.chunk_bytes;
        let copies = match self.pattern {
            Pattern::Near { copies } => copies,
            Pattern::Parity { .. } => 1,
        };
        for copy in 0..copies {
            // Copies go on with the first member of the next row.
            let at = spot.first + copy;
            let (member, row) = (at % count, spot.row + at / count);
            if let Some((volume, start)) = &self.members[member as usize] {
                return Ok((&**volume, start + row * self.chunk_bytes + within));
            }
        }
        let at = spot.row * self.chunk_bytes + within;
        Err((spot, at))
    }

    /// Works out bytes of the one member that is not there, `at` in each member's data.
    fn rebuild(&self, buf: &mut [u8], spot: &Spot, at: u64) -> Result<()> {
        if matches!(self.pattern, Pattern::Near { .. }) {
            return Err(Error::new(
                ErrorKind::Io,
                "no member that is there has this part of the array",
            ));
        }
        buf.fill(0);
        let mut other = vec![0; buf.len().min(REBUILD_BYTES)];
        for (member, number) in self.members.iter().zip(0..) {
            let Some((volume, start)) = member else {
                continue;
            };
            // What is left adds up to nothing, but for the second parity, which is of another kind.
            if spot.second_parity == Some(number) {
                continue;
            }
            for (piece, index) in buf.chunks_mut(REBUILD_BYTES).zip(0u64..) {
                let from = start + at + index * REBUILD_BYTES as u64;
                let other = &mut other[..piece.len()];
                volume.read_exact_at(other, from)?;
                for (sum, byte) in piece.iter_mut().zip(other) {
                    *sum ^= *byte;
                }
            }
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
                Ok((volume, at)) => volume.read_exact_at(now, at),
                Err((spot, at)) => self.rebuild(now, &spot, at),
            },
        )
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let end = offset - offset % self.chunk_bytes + self.chunk_bytes;
        let Ok((volume, at)) = self.place(offset) else {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The members that chunks 0, 1, 2 … are on, row by row.
    fn rows(level: i32, layout: u32, members: u64, count: u64) -> Vec<String> {
        let pattern = Pattern::of(level, layout, members).unwrap();
        let mut rows: Vec<Vec<char>> = Vec::new();
        for number in 0..count {
            let spot = pattern.spot(number, members);
            let row = spot.row as usize;
            if rows.len() <= row {
                rows.resize(row + 1, vec!['-'; members as usize]);
            }
            rows[row][spot.first as usize] = (b'a' + number as u8) as char;
            if let Some(second) = spot.second_parity {
                rows[row][second as usize] = 'Q';
            }
        }
        rows.iter().map(|row| row.iter().collect()).collect()
    }

    /// Letters are chunks in their order, `Q` the second parity, `-` the first one or a copy.
    #[test]
    fn chunks_are_where_the_layouts_put_them() {
        assert_eq!(rows(4, 0, 3, 4), ["ab-", "cd-"]);
        assert_eq!(rows(5, 0, 4, 12), ["abc-", "de-f", "g-hi", "-jkl"]);
        assert_eq!(rows(5, 1, 4, 12), ["-abc", "d-ef", "gh-i", "jkl-"]);
        assert_eq!(rows(5, 2, 4, 12), ["abc-", "ef-d", "i-gh", "-jkl"]);
        assert_eq!(rows(5, 3, 4, 12), ["-abc", "f-de", "hi-g", "jkl-"]);
        assert_eq!(rows(5, 4, 3, 4), ["-ab", "-cd"]);
        assert_eq!(rows(5, 5, 3, 4), ["ab-", "cd-"]);
        assert_eq!(rows(6, 0, 4, 8), ["Qab-", "cd-Q", "e-Qf", "-Qgh"]);
        assert_eq!(rows(6, 2, 4, 8), ["Qab-", "cd-Q", "f-Qe", "-Qgh"]);
        assert_eq!(rows(6, 1, 4, 8), ["-Qab", "c-Qd", "ef-Q", "Qgh-"]);
        assert_eq!(rows(6, 4, 4, 4), ["-Qab", "-Qcd"]);
        assert_eq!(rows(6, 5, 4, 4), ["ab-Q", "cd-Q"]);
        assert_eq!(rows(10, 0x102, 4, 4), ["a-b-", "c-d-"]);
        assert_eq!(rows(10, 0x102, 3, 3), ["a-b", "-c-"]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (level, layout, members) in [
            (5, 6, 3),
            (6, 16, 4),
            (10, 0x201, 4),
            (10, 0x1_0201, 4),
            (5, 2, 1),
            (6, 2, 2),
            (10, 0x105, 4),
            (10, 0x100, 4),
            (-4, 0, 2),
        ] {
            assert!(Pattern::of(level, layout, members).is_err());
        }
    }
}
