//! XPRESS with Huffman codes: [MS-XCA] 2.2, "LZ77+Huffman".
//!
//! A chunk begins with 256 bytes of code lengths, 4 bits for each of 512 symbols, the lower half of a byte
//! first. Symbols below 256 are bytes. In the others, the low 4 bits begin a match's length, and the 4
//! bits above say how many bits of its distance follow.

use super::bits::Bits;
use super::error::damaged;
use super::huffman::Code;
use super::matches::copy_match;
use crate::error::Result;

const LENS_BYTES: usize = 256;
const MIN_MATCH: usize = 3;

/// Unpacks a chunk; `out` is as long as what was packed.
///
/// # Errors
/// `Corrupt` for anything that is not such a chunk.
pub(super) fn unpack(packed: &[u8], out: &mut [u8]) -> Result<()> {
    let (packed_lens, _) = packed.split_at_checked(LENS_BYTES).ok_or_else(damaged)?;
    let mut lens = [0; 2 * LENS_BYTES];
    for (pair, byte) in lens.chunks_exact_mut(2).zip(packed_lens) {
        pair.copy_from_slice(&[byte & 15, byte >> 4]);
    }
    let code = Code::new(&lens)?;
    let mut bits = Bits::new(packed, LENS_BYTES);
    let mut done = 0;
    while done < out.len() {
        let symbol = code.next(&mut bits)?;
        if let Ok(byte) = u8::try_from(symbol) {
            *out.get_mut(done).ok_or_else(damaged)? = byte;
            done += 1;
            continue;
        }
        let distance_bits = u32::from(symbol >> 4) & 15;
        // Longer lengths are bytes between the words of the bits.
        let len = match usize::from(symbol & 15) {
            15 => match bits.byte()? {
                255 => {
                    let long = u16::from_le_bytes([bits.byte()?, bits.byte()?]);
                    Some(usize::from(long))
                        .filter(|len| *len >= 15)
                        .ok_or_else(damaged)?
                }
                more => 15 + usize::from(more),
            },
            short => short,
        };
        let distance = (1 << distance_bits) + bits.take(distance_bits);
        done = copy_match(out, done, distance, len + MIN_MATCH)?;
    }
    bits.check()
}
