//! What a disk's sectors hold, kept as runs: a 64 TiB disk with ten writes is ten entries.
//!
//! The content of a run is computed from the sector number, so that a run can be split anywhere and
//! overwritten in part without copying anything.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::rng::mix;

/// Bytes per sector, throughout the VHD format.
pub const SECTOR_BYTES: u64 = 512;

/// Fills one sector, given its number.
pub type SectorFunction = dyn Fn(u64, &mut [u8]) + Send + Sync;

/// What a run of sectors holds.
#[derive(Clone)]
pub enum Fill {
    /// Zeros that were written: they hide what older layers hold there.
    Zeros,
    /// Incompressible bytes that differ in every sector and for every seed.
    Random(u64),
    /// Words, digits and spaces: compresses about as well as logs and documents do.
    Text(u64),
    /// Given bytes; they start at this sector of the disk.
    Bytes { data: Arc<[u8]>, first_sector: u64 },
    /// Computed one sector at a time: gets the sector number and the 512 bytes to fill.
    Function(Arc<SectorFunction>),
}

impl fmt::Debug for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fill::Zeros => f.write_str("Zeros"),
            Fill::Random(seed) => write!(f, "Random({seed})"),
            Fill::Text(seed) => write!(f, "Text({seed})"),
            Fill::Bytes { data, first_sector } => {
                write!(f, "Bytes({} at sector {first_sector})", data.len())
            }
            Fill::Function(_) => f.write_str("Function"),
        }
    }
}

const WORDS: [&[u8; 8]; 16] = [
    b"request ",
    b"backup  ",
    b"storage ",
    b"the quic",
    b"k brown ",
    b"fox over",
    b" a lazy ",
    b"dog and ",
    b"returned",
    b" status=",
    b"200 OK\n\n",
    b"0x00ff00",
    b"kernel: ",
    b"systemd[",
    b"session ",
    b"\n\n\n\n\n\n\n\n",
];

impl Fill {
    /// Fills `out` (whole sectors) with what stands from `sector` on.
    pub fn render(&self, sector: u64, out: &mut [u8]) {
        assert_eq!(out.len() as u64 % SECTOR_BYTES, 0);
        match self {
            Fill::Zeros => out.fill(0),
            Fill::Bytes { data, first_sector } => {
                let from = ((sector - first_sector) * SECTOR_BYTES) as usize;
                out.copy_from_slice(&data[from..from + out.len()]);
            }
            Fill::Random(seed) => each_sector(sector, out, |number, bytes| {
                let mut state = mix(seed ^ mix(number));
                for word in bytes.chunks_exact_mut(8) {
                    // xorshift: a zero state would stay zero, `mix` makes that all but impossible.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
            }),
            Fill::Text(seed) => each_sector(sector, out, |number, bytes| {
                let mut state = mix(seed ^ mix(number));
                let label = format!("{:016x}", state);
                bytes[..16].copy_from_slice(label.as_bytes());
                for word in bytes[16..].chunks_exact_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(WORDS[(state >> 60) as usize]);
                }
            }),
            Fill::Function(function) => {
                each_sector(sector, out, |number, bytes| function(number, bytes))
            }
        }
    }
}

fn each_sector(first: u64, out: &mut [u8], mut make: impl FnMut(u64, &mut [u8])) {
    for (index, bytes) in out.chunks_exact_mut(SECTOR_BYTES as usize).enumerate() {
        make(first + index as u64, bytes);
    }
}

/// One clipped piece of a [`SparseDisk`].
#[derive(Clone, Debug)]
pub struct Run<'a> {
    pub first_sector: u64,
    pub end_sector: u64,
    pub fill: &'a Fill,
}

/// The sectors that were written, and with what; later writes replace earlier ones.
#[derive(Clone, Debug, Default)]
pub struct SparseDisk {
    /// first sector -> (end sector, content); runs never overlap.
    runs: BTreeMap<u64, (u64, Fill)>,
}

impl SparseDisk {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn write(&mut self, first_sector: u64, sectors: u64, fill: Fill) -> &mut Self {
        if sectors > 0 {
            self.forget(first_sector, first_sector + sectors);
            self.runs
                .insert(first_sector, (first_sector + sectors, fill));
        }
        self
    }

    /// Writes given bytes, a whole number of sectors.
    pub fn write_bytes(&mut self, first_sector: u64, bytes: &[u8]) -> &mut Self {
        assert_eq!(bytes.len() as u64 % SECTOR_BYTES, 0, "whole sectors only");
        let fill = Fill::Bytes {
            data: bytes.into(),
            first_sector,
        };
        self.write(first_sector, bytes.len() as u64 / SECTOR_BYTES, fill)
    }

    /// Makes the sectors of `first..end` unwritten.
    pub fn forget(&mut self, first: u64, end: u64) {
        let touched: Vec<u64> = self
            .runs
            .range(..end)
            .rev()
            .take_while(|(_, (run_end, _))| *run_end > first)
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            if let Some((run_end, fill)) = self.runs.remove(&start) {
                if start < first {
                    self.runs.insert(start, (first, fill.clone()));
                }
                if run_end > end {
                    self.runs.insert(end, (run_end, fill));
                }
            }
        }
    }

    /// The written pieces of `first..end`, clipped to it, in ascending order.
    pub fn runs_in(&self, first: u64, end: u64) -> impl Iterator<Item = Run<'_>> {
        // At most one run starts before `first` and reaches into the range.
        let from = match self.runs.range(..first).next_back() {
            Some((start, (run_end, _))) if *run_end > first => *start,
            _ => first,
        };
        self.runs
            .range(from..end.max(from))
            .map(move |(start, (run_end, fill))| Run {
                first_sector: (*start).max(first),
                end_sector: (*run_end).min(end),
                fill,
            })
    }

    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.runs_in(0, u64::MAX)
    }

    pub fn is_written(&self, sector: u64) -> bool {
        self.runs_in(sector, sector + 1).next().is_some()
    }

    /// End of the last run, in sectors; 0 when nothing was written.
    pub fn end_sector(&self) -> u64 {
        self.runs.values().next_back().map_or(0, |(end, _)| *end)
    }

    /// Paints what was written over `out`, which stands for the sectors from `first_sector` on.
    pub fn paint(&self, first_sector: u64, out: &mut [u8]) {
        let end = first_sector + out.len() as u64 / SECTOR_BYTES;
        for run in self.runs_in(first_sector, end) {
            let from = ((run.first_sector - first_sector) * SECTOR_BYTES) as usize;
            let to = ((run.end_sector - first_sector) * SECTOR_BYTES) as usize;
            run.fill.render(run.first_sector, &mut out[from..to]);
        }
    }
}
