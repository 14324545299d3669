//! The manifest of a tree as the kernel shows it through a mount, in the lines of [`super::walk`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, Metadata};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{escape, hex};

/// A walk's lines by path, and the inode number of each path.
#[derive(Default)]
pub struct Walked {
    pub lines: BTreeMap<String, String>,
    pub inodes: BTreeMap<String, u64>,
}

/// Walks what is mounted at `root`, and checks on the way that listings and `stat` agree.
pub fn walk_mounted(root: &Path) -> Walked {
    let mut walked = Walked::default();
    walk_into(root, b"", &mut walked);
    walked
}

fn walk_into(dir: &Path, path: &[u8], walked: &mut Walked) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            let line = format!("{error}");
            walked.lines.insert(format!("{}/!", escape(path)), line);
            return;
        }
    };
    for entry in entries {
        let entry = entry.unwrap_or_else(|e| panic!("{dir:?}: {e}"));
        let mut below = path.to_vec();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(entry.file_name().as_bytes());
        let at = entry.path();
        let meta = fs::symlink_metadata(&at).unwrap_or_else(|e| panic!("{at:?}: {e}"));
        agree(&entry, &meta);
        let name = escape(&below);
        walked.lines.insert(name.clone(), line(&below, &at, &meta));
        walked.inodes.insert(name, meta.ino());
        if meta.is_dir() {
            walk_into(&at, &below, walked);
        }
    }
}

fn agree(entry: &DirEntry, meta: &Metadata) {
    let at = entry.path();
    assert_eq!(entry.file_type().unwrap(), meta.file_type(), "{at:?}");
    assert_eq!(entry.ino(), meta.ino(), "{at:?}");
}

fn letter(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    let kinds = [
        (kind.is_dir(), "d"),
        (kind.is_file(), "f"),
        (kind.is_symlink(), "l"),
        (kind.is_fifo(), "p"),
        (kind.is_char_device(), "c"),
        (kind.is_block_device(), "b"),
    ];
    let found = kinds.iter().find(|(is, _)| *is);
    found.map_or("s", |(_, letter)| letter)
}

fn digest(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buf = vec![0; 1 << 18];
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buf[..n]),
        }
    }
}

/// All extended attributes of a path, without following it.
pub fn xattrs(path: &Path) -> std::io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut list = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..len].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(len);
        found.insert(OsString::from_vec(name.to_vec()), value);
    }
    Ok(found)
}

fn line(path: &[u8], at: &Path, meta: &Metadata) -> String {
    let error = |e: std::io::Error| format!("error:{e}");
    let target = match meta.is_symlink() {
        true => {
            fs::read_link(at).map_or_else(error, |target| escape(target.as_os_str().as_bytes()))
        }
        false => "-".to_string(),
    };
    let sum = match meta.is_file() {
        true => digest(at).unwrap_or_else(error),
        false => "-".to_string(),
    };
    let pairs = xattrs(at).map(|all| {
        let pairs = all
            .iter()
            .map(|(name, value)| format!("{}={}", escape(name.as_bytes()), hex(value)));
        pairs.collect::<Vec<_>>().join(",")
    });
    let attributes = match pairs {
        Ok(pairs) if pairs.is_empty() => "none".to_string(),
        Ok(pairs) => pairs,
        Err(e) => error(e),
    };
    let nanoseconds = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    [
        escape(path),
        letter(meta).to_string(),
        format!("{:o}", meta.mode() & 0o7777),
        meta.uid().to_string(),
        meta.gid().to_string(),
        meta.size().to_string(),
        nanoseconds.to_string(),
        meta.nlink().to_string(),
        meta.rdev().to_string(),
        target,
        sum,
        attributes,
    ]
    .join("\t")
}
