//! Mounting itself: by the system call as root, through `fusermount3` as an ordinary user.
//!
//! `fuser` could do both, but then it unmounts as well when it ends, by path and without knowing
//! whose mount is there by then.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use fuser::{Config, MountOption, SessionACL};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The device through which the kernel's requests come.
pub(super) const DEVICE: &str = "/dev/fuse";

/// The set-user-ID programs that mount for ordinary users, the current one first.
pub(super) const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Opens the FUSE device.
pub(super) fn open_device() -> io::Result<File> {
    File::options().read(true).write(true).open(DEVICE)
}

/// Mounts at this directory; gives the connection over which the kernel's requests come. Nothing
/// answers there until they are served.
///
/// # Errors
/// `NotFound` when neither the system call is allowed nor a helper installed.
pub(super) fn attach(mountpoint: &Path, config: &Config) -> io::Result<OwnedFd> {
    match directly(mountpoint, config) {
        // The helper may open the device where this user may not.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            through_helper(mountpoint, config)
        }
        other => other,
    }
}

fn directly(mountpoint: &Path, config: &Config) -> io::Result<OwnedFd> {
    let device = open_device()?;
    let mode = std::fs::metadata(mountpoint)?.mode();
    let mut source = "brfs";
    let mut flags = MountFlags::empty();
    let mut data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    for option in &config.mount_options {
        match option {
            MountOption::FSName(name) => source = name,
            MountOption::RO => flags |= MountFlags::RDONLY,
            MountOption::NoSuid => flags |= MountFlags::NOSUID,
            MountOption::NoDev => flags |= MountFlags::NODEV,
            MountOption::NoExec => flags |= MountFlags::NOEXEC,
            other => data = format!("{data},{}", spelled(other)?),
        }
    }
    if config.acl != SessionACL::Owner {
        data.push_str(",allow_other");
    }
    let data = CString::new(data)?;
    rustix::mount::mount(source, mountpoint, "fuse", flags, data.as_c_str())?;
    Ok(device.into())
}

/// An option as `fusermount3` takes it.
fn spelled(option: &MountOption) -> io::Result<String> {
    Ok(match option {
        // A comma would end the option there, and a backslash escape what follows.
        MountOption::FSName(name) => format!("fsname={}", name.replace([',', '\\'], "_")),
        MountOption::CUSTOM(text) => text.clone(),
        MountOption::DefaultPermissions => "default_permissions".to_owned(),
        MountOption::RO => "ro".to_owned(),
        MountOption::NoSuid => "nosuid".to_owned(),
        MountOption::NoDev => "nodev".to_owned(),
        MountOption::NoExec => "noexec".to_owned(),
        other => return Err(io::Error::other(format!("no such option: {other:?}"))),
    })
}

/// Runs the helper with one end of a socket as its standard input, over which it sends the
/// connection.
fn through_helper(mountpoint: &Path, config: &Config) -> io::Result<OwnedFd> {
    let mut options = Vec::new();
    for option in &config.mount_options {
        options.push(spelled(option)?);
    }
    if config.acl != SessionACL::Owner {
        options.push("allow_other".to_owned());
    }
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    for helper in HELPERS {
        let child = Command::new(helper)
            .args(["-o", &options.join(","), "--"])
            .arg(mountpoint)
            .env("_FUSE_COMMFD", "0")
            .env("LC_ALL", "C")
            .stdin(theirs.try_clone()?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // The helper's is the only one left, so that its end is the end of what can come.
        drop(theirs);
        let received = receive(&ours);
        let output = child.wait_with_output()?;
        return match received? {
            Some(connection) => Ok(connection),
            None => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(io::Error::other(said.trim().to_owned()))
            }
        };
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "fusermount3 is not installed",
    ))
}

/// The file descriptor that comes over the socket; `None` when none does.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        let parts = &mut [IoSliceMut::new(&mut byte)];
        match recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => break,
        }
    }
    let mut received = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(received.next())
}
