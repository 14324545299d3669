//! Disks through real mounts of the real program, against what was promised for them.
//!
//! `cargo bench --bench disks [-- quick] [rounds=5] [only=sequential,random,…]`
//!
//! Each figure is measured in turns with a ceiling or a peer, in one run, and shown as a ratio beside
//! the ratio that is wanted. Asserts nothing. Needs root.
//!
//! | part | ceiling or peer |
//! | --- | --- |
//! | `sequential` | Z (zeros from memory, same mount settings); the backing files; cores × D, the rate at which one core decodes the very same blocks |
//! | `random` | Z; a pass-through file system over the flat image; the bytes asked for |
//! | `cache` | a plain LRU of the same size that sees the same accesses |
//! | `memory` | the cache size + 100 MiB |
//! | `holes` | a disk without holes |
//! | `start` | fixed limits |

#[path = "support/data.rs"]
mod data;
#[path = "support/figures.rs"]
mod figures;
#[path = "support/onefs.rs"]
mod onefs;
#[path = "support/readers.rs"]
mod readers;
#[path = "support/served.rs"]
mod served;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use brfs::codec::Filter as Codec;
use brfs::fuse::MountOptions;
use brfs::image::{Disk, DiskContext};
use brfs::io::ReadAt;
use brfs::store::{LocalStore, StorePath};
use data::BLOCK;
use figures::{Figures, Wanted, median};
use readers::{Random, dd, forget_mounted, forget_tree, read_data, result_of, sync_tree};
use served::{BRFS, Served, timed};
use support::catalogue;
use support::chain::{Chain, Storage};
use support::mountpoint::{TempDir, can_mount};
use support::vhd_dir::Filter;

const MIB: f64 = (1 << 20) as f64;

/// Images of the chains that are read.
const CHAIN: usize = 4;

/// Bytes of the blocks' bitmaps in front of their data.
const BITMAP: u64 = 512;

struct Run {
    rounds: usize,
    /// Bytes of the disks that are read from start to end.
    size: u64,
    /// 4 KiB reads of one random run.
    reads: u64,
    quick: bool,
    dir: TempDir,
    figures: Figures,
}

/// One group of figures.
type Part = fn(&mut Run);

fn main() {
    if readers::be_reader_if_asked() || !can_mount() {
        return;
    }
    keep_heaps();
    let arguments: Vec<String> = std::env::args().collect();
    let value_of = |name: &str| {
        let prefix = format!("{name}=");
        arguments.iter().find_map(|a| a.strip_prefix(&prefix))
    };
    let quick = arguments.iter().any(|a| a == "quick");
    let only = value_of("only").map(|list| list.split(',').collect::<Vec<_>>());
    let mut run = Run {
        rounds: value_of("rounds").map_or(5, |n| n.parse().expect("rounds=NUMBER")),
        size: if quick { 256 << 20 } else { 1 << 30 },
        reads: if quick { 1000 } else { 4000 },
        quick,
        dir: TempDir::new(),
        figures: Figures::default(),
    };
    let parts: [(&str, Part); 6] = [
        ("sequential", sequential),
        ("random", random),
        ("cache", hot_set),
        ("memory", memory),
        ("holes", holes),
        ("start", start),
    ];
    for (name, part) in parts {
        if only.as_ref().is_none_or(|list| list.contains(&name)) {
            eprintln!("-- {name}");
            part(&mut run);
        }
    }
    run.figures.print();
}

/// Starts this program again with heaps that keep what is freed: D is the rate of the decoder, not
/// that of the page faults which its memory can cost.
fn keep_heaps() {
    const KEEP: [&str; 2] = ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];
    if std::env::var_os(KEEP[0]).is_none() {
        let mut again = Command::new(std::env::current_exe().expect("no name"));
        again.args(std::env::args_os().skip(1));
        let error = again.envs(KEEP.map(|name| (name, "33554432"))).exec();
        panic!("cannot start again: {error}");
    }
}

fn options() -> MountOptions {
    MountOptions {
        source: "bench".to_owned(),
        ..MountOptions::default()
    }
}

/// A file system of this process's own, unmounted when dropped.
struct Own {
    dir: TempDir,
    name: &'static str,
    session: Option<fuser::BackgroundSession>,
}

