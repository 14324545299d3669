//! The tree that brfs shows of a guest file system is the tree that the kernel's own driver shows:
//! names, types, modes, owners, sizes, times, link counts, targets, attributes and contents.
//!
//! The images under `tests/fixtures/guests` were made by `scripts/fixtures/make-guests --golden`, which
//! also wrote down what the kernel (for NTFS and exFAT their FUSE drivers, for FAT and ISO 9660 the source
//! of the copy) showed; those of XFS 4 and of ext2 without features are by `make-kernel-guests`. Larger ones
//! can be compared with
//! `BRFS_GUESTS=DIR cargo test --release --test guestfs_walk -- --ignored`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::guest_support::{Image, context_of, differences, disk, golden, golden_text, walk};
use brfs::error::ErrorKind;
use brfs::guestfs::open;
use brfs::io::ReadAt;
use brfs::tree::{Directory, Node, NodeKind};
use brfs::views::guest::{OpenDisk, disk_children, lvm_root};
use brfs::volume::Content;

fn compare(name: &str, root: &dyn Directory, manifest: &str, ignore: impl Fn(&str) -> bool) {
    let mut found = walk(root);
    found.retain(|path, _| !ignore(path));
    let count = found.len();
    let different = differences(manifest, found);
    assert!(
        different.is_empty(),
        "{name}: {} differences in {count} paths:\n{}",
        different.len(),
        different[..different.len().min(40)].join("\n")
    );
    assert!(count > 0, "{name}: nothing was found");
    println!("{name}: {count} paths are equal");
}

fn compare_golden(name: &str) {
    let manifest = golden_text(&format!("{name}.manifest"));
    compare(name, &*disk(golden(name)), &manifest, |_| false);
}

/// Raw volumes and the directories of volumes are not in manifests.
fn is_ours(path: &str) -> bool {
    path.ends_with(".raw")
        || ["part1", "part2", "guest-vg"].contains(&path)
        || path.matches('/').count() == 1 && path.starts_with("guest-vg/")
}

#[test]
fn ext2_with_linear_directories_and_block_maps() {
    compare_golden("ext2-1k");
}

#[test]
fn ext4_with_inline_data_and_large_attributes() {
    compare_golden("ext4-1k-inline");
}

#[test]
fn ext4_with_a_dirty_journal() {
    compare_golden("ext4-dirty");
}

#[test]
fn ext4_with_commits_that_are_fast_or_asynchronous() {
    compare_golden("ext4-fast-commit");
    compare_golden("ext4-async-commit");
    compare_golden("ext4-csum-async-commit");
}

