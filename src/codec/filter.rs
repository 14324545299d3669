//! Chunk filters: the compression of VHD directory parts.
//!
//! Source: `chunk-filters.json` as written by XO's `VhdDirectory`; an absent file or an empty list
//! means no filter. XO knows one filter per directory.

use std::borrow::Cow;
use std::io::Read;

use brotlic::decode::{BrotliDecoder, DecoderInfo};
use libdeflater::{DecompressionError, Decompressor};

use crate::error::{Error, ErrorKind, Result};

/// The compression of one VHD directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Parts are stored as they are.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
}

/// No chunk-filters.json is longer than this.
pub const MAX_FILTERS_JSON_BYTES: u64 = 4096;

impl Filter {
    /// Parses `chunk-filters.json`.
    ///
    /// # Errors
    /// `Corrupt` when it is not a JSON list of names, `Unsupported` for filters that are not known
    /// or more than one at once.
    pub fn parse_list(json: &[u8]) -> Result<Filter> {
        let names: Vec<String> = serde_json::from_slice(json)
            .map_err(|e| Error::corrupt(format!("not a list of filter names: {e}")))?;
        match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] | ["none"] => Ok(Filter::None),
            ["gzip"] => Ok(Filter::Gzip),
            ["brotli"] => Ok(Filter::Brotli),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("chunk filters {names:?} are not known"),
            )),
        }
    }

    /// `none`, `gzip` or `brotli`.
    pub fn as_str(self) -> &'static str {
        match self {
            Filter::None => "none",
            Filter::Gzip => "gzip",
            Filter::Brotli => "brotli",
        }
    }

    /// The longest stored form of `decoded_len` bytes that a sound writer makes. Incompressible
    /// data grows by a few bytes per 32 KiB; the allowance is far above that.
    pub fn max_stored_len(self, decoded_len: u64) -> u64 {
        match self {
            Filter::None => decoded_len,
            Filter::Gzip | Filter::Brotli => decoded_len + decoded_len / 64 + 1024,
        }
    }

    /// Decodes a part that must have exactly `decoded_len` bytes.
    ///
    /// # Errors
    /// `Corrupt` when the stream is damaged or decodes to another length. Never allocates more
    /// than `decoded_len` bytes.
    pub fn decode_exact(self, stored: &[u8], decoded_len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; decoded_len];
        self.decode_into(stored, &mut out)?;
        Ok(out)
    }

    /// Decodes a part that must have exactly as many bytes as `out`, into it. What is in `out`
    /// after an error means nothing.
    ///
    /// # Errors
    /// `Corrupt` when the stream is damaged or decodes to another length.
    pub fn decode_into(self, stored: &[u8], out: &mut [u8]) -> Result<()> {
        let expected = out.len();
        match self.decode_up_to(stored, out)? {
            found if found == expected => Ok(()),
            found => Err(wrong_length(found, expected)),
        }
    }

    /// Decodes a part of at most as many bytes as `out` has into its start; tells how many there
    /// were. The stream must be whole. What is in the rest of `out`, or in all of it after an error,
    /// means nothing.
    ///
    /// # Errors
    /// `Corrupt` when the stream is damaged, ends early, or decodes to more.
    pub fn decode_up_to(self, stored: &[u8], out: &mut [u8]) -> Result<usize> {
        let most = out.len();
        let too_long = || {
            Error::corrupt(format!(
                "decodes to more than the {most} bytes it must have"
            ))
        };
        match self {
            Filter::None if stored.len() <= most => {
                out[..stored.len()].copy_from_slice(stored);
                Ok(stored.len())
            }
            Filter::None => Err(wrong_length(stored.len(), most)),
            Filter::Gzip => match Decompressor::new().gzip_decompress(stored, out) {
                Ok(n) => Ok(n),
                Err(DecompressionError::InsufficientSpace) => Err(too_long()),
                Err(DecompressionError::BadData) => Err(Error::corrupt("gzip stream is damaged")),
            },
            Filter::Brotli => {
                let done = BrotliDecoder::new()
                    .decompress(stored, out)
                    .map_err(|e| Error::corrupt(format!("brotli stream is damaged: {e}")))?;
                match done.info {
                    DecoderInfo::Finished => Ok(done.bytes_written),
                    DecoderInfo::NeedsMoreInput => Err(Error::corrupt("brotli stream ends early")),
                    DecoderInfo::NeedsMoreOutput => Err(too_long()),
                }
            }
        }
    }

    /// Decodes a whole part of at most `max_len` bytes but keeps only its first `keep` bytes. The
    /// rest is decoded all the same, so that a damaged stream is noticed.
    ///
    /// # Errors
    /// `Corrupt` when the stream is damaged or decodes to more than `max_len` bytes.
    pub fn decode_prefix<'a>(
        self,
        stored: &'a [u8],
        keep: usize,
        max_len: u64,
    ) -> Result<Cow<'a, [u8]>> {
        let too_long =
            || Error::corrupt(format!("decodes to more than the {max_len} bytes possible"));
        let damaged = |e| Error::corrupt(format!("{} stream is damaged: {e}", self.as_str()));
        let mut reader: Box<dyn Read> = match self {
            Filter::None if stored.len() as u64 > max_len => return Err(too_long()),
            Filter::None => return Ok(Cow::Borrowed(&stored[..stored.len().min(keep)])),
            Filter::Gzip => Box::new(flate2::bufread::GzDecoder::new(stored)),
            Filter::Brotli => Box::new(brotlic::DecompressorReader::new(stored)),
        };
        let mut kept = Vec::new();
        let mut total = reader
            .by_ref()
            .take(keep as u64)
            .read_to_end(&mut kept)
            .map_err(damaged)? as u64;
        let mut scratch = vec![0; 64 * 1024];
        while total <= max_len {
            match reader.read(&mut scratch).map_err(damaged)? {
                0 => return Ok(Cow::Owned(kept)),
                n => total += n as u64,
            }
        }
        Err(too_long())
    }
}

