//! A repository in a local directory (also NFS and SMB shares, which the system mounts for us).
//!
//! Every path is resolved by the kernel with `RESOLVE_BENEATH`, so that neither `..` nor a symbolic
//! link can lead out of the repository, whatever a metadata file says. Kernels before 5.6 have no
//! `openat2`; there, paths are walked component by component and no symbolic link is followed.

use std::fmt;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{self as rfs, Advice, AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::local_root::{Place, Root, is_dead};
use super::{
    Entry, EntryKind, LinkFault, Meta, Store, StorePath, StoreTraits, StoredFile, Validity, Version,
};
use crate::buffers::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::StableHash;
use crate::io::ReadAt;

/// `statfs` magic numbers of file systems whose servers may stall: see `statfs(2)`.
const NETWORK_FILE_SYSTEMS: [u64; 6] = [
    0x6969,      // NFS
    0xFF53_4D42, // CIFS
    0xFE53_4D42, // SMB2
    0x517B,      // SMB
    0x6573_5546, // FUSE (s3fs, sshfs, rclone ...)
    0x00C3_6400, // Ceph
];

/// Hints that are passed on after a read that had to wait for storage. Each costs the kernel a look
/// at every page concerned, which is wasted where all is in memory already.
const HINTS_AFTER_WAIT: u32 = 16;

/// A directory as a store.
pub struct LocalStore {
    place: Arc<Place>,
    path: PathBuf,
    remote: bool,
    cold: Arc<Cold>,
}

/// Whether reads have had to wait for storage lately.
#[derive(Debug, Default)]
struct Cold {
    /// Hints still worth passing on.
    hints: AtomicU32,
    /// The kernel or the file system cannot tell.
    untold: AtomicBool,
}

impl Cold {
    /// Whether to pass a hint on.
    fn takes_hint(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.hints
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
    }
}

impl LocalStore {
    /// Opens the directory. The path itself may go through symbolic links: the person chose it.
    ///
    /// # Errors
    /// `NotFound` and `Denied` as the system says; `Invalid` when it is not a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rfs::open(path, flags, Mode::empty()).map_err(|e| {
            let kind = match e {
                Errno::NOENT => ErrorKind::NotFound,
                Errno::ACCESS | Errno::PERM => ErrorKind::Denied,
                Errno::NOTDIR => ErrorKind::Invalid,
                _ => ErrorKind::Io,
            };
            Error::new(kind, format!("cannot open the repository directory: {e}"))
                .with_object(path.display())
        })?;
        let magic = rfs::fstatfs(&root).map_or(0, |s| s.f_type as u64 & 0xFFFF_FFFF);
        Ok(LocalStore {
            place: Arc::new(Place::new(root, path)),
            path: path.to_owned(),
            remote: NETWORK_FILE_SYSTEMS.contains(&magic),
            cold: Arc::default(),
        })
    }

    fn open_at(&self, path: &StorePath, flags: OFlags) -> Result<OwnedFd> {
        self.try_open(path, flags).map_err(|e| e.at(path))
    }

    fn try_open(&self, path: &StorePath, flags: OFlags) -> Result<OwnedFd, OpenFault> {
        let name = if path.as_str().is_empty() {
            "."
        } else {
            path.as_str()
        };
        let mut flags = flags | OFlags::CLOEXEC;
        if !flags.contains(OFlags::PATH) {
            // O_NONBLOCK: opening a FIFO that somebody planted must not hang. With O_PATH nothing
            // is opened, and openat2 refuses flags that would mean nothing.
            flags |= OFlags::NONBLOCK | OFlags::NOCTTY;
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let open_below = |root: &Root| loop {
            match rfs::openat2(&root.fd, name, flags, Mode::empty(), resolve) {
                // AGAIN: a rename elsewhere raced with the resolution of "..".
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(Errno::NOSYS) => break open_component_wise(&root.fd, path, flags),
                Err(Errno::XDEV) => break Err(OpenFault::Link(LinkFault::Outside)),
                Err(Errno::LOOP) => break Err(OpenFault::Link(LinkFault::Loop)),
                other => break other.map_err(OpenFault::Os),
            }
        };
        let root = self.place.root_now();
        match open_below(&root) {
            Err(OpenFault::Os(e)) if is_dead(e) && self.place.come_back(&root) => {
                open_below(&self.place.root())
            }
            other => other,
        }
    }

    fn open_file(&self, path: &StorePath) -> Result<(std::fs::File, Meta)> {
        let fd = self.open_at(path, OFlags::RDONLY)?;
        let stat = rfs::fstat(&fd).map_err(|e| path_error(e, path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::new(ErrorKind::NotFound, "is not a file").with_object(path));
        }
        Ok((std::fs::File::from(fd), meta_of(&stat)))
    }

    /// The kind of an entry whose directory record does not tell it (links, old file systems); `None`
    /// when it is neither file nor directory, or was removed meanwhile.
    ///
    /// # Errors
    /// What kept it from being looked at: leaving it out would hide it.
    fn kind_by_stat(&self, path: &StorePath) -> Result<Option<EntryKind>> {
        let fault = match self.try_open(path, OFlags::PATH) {
            Ok(fd) => return kind_of(&fd).map_err(|e| path_error(e, path)),
            Err(fault) => fault,
        };
        let link = match fault {
            OpenFault::Link(link) => link,
            OpenFault::Os(Errno::NOENT | Errno::NOTDIR) => LinkFault::Dangling,
            OpenFault::Os(e) => return Err(path_error(e, path)),
        };
        // The entry itself: a link that is not followed, or nothing any more.
        match self.try_open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => match rfs::fstat(&fd) {
                Ok(stat) if is_type(&stat, FileType::Symlink) => Ok(Some(EntryKind::Link(link))),
                // Something else by now.
                Ok(_) => Err(fault.at(path)),
                Err(e) => Err(path_error(e, path)),
            },
            Err(OpenFault::Os(Errno::NOENT)) => Ok(None),
            Err(fault) => Err(fault.at(path)),
        }
    }
}

