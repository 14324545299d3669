//! Repositories that Xen Orchestra's own code wrote, and what their disks must read as: the golden
//! data of `tests/fixtures/xo-golden.tar.zst` (see `tests/fixtures/README.md`), and the whole set it
//! was taken from, where a checkout has it beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;

/// The VM of the main set.
pub const VM: &str = "a6e898cb-777d-4f29-a073-ec9ff70ed330";
/// Its directory in the mount.
pub const VM_FOLDER: &str = "web-01 \"α\" _ prod (a6e898cb)";
/// Folder of each disk, xvda and xvdb, in the main set.
pub const VDIS: [&str; 2] = [
    "b69e38d5-d758-47ec-a3a7-b3f5518cf956",
    "e6f43d85-f513-4627-a818-c50cd40a2ecd",
];
/// Virtual size of each disk.
pub const SIZES: [u64; 2] = [192 << 20, (65 << 20) + 1536];
/// The dates of the restore points 0 to 3.
pub const DATES: [&str; 4] = [
    "20260301T013000Z",
    "20260302T013000Z",
    "20260303T013000Z",
    "20260304T013000Z",
];
const JOB_DIR: &str = "vdis/bc985c88-342e-4c8d-a5fc-8abca057a3b2";
/// The whole set, relative to the sources.
const WHOLE_SET: &str = "../shared/fixtures/xo-written.tar.zst";

/// A repository of the main set.
#[derive(Clone, Copy, Debug)]
pub struct Repository {
    pub name: &'static str,
    /// 1: only xvda has its data, 2: xvdb as well.
    pub disks: usize,
    /// The first restore point there is.
    pub first: usize,
    /// `none`, `gzip`, `brotli`.
    pub compression: &'static str,
}

const fn repository(
    name: &'static str,
    disks: usize,
    first: usize,
    compression: &'static str,
) -> Repository {
    Repository {
        name,
        disks,
        first,
        compression,
    }
}

impl Repository {
    pub fn has_files(&self) -> bool {
        self.name.contains("file")
    }
    /// Whether a merge of point 0 of xvda into point 1 was interrupted.
    pub fn is_merging(&self) -> bool {
        self.name.starts_with("midmerge")
    }
}

/// Unpacked repositories.
#[derive(Clone, Debug)]
pub struct Set {
    pub dir: PathBuf,
    pub repositories: Vec<Repository>,
}

/// A restore point of a chain that stands without metadata.
#[derive(Clone, Debug)]
pub struct BareDisk {
    pub repository: String,
    pub head: PathBuf,
    pub size: u64,
    /// sha256 of every block of 2 MiB that is not all zeros. The last one may be shorter.
    pub blocks: BTreeMap<u64, String>,
}

/// The set that comes with the sources.
pub fn set() -> Set {
    Set {
        dir: directory(),
        repositories: vec![
            repository("vhdfile", 1, 0, "none"),
            repository("vhddir-none", 1, 0, "none"),
            repository("vhddir-brotli", 2, 0, "brotli"),
            repository("midmerge-file", 1, 1, "none"),
            repository("midmerge-file-cleanup", 1, 1, "none"),
            repository("midmerge-dir", 2, 1, "brotli"),
            repository("midmerge-dir-cleanup", 2, 1, "brotli"),
        ],
    }
}

/// The whole set, when it is there; says so when it is not.
pub fn whole_set() -> Option<Set> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(WHOLE_SET);
    if !archive.is_file() {
        eprintln!("skipped: {WHOLE_SET} is not there");
        return None;
    }
    Some(Set {
        dir: unpack(&archive, "xo-written"),
        repositories: vec![
            repository("vhdfile", 2, 0, "none"),
            repository("vhddir-none", 2, 0, "none"),
            repository("vhddir-gzip", 2, 0, "gzip"),
            repository("vhddir-brotli", 2, 0, "brotli"),
            repository("midmerge-file", 2, 1, "none"),
            repository("midmerge-file-cleanup", 2, 1, "none"),
            repository("midmerge-dir", 2, 1, "brotli"),
            repository("midmerge-dir-cleanup", 2, 1, "brotli"),
        ],
    })
}

