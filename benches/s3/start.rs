//! From nothing to the first byte, and listings of many VMs. Times in round trips of 50 ms.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use brfs::store::StorePath;

use crate::data;
use crate::figures::{Wanted, median};
use crate::readers::sync_tree;
use crate::sample::{Sample, fetch};
use crate::served::{BRFS, Served, timed};
use crate::support::catalogue;
use crate::support::chain::Storage;
use crate::support::mountpoint::TempDir;
use crate::support::vhd_dir::Filter;
use crate::{DELAY, Run};

/// The client's own bound.
const LISTING_IN_FLIGHT: usize = 64;

pub fn all(run: &mut Run) {
    first_byte(run);
    listing(run);
}

fn first_byte(run: &mut Run) {
    let mut of_two = f64::NAN;
    for (name, len) in [("two", 2), ("thirty", 30)] {
        let chain = data::chain(len, Storage::Dir(Filter::Brotli), 64 << 20, 0..32);
        let sample = Sample::write(run, name, chain);
        let server = run.server(None);
        let url = server.url(name);
        let (mut mounts, mut bytes, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..run.rounds * 2 + 1 {
            let dir = TempDir::new();
            let before = server.requests();
            let started = Instant::now();
            let mut mount = Command::new(BRFS);
            mount.arg("mount").arg(&url).arg(dir.path());
            assert!(mount.status().expect("brfs").success());
            mounts.push(round_trips(started));
            let vm = std::fs::read_dir(dir.path().join("by-uuid")).expect("list");
            let vm = vm.flatten().next().expect("a VM").path();
            let file = std::fs::File::open(vm.join("latest/xvda.raw")).expect("disk");
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut [0], 0).expect("byte");
            bytes.push(round_trips(started));
            requests.push((server.requests() - before) as f64);
            drop(file);
            brfs::fuse::unmount(&dir.path().canonicalize().expect("path"), false)
                .expect("unmounts");
        }
        let whole = median(bytes);
        let mount = median(mounts);
        run.figures.beside(
            &format!("mount to first byte, chain of {len}"),
            "trips",
            whole,
            "of which mounting",
            mount,
            Wanted::Nothing,
        );
        run.figures.beside(
            "  requests",
            "",
            median(requests),
            "images in the chain",
            len as f64,
            Wanted::Nothing,
        );
        if len == 2 {
            of_two = whole;
        } else {
            run.figures.beside(
                "  time to first byte, chain of 30",
                "trips",
                whole,
                "chain of 2",
                of_two,
                Wanted::AtMost(1.1),
            );
        }
        sample.remove();
    }
}

fn round_trips(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() / DELAY.as_secs_f64()
}

fn listing(run: &mut Run) {
    let repository = run.dir.path().join("catalogue");
    let vms = if run.quick { 200 } else { 1000 };
    let uuids = catalogue::write(&repository, catalogue::Options::new(vms, 30));
    sync_tree(&repository);
    let server = run.server(None);
    let url = server.url("catalogue");
    let object = |uuid| StorePath::new(&format!("xo-vm-backups/{uuid}/cache.json.gz"));
    let caches: Vec<StorePath> = uuids.iter().map(|u| object(u).expect("a path")).collect();
    let before = server.requests();
    timed(Command::new(BRFS).arg("ls").arg(&url));
    run.figures.beside(
        &format!("requests of brfs ls of {vms} VMs x 30"),
        "",
        (server.requests() - before) as f64,
        "VMs",
        vms as f64,
        Wanted::Nothing,
    );
    let gets = || fetch(&url, &caches, LISTING_IN_FLIGHT, None);
    run.figures.compare(
        run.rounds,
        &format!("brfs ls of {vms} VMs x 30"),
        "s",
        "plain GETs of their caches",
        Wanted::Nothing,
        || timed(Command::new(BRFS).arg("ls").arg(&url)).0,
        gets,
    );
    run.figures.compare(
        run.rounds,
        &format!("mount, ls of {vms} VMs"),
        "s",
        "plain GETs of their caches",
        Wanted::Nothing,
        || {
            let started = Instant::now();
            let served = Served::mount(Path::new(&url), &[]);
            timed(Command::new("ls").arg(served.path().join("vms")));
            started.elapsed().as_secs_f64()
        },
        gets,
    );
    std::fs::remove_dir_all(&repository).ok();
}
