//! The first `ls` of a guest's directories after mounting, cold, over a chain of brotli directories.

use std::path::Path;
use std::process::Command;

use crate::Run;
use crate::data::{self, BLOCK};
use crate::figures::{Wanted, median};
use crate::readers::sync_tree;
use crate::served::{Served, timed};
use crate::support::chain::{Chain, Storage};
use crate::support::mountpoint::{TempDir, has_program, sh};
use crate::support::rng::{Rng, mix};
use crate::support::vhd_dir::Filter;

/// Images of the chain.
const CHAIN: u64 = 4;
/// Where the partition begins.
const PARTITION: u64 = 1 << 20;

pub fn all(run: &mut Run) {
    let kinds = [
        ("ext4", "mkfs.ext4 -q"),
        ("xfs", "mkfs.xfs -q"),
        ("ntfs", "mkntfs -q -F -Q -p 2048 -H 255 -S 63"),
    ];
    for (name, mkfs) in kinds {
        let program = mkfs.split(' ').next().unwrap_or_default();
        if !has_program(program) || (name == "ntfs" && !has_program("ntfs-3g")) {
            eprintln!("{program} is not installed: left out");
            continue;
        }
        let repository = write(run, name, mkfs);
        let server = run.server(None);
        let url = server.url(name);
        let listings = [
            ("ls of its root", "ls", ""),
            ("ls -l of 1,000 files", "ls -l", "d/017"),
            ("find of 50 directories", "find", "d"),
        ];
        for (what, command, directory) in listings {
            let (mut times, mut requests) = (Vec::new(), Vec::new());
            for _ in 0..run.rounds {
                let served = Served::mount(Path::new(&url), &[]);
                let disk = served.disk();
                let point = disk.parent().expect("a restore point");
                let target = point.join("xvda/part1").join(directory);
                let before = server.requests();
                let mut ls = Command::new("sh");
                ls.args(["-c", &format!("{command} {}", target.display())]);
                times.push(timed(&mut ls).0);
                requests.push((server.requests() - before) as f64);
            }
            run.figures.beside(
                &format!("{name}, cold: {what}"),
                "s",
                median(times),
                &format!("3 s; {:.0} requests", median(requests)),
                3.0,
                Wanted::AtMost(1.0),
            );
        }
        std::fs::remove_dir_all(&repository).ok();
    }
}

/// A repository with such a file system on its disk: 50 directories of 1,000 files, spread over it
/// by larger files in between.
fn write(run: &Run, name: &str, mkfs: &str) -> std::path::PathBuf {
    let scratch = TempDir::new();
    let image = scratch.path().join("image.raw");
    let at = scratch.path().join("mnt");
    let size = if run.quick { 512u64 << 20 } else { 1 << 30 };
    let larger = size / 200;
    let mount = match name {
        "ntfs" => "ntfs-3g",
        _ => "mount",
    };
    sh(&format!(
        "export PATH=$PATH:/usr/sbin:/sbin
         truncate -s {size} {image:?}
         echo 'start=2048, type=83' | sfdisk -q {image:?}
         device=$(losetup --show -f -o {PARTITION} {image:?})
         trap 'losetup -d $device' EXIT
         mkdir {at:?}
         {mkfs} $device
         {mount} $device {at:?}
         mkdir {at:?}/d
         for d in $(seq -w 0 49); do
             mkdir {at:?}/d/0$d
             head -c {larger} /dev/urandom > {at:?}/large-$d
             (cd {at:?}/d/0$d && seq -f 'a file of this guest %g' 1000 | split -l 1 -a 3 -d - file-)
         done
         umount {at:?}"
    ));
    let repository = run.dir.path().join(name);
    data::write(&repository, chain(&image, size));
    sync_tree(&repository);
    repository
}

/// The image as a chain: all in the base, a third of it again in the images above.
fn chain(image: &Path, size: u64) -> Chain {
    let bytes = std::fs::read(image).expect("the image");
    let mut rng = Rng::new(0x67_7565_7374);
    let mut chain = Chain::new();
    for level in 0..CHAIN {
        let layer = chain.push(&mut rng, size);
        layer.storage(Storage::Dir(Filter::Brotli));
        for (block, content) in (0..).zip(bytes.chunks(BLOCK as usize)) {
            let owner = mix(block) % (3 * (CHAIN - 1));
            let empty = content.iter().all(|&b| b == 0);
            if !empty && (level == 0 || owner + 1 == level) {
                layer.writes.write_bytes(block * (BLOCK / 512), content);
            }
        }
    }
    chain
}
