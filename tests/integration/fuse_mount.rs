//! Real mounts of a tree in memory: what programs see through the kernel.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::memtree::{MemDir, MemFile, link, pattern};
use crate::support::mountpoint::{TestMount, can_mount, has_program, needs, sh};
use brfs::fuse::{self, MountOptions};
use brfs::tree::{Attr, Base, DirStream, Directory, EntryList, Identity, Node};
use bytes::Bytes;
use rustix::fs::{Advice, SeekFrom};

const MIB: u64 = 1 << 20;

fn mount(root: Node) -> TestMount {
    TestMount::new(root, &MountOptions::default())
}

fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

fn stat(path: &Path) -> Metadata {
    std::fs::symlink_metadata(path).unwrap()
}

#[test]
fn bytes_are_right_at_any_offset_whichever_thread_answers() {
    if !can_mount() {
        return;
    }
    let size = 5 * MIB + 123;
    let quick = MemFile {
        quick: true,
        ..MemFile::new(size)
    };
    let shared = MemFile {
        shared: Some(Bytes::from(pattern(0, 100_000))),
        ..MemFile::new(100_000)
    };
    let mounted = mount(
        MemDir::default()
            .with("slow.raw", MemFile::new(size).node())
            .with("quick.raw", quick.node())
            .with("shared.raw", shared.node())
            .node(),
    );
    let expected = pattern(0, size as usize);
    let reference = mounted.scratch().join("reference");
    std::fs::write(&reference, &expected).unwrap();
    for name in ["slow.raw", "quick.raw"] {
        let path = mounted.path().join(name);
        sh(&format!("cmp {reference:?} {path:?}"));
        for (bs, skip) in [(1000, 7), (4096, 1000), (12345, 100), (1 << 20, 5)] {
            let dd = |from: &Path, flags: &str| {
                sh(&format!(
                    "dd if={from:?} bs={bs} skip={skip} {flags} status=none | sha256sum"
                ))
            };
            assert_eq!(dd(&path, ""), dd(&reference, ""), "{name} bs={bs}");
            assert_eq!(
                dd(&path, "iflag=direct"),
                dd(&reference, ""),
                "{name} bs={bs}"
            );
        }
        let file = File::open(&path).unwrap();
        let mut buf = vec![0; 777];
        for offset in [
            0,
            1,
            511,
            4095,
            MIB - 1,
            size - 777,
            size - 10,
            size,
            size + 5,
        ] {
            let got = file.read_at(&mut buf, offset).unwrap();
            let from = (offset.min(size)) as usize;
            let to = (offset + 777).min(size).max(from as u64) as usize;
            assert_eq!(buf[..got], expected[from..to], "{name} at {offset}");
        }
    }
    let shared = File::open(mounted.path().join("shared.raw")).unwrap();
    let mut buf = vec![0; 100_000];
    shared.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, expected[..100_000]);
}

