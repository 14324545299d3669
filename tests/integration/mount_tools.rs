//! Real mounts, real tools: what people restore with gives what was backed up.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::brfs::{BrfsMount, brfs};
use crate::support::chain::{Chain, Storage};
use crate::support::dates::SERIES_START_S;
use crate::support::extents::{allocated, data_ranges};
use crate::support::golden;
use crate::support::guest::{self, Guest};
use crate::support::mountpoint::{TempDir, can_mount, has_program, needs, sh};
use crate::support::repo::{Vm, WrittenVm};
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::support::vhd_dir::Filter;
use crate::support::{catalogue, clutter};

/// A mounted guest; `xvda.raw` is a VHD file, `xvdb.raw` a brotli directory.
struct Mounted {
    mount: BrfsMount,
    guest: Guest,
    dir: TempDir,
}

const DISKS: [&str; 2] = ["xvda.raw", "xvdb.raw"];

fn mounted() -> Option<Mounted> {
    let tools = ["mkfs.ext4", "rsync", "qemu-img"].map(has_program) == [true; 3];
    if !can_mount() || !needs("mkfs.ext4, rsync and qemu-img", tools) {
        return None;
    }
    let dir = TempDir::new();
    let storages = [Storage::File, Storage::Dir(Filter::Brotli)];
    let guest = guest::build(dir.path(), &storages);
    let mount = BrfsMount::new(&guest.repository, &[]);
    Some(Mounted { mount, guest, dir })
}

