//! The program under test: its commands, and mounts that it serves in the background.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::mountpoint::{TempDir, UnmountOnDrop};

/// Runs `brfs` with these arguments.
pub fn brfs<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brfs"));
    command.args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs a command that prints JSON; gives its exit status and what it printed.
pub fn brfs_json(arguments: &[&str]) -> (i32, Value) {
    let output = brfs(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("brfs {arguments:?}: {e}: {errors}"));
    (output.status.code().unwrap(), value)
}

/// A mount served by a `brfs` in the background; unmounted when dropped.
pub struct BrfsMount {
    at: UnmountOnDrop,
    dir: TempDir,
}

impl BrfsMount {
    /// Mounts a repository or an image.
    pub fn new(source: &Path, flags: &[&str]) -> Self {
        Self::with_flags_first(&[], source, flags)
    }

    /// The same with flags in front, the last of which may be one that takes `source` as its value.
    pub fn with_flags_first(first: &[&str], source: &Path, flags: &[&str]) -> Self {
        let dir = TempDir::new();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let mut arguments: Vec<&std::ffi::OsStr> = vec!["mount".as_ref()];
        arguments.extend(first.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
        arguments.extend([source.as_os_str(), at.as_os_str()]);
        arguments.extend(flags.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
        let output = brfs(&arguments);
        let mount = BrfsMount {
            at: UnmountOnDrop(at),
            dir,
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", source.display());
        mount
    }

    pub fn path(&self) -> &Path {
        &self.at.0
    }

    /// A path below the mount.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path().join(path)
    }

    /// A directory beside the mount.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }
}
