//! Names of guest files as they are shown: no `/`, no NUL, at most 255 bytes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::Result;
use crate::guestfs::{GuestFs, GuestInode};

const MAX_NAME_BYTES: usize = 255;
/// Longer names (NTFS allows 255 UTF-16 units, up to 765 bytes) keep this much of themselves.
pub(super) const CUT_NAME_BYTES: usize = 220;

/// The name shown for a stored name, `None` for one that cannot be shown.
pub(super) fn present(name: &OsStr, inode: GuestInode) -> Option<OsString> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." {
        return None;
    }
    if bytes.iter().any(|&byte| byte == b'/' || byte == 0) {
        return None;
    }
    if bytes.len() <= MAX_NAME_BYTES {
        return Some(name.to_os_string());
    }
    let mut cut = CUT_NAME_BYTES;
    // Not in the middle of a UTF-8 character.
    while cut > CUT_NAME_BYTES - 4 && bytes[cut] & 0xC0 == 0x80 {
        cut -= 1;
    }
    let mut shown = bytes[..cut].to_vec();
    shown.extend_from_slice(format!("~{inode:x}").as_bytes());
    Some(OsString::from_vec(shown))
}

/// Finds the entry that is shown under a name that was cut.
pub(super) fn find_cut(
    fs: &dyn GuestFs,
    dir: GuestInode,
    name: &OsStr,
) -> Result<Option<GuestInode>> {
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let batch = fs.list(dir, at)?;
        let found = batch.entries.iter().find(|entry| {
            entry.name.len() > MAX_NAME_BYTES
                && present(&entry.name, entry.inode).is_some_and(|shown| shown == name)
        });
        if let Some(entry) = found {
            return Ok(Some(entry.inode));
        }
        cursor = batch.next.filter(|&next| next > at);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_file_system_must_not_have_are_not_shown() {
        for bad in ["", ".", "..", "a/b", "/", "nul\0"] {
            assert_eq!(present(bad.as_ref(), 1), None);
        }
        let kept = present("…".repeat(85).as_ref(), 1).unwrap();
        assert_eq!(kept.len(), 255);
        let cut = present("…".repeat(86).as_ref(), 0xAB).unwrap();
        assert!(cut.len() <= 255);
        assert!(cut.to_str().unwrap().ends_with("…~ab"));
    }
}
