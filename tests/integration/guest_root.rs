//! The root directory of a guest's file system: shown with the guest's own attributes, opened only when they are asked
//! for, and closed to everybody where they cannot be read.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use crate::guest_support::context;
use crate::guest_support::mounted::xattrs;
use crate::support::brfs::BrfsMount;
use crate::support::guest::write_repository;
use crate::support::mountpoint::{TempDir, can_mount, has_program, needs, sh};
use brfs::error::{Error, ErrorKind, Result};
use brfs::io::ReadAt;
use brfs::tree::{Directory, Node};
use brfs::views::guest::{GuestContext, GuestOptions, OpenDisk, disk_children};

const PARTITION_AT: usize = 1 << 20;
/// 2001-02-03 04:05:06 UTC.
const ROOT_TIME: u64 = 981_173_106;

/// An ext4 whose root belongs to 1000:100, is closed to others and has an attribute, as `debugfs` sets them.
fn closed_ext4() -> Option<Vec<u8>> {
    let there = has_program("mkfs.ext4") && has_program("debugfs");
    if !needs("mkfs.ext4 and debugfs", there) {
        return None;
    }
    let dir = TempDir::new();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("open"), "readable by all\n").unwrap();
    fs::set_permissions(tree.join("open"), fs::Permissions::from_mode(0o644)).unwrap();
    sh(&format!(
        "export PATH=$PATH:/usr/sbin:/sbin; truncate -s 8M {image:?}
         mkfs.ext4 -q -F -O ^has_journal -d {tree:?} {image:?}
         debugfs -w {image:?} 2>&1 <<END
         set_inode_field <2> mode 040700
         set_inode_field <2> uid 1000
         set_inode_field <2> gid 100
         set_inode_field <2> mtime @{ROOT_TIME}
         ea_set <2> user.onroot yes\nEND"
    ));
    Some(fs::read(&image).unwrap())
}

/// A disk with an MBR and this in its only partition.
fn partitioned(content: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; PARTITION_AT];
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&((PARTITION_AT / 512) as u32).to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&((content.len() / 512) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    disk.extend_from_slice(content);
    disk
}

fn opened(options: GuestOptions, disk: Arc<dyn ReadAt>) -> Arc<dyn Directory> {
    let open: OpenDisk = Arc::new(move || Ok(disk.clone()));
    let time = UNIX_EPOCH + Duration::from_secs(7);
    let context = GuestContext {
        options,
        time,
        ..context()
    };
    disk_children(context, "xvda", open)
}

fn part1(disk: &dyn Directory) -> Arc<dyn Directory> {
    match disk.lookup("part1".as_ref()).unwrap() {
        Some(Node::Dir(dir)) => dir,
        _ => panic!("part1 is a directory"),
    }
}

fn owners(guest_owner: bool, for_all: bool) -> GuestOptions {
    GuestOptions {
        guest_owner,
        for_all,
    }
}

#[test]
fn the_root_is_that_of_the_guest() {
    let Some(image) = closed_ext4() else { return };
    let table: Arc<dyn ReadAt> = Arc::new(partitioned(&image));
    let image: Arc<dyn ReadAt> = Arc::new(image);
    for (options, mode, owner) in [
        (owners(true, true), 0o700, Some((1000, 100))),
        (owners(false, false), 0o700, None),
        (owners(false, true), 0o755, None),
    ] {
        let whole = opened(options, image.clone());
        let part = part1(&*opened(options, table.clone()));
        for root in [whole, part] {
            let attr = root.attr().unwrap();
            assert_eq!(attr.permissions, mode);
            assert_eq!(attr.uid.zip(attr.gid), owner);
            // `.`, the entry of the parent, and `..` of lost+found.
            assert_eq!(attr.links, 3);
            assert_eq!(attr.mtime, UNIX_EPOCH + Duration::from_secs(ROOT_TIME));
            assert_eq!(root.xattr_names().unwrap(), ["user.onroot"]);
            let value = root.xattr("user.onroot".as_ref()).unwrap();
            assert_eq!(value.as_deref(), Some(&b"yes"[..]));
            assert!(root.lookup("open".as_ref()).unwrap().is_some());
        }
    }
}

/// A disk whose reads are counted, and fail while they are told to.
struct Switched {
    disk: Vec<u8>,
    failing: Mutex<Option<ErrorKind>>,
    reads: AtomicUsize,
}

impl Switched {
    fn set(&self, failing: Option<ErrorKind>) {
        *self.failing.lock().unwrap() = failing;
    }
}

impl ReadAt for Switched {
    fn len_bytes(&self) -> u64 {
        self.disk.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        match *self.failing.lock().unwrap() {
            Some(kind) => Err(Error::new(kind, "no answer")),
            None => self.disk.read_exact_at(buf, offset),
        }
    }
}

fn switched(disk: Vec<u8>) -> Arc<Switched> {
    Arc::new(Switched {
        disk,
        failing: Mutex::new(None),
        reads: AtomicUsize::new(0),
    })
}