fn wrong_length(found: usize, expected: usize) -> Error {
    Error::corrupt(format!(
        "decodes to {found} bytes where {expected} are expected"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        w.write_all(data).unwrap();
        w.finish().unwrap()
    }

    fn brotli(data: &[u8]) -> Vec<u8> {
        let mut w = brotlic::CompressorWriter::new(Vec::new());
        w.write_all(data).unwrap();
        w.into_inner().unwrap()
    }

    #[test]
    fn decodes_what_the_filters_encoded_and_nothing_longer_or_shorter() {
        let data: Vec<u8> = (0..100_000u32)
            .map(|i| (i.wrapping_mul(i) >> 7) as u8)
            .collect();
        for (filter, stored) in [
            (Filter::None, data.clone()),
            (Filter::Gzip, gzip(&data)),
            (Filter::Brotli, brotli(&data)),
        ] {
            assert_eq!(filter.decode_exact(&stored, data.len()).unwrap(), data);
            let mut room = vec![0xEE; data.len() + 100];
            assert_eq!(filter.decode_up_to(&stored, &mut room).unwrap(), data.len());
            assert_eq!(room[..data.len()], data);
            for wrong in [data.len() - 1, data.len() + 1, 0] {
                let e = filter.decode_exact(&stored, wrong).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{filter:?} {wrong}");
            }
            assert!(
                filter
                    .decode_exact(&stored[..stored.len() / 2], data.len())
                    .is_err()
            );
            assert_eq!(
                &*filter.decode_prefix(&stored, 10, 100_000).unwrap(),
                &data[..10]
            );
            assert!(filter.decode_prefix(&stored, 10, 99_999).is_err());
        }
    }

    #[test]
    fn a_bomb_is_refused_without_its_memory() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(Filter::Gzip.decode_exact(&bomb, 4096).is_err());
        assert!(Filter::Gzip.decode_prefix(&bomb, 512, 4096).is_err());
        let bomb = brotli(&vec![0; 64 << 20]);
        assert!(Filter::Brotli.decode_exact(&bomb, 4096).is_err());
        assert!(Filter::Brotli.decode_prefix(&bomb, 512, 4096).is_err());
    }

    #[test]
    fn filter_lists_are_strict() {
        assert_eq!(Filter::parse_list(b"[\"brotli\"]").unwrap(), Filter::Brotli);
        assert_eq!(Filter::parse_list(b"[]").unwrap(), Filter::None);
        assert_eq!(
            Filter::parse_list(b"[\"lzma\"]").unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert!(Filter::parse_list(b"{}").is_err());
        assert!(Filter::parse_list(b"[\"gzip\"").is_err());
    }
}
