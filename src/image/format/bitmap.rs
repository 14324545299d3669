//! Bit arrays: sector bitmaps and block tables as stored (most significant bit first), and the
//! plain little ones used to combine them.

use std::ops::Range;

/// Bytes of a footer, and of every VHD sector.
pub const SECTOR_BYTES: u64 = 512;
use crate::error::Result;

/// Sets bit `n` of an array of words (least significant bit first: our own, never stored).
pub(in crate::image) fn set(words: &mut [u64], n: u64) {
    words[(n / 64) as usize] |= 1 << (n % 64);
}

/// Bit `n` of an array of words.
pub(in crate::image) fn get(words: &[u64], n: u64) -> bool {
    words[(n / 64) as usize] >> (n % 64) & 1 != 0
}

/// Bit `n` of a stored array, most significant bit first; bits past its end are clear.
pub(in crate::image) fn stored_bit(bytes: &[u8], n: u64) -> bool {
    bytes
        .get((n / 8) as usize)
        .is_some_and(|byte| byte << (n % 8) & 0x80 != 0)
}

/// Whether the first `count` bits of a stored array are all set.
pub(in crate::image) fn is_full(bytes: &[u8], count: u64) -> bool {
    let whole = (count / 8) as usize;
    bytes.len() as u64 * 8 >= count
        && bytes[..whole].iter().all(|&b| b == 0xFF)
        && (whole as u64 * 8..count).all(|n| stored_bit(bytes, n))
}

/// Calls `each` with the maximal runs of `within` (bytes of a block) whose sectors are all present
/// or all absent in a stored sector bitmap.
pub(in crate::image) fn split(
    bytes: &[u8],
    within: Range<u64>,
    mut each: impl FnMut(Range<u64>, bool) -> Result<()>,
) -> Result<()> {
    let mut start = within.start;
    while start < within.end {
        let present = stored_bit(bytes, start / SECTOR_BYTES);
        let mut end = (start / SECTOR_BYTES + 1) * SECTOR_BYTES;
        while end < within.end && stored_bit(bytes, end / SECTOR_BYTES) == present {
            end += SECTOR_BYTES;
        }
        let end = end.min(within.end);
        each(start..end, present)?;
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_most_significant_first() {
        assert!(stored_bit(&[0x80], 0));
        assert!(!stored_bit(&[0x80], 1));
        assert!(stored_bit(&[0, 0x01], 15));
        assert!(!stored_bit(&[0xFF], 8));
        assert!(is_full(&[0xFF, 0xC0], 10));
        assert!(!is_full(&[0xFF, 0xC0], 11));
        assert!(!is_full(&[0xFF], 9));
        assert!(is_full(&[], 0));
    }

    #[test]
    fn runs_cover_the_range_once() {
        let mut runs = Vec::new();
        split(&[0b1100_0000], 100..1700, |r, p| {
            runs.push((r, p));
            Ok(())
        })
        .unwrap();
        assert_eq!(runs, [(100..1024, true), (1024..1700, false)]);
    }
}
