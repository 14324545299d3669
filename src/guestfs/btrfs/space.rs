//! The logical addresses of a file system: its chunks over the devices that are there.
//!
//! What is at an address can be had in one or several ways: from each copy, or worked out from the rest of
//! a row with parity. Callers try one after the other until what they got proves itself by its checksum;
//! only data without checksums is read by [`Space::read_unverified`].

use std::sync::Arc;

use super::chunk::{Chunk, Chunks, Places, Row, Spot};
use super::fault::bad;
use super::parity;
use super::superblock::DeviceId;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::host::device::Device;

/// A device that is there.
pub struct Member {
    /// Which one it is.
    pub id: DeviceId,
    /// Whether it has seen the last commit. What it holds may be older otherwise, and only checksums and
    /// generations tell.
    pub is_current: bool,
    /// Its bytes.
    pub device: Device,
}

/// One way to bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// They are on this stripe of the chunk.
    Stored(usize),
    /// From the rest of the data and P.
    FromPlain(Row),
    /// From the rest of the data and Q.
    FromWeighted(Row),
    /// From P, Q and all data but one more.
    FromBoth(Row, usize),
}

/// See the module's description.
pub struct Space {
    chunks: Chunks,
    members: Arc<Vec<Member>>,
}

/// Of several failures the one to tell: one that may pass, or the first.
pub(super) fn keep_failure(kept: &mut Option<Error>, error: Error) {
    let is_damage = |error: &Error| error.kind() == ErrorKind::Corrupt;
    if kept
        .as_ref()
        .is_none_or(|kept| is_damage(kept) && !is_damage(&error))
    {
        *kept = Some(error);
    }
}

impl Space {
    /// The space that these chunks make.
    pub fn new(chunks: Chunks, members: Arc<Vec<Member>>) -> Self {
        Space { chunks, members }
    }

    fn member(&self, id: &DeviceId) -> Result<&Member> {
        let found = self.members.iter().find(|member| member.id == *id);
        found.ok_or_else(|| bad(&format!("{id} is not there")))
    }

    /// Where the run of bytes at a logical address ends that lies in one piece.
    ///
    /// # Errors
    /// `Corrupt` when the address leads nowhere.
    pub fn run_end(&self, logical: u64) -> Result<u64> {
        let (_, spot) = self.chunks.find(logical)?;
        // Cannot overflow: the run ends with its chunk at the latest.
        Ok(logical + spot.len_bytes)
    }

    /// The ways to a byte, those that are most likely to be right first.
    fn ways(&self, chunk: &Chunk, spot: &Spot) -> Vec<Way> {
        match &spot.places {
            Places::Copies(first, count) => {
                let mut stripes: Vec<usize> = (*first..first + count).collect();
                stripes.sort_by_key(|&stripe| {
                    let stripe = chunk.stripes().get(stripe);
                    let member = stripe.and_then(|stripe| self.member(&stripe.device).ok());
                    member.map_or(2, |member| u8::from(!member.is_current))
                });
                stripes.into_iter().map(Way::Stored).collect()
            }
            Places::Parity(row) => {
                let mut ways = vec![
                    Way::Stored(row.stripe(row.wanted)),
                    Way::FromPlain(row.clone()),
                ];
                if row.parities > 1 {
                    let others = (0..row.data).filter(|&other| other != row.wanted);
                    ways.push(Way::FromWeighted(row.clone()));
                    ways.extend(others.map(|other| Way::FromBoth(row.clone(), other)));
                }
                ways
            }
        }
    }

    /// In how many ways a range of logical addresses can be read; not all of them need to work.
    ///
    /// # Errors
    /// `Corrupt` when an address leads nowhere.
    pub fn ways_to(&self, logical: u64, len_bytes: u64) -> Result<usize> {
        let mut most = 0;
        let mut at = logical;
        loop {
            let (chunk, spot) = self.chunks.find(at)?;
            most = most.max(self.ways(chunk, &spot).len());
            at += spot.len_bytes;
            if at - logical >= len_bytes {
                return Ok(most);
            }
        }
    }

    /// Fills `buf` from a logical address, in one of its ways (from 0 on). The bytes are not proved.
    ///
    /// # Errors
    /// `Corrupt` when an address leads nowhere, or to a device that is not there; otherwise what kept the
    /// bytes from being read.
    pub fn read(&self, logical: u64, way: usize, buf: &mut [u8]) -> Result<()> {
        self.by_runs(logical, buf, |chunk, spot, buf| {
            let ways = self.ways(chunk, spot);
            // A range over several runs has as many ways as the run that has most.
            let way = ways.get(way).or(ways.last());
            match way.ok_or_else(|| bad("a chunk has no stripes"))? {
                Way::Stored(stripe) => self.read_stripe(chunk, *stripe, spot.within, buf),
                Way::FromPlain(row) => self.work_out(chunk, spot, row, (true, false), None, buf),
                Way::FromWeighted(row) => self.work_out(chunk, spot, row, (false, true), None, buf),
                Way::FromBoth(row, other) => {
                    self.work_out(chunk, spot, row, (true, true), Some(*other), buf)
                }
            }
        })
    }