#[test]
fn ext4_with_its_journal_on_another_disk() {
    let [first, second] =
        ["a", "b"].map(|letter| golden(&format!("ext4-external-journal-{letter}")));
    let context = context_of(vec![("xvda", first.clone()), ("xvdb", second)]);
    let open: OpenDisk = Arc::new(move || Ok(first.clone()));
    let manifest = golden_text("ext4-external-journal.manifest");
    let root = disk_children(context, "xvda", open.clone());
    compare("ext4-external-journal", &*root, &manifest, |_| false);
    let alone = disk_children(context_of(Vec::new()), "xvda", open);
    let Err(error) = alone.list() else {
        panic!("an older state is shown");
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn xfs_with_a_dirty_log() {
    compare_golden("xfs-dirty");
}

#[test]
fn xfs_4_clean_and_with_a_dirty_log() {
    compare_golden("xfs-4");
    compare_golden("xfs-4-dirty");
}

#[test]
fn xfs_4_with_small_inodes_after_a_power_cut() {
    compare_golden("xfs-4-power-cut");
}

#[test]
fn ext2_of_revision_0() {
    compare_golden("ext2-revision-0");
}

/// Readers are dropped when they are idle and opened anew; what the kernel knows by its number must be
/// the same then, whatever is looked at first.
#[test]
fn inode_numbers_outlive_their_reader() {
    use Content::{Btrfs, ExFat, Ext, Fat, Iso9660, Ntfs, Squashfs, Xfs};
    for (name, content) in [
        ("btrfs", Btrfs),
        ("ext4-dirty", Ext),
        ("xfs-dirty", Xfs),
        ("ntfs", Ntfs),
        ("fat32", Fat),
        ("exfat", ExFat),
        ("iso", Iso9660),
        ("squashfs", Squashfs),
    ] {
        let image = golden(name);
        let first = open(content, image.clone()).unwrap();
        let mut found: Vec<(Vec<OsString>, u64)> = Vec::new();
        let mut dirs = vec![(Vec::new(), first.root())];
        while let Some((path, dir)) = dirs.pop() {
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                // Directories that are encrypted cannot be listed.
                let Ok(batch) = first.list(dir, at) else {
                    break;
                };
                for entry in batch.entries {
                    if entry.name == "." || entry.name == ".." {
                        continue;
                    }
                    let mut below = path.clone();
                    below.push(entry.name);
                    if first.attr(entry.inode).unwrap().kind == NodeKind::Dir {
                        dirs.push((below.clone(), entry.inode));
                    }
                    found.push((below, entry.inode));
                }
                cursor = batch.next;
            }
        }
        assert!(found.len() > 100, "{name}");
        let second = open(content, image).unwrap();
        found.sort();
        for (path, inode) in found.iter().rev() {
            let mut at = second.root();
            for part in path {
                at = second.lookup(at, part).unwrap().unwrap();
            }
            assert_eq!(at, *inode, "{name}: {path:?}");
        }
    }
}

#[test]
fn btrfs_with_subvolumes_and_snapshots() {
    compare_golden("btrfs");
}

#[test]
fn btrfs_compressed() {
    compare_golden("btrfs-zstd");
}

/// Whichever device is entered, with all of them there.
#[test]
fn btrfs_over_several_devices() {
    for (name, letters, entrances) in BTRFS_SETS {
        let manifest = golden_text(&format!("{name}.btrfs-manifest"));
        let open = |letter| golden(&format!("{name}-{letter}"));
        compare_set(name, &manifest, letters, entrances, open);
    }
}

/// Sets of devices by their letters, and those that the set can be entered by.
const BTRFS_SETS: [(&str, &str, &str); 8] = [
    ("btrfs-raid0", "abc", "abc"),
    ("btrfs-raid1", "ab", "ab"),
    ("btrfs-raid10", "abcd", "abcd"),
    ("btrfs-raid5", "abc", "abc"),
    ("btrfs-raid6", "abcd", "abcd"),
    // Devices were replaced and removed; chunks are single, RAID 0 and RAID 1.
    ("btrfs-reshaped", "cd", "cd"),
    // The first device missed the last commits of the second, or the other way round.
    ("btrfs-stale", "ab", "ab"),
    // What the first one holds is not what grew from it.
    ("btrfs-seed", "ab", "b"),
];

fn compare_set(
    name: &str,
    manifest: &str,
    letters: &str,
    entrances: &str,
    open: impl Fn(char) -> Arc<dyn ReadAt>,
) {
    let names: Vec<String> = letters
        .chars()
        .map(|letter| format!("xvd{letter}"))
        .collect();
    let disks: Vec<_> = letters.chars().map(open).collect();
    for entrance in entrances.chars() {
        let named = names.iter().map(String::as_str);
        let context = context_of(named.zip(disks.iter().cloned()).collect());
        let own = disks[letters.find(entrance).unwrap()].clone();
        let open: OpenDisk = Arc::new(move || Ok(own.clone()));
        let root = disk_children(context, &format!("xvd{entrance}"), open);
        compare(&format!("{name} by {entrance}"), &*root, manifest, |_| {
            false
        });
    }
}

#[test]
fn volumes_are_found_where_they_are_shown() {
    let disks = ["lvm-a", "lvm-b", "partitioned", "btrfs"];
    let disks: Vec<_> = disks
        .iter()
        .map(|name| ((*name).to_string(), golden(name)))
        .collect();
    let places = |content| {
        let (found, _) = brfs::volume::find_all(content, &disks);
        found
            .into_iter()
            .map(|(place, _)| place)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        places(Content::Ext),
        [
            "partitioned/part2",
            "lvm/guest-vg/linear",
            "lvm/guest-vg/striped"
        ]
    );
    assert_eq!(places(Content::Btrfs), ["btrfs"]);
}

#[test]
fn ntfs_with_compressed_files_and_streams() {
    compare_golden("ntfs");
}

#[test]
fn ntfs_with_files_compressed_by_the_system() {
    compare_golden("ntfs-wof");
    // What they occupy is what is stored of them.
    let root = disk(golden("ntfs-wof"));
    for (kind, at_most) in [("xpress4k", 3 << 20), ("lzx", 2 << 20)] {
        let Some(Node::Dir(dir)) = root.lookup(kind.as_ref()).unwrap() else {
            panic!("a directory");
        };
        let large = dir.lookup("large".as_ref()).unwrap().unwrap();
        let attr = large.base().attr().unwrap();
        assert_eq!(attr.size_bytes, 70 * (64 << 10) + 10);
        assert!((200 << 10..at_most).contains(&attr.allocated_bytes));
    }
}

/// What is written to the log on this thread meanwhile.
fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
    tracing::subscriber::with_default(subscriber.finish(), work);
    let text = log.0.lock().unwrap().clone();
    String::from_utf8(text).unwrap()
}

