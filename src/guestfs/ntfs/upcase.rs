//! The volume's own table of upper case, which the order of names in directories goes by.
//!
//! `$UpCase` is record 10: for each unit of UTF-16 the one in upper case, 65,536 of 16 bits.

use std::cmp::Ordering;

use super::attribute::kind;
use super::error::bad;
use super::fields::units;
use super::volume::Volume;
use crate::error::Result;

const RECORD: u64 = 10;
const UNITS: usize = 1 << 16;

/// A table of upper case.
pub struct Upcase(Vec<u16>);

impl Upcase {
    /// Reads a volume's table.
    ///
    /// # Errors
    /// `Corrupt` when it is not whole.
    pub fn read(volume: &Volume) -> Result<Self> {
        let file = volume.file(RECORD)?;
        let stream = volume
            .stream(&file, kind::DATA, &[])?
            .ok_or_else(|| bad("the table of upper case is not there"))?
            .into_metadata(&volume.clusters)?;
        if stream.len_bytes() < 2 * UNITS as u64 {
            return Err(bad("the table of upper case is cut short"));
        }
        let mut bytes = vec![0; 2 * UNITS];
        stream.read_exact_at(&mut bytes, 0)?;
        Ok(Upcase(units(&bytes, 0, UNITS)?))
    }

    /// Compares two names, unit by unit, in upper case.
    pub fn compare(&self, one: &[u16], other: &[u16]) -> Ordering {
        let upper = |unit: &u16| self.0.get(usize::from(*unit)).copied().unwrap_or(*unit);
        one.iter().map(upper).cmp(other.iter().map(upper))
    }
}