/// Why something below the repository's root could not be opened.
#[derive(Clone, Copy)]
enum OpenFault {
    Link(LinkFault),
    Os(Errno),
}

impl OpenFault {
    fn at(self, path: &StorePath) -> Error {
        match self {
            OpenFault::Link(link) => link.error(path),
            OpenFault::Os(errno) => path_error(errno, path),
        }
    }
}

fn is_type(stat: &rfs::Stat, wanted: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == wanted
}

/// What an open file is; `None` for what is not shown.
fn kind_of(fd: &OwnedFd) -> Result<Option<EntryKind>, Errno> {
    Ok(match FileType::from_raw_mode(rfs::fstat(fd)?.st_mode) {
        FileType::RegularFile => Some(EntryKind::File),
        FileType::Directory => Some(EntryKind::Dir),
        // Only without `openat2`: O_PATH and O_NOFOLLOW together open the link.
        FileType::Symlink => Some(EntryKind::Link(LinkFault::OldKernel)),
        _ => None,
    })
}

/// The fallback for kernels without `openat2`: no link is followed.
fn open_component_wise(
    root: &OwnedFd,
    path: &StorePath,
    flags: OFlags,
) -> Result<OwnedFd, OpenFault> {
    let mut parts: Vec<&str> = path.components().collect();
    let last = parts.pop().unwrap_or(".");
    let dir_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir: Option<OwnedFd> = None;
    let steps = parts.into_iter().map(|part| (part, dir_flags));
    let steps = steps.chain([(last, flags | OFlags::NOFOLLOW)]);
    for (part, flags) in steps {
        let at = dir.as_ref().map_or(root.as_fd(), |d| d.as_fd());
        dir = Some(rfs::openat(at, part, flags, Mode::empty()).map_err(|e| {
            // A link is told as ELOOP, or where a directory is wanted as ENOTDIR, which must not
            // pass for "not there".
            let is_link = || {
                let stat = rfs::statat(at, part, AtFlags::SYMLINK_NOFOLLOW);
                stat.is_ok_and(|stat| is_type(&stat, FileType::Symlink))
            };
            match e {
                Errno::LOOP | Errno::NOTDIR if is_link() => OpenFault::Link(LinkFault::OldKernel),
                e => OpenFault::Os(e),
            }
        })?);
    }
    dir.ok_or(OpenFault::Os(Errno::NOENT))
}

