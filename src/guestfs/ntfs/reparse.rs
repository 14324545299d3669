//! What the reparse points of NTFS mean: links, and files whose content is not in their stream.
//!
//! Tags: `ntifs.h` of Microsoft's WDK, [MS-FSCC] 2.1.2. Those for system compression are in `wof`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::special::{TAG_LX_BLK, TAG_LX_CHR};
use crate::error::{Error, ErrorKind, Result};

const ATTRIBUTE_OFFLINE: u32 = 0x1000;
const ATTRIBUTE_RECALL_ON_OPEN: u32 = 0x4_0000;
const ATTRIBUTE_RECALL_ON_DATA_ACCESS: u32 = 0x40_0000;

const TAG_MOUNT_POINT: u32 = 0xA000_0003;
const TAG_SYMLINK: u32 = 0xA000_000C;
const TAG_LX_SYMLINK: u32 = 0xA000_001D;
/// Files that Windows compressed.
pub const TAG_WOF: u32 = 0x8000_0017;
const TAG_DEDUP: u32 = 0x8000_0013;
const TAG_HSM: u32 = 0xC000_0004;
const TAG_HSM2: u32 = 0x8000_0006;
const TAG_STORAGE_SYNC: u32 = 0x8000_001E;
const TAG_ONE_DRIVE: u32 = 0x8000_0021;
/// One of sixteen, which differ in these bits.
const TAG_CLOUD: u32 = 0x9000_001A;
const CLOUD_BITS: u32 = 0xF000;

/// Makes sure that the content of a file with this reparse point is in its stream. Where the tag does not say
/// so, the file's attributes do, or holes in the stream, in place of which another program gives the content:
/// reading them as zeros would be wrong.
///
/// # Errors
/// `Unsupported`, with where the content is.
pub fn check_is_here(tag: u32, attributes: u32, has_holes: bool) -> Result<()> {
    let away = ATTRIBUTE_OFFLINE | ATTRIBUTE_RECALL_ON_OPEN | ATTRIBUTE_RECALL_ON_DATA_ACCESS;
    let is_here = attributes & away == 0 && !has_holes;
    let what = match tag {
        TAG_DEDUP => "a deduplicated file, whose content is in the volume's chunk store,".into(),
        TAG_HSM | TAG_HSM2 => "a file that was moved to other storage (HSM)".into(),
        TAG_LX_CHR | TAG_LX_BLK => "a device without its number ($LXDEV)".into(),
        _ if is_here => return Ok(()),
        TAG_STORAGE_SYNC => "a file that Azure File Sync keeps online".into(),
        TAG_ONE_DRIVE => "a file that OneDrive keeps online".into(),
        _ if tag & !CLOUD_BITS == TAG_CLOUD => {
            "a file that OneDrive or the like keeps online".into()
        }
        _ => format!("a file whose content is kept elsewhere (reparse tag {tag:#010x})"),
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("{what} is not read"),
    ))
}

/// The target of a link, `None` for reparse points that are no links. `value` begins with the tag.
///
/// # Errors
/// `Corrupt` when it names nothing.
pub fn link_target(tag: u32, value: &[u8]) -> Result<Option<OsString>> {
    let bad = || Error::corrupt("a link's reparse point makes no sense");
    let u16_at = |at: usize| -> Result<usize> {
        let bytes = value.get(at..).and_then(|rest| rest.first_chunk());
        Ok(usize::from(u16::from_le_bytes(*bytes.ok_or_else(bad)?)))
    };
    // Behind the tag and length: where the two names lie, flags (links only), then the names.
    let (names_at, is_relative) = match tag {
        TAG_MOUNT_POINT => (16, false),
        TAG_SYMLINK => (20, u16_at(16)? & 1 != 0),
        TAG_LX_SYMLINK => {
            let target = value.get(12..).filter(|t| !t.is_empty()).ok_or_else(bad)?;
            return Ok(Some(OsStr::from_bytes(target).to_owned()));
        }
        _ => return Ok(None),
    };
    let name = |at: usize| -> Result<String> {
        let start = names_at + u16_at(at)?;
        let bytes = value.get(start..start + u16_at(at + 2)?).ok_or_else(bad)?;
        let (pairs, _) = bytes.as_chunks();
        let units = pairs.iter().map(|pair| u16::from_le_bytes(*pair));
        Ok(char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect())
    };
    let shown = match name(12)? {
        print if !print.is_empty() => print,
        _ => name(8)?.trim_start_matches("\\??\\").to_string(),
    };
    if shown.is_empty() {
        return Err(bad());
    }
    // A relative target works here once its separators are ours; an absolute one names a drive.
    Ok(Some(match is_relative {
        true => shown.replace('\\', "/").into(),
        false => shown.into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_a_file_is_named() {
        let refused = |tag, attributes, has_holes| {
            let error = check_is_here(tag, attributes, has_holes).err()?;
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            Some(error.to_string())
        };
        for (tag, attributes, has_holes, says) in [
            (TAG_DEDUP, 0, false, "deduplicated"),
            (TAG_LX_CHR, 0, false, "$LXDEV"),
            (TAG_HSM, 0, false, "HSM"),
            (TAG_HSM2, 0, false, "HSM"),
            (TAG_CLOUD, ATTRIBUTE_RECALL_ON_DATA_ACCESS, false, "online"),
            (TAG_CLOUD | 0x6000, 0, true, "online"),
            (TAG_ONE_DRIVE, ATTRIBUTE_OFFLINE, false, "online"),
            (TAG_STORAGE_SYNC, 0, true, "Azure File Sync"),
            (0x9000_1018, 0, true, "0x90001018"),
            (0x9000_1018, ATTRIBUTE_RECALL_ON_OPEN, false, "0x90001018"),
        ] {
            let message = refused(tag, attributes, has_holes).unwrap();
            assert!(message.contains(says), "{message}");
        }
        // All there.
        for tag in [TAG_CLOUD, TAG_CLOUD | 0x6000, TAG_STORAGE_SYNC, 0x9000_1018] {
            assert_eq!(refused(tag, 0x20, false), None);
        }
    }

    fn symlink(flags: u32, print: &str) -> Vec<u8> {
        let name: Vec<u8> = print.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut value = TAG_SYMLINK.to_le_bytes().to_vec();
        value.extend([0; 4]);
        value.extend([0; 4]);
        value.extend(0u16.to_le_bytes());
        value.extend((name.len() as u16).to_le_bytes());
        value.extend(flags.to_le_bytes());
        value.extend(name);
        value
    }

    #[test]
    fn link_targets_are_read_and_relative_ones_made_usable() {
        let relative = link_target(TAG_SYMLINK, &symlink(1, r"..\a\b"));
        assert_eq!(relative.unwrap(), Some("../a/b".into()));
        let absolute = link_target(TAG_SYMLINK, &symlink(0, r"C:\Users"));
        assert_eq!(absolute.unwrap(), Some(r"C:\Users".into()));
        assert_eq!(link_target(TAG_WOF, &[0; 20]).unwrap(), None);
        for len in 0..20 {
            assert!(link_target(TAG_SYMLINK, &symlink(1, "abc")[..len]).is_err());
        }
    }
}