#[test]
fn ntfs_with_files_whose_content_is_elsewhere() {
    let log = logged(|| compare_golden("ntfs-elsewhere"));
    // Said of the volume; of a file, what those get who open it.
    assert_eq!(log.matches("hibernated").count(), 1, "{log}");
    assert_eq!(log.matches("\"long\"").count(), 1, "{log}");
    let root = disk(golden("ntfs-elsewhere"));
    for (name, says) in [
        ("deduplicated", "chunk store"),
        ("hsm", "HSM"),
        ("online-only", "OneDrive"),
        ("container", "0x90001018"),
        ("wimboot", "WIMBoot"),
        ("unknown-compression", "algorithm 9"),
        ("encrypted", "EFS"),
    ] {
        let Some(Node::File(file)) = root.lookup(name.as_ref()).unwrap() else {
            panic!("{name} is a file");
        };
        let error = file.open().err().expect(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}");
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
    let log = logged(|| compare_golden("ntfs"));
    assert!(!log.contains("hibernated"), "{log}");
}

#[test]
fn ntfs_with_clusters_larger_than_index_blocks() {
    compare_golden("ntfs-64k");
}

#[test]
fn ntfs_with_sectors_of_4096_bytes() {
    compare_golden("ntfs-4kn");
}

#[test]
fn ntfs_with_clusters_whose_size_is_an_exponent() {
    compare_golden("ntfs-1m");
}

/// FIFOs, sockets, devices and links of WSL and of Interix, and system files that are none of them.
#[test]
fn ntfs_with_special_files() {
    compare_golden("ntfs-special");
    let root = disk(golden("ntfs-special"));
    for style in ["wsl", "interix"] {
        let Some(Node::Dir(dir)) = root.lookup(style.as_ref()).unwrap() else {
            panic!("a directory");
        };
        // The listing says what they are, too.
        let mut kinds = BTreeMap::new();
        let mut stream = dir.list().unwrap();
        while let Some(entry) = stream.next_entry().unwrap() {
            kinds.insert(entry.name.into_string().unwrap(), entry.kind);
        }
        for (name, kind) in [
            ("fifo", NodeKind::Fifo),
            ("socket", NodeKind::Socket),
            ("null", NodeKind::CharDevice),
            ("disk", NodeKind::BlockDevice),
            ("link", NodeKind::Symlink),
            ("file", NodeKind::File),
        ] {
            assert_eq!(kinds[name], kind, "{style}/{name}");
        }
    }
}

#[test]
fn fat32_from_mtools() {
    compare_golden("fat32");
}

/// An image with some bytes changed.
struct Changed(Arc<dyn ReadAt>, Vec<(u64, u8)>);

impl ReadAt for Changed {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> brfs::error::Result<()> {
        self.0.read_exact_at(buf, offset)?;
        for (at, byte) in &self.1 {
            if let Some(at) = at.checked_sub(offset).filter(|&at| at < buf.len() as u64) {
                buf[at as usize] = *byte;
            }
        }
        Ok(())
    }
}

/// Linux reads a FAT by its BIOS parameter block, whatever else its first sector says.
#[test]
fn fat32_without_its_signature_and_without_its_jump() {
    let manifest = golden_text("fat32.manifest");
    let no_jump = [(0, 0), (1, 0), (2, 0)];
    let no_signature = [(510, 0), (511, 0)];
    for (name, changes) in [
        ("no jump", no_jump.to_vec()),
        ("no signature", no_signature.to_vec()),
        ("neither", [&no_jump[..], &no_signature].concat()),
    ] {
        let image = Changed(golden("fat32"), changes);
        compare(name, &*disk(Arc::new(image)), &manifest, |_| false);
    }
}

#[test]
fn exfat() {
    compare_golden("exfat");
}

#[test]
fn iso_9660_with_rock_ridge_and_moved_directories() {
    compare_golden("iso");
}

#[test]
fn iso_9660_with_rock_ridge_and_long_links() {
    compare_golden("iso-xorriso");
}

#[test]
fn iso_9660_with_joliet() {
    compare_golden("iso-joliet");
}

#[test]
fn iso_9660_with_nothing() {
    compare_golden("iso-bare");
}

#[test]
fn squashfs_in_five_compressions() {
    for name in ["", "-xz", "-lzo", "-lz4", "-zstd"] {
        compare_golden(&format!("squashfs{name}"));
    }
}

#[test]
fn an_esp_and_an_ext4_on_a_gpt() {
    let root = disk(golden("partitioned"));
    let manifest = golden_text("partitioned.manifest");
    compare("partitioned", &*root, &manifest, is_ours);
    let raw = root.lookup("part1.raw".as_ref()).unwrap().unwrap();
    let attribute = |name: &str| raw.base().xattr(name.as_ref()).unwrap().unwrap();
    assert_eq!(attribute("user.brfs.content"), b"fat");
    assert_eq!(attribute("user.brfs.type"), b"efi-system");
    assert_eq!(attribute("user.brfs.name"), b"EFI");
}

#[test]
fn logical_volumes_over_two_disks_and_with_one_missing() {
    let (first, second) = (golden("lvm-a"), golden("lvm-b"));
    let manifest = golden_text("lvm.lvm-manifest");
    let both = context_of(vec![("xvda", first.clone()), ("xvdb", second)]);
    compare("lvm", &*lvm_root(both), &manifest, is_ours);
    // With one disk gone the group is still there; reading what was on the other disk fails.
    let one = lvm_root(context_of(vec![("xvda", first)]));
    let group = one.lookup("guest-vg".as_ref()).unwrap().unwrap();
    let Node::Dir(group) = group else {
        panic!("a group is a directory");
    };
    let linear = group.lookup("linear.raw".as_ref()).unwrap().unwrap();
    let Node::File(linear) = linear else {
        panic!("a raw volume is a file");
    };
    let open = linear.open().unwrap();
    let mut buf = vec![0; 4096];
    assert!(open.read_exact_at(&mut buf, 0).is_ok());
    assert!(open.read_exact_at(&mut buf, 8 << 20).is_err());
}

#[test]
#[ignore = "needs images made by scripts/fixtures/make-guests"]
fn given_images_are_as_the_kernel_shows_them() {
    let Some(dir) = std::env::var_os("BRFS_GUESTS") else {
        panic!("set BRFS_GUESTS to a directory made by make-guests");
    };
    let only = std::env::var("BRFS_GUEST").unwrap_or_default();
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".manifest").map(str::to_string)
        })
        .filter(|name| only.is_empty() || *name == only)
        .collect();
    names.sort();
    let mut failed = Vec::new();
    for name in names {
        let image = Image::open(&Path::new(&dir).join(format!("{name}.img")));
        let manifest =
            std::fs::read_to_string(Path::new(&dir).join(format!("{name}.manifest"))).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            compare(&name, &*disk(image), &manifest, |path| {
                name == "partitioned" && is_ours(path)
            });
        }));
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().cloned();
            println!("{}", text.unwrap_or_default());
            failed.push(name);
        }
    }
    for (name, _, entrances) in BTRFS_SETS {
        let dir = Path::new(&dir);
        if let Ok(manifest) = std::fs::read_to_string(dir.join(format!("{name}.btrfs-manifest"))) {
            // Devices that are no members any more are there, too.
            let path = |letter| dir.join(format!("{name}-{letter}.img"));
            let letters: String = "abcd".chars().filter(|l| path(*l).exists()).collect();
            compare_set(name, &manifest, &letters, entrances, |letter| {
                Image::open(&path(letter))
            });
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// For every `NAME.raw` with a `NAME.files.sha256` beside it (as `sha256sum` writes it, relative to the
/// root of a file system), each file listed is on one of the partitions with that content.
#[test]
#[ignore = "needs disks with lists of their files"]
fn given_disks_hold_the_listed_files() {
    let Some(dir) = std::env::var_os("BRFS_DISKS") else {
        panic!("set BRFS_DISKS to a directory with NAME.raw and NAME.files.sha256");
    };
    let mut checked = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_str().unwrap().to_string();
        let Some(stem) = name.strip_suffix(".files.sha256") else {
            continue;
        };
        let found = walk(&*disk(Image::open(Path::new(&format!("{stem}.raw")))));
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let (sum, file) = line.split_once("  ./").unwrap();
            let escaped = crate::guest_support::escape(file.as_bytes());
            let is_there = (1..=4).any(|part| {
                found
                    .get(&format!("part{part}/{escaped}"))
                    .is_some_and(|line| line.split('\t').nth(10) == Some(sum))
            });
            assert!(is_there, "{stem}: {file}");
            checked += 1;
        }
    }
    println!("{checked} files are equal");
    assert!(checked > 0);
}
