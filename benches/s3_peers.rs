//! brfs beside other programs that mount a bucket: the same blocks, read by as many at once, in the
//! same run, over a line of 1 Gbit/s with 50 ms and over one as fast as the machine.
//!
//! Run by `scripts/bench-s3-peers`, which installs them: `cargo bench --bench s3_peers [-- quick]
//! [rounds=3]`. A peer that is not installed is left out. Asserts nothing. Needs root.
//!
//! The peers (`rclone mount`, `s3fs`) show the objects as they are stored: their readers `cat` the
//! block objects of the newest state of a disk, and nothing is decoded. Those of brfs read the
//! disk, which takes the same objects. Rates are of the disk's bytes for both.

#[allow(dead_code)] // The other bench needs more of these.
#[path = "support/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "support/far_s3.rs"]
mod far_s3;
#[allow(dead_code)]
#[path = "support/figures.rs"]
mod figures;
#[path = "support/readers.rs"]
mod readers;
#[allow(dead_code)]
#[path = "s3/sample.rs"]
mod sample;
#[path = "support/served.rs"]
mod served;
#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use far_s3::{BUCKET, Distance, FarS3, KEY_ID, SECRET};
use figures::{Figures, Wanted, median};
use readers::dd;
use sample::Sample;
use served::{Served, peak_mib, wait_until};
use support::chain::Storage;
use support::mountpoint::{TempDir, can_mount, has_program};
use support::vhd_dir::Filter;

const DELAY: Duration = Duration::from_millis(50);
/// 1 Gbit/s.
const LINE: u64 = 125_000_000;
/// Readers at once.
const READERS: [u64; 2] = [1, 8];

struct Run {
    size: u64,
    dir: TempDir,
}

fn main() {
    if !can_mount() {
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|a| a == "quick");
    let rounds = arguments.iter().find_map(|a| a.strip_prefix("rounds="));
    let rounds: usize = rounds.map_or(3, |n| n.parse().expect("rounds=NUMBER"));
    let run = Run {
        size: if quick { 128 << 20 } else { 512 << 20 },
        dir: TempDir::new(),
    };
    let mut figures = Figures::default();
    for (name, filter) in [("brotli", Filter::Brotli), ("plain", Filter::Absent)] {
        let sample = Sample::full(&run, name, Storage::Dir(filter), 4);
        for (line, bandwidth) in [("1 Gbit/s", Some(LINE)), ("loopback", None)] {
            let delay = DELAY;
            let server = FarS3::start(run.dir.path(), Distance { delay, bandwidth });
            for peer in [Peer::Rclone, Peer::S3fs] {
                if !has_program(peer.program()) {
                    eprintln!("{} is not installed: left out", peer.program());
                    continue;
                }
                for readers in READERS {
                    let what = format!("{name}, {line}, {readers} at once");
                    beside(
                        &mut figures,
                        rounds,
                        &what,
                        (&sample, &server),
                        peer,
                        readers,
                    );
                }
            }
        }
        sample.remove();
    }
    figures.print();
}

/// Both programs, mounted anew for each round.
fn beside(
    figures: &mut Figures,
    rounds: usize,
    what: &str,
    (sample, server): (&Sample, &FarS3),
    peer: Peer,
    readers: u64,
) {
    let size = sample.chain.layers[0].size_bytes;
    let url = server.url(sample.name);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    figures.compare(
        rounds,
        what,
        "MB/s",
        peer.name(),
        Wanted::Nothing,
        || {
            let served = Served::mount(Path::new(&url), &[]);
            let disk = served.disk();
            dd(&disk, 1 << 20);
            let share = (size >> 20) / readers;
            let script = (0..readers).fold(String::new(), |mut script, n| {
                let (disk, skip) = (disk.display(), n * share);
                let dd = "dd of=/dev/null bs=1M status=none";
                writeln!(script, "{dd} if={disk} skip={skip} count={share} &").ok();
                script
            });
            let rate = size as f64 / run_all(&script) / 1e6;
            ours.push(served.peak_mib());
            rate
        },
        || {
            let mounted = peer.mount(server, sample.name);
            let objects = sample.objects();
            // Names and attributes are not what is measured.
            run_all(&format!("ls -lR {} > /dev/null &", mounted.at.display()));
            let share = objects.len().div_ceil(readers as usize);
            let script = (objects.chunks(share)).fold(String::new(), |mut script, objects| {
                let paths = objects.iter().map(|o| mounted.at.join(o.as_str()));
                let paths: Vec<String> = paths.map(|p| p.display().to_string()).collect();
                writeln!(script, "cat {} > /dev/null &", paths.join(" ")).ok();
                script
            });
            let rate = size as f64 / run_all(&script) / 1e6;
            theirs.push(peak_mib(mounted.child.id()).unwrap_or(f64::NAN));
            rate
        },
    );
    figures.beside(
        "  peak memory",
        "MiB",
        median(ours),
        peer.name(),
        median(theirs),
        Wanted::Nothing,
    );
}

/// Runs programs in the background of one shell, waits for all of them; gives the seconds.
fn run_all(script: &str) -> f64 {
    let mut shell = Command::new("bash");
    let script = format!("set -e\n{script}\nwhile [ \"$(jobs -rp)\" ]; do wait -n; done");
    let started = Instant::now();
    let status = shell.args(["-c", &script]).status().expect("bash");
    assert!(status.success(), "a reader failed");
    started.elapsed().as_secs_f64()
}

#[derive(Clone, Copy)]
enum Peer {
    Rclone,
    S3fs,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Rclone => "rclone mount",
            Peer::S3fs => "s3fs",
        }
    }

    fn program(self) -> &'static str {
        self.name().split(' ').next().unwrap_or_default()
    }

    /// Mounts one repository of the bucket, with the program's own settings for speed.
    fn mount(self, server: &FarS3, name: &str) -> Mounted {
        let dir = TempDir::new();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).expect("mount point");
        let endpoint = format!("http://{}", server.address);
        let mut command = Command::new(self.program());
        match self {
            Peer::Rclone => {
                command
                    .args(["mount", "--read-only", "--use-server-modtime"])
                    .args(["--s3-provider", "Other", "--s3-force-path-style"])
                    .args(["--s3-list-version", "2"])
                    .args(["--s3-endpoint", &endpoint])
                    .env("RCLONE_CONFIG", "/dev/null")
                    .env("RCLONE_S3_ACCESS_KEY_ID", KEY_ID)
                    .env("RCLONE_S3_SECRET_ACCESS_KEY", SECRET)
                    .arg(format!(":s3:{BUCKET}/{name}"))
                    .arg(&at);
            }
            Peer::S3fs => {
                command
                    .args(["-f", "-o", "ro,use_path_request_style,listobjectsv2"])
                    .args(["-o", &format!("url={endpoint}")])
                    .env("AWSACCESSKEYID", KEY_ID)
                    .env("AWSSECRETACCESSKEY", SECRET)
                    .arg(format!("{BUCKET}:/{name}"))
                    .arg(&at);
            }
        }
        // rclone cannot do with this one.
        command.env_remove("AWS_CA_BUNDLE");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("peer");
        wait_until(self.name(), || at.join("xo-vm-backups").is_dir());
        Mounted {
            child,
            at,
            _dir: dir,
        }
    }
}

struct Mounted {
    child: Child,
    at: PathBuf,
    _dir: TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.at).status().ok();
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