    /// Fills `buf` with data that has no checksum: from devices that have seen the last commit, as it is
    /// stored, and only if all copies there are agree.
    ///
    /// # Errors
    /// `Corrupt` when nobody can say what the data is; otherwise what kept it from being read.
    pub fn read_unverified(&self, logical: u64, buf: &mut [u8]) -> Result<()> {
        self.by_runs(logical, buf, |chunk, spot, buf| {
            let stripes = match &spot.places {
                Places::Copies(first, count) => *first..first + count,
                Places::Parity(row) => {
                    let stripe = row.stripe(row.wanted);
                    stripe..stripe + 1
                }
            };
            let mut failed = None;
            let mut other = Vec::new();
            let mut have_it = false;
            for stripe in stripes {
                let place = chunk.stripes().get(stripe);
                let place = place.ok_or_else(|| bad("a chunk lacks a stripe"))?;
                let id = &place.device;
                let is_current = self.member(id).map(|member| member.is_current);
                let read = match (is_current, have_it) {
                    (Err(error), _) => Err(error),
                    (Ok(false), _) => Err(bad(&format!(
                        "{id} is out of date, and data without checksums is not taken from it"
                    ))),
                    (Ok(true), false) => self.read_stripe(chunk, stripe, spot.within, buf),
                    (Ok(true), true) => {
                        other.resize(buf.len(), 0);
                        self.read_stripe(chunk, stripe, spot.within, &mut other)
                    }
                };
                match read {
                    Ok(()) if have_it && other != buf => {
                        return Err(bad(&format!(
                            "data without checksums is another one on {id}: which is right cannot be told"
                        ))
                        .at(logical));
                    }
                    Ok(()) => have_it = true,
                    Err(error) => keep_failure(&mut failed, error),
                }
            }
            match failed {
                Some(error) if !have_it => Err(error),
                _ => Ok(()),
            }
        })
    }

    fn by_runs(
        &self,
        logical: u64,
        buf: &mut [u8],
        read: impl Fn(&Chunk, &Spot, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let locate = |at| {
            let (chunk, spot) = self.chunks.find(at)?;
            let end = at + spot.len_bytes;
            Ok(((chunk, spot), end))
        };
        crate::io::read_pieces(buf, logical, locate, |(chunk, spot), buf, _| {
            read(chunk, &spot, buf)
        })
    }

    fn read_stripe(&self, chunk: &Chunk, stripe: usize, within: u64, buf: &mut [u8]) -> Result<()> {
        let stripe = chunk.stripes().get(stripe);
        let stripe = stripe.ok_or_else(|| bad("a chunk has too few stripes"))?;
        let member = self.member(&stripe.device)?;
        // Cannot overflow: a stripe is not longer than its chunk, see `Chunk::parse`.
        member.device.try_read(buf, stripe.offset + within)
    }

    /// Works out the wanted data of a row from what else is in it: P, Q (`sums`) or both, and all data but
    /// the wanted and perhaps one more.
    fn work_out(
        &self,
        chunk: &Chunk,
        spot: &Spot,
        row: &Row,
        sums: (bool, bool),
        without: Option<usize>,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut weighted = vec![0; if sums.1 { buf.len() } else { 0 }];
        let mut column_bytes = vec![0; buf.len()];
        buf.fill(0);
        for column in 0..row.data + row.parities {
            let is_used = match column.checked_sub(row.data) {
                None => column != row.wanted && Some(column) != without,
                Some(0) => sums.0,
                Some(_) => sums.1,
            };
            if !is_used {
                continue;
            }
            self.read_stripe(chunk, row.stripe(column), spot.within, &mut column_bytes)?;
            match column.checked_sub(row.data) {
                None => {
                    parity::add(buf, &column_bytes);
                    parity::add_weighted(&mut weighted, column, &column_bytes);
                }
                Some(0) => parity::add(buf, &column_bytes),
                Some(_) => parity::add(&mut weighted, &column_bytes),
            }
        }
        match (sums, without) {
            ((true, true), Some(other)) => parity::from_both(buf, &weighted, row.wanted, other),
            ((false, true), _) => {
                parity::from_weighted(&mut weighted, row.wanted);
                buf.copy_from_slice(&weighted);
            }
            _ => {}
        }
        Ok(())
    }
}