impl Set {
    pub fn path(&self, repository: &str) -> PathBuf {
        self.dir.join("repositories").join(repository)
    }

    /// sha256 of a disk (0: xvda, 1: xvdb) at a restore point.
    pub fn sum(&self, disk: usize, point: usize) -> String {
        let sums = fs::read_to_string(self.dir.join("reference/SHA256SUMS")).unwrap();
        let name = format!("disk{disk}.{point}.raw");
        let line = sums.lines().find(|line| line.ends_with(&name)).unwrap();
        line[..64].to_owned()
    }

    /// The `<date>.vhd` or `<date>.alias.vhd` of a disk, relative to the repository.
    pub fn head(&self, repository: &Repository, disk: usize, point: usize) -> String {
        let extension = if repository.has_files() {
            "vhd"
        } else {
            "alias.vhd"
        };
        let (vdi, date) = (VDIS[disk], DATES[point]);
        format!("xo-vm-backups/{VM}/{JOB_DIR}/{vdi}/{date}.{extension}")
    }

    /// The chains of growing and of huge disks.
    pub fn bare_disks(&self) -> Vec<BareDisk> {
        let mut found = Vec::new();
        for repository in ["grow-vhdfile", "grow-vhddir", "huge-vhdfile", "huge-vhddir"] {
            let dir = self.path(repository);
            for point in 0..3 {
                let Ok(text) = fs::read(dir.join(format!("manifest.{point}.json"))) else {
                    continue;
                };
                let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
                let blocks = manifest["blocks"].as_object().unwrap().iter();
                let path = manifest["path"].as_str().unwrap();
                found.push(BareDisk {
                    repository: repository.to_owned(),
                    head: dir.join(path.trim_start_matches('/')),
                    size: manifest["size"].as_u64().unwrap(),
                    blocks: blocks
                        .map(|(number, block)| {
                            let sum = block["sha256"].as_str().unwrap();
                            (number.parse().unwrap(), sum.to_owned())
                        })
                        .collect(),
                });
            }
        }
        assert_eq!(found.len(), 10);
        found
    }
}

/// Directory with the unpacked golden data; unpacked once per version of the archive.
///
/// Needs `tar` and `zstd`. Safe to call from several threads and processes.
pub fn directory() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    unpack(&root.join("tests/fixtures/xo-golden.tar.zst"), "xo-golden")
}

/// Directory with the unpacked archive (what is below its first directory), as [`directory`] does it.
pub fn unpack(archive: &Path, name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sum = sha256(archive);
    let base =
        option_env!("CARGO_TARGET_TMPDIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = base.join(format!("{name}-{}", &sum[..16]));
    static UNPACKING: OnceLock<std::sync::Mutex<()>> = OnceLock::new();
    let _one = UNPACKING.get_or_init(Default::default).lock();
    if !target.is_dir() {
        let staging = base.join(format!("{name}-{}.tmp", process::id()));
        fs::create_dir_all(&staging).unwrap();
        let status = Command::new("tar")
            .args(["-x", "--sparse", "--no-same-owner", "--strip-components=1"])
            .args(["-I", "zstd -d --long=31", "-f"])
            .arg(archive)
            .arg("-C")
            .arg(&staging)
            .status()
            .unwrap();
        assert!(status.success(), "unpacking {} failed", archive.display());
        // A loser of the race finds the target in place: it holds the same.
        if fs::rename(&staging, &target).is_err() {
            fs::remove_dir_all(&staging).unwrap();
        }
    }
    target
}

/// sha256 of a file, in hexadecimal digits.
pub fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(
        output.status.success(),
        "sha256sum {} failed: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    // A backslash in front tells that the name had to be escaped.
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim_start_matches('\\')[..64].to_owned()
}
