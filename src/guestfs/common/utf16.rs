//! Names that are kept in UTF-16, as bytes: UTF-8 where that is possible.
//!
//! An unpaired surrogate (which NTFS, FAT and exFAT allow) keeps its three bytes, so that no two names
//! become one and every name can be looked up.

/// A constant name in UTF-16.
pub const fn ascii<const N: usize>(name: &[u8; N]) -> [u16; N] {
    let mut units = [0; N];
    let mut index = 0;
    while index < N {
        units[index] = name[index] as u16;
        index += 1;
    }
    units
}

/// UTF-16 as bytes.
pub fn to_bytes(units: &[u16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(units.len());
    for decoded in char::decode_utf16(units.iter().copied()) {
        match decoded {
            Ok(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(lone) => {
                let unit = lone.unpaired_surrogate();
                out.push(0xE0 | (unit >> 12) as u8);
                out.push(0x80 | (unit >> 6 & 0x3F) as u8);
                out.push(0x80 | (unit & 0x3F) as u8);
            }
        }
    }
    out
}

/// What [`to_bytes`] made the bytes of; `None` for bytes that it does not make.
pub fn from_bytes(bytes: &[u8]) -> Option<Vec<u16>> {
    let mut units = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).ok()?,
        };
        units.extend(valid.encode_utf16());
        rest = &rest[valid.len()..];
        if let [0xED, second @ 0xA0..=0xBF, third @ 0x80..=0xBF, ..] = *rest {
            units.push(0xD000 | u16::from(second & 0x3F) << 6 | u16::from(third & 0x3F));
            rest = &rest[3..];
        } else if !rest.is_empty() {
            return None;
        }
    }
    Some(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        let names: [&[u16]; 5] = [
            &[0x61, 0xE9, 0x65E5],
            &[0xD83D, 0xDE00],
            &[0xD800],
            &[0xDC00, 0xD800, 0x41],
            &[],
        ];
        for units in names {
            assert_eq!(from_bytes(&to_bytes(units)).as_deref(), Some(units));
        }
        assert_eq!(to_bytes(&[0xD83D, 0xDE00]), "😀".as_bytes());
        assert_ne!(to_bytes(&[0xD800]), to_bytes(&[0xD801]));
        for bad in [&b"\xFF"[..], b"a\xED", b"\xED\xA0", b"\xC0\x80"] {
            assert_eq!(from_bytes(bad), None);
        }
    }
}