impl Own {
    fn zeros(size: u64) -> Self {
        let dir = TempDir::new();
        let session = Some(onefs::mount_zeros(dir.path(), size, &options()));
        let name = onefs::NAME;
        Own { dir, name, session }
    }
    fn pass(backing: &Path) -> Self {
        let dir = TempDir::new();
        let session = Some(onefs::mount_file(dir.path(), backing, &options()));
        let name = onefs::NAME;
        Own { dir, name, session }
    }
    fn file(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.umount_and_join().ok();
        }
    }
}

/// A written repository of one disk.
struct Sample {
    name: &'static str,
    storage: Storage,
    chain: Chain,
    repository: PathBuf,
    images: PathBuf,
}

impl Sample {
    fn write(run: &Run, name: &'static str, storage: Storage, chain: Chain) -> Self {
        let repository = run.dir.path().join(name);
        let images = data::write(&repository, chain.clone());
        sync_tree(&repository);
        Sample {
            name,
            storage,
            chain,
            repository,
            images,
        }
    }

    /// A full disk over a chain of four.
    fn full(run: &Run, name: &'static str, storage: Storage) -> Self {
        let chain = data::chain(CHAIN, storage, run.size, 0..run.size / BLOCK);
        Self::write(run, name, storage, chain)
    }

    /// The file that holds the newest state of a block of a VHD directory.
    fn block_path(&self, block: u64) -> PathBuf {
        let sector = block * (BLOCK / 512);
        let layer = self.chain.layers.iter();
        let newest = layer.rev().find(|l| l.writes.is_written(sector));
        let directory = format!("data/{}.vhd", newest.expect("a full disk").name);
        support::vhd_dir::block_path(&self.images.join(directory), block)
    }

    fn stored_bytes(&self, block: u64) -> u64 {
        std::fs::metadata(self.block_path(block))
            .expect("a block")
            .len()
    }

    fn blocks(&self) -> u64 {
        self.chain.layers[0].size_bytes / BLOCK
    }

    /// The disk, opened in this process.
    fn open(&self, cache_bytes: u64) -> (Arc<DiskContext>, Arc<Disk>) {
        let store = Arc::new(LocalStore::open(&self.images).expect("store"));
        let context = DiskContext::new(store, cache_bytes);
        let newest = self.chain.layers.last().expect("a chain");
        let path = StorePath::new(&newest.head_name()).expect("a name");
        let disk = context.open_disk(&path, None).expect("disk");
        (context, disk)
    }

    fn remove(self) {
        std::fs::remove_dir_all(&self.repository).ok();
    }
}

/// MB/s of `dd` through a fresh mount.
fn dd_mounted(sample: &Sample, size: u64) -> f64 {
    let served = Served::mount(&sample.repository, &[]);
    dd(&served.disk(), size)
}

