//! What the way through the kernel costs: brfs's adapter against Z, the ceiling, in one run.
//!
//! `cargo bench --bench mount [-- rounds=15] [sweep=1]`
//!
//! Prints medians and the ratio to Z; with `sweep`, how fast Z is for each number of session threads
//! and each read-ahead window, measured in turns. Asserts nothing. Needs root.

#[path = "support/onefs.rs"]
mod onefs;
#[path = "../tests/support/mod.rs"]
mod support;

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
const SEQUENTIAL: u64 = 512 << 20;

/// Reads of one random run.
const RANDOM: u64 = 3_000;

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
        self.dir.path().join(onefs::NAME)
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
        self.1.path().join(onefs::NAME)
    }
}

fn options(threads: usize) -> MountOptions {
    MountOptions {
        source: "bench".to_owned(),
        session_threads: Some(threads),
        ..MountOptions::default()
    }
}

fn ceiling(threads: usize) -> Ceiling {
    let dir = TempDir::new();
    let session = Some(onefs::mount_zeros(dir.path(), SIZE, &options(threads)));
    Ceiling { dir, session }
}

fn subjects(threads: usize) -> Vec<Box<dyn Subject>> {
    let mut all: Vec<Box<dyn Subject>> = vec![Box::new(ceiling(threads))];
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
        let root = MemDir::default().with(onefs::NAME, file.node()).node();
        all.push(Box::new(Ours(
            name,
            TestMount::new(root, &options(threads)),
        )));
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

/// Microseconds of one 4 KiB read at a random place. A process of its own reads: one that waits for
/// its own answer can never be killed.
fn random(path: &Path, direct: bool) -> f64 {
    forget_pages(path);
    let way = if direct { "direct" } else { "buffered" };
    let program = std::env::current_exe().expect("no name");
    let mut reader = Command::new(program);
    reader.arg(format!("{way}={}", path.display()));
    let output = reader.output().expect("reader");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    text.trim().parse().expect("a number")
}

/// What the reading process does.
fn read_randomly(path: &Path, direct: bool) -> f64 {
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

fn number(name: &str) -> Option<u64> {
    let prefix = format!("{name}=");
    std::env::args().find_map(|argument| argument.strip_prefix(&prefix)?.parse().ok())
}

fn main() {
    for argument in std::env::args() {
        let (way, path) = argument.split_once('=').unwrap_or_default();
        if let "direct" | "buffered" = way {
            println!("{}", read_randomly(Path::new(path), way == "direct"));
            return;
        }
    }
    if !can_mount() {
        return;
    }
    let rounds = number("rounds").unwrap_or(15) as usize;
    if number("sweep").is_some() {
        sweep(rounds);
    } else {
        compare(rounds);
    }
}

/// `dd` through Z by session threads and read-ahead window, and 4 KiB reads by session threads.
fn sweep(rounds: usize) {
    const AHEAD_KIB: [u64; 5] = [128, 512, 1024, 2048, 4096];
    const THREADS: [usize; 4] = [1, 2, 4, 8];
    let all: Vec<_> = THREADS.iter().map(|threads| ceiling(*threads)).collect();
    let mut rates = vec![vec![Vec::new(); AHEAD_KIB.len()]; all.len()];
    let mut latencies = vec![Vec::new(); all.len()];
    for round in 0..rounds {
        for turn in 0..all.len() {
            let row = (round + turn) % all.len();
            let file = all[row].file();
            for step in 0..AHEAD_KIB.len() {
                let column = (round + step) % AHEAD_KIB.len();
                set_read_ahead(&file, AHEAD_KIB[column]);
                rates[row][column].push(sequential(&file, false));
            }
            latencies[row].push(random(&file, false));
        }
    }
    println!("medians of {rounds} rounds: GB/s of dd bs=1M, µs of a random 4 KiB read");
    println!("threads   ahead {AHEAD_KIB:?} KiB   4K random");
    for (row, threads) in THREADS.into_iter().enumerate() {
        print!("{threads:7}  ");
        for rates in &rates[row] {
            print!(" {:6.2}", median(rates.clone()));
        }
        println!("  {:6.1}", median(latencies[row].clone()));
    }
}

fn compare(rounds: usize) {
    let threads = brfs::fuse::SESSION_THREADS;
    let all = subjects(threads);
    println!("medians of {rounds} rounds, {threads} session threads; in brackets: multiple of Z");
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
    for round in 0..rounds {
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
