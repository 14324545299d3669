//! The mount that this process serves, told from whatever else is mounted at the same directory.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
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
    /// `major:minor`; not known without `/proc`, and then nothing is unmounted.
    device: Option<String>,
    connection: File,
}

impl OwnMount {
    /// The mount that was just made at this canonical directory.
    pub(super) fn new(at: PathBuf, connection: File) -> Self {
        OwnMount {
            device: table::device(&at),
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

    /// Takes it away from its directory, if it is still the topmost mount there; programs that use it
    /// may finish. Tells whether it was.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn unmount(&self) -> Result<bool> {
        let failed = |errno: rustix::io::Errno| {
            Error::from_io(
                errno.into(),
                &format!("cannot unmount {}", self.at.display()),
            )
        };
        // Whatever is mounted there now stays what it is while this is open.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(there) = rustix::fs::open(&self.at, flags, Mode::empty()) else {
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
        match rustix::mount::unmount(format!("/proc/self/fd/{number}"), UnmountFlags::DETACH) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::PERM) => {
                super::unmount::with_helper(&self.at, true).map(|()| true)
            }
            Err(errno) => Err(failed(errno)),
        }
    }
}
