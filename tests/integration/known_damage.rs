//! What is known to be damaged is told: by `info` and `ls` before anything is read, by the attributes
//! of disks after a read has met it, and once in the log.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::brfs::{BrfsMount, brfs_json};
use crate::support::chain::Storage;
use crate::support::dates::SERIES_START_S;
use crate::support::mountpoint::can_mount;
use crate::support::repo::{Vm, WrittenVm};
use crate::support::rng::Rng;
use crate::support::vhd_dir::Filter;
use crate::support::web::{WEB, chain, web};

const BLOCK: u64 = 2 << 20;

fn write_web(dir: &Path, seed: u64) -> WrittenVm {
    let mut rng = Rng::new(seed);
    web(&mut rng).write(dir)
}

/// What `info` tells of all restore points: its exit status and the report.
fn info(dir: &Path) -> (i32, Value) {
    brfs_json(&["info", "--json", dir.to_str().unwrap(), "3f2a"])
}

/// The problems of a disk at a restore point.
fn problems(report: &Value, point: usize, disk: &str) -> String {
    let disks = report["points"][point]["disk_reports"].as_array().unwrap();
    let disk = disks.iter().find(|d| d["name"] == disk).unwrap();
    disk["problems"].to_string()
}

fn attribute(path: &Path) -> Option<String> {
    let mut value = vec![0; 1 << 16];
    let len = rustix::fs::getxattr(path, "user.brfs.problem", &mut value).ok()?;
    value.truncate(len);
    Some(String::from_utf8(value).unwrap())
}

fn read_block(disk: &Path, block: u64) -> std::io::Result<()> {
    let file = File::open(disk)?;
    // Pieces, as a copy tool asks for them, each of which meets the damage.
    for piece in 0..8 {
        let mut buf = vec![0; 4096];
        file.read_exact_at(&mut buf, block * BLOCK + piece * 4096)?;
    }
    Ok(())
}

#[test]
fn a_block_that_reads_have_met_is_told_by_attributes_and_once_in_the_log() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let written = write_web(dir.path(), 31);
    // A block of the oldest image, which all restore points share, and which the second overwrites
    // in part only.
    let base = written.chains[1].layers[0].dir();
    let block = *base.blocks.last().unwrap();
    let path = base.block_path(block);
    let sound = fs::read(&path).unwrap();
    fs::write(&path, &sound[..sound.len() / 2]).unwrap();

    let log = dir.path().join("log");
    let mount = BrfsMount::new(dir.path(), &["--log-file", log.to_str().unwrap()]);
    let disk = |point: &str| mount.join(format!("vms/{WEB}/{point}/xvdb.raw"));
    let points: Vec<PathBuf> = written.points.iter().map(|p| disk(&p.date)).collect();
    assert_eq!(attribute(&points[0]), None);
    for _ in 0..3 {
        read_block(&points[0], block).unwrap_err();
    }
    let told = attribute(&points[0]).unwrap();
    assert!(
        told.contains(&format!("block {block} cannot be read: ")),
        "{told}"
    );
    let met = read_block(&points[2], block);
    assert_eq!(attribute(&points[2]).is_some(), met.is_err());
    let lines = fs::read_to_string(&log).unwrap();
    let object = path.strip_prefix(dir.path()).unwrap().to_str().unwrap();
    assert_eq!(lines.matches(object).count(), 1, "{lines}");

    // Repaired: read again, it is forgotten.
    fs::write(&path, &sound).unwrap();
    read_block(&points[0], block).unwrap();
    assert_eq!(attribute(&points[0]), None);
}

#[test]
fn a_file_cut_under_an_open_mount_is_told_too() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let written = write_web(dir.path(), 32);
    let base = written.chains[0].layers[0].file();
    let (&block, _) = base.blocks.first_key_value().unwrap();
    let file = File::options().write(true).open(&base.path).unwrap();
    let entry = base.bat_entry_offset(block);
    file.write_all_at(&0x00ff_ffffu32.to_be_bytes(), entry)
        .unwrap();
    let (code, report) = info(dir.path());
    assert_eq!(code, 1);
    let told = problems(&report, 0, "xvda.raw");
    assert!(
        told.contains(&format!("of block {block} leads past the end of the file")),
        "{told}"
    );

    let mount = BrfsMount::new(dir.path(), &[]);
    let disk = mount.join(format!("vms/{WEB}/{}/xvda.raw", written.points[0].date));
    read_block(&disk, block).unwrap_err();
    let told = attribute(&disk).unwrap();
    assert!(told.contains("leads past the end of the file"), "{told}");
}