fn path_error(errno: Errno, path: &StorePath) -> Error {
    let (kind, message) = match errno {
        Errno::NOENT | Errno::NOTDIR => (ErrorKind::NotFound, "is not there".to_owned()),
        Errno::ACCESS | Errno::PERM => (ErrorKind::Denied, "permission denied".to_owned()),
        Errno::NAMETOOLONG => (ErrorKind::NotFound, "has too long a name".to_owned()),
        Errno::STALE => (ErrorKind::Changed, "was replaced on the server".to_owned()),
        Errno::TIMEDOUT => (ErrorKind::Transient, "the server did not answer".to_owned()),
        e => (ErrorKind::Io, format!("cannot be opened: {e}")),
    };
    Error::new(kind, message).with_object(path)
}

fn meta_of(stat: &rfs::Stat) -> Meta {
    let seconds = stat.st_mtime;
    let nanos = stat.st_mtime_nsec as u32;
    let modified = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds as u64, nanos.min(999_999_999)))
    } else {
        None
    };
    // A hash, not the fields: callers may only compare. Inode and mtime also stand in it verbatim, so
    // that single changes can never cancel out.
    let hash = StableHash::new()
        .number(stat.st_dev)
        .number(stat.st_size as u64)
        .number(nanos)
        .finish_u64();
    let exact = stat.st_ino.rotate_left(32) ^ (seconds as u64);
    Meta {
        len_bytes: stat.st_size.max(0) as u64,
        modified,
        version: Version((u128::from(hash) << 64) | u128::from(exact)),
    }
}

struct LocalFile {
    file: std::fs::File,
    meta: Meta,
    path: StorePath,
    place: Arc<Place>,
    /// The one it was opened below.
    root: Arc<Root>,
    cold: Arc<Cold>,
    remote: bool,
}

impl LocalFile {
    /// Reads what is in memory, from the start of `buf`, and notes whether that was all.
    fn read_without_waiting(&self, buf: &mut [u8], offset: u64) -> usize {
        // Offsets beyond those of files mean something else to preadv2: -1 is "where the file stands".
        if self.cold.untold.load(Ordering::Relaxed) || offset > i64::MAX as u64 {
            return 0;
        }
        let wanted = buf.len();
        let mut parts = [IoSliceMut::new(buf)];
        match preadv2(&self.file, &mut parts, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == wanted => read,
            other => {
                if let Err(Errno::NOSYS | Errno::OPNOTSUPP) = other {
                    self.cold.untold.store(true, Ordering::Relaxed);
                }
                self.cold.hints.store(HINTS_AFTER_WAIT, Ordering::Relaxed);
                other.unwrap_or(0)
            }
        }
    }
}

impl ReadAt for LocalFile {
    fn len_bytes(&self) -> u64 {
        self.opened_meta().len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.read_without_waiting(buf, offset);
        if read == buf.len() {
            return Ok(());
        }
        let (rest, from) = (&mut buf[read..], offset.saturating_add(read as u64));
        self.file.read_exact_at(rest, from).map_err(|e| {
            // InvalidInput: an offset that no file can have.
            use std::io::ErrorKind::{InvalidInput, UnexpectedEof};
            if e.raw_os_error()
                .is_some_and(|e| is_dead(Errno::from_raw_os_error(e)))
                && self.place.come_back(&self.root)
            {
                Error::new(ErrorKind::Changed, "its storage was mounted again")
            } else if matches!(e.kind(), UnexpectedEof | InvalidInput) {
                Error::corrupt(format!(
                    "file ends within the {} bytes expected here",
                    buf.len()
                ))
            } else {
                Error::from_io(e, "read failed")
            }
            .with_object(&self.path)
            .at(offset)
        })
    }
}

