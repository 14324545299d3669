//! The directory that holds a repository, also after its file system went away and came back.
//!
//! A directory that is held open belongs to the file system that was mounted when it was opened. When
//! that is gone (an NFS handle that went stale, a disk that was pulled, a FUSE server that died) it gives
//! nothing but errors, whatever is mounted at its path by then. So the path is looked at again: after
//! such an error, and from time to time. What is found there counts only where it is the same
//! repository on something mounted at the same mount point. The directory below, which shows while
//! nothing is mounted, never does: it would make a whole repository look empty.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::sync;

/// How often the path is looked at while all is well: an old file system can go on answering after
/// another has taken its place.
const INTERVAL: Duration = Duration::from_secs(2);

/// The directory of a repository that has one directory for each VM.
const VMS: &str = "xo-vm-backups";

/// Names that are kept to know a repository again.
const KEPT_NAMES: usize = 1000;

/// An open root directory, and the mount in which it lies.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    mount: Option<MountEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct MountEntry {
    id: String,
    /// Where it is mounted, escaped as in the mount table.
    at: Vec<u8>,
    kind: Vec<u8>,
}

/// What a repository is known by.
#[derive(Debug)]
enum Known {
    /// Some of its VMs.
    Vms(BTreeSet<OsString>),
    /// What is in a directory without VMs (a single disk's). Its own inode number says little: the root
    /// directories of most file systems of one type have the same.
    Files(BTreeSet<Seen>),
}

/// An entry in one state. A copy of it on another file system is another one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    name: OsString,
    inode: u64,
    size: i64,
    /// Last modification and last status change, in seconds and nanoseconds.
    times: [i64; 4],
}

impl Known {
    /// Whether this is the repository that was known before. Names of VMs are uuids, so one is proof.
    /// Of a single disk, everything must be as it was: another version of it can have the same name and
    /// uuid, and what is read of the two must not be mixed.
    fn continues(&self, before: &Known) -> bool {
        match (before, self) {
            (Known::Vms(before), Known::Vms(now)) => before.is_empty() || !before.is_disjoint(now),
            (Known::Files(before), Known::Files(now)) => {
                !before.is_empty() && before.is_subset(now)
            }
            _ => false,
        }
    }
}

/// Where a repository is.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    root: RwLock<Arc<Root>>,
    known: Option<Known>,
    looked: Mutex<Instant>,
}

/// Whether this error can mean that the whole file system is gone.
pub(super) fn is_dead(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::STALE
            | Errno::IO
            | Errno::NOTCONN
            | Errno::CONNABORTED
            | Errno::NODEV
            | Errno::NXIO
            | Errno::SHUTDOWN
            | Errno::HOSTDOWN
            | Errno::REMOTEIO
    )
}

impl Place {
    /// A repository whose directory was opened by this path.
    pub(super) fn new(fd: OwnedFd, path: &Path) -> Self {
        let known = known(&fd);
        let mount = mount_of(&fd);
        Place {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            root: RwLock::new(Arc::new(Root { fd, mount })),
            known,
            looked: Mutex::new(Instant::now()),
        }
    }

    /// The root as it was last found.
    pub(super) fn root(&self) -> Arc<Root> {
        let root = sync::read(&self.root);
        Arc::clone(&root)
    }

    /// The root, looked for again if that was not done lately.
    pub(super) fn root_now(&self) -> Arc<Root> {
        let root = self.root();
        let mut looked = sync::lock(&self.looked);
        if looked.elapsed() < INTERVAL {
            return root;
        }
        *looked = Instant::now();
        drop(looked);
        match self.come_back(&root) {
            true => self.root(),
            false => root,
        }
    }

    /// Whether another root has taken this one's place: looks for one.
    pub(super) fn come_back(&self, old: &Arc<Root>) -> bool {
        if !Arc::ptr_eq(old, &self.root()) {
            return true;
        }
        let Some(found) = self.find(old) else {
            return false;
        };
        let mut root = sync::write(&self.root);
        if Arc::ptr_eq(old, &root) {
            let path = self.path.display();
            tracing::warn!("{path} was mounted again; going on with what is there now");
            *root = Arc::new(found);
        }
        true
    }

