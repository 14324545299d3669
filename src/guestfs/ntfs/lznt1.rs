//! LZNT1, what NTFS compresses with: [MS-XCA] 2.5.
//!
//! A unit is a sequence of chunks, each of which stands for 4 KiB. The head of a chunk has the length of what
//! follows less one in its low 12 bits, 3 in the next three, and above them whether it is packed. What is
//! packed comes in groups of eight, told by the bits of a byte: a byte as it is, or the length and distance of
//! what was there before in 16 bits. How many of these are the distance depends on how far the chunk is.

use super::error::bad;
use super::fields::{le16, part};
use crate::error::Result;

/// A chunk stands for so much.
const CHUNK_BYTES: usize = 4096;
const PACKED: u16 = 0x8000;
const SIGNATURE: u16 = 3;

/// Unpacks one unit. Each chunk stands for 4 KiB, whatever it unpacks to: the next one starts behind them.
///
/// # Errors
/// `Corrupt` when a chunk is damaged.
pub fn unpack(stored: &[u8], unit_bytes: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(unit_bytes);
    let mut rest = stored;
    while out.len() < unit_bytes && rest.len() >= 2 {
        let head = le16(rest, 0)?;
        if head == 0 {
            break;
        }
        if head >> 12 & 7 != SIGNATURE {
            return Err(bad("a compressed chunk has a strange head"));
        }
        let len = usize::from(head & 0x0FFF) + 1;
        let chunk = part(rest, 2, len)?;
        let start = out.len();
        match head & PACKED {
            0 => out.extend_from_slice(chunk),
            _ => unpack_chunk(chunk, &mut out)?,
        }
        if out.len() == start {
            return Err(bad("a compressed chunk is empty"));
        }
        out.resize(start + CHUNK_BYTES, 0);
        rest = rest.get(2 + len..).unwrap_or_default();
    }
    out.resize(unit_bytes, 0);
    Ok(out)
}

/// Unpacks one chunk to the end of `out`.
fn unpack_chunk(chunk: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    let mut rest = chunk;
    while let Some((&kinds, behind)) = rest.split_first() {
        rest = behind;
        for bit in 0..8 {
            let done = out.len() - start;
            // What follows a full chunk stands for nothing.
            if done == CHUNK_BYTES {
                return Ok(());
            }
            let Some((&literal, behind)) = rest.split_first() else {
                return Ok(());
            };
            if kinds >> bit & 1 == 0 {
                out.push(literal);
                rest = behind;
                continue;
            }
            let word = usize::from(le16(rest, 0)?);
            rest = rest.get(2..).unwrap_or_default();
            let len_bits = 16 - distance_bits(done);
            let distance = (word >> len_bits) + 1;
            let len = (word & ((1 << len_bits) - 1)) + 3;
            if distance > done || done + len > CHUNK_BYTES {
                return Err(bad("a compressed chunk is damaged"));
            }
            let mut from = out.len() - distance;
            let mut left = len;
            // It may go on with what it has written itself.
            while left > 0 {
                let take = left.min(out.len() - from);
                out.extend_from_within(from..from + take);
                from += take;
                left -= take;
            }
        }
    }
    Ok(())
}

/// How many bits a distance has when so many bytes are there: enough to reach the first one, and at least 4.
fn distance_bits(done: usize) -> u32 {
    let reach = done.saturating_sub(1);
    (usize::BITS - reach.leading_zeros()).clamp(4, 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_chunks_do_not_shift_those_behind_them() {
        // Two plain chunks: 3 bytes, then 2.
        let stored = [0x02, 0x30, 1, 2, 3, 0x01, 0x30, 4, 5, 0, 0];
        let plain = unpack(&stored, 16384).unwrap();
        assert_eq!(plain.len(), 16384);
        assert_eq!(plain[..4], [1, 2, 3, 0]);
        assert_eq!(plain[4096..4099], [4, 5, 0]);
        assert!(unpack(&[0xFF, 0x3F, 1], 16384).is_err());
    }

    #[test]
    fn the_example_of_ms_xca_is_unpacked() {
        // 2.5.3 of the specification.
        let stored = [
            0x38, 0xB0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xA2,
            0x47, 0x01, 0xA0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xC0,
            0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xB4, 0x02, 0x4A, 0x44, 0xEF, 0x03, 0x58,
            0x02, 0x8C, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xBE, 0x00, 0x9E, 0x00, 0x04, 0x01,
            0x18, 0x90, 0x00,
        ];
        let plain = "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E \
                     F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        let unpacked = unpack(&stored, CHUNK_BYTES).unwrap();
        assert_eq!(&unpacked[..plain.len()], plain.as_bytes());
        assert!(unpacked[plain.len()..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn what_reaches_out_of_its_chunk_is_damaged() {
        // A match before there is anything; one that is cut; one that makes the chunk too long.
        for stored in [
            &[0x02, 0xB0, 0x01, 0x00, 0x00][..],
            &[0x02, 0xB0, 0x02, 0x41, 0x00],
            &[0x03, 0xB0, 0x02, 0x41, 0xFF, 0x0F],
        ] {
            assert!(unpack(stored, CHUNK_BYTES).is_err(), "{stored:x?}");
        }
        // A run of one byte fills it.
        let full = unpack(&[0x03, 0xB0, 0x02, 0x41, 0xFC, 0x0F], CHUNK_BYTES).unwrap();
        assert_eq!(full, [0x41; CHUNK_BYTES]);
        // Not a chunk at all.
        assert!(unpack(&[0x02, 0x80, 1, 2, 3], CHUNK_BYTES).is_err());
    }
}
