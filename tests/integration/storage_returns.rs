//! A repository whose file system goes away under a mount, and comes back: never an absence, and no new
//! mount needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use brfs::error::ErrorKind;
use brfs::store::{LocalStore, Store, StorePath, Validity};
use rustix::process::geteuid;

use crate::support::mountpoint::{TempDir, can_mount, has_program, needs, sh};

const VM: &str = "xo-vm-backups/11111111-1111-4111-a111-111111111111";

/// A mount point that is emptied at the end, however many mounts lie over each other.
struct Point(PathBuf);

impl Point {
    fn new(dir: &TempDir) -> Self {
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        Point(at)
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        let at = &self.0;
        sh(&format!("while umount -l {at:?} 2>/dev/null; do :; done"));
    }
}

fn put(root: &Path, name: &str, content: &str) {
    let dir = root.join(VM);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), content).unwrap();
}

fn names(store: &LocalStore) -> Result<Vec<String>, brfs::error::Error> {
    let listed = store.list(&StorePath::new(VM).unwrap())?;
    Ok(listed.into_iter().map(|entry| entry.name).collect())
}

fn tmpfs(at: &Path) {
    sh(&format!("mount -t tmpfs brfs-test {at:?}"));
}

#[test]
fn what_is_mounted_again_is_taken_and_the_directory_below_never_is() {
    if !needs("root", geteuid().is_root()) {
        return;
    }
    let dir = TempDir::new();
    let point = Point::new(&dir);
    let at = &point.0;
    // A backup job that once ran while nothing was mounted.
    put(at, "below.json", "{}");
    tmpfs(at);
    put(at, "old.json", "old");
    let store = LocalStore::open(at).unwrap();
    assert_eq!(names(&store).unwrap(), ["old.json"]);
    sh(&format!("umount -l {at:?}"));
    std::thread::sleep(Duration::from_millis(2200));
    // Still held, and all there is.
    assert_eq!(names(&store).unwrap(), ["old.json"]);
    // Something else at the same place.
    tmpfs(at);
    std::fs::create_dir_all(at.join("xo-vm-backups/22222222-2222-4222-a222-222222222222")).unwrap();
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(names(&store).unwrap(), ["old.json"]);
    sh(&format!("umount {at:?}"));
    tmpfs(at);
    put(at, "new.json", "new");
    let started = Instant::now();
    while names(&store).unwrap() != ["new.json"] {
        assert!(started.elapsed() < Duration::from_secs(20), "not taken");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The disks that are taken out of the building in turn hold images of one name, and often of one uuid.
#[test]
fn another_disk_with_an_image_of_the_same_name_is_never_taken() {
    if !needs("root", geteuid().is_root()) {
        return;
    }
    let dir = TempDir::new();
    let point = Point::new(&dir);
    let at = &point.0;
    let image = at.join("disk.vhd");
    tmpfs(at);
    std::fs::write(&image, "one").unwrap();
    let store = LocalStore::open(at).unwrap();
    sh(&format!("umount -l {at:?}"));
    tmpfs(at);
    std::fs::write(&image, "two").unwrap();
    std::thread::sleep(Duration::from_millis(2200));
    let path = StorePath::new("disk.vhd").unwrap();
    let (read, _) = store.read(&path, 3, Validity::Ask).unwrap();
    assert_eq!(&read[..], b"one");
}

#[test]
fn dead_storage_is_an_error_until_it_is_mounted_again() {
    if !can_mount() || !needs("bindfs", has_program("bindfs")) {
        return;
    }
    let dir = TempDir::new();
    let point = Point::new(&dir);
    let at = &point.0;
    let source = dir.path().join("source");
    put(&source, "a.json", "{}");
    put(at, "below.json", "{}");
    let bind = || {
        let mut bindfs = Command::new("bindfs");
        let child = bindfs
            .args(["-f", "-o", "nonempty"])
            .arg(&source)
            .arg(at)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !at.join(VM).join("a.json").exists() {
            assert!(started.elapsed() < Duration::from_secs(20), "no bindfs");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    };
    let mut child = bind();
    let store = LocalStore::open(at).unwrap();
    let path = StorePath::new(VM).unwrap().child("a.json");
    let open = store.open(&path, None).unwrap();
    assert_eq!(names(&store).unwrap(), ["a.json"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let is_error = || {
        for _ in 0..3 {
            let error = names(&store).unwrap_err();
            assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
            // The kernel may still tell what it was told a moment ago.
            if let Err(error) = store.head(&path) {
                assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
            }
            std::thread::sleep(Duration::from_millis(1100));
        }
    };
    is_error();
    sh(&format!("umount -l {at:?}"));
    is_error();
    let mut child = bind();
    assert_eq!(names(&store).unwrap(), ["a.json"]);
    // What was open belongs to the old file system: it says so, and is opened again.
    let error = open.read_exact_at(&mut [0; 2], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    let mut buf = [0; 2];
    let again = store.open(&path, None).unwrap();
    again.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"{}");
    drop((store, again, open));
    sh(&format!("umount -l {at:?}"));
    child.wait().unwrap();
}
