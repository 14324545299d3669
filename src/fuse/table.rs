//! The system's mount table, as far as brfs mounts are concerned.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The file system type that brfs mounts show in the mount table.
pub(super) const SUBTYPE: &str = "brfs";

/// Whether the topmost file system mounted at exactly this (absolute, canonical) directory is a
/// brfs mount, alive or dead; `None` when nothing is mounted there or the table cannot be read.
///
/// The table is read rather than the mount asked, because a mount whose program is gone or hangs
/// does not answer.
pub fn is_brfs_mount(mountpoint: &Path) -> Option<bool> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    find(&table, mountpoint).map(|mounted| mounted.is_brfs)
}

/// The device number (`major:minor`) of the brfs mount at this directory.
pub(super) fn device(mountpoint: &Path) -> Option<String> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let mounted = find(&table, mountpoint)?;
    mounted.is_brfs.then_some(mounted.device)
}

/// The device numbers of all brfs mounts at this directory, those below others included.
pub(super) fn devices(mountpoint: &Path) -> Option<Vec<String>> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    Some(devices_at(&table, mountpoint))
}

fn devices_at(table: &[u8], mountpoint: &Path) -> Vec<String> {
    let all = mounts_at(table, mountpoint);
    all.filter(|mounted| mounted.is_brfs)
        .map(|mounted| mounted.device)
        .collect()
}

/// Whether a file system with this device number is mounted anywhere that this process can see.
pub(super) fn has_device(device: &str) -> Option<bool> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let mut lines = table.split(|b| *b == b'\n');
    Some(lines.any(|line| line.split(|b| *b == b' ').nth(2) == Some(device.as_bytes())))
}

/// The device number of the mount in which this open file of our own lies.
pub(super) fn device_of_descriptor(number: RawFd) -> Option<String> {
    // From the kernel's notes: `fstat` would ask the mount.
    let notes = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
    let id = notes.lines().find_map(|l| l.strip_prefix("mnt_id:"))?;
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    device_of_mount(&table, id.trim())
}

fn device_of_mount(table: &[u8], id: &str) -> Option<String> {
    table.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let device = (fields.next()? == id.as_bytes()).then(|| fields.nth(1))??;
        Some(String::from_utf8_lossy(device).into_owned())
    })
}

/// What the brfs mount at this (absolute, canonical) directory shows, as the mount table has it.
pub fn mounted_source(mountpoint: &Path) -> Option<OsString> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let mounted = find(&table, mountpoint)?;
    mounted.is_brfs.then_some(mounted.source)
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    is_brfs: bool,
    source: OsString,
    device: String,
}

/// The topmost mount at a directory.
fn find(table: &[u8], mountpoint: &Path) -> Option<Found> {
    // Later lines lie on top of earlier ones.
    mounts_at(table, mountpoint).last()
}

/// All mounts at a directory, the lowest first.
fn mounts_at(table: &[u8], mountpoint: &Path) -> impl Iterator<Item = Found> {
    table.split(|b| *b == b'\n').filter_map(move |line| {
        let mut fields = line.split(|b| *b == b' ');
        // proc(5): ID, parent, major:minor, root, mount point, options, optional fields, "-", type
        let device = fields.nth(2)?;
        let at = fields.nth(1)?;
        if unescape(at) != mountpoint {
            return None;
        }
        let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
        let fs_type = fields.next().unwrap_or(b"");
        let source = fields.next().unwrap_or(b"");
        Some(Found {
            is_brfs: OsStr::from_bytes(fs_type) == format!("fuse.{SUBTYPE}").as_str(),
            source: unescape(source),
            device: String::from_utf8_lossy(device).into_owned(),
        })
    })
}

/// Undoes the kernel's octal escapes of blanks, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = |b: &u8| (b'0'..=b'7').contains(b);
        if byte == b'\\' && after.len() >= 3 && after[..3].iter().all(octal) {
            let value = after[..3]
                .iter()
                .fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            plain.push(value as u8);
            rest = &after[3..];
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
21 1 254:0 / / rw,relatime - ext4 /dev/root rw
40 21 0:50 / /mnt/a\\040b ro,nosuid shared:9 - fuse.brfs /srv ro,user_id=0
41 21 0:51 / /mnt/c ro - fuse.brfs /srv ro
42 21 0:52 / /mnt/c rw - tmpfs tmpfs rw
43 21 0:53 / /mnt/d ro - fuse.sshfs host: ro
";

    #[test]
    fn topmost_mount_at_the_directory_counts() {
        let is_brfs = |at: &str| find(TABLE, Path::new(at)).map(|found| found.is_brfs);
        assert_eq!(is_brfs("/mnt/a b"), Some(true));
        assert_eq!(is_brfs("/mnt/c"), Some(false));
        assert_eq!(is_brfs("/mnt/d"), Some(false));
        assert_eq!(is_brfs("/mnt"), None);
        let found = find(TABLE, Path::new("/mnt/a b")).unwrap();
        assert_eq!(found.device, "0:50");
        assert_eq!(found.source, "/srv");
    }

    #[test]
    fn all_mounts_at_a_directory_are_told() {
        let all = |at: &str| devices_at(TABLE, Path::new(at));
        assert_eq!(all("/mnt/a b"), ["0:50"]);
        assert_eq!(all("/mnt/c"), ["0:51"]);
        assert!(all("/mnt/d").is_empty());
        let twice = [TABLE, b"44 21 0:54 / /mnt/c ro - fuse.brfs /srv ro\n"].concat();
        assert_eq!(devices_at(&twice, Path::new("/mnt/c")), ["0:51", "0:54"]);
    }

    #[test]
    fn mounts_are_found_by_their_number() {
        assert_eq!(device_of_mount(TABLE, "41").as_deref(), Some("0:51"));
        assert_eq!(device_of_mount(TABLE, "4"), None);
    }
}