#[test]
fn many_readers_at_once_get_the_right_bytes() {
    if !can_mount() {
        return;
    }
    let size = 16 * MIB;
    let mounted = mount(
        MemDir::default()
            .with("a.raw", MemFile::new(size).node())
            .node(),
    );
    let file = Arc::new(File::open(mounted.path().join("a.raw")).unwrap());
    let readers: Vec<_> = (0..16u64)
        .map(|reader| {
            let file = Arc::clone(&file);
            std::thread::spawn(move || {
                for turn in 0..40u64 {
                    let offset = (reader * 7919 + turn * 104_729) * 511 % (size - 5000);
                    let mut buf = vec![0; 5000];
                    file.read_exact_at(&mut buf, offset).unwrap();
                    assert_eq!(buf, pattern(offset, 5000), "at {offset}");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn holes_are_found_and_skipped() {
    if !can_mount() {
        return;
    }
    // 2 TiB with data at the start, in the middle and nowhere else.
    let size = 2 << 40;
    let middle = 1 << 40;
    let data = [(0, MIB), (middle, middle + 2 * MIB)];
    let mounted = mount(
        MemDir::default()
            .with("disk.raw", MemFile::sparse(size, &data).node())
            .with("full.raw", MemFile::new(1000).node())
            .with("empty.raw", MemFile::sparse(0, &[]).node())
            .with("hole.raw", MemFile::sparse(MIB, &[]).node())
            .node(),
    );
    let path = mounted.path().join("disk.raw");
    let meta = stat(&path);
    assert_eq!((meta.size(), meta.blocks()), (size, 3 * MIB / 512));
    let file = File::open(&path).unwrap();
    let seek = |to| rustix::fs::seek(&file, to);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(0));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(MIB));
    assert_eq!(seek(SeekFrom::Data(MIB)), Ok(middle));
    assert_eq!(seek(SeekFrom::Hole(middle + 1)), Ok(middle + 2 * MIB));
    let nxio = Err(rustix::io::Errno::NXIO);
    assert_eq!(seek(SeekFrom::Data(middle + 2 * MIB)), nxio);
    assert_eq!(seek(SeekFrom::Hole(size - 1)), Ok(size - 1));
    assert_eq!(seek(SeekFrom::Data(size)), nxio);
    assert_eq!(seek(SeekFrom::Hole(size)), nxio);
    assert_eq!(seek(SeekFrom::End(0)), Ok(size));
    let full = File::open(mounted.path().join("full.raw")).unwrap();
    assert_eq!(rustix::fs::seek(&full, SeekFrom::Hole(5)), Ok(1000));
    let empty = File::open(mounted.path().join("empty.raw")).unwrap();
    assert_eq!(rustix::fs::seek(&empty, SeekFrom::Data(0)), nxio);
    let hole = File::open(mounted.path().join("hole.raw")).unwrap();
    assert_eq!(rustix::fs::seek(&hole, SeekFrom::Data(0)), nxio);
    assert_eq!(rustix::fs::seek(&hole, SeekFrom::Hole(9)), Ok(9));

    let copy = mounted.scratch().join("copy");
    let started = Instant::now();
    sh(&format!("cp --sparse=always {path:?} {copy:?}"));
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "read the holes"
    );
    let copied = File::open(&copy).unwrap();
    assert_eq!(copied.metadata().unwrap().len(), size);
    let mut buf = vec![0; 4096];
    for offset in [0, MIB - 4096, MIB, middle, middle + 2 * MIB - 4096] {
        copied.read_exact_at(&mut buf, offset).unwrap();
        let is_data = data.iter().any(|(s, e)| (*s..*e).contains(&offset));
        let expected = if is_data {
            pattern(offset, 4096)
        } else {
            vec![0; 4096]
        };
        assert_eq!(buf, expected, "at {offset}");
    }
}

#[test]
fn error_in_the_middle_hits_only_the_readers_of_that_part() {
    if !can_mount() {
        return;
    }
    let broken = MemFile {
        broken: Some((4 * MIB, 4 * MIB + 1)),
        ..MemFile::new(8 * MIB)
    };
    let panics = MemFile {
        panics: Some((4 * MIB, 4 * MIB + 1)),
        ..MemFile::new(8 * MIB)
    };
    let quick_panics = MemFile {
        quick: true,
        ..panics.clone()
    };
    let short = MemFile {
        short: true,
        ..MemFile::new(8 * MIB)
    };
    let mounted = mount(
        MemDir::default()
            .with("broken.raw", broken.node())
            .with("panics.raw", panics.node())
            .with("quick_panics.raw", quick_panics.node())
            .with("short.raw", short.node())
            .node(),
    );
    let mut buf = vec![0; 4096];
    for name in ["broken.raw", "panics.raw", "quick_panics.raw"] {
        // More panics than there are threads: none of them may be lost.
        for _ in 0..10 {
            let file = File::open(mounted.path().join(name)).unwrap();
            let error = file.read_exact_at(&mut buf, 4 * MIB).unwrap_err();
            assert_eq!(errno(&error), 5, "{name}");
            for offset in [0, 2 * MIB, 6 * MIB] {
                file.read_exact_at(&mut buf, offset).unwrap();
                assert_eq!(buf, pattern(offset, 4096), "{name}");
            }
        }
    }
    // Too short an answer must not be filled up with zeros by the kernel.
    let file = File::open(mounted.path().join("short.raw")).unwrap();
    assert_eq!(errno(&file.read_at(&mut buf, 0).unwrap_err()), 5);
}

#[test]
fn slow_reads_do_not_delay_listings() {
    if !can_mount() {
        return;
    }
    let slow = MemFile {
        delay: Duration::from_secs(3),
        ..MemFile::new(1 << 30)
    };
    let slow_dir = MemDir {
        slow: Duration::from_millis(1),
        ..MemDir::default()
    };
    let other = slow_dir.with("a", MemFile::new(10).node()).node();
    let mounted = mount(
        MemDir::default()
            .with("slow.raw", slow.node())
            .with("other", other)
            .node(),
    );
    let file = Arc::new(File::open(mounted.path().join("slow.raw")).unwrap());
    let (done, finished) = mpsc::channel();
    for reader in 0..32u64 {
        let (file, done) = (Arc::clone(&file), done.clone());
        std::thread::spawn(move || {
            let result = file.read_exact_at(&mut [0; 512], reader * 20 * MIB);
            done.send(result).unwrap();
        });
    }
    std::thread::sleep(Duration::from_millis(300));
    let started = Instant::now();
    let other = mounted.path().join("other");
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
    assert_eq!(stat(&other.join("a")).size(), 10);
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "waited for other readers: {:?}",
        started.elapsed()
    );
    for _ in 0..32 {
        finished.recv().unwrap().unwrap();
    }
}

#[test]
fn names_links_and_attributes_are_shown_as_they_are() {
    if !can_mount() {
        return;
    }
    let odd = [
        "with space",
        "ümläut – 日本",
        "new\nline",
        "-dash",
        "'quote\"",
        "…",
    ];
    let raw = OsString::from_vec(b"not \xff utf8".to_vec());
    let long = "n".repeat(255);
    let mut dir = MemDir::default();
    for name in odd {
        dir = dir.with(name, MemFile::new(3).node());
    }
    let dir = dir
        .with(raw.clone(), MemFile::new(4).node())
        .with(long.clone(), MemFile::new(5).node())
        .with("latest", link("with space"))
        .with("dangling", link("../no where/ü"));
    let mounted = mount(dir.node());
    let at = mounted.path();
    let mut listed: Vec<OsString> = std::fs::read_dir(&at)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    listed.sort();
    let mut expected: Vec<OsString> = odd.iter().map(OsString::from).collect();
    expected.extend([
        raw.clone(),
        long.clone().into(),
        "latest".into(),
        "dangling".into(),
    ]);
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(std::fs::read(at.join(&raw)).unwrap(), pattern(0, 4));
    assert_eq!(stat(&at.join(&long)).size(), 5);
    assert_eq!(std::fs::read(at.join("latest")).unwrap().len(), 3);
    let target = std::fs::read_link(at.join("dangling")).unwrap();
    assert_eq!(target, Path::new("../no where/ü"));
    let link = stat(&at.join("latest"));
    assert_eq!((link.size(), link.mode()), (10, 0o120_777));
    assert_eq!(link.mtime(), 1_780_000_000);
    let missing = std::fs::metadata(at.join("missing")).unwrap_err();
    assert_eq!(errno(&missing), 2);
    // d_ino of a listing is st_ino of stat.
    for entry in std::fs::read_dir(&at).unwrap() {
        let entry = entry.unwrap();
        use std::os::unix::fs::DirEntryExt;
        assert_eq!(entry.ino(), stat(&entry.path()).ino(), "{entry:?}");
    }
}

#[test]
fn nothing_can_be_written() {
    if !can_mount() {
        return;
    }
    let dir = MemDir::default().with("a", MemFile::new(3).node());
    let mounted = mount(dir.node());
    let at = mounted.path();
    let readonly = 30;
    let write = File::options().write(true).open(at.join("a"));
    assert_eq!(errno(&write.unwrap_err()), readonly);
    assert_eq!(errno(&File::create(at.join("b")).unwrap_err()), readonly);
    assert_eq!(
        errno(&std::fs::create_dir(at.join("d")).unwrap_err()),
        readonly
    );
    assert_eq!(
        errno(&std::fs::remove_file(at.join("a")).unwrap_err()),
        readonly
    );
    let renamed = std::fs::rename(at.join("a"), at.join("b"));
    assert_eq!(errno(&renamed.unwrap_err()), readonly);
    // Also when root makes the mount writable behind our back.
    sh(&format!("mount -i -o remount,rw {at:?}"));
    let create = File::create(at.join("b"));
    assert_eq!(errno(&create.unwrap_err()), readonly);
    let write = File::options().write(true).open(at.join("a"));
    assert_eq!(errno(&write.unwrap_err()), readonly);
    assert_eq!(
        errno(&std::fs::create_dir(at.join("d")).unwrap_err()),
        readonly
    );
    assert_eq!(
        errno(&std::fs::remove_file(at.join("a")).unwrap_err()),
        readonly
    );
}

#[test]
fn extended_attributes_answer_getfattr() {
    if !can_mount() || !needs("getfattr", has_program("getfattr")) {
        return;
    }
    let file = MemFile {
        xattrs: vec![
            ("user.brfs.uuid".into(), b"1234".to_vec()),
            ("user.brfs.mode".into(), b"delta".to_vec()),
            ("user.brfs.long".into(), vec![b'x'; 5000]),
        ],
        ..MemFile::new(3)
    };
    let mounted = mount(MemDir::default().with("a", file.node()).node());
    let path = mounted.path().join("a");
    let listed = sh(&format!("getfattr --absolute-names -d {path:?}"));
    assert!(listed.contains("user.brfs.uuid=\"1234\""), "{listed}");
    assert!(listed.contains("user.brfs.mode=\"delta\""), "{listed}");
    let one = format!("getfattr --absolute-names --only-values -n user.brfs.long {path:?}");
    assert_eq!(sh(&one).len(), 5000);
    let mut small = [0u8; 2];
    let errors = [
        rustix::fs::getxattr(&path, "user.brfs.uuid", &mut small).unwrap_err(),
        rustix::fs::listxattr(&path, &mut small).unwrap_err(),
    ];
    assert_eq!(errors, [rustix::io::Errno::RANGE; 2]);
    let none = rustix::fs::getxattr(&path, "user.none", &mut small).unwrap_err();
    assert_eq!(none, rustix::io::Errno::NODATA);
}

#[test]
fn large_directories_list_completely_and_can_be_sought_in() {
    if !can_mount() {
        return;
    }
    let count = 100_000;
    let mut dir = MemDir::default();
    let node = MemFile::new(1).node();
    for i in 0..count {
        dir.entries
            .insert(format!("entry-{i:06}").into(), node.clone());
    }
    let mounted = mount(dir.node());
    let at = mounted.path();
    let listed = std::fs::read_dir(&at).unwrap();
    let names: std::collections::HashSet<_> = listed.map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), count);

    // telldir, seekdir and rewinddir through a small buffer, which makes the kernel ask again.
    let fd = File::open(&at).unwrap();
    let mut buf = Vec::with_capacity(1024);
    let page = |buf: &mut Vec<u8>, most: usize| -> Vec<(String, u64)> {
        let mut entries = rustix::fs::RawDir::new(&fd, buf.spare_capacity_mut());
        let mut page = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_str().unwrap().to_owned();
            page.push((name, entry.next_entry_cookie()));
            if page.len() == most {
                break;
            }
        }
        page
    };
    let first = page(&mut buf, 500);
    assert_eq!(first[..2], [(".".to_owned(), 1), ("..".to_owned(), 2)]);
    let names: Vec<_> = first.iter().map(|(name, _)| name.clone()).collect();
    let expected: Vec<_> = (0..498).map(|i| format!("entry-{i:06}")).collect();
    assert_eq!(names[2..], expected);
    for back in [10, 400, 3] {
        rustix::fs::seek(&fd, SeekFrom::Start(first[back].1)).unwrap();
        assert_eq!(page(&mut buf, 50), first[back + 1..back + 51], "{back}");
    }
    rustix::fs::seek(&fd, SeekFrom::Start(90_002)).unwrap();
    assert_eq!(page(&mut buf, 1)[0].0, "entry-090000");
    rustix::fs::seek(&fd, SeekFrom::Start(0)).unwrap();
    assert_eq!(page(&mut buf, 500), first);
}

