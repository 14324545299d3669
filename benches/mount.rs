//! What the way through the kernel costs: brfs's adapter against Z, the ceiling, in one run.
//!
//! `cargo bench --bench mount [-- threads=1,2,4,8 ahead=128,2048 rounds=5]`
//!
//! Prints medians and the ratio to Z of the same round's settings; asserts nothing. Needs root.

#[path = "../tests/support/mod.rs"]
mod support;
#[path = "support/zerofs.rs"]
mod zerofs;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use brfs::fuse::MountOptions;
use bytes::Bytes;
use rustix::fs::{Advice, OFlags};
use support::memtree::{MemDir, MemFile};
use support::mountpoint::{TempDir, TestMount, can_mount};

/// Bytes that one sequential run reads.
const SEQUENTIAL: u64 = 2 << 30;

/// Reads of one random run.
const RANDOM: u64 = 20_000;

const SIZE: u64 = 1 << 40;

/// A mount to measure.
trait Subject {
    fn name(&self) -> &'static str;
    fn file(&self) -> std::path::PathBuf;
}

struct Ceiling {
    dir: TempDir,
    session: Option<fuser::BackgroundSession>,
}

impl Subject for Ceiling {
    fn name(&self) -> &'static str {
        "Z"
    }
    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join(zerofs::NAME)
    }
}

impl Drop for Ceiling {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.umount_and_join().ok();
        }
    }
}

struct Ours(&'static str, TestMount);

impl Subject for Ours {
    fn name(&self) -> &'static str {
        self.0
    }
    fn file(&self) -> std::path::PathBuf {
        self.1.path().join(zerofs::NAME)
    }
}

fn subjects(threads: usize, ahead: Option<u64>) -> Vec<Box<dyn Subject>> {
    let options = MountOptions {
        source: "bench".to_owned(),
        session_threads: Some(threads),
        ..MountOptions::default()
    };
    let dir = TempDir::new();
    let session = Some(zerofs::mount(dir.path(), SIZE, &options));
    let mut all: Vec<Box<dyn Subject>> = vec![Box::new(Ceiling { dir, session })];
    let zeros = MemFile {
        zeros: true,
        quick: true,
        ..MemFile::new(SIZE)
    };
    let shared = MemFile {
        shared: Some(Bytes::from(vec![0; 16 << 20])),
        ..zeros.clone()
    };
    let pooled = MemFile {
        quick: false,
        ..shared.clone()
    };
    for (name, file) in [
        ("brfs, shared bytes", shared),
        ("brfs, filled buffer", zeros),
        ("brfs, through the pool", pooled),
    ] {
        let root = MemDir::default().with(zerofs::NAME, file.node()).node();
        all.push(Box::new(Ours(name, TestMount::new(root, &options))));
    }
    if let Some(ahead) = ahead {
        for subject in &all {
            set_read_ahead(&subject.file(), ahead);
        }
    }
    all
}

fn set_read_ahead(file: &Path, kib: u64) {
    let device = std::fs::metadata(file).expect("no answer").dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&setting, kib.to_string()) {
        eprintln!("{setting}: {error}");
    }
}

fn forget_pages(file: &Path) {
    let file = File::open(file).expect("does not open");
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("fadvise");
}

/// GB/s of `dd bs=1M`.
fn sequential(file: &Path, direct: bool) -> f64 {
    forget_pages(file);
    let started = Instant::now();
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", file.display()))
        .args(["of=/dev/null", "bs=1M", "status=none"])
        .arg(format!("count={}", SEQUENTIAL >> 20));
    if direct {
        dd.arg("iflag=direct");
    }
    assert!(dd.status().expect("dd").success());
    let rate = SEQUENTIAL as f64 / started.elapsed().as_secs_f64() / 1e9;
    forget_pages(file);
    rate
}

/// Microseconds of one 4 KiB read at a random place.
fn random(path: &Path, direct: bool) -> f64 {
    forget_pages(path);
    let file = if direct {
        let flags = OFlags::RDONLY | OFlags::DIRECT;
        let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
        File::from(fd.expect("does not open"))
    } else {
        let file = File::open(path).expect("does not open");
        rustix::fs::fadvise(&file, 0, None, Advice::Random).expect("fadvise");
        file
    };
    // Aligned, as direct reads want it.
    let mut room = vec![0u8; 8192];
    let skip = room.as_ptr().align_offset(4096);
    let buf = &mut room[skip..skip + 4096];
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let started = Instant::now();
    for _ in 0..RANDOM {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(buf, state % (SIZE / 4096) * 4096)
            .expect("read");
    }
    started.elapsed().as_secs_f64() * 1e6 / RANDOM as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn list(name: &str, default: &[u64]) -> Vec<u64> {
    let prefix = format!("{name}=");
    std::env::args()
        .find_map(|argument| {
            let list = argument.strip_prefix(&prefix)?.to_owned();
            list.split(',').map(|v| v.parse().ok()).collect()
        })
        .unwrap_or_else(|| default.to_vec())
}

fn main() {
    if !can_mount() {
        return;
    }
    let rounds = list("rounds", &[5])[0];
    let aheads = list("ahead", &[]);
    let aheads: Vec<_> = if aheads.is_empty() {
        vec![None]
    } else {
        aheads.into_iter().map(Some).collect()
    };
    println!(
        "medians of {rounds} rounds; in brackets: share of Z (rates), multiple of Z (latencies)"
    );
    for threads in list("threads", &[brfs::fuse::SESSION_THREADS as u64]) {
        for ahead in &aheads {
            run(threads as usize, *ahead, rounds);
        }
    }
}

fn run(threads: usize, ahead: Option<u64>, rounds: u64) {
    let all = subjects(threads, ahead);
    let shown = ahead.map_or("default".to_owned(), |kib| format!("{kib} KiB"));
    println!("\nthreads {threads}, read-ahead {shown}");
    println!(
        "{:24} {:>17} {:>17} {:>17} {:>17}",
        "", "dd GB/s", "direct GB/s", "4K random µs", "4K direct µs"
    );
    let measures: [fn(&Path) -> f64; 4] = [
        |file| sequential(file, false),
        |file| sequential(file, true),
        |file| random(file, false),
        |file| random(file, true),
    ];
    // Subjects take turns, each round another one first, so that what else the machine does, and
    // the pages that the one before gave back, meet all of them alike.
    let mut values = vec![vec![Vec::new(); measures.len()]; all.len()];
    sequential(&all[0].file(), false);
    for round in 0..rounds as usize {
        for (column, measure) in measures.iter().enumerate() {
            for turn in 0..all.len() {
                let row = (round + turn) % all.len();
                values[row][column].push(measure(&all[row].file()));
            }
        }
    }
    let medians: Vec<Vec<f64>> = values
        .into_iter()
        .map(|columns| columns.into_iter().map(median).collect())
        .collect();
    for (row, subject) in all.iter().enumerate() {
        print!("{:24}", subject.name());
        for (value, ceiling) in medians[row].iter().zip(&medians[0]) {
            print!(" {value:9.2} ({:4.2}x)", value / ceiling);
        }
        println!();
    }
}
