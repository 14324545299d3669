//! The little-endian numbers and names that the structures of NTFS are made of. Nothing is read past an end.

use super::error::bad;
use crate::error::Result;

/// `len` bytes at `at`.
///
/// # Errors
/// `Corrupt` when they are not all there, here and below.
pub(super) fn part(bytes: &[u8], at: usize, len: usize) -> Result<&[u8]> {
    at.checked_add(len)
        .and_then(|end| bytes.get(at..end))
        .ok_or_else(|| bad("a structure is cut short"))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let found = part(bytes, at, N)?.first_chunk();
    found
        .copied()
        .ok_or_else(|| bad("a structure is cut short"))
}

/// 8 bits.
pub(super) fn byte(bytes: &[u8], at: usize) -> Result<u8> {
    array::<1>(bytes, at).map(|[byte]| byte)
}

/// 16 bits.
pub(super) fn le16(bytes: &[u8], at: usize) -> Result<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// 32 bits.
pub(super) fn le32(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// 64 bits.
pub(super) fn le64(bytes: &[u8], at: usize) -> Result<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// `count` units of UTF-16.
pub(super) fn units(bytes: &[u8], at: usize, count: usize) -> Result<Vec<u16>> {
    let (pairs, _) = part(bytes, at, count.saturating_mul(2))?.as_chunks();
    Ok(pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect())
}