/// A directory of files that come with their attributes.
fn with_attributes(count: u64) -> MemDir {
    let mut dir = MemDir::default();
    let file = MemFile {
        constant: true,
        ..MemFile::new(0)
    };
    for size in 0..count {
        let file = MemFile {
            size,
            ..file.clone()
        };
        dir.files
            .insert(format!("file-{size:05}").into(), Some(file));
    }
    dir
}

#[test]
fn attributes_that_come_with_a_listing_are_not_asked_for() {
    if !can_mount() {
        return;
    }
    let mut dir = with_attributes(3000);
    dir.files.insert("damaged".into(), None);
    let lookups = dir.lookups.clone();
    let mounted = mount(dir.node());
    let mut sizes = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(mounted.path()).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.file_type().unwrap().is_file());
        let name = entry.file_name().into_string().unwrap();
        match entry.metadata() {
            Ok(found) => assert_eq!(found.ino(), entry.ino(), "{name}"),
            Err(error) => assert_eq!(
                (name.as_str(), errno(&error)),
                ("damaged", rustix::io::Errno::IO.raw_os_error())
            ),
        }
        if let Ok(found) = entry.metadata() {
            assert_eq!(found.permissions().mode() & 0o777, 0o444);
            sizes.insert(name, found.len());
        }
    }
    let expected = (0..3000).map(|size| (format!("file-{size:05}"), size));
    assert_eq!(sizes, expected.collect());
    // The damaged one each time, and those of an answer before the kernel knew that they are wanted.
    let asked = lookups.load(Ordering::Relaxed);
    assert!(asked < 1500, "{asked} look-ups");
}

