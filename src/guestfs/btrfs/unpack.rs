//! Compressed extents: zlib and zstd as they are, LZO in a frame of btrfs' own.
//!
//! Source: `zlib.c`, `lzo.c` (the description of the frame) and `zstd.c` in Linux' `fs/btrfs`.

use std::io::Read;

use super::fault::{bad, unsupported};
use crate::error::Result;
use crate::volume::bits::le32;

/// What a compressed extent unpacks to at most. A zstd window is not larger, either.
pub const MAX_UNPACKED_BYTES: usize = 128 << 10;
/// Lengths within LZO extents.
const LEN_BYTES: usize = 4;

/// A compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zlib.
    Zlib,
    /// LZO1X, sector by sector.
    Lzo,
    /// A zstd frame.
    Zstd,
}

impl Compression {
    /// The compression with this number in an extent item, `None` for what is stored as it is.
    ///
    /// # Errors
    /// `Unsupported` for others.
    pub fn from_number(number: u8) -> Result<Option<Self>> {
        Ok(Some(match number {
            0 => return Ok(None),
            1 => Compression::Zlib,
            2 => Compression::Lzo,
            3 => Compression::Zstd,
            other => {
                return Err(unsupported(format_args!(
                    "an extent with compression {other} is not read"
                )));
            }
        }))
    }

    /// Unpacks an extent to `len` bytes. What is behind its end (it is stored in whole sectors) does not matter.
    /// Only of the extent in which a file ends, the last bytes may be missing: they are zeros.
    ///
    /// # Errors
    /// `Corrupt` when the extent is damaged, or unpacks to another length.
    pub fn unpack(
        self,
        packed: &[u8],
        len: usize,
        sector_bytes: usize,
        may_be_short: bool,
    ) -> Result<Vec<u8>> {
        if len > MAX_UNPACKED_BYTES {
            return Err(bad("a compressed extent is too large"));
        }
        let mut out = vec![0; len];
        let found = match self {
            Compression::Zlib => libdeflater::Decompressor::new()
                .zlib_decompress(packed, &mut out)
                .ok(),
            Compression::Lzo => lzo(packed, &mut out, sector_bytes),
            Compression::Zstd => zstd(packed, &mut out),
        };
        match found {
            None => Err(bad("a compressed extent is damaged")),
            Some(found) if found < len && !may_be_short => {
                Err(bad("a compressed extent ends too early"))
            }
            Some(_) => Ok(out),
        }
    }
}

/// Fills `out` from the front; says how far, `None` for what is damaged.
fn zstd(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    let window = MAX_UNPACKED_BYTES as u64;
    let mut decoder =
        ruzstd::decoding::StreamingDecoder::new_with_max_window_size(packed, window).ok()?;
    let mut filled = 0;
    while filled < out.len() {
        match decoder.read(out.get_mut(filled..)?).ok()? {
            0 => break,
            more => filled += more,
        }
    }
    Some(filled)
}

