//! What lies on a disk, decided by all that speaks for it: partition tables that are whole, damaged or partly wrong,
//! members of arrays, physical volumes and file systems that take the whole disk. And what is said of it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::guest_support::{context_of, golden};
use crate::support::brfs::{BrfsMount, brfs_json};
use crate::support::guest::write_repository;
use crate::support::md;
use crate::support::mountpoint::{TempDir, can_mount};
use crate::support::table::{mbr, write_gpt};
use brfs::error::{Error, ErrorKind, Result};
use brfs::io::ReadAt;
use brfs::tree::{Directory, File, Node};
use brfs::views::guest::{disk_children, lvm_root, md_root};

const MIB: usize = 1 << 20;
const SECTORS_PER_MIB: u32 = (MIB / 512) as u32;

fn dir_of(disks: &[Vec<u8>], index: usize) -> Arc<dyn Directory> {
    let names = ["xvda", "xvdb", "xvdc"];
    let opened = disks.iter().zip(names).map(|(disk, name)| {
        let disk: Arc<dyn ReadAt> = Arc::new(disk.clone());
        (name, disk)
    });
    let context = context_of(opened.collect());
    let (name, open) = context.disks[index].clone();
    disk_children(context, &name, open)
}

fn roots(disks: &[Vec<u8>]) -> [Arc<dyn Directory>; 2] {
    let names = ["xvda", "xvdb", "xvdc"];
    let opened = disks.iter().zip(names).map(|(disk, name)| {
        let disk: Arc<dyn ReadAt> = Arc::new(disk.clone());
        (name, disk)
    });
    let context = context_of(opened.collect());
    [md_root(context.clone()), lvm_root(context)]
}

fn names(dir: &dyn Directory) -> Vec<String> {
    let mut stream = dir.list().unwrap();
    let mut names = Vec::new();
    while let Some(entry) = stream.next_entry().unwrap() {
        names.push(entry.name.into_string().unwrap());
    }
    names
}

fn attribute(node: &dyn brfs::tree::Base, name: &str) -> String {
    let name = format!("user.brfs.{name}");
    let listed = node.xattr_names().unwrap();
    let value = node.xattr(name.as_ref()).unwrap();
    assert_eq!(listed.contains(&name.into()), value.is_some());
    String::from_utf8(value.unwrap_or_default()).unwrap()
}

fn file(dir: &dyn Directory, name: &str) -> Arc<dyn File> {
    match dir.lookup(name.as_ref()).unwrap() {
        Some(Node::File(file)) => file,
        _ => panic!("{name} is a file"),
    }
}

fn sub(dir: &dyn Directory, name: &str) -> Arc<dyn Directory> {
    match dir.lookup(name.as_ref()).unwrap() {
        Some(Node::Dir(dir)) => dir,
        _ => panic!("{name} is a directory"),
    }
}

fn first_byte(file: &dyn File) -> u8 {
    let mut byte = [0];
    file.open().unwrap().read_exact_at(&mut byte, 0).unwrap();
    byte[0]
}

fn mirror(disks: u32, events: u64) -> md::Array {
    md::Array {
        level: 1,
        layout: 0,
        chunk_bytes: 0,
        disks,
        events,
        dropped: None,
    }
}

