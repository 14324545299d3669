//! Images that others than XO made: chains by the names that Windows and the Mac give parents, old
//! footers, other formats; and single images in the place of a repository.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::chains::compare;
use crate::support::brfs::{BrfsMount, brfs, brfs_json};
use crate::support::chain::{Chain, Storage};
use crate::support::far::far;
use crate::support::mountpoint::{TempDir, can_mount};
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::support::vhd::{Footer, ParentLocator, disk_type};
use crate::support::vhd_dir::Filter;
use crate::support::vhd_file::{FooterState, LocatorSpec, write_fixed};
use brfs::error::ErrorKind;
use brfs::image::{Disk, DiskContext};
use brfs::store::{LocalStore, Store, StorePath};

const CACHE_BYTES: u64 = 8 << 20;

fn stores(root: &Path) -> [Arc<dyn Store>; 2] {
    [Arc::new(LocalStore::open(root).unwrap()), far(root, 0)]
}

fn open(store: Arc<dyn Store>, path: &str) -> brfs::error::Result<Arc<Disk>> {
    let path = StorePath::new(path).unwrap();
    DiskContext::new(store, CACHE_BYTES).open_disk(&path, None)
}

/// A parent and a child of it.
fn pair(storage: Storage) -> Chain {
    let rng = &mut Rng::new(31);
    let mut chain = Chain::new();
    for n in 0..2 {
        let layer = chain.push(rng, 1 << 20);
        layer.storage(storage).block_size(65_536);
        layer.write(n * 100, 300, Fill::Random(n));
    }
    chain
}

/// A chain of two files, with what the child says of its parent, and where the two are put.
struct Case {
    name: &'static str,
    locators: Vec<LocatorSpec>,
    parent: &'static str,
    child: &'static str,
}

impl Case {
    fn write(&self, root: &Path) -> Chain {
        let mut chain = pair(Storage::File);
        let (name, locators) = (self.name, self.locators.clone());
        chain.layers[1].file_tweak(move |spec| {
            spec.header.parent_unicode_name = name.encode_utf16().collect();
            spec.locators = locators.clone();
        });
        let made = root.join("made");
        let written = chain.write(&made);
        for (layer, place) in written.layers.iter().zip([self.parent, self.child]) {
            let place = root.join(place);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::rename(&layer.head, place).unwrap();
        }
        fs::remove_dir_all(made).unwrap();
        chain
    }
}

fn case(
    name: &'static str,
    locators: Vec<LocatorSpec>,
    parent: &'static str,
    child: &'static str,
) -> Case {
    Case {
        name,
        locators,
        parent,
        child,
    }
}

#[test]
fn parents_are_found_by_the_names_that_windows_and_the_mac_give_them() {
    let windows = LocatorSpec::windows;
    let cases = [
        case("C:\\VMs\\web 01\\b.vhd", vec![], "b.vhd", "c.avhd"),
        case("\\\\server\\vms\\b.vhd", vec![], "vm/b.vhd", "vm/c.vhd"),
        case("b.VHD", vec![], "B.vhd", "C.VHD"),
        case("..\\b.vhd", vec![], "b.vhd", "snap/c.vhd"),
        case("..\\vms\\Ü b.vhd", vec![], "VMs/ü B.vhd", "snap/c.vhd"),
        case(
            "",
            vec![windows(b"W2ru", ".\\x\\b.vhd")],
            "x/b.vhd",
            "c.vhd",
        ),
        case(
            "gone.vhd",
            vec![windows(b"W2ku", "D:\\b.vhd\0")],
            "b.vhd",
            "c.vhd",
        ),
        case(
            "",
            vec![
                windows(b"W2ku", "D:\\gone.vhd"),
                LocatorSpec::mac("file:///Users/me/my%20b.vhd"),
            ],
            "my b.vhd",
            "c.vhd",
        ),
        // The directories are another machine's, the name is right.
        case("..\\gone\\b.vhd", vec![], "b.vhd", "c.vhd"),
        // No name is: by its uuid, beside the child, or where a name leads to.
        case("gone.vhd", vec![], "other.AVHD", "c.vhd"),
    ];
    for (number, case) in cases.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let chain = case.write(dir.path());
        for store in stores(dir.path()) {
            let disk = open(store, case.child).unwrap();
            assert!(disk.broken().is_none(), "{number}: {:?}", disk.broken());
            compare(&disk, &chain, 1, &mut Rng::new(1), 10);
            let links = disk.checked_links(&Default::default());
            assert_eq!(disk.problems(&links), [""; 0]);
            assert_eq!(links[1].path, case.parent, "{number}");
            assert!(links[1].notes[0].starts_with("found "), "{links:?}");
        }
    }
}

