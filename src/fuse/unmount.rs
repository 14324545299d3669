//! Taking a mount away: directly as root, through `fusermount3` as an ordinary user.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::attach::HELPERS;
use super::table::{device, is_brfs_mount};
use crate::error::{Error, ErrorKind, Result};

/// Unmounts a brfs mount; the process that serves it then ends by itself. A `lazy` unmount takes
/// the directory away at once and lets programs that still use it finish.
///
/// # Errors
/// `Invalid` when no brfs mount is there, `Denied` when it belongs to somebody else, `Io` when it
/// is busy or the system refuses.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    unmount_with(&resolve(mountpoint)?, flags)
}

fn unmount_with(at: &Path, flags: UnmountFlags) -> Result<()> {
    let invalid = |why: &str| Error::new(ErrorKind::Invalid, format!("{}: {why}", at.display()));
    match is_brfs_mount(at) {
        Some(true) => {}
        Some(false) => return Err(invalid("something else than brfs is mounted there")),
        None => return Err(invalid("nothing is mounted there")),
    }
    match rustix::mount::unmount(at, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => with_helper(at, flags.contains(UnmountFlags::DETACH)),
        Err(Errno::BUSY) => Err(busy(at)),
        Err(errno) => Err(Error::from_io(
            errno.into(),
            &format!("cannot unmount {}", at.display()),
        )),
    }
}

/// Unmounts a brfs mount whatever uses it: programs that wait for it get an error at once, and so does
/// whatever they ask for later. Works also where the serving process itself hangs.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_by_force(mountpoint: &Path) -> Result<()> {
    let at = resolve(mountpoint)?;
    // Whoever mounted it may end its connection, where the system shows connections; for root the
    // system call does so as well.
    let connection = device(&at).and_then(|device| {
        let (_, minor) = device.split_once(':')?;
        Some(format!("/sys/fs/fuse/connections/{minor}/abort"))
    });
    if let Some(abort) = connection
        && let Err(error) = std::fs::write(&abort, "1")
    {
        tracing::debug!("{abort}: {error}");
    }
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::FORCE | UnmountFlags::DETACH;
    unmount_with(&at, flags)
}

/// The canonical path, without asking the mount itself: it may be dead or hang.
fn resolve(mountpoint: &Path) -> Result<PathBuf> {
    let failed = |error| Error::from_io(error, &format!("{}", mountpoint.display()));
    let absolute = std::path::absolute(mountpoint).map_err(failed)?;
    if is_brfs_mount(&absolute) == Some(true) {
        return Ok(absolute);
    }
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            let resolved = parent.canonicalize().map_err(failed)?.join(name);
            if is_brfs_mount(&resolved) == Some(true) {
                return Ok(resolved);
            }
            // The last component may be a link, or `..`.
            resolved.canonicalize().map_err(failed)
        }
        _ => absolute.canonicalize().map_err(failed),
    }
}

fn busy(at: &Path) -> Error {
    let at = at.display();
    Error::new(
        ErrorKind::Io,
        format!(
            "{at} is busy: a program still uses it (an open file, or a shell standing in it; \
             `fuser -vm {at}` tells which). `brfs umount --lazy {at}` takes it away all the same, \
             `--force` also from programs that wait for storage"
        ),
    )
}

/// `fusermount3` is installed set-user-ID for exactly this.
pub(super) fn with_helper(at: &Path, lazy: bool) -> Result<()> {
    for helper in HELPERS {
        let mut command = Command::new(helper);
        command.arg("-u").stdin(Stdio::null()).env("LC_ALL", "C");
        if lazy {
            command.arg("-z");
        }
        let output = match command.arg("--").arg(at).output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::from_io(error, helper)),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        if said.contains("busy") {
            return Err(busy(at));
        }
        let kind = if said.contains("not permitted") || said.contains("not found in") {
            ErrorKind::Denied
        } else {
            ErrorKind::Io
        };
        return Err(Error::new(
            kind,
            format!("cannot unmount {}: {said}", at.display()),
        ));
    }
    Err(Error::new(
        ErrorKind::Denied,
        format!(
            "cannot unmount {} as an ordinary user without fusermount3: install it (on Debian and \
             Ubuntu: apt install fuse3)",
            at.display()
        ),
    ))
}
