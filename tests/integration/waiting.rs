//! Programs that wait for a mount which does not answer: they can be stopped, and the mount be taken
//! away.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::memtree::{MemDir, MemFile};
use crate::support::mountpoint::{TestMount, UnmountOnDrop, can_mount};
use brfs::fuse::{self, MountOptions, is_brfs_mount};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than any test waits.
const FOR_EVER: Duration = Duration::from_secs(300);
/// Enough for a busy machine, and far less than that.
const SOON: Duration = Duration::from_secs(30);

/// A mount of things that answer in five minutes.
fn hanging() -> TestMount {
    let slow = MemDir {
        slow: FOR_EVER,
        ..MemDir::default()
    };
    let unread = MemFile {
        delay: FOR_EVER,
        ..MemFile::new(1 << 20)
    };
    let untold = MemFile {
        attr_delay: FOR_EVER,
        ..MemFile::new(1 << 20)
    };
    let root = MemDir::default()
        .with("dir", slow.node())
        .with("unread", unread.node())
        .with("untold", untold.node());
    TestMount::new(root.node(), &MountOptions::default())
}

/// Starts a program and gives it time to get stuck.
fn stuck(at: &Path, command: &str) -> Child {
    let child = Command::new("sh")
        .arg("-c")
        .arg(format!("exec {command}"))
        .current_dir(at.parent().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    child
}

fn ends_soon(mut child: Child, what: &str) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < SOON, "{what} still waits");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn programs_that_wait_can_be_stopped() {
    if !can_mount() {
        return;
    }
    let mount = hanging();
    let ways = [
        "ls mnt/dir",
        "stat mnt/dir/name",
        "stat mnt/untold",
        "cat mnt/unread",
        "dd if=mnt/unread of=/dev/null iflag=direct bs=4096",
    ];
    for way in ways {
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            let child = stuck(&mount.path(), way);
            kill_process(Pid::from_child(&child), signal).unwrap();
            let status = ends_soon(child, way).status;
            assert_eq!(status.signal(), Some(signal.as_raw()), "{way}");
        }
    }
    // More than there are threads to wait in, so that the last ones never got one.
    let children: Vec<Child> = (0..40).map(|_| stuck_at_once(&mount.path())).collect();
    std::thread::sleep(Duration::from_secs(1));
    for child in &children {
        kill_process(Pid::from_child(child), Signal::KILL).unwrap();
    }
    for child in children {
        ends_soon(child, "one of many");
    }
    // Whoever asks for something else is served.
    assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 3);
}

fn stuck_at_once(at: &Path) -> Child {
    let mut command = Command::new("ls");
    command.arg(at.join("dir")).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn signals_that_do_not_stop_a_program_do_not_fail_its_calls() {
    if !can_mount() {
        return;
    }
    let slow = MemFile {
        delay: Duration::from_secs(2),
        ..MemFile::new(4096)
    };
    let root = MemDir::default().with("slow", slow.node());
    let mount = TestMount::new(root.node(), &MountOptions::default());
    // dd prints its progress on USR1.
    let child = stuck(&mount.path(), "dd if=mnt/slow of=/dev/null iflag=direct");
    kill_process(Pid::from_child(&child), Signal::USR1).unwrap();
    let output = ends_soon(child, "dd");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("4096 bytes"), "{said}");
}

#[test]
fn lazy_unmount_frees_those_who_wait() {
    if !can_mount() {
        return;
    }
    let mount = hanging();
    let child = stuck(&mount.path(), "ls mnt/dir");
    assert!(fuse::unmount(&mount.path(), false).is_err());
    fuse::unmount(&mount.path(), true).unwrap();
    let output = ends_soon(child, "ls");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("Input/output error"), "{said}");
}

#[test]
fn force_takes_a_mount_away_whose_process_hangs() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("repository/xo-vm-backups")).unwrap();
    let at = dir.path().canonicalize().unwrap().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let at = UnmountOnDrop(at);
    let mut server = Command::new(env!("CARGO_BIN_EXE_brfs"))
        .args(["mount", "--foreground"])
        .arg(dir.path().join("repository"))
        .arg(&at.0)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while is_brfs_mount(&at.0) != Some(true) || std::fs::metadata(&at.0).is_err() {
        assert!(started.elapsed() < SOON, "does not mount");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = Pid::from_child(&server);
    kill_process(pid, Signal::STOP).unwrap();
    let child = stuck(&at.0, "ls mnt/vms");
    let output = Command::new(env!("CARGO_BIN_EXE_brfs"))
        .args(["umount", "--force"])
        .arg(&at.0)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(is_brfs_mount(&at.0), None);
    assert_eq!(ends_soon(child, "ls").status.code(), Some(2));
    kill_process(pid, Signal::CONT).unwrap();
    let started = Instant::now();
    while server.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < SOON, "the server does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
