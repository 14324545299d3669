//! The golden data of `tests/fixtures/xo-golden.tar.zst`: repositories that Xen Orchestra's own code
//! wrote, and what their disks must read as. See `tests/fixtures/README.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;

/// Folder of each disk, xvda and xvdb, in the main set.
pub const VDIS: [&str; 2] = [
    "b69e38d5-d758-47ec-a3a7-b3f5518cf956",
    "e6f43d85-f513-4627-a818-c50cd40a2ecd",
];
/// The dates of the restore points 0 to 3.
pub const DATES: [&str; 4] = [
    "20260301T013000Z",
    "20260302T013000Z",
    "20260303T013000Z",
    "20260304T013000Z",
];
const VM_DIR: &str = "xo-vm-backups/a6e898cb-777d-4f29-a073-ec9ff70ed330";
const JOB_DIR: &str = "vdis/bc985c88-342e-4c8d-a5fc-8abca057a3b2";

/// One disk of one restore point that must be readable.
#[derive(Clone, Debug)]
pub struct GoldenDisk {
    /// `vhddir-brotli`, …
    pub repository: &'static str,
    /// 0: xvda, 1: xvdb.
    pub disk: usize,
    /// 0 to 3, oldest first.
    pub point: usize,
    /// Its `<date>.vhd` or `<date>.alias.vhd`.
    pub head: PathBuf,
    pub sha256: String,
}

/// Directory with the unpacked golden data; unpacked once per version of the archive.
///
/// Needs `tar` and `zstd`. Safe to call from several threads and processes.
pub fn directory() -> PathBuf {
    static UNPACKED: OnceLock<PathBuf> = OnceLock::new();
    UNPACKED.get_or_init(unpack).clone()
}

fn unpack() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let archive = root.join("tests/fixtures/xo-golden.tar.zst");
    let sum = sha256(&archive);
    let base =
        option_env!("CARGO_TARGET_TMPDIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = base.join(format!("xo-golden-{}", &sum[..16]));
    if !target.is_dir() {
        let staging = base.join(format!("xo-golden-{}.tmp", process::id()));
        fs::create_dir_all(&staging).unwrap();
        let status = Command::new("tar")
            .args([
                "-x",
                "--sparse",
                "--strip-components=1",
                "-I",
                "zstd -d",
                "-f",
            ])
            .arg(&archive)
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

/// A repository that a test may change: a copy of a golden one below `to`.
pub fn copy_of(repository: &str, to: &Path) -> PathBuf {
    let copy = to.join(repository);
    super::damage::copy_tree(&directory().join("repositories").join(repository), &copy);
    copy
}

/// All disks of the main set that are there whole, with the sums they must have.
pub fn disks() -> Vec<GoldenDisk> {
    let golden = directory();
    let sums = fs::read_to_string(golden.join("reference/SHA256SUMS")).unwrap();
    let sum_of = |disk: usize, point: usize| {
        let name = format!("disk{disk}.{point}.raw");
        let line = sums.lines().find(|line| line.ends_with(&name)).unwrap();
        line[..64].to_owned()
    };
    // (repository, disks, first readable point of xvda)
    let repositories = [
        ("vhdfile", 1, 0),
        ("vhddir-none", 1, 0),
        ("vhddir-brotli", 2, 0),
        ("midmerge-file", 1, 1),
        ("midmerge-file-cleanup", 1, 1),
        ("midmerge-dir", 2, 1),
        ("midmerge-dir-cleanup", 2, 1),
    ];
    let mut found = Vec::new();
    for (repository, disks, first) in repositories {
        let base = golden
            .join("repositories")
            .join(repository)
            .join(VM_DIR)
            .join(JOB_DIR);
        for (disk, vdi) in VDIS.iter().enumerate().take(disks) {
            for (point, date) in DATES.iter().enumerate().skip(first) {
                let is_file = repository.contains("file");
                let extension = if is_file { "vhd" } else { "alias.vhd" };
                found.push(GoldenDisk {
                    repository,
                    disk,
                    point,
                    head: base.join(vdi).join(format!("{date}.{extension}")),
                    sha256: sum_of(disk, point),
                });
            }
        }
    }
    found
}

/// sha256 of a file, in hexadecimal digits.
pub fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(
        output.status.success(),
        "sha256sum {} failed",
        path.display()
    );
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}