#[test]
fn nodes_that_came_with_a_listing_are_forgotten_when_the_kernel_forgets_them() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = with_attributes(2000);
    let alive = dir.files.values().flatten().next().unwrap().alive.clone();
    let before = Arc::strong_count(&alive);
    let mounted = mount(dir.node());
    let at = mounted.path();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for entry in std::fs::read_dir(&at).unwrap() {
                    entry.unwrap().metadata().unwrap();
                }
            });
        }
    });
    assert!(Arc::strong_count(&alive) >= before + 1000);
    // Forgetting is the kernel's own affair: it may take a few rounds.
    let until = Instant::now() + Duration::from_secs(60);
    while Arc::strong_count(&alive) > before && Instant::now() < until {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(Arc::strong_count(&alive), before);
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 2000);
}

#[test]
fn listing_asks_for_no_nodes_where_those_cost_more_and_leaves_what_is_open_alone() {
    if !can_mount() {
        return;
    }
    let mut dir = MemDir::default();
    let lookups = dir.lookups.clone();
    let file = MemFile::new(300_000);
    let attributes = file.attr_calls.clone();
    for index in 0..500 {
        dir.entries
            .insert(format!("entry-{index}").into(), file.clone().node());
    }
    let mounted = mount(Node::Dir(Arc::new(
        MemDir::default().with("dir", dir.node()),
    )));
    let at = mounted.path().join("dir");
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 500);
    assert_eq!(lookups.load(Ordering::Relaxed), 0);
    assert_eq!(attributes.load(Ordering::Relaxed), 0);
    // What was listed only is looked up when it is used.
    let open = File::open(at.join("entry-7")).unwrap();
    assert_eq!(open.metadata().unwrap().len(), 300_000);
    let mut head = vec![0; 1000];
    open.read_exact_at(&mut head, 0).unwrap();
    // Listed again while it is open, it stays as it was.
    for _ in 0..3 {
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 500);
        let mut tail = vec![0; 1000];
        open.read_exact_at(&mut tail, 299_000).unwrap();
        assert_eq!(tail, pattern(299_000, 1000));
        assert_eq!(open.metadata().unwrap().len(), 300_000);
    }
    assert_eq!(stat(&at.join("entry-8")).len(), 300_000);
}

