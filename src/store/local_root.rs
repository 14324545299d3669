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
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{self as rfs, FileType, Mode, OFlags};
use rustix::io::Errno;

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
    /// A directory without VMs (a single disk's): its inode number.
    Inode(u64),
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
        let root = self.root.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&root)
    }

    /// The root, looked for again if that was not done lately.
    pub(super) fn root_now(&self) -> Arc<Root> {
        let root = self.root();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut root = self.root.write().unwrap_or_else(PoisonError::into_inner);
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
        let same = match (self.known.as_ref()?, known(&fd)?) {
            (Known::Vms(before), Known::Vms(now)) => before.is_empty() || !before.is_disjoint(&now),
            (Known::Inode(before), Known::Inode(now)) => *before == now,
            _ => false,
        };
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
        Err(Errno::NOENT) => return Some(Known::Inode(rfs::fstat(root).ok()?.st_ino)),
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
}