fn bytes_of(name: &str) -> Vec<u8> {
    let image = golden(name);
    let mut bytes = vec![0; image.len_bytes() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A disk that had a GPT with a partition, and then became a member of version 1.2.
fn array_over_gpt() -> Vec<u8> {
    let mut disk = vec![0; 4 * MIB];
    write_gpt(&mut disk, &[(2048, 4095)]);
    let member = md::member(mirror(1, 5), 0, &vec![0xA5; 3 * MIB]);
    disk[4096..member.len()].copy_from_slice(&member[4096..]);
    disk
}

#[test]
fn a_member_over_an_old_gpt_is_a_member_whatever_is_left_of_the_gpt() {
    let with_backup = array_over_gpt();
    let mut without = with_backup.clone();
    let end = without.len();
    without[end - 33 * 512..].fill(0);
    let mut wiped = with_backup.clone();
    wiped[..512].fill(0);
    for (disk, says) in [(with_backup, true), (without, true), (wiped, false)] {
        let disks = [disk];
        let dir = dir_of(&disks, 0);
        assert!(names(&*dir).is_empty());
        assert_eq!(attribute(&*dir, "content"), "md-member");
        let problem = attribute(&*dir, "problem");
        assert_eq!(problem.contains("gpt"), says, "{problem}");
        let [md, _] = roots(&disks);
        assert_eq!(names(&*md), ["data.raw", "data"]);
        assert_eq!(first_byte(&*file(&*md, "data.raw")), 0xA5);
    }
    // Without its checksum it is no array, and the backup of the GPT counts.
    let mut disk = array_over_gpt();
    disk[4096 + 92] ^= 1;
    let disks = [disk];
    assert_eq!(names(&*dir_of(&disks, 0)), ["part1.raw"]);
    assert!(names(&*roots(&disks)[0]).is_empty());
}

/// 3 MiB with an MBR; the partition holds this byte.
fn table_with(byte: u8) -> Vec<u8> {
    let mut data = vec![byte; 3 * MIB];
    data[..MIB].fill(0);
    data[..512].copy_from_slice(&mbr(&[(0x83, SECTORS_PER_MIB, SECTORS_PER_MIB)]));
    data
}

#[test]
fn a_table_inside_an_array_is_read_from_the_member_that_is_current() {
    let stale = md::member_at_end(mirror(2, 2), 0, &table_with(0x0D));
    let current = md::member_at_end(mirror(2, 9), 1, &table_with(0x11));
    let disks = [stale, current];
    for index in [0, 1] {
        let dir = dir_of(&disks, index);
        assert!(names(&*dir).is_empty());
        assert_eq!(attribute(&*dir, "content"), "md-member");
        assert_eq!(attribute(&*dir, "problem"), "");
    }
    let [md, _] = roots(&disks);
    let inside = sub(&*md, "data");
    assert_eq!(names(&*inside), ["part1.raw"]);
    assert_eq!(first_byte(&*file(&*inside, "part1.raw")), 0x11);
    assert!(attribute(&*md, "problem").contains("xvda is not used: it is out of date"));
}

#[test]
fn what_cannot_be_decided_is_shown_both_ways_and_said() {
    // A table that does not fit into the array that is on the disk, too.
    let mut longer = table_with(0x11);
    longer[..512].copy_from_slice(&mbr(&[(0x83, SECTORS_PER_MIB, 2 * SECTORS_PER_MIB + 8)]));
    let at_end = md::member_at_end(mirror(1, 5), 0, &longer);
    // The first sector is nobody's.
    let mut at_start = md::member(mirror(1, 5), 0, &vec![0x22; 3 * MIB]);
    at_start[..512].copy_from_slice(&mbr(&[(0x83, SECTORS_PER_MIB, SECTORS_PER_MIB)]));
    for disk in [at_end, at_start] {
        let disks = [disk];
        let dir = dir_of(&disks, 0);
        assert_eq!(names(&*dir), ["part1.raw"]);
        let problem = attribute(&*dir, "problem");
        assert!(
            problem.contains("md-member") && problem.contains("out of date"),
            "{problem}"
        );
        let [md, _] = roots(&disks);
        assert!(names(&*md).contains(&"data.raw".to_string()));
    }
}

#[test]
fn volumes_that_take_the_whole_disk_go_before_what_is_left_of_a_gpt() {
    // Only the backup is left of it.
    let over_gpt = |name: &str| {
        let mut disk = bytes_of(name);
        disk.resize(disk.len().next_multiple_of(MIB) + MIB, 0);
        let mut table = vec![0; disk.len()];
        write_gpt(&mut table, &[(2048, 4095)]);
        disk[..512].copy_from_slice(&table[..512]);
        let end = table.len() - 33 * 512;
        disk[end..].copy_from_slice(&table[end..]);
        disk
    };
    let dir = dir_of(&[over_gpt("btrfs")], 0);
    assert!(names(&*dir).len() > 5);
    assert!(!names(&*dir).contains(&"part1.raw".to_string()));
    assert!(attribute(&*dir, "problem").contains("the disk as a whole is btrfs"));
    let disks = [over_gpt("lvm-a"), bytes_of("lvm-b")];
    let dir = dir_of(&disks, 0);
    assert_eq!(attribute(&*dir, "content"), "lvm-member");
    assert!(names(&*dir).is_empty());
    let [_, lvm] = roots(&disks);
    assert_eq!(names(&*lvm), ["guest-vg"]);
    assert!(!attribute(&*sub(&*lvm, "guest-vg"), "problem").contains("missing"));
}

#[test]
fn a_whole_table_is_younger_than_what_its_making_would_have_cleared() {
    let mut disk = bytes_of("lvm-a");
    disk[..512].copy_from_slice(&mbr(&[(0x83, SECTORS_PER_MIB, SECTORS_PER_MIB)]));
    let dir = dir_of(&[disk], 0);
    assert_eq!(names(&*dir)[0], "part1.raw");
    assert!(attribute(&*dir, "problem").contains("lvm-member"));
}

#[test]
fn an_entry_past_the_end_hides_no_other() {
    let mut disk = vec![0; 4 * MIB];
    let entries = [
        (0x83, SECTORS_PER_MIB, SECTORS_PER_MIB),
        (0x83, 1 << 30, 2048),
    ];
    disk[..512].copy_from_slice(&mbr(&entries));
    let dir = dir_of(&[disk], 0);
    assert_eq!(names(&*dir), ["part1.raw"]);
    assert_eq!(attribute(&*dir, "content"), "mbr");
    let problem = attribute(&*dir, "problem");
    assert!(
        problem.starts_with("partition 2: it lies past the end"),
        "{problem}"
    );
    assert_eq!(attribute(&*file(&*dir, "part1.raw"), "problem"), "");
    // The same in a GPT; a third one overlaps the first.
    let mut disk = vec![0; 4 * MIB];
    write_gpt(&mut disk, &[(2048, 4095), (1 << 30, 1 << 31), (4000, 4200)]);
    let dir = dir_of(&[disk], 0);
    assert_eq!(names(&*dir), ["part1.raw", "part3.raw"]);
    assert_eq!(attribute(&*dir, "content"), "gpt");
    let problem = attribute(&*dir, "problem");
    assert!(
        problem.contains("partition 2: it lies past the end"),
        "{problem}"
    );
    for (part, other) in [("part1.raw", 3), ("part3.raw", 1)] {
        let problem = attribute(&*file(&*dir, part), "problem");
        assert!(
            problem.starts_with(&format!("it overlaps partition {other};")),
            "{problem}"
        );
    }
    // Of logical partitions.
    let mut disk = vec![0; 4 * MIB];
    let extended = (5, SECTORS_PER_MIB, 2 * SECTORS_PER_MIB);
    disk[..512].copy_from_slice(&mbr(&[extended]));
    disk[MIB..MIB + 512].copy_from_slice(&mbr(&[(0x83, 8, 100), (5, SECTORS_PER_MIB, 200)]));
    disk[2 * MIB..2 * MIB + 512].copy_from_slice(&mbr(&[(0x83, 1 << 30, 100)]));
    let dir = dir_of(&[disk], 0);
    assert_eq!(names(&*dir), ["part5.raw"]);
    assert!(attribute(&*dir, "problem").starts_with("partition 6: it lies past"));
}

#[test]
fn a_directory_that_stays_empty_says_why() {
    let empty = vec![0; 2 * MIB];
    let with = |at: usize, bytes: &[u8]| {
        let mut disk = empty.clone();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    };
    let mut damaged = empty.clone();
    write_gpt(&mut damaged, &[(2048, 4000)]);
    damaged[512 + 60] ^= 1;
    let last = damaged.len() - 512;
    damaged[last + 60] ^= 1;
    let no_table = mbr(&[(0x83, 1 << 30, 100)]);
    for (disk, content, problem) in [
        (empty.clone(), "zeros", ""),
        (with(5, b"hello"), "unknown", "no file system"),
        (with(0, b"LUKS\xBA\xBE\0\x02"), "luks", "encrypted (luks)"),
        (with(3, b"-FVE-FS-"), "bitlocker", "encrypted (bitlocker)"),
        (with(4086, b"SWAPSPACE2"), "swap", ""),
        (with(32, b"NXSB"), "apfs", "apfs is not read"),
        (
            with(0, &no_table),
            "unknown",
            "partition table: the first sector",
        ),
        (
            damaged,
            "gpt",
            "partition table: both copies of the GPT are damaged",
        ),
    ] {
        let dir = dir_of(&[disk], 0);
        assert!(names(&*dir).is_empty());
        assert_eq!(attribute(&*dir, "content"), content);
        let found = attribute(&*dir, "problem");
        assert!(found.starts_with(problem), "{content}: {found}");
        assert_eq!(found.is_empty(), problem.is_empty(), "{content}: {found}");
        // One reason.
        assert!(!found.contains("; no file system"), "{found}");
    }
}

#[test]
fn the_table_of_an_array_without_copies_is_longer_than_its_first_member() {
    let mut data = vec![0x33; 2 * MIB];
    let entries = [(0x83, 8, 64), (0x83, 3 * SECTORS_PER_MIB, SECTORS_PER_MIB)];
    data[..512].copy_from_slice(&mbr(&entries));
    let striped = md::Array {
        level: 0,
        chunk_bytes: 65536,
        ..mirror(2, 5)
    };
    let disks = [
        md::member_at_end(striped, 0, &data),
        md::member_at_end(striped, 1, &vec![0x44; 2 * MIB]),
    ];
    let dir = dir_of(&disks, 0);
    assert!(names(&*dir).is_empty());
    assert_eq!(attribute(&*dir, "problem"), "");
    let inside = sub(&*roots(&disks)[0], "data");
    assert_eq!(names(&*inside), ["part1.raw", "part2.raw"]);
}

/// A disk whose last MiB cannot be read.
struct Torn(Vec<u8>, ErrorKind);

impl ReadAt for Torn {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset + buf.len() as u64 > (self.0.len() - MIB) as u64 {
            return Err(Error::new(self.1, "no such block"));
        }
        self.0.read_exact_at(buf, offset)
    }
}

#[test]
fn damage_at_the_end_of_a_disk_hides_no_partition() {
    let mut disk = vec![0; 4 * MIB];
    write_gpt(&mut disk, &[(2048, 4095)]);
    let open = |kind| {
        let disk: Arc<dyn ReadAt> = Arc::new(Torn(disk.clone(), kind));
        let context = context_of(vec![("xvda", disk)]);
        let open = context.disks[0].1.clone();
        disk_children(context, "xvda", open)
    };
    let dir = open(ErrorKind::Corrupt);
    assert_eq!(names(&*dir), ["part1.raw"]);
    let problem = attribute(&*dir, "problem");
    assert!(
        problem.contains("not known") && problem.contains("no such block"),
        "{problem}"
    );
    // What may pass is waited for: the disk could be a member of an array.
    let error = open(ErrorKind::Transient).list().map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
}

fn listed(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".raw") && name != "backup.json")
        .collect();
    names.sort();
    names
}