#[test]
fn listing_that_breaks_off_is_an_error() {
    if !can_mount() {
        return;
    }
    let mut dir = MemDir {
        fails_after: Some(5),
        ..MemDir::default()
    };
    for i in 0..10 {
        dir = dir.with(i.to_string(), link("x"));
    }
    let mounted = mount(MemDir::default().with("d", dir.node()).node());
    let results: Vec<_> = std::fs::read_dir(mounted.path().join("d"))
        .unwrap()
        .collect();
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 5);
    assert!(results.iter().any(|r| r.is_err()));
    sh(&format!(
        "(! ls {:?} 2>/dev/null)",
        mounted.path().join("d")
    ));
}

#[test]
fn opening_and_reading_never_ask_for_costly_attributes() {
    if !can_mount() {
        return;
    }
    let file = MemFile::new(MIB);
    let calls = Arc::clone(&file.attr_calls);
    let mounted = mount(MemDir::default().with("a", file.node()).node());
    let path = mounted.path().join("a");
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 1);
    let open = File::open(&path).unwrap();
    let mut buf = vec![0; 2 * MIB as usize];
    assert_eq!(open.read_at(&mut buf, 100).unwrap() as u64, MIB - 100);
    sh(&format!("cat {path:?} > /dev/null"));
    // `cat` asks by fstat; nothing else did.
    let by_cat = calls.load(Ordering::Relaxed);
    assert!(by_cat <= 1, "{by_cat} calls");
    assert_eq!(stat(&path).blocks(), MIB / 512);
    assert!(calls.load(Ordering::Relaxed) > 0);
}

