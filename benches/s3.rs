//! Repositories on object storage that is 50 ms away, through real mounts of the real program.
//!
//! `cargo bench --bench s3 [-- quick] [rounds=5] [only=sequential,cache,…]`; with `serve=DIRECTORY
//! [bandwidth=BYTES]` it only writes a sample there and serves it, to look at something closer.
//!
//! The server is in this process (see `support/far_s3.rs`). Each figure is measured in turns with a
//! ceiling, in one run, and shown as a ratio beside the ratio that is wanted. Asserts nothing. Needs
//! root.
//!
//! | part | ceiling or limit |
//! | --- | --- |
//! | `sequential` | the same objects fetched by the same client, 32 at once; the same with decoding |
//! | `cache` | the same VHD directory read from the local disk |
//! | `start` | round trips of 50 ms; the same small objects fetched by the same client |
//! | `crypto` | a fifth of the brotli decode of the same blocks |
//! | `guests` | 3 s |

#[path = "s3/cache.rs"]
mod cache;
#[path = "s3/crypto.rs"]
mod crypto;
#[allow(dead_code)] // Other benches need more of it.
#[path = "support/data.rs"]
mod data;
#[path = "support/far_s3.rs"]
mod far_s3;
#[path = "support/figures.rs"]
mod figures;
#[path = "s3/guests.rs"]
mod guests;
#[path = "support/onefs.rs"]
mod onefs;
#[path = "support/readers.rs"]
mod readers;
#[path = "s3/sample.rs"]
mod sample;
#[path = "../tests/support/seal.rs"]
mod seal;
#[path = "s3/sequential.rs"]
mod sequential;
#[path = "support/served.rs"]
mod served;
#[path = "s3/start.rs"]
mod start;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Duration;

use far_s3::{Distance, FarS3};
use figures::Figures;
use support::chain::Storage;
use support::mountpoint::{TempDir, can_mount};
use support::vhd_dir::Filter;

/// Added to every request.
const DELAY: Duration = Duration::from_millis(50);
/// What many a server room's line has: 1 Gbit/s.
const LINE: u64 = 125_000_000;

struct Run {
    rounds: usize,
    /// Bytes of the disks that are read from start to end.
    size: u64,
    quick: bool,
    /// The server's root, with a repository in each directory.
    dir: TempDir,
    figures: Figures,
}

impl Run {
    /// A server with what is in `dir` by now.
    fn server(&self, bandwidth: Option<u64>) -> FarS3 {
        let delay = DELAY;
        FarS3::start(self.dir.path(), Distance { delay, bandwidth })
    }
}

/// One group of figures.
type Part = fn(&mut Run);

fn main() {
    if readers::be_reader_if_asked() || !can_mount() {
        return;
    }
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
        quick,
        dir: TempDir::new(),
        figures: Figures::default(),
    };
    if let Some(root) = value_of("serve") {
        let bandwidth = value_of("bandwidth").map(|n| n.parse().expect("bandwidth=BYTES"));
        return serve(Path::new(root), run.size, bandwidth);
    }
    let parts: [(&str, Part); 5] = [
        ("sequential", sequential::all),
        ("cache", cache::all),
        ("start", start::all),
        ("crypto", crypto::all),
        ("guests", guests::all),
    ];
    for (name, part) in parts {
        if only.as_ref().is_none_or(|list| list.contains(&name)) {
            eprintln!("-- {name}");
            part(&mut run);
        }
    }
    run.figures.print();
}

/// Serves until it is killed.
fn serve(root: &Path, size: u64, bandwidth: Option<u64>) {
    for (name, filter) in [("brotli", Filter::Brotli), ("plain", Filter::Absent)] {
        let repository = root.join(name);
        if !repository.is_dir() {
            let blocks = 0..size / data::BLOCK;
            let chain = data::chain(4, Storage::Dir(filter), size, blocks);
            data::write(&repository, chain);
        }
    }
    let delay = DELAY;
    let server = FarS3::start(root, Distance { delay, bandwidth });
    println!("{}", server.url("brotli"));
    loop {
        std::thread::park();
    }
}
