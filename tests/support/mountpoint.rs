//! Mounts that are taken away again whatever happens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use brfs::fuse::{self, MountOptions, Mounted};
use brfs::tree::Node;

/// A directory of its own under the system's temporary directory, removed when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("brfs-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path.canonicalize().unwrap())
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A mounted tree; unmounted (lazily if need be) when dropped.
pub struct TestMount {
    mounted: Option<Mounted>,
    dir: TempDir,
}

impl TestMount {
    pub fn new(root: Node, options: &MountOptions) -> Self {
        let dir = TempDir::new();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let mounted = Some(fuse::mount(root, &at, options).unwrap());
        TestMount { mounted, dir }
    }
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
    /// A directory beside the mount.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }
    /// Waits for the session to end, after somebody unmounted it.
    pub fn wait(mut self) {
        self.mounted.take().unwrap().wait().unwrap();
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        let at = self.path();
        if fuse::is_brfs_mount(&at) == Some(true) && fuse::unmount(&at, false).is_err() {
            fuse::unmount(&at, true).ok();
        }
    }
}

/// Unmounts a mount point that another process serves, when dropped.
pub struct UnmountOnDrop(pub PathBuf);

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        if fuse::is_brfs_mount(&self.0) == Some(true) {
            fuse::unmount(&self.0, true).ok();
        }
    }
}

/// Whether this machine can mount; says so when not, and fails when CI is set, where a test that
/// did not run must not look like one that passed.
pub fn can_mount() -> bool {
    needs("/dev/fuse (as root)", {
        let device = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse");
        device.is_ok() && rustix::process::geteuid().is_root()
    })
}

/// Like [`can_mount`], for anything else a test needs.
pub fn needs(what: &str, there: bool) -> bool {
    if !there {
        assert!(
            std::env::var_os("CI").is_none(),
            "needs {what}, which is not there"
        );
        eprintln!("skipped: needs {what}");
    }
    there
}

/// Whether a program is installed.
pub fn has_program(name: &str) -> bool {
    let found = Command::new("sh")
        .args([
            "-c",
            &format!("PATH=$PATH:/usr/sbin:/sbin command -v {name}"),
        ])
        .output();
    found.is_ok_and(|output| output.status.success())
}

/// Runs a shell script and gives its standard output; fails the test when it fails.
pub fn sh(script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
