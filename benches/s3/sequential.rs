//! Whole disks from start to end, over a line of 1 Gbit/s and over one that is as fast as the machine.

use std::cell::RefCell;
use std::path::Path;

use brfs::codec::Filter as Codec;
use brfs::fuse::MountOptions;

use crate::data::{self, BLOCK};
use crate::figures::{Wanted, median};
use crate::readers::{dd, forget_mounted};
use crate::sample::{IN_FLIGHT, Sample, fetch, fetch_ranges};
use crate::served::Served;
use crate::support::chain::Storage;
use crate::support::mountpoint::TempDir;
use crate::support::vhd_dir::Filter;
use crate::{LINE, Run, onefs};

/// Images of the chains that are read.
const CHAIN: usize = 4;

pub fn all(run: &mut Run) {
    let moving = moving(run);
    let lines = [("1 Gbit/s", Some(LINE)), ("loopback", None)];
    let kinds = [
        ("brotli", Filter::Brotli, Some(Codec::Brotli)),
        ("plain", Filter::Absent, None),
    ];
    for (name, filter, codec) in kinds {
        let sample = Sample::full(run, name, Storage::Dir(filter), CHAIN);
        for (line, bandwidth) in lines {
            directory(run, &sample, (line, bandwidth), codec, moving);
        }
        sample.remove();
    }
    let chain = data::chain(1, Storage::File, run.size, 0..run.size / BLOCK);
    let sample = Sample::write(run, "files", chain);
    for line in lines {
        file(run, &sample, line);
    }
    sample.remove();
}

/// MB/s of `dd` through a fresh mount, whose disk has been opened.
pub fn dd_mounted(repository: &Path, options: &[&str], size: u64) -> f64 {
    let served = Served::mount(repository, options);
    let disk = served.disk();
    dd(&disk, 1 << 20);
    forget_mounted(&disk);
    dd(&disk, size)
}

/// A chain of VHD directories, beside its objects fetched without a mount.
fn directory(
    run: &mut Run,
    sample: &Sample,
    (line, bandwidth): (&str, Option<u64>),
    codec: Option<Codec>,
    moving: f64,
) {
    let size = run.size;
    let server = run.server(bandwidth);
    let url = server.url(sample.name);
    let objects = sample.objects();
    // Once for the server's memory.
    fetch(&url, &objects, IN_FLIGHT, None);
    let rate = |seconds: f64| size as f64 / seconds / 1e6;
    let (ours, decoded, limit) = (RefCell::default(), RefCell::default(), RefCell::default());
    let note = |values: &RefCell<Vec<f64>>, value: f64| {
        values.borrow_mut().push(value);
        value
    };
    run.figures.compare(
        run.rounds,
        &format!("dd of four {} directories, {line}", sample.name),
        "MB/s",
        "plain GETs",
        Wanted::AtLeast(0.9),
        || note(&ours, dd_mounted(Path::new(&url), &[], size)),
        || {
            let fetched = rate(fetch(&url, &objects, IN_FLIGHT, None));
            let with_decoding = match codec {
                None => fetched,
                codec => rate(fetch(&url, &objects, IN_FLIGHT, codec)),
            };
            note(&decoded, with_decoding);
            note(&limit, 1.0 / (1.0 / with_decoding + 1.0 / moving));
            fetched
        },
    );
    let (ours, decoded) = (median(ours.into_inner()), median(decoded.into_inner()));
    if codec.is_some() {
        run.figures.beside(
            "  the same",
            "MB/s",
            ours,
            "GETs with decoding",
            decoded,
            Wanted::AtLeast(0.9),
        );
    }
    if bandwidth.is_none() {
        run.figures.beside(
            "  the same",
            "MB/s",
            ours,
            "and with moving the bytes",
            median(limit.into_inner()),
            Wanted::Nothing,
        );
    }
}

/// One VHD file, as Xen Orchestra kept them on object stores until 2021, and copies of other repositories
/// have them.
fn file(run: &mut Run, sample: &Sample, (line, bandwidth): (&str, Option<u64>)) {
    let size = run.size;
    let server = run.server(bandwidth);
    let url = server.url(sample.name);
    let object = sample.vhd_file();
    run.figures.compare(
        run.rounds,
        &format!("dd of one VHD file, {line}"),
        "MB/s",
        "plain ranged GETs",
        Wanted::AtLeast(0.9),
        || dd_mounted(Path::new(&url), &[], size),
        || size as f64 / fetch_ranges(&url, &object, IN_FLIGHT) / 1e6,
    );
}

/// MB/s at which all cores together could move bytes through FUSE if they did nothing else: what
/// the cores do for it, they cannot do for fetching and decoding.
fn moving(run: &Run) -> f64 {
    let dir = TempDir::new();
    let options = MountOptions {
        source: "bench".to_owned(),
        ..MountOptions::default()
    };
    let session = onefs::mount_zeros(dir.path(), run.size, &options);
    let file = dir.path().join(onefs::NAME);
    let rates = (0..3).map(|_| {
        forget_mounted(&file);
        let before = processor_seconds();
        dd(&file, run.size);
        run.size as f64 / (processor_seconds() - before) / 1e6
    });
    let rate = median(rates.collect());
    session.umount_and_join().ok();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    rate * cores as f64
}

/// Processor time of this process and the children it has waited for.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(4);
    let ticks: f64 = fields.map(|f| f.parse::<f64>().unwrap_or(0.0)).sum();
    ticks / 100.0
}
