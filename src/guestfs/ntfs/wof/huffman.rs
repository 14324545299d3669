//! Canonical Huffman codes: shorter codes first, those of one length in the order of their symbols.

use super::bits::Bits;
use super::error::damaged;
use crate::error::Result;

/// The longest code of either format.
const MAX_LEN: usize = 16;
const MAX_BITS: u32 = 16;
/// Codes up to this length are found in one step.
const FAST_LEN: usize = 10;

/// A code for up to 2048 symbols. It may leave bit patterns without a meaning; one that occurs is an error.
pub(super) struct Code {
    /// By the next `FAST_LEN` bits: the symbol above the 5 bits of its length, 0 for longer codes.
    fast: [u16; 1 << FAST_LEN],
    /// By length: the first code, how many there are, and the index of the first in `symbols`.
    long: [(u32, u32, u32); MAX_LEN + 1],
    symbols: Vec<u16>,
}

impl Code {
    /// The code in which symbol N is as many bits long as `lens[N]` says, at most 16; 0 for "does not occur".
    ///
    /// # Errors
    /// `Corrupt` when there cannot be so many codes of these lengths.
    pub(super) fn new(lens: &[u8]) -> Result<Self> {
        let mut counts = [0u32; MAX_LEN + 1];
        for &len in lens {
            *counts.get_mut(usize::from(len)).ok_or_else(damaged)? += 1;
        }
        let mut long = [(0, 0, 0); MAX_LEN + 1];
        let (mut code, mut index) = (0u32, 0u32);
        let by_len = long.iter_mut().zip(counts).zip(0..);
        for ((place, count), len) in by_len.skip(1) {
            code *= 2;
            *place = (code, count, index);
            code += count;
            index += count;
            if code > 1 << len {
                return Err(damaged());
            }
        }
        let mut symbols = vec![0; index as usize];
        let mut fast = [0; 1 << FAST_LEN];
        let mut next = long;
        for (&len, symbol) in lens.iter().zip(0u16..).filter(|(len, _)| **len > 0) {
            let (code, _, index) = next.get_mut(usize::from(len)).ok_or_else(damaged)?;
            *symbols.get_mut(*index as usize).ok_or_else(damaged)? = symbol;
            if usize::from(len) <= FAST_LEN {
                let span = 1 << (FAST_LEN - usize::from(len));
                let start = *code as usize * span;
                let patterns = fast.get_mut(start..start + span).ok_or_else(damaged)?;
                patterns.fill(symbol << 5 | u16::from(len));
            }
            *code += 1;
            *index += 1;
        }
        Ok(Code {
            fast,
            long,
            symbols,
        })
    }

    /// The next symbol.
    ///
    /// # Errors
    /// `Corrupt` when the next bits are none.
    pub(super) fn next(&self, bits: &mut Bits<'_>) -> Result<u16> {
        let peek = bits.peek();
        let pattern = usize::from(peek) >> (MAX_LEN - FAST_LEN);
        let entry = self.fast.get(pattern).copied().unwrap_or(0);
        if entry != 0 {
            bits.skip(u32::from(entry & 31));
            return Ok(entry >> 5);
        }
        for (&(first, count, index), len) in self.long.iter().zip(0..).skip(FAST_LEN + 1) {
            let above = (u32::from(peek) >> (MAX_BITS - len)).checked_sub(first);
            if let Some(above) = above.filter(|above| *above < count) {
                bits.skip(len);
                let symbol = self.symbols.get((index + above) as usize);
                return symbol.copied().ok_or_else(damaged);
            }
        }
        Err(damaged())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_all_lengths_are_told_apart() {
        // 0, 10, 110 … and two of 16 bits: the whole space.
        let mut lens: Vec<u8> = (1..=16).collect();
        lens.push(16);
        let code = Code::new(&lens).unwrap();
        for symbol in 0..17u32 {
            let pattern = match symbol {
                16 => 0xFFFF,
                _ => !(0xFFFF_u32 >> symbol) as u16,
            };
            let bytes = pattern.to_le_bytes();
            let mut bits = Bits::new(&bytes, 0);
            assert_eq!(u32::from(code.next(&mut bits).unwrap()), symbol);
            assert!(bits.check().is_ok());
        }
    }

    #[test]
    fn too_many_codes_are_refused_and_missing_ones_are_errors_where_they_occur() {
        assert!(Code::new(&[1, 1, 1]).is_err());
        assert!(Code::new(&[17]).is_err());
        let one = Code::new(&[0, 1]).unwrap();
        assert_eq!(one.next(&mut Bits::new(&[0, 0], 0)).unwrap(), 1);
        assert!(one.next(&mut Bits::new(&[0xFF, 0xFF], 0)).is_err());
        let none = Code::new(&[0; 5]).unwrap();
        assert!(none.next(&mut Bits::new(&[0, 0], 0)).is_err());
    }
}
