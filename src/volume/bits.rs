//! Fixed-offset integers, GUIDs and the CRC-32 variants that volume formats use.
//!
//! The integer readers give 0 past the end of the slice: callers pass buffers of constant size, and
//! a parser must not be able to panic even if one is wrong.

/// The byte at `at`.
pub fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// A number that is to be a place in memory. What no slice can be as long as becomes a place that is in none: `get` then
/// finds nothing, and memory for it is refused.
pub fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Little-endian 16 bits at `at`.
pub fn le16(bytes: &[u8], at: usize) -> u16 {
    field(bytes, at).map_or(0, u16::from_le_bytes)
}

/// Little-endian 32 bits at `at`.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    field(bytes, at).map_or(0, u32::from_le_bytes)
}

/// Little-endian 64 bits at `at`.
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    field(bytes, at).map_or(0, u64::from_le_bytes)
}

/// Big-endian 32 bits at `at`.
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    field(bytes, at).map_or(0, u32::from_be_bytes)
}

/// Whether `bytes` holds `magic` at `at`.
pub fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    at.checked_add(magic.len())
        .and_then(|end| bytes.get(at..end))
        .is_some_and(|found| found == magic)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A GUID as Microsoft and UEFI store it (three little-endian fields, then bytes), as text.
pub fn guid(bytes: &[u8], at: usize) -> String {
    let raw: [u8; 16] = field(bytes, at).unwrap_or([0; 16]);
    let tail: String = raw[10..].iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{:08x}-{:04x}-{:04x}-{:02x}{:02x}-{tail}",
        le32(&raw, 0),
        le16(&raw, 4),
        le16(&raw, 6),
        raw[8],
        raw[9],
    )
}

/// The CRC-32 of zlib and UEFI.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Updates a CRC-32 register (reflected) without any inversion.
pub fn crc32_update(register: u32, bytes: &[u8]) -> u32 {
    // The crate inverts at the beginning and at the end.
    let mut hasher = crc32fast::Hasher::new_with_initial(!register);
    hasher.update(bytes);
    !hasher.finalize()
}

/// Updates a CRC-32 register that is not reflected (polynomial 0x04C11DB7) without any inversion.
pub fn crc32_be_update(register: u32, bytes: &[u8]) -> u32 {
    // The same polynomial as the reflected one, with all bits in the opposite order.
    let mirrored: Vec<u8> = bytes.iter().map(|byte| byte.reverse_bits()).collect();
    crc32_update(register.reverse_bits(), &mirrored).reverse_bits()
}

/// The CRC-32C of iSCSI.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Updates a CRC-32C register (reflected) without any inversion, as ext4 and jbd2 use it.
pub fn crc32c_update(register: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!register, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_their_published_check_values() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        // CRC-32/MPEG-2.
        assert_eq!(crc32_be_update(u32::MAX, b"123456789"), 0x0376_E6E7);
    }

    #[test]
    fn registers_are_not_inverted_and_can_go_on() {
        // With the start of LVM, and with that of btrfs' hashes of names.
        assert_eq!(crc32_update(0xF597_A6CF, b"123456789"), 0x4991_CF02);
        assert_eq!(crc32c_update(0xFFFF_FFFE, b"block"), 152_464_153);
        for update in [crc32_update, crc32c_update, crc32_be_update] {
            assert_eq!(update(7, b""), 7);
            let whole = update(7, b"123456789");
            assert_eq!(update(update(7, b"1234"), b"56789"), whole);
        }
    }

    #[test]
    fn integers_past_the_end_are_zero_instead_of_a_panic() {
        assert_eq!(le32(&[1, 2, 3], 0), 0);
        assert_eq!(le64(&[1; 8], usize::MAX), 0);
        assert_eq!(le16(&[1, 2, 3], 1), 0x0302);
    }
}
