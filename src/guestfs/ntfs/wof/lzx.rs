//! LZX as Windows images have it: [MS-PATCH] 2 describes a sister of it. What differs here:
//!
//! - A chunk of up to 32 KiB stands by itself, with a window of 32 KiB.
//! - The size of a block is one bit for "32 KiB", or that bit and 16 more.
//! - x86 calls are always translated, as in a file of 12,000,000 bytes in which the chunk is at 0.

use super::bits::Bits;
use super::error::damaged;
use super::huffman::Code;
use super::matches::copy_match;
use crate::error::Result;

/// The largest chunk.
pub(super) const MAX_BYTES: usize = 32 << 10;

/// Which distances a slot of a match stands for: the first one (plus [`DISTANCE_BIAS`]), and the bits to add.
const SLOTS: [(u32, u32); SLOT_COUNT] = slots();
const SLOT_COUNT: usize = 30;
/// The first three slots are the distances used last.
const DISTANCE_BIAS: u32 = 2;
const LITERALS: usize = 256;
const LENS_PER_SLOT: usize = 8;
const MAIN_SYMBOLS: usize = LITERALS + SLOTS.len() * LENS_PER_SLOT;
const LENGTH_SYMBOLS: usize = 249;
const PRE_SYMBOLS: usize = 20;
const ALIGNED_SYMBOLS: usize = 8;
/// How many bits of a distance an aligned block has a code for.
const ALIGNED_BITS: u32 = 3;
const MIN_MATCH: usize = 2;
/// Code lengths are stored as differences modulo this.
const LEN_MODULUS: u8 = 17;

const VERBATIM: u32 = 1;
const ALIGNED: u32 = 2;
const UNCOMPRESSED: u32 = 3;

const CALL: u8 = 0xE8;
const TRANSLATED_FILE_BYTES: i32 = 12_000_000;
/// Calls that begin in the last bytes of a chunk are as they were.
const UNTRANSLATED_TAIL: usize = 10;

const fn slots() -> [(u32, u32); SLOT_COUNT] {
    let mut slots = [(0, 0); SLOT_COUNT];
    let (mut number, mut first) = (0u32, 0);
    let mut rest: &mut [(u32, u32)] = &mut slots;
    while let Some((slot, behind)) = rest.split_first_mut() {
        let bits = if number < 4 { 0 } else { number / 2 - 1 };
        *slot = (first, bits);
        first += 1 << bits;
        number += 1;
        rest = behind;
    }
    slots
}

/// Unpacks a chunk; `out` is as long as what was packed.
///
/// # Errors
/// `Corrupt` for anything that is not such a chunk.
pub(super) fn unpack(packed: &[u8], out: &mut [u8]) -> Result<()> {
    if out.len() > MAX_BYTES {
        return Err(damaged());
    }
    let mut chunk = Chunk {
        packed,
        bits: Bits::new(packed, 0),
        main: [0; MAIN_SYMBOLS],
        length: [0; LENGTH_SYMBOLS],
        recent: [1; 3],
    };
    let mut done = 0;
    while done < out.len() {
        let kind = chunk.bits.take(3);
        let size = match chunk.bits.take(1) {
            1 => MAX_BYTES,
            _ => chunk.bits.take(16) as usize,
        };
        let end = done + size;
        if size == 0 || end > out.len() {
            return Err(damaged());
        }
        match kind {
            VERBATIM | ALIGNED => {
                let out = out.get_mut(..end).ok_or_else(damaged)?;
                chunk.compressed(out, done, kind == ALIGNED)?;
            }
            UNCOMPRESSED => chunk.uncompressed(out.get_mut(done..end).ok_or_else(damaged)?)?,
            _ => return Err(damaged()),
        }
        done = end;
    }
    chunk.bits.check()?;
    undo_translation(out);
    Ok(())
}

/// What passes from one block of a chunk to the next.
struct Chunk<'a> {
    packed: &'a [u8],
    bits: Bits<'a>,
    /// Code lengths, of which blocks store the differences.
    main: [u8; MAIN_SYMBOLS],
    length: [u8; LENGTH_SYMBOLS],
    /// The distances used last.
    recent: [u32; 3],
}