impl StoredFile for LocalFile {
    fn opened_meta(&self) -> Meta {
        self.meta
    }

    fn head(&self) -> Result<Meta> {
        if self.remote {
            // A network file system answers from what it heard up to a minute ago; a merge that has
            // begun since must be seen. Asks the server; `fstat` then tells the same. Where that
            // cannot be asked (kernels before 4.11), what is known counts.
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
            let _ = rfs::statx(&self.file, "", flags, StatxFlags::MTIME | StatxFlags::SIZE);
        }
        let stat = rfs::fstat(&self.file).map_err(|e| path_error(e, &self.path))?;
        Ok(meta_of(&stat))
    }

    fn will_read(&self, offset: u64, len: u64) {
        if self.cold.takes_hint() {
            // Only a hint: a read that cannot be had will say so itself.
            let _ = rfs::fadvise(&self.file, offset, NonZeroU64::new(len), Advice::WillNeed);
        }
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalStore({:?})", self.path)
    }
}

impl Store for LocalStore {
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        let fd = self.open_at(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let failed = |e| path_error(e, dir);
        let mut entries = Vec::new();
        for item in rfs::Dir::read_from(&fd).map_err(failed)? {
            let item = item.map_err(failed)?;
            let Ok(name) = item.file_name().to_str() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match item.file_type() {
                FileType::RegularFile => Some(EntryKind::File),
                FileType::Directory => Some(EntryKind::Dir),
                FileType::Symlink | FileType::Unknown => self.kind_by_stat(&dir.child(name))?,
                _ => None,
            };
            if let Some(kind) = kind {
                entries.push(Entry {
                    name: name.to_owned(),
                    kind,
                    meta: None,
                });
            }
        }
        Ok(entries)
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        let fd = self.open_at(path, OFlags::PATH)?;
        let stat = rfs::fstat(&fd).map_err(|e| path_error(e, path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::new(ErrorKind::NotFound, "is not a file").with_object(path));
        }
        Ok(meta_of(&stat))
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        _validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        // Asked first: a file must not be taken for one of a root that came after it.
        let root = self.place.root();
        let (file, meta) = self.open_file(path)?;
        if meta.len_bytes > max_len {
            return Err(Error::corrupt(format!(
                "is {} bytes long where at most {max_len} are possible",
                meta.len_bytes
            ))
            .with_object(path));
        }
        let mut data = Buffer::new(meta.len_bytes as usize);
        let file = LocalFile {
            file,
            meta,
            path: path.clone(),
            place: Arc::clone(&self.place),
            root,
            cold: Arc::clone(&self.cold),
            remote: self.remote,
        };
        file.read_exact_at(&mut data, 0)?;
        Ok((data.into_bytes(), meta))
    }

    fn open(&self, path: &StorePath, _listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        // Asked first: a file must not be taken for one of a root that came after it.
        let root = self.place.root();
        let (file, meta) = self.open_file(path)?;
        Ok(Arc::new(LocalFile {
            file,
            meta,
            path: path.clone(),
            place: Arc::clone(&self.place),
            root,
            cold: Arc::clone(&self.cold),
            remote: self.remote,
        }))
    }

    fn read_range(
        &self,
        _path: &StorePath,
        file: &dyn StoredFile,
        offset: u64,
        len: usize,
    ) -> Result<Bytes> {
        file.read_bytes_at(offset, len)
    }

    fn has_copy(&self, _path: &StorePath, _generation: Option<u128>) -> bool {
        false
    }

    fn open_copy(&self, _: &StorePath, _: u64, _: u128) -> Option<Arc<dyn StoredFile>> {
        None
    }

    fn traits(&self) -> StoreTraits {
        StoreTraits {
            cheap_ranges: true,
            remote: self.remote,
            parallelism: if self.remote { 16 } else { 4 },
            exact_lengths: true,
        }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}
