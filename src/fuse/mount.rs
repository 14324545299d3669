//! Mounting: the options, the agreement with the kernel, and what can go wrong, said plainly.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};

use super::adapter::Adapter;
use super::attach::{attach, open_device};
use super::attrs::Ownership;
use super::inodes::ROOT;
use super::own::OwnMount;
use super::table::{SUBTYPE, is_brfs_mount};
use super::waiting::Waiting;
use crate::error::{Error, ErrorKind, Result};
use crate::tree::Node;

/// How a tree is mounted. [`MountOptions::default`] admits only the mounting user, who owns
/// everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// What the mount table says is mounted, as `/etc/fstab` has it: never with secrets.
    pub source: String,
    /// Admits other users, within the nodes' permissions.
    pub allow_other: bool,
    /// Owner of nodes that have none of their own, instead of the mounting user.
    pub uid: Option<u32>,
    /// Group of nodes that have none of their own, instead of the mounting user's.
    pub gid: Option<u32>,
    /// Permission bits taken away from every node.
    pub umask: u16,
    /// Lets the kernel hold users to the access control lists that nodes have, which give less than the group's
    /// permissions that go with them.
    pub acls: bool,
    /// Refuses to run programs from the mount.
    pub no_exec: bool,
    /// Session threads, instead of [`SESSION_THREADS`].
    pub session_threads: Option<usize>,
}

/// Threads that take requests from the kernel. Two copy as fast as more of them do
/// (`benches/mount.rs`); the other two may wait for storage while those listen.
pub const SESSION_THREADS: usize = 4;

/// Read-ahead window of the mount when it can be set (as root): the kernel then asks for more than
/// 128 KiB at a time, while the next piece is already on its way. With wider windows what passes
/// through no longer fits into a processor's own cache between being read and being handed on, and
/// whole disks take longer (`docs/PERFORMANCE.md`). Reading ahead on slow storage is not left to the
/// kernel.
const READ_AHEAD_KIB: u64 = 256;

/// A mounted tree, served in the background until it is unmounted.
#[derive(Debug)]
pub struct Mounted {
    /// Taken when somebody waits for it.
    session: Option<BackgroundSession>,
    own: Arc<OwnMount>,
}

/// Unmounts one mount, and no other that is at its directory by then.
#[derive(Debug, Clone)]
pub struct Unmounter(Arc<OwnMount>);

impl Unmounter {
    /// Takes the mount away from its directory; programs that use it may finish. Tells whether it was
    /// there, topmost.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn unmount(&self) -> Result<bool> {
        self.0.unmount()
    }
}

impl Mounted {
    /// The canonical path of the directory it is mounted at.
    pub fn mountpoint(&self) -> &Path {
        self.own.at()
    }

    /// For those who end the mount from another thread.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter(Arc::clone(&self.own))
    }

    /// Waits until the mount is gone, by whomever it was unmounted. Unmounts nothing.
    ///
    /// # Errors
    /// When the connection to the kernel broke otherwise.
    pub fn wait(mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        match session.join() {
            // A request that was being handed over when the last user of the mount went away.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            other => other,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever has waited for the end has nothing to unmount.
        if self.session.is_some()
            && let Err(error) = self.own.unmount()
        {
            tracing::warn!("{error}");
        }
    }
}

/// Mounts a tree and serves it in the background; dropping the result unmounts.
///
/// Does not look at the mount itself, and its process should not either: a process that is killed
/// while it waits for its own answer never ends. [`check_answers`] is for another process.
///
/// # Errors
/// `Invalid` for a mount point that cannot be one, `Denied` and `Unsupported` for what this user
/// may not do or this machine does not have; the messages say what to do.
pub fn mount(root: Node, mountpoint: &Path, options: &MountOptions) -> Result<Mounted> {
    let mountpoint = check_mountpoint(mountpoint)?;
    let ownership = Ownership {
        uid: options.uid.unwrap_or(rustix::process::getuid().as_raw()),
        gid: options.gid.unwrap_or(rustix::process::getgid().as_raw()),
        umask: options.umask,
        acls: options.acls,
    };
    // A root that cannot be shown is better said now than by every program that looks.
    root.base().attr()?;
    let config = session_config(options);
    let waiting = Arc::new(Waiting::default());
    let threads = config.n_threads.unwrap_or(1);
    let adapter = Adapter::new(root, ownership, threads, Arc::clone(&waiting));
    let before = super::table::devices(&mountpoint);
    let connection =
        attach(&mountpoint, &config).map_err(|error| explain(&error, &mountpoint, options))?;
    let broke = |error| {
        let what = format!("cannot serve the mount at {}", mountpoint.display());
        Error::from_io(error, &what)
    };
    let connection = File::from(connection);
    let kept = connection.try_clone().map_err(broke)?;
    let mut mounted = Mounted {
        session: None,
        own: Arc::new(OwnMount::new(mountpoint.clone(), before.as_deref(), kept)),
    };
    waiting.belongs_to(Arc::clone(&mounted.own));
    let session = Session::from_fd(adapter, connection.into(), config.acl, config)
        .and_then(Session::spawn)
        .map_err(|error| {
            mounted.own.unmount().ok();
            broke(error)
        })?;
    mounted.session = Some(session);
    raise_read_ahead(&mountpoint);
    Ok(mounted)
}