impl Mounted {
    fn disk(&self, point: usize, name: &str) -> PathBuf {
        let vm = only_entry(&self.mount.join("vms"));
        vm.join(&self.guest.dates[point]).join(name)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn only_entry(dir: &Path) -> PathBuf {
    let names = names(dir);
    assert_eq!(names.len(), 1, "{names:?}");
    dir.join(&names[0])
}

/// A sparse copy has the content, and is about as sparse as the disk says it is.
fn check_copy(copy: &Path, disk: &Path, reference: &Path, what: &str) {
    sh(&format!("cmp {copy:?} {reference:?}"));
    let (stored, copied) = (allocated(disk), allocated(copy));
    assert!(stored < guest::SIZE / 3, "{what}: {stored}");
    assert!(copied <= stored + (1 << 20), "{what}: {copied} of {stored}");
}

#[test]
fn copies_are_right_and_sparse() {
    let Some(m) = mounted() else { return };
    for name in DISKS {
        for point in 0..guest::POINTS {
            let reference = &m.guest.images[point];
            let disk = m.disk(point, name);
            assert_eq!(
                golden::sha256(&disk),
                golden::sha256(reference),
                "{name} {point}"
            );
        }
        let (disk, reference) = (m.disk(2, name), &m.guest.images[2]);
        let copy = m.dir.path().join("copy.raw");
        sh(&format!("cp {disk:?} {copy:?}"));
        check_copy(&copy, &disk, reference, "cp");
        sh(&format!(
            "rm {copy:?}; cp --sparse=always {disk:?} {copy:?}"
        ));
        check_copy(&copy, &disk, reference, "cp --sparse=always");
        sh(&format!("rm {copy:?}; rsync -S {disk:?} {copy:?}"));
        check_copy(&copy, &disk, reference, "rsync -S");
        let parent = disk.parent().unwrap();
        let unpacked = m.dir.path().join("unpacked");
        sh(&format!(
            "rm {copy:?}; mkdir -p {unpacked:?}
             tar -C {parent:?} -S -cf {copy:?} {name}
             tar -C {unpacked:?} -S -xf {copy:?}"
        ));
        // The archive itself holds data only.
        assert!(
            fs::metadata(&copy).unwrap().len() < guest::SIZE / 3,
            "tar -S"
        );
        check_copy(&unpacked.join(name), &disk, reference, "tar -S");
        sh(&format!("rm {copy:?}; cp -a {parent:?} {unpacked:?}/point"));
        let meta = fs::metadata(unpacked.join("point").join(name)).unwrap();
        assert_eq!(meta.mtime() as u64, SERIES_START_S + 2 * 3600);
        sh(&format!("rm -r {unpacked:?}"));
    }
}

#[test]
fn dd_reads_right_at_odd_offsets_and_directly() {
    let Some(m) = mounted() else { return };
    for (point, name) in [(0, DISKS[0]), (2, DISKS[0]), (1, DISKS[1]), (2, DISKS[1])] {
        let (disk, reference) = (m.disk(point, name), &m.guest.images[point]);
        let dd =
            |from: &Path, how: &str| sh(&format!("dd if={from:?} {how} status=none | sha256sum"));
        for how in [
            "bs=1M",
            "bs=777 skip=1351 count=5000",
            "bs=4096 skip=255 count=3",
            "bs=65537 skip=15 count=40",
            "bs=3M skip=42",
            "bs=512 skip=262142",
            "bs=1M skip=300 count=1",
        ] {
            assert_eq!(
                dd(&disk, how),
                dd(reference, how),
                "{name} {point} dd {how}"
            );
        }
        for how in [
            "bs=1M",
            "bs=4096 skip=200 count=1000",
            "bs=2M skip=3 count=7",
        ] {
            let direct = dd(&disk, &format!("{how} iflag=direct"));
            assert_eq!(
                direct,
                dd(reference, how),
                "{name} {point} dd {how} iflag=direct"
            );
        }
    }
}

#[test]
fn qemu_img_compares_and_converts() {
    let Some(m) = mounted() else { return };
    for name in DISKS {
        let (disk, reference) = (m.disk(2, name), &m.guest.images[2]);
        let out = sh(&format!(
            "qemu-img compare -f raw -F raw {disk:?} {reference:?}"
        ));
        assert!(out.contains("identical"), "{out}");
        // A restore point that differs is told, too.
        let other = &m.guest.images[1];
        sh(&format!(
            "(! qemu-img compare -f raw -F raw {disk:?} {other:?})"
        ));
        let converted = m.dir.path().join("converted.qcow2");
        sh(&format!(
            "qemu-img convert -f raw -O qcow2 {disk:?} {converted:?}
             qemu-img compare -f raw -F qcow2 {reference:?} {converted:?}"
        ));
        assert!(allocated(&converted) <= allocated(&disk) + (4 << 20));
        sh(&format!("rm {converted:?}"));
    }
}

/// A file system mounted read-only out of an image; unmounted when dropped, before the image goes.
struct LoopMount(PathBuf);

impl LoopMount {
    fn new(image: &Path, offset: u64, len: u64, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = format!("loop,ro,noload,offset={offset},sizelimit={len}");
        let mut command = Command::new("mount");
        command
            .args(["-t", "ext4", "-o", &options])
            .arg(image)
            .arg(at);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        needs(&format!("loop mounts ({said})"), output.status.success())
            .then(|| LoopMount(at.to_owned()))
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok();
    }
}

#[test]
fn ext4_of_a_disk_mounts_and_has_its_files() {
    let Some(m) = mounted() else { return };
    for (name, point) in [(DISKS[0], 2), (DISKS[1], 0), (DISKS[1], 2)] {
        let at = m.dir.path().join("ext4");
        let len = (guest::SIZE - guest::OFFSET) / 4096 * 4096;
        let disk = m.disk(point, name);
        let Some(_loop) = LoopMount::new(&disk, guest::OFFSET, len, &at) else {
            return;
        };
        let sums = |dir: &Path| {
            sh(&format!(
                "cd {dir:?}; find . -type f -print0 | sort -z | xargs -0 sha256sum"
            ))
        };
        let expected = sums(&m.guest.trees[point]);
        assert!(expected.lines().count() >= 2);
        assert_eq!(sums(&at), expected, "{name} {point}");
    }
}

#[test]
fn ext4_of_disks_that_xo_wrote_has_its_files() {
    if !can_mount() {
        return;
    }
    let set = golden::set();
    let dir = TempDir::new();
    for repository in ["vhddir-brotli", "vhdfile", "midmerge-dir-cleanup"] {
        let mount = BrfsMount::new(&set.path(repository), &[]);
        let vm = mount.join("vms").join(golden::VM_FOLDER);
        for point in [1, 3] {
            let disk = vm.join(golden::DATES[point]).join("xvda.raw");
            // The second entry of the partition table: first and last sector.
            let mut entry = [0; 16];
            File::open(&disk)
                .unwrap()
                .read_exact_at(&mut entry, 1024 + 128 + 32)
                .unwrap();
            let sector = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
            let (start, len) = (sector(0) * 512, (sector(8) + 1 - sector(0)) * 512);
            let at = dir.path().join("ext4");
            let Some(_loop) = LoopMount::new(&disk, start, len, &at) else {
                return;
            };
            let sums = set
                .dir
                .join(format!("reference/disk0.{point}.files.sha256"));
            let checked = sh(&format!("cd {at:?}; sha256sum -c {sums:?}"));
            assert!(checked.lines().count() > 10, "{checked}");
        }
    }
}

#[test]
fn a_2_tib_disk_copies_in_the_time_of_its_data() {
    if !can_mount() {
        return;
    }
    let dir = TempDir::new();
    let size = 2 << 40;
    let mut rng = Rng::new(0x327469);
    let mut chain = Chain::new();
    let spots = [0, (1 << 31) - 8, (1 << 32) - 4096];
    for (seed, sector) in (0..).zip(spots) {
        chain
            .push(&mut rng, size)
            .storage(Storage::Dir(Filter::Brotli))
            .write(sector, 4096, Fill::Random(seed));
    }
    let written = chain.write(&dir.path().join("vdi"));
    let mount = BrfsMount::new(written.youngest(), &[]);
    let (disk, copy) = (mount.join("disk.raw"), dir.path().join("copy.raw"));
    let copied = Command::new("timeout")
        .args(["60", "cp", "--sparse=always"])
        .args([&disk, &copy])
        .status();
    assert!(copied.unwrap().success());
    let file = File::open(&copy).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    assert!(allocated(&copy) <= allocated(&disk));
    for sector in spots {
        let mut got = vec![0; 4096 * 512];
        file.read_exact_at(&mut got, sector * 512).unwrap();
        assert!(
            got == chain.read(2, sector * 512, got.len()),
            "at sector {sector}"
        );
    }
    let data: u64 = data_ranges(&file).iter().map(|r| r.end - r.start).sum();
    assert!(data <= allocated(&disk));
}

/// A VM with one disk, three restore points, all files old enough to be settled.
fn small_vm(rng: &mut Rng, repository: &Path, name: &str, storage: Storage) -> (Chain, WrittenVm) {
    let mut chain = Chain::new();
    for layer in 0..3 {
        let seed = rng.next_u64();
        let layer_of = chain.push(rng, 9 << 20).storage(storage);
        layer_of.write(3000 * layer, 2500, Fill::Random(seed));
    }
    let mut vm = Vm::new(rng, name);
    vm.disk(rng, "root", chain.clone());
    let written = vm.write(repository);
    sh(&format!(
        "find {:?} -type f -exec touch -d '1 hour ago' {{}} +",
        written.directory
    ));
    (chain, written)
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn backups_appear_and_vanish_under_a_mount() {
    if !can_mount() {
        return;
    }
    let dir = TempDir::new();
    let repository = dir.path().join("repository");
    let mut rng = Rng::new(0x6c697665);
    let (chain, written) = small_vm(&mut rng, &repository, "live", Storage::File);
    let [first, second, third] = &written.points[..] else {
        panic!("three points")
    };
    let away = dir.path().join("away.json");
    fs::rename(&third.json_path, &away).unwrap();

    let mount = BrfsMount::new(&repository, &[]);
    let vm = only_entry(&mount.join("vms"));
    let latest = || fs::read_link(vm.join("latest")).unwrap();
    assert_eq!(names(&vm), [&first.date, &second.date, "latest"]);
    assert_eq!(latest(), Path::new(&second.date));
    let read = |file: &File, layer: usize| {
        let mut got = vec![0; 9 << 20];
        file.read_exact_at(&mut got, 0).unwrap();
        assert!(got == chain.read(layer, 0, got.len()), "point {layer}");
    };
    let disk_of = |date: &str| vm.join(date).join("xvda.raw");
    let opened = File::open(disk_of(&second.date)).unwrap();
    let removed = File::open(disk_of(&first.date)).unwrap();
    let mut start = [0; 4096];
    removed.read_exact_at(&mut start, 0).unwrap();

    fs::rename(&away, &third.json_path).unwrap();
    eventually("a new backup is there", || names(&vm).contains(&third.date));
    eventually("latest moves", || latest() == Path::new(&third.date));
    read(&File::open(vm.join("latest/xvda.raw")).unwrap(), 2);

    fs::remove_file(&first.json_path).unwrap();
    eventually("a removed one vanishes", || {
        !names(&vm).contains(&first.date)
    });
    assert!(File::open(disk_of(&first.date)).is_err());
    let by_date = mount.join("by-date").join("2026-03-01");
    assert_eq!(
        names(&only_entry(&by_date)),
        [second.date.as_str(), &third.date]
    );
    // Both were open before; the file of the removed one is still there, untouched.
    read(&opened, 1);
    read(&removed, 0);

    // Another VM, and the last restore points of the first one gone.
    small_vm(&mut rng, &repository, "other", Storage::Dir(Filter::Absent));
    eventually("a new VM is there", || names(&mount.join("vms")).len() == 2);
    fs::remove_file(&second.json_path).unwrap();
    fs::remove_file(&third.json_path).unwrap();
    eventually("a VM without backups is gone", || {
        names(&mount.join("vms")).len() == 1
    });
    read(&opened, 1);
}

#[test]
fn one_bad_vm_hides_no_other() {
    if !can_mount() {
        return;
    }
    let dir = TempDir::new();
    let repository = dir.path().join("repository");
    let mut rng = Rng::new(0x626164);
    let (chain, good) = small_vm(&mut rng, &repository, "good", Storage::Dir(Filter::Gzip));
    let (_, json) = small_vm(&mut rng, &repository, "bad json", Storage::File);
    let (_, data) = small_vm(&mut rng, &repository, "bad data", Storage::File);
    clutter::around_vms(&repository, &mut rng);
    clutter::inside_vm(&good.directory, &mut rng);
    for point in &json.points {
        fs::write(&point.json_path, "{\"mode\": \"delta\", \"vm\": [").unwrap();
    }
    fs::write(json.directory.join("cache.json.gz"), "junk").unwrap();
    fs::write(data.chains[0].layers[0].data(), "not a VHD").unwrap();
    let fifo = good.directory.join("20250101T000000Z.json");
    sh(&format!("mkfifo {fifo:?}"));

    let log = dir.path().join("log");
    let flags = ["--log-file", log.to_str().unwrap()];
    let mount = BrfsMount::new(&repository, &flags);
    // Every directory lists, every link leads somewhere, every file has attributes.
    let at = mount.path();
    sh(&format!(
        "find {at:?} -maxdepth 3 -ls && find -L {at:?}/by-date {at:?}/by-uuid -maxdepth 3 -type l | wc -l | grep -qx 0"
    ));
    let vms = names(&mount.join("vms"));
    assert_eq!(vms.len(), 3, "{vms:?}");
    assert!(vms[0].starts_with("bad data ("), "{vms:?}");
    assert!(vms[1].starts_with("good ("), "{vms:?}");
    assert!(vms[2].starts_with("unnamed ("), "{vms:?}");
    let vm = mount.join("vms").join(&vms[1]);
    for (layer, point) in good.points.iter().enumerate() {
        let bytes = fs::read(vm.join(&point.date).join("xvda.raw")).unwrap();
        assert!(bytes == chain.read(layer, 0, bytes.len()), "{}", point.date);
    }
    // The damaged chain: its own blocks are there, its parent's are an error with a reason.
    let disk = mount.join("vms").join(&vms[0]).join("latest/xvda.raw");
    let e = fs::read(&disk).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(5));
    let told = fs::read_to_string(&log).unwrap();
    assert!(
        told.contains("xvda") && told.contains("cannot be used"),
        "{told}"
    );
    let told = brfs(&["info", repository.to_str().unwrap(), "bad data", "latest"]);
    assert_eq!(told.status.code(), Some(1));
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("PROBLEM: readable in part only"), "{told}");
}

#[test]
fn a_catalogue_of_a_thousand_vms_lists() {
    if !can_mount() {
        return;
    }
    let dir = TempDir::new();
    catalogue::write(dir.path(), catalogue::Options::new(1000, 3));
    let mount = BrfsMount::new(dir.path(), &[]);
    let at = mount.path();
    assert_eq!(names(&mount.join("vms")).len(), 1000);
    let count = |script: &str| sh(script).trim().parse::<usize>().unwrap();
    assert_eq!(
        count(&format!("ls -l {at:?}/by-uuid | grep -c -- '->'")),
        1000
    );
    assert_eq!(
        count(&format!(
            "find {at:?}/vms -mindepth 2 -maxdepth 2 -type d | wc -l"
        )),
        3000
    );
    assert_eq!(
        count(&format!("find {at:?}/vms -maxdepth 2 -name latest | wc -l")),
        1000
    );
    assert_eq!(
        count(&format!("find {at:?}/by-date -mindepth 3 | wc -l")),
        3000
    );
}

#[test]
fn an_ordinary_user_reads_what_is_mounted_for_all() {
    if !can_mount() || !needs("setpriv", has_program("setpriv")) {
        return;
    }
    let dir = TempDir::new();
    sh(&format!("chmod 755 {:?}", dir.path()));
    let repository = dir.path().join("repository");
    let mut rng = Rng::new(0x75736572);
    let (chain, _) = small_vm(&mut rng, &repository, "mine", Storage::File);
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let expected = dir.path().join("expected");
    fs::write(&expected, chain.read(2, 0, 9 << 20)).unwrap();
    let mount = BrfsMount::new(
        &repository,
        &["--allow-other", "--uid", "65534", "--umask", "077"],
    );
    sh(&format!("chmod 755 {:?}", mount.scratch()));
    let disk = only_entry(&mount.join("vms")).join("latest/xvda.raw");
    sh(&format!("{user} cmp {disk:?} {expected:?}"));
    sh(&format!("(! {user} touch {disk:?}) 2>&1"));
    assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o777, 0o400);
    // Another one is kept out by the mask.
    sh(&format!(
        "(! setpriv --reuid 65533 --clear-groups cat {disk:?}) 2>&1"
    ));
}

#[test]
fn reading_stops_neither_listings_nor_unmounting() {
    if !can_mount() {
        return;
    }
    let dir = TempDir::new();
    let repository = dir.path().join("repository");
    let mut rng = Rng::new(0x73746f70);
    let (_, written) = small_vm(&mut rng, &repository, "busy", Storage::Dir(Filter::Brotli));
    let mount = BrfsMount::new(&repository, &[]);
    let disk = only_entry(&mount.join("vms")).join("latest/xvda.raw");
    let mut readers: Vec<_> = (0..4)
        .map(|_| {
            let script = format!("while cat {disk:?} >/dev/null 2>&1; do :; done");
            let mut command = Command::new("bash");
            command.args(["-c", &script]).stdin(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    for _ in 0..20 {
        let listed = names(disk.parent().unwrap());
        assert!(listed.contains(&"xvda.raw".to_owned()), "{listed:?}");
    }
    assert_eq!(written.points.len(), 3);
    let output = brfs(&["umount", "-z", mount.path().to_str().unwrap()]);
    assert!(output.status.success());
    // Their next open fails: the directory is empty again.
    for reader in &mut readers {
        reader.wait().unwrap();
    }
}
