//! Walks a tree as the mount would show it and writes the manifest that `make-guests` writes from the
//! kernel's own mount, so that the two can be compared line by line.
#![allow(dead_code)]

pub mod mounted;
#[path = "../../../fuzz/src/seal.rs"]
pub mod seal;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use brfs::error::Result;
use brfs::guestfs::host::pool::Pool;
use brfs::io::ReadAt;
use brfs::tree::{Directory, File, Node, NodeKind};
use brfs::views::guest::{GuestContext, GuestOptions, OpenDisk, disk_children};
use sha2::{Digest, Sha256};

use crate::support::reading::read_some;

/// A plain file as a disk.
pub struct Image(std::fs::File, u64);

impl Image {
    pub fn open(path: &Path) -> Arc<dyn ReadAt> {
        let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let len = file.metadata().unwrap().len();
        Arc::new(Image(file, len))
    }
}

impl ReadAt for Image {
    fn len_bytes(&self) -> u64 {
        self.1
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        brfs::io::check_range(offset, buf.len() as u64, self.1)?;
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
            .map_err(|e| brfs::error::Error::from_io(e, "image"))
    }
}

fn unpack(name: &str) -> impl std::io::Read + use<> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/guests")
        .join(format!("{name}.zst"));
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    ruzstd::decoding::StreamingDecoder::new(std::io::BufReader::new(file)).unwrap()
}

/// A committed image, unpacked into a sparse file that is gone when it is no longer used.
pub fn golden(name: &str) -> Arc<dyn ReadAt> {
    use std::io::Read as _;
    use std::os::unix::fs::FileExt as _;
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("brfs-{name}-{}-{count}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut from = unpack(&format!("{name}.img"));
    let mut buf = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        let n = from.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        if buf[..n].iter().any(|&b| b != 0) {
            file.write_all_at(&buf[..n], len).unwrap();
        }
        len += n as u64;
    }
    file.set_len(len).unwrap();
    Arc::new(Image(file, len))
}

/// A committed file.
pub fn golden_bytes(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut unpack(name), &mut bytes).unwrap();
    bytes
}

/// A committed text.
pub fn golden_text(name: &str) -> String {
    String::from_utf8(golden_bytes(name)).unwrap()
}

pub fn context() -> GuestContext {
    GuestContext {
        pool: Arc::new(Pool::default()),
        options: GuestOptions {
            guest_owner: true,
            ..GuestOptions::default()
        },
        time: UNIX_EPOCH,
        identity: 1,
        disks: Arc::new([]),
        machine: Arc::default(),
    }
}

/// The context of a restore point with these disks.
pub fn context_of(disks: Vec<(&str, Arc<dyn ReadAt>)>) -> GuestContext {
    let opened = disks.into_iter().map(|(name, disk)| {
        let open: OpenDisk = Arc::new(move || Ok(disk.clone()));
        (name.to_string(), open)
    });
    GuestContext {
        disks: opened.collect(),
        ..context()
    }
}

pub fn disk(image: Arc<dyn ReadAt>) -> Arc<dyn Directory> {
    let open: OpenDisk = Arc::new(move || Ok(image.clone()));
    disk_children(context(), "xvda", open)
}

pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            out.push(byte as char);
        } else {
            write!(out, "%{byte:02X}").unwrap();
        }
    }
    out
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

/// Reads a whole file through `ReadAt`, in pieces of odd and of usual sizes.
pub fn digest(file: &dyn File) -> Result<String> {
    let size = file.attr()?.size_bytes;
    let open = file.open()?;
    let mut hasher = Sha256::new();
    let mut offset = 0;
    let mut step = 0;
    while offset < size {
        let len = [131_072, 1 << 20, 4096, 1000, 1 << 20][step % 5];
        step += 1;
        let bytes = read_some(&*open, offset, len)?;
        assert!(!bytes.is_empty(), "a short read before the end");
        hasher.update(&bytes);
        offset += bytes.len() as u64;
    }
    Ok(hex(&hasher.finalize()))
}

/// Holes must be zeros, and extents must go forward. What has data must occupy something: `tar -S` takes a
/// file without blocks for one hole, and does not read it.
fn check_extents(file: &dyn File) -> Result<()> {
    let attr = file.attr()?;
    let size = attr.size_bytes;
    let open = file.open()?;
    let mut offset = 0;
    while offset < size {
        let extent = open.extent_at(offset)?;
        assert!(extent.end > offset && extent.end <= size);
        if extent.kind == brfs::io::ExtentKind::Data {
            assert!(attr.allocated_bytes > 0, "data that occupies nothing");
        } else {
            for at in [offset, extent.end.saturating_sub(4096).max(offset)] {
                let len = (extent.end - at).min(4096) as usize;
                let bytes = read_some(&*open, at, len)?;
                assert!(bytes.iter().all(|&b| b == 0), "data in a hole");
            }
        }
        offset = extent.end;
    }
    Ok(())
}

fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// FUSE's device number as `stat` gives it.
fn rdev(encoded: u32) -> u64 {
    let major = u64::from((encoded >> 8) & 0xFFF);
    let minor = u64::from((encoded & 0xFF) | ((encoded >> 12) & 0xFFF00));
    ((major & 0xFFFF_F000) << 32)
        | ((major & 0xFFF) << 8)
        | ((minor & !0xFF) << 12)
        | (minor & 0xFF)
}

fn line(path: &[u8], node: &Node) -> String {
    let base = node.base();
    let attr = base
        .attr()
        .unwrap_or_else(|e| panic!("{}: {e}", escape(path)));
    let letter = match attr.kind {
        NodeKind::Dir => "d",
        NodeKind::File => "f",
        NodeKind::Symlink => "l",
        NodeKind::Fifo => "p",
        NodeKind::CharDevice => "c",
        NodeKind::BlockDevice => "b",
        NodeKind::Socket => "s",
    };
    let mut target = "-".to_string();
    let mut sum = "-".to_string();
    match node {
        Node::Leaf(leaf) if attr.kind == NodeKind::Symlink => {
            target = match leaf.target() {
                Ok(Some(target)) => escape(target.as_bytes()),
                other => format!("error:{other:?}"),
            };
        }
        Node::File(file) => {
            sum = digest(&**file).unwrap_or_else(|e| format!("error:{e}"));
            if !sum.starts_with("error") {
                check_extents(&**file).unwrap();
            }
        }
        _ => {}
    }
    let xattrs = match base.xattr_names() {
        Ok(mut names) => {
            names.sort();
            let pairs: Vec<_> = names
                .iter()
                .map(|name| {
                    let value = base.xattr(name).unwrap().unwrap();
                    format!("{}={}", escape(name.as_bytes()), hex(&value))
                })
                .collect();
            if pairs.is_empty() {
                "none".to_string()
            } else {
                pairs.join(",")
            }
        }
        Err(error) => format!("error:{error}"),
    };
    [
        escape(path),
        letter.to_string(),
        format!("{:o}", attr.permissions),
        attr.uid.map_or("-".into(), |id| id.to_string()),
        attr.gid.map_or("-".into(), |id| id.to_string()),
        attr.size_bytes.to_string(),
        nanoseconds(attr.mtime).to_string(),
        attr.links.to_string(),
        rdev(attr.rdev).to_string(),
        target,
        sum,
        xattrs,
    ]
    .join("\t")
}

/// All paths below a directory with their manifest lines.
pub fn walk(root: &dyn Directory) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    walk_into(root, b"", &mut lines);
    lines
}

fn walk_into(dir: &dyn Directory, path: &[u8], lines: &mut BTreeMap<String, String>) {
    let mut stream = match dir.list() {
        Ok(stream) => stream,
        Err(error) => {
            lines.insert(format!("{}/!", escape(path)), format!("{error}"));
            return;
        }
    };
    loop {
        let entry = match stream.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => panic!("{}: {error}", escape(path)),
        };
        let mut below = path.to_vec();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(entry.name.as_bytes());
        let node = dir
            .lookup(&entry.name)
            .unwrap_or_else(|e| panic!("{}: {e}", escape(&below)))
            .unwrap_or_else(|| panic!("{}: listed but not found", escape(&below)));
        let kind = node.base().attr().unwrap().kind;
        assert_eq!(kind, entry.kind, "{}", escape(&below));
        assert_eq!(node.base().identity(), entry.identity, "{}", escape(&below));
        lines.insert(escape(&below), line(&below, &node));
        if let Node::Dir(sub) = &node {
            walk_into(&**sub, &below, lines);
        }
    }
}

/// The differences between a manifest and a walk; `-` in the manifest is not compared.
pub fn differences(manifest: &str, mut found: BTreeMap<String, String>) -> Vec<String> {
    let mut out = Vec::new();
    for expected in manifest.lines().filter(|l| !l.is_empty()) {
        let path = expected.split('\t').next().unwrap();
        let Some(got) = found.remove(path) else {
            out.push(format!("missing: {path}"));
            continue;
        };
        let pairs = expected.split('\t').zip(got.split('\t'));
        for ((want, have), index) in pairs.zip(0..) {
            let both_fail = want == "error" && have.starts_with("error");
            if want != "-" && want != have && !both_fail {
                out.push(format!(
                    "{path}: field {index}: expected {want}, found {have}"
                ));
            }
        }
    }
    out.extend(
        found
            .into_iter()
            .map(|(path, line)| format!("unexpected: {path}: {line}")),
    );
    out.sort_by_key(|line| line.starts_with("missing"));
    out
}