/// A directory whose one file is replaced by another under the same name.
struct Replaced(Mutex<Node>);

impl Base for Replaced {
    fn identity(&self) -> Identity {
        Identity::Named(0)
    }
    fn attr(&self) -> brfs::error::Result<Attr> {
        Ok(Attr::dir(crate::support::memtree::time()))
    }
}

impl Directory for Replaced {
    fn lookup(&self, name: &OsStr) -> brfs::error::Result<Option<Node>> {
        Ok((name == "a").then(|| self.0.lock().unwrap().clone()))
    }
    fn list(&self) -> brfs::error::Result<Box<dyn DirStream>> {
        Ok(Box::new(EntryList::new(Vec::new())))
    }
}

#[test]
fn replaced_object_never_shows_pages_of_the_old_one() {
    if !can_mount() {
        return;
    }
    let old = MemFile::new(100_000);
    let new = MemFile {
        generation: 1,
        ..MemFile::sparse(100_000, &[])
    };
    let dir = Arc::new(Replaced(Mutex::new(old.node())));
    let mounted = mount(Node::Dir(Arc::clone(&dir) as Arc<dyn Directory>));
    let path = mounted.path().join("a");
    let open = File::open(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), pattern(0, 100_000));
    let before = stat(&path).ino();
    *dir.0.lock().unwrap() = new.node();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(std::fs::read(&path).unwrap(), vec![0; 100_000]);
    assert_ne!(stat(&path).ino(), before);
    // Who had it open keeps what was opened, from the cache or not.
    let mut buf = vec![0; 100_000];
    for advice in [Advice::Normal, Advice::DontNeed] {
        rustix::fs::fadvise(&open, 0, None, advice).unwrap();
        open.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(buf, pattern(0, 100_000));
    }
}

