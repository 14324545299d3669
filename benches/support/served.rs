//! The real program, serving a mount, watched from outside.

// Each bench uses its own part.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::mountpoint::TempDir;

/// The program as built for this run.
pub const BRFS: &str = env!("CARGO_BIN_EXE_brfs");

/// A `brfs mount --foreground`; unmounted when dropped.
pub struct Served {
    child: Child,
    at: PathBuf,
    _dir: TempDir,
}

impl Served {
    pub fn mount(repository: &Path, options: &[&str]) -> Self {
        let dir = TempDir::new();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).expect("mount point");
        let child = Command::new(BRFS)
            .arg("mount")
            .args(options)
            .arg("--foreground")
            .arg(repository)
            .arg(&at)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("brfs");
        wait_until("brfs mounts", || {
            brfs::fuse::is_brfs_mount(&at) == Some(true) && std::fs::read_dir(&at).is_ok()
        });
        Served {
            child,
            at,
            _dir: dir,
        }
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The newest state of the disk of a repository of one VM.
    pub fn disk(&self) -> PathBuf {
        let vm = std::fs::read_dir(self.at.join("by-uuid"))
            .expect("by-uuid")
            .next()
            .expect("a VM")
            .expect("entry");
        vm.path().join("latest/xvda.raw")
    }

    /// Bytes it has read by system calls, and those that came from a device.
    pub fn bytes_read(&self) -> (u64, u64) {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id())).expect("io");
        (field(&io, "rchar:"), field(&io, "read_bytes:"))
    }

    /// Most memory it had resident, in MiB.
    pub fn peak_mib(&self) -> f64 {
        peak_mib(self.child.id()).unwrap_or(f64::NAN)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let unmounted = brfs::fuse::unmount(&self.at, false);
        if unmounted.is_err() {
            brfs::fuse::unmount(&self.at, true).ok();
        }
        self.child.wait().ok();
    }
}

/// Most memory a process had resident, in MiB; `None` when it is gone.
pub fn peak_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .contains("VmHWM:")
        .then(|| field(&status, "VmHWM:") as f64 / 1024.0)
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Polls every fraction of a millisecond; gives up after a minute.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: never");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Runs a program; its seconds and peak memory in MiB (as last seen while it ran).
pub fn timed(command: &mut Command) -> (f64, f64) {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn().expect("program");
    let mut peak = 0.0;
    loop {
        peak = peak_mib(child.id()).unwrap_or(0.0).max(peak);
        if let Some(status) = child.try_wait().expect("wait") {
            assert!(status.success(), "{command:?} failed");
            return (started.elapsed().as_secs_f64(), peak);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
