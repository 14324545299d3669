//! The five compressions of squashfs 4, each with a bound on what comes out.

use std::io::Read;

use crate::error::{Error, ErrorKind, Result};

/// What an xz block may need besides its output: mksquashfs keeps the dictionary at a block's size.
const XZ_MEMORY_KIB: u32 = 16 << 10;

/// A compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zlib, whatever its name.
    Gzip,
    /// LZO1X.
    Lzo,
    /// xz with LZMA2 and perhaps a filter for machine code.
    Xz,
    /// A bare LZ4 block.
    Lz4,
    /// A zstd frame.
    Zstd,
}

impl Compression {
    /// The compression with this number in the superblock.
    ///
    /// # Errors
    /// `Unsupported` for others.
    pub fn from_number(number: u16) -> Result<Self> {
        Ok(match number {
            1 => Compression::Gzip,
            3 => Compression::Lzo,
            4 => Compression::Xz,
            5 => Compression::Lz4,
            6 => Compression::Zstd,
            other => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("squashfs with compression {other} is not read"),
                ));
            }
        })
    }

    /// Unpacks a block of at most `max` bytes.
    ///
    /// # Errors
    /// `Corrupt` when the block is damaged or longer.
    pub fn unpack(self, packed: &[u8], max: usize) -> Result<Vec<u8>> {
        let unpacked = match self {
            Compression::Gzip => {
                let mut out = vec![0; max];
                libdeflater::Decompressor::new()
                    .zlib_decompress(packed, &mut out)
                    .ok()
                    .map(|len| cut(out, len))
            }
            Compression::Lzo => lzo1x::decompress(packed, max).ok(),
            Compression::Lz4 => {
                let mut out = vec![0; max];
                lz4_flex::block::decompress_into(packed, &mut out)
                    .ok()
                    .map(|len| cut(out, len))
            }
            Compression::Zstd => {
                let mut out = vec![0; max];
                ruzstd::decoding::FrameDecoder::new()
                    .decode_all(packed, &mut out)
                    .ok()
                    .map(|len| cut(out, len))
            }
            Compression::Xz => xz(packed, max),
        };
        unpacked
            .filter(|bytes| bytes.len() <= max)
            .ok_or_else(|| Error::corrupt("squashfs: a compressed block is damaged"))
    }
}

fn cut(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.truncate(len);
    bytes
}

fn xz(packed: &[u8], max: usize) -> Option<Vec<u8>> {
    let reader = lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB);
    let mut out = Vec::new();
    // One byte more than may come tells what is too long.
    reader.take(max as u64 + 1).read_to_end(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_or_too_long_is_an_error_in_every_compression() {
        use Compression::{Gzip, Lz4, Lzo, Xz, Zstd};
        for compression in [Gzip, Lzo, Xz, Lz4, Zstd] {
            for packed in [&b""[..], b"\x78", &[0xFF; 100], b"\xFD7zXZ\0\0\x04"] {
                assert!(
                    compression
                        .unpack(packed, 8192)
                        .is_ok_and(|bytes| bytes.len() <= 8192)
                        || compression.unpack(packed, 8192).is_err()
                );
            }
        }
        // 100 zeros in zlib, and in LZ4.
        let zlib = [0x78, 0x9C, 0x63, 0x60, 0xA0, 0x3D, 0, 0, 0, 0x64, 0, 0x01];
        assert_eq!(Gzip.unpack(&zlib, 100).unwrap(), [0; 100]);
        assert!(Gzip.unpack(&zlib, 99).is_err());
        let lz4 = [0x1F, 0, 1, 0, 75, 0x50, 0, 0, 0, 0, 0];
        assert_eq!(Lz4.unpack(&lz4, 100).unwrap(), [0; 100]);
        assert!(Lz4.unpack(&lz4, 99).is_err());
        assert!(Compression::from_number(2).is_err());
    }
}