#[test]
fn umask_and_owner_are_applied() {
    if !can_mount() {
        return;
    }
    let file = MemFile {
        permissions: 0o755,
        ..MemFile::new(1)
    };
    let options = MountOptions {
        uid: Some(1234),
        gid: Some(4321),
        umask: 0o027,
        allow_other: true,
        ..MountOptions::default()
    };
    let mounted = TestMount::new(MemDir::default().with("a", file.node()).node(), &options);
    let meta = stat(&mounted.path().join("a"));
    assert_eq!((meta.uid(), meta.gid()), (1234, 4321));
    assert_eq!(meta.permissions().mode() & 0o7777, 0o750);
    if needs("setpriv", has_program("setpriv")) {
        let path = mounted.path();
        let other = "setpriv --reuid 65534 --regid 65534 --clear-groups";
        sh(&format!("(! {other} cat {path:?}/a 2>/dev/null)"));
        let owner = "setpriv --reuid 1234 --regid 65534 --clear-groups";
        sh(&format!("{owner} cat {path:?}/a > /dev/null"));
    }
}

#[test]
fn other_users_are_kept_out_by_default() {
    if !can_mount() || !needs("setpriv", has_program("setpriv")) {
        return;
    }
    let mounted = mount(MemDir::default().with("a", MemFile::new(1).node()).node());
    let path = mounted.path();
    let other = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    sh(&format!("(! {other} ls {path:?} 2>/dev/null)"));
}

#[test]
fn session_ends_however_it_is_unmounted() {
    if !can_mount() {
        return;
    }
    let root = || MemDir::default().with("a", MemFile::new(9).node()).node();
    for way in ["umount", "fusermount3 -u", "umount -l"] {
        let program = way.split(' ').next().unwrap();
        if !needs(program, has_program(program)) {
            continue;
        }
        let mounted = mount(root());
        sh(&format!("{way} {:?}", mounted.path()));
        mounted.wait();
    }
    let mounted = mount(root());
    let held = File::open(mounted.path().join("a")).unwrap();
    let busy = fuse::unmount(&mounted.path(), false).unwrap_err();
    assert!(busy.to_string().contains("busy"), "{busy}");
    fuse::unmount(&mounted.path(), true).unwrap();
    // Gone for everybody else; those who use it may finish.
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 0);
    let mut buf = [0; 9];
    held.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf[..], pattern(0, 9));
    drop(held);
    mounted.wait();

    let mounted = mount(root());
    fuse::unmount(&mounted.path(), false).unwrap();
    assert!(fuse::unmount(&mounted.path(), false).is_err());
    mounted.wait();
}

#[test]
fn mountpoints_that_cannot_be_are_refused_with_reasons() {
    if !can_mount() {
        return;
    }
    let mounted = mount(MemDir::default().node());
    let options = MountOptions::default();
    let refuse = |at: &Path| {
        let root = MemDir::default().node();
        fuse::mount(root, at, &options).unwrap_err().to_string()
    };
    let file = mounted.scratch().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(refuse(&file).contains("not a directory"));
    assert!(refuse(&mounted.scratch().join("none")).contains("does not exist"));
    assert!(refuse(&mounted.path()).contains("already"));
}