fn sequential(run: &mut Run) {
    let (size, rounds) = (run.size, run.rounds);
    let zeros = Own::zeros(size);
    let dd_zeros = || {
        forget_mounted(&zeros.file());
        dd(&zeros.file(), size)
    };

    let files = Sample::full(run, "files", Storage::File);
    dd_mounted(&files, size);
    run.figures.compare(
        rounds,
        "dd of four VHD files, warm",
        "MB/s",
        "Z",
        Wanted::AtLeast(0.85),
        || dd_mounted(&files, size),
        dd_zeros,
    );
    run.figures.compare(
        rounds,
        "dd of four VHD files, cold",
        "MB/s",
        "backing files, cold",
        Wanted::AtLeast(0.9),
        || {
            forget_tree(&files.images);
            dd_mounted(&files, size)
        },
        || {
            forget_tree(&files.images);
            read_files(&files.images)
        },
    );
    files.remove();

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let codecs = [
        ("brotli", Filter::Brotli, Codec::Brotli),
        ("gzip", Filter::Gzip, Codec::Gzip),
    ];
    for (name, filter, codec) in codecs {
        let sample = Sample::full(run, name, Storage::Dir(filter));
        let mut fetched = Vec::new();
        let mut ceilings = Vec::new();
        let stored: u64 = (0..sample.blocks()).map(|b| sample.stored_bytes(b)).sum();
        dd_mounted(&sample, size);
        let mut rates = Vec::new();
        let cell = std::cell::RefCell::new(&mut ceilings);
        run.figures.compare(
            rounds,
            &format!("dd of four {name} directories"),
            "MB/s",
            &format!("{cores} cores x D"),
            Wanted::AtLeast(0.9),
            || {
                let served = Served::mount(&sample.repository, &[]);
                let rate = dd(&served.disk(), size);
                fetched.push(served.bytes_read().0 as f64 / stored as f64);
                rates.push(rate);
                rate
            },
            || {
                let decoding = decode_rate(&sample, codec, cores);
                // Moving the bytes takes processor time as well, in which a core cannot decode: what
                // Z takes of it.
                let moving = processor_rate(&zeros, size) * cores as f64;
                cell.borrow_mut()
                    .push(1.0 / (1.0 / decoding + 1.0 / moving));
                decoding
            },
        );
        run.figures.beside(
            &format!("  the same ({name})"),
            "MB/s",
            median(rates),
            "cores / (1/D + Z's cpu/B)",
            median(ceilings),
            Wanted::Nothing,
        );
        run.figures.beside(
            &format!("  fetched ({name})"),
            "bytes",
            median(fetched),
            "stored bytes of its blocks",
            1.0,
            Wanted::AtMost(1.05),
        );
        sample.remove();
    }
}

/// MB/s of reading all files below a directory in the order of their names.
fn read_files(dir: &Path) -> f64 {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    let started = Instant::now();
    let mut bytes = 0;
    for file in files {
        let len = std::fs::metadata(&file).expect("a file").len();
        dd(&file, len.next_multiple_of(1 << 20));
        bytes += len;
    }
    bytes as f64 / started.elapsed().as_secs_f64() / 1e6
}

/// Cores × D: MB/s of a thread on every core, all decoding the disk's blocks from memory. All cores
/// at once, because that is how they are used then: what else the machine does slows both alike.
fn decode_rate(sample: &Sample, codec: Codec, cores: usize) -> f64 {
    let step = (sample.blocks() / 128).max(1) as usize;
    let stored: Vec<Vec<u8>> = (0..sample.blocks())
        .step_by(step)
        .map(|block| std::fs::read(sample.block_path(block)).expect("a block"))
        .collect();
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(block) = stored.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let decoded = codec.decode_exact(block, (BITMAP + BLOCK) as usize);
                    std::hint::black_box(decoded.expect("decodes"));
                }
            });
        }
    });
    stored.len() as f64 * BLOCK as f64 / started.elapsed().as_secs_f64() / 1e6
}

/// MB per second of processor time, of dd and server together, of reading Z.
fn processor_rate(zeros: &Own, size: u64) -> f64 {
    forget_mounted(&zeros.file());
    let all = || {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let fields = after_name.split_whitespace().skip(11).take(4);
        let ticks: f64 = fields.map(|f| f.parse::<f64>().unwrap_or(0.0)).sum();
        ticks / 100.0
    };
    let before = all();
    dd(&zeros.file(), size);
    size as f64 / (all() - before) / 1e6
}

fn random(run: &mut Run) {
    let rounds = run.rounds * 2 - 1;
    let (size, reads) = (run.size, run.reads);
    let zeros = Own::zeros(size);

    // Hot: forty blocks, in the cache where there is one.
    let hot = Random {
        blocks: 40,
        ..Random::over(size, reads)
    };
    for (name, storage) in [
        ("files", Storage::File),
        ("brotli", Storage::Dir(Filter::Brotli)),
    ] {
        let sample = Sample::full(run, name, storage);
        let served = Served::mount(&sample.repository, &[]);
        let disk = served.disk();
        hot.run(&disk);
        run.figures.compare(
            rounds,
            &format!("4 KiB random, hot, {name}"),
            "us",
            "Z",
            Wanted::AtMost(1.3),
            || {
                forget_mounted(&disk);
                hot.run(&disk)
            },
            || {
                forget_mounted(&zeros.file());
                hot.run(&zeros.file())
            },
        );
        drop(served);
        if sample.storage == Storage::File {
            random_cold(run, &sample);
        } else {
            shared_decode(run, &sample);
        }
        sample.remove();
    }
}

