//! The four kinds of checksums, of which a file system uses one for metadata and contents.

use super::fault::unsupported;
use crate::error::Result;

/// A kind of checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-32C.
    Crc32c,
    /// XXH64, with 0 as its seed.
    XxHash64,
    /// SHA-256.
    Sha256,
    /// BLAKE2b of 256 bits.
    Blake2b,
}

impl Checksum {
    /// The kind with this number in the superblock.
    ///
    /// # Errors
    /// `Unsupported` for others.
    pub fn from_number(number: u16) -> Result<Self> {
        Ok(match number {
            0 => Checksum::Crc32c,
            1 => Checksum::XxHash64,
            2 => Checksum::Sha256,
            3 => Checksum::Blake2b,
            other => {
                return Err(unsupported(format_args!(
                    "checksums of kind {other} are not read"
                )));
            }
        })
    }

    /// Bytes of one.
    pub fn len_bytes(self) -> usize {
        match self {
            Checksum::Crc32c => 4,
            Checksum::XxHash64 => 8,
            Checksum::Sha256 | Checksum::Blake2b => 32,
        }
    }

    /// Whether `stored` begins with the checksum of `bytes`.
    pub fn verify(self, bytes: &[u8], stored: &[u8]) -> bool {
        match self {
            Checksum::Crc32c => stored.starts_with(&crc32c::crc32c(bytes).to_le_bytes()),
            Checksum::XxHash64 => {
                stored.starts_with(&twox_hash::XxHash64::oneshot(0, bytes).to_le_bytes())
            }
            Checksum::Sha256 => {
                let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
                stored.starts_with(sum.as_ref())
            }
            Checksum::Blake2b => {
                let sum = blake2b_simd::Params::new().hash_length(32).hash(bytes);
                stored.starts_with(sum.as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values_are_verified_and_others_are_not() {
        let known: [(u16, &[u8]); 4] = [
            (0, &[0xB7, 0x3F, 0x4B, 0x36]),
            (1, &[0x99, 0x09, 0x77, 0xAD, 0xF5, 0x2C, 0xBC, 0x44]),
            (
                2,
                b"\xba\x78\x16\xbf\x8f\x01\xcf\xea\x41\x41\x40\xde\x5d\xae\x22\x23\
                  \xb0\x03\x61\xa3\x96\x17\x7a\x9c\xb4\x10\xff\x61\xf2\x00\x15\xad",
            ),
            (
                3,
                b"\xbd\xdd\x81\x3c\x63\x42\x39\x72\x31\x71\xef\x3f\xee\x98\x57\x9b\
                  \x94\x96\x4e\x3b\xb1\xcb\x3e\x42\x72\x62\xc8\xc0\x68\xd5\x23\x19",
            ),
        ];
        for (number, sum) in known {
            let kind = Checksum::from_number(number).unwrap();
            assert_eq!(kind.len_bytes(), sum.len());
            assert!(kind.verify(b"abc", sum), "{kind:?}");
            let mut field = sum.to_vec();
            field.resize(32, 0);
            assert!(kind.verify(b"abc", &field), "{kind:?} in a longer field");
            assert!(!kind.verify(b"abd", sum), "{kind:?} of something else");
            assert!(!kind.verify(b"abc", &sum[..sum.len() - 1]), "{kind:?} cut");
            field[sum.len() - 1] ^= 1;
            assert!(!kind.verify(b"abc", &field), "{kind:?} in its last byte");
        }
        assert!(Checksum::from_number(4).is_err());
    }
}
