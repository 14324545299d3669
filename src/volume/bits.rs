//! Fixed-offset integers, GUIDs and the CRC-32 variants that volume formats use.
//!
//! The integer readers give 0 past the end of the slice: callers pass buffers of constant size, and
//! a parser must not be able to panic even if one is wrong.

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

/// Updates a reflected CRC-32 (polynomial 0xEDB88320) register without any final inversion.
pub fn crc32_update(mut register: u32, bytes: &[u8]) -> u32 {
    for &byte in bytes {
        register = (register >> 8) ^ TABLE[usize::from((register as u8) ^ byte)];
    }
    register
}

/// The CRC-32 of zlib and UEFI.
pub fn crc32(bytes: &[u8]) -> u32 {
    !crc32_update(u32::MAX, bytes)
}

/// The CRC-32C of iSCSI.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !crc32c_update(u32::MAX, bytes)
}

/// Updates a CRC-32C register (reflected) without any final inversion, as ext4 and jbd2 use it.
pub fn crc32c_update(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, &byte| {
        (register >> 8) ^ CASTAGNOLI[usize::from((register as u8) ^ byte)]
    })
}

/// Updates a CRC-32 register that is not reflected (polynomial 0x04C11DB7) without any final inversion.
pub fn crc32_be_update(register: u32, bytes: &[u8]) -> u32 {
    // The same polynomial as the reflected one, with all bits in the opposite order.
    bytes
        .iter()
        .fold(register.reverse_bits(), |register, &byte| {
            (register >> 8) ^ TABLE[usize::from((register as u8) ^ byte.reverse_bits())]
        })
        .reverse_bits()
}

const TABLE: [u32; 256] = table(0xEDB8_8320);
const CASTAGNOLI: [u32; 256] = table(0x82F6_3B78);

const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ polynomial
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
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
    fn integers_past_the_end_are_zero_instead_of_a_panic() {
        assert_eq!(le32(&[1, 2, 3], 0), 0);
        assert_eq!(le64(&[1; 8], usize::MAX), 0);
        assert_eq!(le16(&[1, 2, 3], 1), 0x0302);
    }
}
