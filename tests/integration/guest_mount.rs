//! What is inside the disks, through a real mount: a repository whose disks hold the golden guest
//! images, mounted by the program itself, is walked and compared with what the kernel's own drivers
//! showed; and the tools that people restore with just work on it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::guest_support::mounted::{Walked, walk_mounted, xattrs};
use crate::guest_support::{differences, golden, golden_text};
use crate::support::brfs::BrfsMount;
use crate::support::chain::{Chain, Storage};
use crate::support::mountpoint::{TempDir, can_mount, has_program, needs, sh};
use crate::support::repo::Vm;
use crate::support::rng::Rng;
use crate::support::vhd_dir::Filter;
use brfs::io::ReadAt;

const FILE: Storage = Storage::File;
const DIR: Storage = Storage::Dir(Filter::Brotli);

/// The disks of the guest in their order, from `xvda` on.
const DISKS: [(&str, Storage); 11] = [
    ("partitioned", FILE),
    ("lvm-a", DIR),
    ("lvm-b", FILE),
    ("xfs-dirty", DIR),
    ("btrfs", FILE),
    ("ntfs", DIR),
    ("ext4-dirty", FILE),
    ("exfat", DIR),
    ("fat32", FILE),
    ("btrfs-raid1-a", DIR),
    ("btrfs-raid1-b", FILE),
];
/// What lies on a partition of a disk with an MBR, and that partition's type.
const ON_PARTITIONS: [(&str, u8); 2] = [("ntfs", 7), ("btrfs-raid1-b", 0x83)];
/// Where those partitions begin.
const PARTITION_AT: usize = 1 << 20;
const PIECE: usize = 64 << 10;

/// A repository with a guest of two restore points, in which `etc/fstab` of the ext4 on `xvda`
/// differs, and one whose disks' files are gone.
struct Repository {
    dir: TempDir,
    dates: Vec<String>,
    gone: String,
}