/// Cold reads of VHD files: their latency, and how much is read for them.
fn random_cold(run: &mut Run, sample: &Sample) {
    let (size, reads) = (run.size, run.reads.min(2000));
    let flat = run.dir.path().join("flat.raw");
    data::write_flat(&flat, &sample.chain);
    sync_tree(&flat);
    let pass = Own::pass(&flat);
    let mut seed = 0;
    let mut asked = Vec::new();
    let mut from_device = Vec::new();
    let plan = |seed| Random {
        seed,
        ..Random::over(size, reads)
    };
    run.figures.compare(
        run.rounds,
        "4 KiB random, cold, files",
        "us",
        "pass-through, cold",
        Wanted::AtMost(1.5),
        || {
            forget_tree(&sample.images);
            let served = Served::mount(&sample.repository, &[]);
            let disk = served.disk();
            // Tables and threads, which the other has, too.
            Random::over(size, 20).run(&disk);
            let before = served.bytes_read();
            seed += 1;
            let latency = plan(seed).run(&disk);
            let after = served.bytes_read();
            asked.push((after.0 - before.0) as f64 / reads as f64);
            from_device.push((after.1 - before.1) as f64 / reads as f64);
            latency
        },
        || {
            readers::forget_pages(&flat);
            forget_mounted(&pass.file());
            plan(1).run(&pass.file())
        },
    );
    for (what, values) in [("  read calls", asked), ("  from the device", from_device)] {
        run.figures.beside(
            &format!("{what}, bytes per cold read"),
            "bytes",
            median(values),
            "what was asked for",
            4096.0,
            Wanted::Nothing,
        );
    }
    drop(pass);
    std::fs::remove_file(&flat).ok();
}

/// Eight readers who all want the same cold block.
fn shared_decode(run: &mut Run, sample: &Sample) {
    const READERS: u64 = 8;
    let served = Served::mount(&sample.repository, &[]);
    let disk = served.disk();
    let in_block = |block: u64, reads, seed| Random {
        seed,
        reads,
        first: block * BLOCK,
        len: BLOCK,
        blocks: 0,
    };
    in_block(0, 1, 1).run(&disk);
    let mut ratios = Vec::new();
    for round in 0..16 {
        let block = 4 + round * 3;
        let before = served.bytes_read().0;
        let children: Vec<_> = (0..READERS)
            .map(|seed| in_block(block, 4, seed).start(&disk))
            .collect();
        children.into_iter().map(result_of).for_each(drop);
        let read = served.bytes_read().0 - before;
        ratios.push(read as f64 / sample.stored_bytes(block) as f64);
    }
    run.figures.beside(
        "cold compressed block, 8 readers: fetched",
        "times",
        median(ratios),
        "once",
        1.0,
        Wanted::AtMost(1.05),
    );
    let (context, disk) = sample.open(64 << 20);
    for block in 0..16 {
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                let reading = disk.reader();
                scope.spawn(move || {
                    let mut buf = vec![0; 4096];
                    let at = block * BLOCK + reader * 8192;
                    reading.read_chunk_at(&mut buf, at).expect("reads");
                });
            }
        });
    }
    run.figures.beside(
        "cold compressed block, 8 readers: decoded",
        "times",
        context.cache_stats().loads as f64 / 16.0,
        "once",
        1.0,
        Wanted::AtMost(1.0),
    );
}

