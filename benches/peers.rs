//! brfs beside other programs that show disk images as files, on the same chains in the same run.
//!
//! Run by `scripts/bench-peers`, which installs them: `cargo bench --bench peers [-- quick]
//! [rounds=3]`. A peer that is not installed is left out. Asserts nothing. Needs root.
//!
//! | peer | shows |
//! | --- | --- |
//! | `vhdimount` (libvhdi) | the chain of four VHD files |
//! | `bindfs` | the flat image: a pass-through |
//! | `qemu-storage-daemon` | the chain's base, by its FUSE export |

#[path = "support/data.rs"]
mod data;
#[path = "support/figures.rs"]
mod figures;
#[path = "support/readers.rs"]
mod readers;
#[path = "support/served.rs"]
mod served;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use data::BLOCK;
use figures::{Figures, Wanted};
use readers::{Random, dd, forget_mounted, sync_tree};
use served::{Served, peak_mib, wait_until};
use support::chain::Storage;
use support::mountpoint::{TempDir, can_mount, has_program};
use support::vhd_dir::Filter;

/// How far ahead of the slow peers brfs wants to be.
const AHEAD: f64 = 5.0;

/// What fuse-vhd, XO's own, did on a machine of this size with an 8 GiB chain of four. It cannot be
/// installed here.
const SEEN_ELSEWHERE: &str = "\
seen elsewhere, chain of four of 8 GiB, 2 cores:
  fuse-vhd, VHD files            271 MB/s    615 IOPS   0.7 s to the first byte   265-300 MiB
  fuse-vhd, brotli directories   115 MB/s     75 IOPS
  vhdimount, VHD files            62 MB/s   1870 IOPS
  bindfs, flat image             320 MB/s  15900 IOPS";

fn main() {
    if readers::be_reader_if_asked() || !can_mount() {
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|a| a == "quick");
    let rounds = arguments.iter().find_map(|a| a.strip_prefix("rounds="));
    let rounds: usize = rounds.map_or(3, |n| n.parse().expect("rounds=NUMBER"));
    let size: u64 = if quick { 128 << 20 } else { 512 << 20 };
    let reads = if quick { 500 } else { 2000 };

    let dir = TempDir::new();
    let chain_of = |storage| data::chain(4, storage, size, 0..size / BLOCK);
    let (files, brotli) = (dir.path().join("files"), dir.path().join("brotli"));
    let chain = chain_of(Storage::File);
    let images = data::write(&files, chain.clone());
    data::write(&brotli, chain_of(Storage::Dir(Filter::Brotli)));
    let flat = dir.path().join("flat");
    std::fs::create_dir(&flat).expect("directory");
    data::write_flat(&flat.join("disk.raw"), &chain);
    sync_tree(dir.path());
    let image = |layer: usize| images.join(chain.layers[layer].head_name());
    let newest = image(chain.layers.len() - 1);

    let mut figures = Figures::default();
    let peers = [
        Peer::VhdMount(newest),
        Peer::BindFs(flat),
        Peer::Qemu(image(0)),
    ];
    for peer in peers.iter().filter(|peer| peer.is_there()) {
        for (name, repository) in [("files", &files), ("brotli", &brotli)] {
            beside(
                &mut figures,
                (name, repository),
                peer,
                (size, reads, rounds),
            );
        }
    }
    figures.print();
    println!("{SEEN_ELSEWHERE}");
}