#[test]
fn names_are_listed_without_opening_what_they_lead_to() {
    let Some(image) = closed_ext4() else { return };
    let disk = switched(partitioned(&image));
    let dir = opened(owners(true, true), disk.clone());
    assert_eq!(disk.reads.load(Ordering::Relaxed), 0);
    let root = part1(&*dir);
    let scanned = disk.reads.load(Ordering::Relaxed);
    let mut listing = dir.list().unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = listing.next_entry().unwrap() {
        entries.push(entry);
    }
    let names: Vec<&OsStr> = entries.iter().map(|entry| &*entry.name).collect();
    assert_eq!(names, ["part1.raw", "part1"]);
    // Nor do attributes come along with the names.
    assert!(dir.nodes(&entries).is_none());
    assert_eq!(disk.reads.load(Ordering::Relaxed), scanned);
    assert_eq!(root.attr().unwrap().permissions, 0o700);
    assert!(disk.reads.load(Ordering::Relaxed) > scanned);
    // They are asked for along every path: once is enough.
    let known = disk.reads.load(Ordering::Relaxed);
    root.attr().unwrap();
    assert_eq!(disk.reads.load(Ordering::Relaxed), known);
}

#[test]
fn what_fails_for_now_has_no_attributes_until_it_is_read() {
    let Some(image) = closed_ext4() else { return };
    for kind in [ErrorKind::Transient, ErrorKind::Io, ErrorKind::Changed] {
        let disk = switched(partitioned(&image));
        let root = part1(&*opened(owners(true, true), disk.clone()));
        disk.set(Some(kind));
        assert_eq!(root.attr().unwrap_err().kind(), kind);
        assert_eq!(root.xattr_names().unwrap_err().kind(), kind);
        disk.set(None);
        assert_eq!(root.attr().unwrap().permissions, 0o700);
        // The disk's own directory may be a guest's root, too.
        let disk = switched(image.clone());
        let root = opened(owners(true, true), disk.clone());
        disk.set(Some(kind));
        assert_eq!(root.attr().unwrap_err().kind(), kind);
        disk.set(None);
        assert_eq!(root.attr().unwrap().permissions, 0o700);
    }
}

#[test]
fn what_is_damaged_is_there_closed_and_says_why() {
    let Some(mut image) = closed_ext4() else {
        return;
    };
    // A feature that nobody knows.
    image[1024 + 96 + 3] |= 0x40;
    let table: Arc<dyn ReadAt> = Arc::new(partitioned(&image));
    let image: Arc<dyn ReadAt> = Arc::new(image);
    for (options, mode) in [
        (owners(true, true), 0o500),
        (owners(false, false), 0o500),
        (owners(false, true), 0o555),
    ] {
        let whole = opened(options, image.clone());
        let part = part1(&*opened(options, table.clone()));
        let open: OpenDisk = Arc::new(|| Err(Error::corrupt("the disk is gone")));
        let unopened = disk_children(
            GuestContext {
                options,
                ..context()
            },
            "xvda",
            open,
        );
        for root in [whole, part, unopened] {
            let attr = root.attr().unwrap();
            assert_eq!((attr.permissions, attr.uid), (mode, None));
            let error = root.list().map(|_| ()).unwrap_err();
            assert_eq!(root.xattr_names().unwrap(), ["user.brfs.problem"]);
            let problem = root.xattr("user.brfs.problem".as_ref()).unwrap().unwrap();
            assert_eq!(String::from_utf8(problem).unwrap(), error.to_string());
        }
    }
}

/// A repository with one guest: `xvda` is the file system itself, `xvdb` has it in a partition.
fn repository(dir: &Path, image: &[u8]) -> String {
    write_repository(dir, &[image, &partitioned(image)])
}

#[test]
fn a_root_that_is_closed_keeps_others_out_and_is_copied_with_all_it_has() {
    if !can_mount() || !needs("setpriv", has_program("setpriv")) {
        return;
    }
    let Some(image) = closed_ext4() else { return };
    let dir = TempDir::new();
    let date = repository(dir.path(), &image);
    let mount = BrfsMount::new(dir.path(), &["--guest-owner", "--allow-other"]);
    for parent in [dir.path(), mount.scratch()] {
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let vms = fs::read_dir(mount.join("vms")).unwrap();
    let vm = vms.map(|entry| entry.unwrap().path()).next().unwrap();
    let point = vm.join(date);
    // Walked by its owner first: what the kernel keeps must not let others in.
    for root in [point.join("xvda"), point.join("xvdb/part1")] {
        let shown = fs::metadata(&root).unwrap();
        let seconds = i64::try_from(ROOT_TIME).unwrap();
        assert_eq!(shown.mode() & 0o7777, 0o700);
        assert_eq!((shown.uid(), shown.gid()), (1000, 100));
        assert_eq!((shown.mtime(), shown.nlink()), (seconds, 3));
        let text = fs::read_to_string(root.join("open")).unwrap();
        assert_eq!(text, "readable by all\n");
        for user in ["--reuid 65534 --regid 65534", "--reuid 1001 --regid 100"] {
            let user = format!("setpriv {user} --clear-groups");
            sh(&format!("(! {user} ls {root:?} 2>/dev/null)"));
            sh(&format!(
                "(! {user} cat {:?} 2>/dev/null)",
                root.join("open")
            ));
        }
        let owner = "setpriv --reuid 1000 --regid 100 --clear-groups";
        sh(&format!("{owner} ls {root:?}"));
        let copy = mount.scratch().join("copy");
        sh(&format!("cp -a {root:?} {copy:?}"));
        let copied = fs::metadata(&copy).unwrap();
        assert_eq!(copied.mode(), shown.mode());
        assert_eq!((copied.uid(), copied.gid()), (1000, 100));
        assert_eq!(copied.mtime(), seconds);
        if has_program("getfattr") {
            let own: &OsStr = "user.onroot".as_ref();
            assert_eq!(xattrs(&root).unwrap()[own], b"yes");
        }
        fs::remove_dir_all(&copy).unwrap();
    }
}
