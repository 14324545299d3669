//! A stream of bits in 16-bit little-endian words, the first bit the highest one of a word; whole bytes
//! may lie between the words. XPRESS and LZX share it ([MS-XCA] 2.2, [MS-PATCH] 2.1).

use super::error::damaged;
use crate::error::Result;

/// Reads such a stream. At least 16 bits are at hand at any time: past the end they are zeros, and
/// [`Bits::check`] tells whether any of these were used.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// The first byte that was not loaded.
    at: usize,
    /// The bits at hand, from the highest one on.
    buffer: u32,
    /// How many there are: 16 to 31.
    count: u32,
    /// How many of them, the last ones, are not in the stream.
    invented: u32,
}

impl<'a> Bits<'a> {
    /// From a byte on.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        let mut bits = Bits {
            bytes,
            at,
            buffer: 0,
            count: 0,
            invented: 0,
        };
        bits.fill();
        bits
    }

    fn fill(&mut self) {
        if self.count >= 16 {
            return;
        }
        let word = match self.bytes.get(self.at..).unwrap_or_default() {
            [low, high, ..] => {
                self.at += 2;
                u16::from_le_bytes([*low, *high])
            }
            _ => {
                self.invented += 16;
                0
            }
        };
        self.buffer |= u32::from(word) << (16 - self.count);
        self.count += 16;
    }

    /// The next 16 bits, which stay.
    pub(super) fn peek(&self) -> u16 {
        let [high, low, ..] = self.buffer.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// Drops up to 16 bits.
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
        self.fill();
    }

    /// The next bits, up to 16, as a number.
    pub(super) fn take(&mut self, count: u32) -> u32 {
        let value = u32::from(self.peek()) >> (16 - count);
        self.skip(count);
        value
    }

    /// The next bits, up to 8.
    pub(super) fn take_byte(&mut self, count: u32) -> u8 {
        let [high, ..] = self.buffer.to_be_bytes();
        self.skip(count);
        // None of them: a shift by all of a type's bits is not one.
        high.checked_shr(8 - count).unwrap_or(0)
    }

    /// The byte behind the words that were loaded.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub(super) fn byte(&mut self) -> Result<u8> {
        let byte = *self.bytes.get(self.at).ok_or_else(damaged)?;
        self.at += 1;
        Ok(byte)
    }

    /// The place of the first byte behind the word in use; behind the next word when none is in use.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub(super) fn aligned(&self) -> Result<usize> {
        match (self.invented, self.count) {
            // One word was loaded and not begun: it is padding.
            (0, 16) => Ok(self.at),
            // The last word was loaded ahead.
            (0, _) => Ok(self.at - 2),
            _ => Err(damaged()),
        }
    }

    /// Makes sure that all bits that were used are in the stream.
    ///
    /// # Errors
    /// `Corrupt` otherwise.
    pub(super) fn check(&self) -> Result<()> {
        match self.invented <= self.count {
            true => Ok(()),
            false => Err(damaged()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_from_the_top_of_words_and_bytes_from_between_them() {
        let bytes = [0x34, 0x12, 0x78, 0x56, 0xAA, 0xCD, 0xAB];
        let mut bits = Bits::new(&bytes, 0);
        assert_eq!(bits.take(0), 0);
        assert_eq!(bits.take(4), 1);
        assert_eq!(bits.take(12), 0x234);
        // The next word is at hand already.
        assert_eq!(bits.byte().unwrap(), 0xAA);
        assert_eq!(bits.take(16), 0x5678);
        assert_eq!(bits.take(16), 0xABCD);
        assert!(bits.check().is_ok());
        assert_eq!(bits.take(1), 0);
        assert!(bits.check().is_err());
        assert!(bits.byte().is_err());
    }

    #[test]
    fn the_last_byte_by_itself_is_no_word() {
        let mut bits = Bits::new(&[0xFF, 0xFF, 0xFF], 0);
        assert_eq!(bits.take(16), 0xFFFF);
        assert!(bits.check().is_ok());
        assert_eq!(bits.take(1), 0);
        assert!(bits.check().is_err());
    }

    #[test]
    fn alignment_skips_one_to_sixteen_bits() {
        let bytes = [0; 8];
        for (used, place) in [(0, 2), (1, 2), (15, 2), (16, 4), (17, 4), (32, 6)] {
            let mut bits = Bits::new(&bytes, 0);
            for _ in 0..used {
                bits.take(1);
            }
            assert_eq!(bits.aligned().unwrap(), place, "{used}");
        }
        assert!(Bits::new(&[0], 0).aligned().is_err());
    }
}