/// Like [`zstd`]. The length of all comes first, itself included; then pieces, each behind its length, that
/// unpack to a sector. A length never crosses from one sector into the next: the bytes before are left out.
fn lzo(packed: &[u8], out: &mut [u8], sector_bytes: usize) -> Option<usize> {
    if sector_bytes < LEN_BYTES {
        return None;
    }
    let total = le32(packed.get(..LEN_BYTES)?, 0) as usize;
    let packed = packed.get(..total)?;
    let (mut at, mut filled) = (LEN_BYTES, 0);
    while at < total && filled < out.len() {
        let left = sector_bytes - at % sector_bytes;
        if left < LEN_BYTES {
            at += left;
            continue;
        }
        let start = at + LEN_BYTES;
        let len = le32(packed.get(at..start)?, 0) as usize;
        at = start.checked_add(len)?;
        let room = sector_bytes.min(out.len() - filled);
        let piece = lzo1x::decompress(packed.get(start..at)?, room).ok()?;
        out.get_mut(filled..filled + piece.len())?
            .copy_from_slice(&piece);
        filled += piece.len();
    }
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    use Compression::{Lzo, Zlib, Zstd};

    /// "brfs " 20 times.
    const ZLIB: &[u8] = &[
        0x78, 0xDA, 0x4B, 0x2A, 0x4A, 0x2B, 0x56, 0x48, 0xA2, 0x2D, 0x01, 0x00, 0x25, 0xD3, 0x24,
        0x05,
    ];
    const ZSTD: &[u8] = &[
        0x28, 0xB5, 0x2F, 0xFD, 0x20, 0x64, 0x65, 0x00, 0x00, 0x28, 0x62, 0x72, 0x66, 0x73, 0x20,
        0x01, 0x00, 0x8C, 0xA9, 0x68, 0x01,
    ];
    /// Two pieces, of sectors of 16 bytes: after the first one there is no room for the length of the next,
    /// which then crosses a sector. `0x11, 0, 0` is LZO's end; 17 and a number: so many bytes as they are.
    const LZO: &[u8] = b"\
        \x22\0\0\0\x06\0\0\0\x13ab\x11\0\0..\
        \x0E\0\0\0\x1B0123456789\x11\0\0behind";

    fn text(times: usize) -> Vec<u8> {
        b"brfs ".repeat(times)
    }

    #[test]
    fn extents_are_unpacked_whatever_is_behind_them() {
        for (method, packed) in [(Zlib, ZLIB), (Zstd, ZSTD)] {
            assert_eq!(method.unpack(packed, 100, 4096, false).unwrap(), text(20));
            let padded = [packed, &[0; 50]].concat();
            assert_eq!(method.unpack(&padded, 100, 4096, false).unwrap(), text(20));
        }
        let unpacked = Lzo.unpack(LZO, 12, 16, false).unwrap();
        assert_eq!(unpacked, b"ab0123456789");
    }

    #[test]
    fn only_the_end_of_a_file_may_be_missing() {
        for (method, packed, len) in [(Zlib, ZLIB, 100), (Zstd, ZSTD, 100), (Lzo, LZO, 12)] {
            assert!(method.unpack(packed, len + 1, 16, false).is_err());
            let padded = method.unpack(packed, len + 3, 16, true).unwrap();
            assert_eq!(padded[len..], [0; 3], "{method:?}");
            // A stream that is cut is damaged, wherever it is.
            for cut in [0, 1, 3, packed.len() / 2] {
                let cut = method.unpack(&packed[..cut], len, 16, true);
                assert!(cut.is_err(), "{method:?}");
            }
        }
    }

    #[test]
    fn more_than_was_promised_is_damage_or_left_out() {
        assert!(Zlib.unpack(ZLIB, 99, 4096, false).is_err());
        assert!(Lzo.unpack(LZO, 11, 16, false).is_err());
        // Linux stops there, too.
        assert_eq!(Zstd.unpack(ZSTD, 99, 4096, false).unwrap(), text(20)[..99]);
    }

    #[test]
    fn sizes_are_bounded() {
        for (method, packed) in [(Zlib, ZLIB), (Zstd, ZSTD), (Lzo, LZO)] {
            let most = method.unpack(packed, MAX_UNPACKED_BYTES, 16, true);
            assert_eq!(most.unwrap().len(), 128 << 10);
            for len in [MAX_UNPACKED_BYTES + 1, usize::MAX] {
                assert!(method.unpack(packed, len, 16, true).is_err());
            }
        }
        // "xxxxx", with a window of 128 KiB and of 256.
        for (window, is_read) in [(0x38, true), (0x40, false)] {
            let frame = [0x28, 0xB5, 0x2F, 0xFD, 0, window, 0x2B, 0, 0, b'x'];
            let unpacked = Zstd.unpack(&frame, 5, 4096, false);
            assert_eq!(unpacked.ok(), is_read.then(|| b"xxxxx".to_vec()));
        }
    }

    #[test]
    fn lengths_in_lzo_extents_are_checked() {
        for (what, at, byte) in [
            ("longer than what is there", 0, 0x29),
            ("a piece longer than the rest", 4, 0x1B),
            ("a piece of 4 GiB", 7, 0xFF),
            ("a piece of nothing", 4, 0),
            ("cut within a length", 0, 0x13),
        ] {
            let mut packed = LZO.to_vec();
            packed[at] = byte;
            assert!(Lzo.unpack(&packed, 12, 16, true).is_err(), "{what}");
        }
        for sector_bytes in [0, 1, 3] {
            assert!(Lzo.unpack(LZO, 12, sector_bytes, true).is_err());
        }
        assert_eq!(Lzo.unpack(&[4, 0, 0, 0], 2, 16, true).unwrap(), [0; 2]);
    }

    #[test]
    fn numbers_are_those_of_linux() {
        let known = [None, Some(Zlib), Some(Lzo), Some(Zstd)];
        for (method, number) in known.into_iter().zip(0..) {
            assert_eq!(Compression::from_number(number).unwrap(), method);
        }
        assert!(Compression::from_number(4).is_err());
    }
}