/// The session settings for these options. Public so that benchmarks can serve something else in
/// exactly the same way.
pub fn session_config(options: &MountOptions) -> Config {
    let source = match options.source.as_str() {
        "" => SUBTYPE,
        source => source,
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source.to_owned()),
        // Given as a plain option it reaches the kernel on both ways to mount.
        MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if options.no_exec {
        config.mount_options.push(MountOption::NoExec);
    }
    if options.allow_other {
        config.acl = SessionACL::All;
        // Only then are there users to tell apart. With it, the kernel asks for attributes before
        // it opens a file, exact ones, which may mean reading every block table of a chain.
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.n_threads = Some(options.session_threads.unwrap_or(SESSION_THREADS).max(1));
    // A connection of its own for each thread; needs the device itself, which an ordinary user may
    // be kept from where only `fusermount3` can open it.
    config.clone_fd = open_device().is_ok();
    config
}

/// Widens the kernel's read-ahead window of the brfs mount at this canonical path, where that is
/// allowed (to root).
pub fn raise_read_ahead(mountpoint: &Path) {
    let Some(device) = super::table::device(mountpoint) else {
        return;
    };
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(setting, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("the kernel's read-ahead stays as it is: {error}");
    }
}

/// Whether a tree's root answers at this directory; waits for the answer.
///
/// # Errors
/// `Io` when something else answers there, or whatever the root's attributes failed with.
pub fn check_answers(mountpoint: &Path) -> Result<()> {
    let meta = std::fs::metadata(mountpoint)
        .map_err(|error| Error::from_io(error, "the mount does not answer"))?;
    if meta.ino() == ROOT {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Io,
        format!(
            "something else was mounted over {} at the same time",
            mountpoint.display()
        ),
    ))
}

/// Most dead mounts that lie over each other.
const MOST_DEAD: usize = 16;

/// Takes brfs mounts away whose programs are gone; tells whether there was one.
fn take_dead_away(mountpoint: &Path) -> bool {
    let mut any = false;
    for _ in 0..MOST_DEAD {
        match super::own::unmount_dead(mountpoint) {
            Ok(true) => any = true,
            Ok(false) => break,
            Err(error) => {
                tracing::warn!("{error}");
                break;
            }
        }
    }
    any
}

/// The canonical mount point, when it can be one.
fn check_mountpoint(mountpoint: &Path) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    if take_dead_away(mountpoint) {
        tracing::warn!("the mount at {shown} was dead: its program is gone; it is replaced");
    }
    let meta = match std::fs::metadata(mountpoint) {
        Ok(meta) => meta,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {
            return Err(invalid(format!(
                "{shown} is a mount whose program is gone; take it away first: brfs umount {shown}"
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(invalid(format!(
                "the mount point {shown} does not exist; make it first: mkdir -p {shown}"
            )));
        }
        Err(error) => return Err(Error::from_io(error, &format!("{shown}"))),
    };
    if !meta.is_dir() {
        return Err(invalid(format!(
            "the mount point {shown} is not a directory"
        )));
    }
    let canonical = mountpoint
        .canonicalize()
        .map_err(|error| Error::from_io(error, &format!("{shown}")))?;
    if is_brfs_mount(&canonical) == Some(true) {
        return Err(invalid(format!(
            "a brfs mount is already at {shown}; to take it away: brfs umount {shown}"
        )));
    }
    if std::fs::read_dir(&canonical).is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!(
            "the mount point {shown} is not empty; its files are hidden until it is unmounted"
        );
    }
    Ok(canonical)
}

/// Why a mount failed and what to do about it.
fn explain(error: &io::Error, mountpoint: &Path, options: &MountOptions) -> Error {
    let device = open_device();
    let text = error.to_string();
    let text = text.trim();
    let is_root = rustix::process::geteuid().is_root();
    let (kind, why) = match device {
        Err(device) if device.kind() == io::ErrorKind::NotFound => (
            ErrorKind::Unsupported,
            "/dev/fuse is missing: load the kernel's module (modprobe fuse); in a container, start \
             it with --device /dev/fuse --cap-add SYS_ADMIN"
                .to_owned(),
        ),
        Err(device) if device.kind() == io::ErrorKind::PermissionDenied => (
            ErrorKind::Denied,
            "this user may not open /dev/fuse; as root: chmod 666 /dev/fuse (the usual mode)"
                .to_owned(),
        ),
        Err(device) => (ErrorKind::Unsupported, format!("/dev/fuse: {device}")),
        Ok(_) if text.contains("user_allow_other") => (
            ErrorKind::Denied,
            "--allow-other is for root unless the line user_allow_other stands in /etc/fuse.conf"
                .to_owned(),
        ),
        Ok(_) if error.kind() == io::ErrorKind::NotFound => (
            ErrorKind::Unsupported,
            if is_root {
                "this process may not mount (in a container: --cap-add SYS_ADMIN), and fusermount3 \
                 is not installed"
                    .to_owned()
            } else {
                "ordinary users mount with the help of fusermount3, which is not installed (on \
                 Debian and Ubuntu: apt install fuse3)"
                    .to_owned()
            },
        ),
        Ok(_) if text.is_empty() && options.allow_other && !is_root => (
            ErrorKind::Denied,
            "fusermount3 refused; is user_allow_other set in /etc/fuse.conf?".to_owned(),
        ),
        Ok(_) => (ErrorKind::Io, text.to_owned()),
    };
    Error::new(
        kind,
        format!("cannot mount at {}: {why}", mountpoint.display()),
    )
}
