//! `brfs mount` and `brfs umount` as people run them: the process behind the mount.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::mountpoint::{TempDir, UnmountOnDrop, can_mount, has_program, needs, sh};
use brfs::fuse::is_brfs_mount;
use rustix::process::{Pid, Signal, kill_process};

const BRFS: &str = env!("CARGO_BIN_EXE_brfs");

/// A repository without backups, and a mount point.
struct Place {
    at: UnmountOnDrop,
    repository: PathBuf,
    dir: TempDir,
}

fn place() -> Place {
    let dir = TempDir::new();
    let repository = dir.path().join("repository with space");
    std::fs::create_dir_all(repository.join("xo-vm-backups")).unwrap();
    let at = dir.path().join("mount point");
    std::fs::create_dir(&at).unwrap();
    Place {
        at: UnmountOnDrop(at),
        repository,
        dir,
    }
}

impl Place {
    fn at(&self) -> &Path {
        &self.at.0
    }

    /// Runs `brfs mount`; reads its output to the end, which a background process that kept the
    /// output open would delay for ever.
    fn mount(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(BRFS);
        command.arg("mount").args(flags);
        command.arg(&self.repository).arg(self.at());
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn mounted(flags: &[&str]) -> Self {
        let place = place();
        let output = place.mount(flags);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output), "");
        assert_eq!(is_brfs_mount(place.at()), Some(true));
        place
    }

    /// The serving process.
    fn server(&self) -> Option<Pid> {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let expected = format!("brfs\0serve\0{}\0", self.at().display());
            if arguments == expected.as_bytes() {
                return Pid::from_raw(pid);
            }
        }
        None
    }

    fn wait_until_gone(&self) {
        self.wait_until_gone_or(None);
    }

    /// Waits for the server's end; tells then whether a brfs mount is at the directory.
    fn wait_until_gone_or(&self, then: Option<bool>) {
        let started = Instant::now();
        while self.server().is_some() {
            assert!(started.elapsed() < Duration::from_secs(15), "still runs");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(is_brfs_mount(self.at()), then);
    }
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(text).unwrap()
}

fn umount(at: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(BRFS);
    command.arg("umount").args(flags).arg(at).output().unwrap()
}