/// An MBR with one partition.
fn mbr(kind: u8, sectors: u64) -> Vec<u8> {
    let mut table = vec![0; 512];
    table[446 + 4] = kind;
    let first = (PARTITION_AT / 512) as u32;
    table[446 + 8..446 + 12].copy_from_slice(&first.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&(sectors as u32).to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    table
}

/// A chain with one layer that holds an image; also where `wanted` begins on the disk.
fn chain(
    rng: &mut Rng,
    name: &str,
    storage: Storage,
    wanted: Option<&[u8]>,
) -> (Chain, Option<(u64, Vec<u8>)>) {
    let image: Arc<dyn ReadAt> = golden(name);
    let partition = ON_PARTITIONS.iter().find(|(known, _)| *known == name);
    let at = partition.map_or(0, |_| PARTITION_AT);
    let len = image.len_bytes().next_multiple_of(512);
    let mut chain = Chain::new();
    let layer = chain.push(rng, len + at as u64).storage(storage);
    if let Some((_, kind)) = partition {
        layer.writes.write_bytes(0, &mbr(*kind, len / 512));
    }
    let mut found = None;
    let mut buf = vec![0; PIECE];
    let mut offset = 0;
    while offset < image.len_bytes() {
        let take = (image.len_bytes() - offset).min(PIECE as u64) as usize;
        buf.fill(0);
        image.read_exact_at(&mut buf[..take], offset).unwrap();
        if buf.iter().any(|&b| b != 0) {
            let whole = take.next_multiple_of(512);
            let sector = (offset + at as u64) / 512;
            layer.writes.write_bytes(sector, &buf[..whole]);
            let place = wanted.and_then(|wanted| {
                buf.chunks(512)
                    .position(|sector| sector.starts_with(wanted))
            });
            if let Some(place) = place {
                found = Some((sector + place as u64, buf[place * 512..][..512].to_vec()));
            }
        }
        offset += take as u64;
    }
    (chain, found)
}

/// Made once for the tests that run at the same time, and gone with the last of them.
fn repository() -> Arc<Repository> {
    static MADE: Mutex<Weak<Repository>> = Mutex::new(Weak::new());
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    made.upgrade().unwrap_or_else(|| {
        let repository = Arc::new(make_repository());
        *made = Arc::downgrade(&repository);
        repository
    })
}

fn make_repository() -> Repository {
    let dir = TempDir::new();
    let mut rng = Rng::new(0x1551de);
    let mut vm = Vm::new(&mut rng, "guest");
    let mut dates = Vec::new();
    for (name, storage) in DISKS {
        let wanted = (name == "partitioned").then_some(&b"# nothing\n"[..]);
        let (mut chain, fstab) = chain(&mut rng, name, storage, wanted);
        let size = chain.layers[0].size_bytes;
        let next = chain.push(&mut rng, size).storage(storage);
        if wanted.is_some() {
            let (sector, mut content) = fstab.expect("the file is on the disk");
            content[..10].copy_from_slice(b"# changed\n");
            next.writes.write_bytes(sector, &content);
            dates = chain.layers.iter().map(|l| l.name.clone()).collect();
        }
        vm.disk(&mut rng, name, chain);
    }
    vm.write(dir.path());
    let mut gone = Vm::new(&mut rng, "gone");
    for _ in 0..3 {
        let mut chain = Chain::new();
        chain.push(&mut rng, 1 << 30);
        gone.disk(&mut rng, "disk", chain);
    }
    let written = gone.write(dir.path());
    fs::remove_dir_all(written.directory.join("vdis")).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Repository {
        dir,
        dates,
        gone: written.points[0].date.clone(),
    }
}

/// The repository, mounted.
struct Mounted {
    mount: BrfsMount,
    repository: Arc<Repository>,
}

fn mounted(flags: &[&str]) -> Option<Mounted> {
    can_mount().then(|| {
        let repository = repository();
        let mount = BrfsMount::new(repository.dir.path(), flags);
        Mounted { mount, repository }
    })
}

fn vm_dir(vms: &Path, name: &str) -> PathBuf {
    let mut entries = fs::read_dir(vms).unwrap().map(|e| e.unwrap().path());
    let found = entries.find(|p| p.file_name().unwrap().to_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("no {name} in {vms:?}"))
}

impl Mounted {
    fn point(&self, index: usize) -> PathBuf {
        vm_dir(&self.mount.join("vms"), "guest").join(&self.repository.dates[index])
    }
}

fn is_ours(path: &str) -> bool {
    path.ends_with(".raw")
        || ["part1", "part2", "guest-vg"].contains(&path)
        || path.matches('/').count() == 1 && path.starts_with("guest-vg/")
}

/// Hard links have one inode number, which nothing else has.
fn check_inodes(walked: &Walked, root: &Path) {
    let mut names: BTreeMap<u64, Vec<&String>> = BTreeMap::new();
    for (path, ino) in &walked.inodes {
        names.entry(*ino).or_default().push(path);
    }
    let mut shared = 0;
    for (ino, paths) in names {
        let fields: Vec<Vec<&str>> = paths
            .iter()
            .map(|path| walked.lines[*path].split('\t').collect())
            .collect();
        if paths.len() > 1 {
            shared += 1;
            let links: usize = fields[0][7].parse().unwrap();
            assert_eq!(paths.len(), links, "{root:?}: {ino}: {paths:?}");
            assert!(fields.iter().all(|f| f[1..] == fields[0][1..]), "{paths:?}");
        } else if fields[0][1] == "f" {
            assert_eq!(fields[0][7], "1", "{root:?}: {paths:?} has other links");
        }
    }
    println!("{root:?}: {shared} files with several names");
}

fn compare(root: &Path, manifest: &str) {
    let mut walked = walk_mounted(root);
    walked.lines.retain(|path, _| !is_ours(path));
    walked.inodes.retain(|path, _| !is_ours(path));
    check_inodes(&walked, root);
    let count = walked.lines.len();
    let different = differences(manifest, walked.lines);
    assert!(
        different.is_empty(),
        "{root:?}: {} differences in {count} paths:\n{}",
        different.len(),
        different[..different.len().min(30)].join("\n")
    );
    assert!(count > 50, "{root:?}: only {count} paths");
}

#[test]
fn every_file_is_as_the_kernel_shows_it() {
    let Some(m) = mounted(&["--guest-owner"]) else {
        return;
    };
    let point = m.point(0);
    let plain = |name: &str| golden_text(&format!("{name}.manifest"));
    compare(&point.join("xvda"), &plain("partitioned"));
    compare(&point.join("lvm"), &golden_text("lvm.lvm-manifest"));
    compare(&point.join("xvdd"), &plain("xfs-dirty"));
    compare(&point.join("xvde"), &plain("btrfs"));
    compare(&point.join("xvdf/part1"), &plain("ntfs"));
    compare(&point.join("xvdg"), &plain("ext4-dirty"));
    compare(&point.join("xvdh"), &plain("exfat"));
    compare(&point.join("xvdi"), &plain("fat32"));
    // One file system over a disk and a partition of another: the same by either.
    let mirror = golden_text("btrfs-raid1.btrfs-manifest");
    compare(&point.join("xvdj"), &mirror);
    compare(&point.join("xvdk/part1"), &mirror);
}

#[test]
fn listing_a_point_opens_no_disk() {
    let Some(m) = mounted(&[]) else { return };
    let point = vm_dir(&m.mount.join("vms"), "gone").join(&m.repository.gone);
    let started = Instant::now();
    let mut names: Vec<String> = fs::read_dir(&point)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(started.elapsed() < Duration::from_secs(2));
    names.sort();
    assert_eq!(
        names,
        [
            "backup.json",
            "lvm",
            "md",
            "xvda",
            "xvda.raw",
            "xvdb",
            "xvdb.raw",
            "xvdc",
            "xvdc.raw"
        ]
    );
    // Entering one is what fails; the volume groups of no readable disks are none.
    assert!(fs::read_dir(point.join("xvda")).is_err());
    assert!(fs::metadata(point.join("xvda")).unwrap().is_dir());
    // And the other guest is as good as ever.
    assert!(fs::read_dir(m.point(1).join("xvda")).unwrap().count() > 0);
}

#[test]
fn copies_are_complete() {
    let rsync = has_program("rsync") && has_program("tar");
    let Some(m) = mounted(&["--guest-owner"]) else {
        return;
    };
    if !needs("rsync and tar", rsync) {
        return;
    }
    let scratch = TempDir::new();
    let root = m.point(0).join("xvda/part2");
    let manifest: String = golden_text("partitioned.manifest")
        .lines()
        .filter_map(|line| Some(format!("{}\n", line.strip_prefix("part2/")?)))
        .collect();
    let to = |name: &str| scratch.path().join(name);
    sh(&format!("cp -a {root:?} {:?}", to("cp")));
    sh(&format!(
        "rsync -aHAX --devices --specials {root:?}/ {:?}",
        to("rsync")
    ));
    sh(&format!(
        "mkdir {0:?}; tar -C {root:?} --xattrs --xattrs-include='*' --acls --sockets -cf - . 2>/dev/null \
         | tar -C {0:?} --xattrs --xattrs-include='*' --acls -xpf - 2>/dev/null || \
         (tar -C {root:?} --xattrs --xattrs-include='*' -cf {1:?} . && \
          tar -C {0:?} --xattrs --xattrs-include='*' -xpf {1:?})",
        to("tar"),
        to("archive")
    ));
    for way in ["cp", "rsync", "tar"] {
        let found = walk_mounted(&to(way));
        check_inodes(&found, &to(way));
        let different: Vec<String> = differences(&manifest, found.lines)
            .into_iter()
            // tar leaves sockets out; what copies to a directory's time and attributes is the
            // tools' own business, and `lost+found` is the root's.
            .filter(|line| way != "tar" || !line.contains("socket"))
            .collect();
        assert!(different.is_empty(), "{way}:\n{}", different.join("\n"));
    }
}

#[test]
fn searching_and_comparing_points_just_works() {
    let Some(m) = mounted(&[]) else { return };
    let (before, after) = (m.point(0), m.point(1));
    for of in ["xvda/part2", "xvde", "xvdi"] {
        let (a, b) = (before.join(of), after.join(of));
        let output = Command::new("diff")
            .args(["-rq", "--no-dereference"])
            .args([&a, &b])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // Of special files diff only says what they are.
        let lines: Vec<&str> = text.lines().filter(|l| l.ends_with("differ")).collect();
        let expected = usize::from(of == "xvda/part2");
        assert_eq!(lines.len(), expected, "{of}: {text}{errors}");
        assert!(expected == 0 || lines[0].contains("etc/fstab"));
    }
    let root = after.join("xvda/part2");
    let found = sh(&format!("grep -rl --devices=skip '# changed' {root:?}"));
    assert_eq!(found.trim(), root.join("etc/fstab").to_str().unwrap());
    let count = sh(&format!("find {root:?} -name 'file-*' -type f | wc -l"));
    assert_eq!(count.trim(), "600");
    let raw = after.join("xvda/part1.raw");
    let content = &xattrs(&raw).unwrap()["user.brfs.content".as_ref() as &std::ffi::OsStr];
    assert_eq!(content, b"fat");
    if has_program("fsck.ext4") || has_program("/usr/sbin/fsck.ext4") {
        sh(&format!(
            "PATH=$PATH:/usr/sbin:/sbin fsck.ext4 -fn {:?}",
            root.with_extension("raw")
        ));
    }
}

/// Without `--guest-owner`, whoever is admitted can read everything, whatever the guest's modes.
#[test]
fn those_who_are_admitted_can_read_everything() {
    let Some(m) = mounted(&["--allow-other"]) else {
        return;
    };
    if !needs("setpriv", has_program("setpriv")) {
        return;
    }
    let root = m.point(0).join("xvda/part2");
    let secret = fs::metadata(root.join("mode-0")).unwrap();
    assert_eq!(secret.uid(), 0);
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let read = sh(&format!(
        "{user} cat {:?} {:?}",
        root.join("mode-0"),
        root.join("mode-600")
    ));
    assert_eq!(read, "mm");
    sh(&format!("{user} ls -l {:?}", root.join("lost+found")));
}

#[test]
fn nobody_is_admitted_to_what_the_guest_keeps_from_others() {
    let Some(m) = mounted(&["--allow-other", "--guest-owner"]) else {
        return;
    };
    if !needs("setpriv", has_program("setpriv")) {
        return;
    }
    let root = m.point(0).join("xvda/part2");
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    sh(&format!(
        "(! {user} cat {:?} 2>/dev/null)",
        root.join("mode-0")
    ));
    sh(&format!(
        "(! {user} ls {:?} 2>/dev/null)",
        root.join("lost+found")
    ));
    assert_eq!(sh(&format!("{user} cat {:?}", root.join("mode-2644"))), "m");
    // Nor to the disk that it is on.
    for raw in ["xvda.raw", "xvda/part2.raw"] {
        let raw = m.point(0).join(raw);
        sh(&format!("test -n \"$(head -c 512 {raw:?} | base64)\""));
        sh(&format!("(! {user} head -c 1 {raw:?} 2>/dev/null)"));
    }
}

/// All of it without root: an ordinary user mounts with `fusermount3`.
#[test]
fn an_ordinary_user_reads_what_is_inside() {
    let tools = ["fusermount3", "setpriv", "unshare"];
    if !can_mount()
        || !needs(
            "fusermount3, setpriv, unshare",
            tools.map(has_program) == [true; 3],
        )
    {
        return;
    }
    let repository = repository();
    let scratch = TempDir::new();
    let dir = scratch.path();
    fs::copy(env!("CARGO_BIN_EXE_brfs"), dir.join("brfs")).unwrap();
    let date = &repository.dates[0];
    let script = format!(
        r#"
        cd {dir:?}
        mkdir dev mnt && mount -t tmpfs -o dev,mode=755 none dev
        mknod -m 666 dev/fuse c 10 229 && mount --bind dev/fuse /dev/fuse
        chmod 755 . && chown 65534 mnt
        user="setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/"
        $user ./brfs mount {:?} mnt
        status=0
        # Not even root looks into another user's mount.
        $user bash -euc '
            cd mnt/vms/guest*/{date}
            cat xvda/part2/mode-0 xvda/part2/mode-600
            ls -la lvm/guest-vg/striped/lost+found
            sha256sum xvdd/large xvde/large xvdf/part1/large
        ' || status=1
        $user ./brfs umount mnt
        # Lazily: the server of the mount may still have it open for a moment.
        umount -l /dev/fuse dev
        exit $status
        "#,
        repository.dir.path()
    );
    let output = Command::new("unshare")
        .args(["-m", "bash", "-euc", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.starts_with("mm"), "{text}");
    let sum = golden_text("xfs-dirty.manifest");
    let line = sum.lines().find(|l| l.starts_with("large\t")).unwrap();
    assert!(text.contains(line.split('\t').nth(10).unwrap()), "{text}");
}