    /// The same repository on another mount at the same mount point.
    fn find(&self, old: &Root) -> Option<Root> {
        let before = old.mount.as_ref()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let there = rfs::open(&self.path, flags, Mode::empty()).ok()?;
        let now = mount_of(&there)?;
        if now.id == before.id || (&now.at, &now.kind) != (&before.at, &before.kind) {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rfs::openat(&there, ".", flags, Mode::empty()).ok()?;
        let same = known(&fd)?.continues(self.known.as_ref()?);
        same.then_some(Root {
            fd,
            mount: Some(now),
        })
    }
}

/// What the repository in this directory can be known by; `None` when it cannot be read.
fn known(root: &OwnedFd) -> Option<Known> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let vms = match rfs::openat(root, VMS, flags, Mode::empty()) {
        Ok(vms) => vms,
        Err(Errno::NOENT) => return files_in(root).map(Known::Files),
        Err(_) => return None,
    };
    let mut names = BTreeSet::new();
    for entry in rfs::Dir::read_from(&vms).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name().to_bytes();
        let is_dir = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if is_dir && !name.starts_with(b".") {
            names.insert(OsStr::from_bytes(name).to_owned());
        }
        if names.len() >= KEPT_NAMES {
            break;
        }
    }
    Some(Known::Vms(names))
}

/// The entries of a directory; `None` when one of them cannot be looked at.
fn files_in(dir: &OwnedFd) -> Option<BTreeSet<Seen>> {
    let mut all = BTreeSet::new();
    for entry in rfs::Dir::read_from(dir).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rfs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        all.insert(Seen {
            name: OsStr::from_bytes(name.to_bytes()).to_owned(),
            inode: stat.st_ino,
            size: stat.st_size,
            times: [
                stat.st_mtime,
                stat.st_mtime_nsec as i64,
                stat.st_ctime,
                stat.st_ctime_nsec as i64,
            ],
        });
        if all.len() >= KEPT_NAMES {
            break;
        }
    }
    Some(all)
}

/// The mount in which an open directory lies, by the kernel's notes and the mount table: neither asks
/// the file system, which may hang.
fn mount_of(fd: &OwnedFd) -> Option<MountEntry> {
    let notes = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let id = notes.lines().find_map(|l| l.strip_prefix("mnt_id:"))?;
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    find_entry(&table, id.trim())
}

fn find_entry(table: &[u8], id: &str) -> Option<MountEntry> {
    table.split(|b| *b == b'\n').find_map(|line| {
        // proc(5): ID, parent, major:minor, root, mount point, options, optional fields, "-", type
        let mut fields = line.split(|b| *b == b' ');
        if fields.next()? != id.as_bytes() {
            return None;
        }
        Some(MountEntry {
            id: id.to_owned(),
            at: fields.nth(3)?.to_owned(),
            kind: fields.skip_while(|f| *f != b"-").nth(1)?.to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_entries_are_found_by_their_number() {
        let table = b"\
21 1 254:0 / / rw,relatime - ext4 /dev/root rw
40 21 0:50 / /mnt/a\\040b ro,nosuid shared:9 - nfs4 host:/srv ro
";
        let entry = find_entry(table, "40").unwrap();
        assert_eq!(entry.at, b"/mnt/a\\040b");
        assert_eq!(entry.kind, b"nfs4");
        assert_eq!(find_entry(table, "4"), None);
    }

    #[test]
    fn a_single_disk_is_known_again_only_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let look = || known(&rfs::open(dir.path(), OFlags::RDONLY, Mode::empty()).unwrap());
        std::fs::write(at("disk.vhd"), b"one").unwrap();
        let before = look().unwrap();
        std::fs::write(at("notes"), b"").unwrap();
        assert!(look().unwrap().continues(&before));
        std::fs::write(at("copy"), b"one").unwrap();
        std::fs::rename(at("copy"), at("disk.vhd")).unwrap();
        assert!(!look().unwrap().continues(&before));
        std::fs::remove_file(at("disk.vhd")).unwrap();
        assert!(!look().unwrap().continues(&before));
        std::fs::create_dir(at(VMS)).unwrap();
        assert!(!look().unwrap().continues(&before));
    }
}