impl Chunk<'_> {
    /// A block that ends with `out`, of which the first bytes are done.
    fn compressed(&mut self, out: &mut [u8], mut done: usize, is_aligned: bool) -> Result<()> {
        let bits = &mut self.bits;
        let mut aligned = None;
        if is_aligned {
            let lens: [u8; ALIGNED_SYMBOLS] = std::array::from_fn(|_| bits.take_byte(3));
            aligned = Some(Code::new(&lens)?);
        }
        let (literals, matches) = self.main.split_at_mut(LITERALS);
        read_lens(bits, literals)?;
        read_lens(bits, matches)?;
        read_lens(bits, &mut self.length)?;
        let (main, length) = (Code::new(&self.main)?, Code::new(&self.length)?);
        while done < out.len() {
            let symbol = main.next(bits)?;
            if let Ok(byte) = u8::try_from(symbol) {
                *out.get_mut(done).ok_or_else(damaged)? = byte;
                done += 1;
                continue;
            }
            let symbol = usize::from(symbol) - LITERALS;
            let mut len = symbol % LENS_PER_SLOT;
            if len == LENS_PER_SLOT - 1 {
                len += usize::from(length.next(bits)?);
            }
            match symbol / LENS_PER_SLOT {
                slot @ 0..=2 => self.recent.swap(0, slot),
                slot => {
                    let (first, extra) = *SLOTS.get(slot).ok_or_else(damaged)?;
                    let added = match &aligned {
                        Some(aligned) if extra >= ALIGNED_BITS => {
                            let high = bits.take(extra - ALIGNED_BITS) << ALIGNED_BITS;
                            high + u32::from(aligned.next(bits)?)
                        }
                        _ => bits.take(extra),
                    };
                    let [last, before, _] = self.recent;
                    self.recent = [first + added - DISTANCE_BIAS, last, before];
                }
            }
            done = copy_match(out, done, self.recent[0], len + MIN_MATCH)?;
        }
        Ok(())
    }

    fn uncompressed(&mut self, out: &mut [u8]) -> Result<()> {
        let start = self.bits.aligned()?;
        let behind = self.packed.get(start..).unwrap_or_default();
        let (head, behind) = behind.split_at_checked(12).ok_or_else(damaged)?;
        for (distance, bytes) in self.recent.iter_mut().zip(head.as_chunks().0) {
            *distance = u32::from_le_bytes(*bytes);
        }
        let plain = behind.get(..out.len()).ok_or_else(damaged)?;
        out.copy_from_slice(plain);
        // Words go on at an even place.
        let end = start + 12 + out.len().next_multiple_of(2);
        self.bits = Bits::new(self.packed, end);
        Ok(())
    }
}

/// Reads code lengths, themselves in a code; `lens` holds those of the block before.
fn read_lens(bits: &mut Bits<'_>, lens: &mut [u8]) -> Result<()> {
    let pre: [u8; PRE_SYMBOLS] = std::array::from_fn(|_| bits.take_byte(4));
    let code = Code::new(&pre)?;
    let changed = |len: Option<&u8>, by: u16| match (len, u8::try_from(by)) {
        (Some(len), Ok(by @ 0..LEN_MODULUS)) => Ok((len + LEN_MODULUS - by) % LEN_MODULUS),
        _ => Err(damaged()),
    };
    let mut at = 0;
    while at < lens.len() {
        let (count, len) = match code.next(bits)? {
            17 => (4 + bits.take(4), 0),
            18 => (20 + bits.take(5), 0),
            19 => {
                let count = 4 + bits.take(1);
                (count, changed(lens.get(at), code.next(bits)?)?)
            }
            by => (1, changed(lens.get(at), by)?),
        };
        let end = at + count as usize;
        lens.get_mut(at..end).ok_or_else(damaged)?.fill(len);
        at = end;
    }
    Ok(())
}

/// The operands of calls were made absolute, so that calls of one function are alike. Here they become
/// relative again.
fn undo_translation(out: &mut [u8]) {
    let end = out.len().saturating_sub(UNTRANSLATED_TAIL);
    let mut at = 0;
    let next = |out: &[u8], at: usize| {
        let found = out.get(at..end)?.iter().position(|&byte| byte == CALL)?;
        Some(at + found)
    };
    while let Some(found) = next(out, at) {
        at = found;
        let operand = out
            .get_mut(at + 1..)
            .and_then(|rest| rest.first_chunk_mut());
        // A chunk has 32 KiB at most.
        let (Some(operand), Ok(place)) = (operand, i32::try_from(at)) else {
            return;
        };
        let absolute = i32::from_le_bytes(*operand);
        let relative = match absolute {
            0..TRANSLATED_FILE_BYTES => Some(absolute - place),
            _ if (-place..0).contains(&absolute) => Some(absolute + TRANSLATED_FILE_BYTES),
            _ => None,
        };
        if let Some(relative) = relative {
            *operand = relative.to_le_bytes();
        }
        at += 5;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_double_in_pairs() {
        assert_eq!(
            SLOTS[..8],
            [
                (0, 0),
                (1, 0),
                (2, 0),
                (3, 0),
                (4, 1),
                (6, 1),
                (8, 2),
                (12, 2)
            ]
        );
        let (first, bits) = SLOTS[29];
        assert_eq!(first + (1 << bits), 32 << 10);
    }

    #[test]
    fn calls_are_made_relative_except_at_the_end_and_out_of_range() {
        let mut code = vec![0x90; 60];
        for (at, operand) in [
            (3, 100),
            (10, -10),
            (20, -21),
            (30, 12_000_000),
            (40, 0x00E8_E8E8),
            (50, 100),
        ] {
            code[at] = CALL;
            code[at + 1..at + 5].copy_from_slice(&i32::to_le_bytes(operand));
        }
        undo_translation(&mut code);
        let operand = |at: usize| i32::from_le_bytes(code[at + 1..at + 5].try_into().unwrap());
        assert_eq!(
            [3, 10, 20, 30].map(operand),
            [97, 11_999_990, -21, 12_000_000]
        );
        // 0xE8E8E8 is beyond 12,000,000, and the E8 in it begins nothing.
        assert_eq!([40, 50].map(operand), [0x00E8_E8E8, 100]);
        undo_translation(&mut [CALL; 10]);
        undo_translation(&mut []);
    }
}