#[test]
fn a_directory_s_locators_are_read_as_well() {
    let mut chain = pair(Storage::Dir(Filter::Gzip));
    chain.layers[1].dir_tweak(|spec| {
        let data: Vec<u8> = ".\\old\\Base.alias.vhd"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        spec.header.parent_unicode_name = Vec::new();
        spec.header.parent_locators[3] = ParentLocator {
            platform_code: *b"W2ru",
            platform_data_space: 1,
            platform_data_length: data.len() as u32,
            ..ParentLocator::default()
        };
        spec.locators = vec![(3, data)];
    });
    let dir = tempfile::tempdir().unwrap();
    let written = chain.write(dir.path());
    fs::create_dir(dir.path().join("old")).unwrap();
    let data = written.layers[0].data().strip_prefix(dir.path()).unwrap();
    let alias = format!("../{}", data.to_str().unwrap());
    fs::remove_file(&written.layers[0].head).unwrap();
    fs::write(dir.path().join("old/base.alias.vhd"), alias).unwrap();
    let child = written.youngest().file_name().unwrap().to_str().unwrap();
    for store in stores(dir.path()) {
        let disk = open(store, child).unwrap();
        assert!(disk.broken().is_none(), "{:?}", disk.broken());
        compare(&disk, &chain, 1, &mut Rng::new(1), 10);
    }
}

#[test]
fn what_is_not_the_parent_is_never_taken_for_it() {
    // Another disk under the parent's name; names that differ in case only; out of the repository.
    let cases = [
        (
            case("C:\\b.vhd", vec![], "elsewhere/b.vhd", "c.vhd"),
            vec!["b.vhd"],
            "has uuid",
        ),
        (
            case("b.vhd", vec![], "elsewhere/b.vhd", "c.vhd"),
            vec!["B.vhd", "b.VHD"],
            "case of letters",
        ),
        (
            case("..\\..\\b.vhd", vec![], "../b.vhd", "sub/c.vhd"),
            vec![],
            "cannot be used",
        ),
    ];
    for (case, others, reason) in cases {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        case.write(&root);
        let rng = &mut Rng::new(77);
        let mut another = Chain::new();
        another.push(rng, 1 << 20).write(0, 64, Fill::Random(5));
        for name in others {
            let made = another.write(&root.join("other"));
            fs::rename(made.youngest(), root.join(name)).unwrap();
            another.layers[0].unique_id = rng.uuid();
        }
        for store in stores(&root) {
            let disk = open(store, case.child).unwrap();
            let broken = disk.broken().expect("a wrong parent").to_string();
            assert!(broken.contains(reason), "{broken}");
            // A file that is not there is not spoken of as a directory's part.
            assert!(!broken.contains("/footer"), "{broken}");
        }
    }
}

#[test]
fn a_directory_under_an_alias_name_is_read() {
    for filter in [Filter::Absent, Filter::Brotli] {
        let chain = pair(Storage::Dir(filter));
        let dir = tempfile::tempdir().unwrap();
        let written = chain.write(dir.path());
        for layer in &written.layers {
            fs::remove_file(&layer.head).unwrap();
            fs::rename(layer.data(), &layer.head).unwrap();
            for store in stores(dir.path()) {
                let name = layer.head.file_name().unwrap().to_str().unwrap();
                let disk = open(store, name).unwrap();
                assert!(disk.broken().is_none(), "{:?}", disk.broken());
                let number = disk.chain_length() - 1;
                compare(&disk, &chain, number, &mut Rng::new(1), 10);
            }
        }
    }
}

#[test]
fn footers_of_511_bytes_are_read() {
    let rng = &mut Rng::new(5);
    let mut chain = Chain::new();
    chain.push(rng, 3 << 20).write(6000, 144, Fill::Random(1));
    chain.layers[0].write(3, 50, Fill::Random(2));
    let mut footer = Footer::new(disk_type::FIXED, 3 << 20, rng.uuid());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.vhd");
    write_fixed(&path, &footer, FooterState::Short, &chain.layers[0].writes);
    assert_eq!(fs::metadata(&path).unwrap().len(), (3 << 20) + 511);
    for store in stores(dir.path()) {
        let disk = open(store, "old.vhd").unwrap();
        compare(&disk, &chain, 0, rng, 20);
        assert_eq!(
            disk.problems(&disk.checked_links(&Default::default())),
            [""; 0]
        );
    }
    // One that says more than there is.
    footer.current_size += 512;
    let path = dir.path().join("short.vhd");
    write_fixed(&path, &footer, FooterState::Short, &chain.layers[0].writes);
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| {
            use std::os::unix::fs::FileExt;
            file.set_len((3 << 20) + 511)?;
            file.write_all_at(&footer.to_bytes()[..511], 3 << 20)
        })
        .unwrap();
    for store in stores(dir.path()) {
        let error = open(store, "short.vhd").err().expect("too short a file");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    // And dynamic disks, which have another at their start.
    let mut chain = pair(Storage::File);
    for layer in &mut chain.layers {
        layer.file_tweak(|spec| spec.trailing = FooterState::Short);
    }
    let written = chain.write(&dir.path().join("dynamic"));
    let child = written.youngest().strip_prefix(dir.path()).unwrap();
    for store in stores(dir.path()) {
        let disk = open(store, child.to_str().unwrap()).unwrap();
        compare(&disk, &chain, 1, rng, 20);
        assert_eq!(
            disk.problems(&disk.checked_links(&Default::default())),
            [""; 0]
        );
    }
}