#[test]
fn mount_answers_when_the_command_returns_and_umount_ends_it() {
    if !can_mount() {
        return;
    }
    let place = Place::mounted(&[]);
    assert_eq!(std::fs::metadata(place.at()).unwrap().ino(), 1);
    let server = place.server().expect("no process serves the mount");
    // In `/`, in a session of its own, without the repository in its arguments.
    let proc = PathBuf::from(format!("/proc/{}", server.as_raw_nonzero()));
    assert_eq!(
        std::fs::read_link(proc.join("cwd")).unwrap(),
        Path::new("/")
    );
    assert_eq!(rustix::process::getsid(Some(server)), Ok(server));
    for fd in 0..3 {
        let target = std::fs::read_link(proc.join(format!("fd/{fd}"))).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
    let output = umount(place.at(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    place.wait_until_gone();
}

#[test]
fn mount_table_tells_what_is_mounted_and_how() {
    if !can_mount() {
        return;
    }
    let place = Place::mounted(&["-o", "noexec,allow_other"]);
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let at = place.at().to_str().unwrap().replace(' ', "\\040");
    let line = table.lines().find(|l| l.contains(&at)).unwrap();
    let source = place.repository.to_str().unwrap().replace(' ', "\\040");
    assert!(line.starts_with(&format!("{source} ")), "{line}");
    for option in [
        "fuse.brfs",
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "allow_other",
    ] {
        assert!(
            line.split([' ', ',']).any(|o| o == option),
            "{line}: {option}"
        );
    }
}

#[test]
fn other_programs_can_unmount_as_well() {
    if !can_mount() {
        return;
    }
    for way in ["umount", "fusermount3 -u"] {
        let place = Place::mounted(&[]);
        sh(&format!("{way} {:?}", place.at()));
        place.wait_until_gone();
    }
}

#[test]
fn signals_unmount_also_while_files_are_open() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let place = Place::mounted(&[]);
        kill_process(place.server().unwrap(), signal).unwrap();
        place.wait_until_gone();
    }
    let place = Place::mounted(&[]);
    let held = File::open(place.at()).unwrap();
    kill_process(place.server().unwrap(), Signal::TERM).unwrap();
    place.wait_until_gone();
    drop(held);
}

#[test]
fn foreground_process_stays_and_ends_on_a_signal() {
    if !can_mount() {
        return;
    }
    let place = place();
    let mut child = Command::new(BRFS)
        .args(["-v", "mount", "-f"])
        .arg(&place.repository)
        .arg(place.at())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while is_brfs_mount(place.at()) != Some(true) {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::metadata(place.at()).unwrap();
    // The same process, now with the arguments that hide the repository.
    let server = place.server().unwrap();
    assert_eq!(server, Pid::from_child(&child));
    // Started, and not yet watching for signals, is a moment that tests must pass.
    std::thread::sleep(Duration::from_millis(100));
    kill_process(server, Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    let mut log = String::new();
    use std::io::Read;
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    assert!(log.contains("mounted at"), "{log}");
}

#[test]
fn busy_mount_says_so_and_goes_lazily() {
    if !can_mount() {
        return;
    }
    let place = Place::mounted(&[]);
    let held = File::open(place.at()).unwrap();
    let output = umount(place.at(), &[]);
    assert!(!output.status.success());
    assert!(said(&output).contains("busy"), "{}", said(&output));
    assert!(umount(place.at(), &["--lazy"]).status.success());
    assert_eq!(is_brfs_mount(place.at()), None);
    drop(held);
    place.wait_until_gone();
}

/// Something that must not be taken away with a mount of ours: a tmpfs, which nobody else serves.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mounted_at(at: &Path) -> Self {
        sh(&format!("mount -t tmpfs brfs-test {at:?}"));
        Tmpfs(at.to_owned())
    }

    fn is_there(&self) -> bool {
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let at = self.0.to_str().unwrap().replace(' ', "\\040");
        table.contains(&format!(" {at} tmpfs "))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if self.is_there() {
            sh(&format!("umount {:?}", self.0));
        }
    }
}

#[test]
fn what_is_mounted_below_stays_when_a_mount_is_taken_away() {
    if !can_mount() {
        return;
    }
    let place = place();
    let below = Tmpfs::mounted_at(place.at());
    let ways: [&dyn Fn(&Place); 3] = [
        &|place| assert!(umount(place.at(), &[]).status.success()),
        &|place| assert!(umount(place.at(), &["--lazy"]).status.success()),
        &|place| kill_process(place.server().unwrap(), Signal::TERM).unwrap(),
    ];
    for take_away in ways {
        let output = place.mount(&[]);
        assert!(output.status.success(), "{}", said(&output));
        std::fs::read_dir(place.at()).unwrap();
        take_away(&place);
        place.wait_until_gone_or(Some(false));
        assert!(below.is_there());
    }
}

/// What `systemctl restart` of a mount unit does, and then some: whatever comes to the directory while
/// the old server is on its way out must stay.
#[test]
fn what_is_mounted_in_the_meantime_stays() {
    if !can_mount() {
        return;
    }
    for _ in 0..5 {
        let place = Place::mounted(&[]);
        sh(&format!("umount {:?}", place.at()));
        let other = Tmpfs::mounted_at(place.at());
        place.wait_until_gone_or(Some(false));
        assert!(other.is_there());
    }
    let place = Place::mounted(&[]);
    for _ in 0..5 {
        let old = place.server().unwrap();
        sh(&format!("umount {:?}", place.at()));
        let output = place.mount(&[]);
        assert!(output.status.success(), "{}", said(&output));
        let started = Instant::now();
        while Path::new(&format!("/proc/{}", old.as_raw_nonzero())).exists() {
            assert!(started.elapsed() < Duration::from_secs(15), "still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(is_brfs_mount(place.at()), Some(true));
        std::fs::read_dir(place.at()).unwrap();
    }
}

#[test]
fn signal_leaves_what_is_mounted_over() {
    if !can_mount() {
        return;
    }
    let place = Place::mounted(&[]);
    let over = Tmpfs::mounted_at(place.at());
    kill_process(place.server().unwrap(), Signal::TERM).unwrap();
    place.wait_until_gone_or(Some(false));
    assert!(over.is_there());
    drop(over);
    // What is left of the mount itself can be taken away.
    assert!(umount(place.at(), &[]).status.success());
}

#[test]
fn dead_mount_can_be_taken_away_and_is_replaced() {
    if !can_mount() {
        return;
    }
    let place = Place::mounted(&[]);
    let die = || {
        kill_process(place.server().unwrap(), Signal::KILL).unwrap();
        while std::fs::metadata(place.at()).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    die();
    let output = umount(place.at(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(is_brfs_mount(place.at()), None);
    assert!(place.mount(&[]).status.success());
    die();
    let output = place.mount(&[]);
    assert!(output.status.success(), "{}", said(&output));
    std::fs::read_dir(place.at()).unwrap();
    // In its place, not on top of it.
    assert!(umount(place.at(), &[]).status.success());
    assert_eq!(is_brfs_mount(place.at()), None);
}

#[test]
fn mount_all_knows_what_is_mounted_already() {
    let tools = [has_program("mount.fuse3"), has_program("unshare")];
    if !can_mount() || !needs("mount.fuse3, unshare", tools == [true; 2]) {
        return;
    }
    let place = place();
    let dir = place.dir.path();
    // In a mount namespace of its own, where the program can be in everybody's PATH.
    let script = format!(
        r#"
        cd {dir:?}
        mount -t tmpfs none /usr/local/bin
        ln -s {BRFS} /usr/local/bin/brfs
        echo "$PWD/repository\\040with\\040space $PWD/mount\\040point fuse.brfs ro 0 0" >fstab
        for time in first second; do mount -a -T fstab; done
        # Also where mount(8) cannot tell and asks the helper.
        brfs "$PWD/repository with space" "$PWD/mount point" -o ro
        grep -c " $PWD/mount.040point " /proc/self/mountinfo
        umount "mount point" /usr/local/bin
        "#
    );
    let output = Command::new("unshare")
        .args(["-m", "bash", "-euc", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "1\n");
    place.wait_until_gone();
    // A dead mount is none that is there already.
    let helper = || {
        let mut command = Command::new(BRFS);
        command.arg(&place.repository).arg(place.at());
        let output = command.args(["-o", "ro"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        std::fs::read_dir(place.at()).unwrap();
    };
    helper();
    kill_process(place.server().unwrap(), Signal::KILL).unwrap();
    while std::fs::metadata(place.at()).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    helper();
}

#[test]
fn mistakes_are_explained_before_anything_is_mounted() {
    if !can_mount() {
        return;
    }
    let place = place();
    let fails = |repository: &Path, at: &Path, flags: &[&str]| {
        let mut command = Command::new(BRFS);
        command.arg("mount").args(flags).arg(repository).arg(at);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        said(&output)
    };
    let none = place.dir.path().join("none");
    let text = fails(place.dir.path(), place.at(), &[]);
    assert!(text.contains("xo-vm-backups"), "{text}");
    assert!(
        text.contains("did you mean") && text.contains("repository with space"),
        "{text}"
    );
    let text = fails(&place.repository.join("xo-vm-backups"), place.at(), &[]);
    assert!(text.contains("did you mean"), "{text}");
    let text = fails(&none, place.at(), &[]);
    assert!(text.contains("none"), "{text}");
    let text = fails(Path::new("/etc/passwd"), place.at(), &[]);
    assert!(text.contains("VHD"), "{text}");
    let text = fails(&place.repository, &none, &[]);
    assert!(text.contains("does not exist"), "{text}");
    // Told once, whoever found it.
    let text = fails(&none, place.at(), &[]);
    assert_eq!(text.matches("No such file").count(), 1, "{text}");
    let mut command = Command::new(BRFS);
    command.env_remove("BRFS_REPOSITORY");
    let output = command.arg("mount").arg(&place.repository).output();
    let text = said(&output.unwrap());
    assert!(text.contains("the mount point is missing"), "{text}");
    let text = fails(&place.repository, place.at(), &["-o", "nonsense"]);
    assert!(text.contains("nonsense"), "{text}");
    let text = fails(&place.repository, place.at(), &["--log-file", "/nowhere/x"]);
    assert!(text.contains("/nowhere/x"), "{text}");
    assert_eq!(is_brfs_mount(place.at()), None);
    let output = umount(place.at(), &[]);
    assert!(
        said(&output).contains("nothing is mounted"),
        "{}",
        said(&output)
    );
    let output = umount(Path::new("/proc"), &[]);
    assert!(
        said(&output).contains("something else"),
        "{}",
        said(&output)
    );
}

#[test]
fn log_file_is_written_to() {
    if !can_mount() {
        return;
    }
    let place = place();
    let log = place.dir.path().join("brfs.log");
    let output = place.mount(&["-v", "--log-file", log.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(umount(place.at(), &[]).status.success());
    place.wait_until_gone();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(
        text.contains("mounted at") && text.contains("unmounted"),
        "{text}"
    );
}

#[test]
fn mount_helper_takes_a_line_of_fstab() {
    if !can_mount() {
        return;
    }
    let place = place();
    let helper = place.dir.path().join("mount.brfs");
    std::os::unix::fs::symlink(BRFS, &helper).unwrap();
    let output = Command::new(&helper)
        .arg(&place.repository)
        .arg(place.at())
        .args(["-s", "-o", "ro,nofail,_netdev,umask=077"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::metadata(place.at()).unwrap().mode() & 0o777, 0o500);
}

#[test]
fn ordinary_user_mounts_and_unmounts_with_fusermount3() {
    let tools = ["fusermount3", "setpriv", "unshare"];
    if !can_mount()
        || !needs(
            "fusermount3, setpriv, unshare",
            tools.map(has_program) == [true; 3],
        )
    {
        return;
    }
    let place = place();
    let dir = place.dir.path();
    // A user must be able to run the program and reach the places; and /dev/fuse has to have its
    // usual mode, which it gets in a mount namespace of its own.
    let name = dir.file_name().unwrap().to_str().unwrap();
    let program = dir.join("brfs");
    std::fs::copy(BRFS, &program).unwrap();
    let script = format!(
        r#"
        cd {dir:?}
        mkdir dev && mount -t tmpfs -o dev,mode=755 none dev
        mknod -m 666 dev/fuse c 10 229 && mount --bind dev/fuse /dev/fuse
        chmod 755 . && chown 65534 "mount point"
        user="setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/"
        (! $user env PATH=/nowhere "$PWD/brfs" mount "repository with space" "mount point" 2>said)
        grep "apt install fuse3" said
        $user ./brfs mount "repository with space" "mount point"
        $user ls -la "mount point"
        $user stat -c "owner %u" "mount point"
        (! ls "mount point" 2>/dev/null)
        (! $user ./brfs umount /proc)
        $user ./brfs umount "mount point"
        $user ./brfs mount "repository with space" "mount point"
        $user fusermount3 -u "mount point"
        mount -t tmpfs below "mount point" && chown 65534 "mount point"
        $user ./brfs mount "repository with space" "mount point"
        $user fusermount3 -u -z "mount point"
        mount -t tmpfs other "mount point" && sleep 1
        grep -q "mount.040point .* tmpfs other" /proc/self/mountinfo && umount "mount point"
        grep -q "mount.040point .* tmpfs below" /proc/self/mountinfo && umount "mount point"
        $user ./brfs mount "repository with space" "mount point"
        $user bash -c 'kill $(pgrep -x -u 65534 -f "brfs serve .*{name}/mount point")'
        for i in $(seq 100); do grep -q "{name}/mount.040point" /proc/self/mountinfo || break; sleep 0.1; done
        (! grep "{name}/mount.040point" /proc/self/mountinfo)
        echo all was well
        # Lazily: the server of the last mount may still have it open for a moment.
        umount -l /dev/fuse dev
        "#
    );
    let output = Command::new("unshare")
        .args(["-m", "bash", "-euxc", &script])
        .output()
        .unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("owner 65534") && text.contains("all was well"),
        "{text}"
    );
    place.wait_until_gone();
}