#[test]
fn info_finds_blocks_that_are_missing_or_empty_without_reading() {
    for filter in [Filter::Brotli, Filter::Absent] {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng::new(33);
        let mut vm = Vm::new(&mut rng, "web");
        vm.uuid = "3f2a9c1e-1111-4222-8333-444455556666".to_owned();
        let disk = chain(&mut rng, 3, Storage::Dir(filter));
        vm.disk(&mut rng, "root", disk);
        let written = vm.write(dir.path());
        let (code, report) = info(dir.path());
        assert_eq!(code, 0, "{report:#}");

        let layers = &written.chains[0].layers;
        let (oldest, second) = (layers[0].dir(), layers[1].dir());
        let gone = oldest.blocks[0];
        fs::remove_file(oldest.block_path(gone)).unwrap();
        let emptied = *second.blocks.last().unwrap();
        fs::write(second.block_path(emptied), b"").unwrap();
        let (code, report) = info(dir.path());
        assert_eq!(code, 1);
        for point in 0..3 {
            let told = problems(&report, point, "xvda.raw");
            let missing = format!("block {gone} is missing, but allocated in the table");
            assert!(told.contains(&missing), "{filter:?} {point}: {told}");
            let wrong = format!("block {emptied}: is empty");
            assert_eq!(
                told.contains(&wrong),
                point > 0,
                "{filter:?} {point}: {told}"
            );
            assert_eq!(report["points"][point]["restorable"], false);
        }
    }
}

#[test]
fn blocks_that_a_merge_has_moved_are_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    let written = write_web(dir.path(), 34);
    let layers = &written.chains[1].layers;
    let (parent, child) = (layers[0].dir(), layers[1].dir());
    let moved = child.blocks[0];
    let to = parent.block_path(moved);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(child.block_path(moved), to).unwrap();
    let (code, report) = info(dir.path());
    assert_eq!(code, 1);
    let told = problems(&report, 1, "xvdb.raw");
    assert!(
        told.contains(&format!("block {moved} is missing")),
        "{told}"
    );

    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let (parent, child) = (name(&layers[0].head), name(&layers[1].head));
    let state =
        serde_json::json!({"chain": [parent, child], "step": "mergeBlocks", "currentBlock": 1});
    let at = written.chains[1]
        .vdi_dir
        .join(format!(".{parent}.merge.json"));
    fs::write(at, state.to_string()).unwrap();
    let (_, report) = info(dir.path());
    assert_eq!(problems(&report, 1, "xvdb.raw"), "[]");
}

#[test]
fn points_that_cannot_be_restored_end_with_1_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(35);
    let mut vm = web(&mut rng);
    vm.full_backups.push(SERIES_START_S + 86_400);
    let written = vm.write(dir.path());
    let root = dir.path().to_str().unwrap();
    let restorable = |report: &Value| -> Vec<bool> {
        let points = report["points"].as_array().unwrap().iter();
        points.map(|p| p["restorable"] == true).collect()
    };
    // A full backup is sound, and not read yet.
    let (code, listed) = brfs_json(&["ls", "--json", root, "3f2a"]);
    assert_eq!(
        (code, restorable(&listed)),
        (1, vec![true, true, true, false])
    );
    let (code, report) = info(dir.path());
    assert_eq!(
        (code, restorable(&report)),
        (1, vec![true, true, true, false])
    );
    let (code, listed) = brfs_json(&["ls", "--json", root, "3f2a", "latest"]);
    assert_eq!(
        (code, &listed["point"]["restorable"]),
        (1, &Value::Bool(false))
    );

    let lost = &written.chains[0].layers[1].head;
    fs::remove_file(lost).unwrap();
    let (code, listed) = brfs_json(&["ls", "--json", root, "3f2a"]);
    assert_eq!(
        (code, restorable(&listed)),
        (1, vec![true, false, true, false])
    );
    let told = listed["points"][1]["problems"].to_string();
    assert!(
        told.contains("its image") && told.contains("is missing"),
        "{told}"
    );
    let (code, _) = brfs_json(&["ls", "--json", root, "3f2a", &written.points[1].date]);
    assert_eq!(code, 1);
    // The youngest image is there, its parent is not.
    let (_, report) = info(dir.path());
    assert_eq!(restorable(&report), [true, false, false, false]);
}