#[test]
fn images_of_other_formats_are_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let starts: [(&[u8], &str); 2] = [(b"vhdxfile", "VHDX"), (b"QFI\xFB\0\0\0\x03", "qcow2")];
    for (start, format) in starts {
        // Also what is shorter than a footer.
        for len in [300, 4096, 1 << 20] {
            let mut content = vec![0; len];
            content[..start.len()].copy_from_slice(start);
            fs::write(dir.path().join("disk.vhd"), &content).unwrap();
            for store in stores(dir.path()) {
                let error = open(store, "disk.vhd").err().expect("no VHD");
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert!(error.to_string().contains(format), "{error}");
            }
        }
        let path = dir.path().join("disk.vhd");
        for command in ["info", "ls"] {
            let output = brfs(&[command, path.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(2));
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(told.contains(format), "{command}: {told}");
        }
    }
    // The guest of a fixed disk may begin as it likes.
    let rng = &mut Rng::new(5);
    let footer = Footer::new(disk_type::FIXED, 1 << 20, rng.uuid());
    let path = dir.path().join("fixed.vhd");
    write_fixed(&path, &footer, FooterState::Good, &Default::default());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"vhdxfile", 0).unwrap();
    for store in stores(dir.path()) {
        open(store, "fixed.vhd").unwrap();
    }
}

#[test]
fn single_images_are_looked_at_wherever_mount_reads_them() {
    let dir = TempDir::new();
    // A directory without an alias; a child below its parent's directory.
    let chain = pair(Storage::Dir(Filter::Gzip));
    let written = chain.write(&dir.path().join("dirs"));
    let below = case("..\\base.vhd", vec![], "base.vhd", "snap/child.vhd");
    below.write(&dir.path().join("files"));
    let places = [
        (written.layers[0].data().to_owned(), "VHD directory", 1),
        (written.youngest().to_owned(), "VHD directory", 2),
        (dir.path().join("files/snap/child.vhd"), "VHD file", 2),
    ];
    for (path, format, length) in &places {
        let path = path.to_str().unwrap();
        let (status, told) = brfs_json(&["ls", "--json", path]);
        assert_eq!(status, 0, "{told}");
        let disk = &told["disks"][0];
        assert_eq!(disk["format"], *format);
        assert_eq!(disk["chain_length"], *length);
        assert_eq!(disk["size"], 1 << 20);
        let (status, told) = brfs_json(&["info", "--json", path]);
        assert_eq!(status, 0, "{told}");
        assert_eq!(told["disk"]["format"], *format);
        assert_eq!(
            told["disk"]["chain"].as_array().unwrap().len(),
            *length as usize
        );
    }
    if !can_mount() {
        return;
    }
    for (path, _, length) in places {
        let mount = BrfsMount::new(&path, &[]);
        let content = fs::read(mount.join("disk.raw")).unwrap();
        assert!(content == chain.read(length as usize - 1, 0, 1 << 20));
    }
}

#[test]
fn a_chain_that_is_cut_is_said_when_mount_returns() {
    if !can_mount() {
        return;
    }
    let dir = TempDir::new();
    let cut = case("C:\\VMs\\base.vhd", vec![], "base.vhd", "child.avhd");
    let chain = cut.write(dir.path());
    fs::remove_file(dir.path().join("base.vhd")).unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let image = dir.path().join("child.avhd");
    let output = brfs(&["mount".as_ref(), image.as_os_str(), at.as_os_str()]);
    let mounted = crate::support::mountpoint::UnmountOnDrop(at.clone());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("warning: readable in part only"), "{told}");
    assert!(told.contains("base.vhd"), "{told}");
    assert!(!told.contains("/footer"), "{told}");
    // What the child has reads on.
    let file = fs::File::open(at.join("disk.raw")).unwrap();
    let mut buf = [0; 512];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut buf, 100 * 512).unwrap();
    assert!(buf[..] == chain.read(1, 100 * 512, 512));
    let last = (1 << 20) - 512;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut buf, last).unwrap_err();
    drop(file);
    drop(mounted);
}