/// All figures of brfs on one repository beside one peer.
fn beside(
    figures: &mut Figures,
    (name, repository): (&str, &Path),
    peer: &Peer,
    (size, reads, rounds): (u64, u64, usize),
) {
    let slow = matches!(peer, Peer::VhdMount(_));
    let wanted = |times| match slow {
        true => times,
        false => Wanted::Nothing,
    };
    // The disk is eight times the cache, as real ones are and more.
    let cache = format!("--cache-size={}", size / 8);
    let ours = Served::mount(repository, &[&cache]);
    let theirs = peer.start();
    let (our_file, their_file) = (ours.disk(), theirs.file.clone());
    let plan = Random::over(size, reads);
    let iops = |file: &Path| {
        forget_mounted(file);
        1e6 / plan.run(file)
    };
    let rate = |file: &Path| {
        forget_mounted(file);
        dd(file, size)
    };
    figures.compare(
        rounds,
        &format!("dd bs=1M, {name}"),
        "MB/s",
        peer.name(),
        wanted(Wanted::AtLeast(AHEAD)),
        || rate(&our_file),
        || rate(&their_file),
    );
    figures.compare(
        rounds,
        &format!("4 KiB random, {name}"),
        "IOPS",
        peer.name(),
        wanted(Wanted::AtLeast(AHEAD)),
        || iops(&our_file),
        || iops(&their_file),
    );
    figures.beside(
        &format!("peak memory, {name}"),
        "MiB",
        ours.peak_mib(),
        peer.name(),
        peak_mib(theirs.child.id()).unwrap_or(f64::NAN),
        Wanted::Nothing,
    );
    drop((ours, theirs));
    figures.compare(
        rounds,
        &format!("start to first byte, {name}"),
        "ms",
        peer.name(),
        wanted(Wanted::AtMost(1.0)),
        || {
            let started = Instant::now();
            let served = Served::mount(repository, &[]);
            dd(&served.disk(), 1 << 20);
            started.elapsed().as_secs_f64() * 1e3
        },
        || {
            let started = Instant::now();
            dd(&peer.start().file, 1 << 20);
            started.elapsed().as_secs_f64() * 1e3
        },
    );
}

/// Another program and what it is to show.
enum Peer {
    VhdMount(PathBuf),
    BindFs(PathBuf),
    Qemu(PathBuf),
}

impl Peer {
    fn name(&self) -> &'static str {
        match self {
            Peer::VhdMount(_) => "vhdimount",
            Peer::BindFs(_) => "bindfs",
            Peer::Qemu(_) => "qemu-storage-daemon (base)",
        }
    }

    fn program(&self) -> &'static str {
        self.name().split(' ').next().unwrap_or_default()
    }

    fn is_there(&self) -> bool {
        let there = has_program(self.program());
        if !there {
            eprintln!("{} is not installed: left out", self.program());
        }
        there
    }

    fn start(&self) -> Running {
        let dir = TempDir::new();
        let at = dir.path().join("mnt");
        let mut command = Command::new(self.program());
        let file = match self {
            Peer::VhdMount(image) => {
                std::fs::create_dir(&at).expect("mount point");
                // It numbers the images of a chain; verbose, it stays in front.
                command.arg("-v").arg(image).arg(&at);
                at.join("vhdi1")
            }
            Peer::BindFs(source) => {
                std::fs::create_dir(&at).expect("mount point");
                command.args(["-f", "-r"]).arg(source).arg(&at);
                at.join("disk.raw")
            }
            Peer::Qemu(image) => {
                std::fs::File::create(&at).expect("mount point");
                let image = image.display();
                command
                    .arg("--blockdev")
                    .arg(format!(
                        "vpc,node-name=disk,read-only=on,file.driver=file,file.filename={image}"
                    ))
                    .arg("--export")
                    .arg(format!(
                        "fuse,id=disk,node-name=disk,writable=off,mountpoint={}",
                        at.display()
                    ));
                at.clone()
            }
        };
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("peer");
        let running = Running {
            child,
            file,
            at,
            _dir: dir,
        };
        wait_until(self.name(), || {
            std::fs::metadata(&running.file).is_ok_and(|meta| meta.len() > 0)
        });
        running
    }
}

struct Running {
    child: Child,
    file: PathBuf,
    at: PathBuf,
    _dir: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.at).status().ok();
        // qemu stays when its export is unmounted by others.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