/// A hot set of half the cache, one read of it after every fourth block of a scan.
fn hot_set(run: &mut Run) {
    const CACHE_BLOCKS: u64 = 64;
    const HOT: u64 = CACHE_BLOCKS / 2;
    let blocks = if run.quick { 400 } else { 1000 };
    let chain = data::chain(2, Storage::Dir(Filter::Gzip), blocks * BLOCK, 0..blocks);
    let sample = Sample::write(run, "hot", Storage::Dir(Filter::Gzip), chain);
    let cache_bytes = CACHE_BLOCKS * (BLOCK + 1024) * 4 / 3;
    let (_context, disk) = sample.open(cache_bytes);
    let hot = disk.reader();
    let scan = disk.reader();
    let mut lru = Lru::new(CACHE_BLOCKS as usize);
    let mut buf = vec![0; 128 << 10];
    let mut rng = support::rng::Rng::new(3);
    for _ in 0..3 {
        for block in 0..HOT {
            hot.read_chunk_at(&mut buf[..4096], block * BLOCK)
                .expect("reads");
            lru.touch(block);
        }
    }
    let (mut hits, mut lru_hits, mut accesses) = (0, 0, 0);
    let mut next = 0;
    for block in HOT..blocks {
        for piece in 0..BLOCK / (128 << 10) {
            let at = block * BLOCK + piece * (128 << 10);
            scan.read_chunk_at(&mut buf, at).expect("reads");
        }
        lru.touch(block);
        if block % 4 == 0 {
            let wanted = next % HOT;
            next += 1;
            let at = wanted * BLOCK + rng.below(BLOCK / 4096) * 4096;
            accesses += 1;
            hits += u64::from(hot.is_non_blocking(at, 4096));
            hot.read_chunk_at(&mut buf[..4096], at).expect("reads");
            lru_hits += u64::from(lru.touch(wanted));
        }
    }
    run.figures.beside(
        "hot set's hit rate while a scan passes",
        "%",
        100.0 * hits as f64 / accesses as f64,
        &format!("of 100; plain LRU {}", 100 * lru_hits / accesses),
        100.0,
        Wanted::AtLeast(0.9),
    );
    sample.remove();
}

/// A plain LRU of block numbers.
struct Lru {
    order: VecDeque<u64>,
    capacity: usize,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Lru {
            order: VecDeque::new(),
            capacity,
        }
    }

    /// Uses a block; whether it was there.
    fn touch(&mut self, block: u64) -> bool {
        let found = self.order.iter().position(|b| *b == block);
        if let Some(at) = found {
            self.order.remove(at);
        }
        self.order.push_back(block);
        if self.order.len() > self.capacity {
            self.order.pop_front();
        }
        found.is_some()
    }
}

/// The most memory resident while one program scans and eight read at random.
fn memory(run: &mut Run) {
    const READERS: u64 = 8;
    let reads = run.reads;
    let plain = Sample::full(run, "memory", Storage::Dir(Filter::Brotli));
    // 500 images of a disk of 64 TiB, whose data stands in 64 heaps from end to end.
    let heap = if run.quick { 4 } else { 12 };
    let size = 64u64 << 40;
    let spread = (0..64).flat_map(move |n| (0..heap).map(move |i| n * ((1 << 25) / 64) + i));
    let chain = data::chain(500, Storage::Dir(Filter::Gzip), size, spread);
    let long = Sample::write(run, "long", Storage::Dir(Filter::Gzip), chain);
    for (sample, what, len) in [
        (&plain, "chain of 4", run.size),
        (&long, "chain of 500, 64 TiB", size),
    ] {
        for (cache_mib, option) in [(64.0, Some("--cache-size=64M")), (256.0, None)] {
            let served = Served::mount(&sample.repository, option.as_slice());
            let disk = served.disk();
            let children: Vec<_> = (0..READERS)
                .map(|seed| {
                    let blocks = if len > 1 << 40 { 64 } else { 0 };
                    let plan = Random {
                        seed,
                        blocks,
                        ..Random::over(len, reads)
                    };
                    plan.start(&disk)
                })
                .collect();
            if len > 1 << 40 {
                // Through all 64 heaps, by way of the holes.
                read_data(&disk);
            } else {
                dd(&disk, len);
            }
            children.into_iter().map(result_of).for_each(drop);
            run.figures.beside(
                &format!("peak memory, {what}, cache {cache_mib} MiB"),
                "MiB",
                served.peak_mib(),
                "cache + 100 MiB",
                cache_mib + 100.0,
                Wanted::AtMost(1.0),
            );
        }
    }
    plain.remove();
    long.remove();
}

