//! The mount that this process serves, told from whatever else is mounted at the same directory.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::table;
use crate::error::{Error, Result};

/// A mount of this process: where, which, and the connection to the kernel.
///
/// A path is no name for a mount: others unmount it and mount something else there (`systemctl
/// restart` does both within milliseconds), or mount over it. Device numbers are given out anew as
/// soon as a mount is gone, but not as long as its connection lives.
#[derive(Debug)]
pub(super) struct OwnMount {
    at: PathBuf,
    /// `major:minor`; not known without `/proc`, nor where others mount at the same moment, and then
    /// nothing is unmounted.
    device: Option<String>,
    connection: File,
}

impl OwnMount {
    /// The mount that was just made at this canonical directory, where `before` were the brfs mounts
    /// until then.
    pub(super) fn new(at: PathBuf, before: Option<&[String]>, connection: File) -> Self {
        let now = table::devices(&at);
        OwnMount {
            device: before
                .zip(now)
                .and_then(|(before, now)| only_new(before, now)),
            at,
            connection,
        }
    }

    pub(super) fn at(&self) -> &Path {
        &self.at
    }

    /// Whether it is still mounted, anywhere: that can be in use after it has left its directory.
    fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(&self.connection, PollFlags::empty())];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) => !fds[0].revents().contains(PollFlags::ERR),
            // Not known, so not ours to unmount.
            Err(_) => false,
        }
    }

    /// Whether it has been taken away lazily: programs still use it, but no directory leads to it.
    pub(super) fn is_detached(&self) -> bool {
        let Some(device) = &self.device else {
            return false;
        };
        table::has_device(device) == Some(false) && self.is_connected()
    }

    /// Takes it away from its directory, if it is still the topmost mount there; programs that use it
    /// may finish. Tells whether it was.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn unmount(&self) -> Result<bool> {
        let Some(there) = hold(&self.at) else {
            return Ok(false);
        };
        let number = there.as_raw_fd();
        if self.device.is_none() || table::device_of_descriptor(number) != self.device {
            return Ok(false);
        }
        // Asked last: as long as the connection lives, its device number is nobody else's.
        if !self.is_connected() {
            return Ok(false);
        }
        unmount_held(&there, &self.at)?;
        Ok(true)
    }
}

/// The device that has come, if it is one: of two, which is whose cannot be told.
fn only_new(before: &[String], now: Vec<String>) -> Option<String> {
    let mut new = now.into_iter().filter(|device| !before.contains(device));
    let only = new.next()?;
    new.next().is_none().then_some(only)
}

/// Opens whatever is mounted at a directory now, so that it stays what it is. Asks it nothing.
fn hold(at: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(at, flags, Mode::empty()).ok()
}

/// Takes the mount that is held away from its directory.
fn unmount_held(held: &OwnedFd, at: &Path) -> Result<()> {
    let itself = format!("/proc/self/fd/{}", held.as_raw_fd());
    match rustix::mount::unmount(itself, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => super::unmount::with_helper(at, true),
        Err(errno) => Err(Error::from_io(
            errno.into(),
            &format!("cannot unmount {}", at.display()),
        )),
    }
}

/// Takes away the topmost mount at this directory when it is a brfs mount whose program is gone. Tells
/// whether it was.
///
/// # Errors
/// When the system refuses.
pub(super) fn unmount_dead(mountpoint: &Path) -> Result<bool> {
    let Some(held) = hold(mountpoint) else {
        return Ok(false);
    };
    // Not from what the kernel was told a moment ago.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let asked = rustix::fs::statx(&held, "", flags, StatxFlags::BASIC_STATS);
    let is_dead = matches!(asked, Err(Errno::NOTCONN));
    // Where the path leads to is asked of the kernel: the mount does not answer.
    let at = std::fs::read_link(format!("/proc/self/fd/{}", held.as_raw_fd()));
    match at {
        Ok(at) if is_dead && table::is_brfs_mount(&at) == Some(true) => {
            unmount_held(&held, &at).map(|()| true)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_as_ours_only_where_no_other_came_with_it() {
        let all = |devices: &[&str]| devices.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>();
        let ours = |before: &[&str], now: &[&str]| only_new(&all(before), all(now));
        assert_eq!(ours(&[], &["0:50"]).as_deref(), Some("0:50"));
        assert_eq!(ours(&["0:50"], &["0:50", "0:51"]).as_deref(), Some("0:51"));
        // Another process mounted at the same moment, before or after.
        assert_eq!(ours(&[], &["0:50", "0:51"]), None);
        // A number that was given out anew, or a mount that is gone again.
        assert_eq!(ours(&["0:50"], &["0:50"]), None);
        assert_eq!(ours(&[], &[]), None);
    }
}