#[test]
fn volume_groups_and_arrays_are_listed_until_all_disks_are_known_to_hold_none() {
    if !can_mount() {
        return;
    }
    let mut table = vec![0; 2 * MIB];
    let entries = [(0x83, 2048, 100), (0x83, 1 << 30, 2048)];
    table[..512].copy_from_slice(&mbr(&entries));
    let member = md::member(mirror(1, 5), 0, &vec![0x22; MIB]);
    for (second, kept) in [(&vec![0; 2 * MIB], vec![]), (&member, vec!["lvm", "md"])] {
        let dir = TempDir::new();
        let date = write_repository(dir.path(), &[&table, second]);
        let log = dir.path().join("log");
        let mount = BrfsMount::new(dir.path(), &["--log-file", log.to_str().unwrap()]);
        let vms = fs::read_dir(mount.join("vms")).unwrap();
        let vm = vms.map(|entry| entry.unwrap().path()).next().unwrap();
        let point = vm.join(date);
        assert_eq!(listed(&point), ["lvm", "md", "xvda", "xvdb"]);
        fs::read_dir(point.join("xvda")).unwrap();
        // One of the two is not enough.
        assert_eq!(listed(&point), ["lvm", "md", "xvda", "xvdb"]);
        fs::read_dir(point.join("xvdb")).unwrap();
        assert_eq!(listed(&point), [kept, vec!["xvda", "xvdb"]].concat());
        // Whoever listed them before finds them.
        for name in ["lvm", "md"] {
            assert!(fs::metadata(point.join(name)).unwrap().is_dir());
            fs::read_dir(point.join(name)).unwrap();
        }
        // `info` tells of the table; no damage of the backup.
        let (status, report) = brfs_json(&[
            "info",
            "--json",
            dir.path().to_str().unwrap(),
            "guest",
            "latest",
        ]);
        let disk = &report["points"][0]["disk_reports"][0];
        assert_eq!((status, &disk["inside"]["table"]), (0, &"mbr".into()));
        assert_eq!(disk["inside"]["partitions"][0]["start"], 2048 * 512);
        let note = disk["notes"][0].as_str().unwrap();
        assert!(
            note.starts_with("partition 2: it lies past the end"),
            "{note}"
        );
        // What is wrong with a disk is logged once, though three looked at it.
        let text = fs::read_to_string(&log).unwrap();
        assert_eq!(
            text.matches("past the end of the disk").count(),
            1,
            "{text}"
        );
    }
}