/// A big disk that is nearly empty beside a small full one.
fn holes(run: &mut Run) {
    let data = run.size;
    let blocks = data / BLOCK;
    let small = Sample::full(run, "small", Storage::File);
    // The same data, spread over 2 TiB in pieces of 32 MiB.
    let size = 2040u64 << 30;
    let stride = size / BLOCK / (blocks / 16);
    let spread = (0..blocks / 16).flat_map(move |n| (0..16).map(move |i| n * stride + i));
    let chain = data::chain(CHAIN, Storage::File, size, spread);
    let big = Sample::write(run, "big", Storage::File, chain);
    let copy = run.dir.path().join("copy");
    let cp = |sample: &Sample| {
        let served = Served::mount(&sample.repository, &[]);
        let mut cp = Command::new("cp");
        cp.arg("--sparse=always").arg(served.disk()).arg(&copy);
        let (seconds, _) = timed(&mut cp);
        std::fs::remove_file(&copy).ok();
        seconds
    };
    run.figures.compare(
        run.rounds,
        &format!("cp --sparse of 2 TiB with {} MiB", data as f64 / MIB),
        "s",
        "a disk of just these",
        Wanted::AtMost(1.1),
        || cp(&big),
        || cp(&small),
    );
    small.remove();
    big.remove();
}

/// Time to the first byte and to listings.
fn start(run: &mut Run) {
    let chain = data::chain(30, Storage::File, 64 << 20, 0..32);
    let files = Sample::write(run, "thirty", Storage::File, chain);
    let chain = data::chain(30, Storage::Dir(Filter::Brotli), 64 << 20, 0..32);
    let directories = Sample::write(run, "thirty-dirs", Storage::Dir(Filter::Brotli), chain);
    for sample in [&files, &directories] {
        let times = (0..run.rounds * 2).map(|_| {
            let dir = TempDir::new();
            let started = Instant::now();
            let mut mount = Command::new(BRFS);
            mount.arg("mount").arg(&sample.repository).arg(dir.path());
            assert!(mount.status().expect("brfs").success());
            let vm = std::fs::read_dir(dir.path().join("by-uuid")).expect("list");
            let vm = vm.flatten().next().expect("a VM").path();
            let file = std::fs::File::open(vm.join("latest/xvda.raw")).expect("disk");
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut [0], 0).expect("byte");
            let elapsed = started.elapsed().as_secs_f64() * 1e3;
            drop(file);
            brfs::fuse::unmount(&dir.path().canonicalize().expect("path"), false)
                .expect("unmounts");
            elapsed
        });
        run.figures.beside(
            &format!("mount to first byte, chain of 30, {}", sample.name),
            "ms",
            median(times.collect()),
            "50 ms",
            50.0,
            Wanted::AtMost(1.0),
        );
    }
    files.remove();
    directories.remove();

    let repository = run.dir.path().join("catalogue");
    catalogue::write(&repository, catalogue::Options::new(1000, 30));
    sync_tree(&repository);
    let rounds = run.rounds;
    let mut ls = |what: &str, measure: &mut dyn FnMut() -> (f64, f64)| {
        measure();
        let (times, peaks): (Vec<_>, Vec<_>) = (0..rounds).map(|_| measure()).unzip();
        let limit = Wanted::AtMost(1.0);
        run.figures
            .beside(what, "s", median(times), "0.5 s", 0.5, limit);
        let memory = format!("  memory of {what}");
        run.figures
            .beside(&memory, "MiB", median(peaks), "100 MiB", 100.0, limit);
    };
    ls("brfs ls of 1,000 VMs x 30", &mut || {
        timed(Command::new(BRFS).arg("ls").arg(&repository))
    });
    ls("brfs ls --json of 1,000 VMs x 30", &mut || {
        timed(Command::new(BRFS).args(["ls", "--json"]).arg(&repository))
    });
    ls("mount, ls of all VMs", &mut || {
        let started = Instant::now();
        let served = Served::mount(&repository, &[]);
        timed(Command::new("ls").arg(served.path().join("vms")));
        (started.elapsed().as_secs_f64(), served.peak_mib())
    });
    ls("mount, ls of all VMs and points", &mut || {
        let started = Instant::now();
        let served = Served::mount(&repository, &[]);
        let all = format!("ls {}/vms/*", served.path().display());
        timed(Command::new("sh").args(["-c", &all]));
        (started.elapsed().as_secs_f64(), served.peak_mib())
    });
    std::fs::remove_dir_all(&repository).ok();
}
