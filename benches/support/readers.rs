//! Processes that read a mount. They are never the bench itself, which serves some of the mounts:
//! a process that waits for its own answer can never be killed.

// Each bench uses its own part.
#![allow(dead_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::fs::{Advice, SeekFrom};

use crate::support::rng::Rng;

/// 4 KiB reads at random places of `first..first + len` bytes.
#[derive(Clone, Copy)]
pub struct Random {
    pub seed: u64,
    pub reads: u64,
    pub first: u64,
    pub len: u64,
    /// All places lie within this many blocks of 2 MiB, evenly spread (0: anywhere).
    pub blocks: u64,
}

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

impl Random {
    pub fn over(len: u64, reads: u64) -> Self {
        Random {
            seed: 1,
            reads,
            first: 0,
            len,
            blocks: 0,
        }
    }

    fn place(&self, rng: &mut Rng) -> u64 {
        if self.blocks == 0 {
            return self.first + rng.below(self.len / PAGE) * PAGE;
        }
        let stride = self.len / BLOCK / self.blocks;
        let block = rng.below(self.blocks) * stride;
        self.first + block * BLOCK + rng.below(BLOCK / PAGE) * PAGE
    }

    /// Starts a process that reads so.
    pub fn start(&self, path: &Path) -> Child {
        let Random {
            seed,
            reads,
            first,
            len,
            blocks,
        } = self;
        Command::new(std::env::current_exe().expect("no name"))
            .arg("read-randomly")
            .arg(path)
            .args([seed, reads, first, len, blocks].map(|n| n.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("reader")
    }

    /// Mean microseconds of a read.
    pub fn run(&self, path: &Path) -> f64 {
        result_of(self.start(path))
    }
}

/// What a process of [`Random::start`] measured.
pub fn result_of(child: Child) -> f64 {
    let output = child.wait_with_output().expect("reader");
    assert!(output.status.success(), "a reader failed");
    let text = String::from_utf8(output.stdout).expect("text");
    text.trim().parse().expect("a number")
}

/// Reads all data of a file of any size, passing over its holes, in a process of its own.
pub fn read_data(path: &Path) {
    let status = Command::new(std::env::current_exe().expect("no name"))
        .arg("read-data")
        .arg(path)
        .status();
    assert!(status.expect("reader").success());
}

fn be_data_reader(path: &str) {
    let file = File::open(path).expect("does not open");
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    // No more data: an error.
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).expect("seek");
        at = start;
        while at < end {
            let len = (end - at).min(buf.len() as u64);
            file.read_exact_at(&mut buf[..len as usize], at)
                .expect("read");
            at += len;
        }
    }
}

/// To be called first in `main`: does what [`Random::start`] or [`read_data`] ask for and leaves.
pub fn be_reader_if_asked() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, path] = &arguments[..]
        && mode == "read-data"
    {
        be_data_reader(path);
        return true;
    }
    let [mode, path, numbers @ ..] = &arguments[..] else {
        return false;
    };
    if mode != "read-randomly" {
        return false;
    }
    let n: Vec<u64> = numbers.iter().map(|n| n.parse().expect("number")).collect();
    let plan = Random {
        seed: n[0],
        reads: n[1],
        first: n[2],
        len: n[3],
        blocks: n[4],
    };
    let file = File::open(path).expect("does not open");
    rustix::fs::fadvise(&file, 0, None, Advice::Random).expect("fadvise");
    let mut rng = Rng::new(plan.seed);
    let mut buf = [0; PAGE as usize];
    let started = Instant::now();
    for _ in 0..plan.reads {
        let at = plan.place(&mut rng);
        file.read_exact_at(&mut buf, at).expect("read");
    }
    println!(
        "{}",
        started.elapsed().as_secs_f64() * 1e6 / plan.reads as f64
    );
    true
}

/// Has the kernel forget the pages of a file.
pub fn forget_pages(path: &Path) {
    let file = File::open(path).expect("does not open");
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("fadvise");
}

/// The same for a file of a mount, by another process.
pub fn forget_mounted(path: &Path) {
    let status = Command::new("dd")
        .arg(format!("if={}", path.display()))
        .args(["iflag=nocache", "count=0", "status=none"])
        .status();
    assert!(status.expect("dd").success());
}

/// Has the kernel forget all files below a directory (which must have been written out).
pub fn forget_tree(path: &Path) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("list") {
            forget_tree(&entry.expect("entry").path());
        }
    } else {
        forget_pages(path);
    }
}

/// Writes everything out, so that it can be forgotten.
pub fn sync_tree(path: &Path) {
    Command::new("sync")
        .arg("-f")
        .arg(path)
        .status()
        .expect("sync");
}

/// MB/s of `dd bs=1M` over so many bytes of a file.
pub fn dd(path: &Path, bytes: u64) -> f64 {
    let started = Instant::now();
    let status = Command::new("dd")
        .arg(format!("if={}", path.display()))
        .args(["of=/dev/null", "bs=1M", "status=none"])
        .arg(format!("count={}", bytes >> 20))
        .status()
        .expect("dd");
    assert!(status.success(), "dd of {} failed", path.display());
    bytes as f64 / started.elapsed().as_secs_f64() / 1e6
}
