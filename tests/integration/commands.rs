//! `brfs ls` and `brfs info` over generated repositories.

use std::fs;
use std::path::Path;

use crate::support::chain::Storage;
use crate::support::dates::SERIES_START_S;
use crate::support::repo::Vm;
use crate::support::rng::Rng;
use crate::support::web::{WEB, chain, web};
use brfs::cli::{info, ls};
use serde_json::{Value, json};

fn ls_args(repository: &Path, vm: Option<&str>, point: Option<&str>) -> ls::Args {
    ls::Args {
        repository: Some(repository.to_str().unwrap().to_owned()),
        vm: vm.map(str::to_owned),
        point: point.map(str::to_owned),
        json: true,
        storage: Default::default(),
    }
}

fn run_ls(repository: &Path, vm: Option<&str>, point: Option<&str>) -> (bool, Value) {
    let args = ls_args(repository, vm, point);
    let mut out = Vec::new();
    let damaged = ls::list(&args, &mut out).unwrap();
    (damaged, serde_json::from_slice(&out).unwrap())
}

fn info_args(repository: &Path, wanted: &[&str], json: bool) -> info::Args {
    let word = |at: usize| wanted.get(at).map(|w| (*w).to_owned());
    info::Args {
        repository: Some(repository.to_str().unwrap().to_owned()),
        vm: word(0),
        point: word(1),
        disk: word(2),
        json,
        storage: Default::default(),
    }
}

fn run_info(repository: &Path, wanted: &[&str]) -> (bool, Value) {
    let mut text = Vec::new();
    info::info(&info_args(repository, wanted, false), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
    let mut out = Vec::new();
    let damaged = info::info(&info_args(repository, wanted, true), &mut out).unwrap();
    (damaged, serde_json::from_slice(&out).unwrap())
}

#[test]
fn ls_lists_vms_points_and_disks() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(14);
    let vm = web(&mut rng);
    vm.write(dir.path());
    let (damaged, vms) = run_ls(dir.path(), None, None);
    assert!(!damaged);
    assert_eq!(vms["vms"][0]["name"], "web-01 \"α\" / prod");
    assert_eq!(vms["vms"][0]["points"], 3);
    for name in ["3f2a", "web-01 \"α\" / prod", WEB, vm.uuid.as_str()] {
        let (_, points) = run_ls(dir.path(), Some(name), None);
        assert_eq!(points["points"][2]["name"], "20260301T033000Z", "{name}");
        assert_eq!(
            points["points"][2]["disks"],
            json!(["xvda.raw", "xvdb.raw"])
        );
    }
    for point in ["latest", "20260301T033000Z", "2026-03-01T03", "20260301T03"] {
        let (damaged, disks) = run_ls(dir.path(), Some("3f2a"), Some(point));
        assert!(!damaged);
        assert_eq!(disks["disks"][1]["compression"], "brotli");
        assert_eq!(disks["disks"][1]["chain_length"], 3);
        assert_eq!(disks["disks"][0]["size"], (3 << 20) + 1536);
    }
}

#[test]
fn what_is_not_there_is_answered_with_candidates() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(15);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    for (wanted, candidate) in [
        (vec!["nobody"], WEB),
        (vec!["3f2a", "2027"], "20260301T033000Z"),
        (vec!["3f2a", "20260301"], "20260301T013000Z"),
        (vec!["3f2a", "latest", "xvdz"], "xvda"),
    ] {
        let e = info::info(&info_args(dir.path(), &wanted, false), &mut Vec::new()).unwrap_err();
        assert!(format!("{e:#}").contains(candidate), "{e:#}");
    }
    let e = info::info(
        &info_args(Path::new("/nonexistent"), &[], false),
        &mut Vec::new(),
    );
    let e = e.unwrap_err();
    assert!(format!("{e:#}").contains("No such file"), "{e:#}");
    let image = written.chains[0].youngest();
    let e = info::info(&info_args(image, &["3f2a"], false), &mut Vec::new()).unwrap_err();
    assert!(format!("{e:#}").contains("a single .vhd"), "{e:#}");
    let url = Path::new("s3://key:hush@host/bucket");
    for wanted in [&[][..], &["3f2a"]] {
        let e = info::info(&info_args(url, wanted, false), &mut Vec::new()).unwrap_err();
        assert!(!format!("{e:#}").contains("hush"), "{e:#}");
    }
}

#[test]
fn info_tells_chains_and_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(16);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let (damaged, report) = run_info(dir.path(), &["3f2a", "latest", "xvda"]);
    assert!(!damaged, "{report:#}");
    let disk = &report["points"][0]["disk_reports"][0];
    assert_eq!(disk["chain"].as_array().unwrap().len(), 3);
    assert!(disk["allocated"].as_u64().unwrap() > 0);

    fs::write(&written.points[0].json_path, "{").unwrap();
    fs::write(written.chains[0].youngest(), "gone").unwrap();
    let lost = written.chains[1].layers[0].data();
    fs::remove_dir_all(lost).unwrap();
    fs::write(written.directory.join("cache.json.gz"), "x").unwrap();
    let vms = written.directory.parent().unwrap();
    fs::create_dir(vms.join(format!("{}.lock", vm.uuid))).unwrap();
    let (damaged, report) = run_info(dir.path(), &["3f2a"]);
    assert!(damaged);
    assert_eq!(report["notes"].as_array().unwrap().len(), 2, "{report:#}");
    let points = report["points"].as_array().unwrap();
    let states: Vec<bool> = points.iter().map(|p| p["damaged"] == true).collect();
    assert_eq!(states, [true, true, true]);
    let problems = |disk: usize| &points[1]["disk_reports"][disk]["problems"];
    assert_eq!(*problems(0), json!([]), "xvda of the second point is sound");
    assert_ne!(*problems(1), json!([]));
}

#[test]
fn a_vm_is_found_by_the_start_or_a_part_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(19);
    let uuids = [
        "3f2a9c1e-1111-4222-8333-444455556666",
        "db000000-1111-4222-8333-444455556666",
        "0a000000-1111-4222-8333-444455556666",
        "0b000000-1111-4222-8333-444455556666",
    ];
    let labels = ["web-01 \"α\" / prod", "Web-02", "db-main", "DB"];
    for (uuid, label) in uuids.iter().zip(labels) {
        let mut vm = Vm::new(&mut rng, label);
        vm.uuid = (*uuid).to_owned();
        vm.full_backups.push(SERIES_START_S);
        vm.write(dir.path());
    }
    for (text, found) in [
        ("web-01", 0),
        ("WEB-01", 0),
        ("web-01 \"α\" _", 0),
        ("\"Α\"", 0),
        ("02", 1),
        ("web-02", 1),
        ("db0", 1),
        ("db-", 2),
        ("main", 2),
        ("DB", 3),
        ("db", 3),
    ] {
        let (_, listed) = run_ls(dir.path(), Some(text), None);
        assert_eq!(listed["vm"]["uuid"], uuids[found], "{text}");
    }
    // A part that several have is told with all of them.
    for (text, candidates) in [
        ("web", &["web-01", "Web-02"][..]),
        ("d", &["db-main", "DB", "Web-02"]),
        ("b", &["web-01", "Web-02", "db-main", "DB"]),
        ("", &["web-01", "Web-02", "db-main", "DB"]),
    ] {
        let e = info::info(&info_args(dir.path(), &[text], false), &mut Vec::new()).unwrap_err();
        let told = format!("{e:#}");
        for candidate in candidates {
            assert!(told.contains(candidate), "{text}: {told}");
        }
    }
}

#[test]
fn info_tells_all_that_is_wrong_with_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(20);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let state = ".20260301T013000Z.vhd.merge.json";
    fs::write(written.chains[0].vdi_dir.join(state), "{").unwrap();
    // Two blocks at one place.
    let layer = written.chains[0].layers[1].file();
    let mut bytes = fs::read(&layer.path).unwrap();
    let entry = |n: u64| layer.bat_entry_offset(n) as usize;
    let first: Vec<u8> = bytes[entry(0)..entry(0) + 4].to_vec();
    bytes[entry(1)..entry(1) + 4].copy_from_slice(&first);
    fs::write(&layer.path, bytes).unwrap();
    let (damaged, report) = run_info(dir.path(), &["3f2a", "latest", "xvda"]);
    assert!(damaged);
    let told = report["points"][0]["disk_reports"][0]["problems"].to_string();
    assert!(told.contains("merge state cannot be used"), "{told}");
    assert!(told.contains("lie over each other"), "{told}");
}

#[test]
fn a_trailing_footer_that_a_merge_overwrote_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(21);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let layers = &written.chains[0].layers;
    let oldest = &layers[0].file().path;
    let mut bytes = fs::read(oldest).unwrap();
    let footer_at = bytes.len() - 512;
    bytes[footer_at..].fill(0x5a);
    fs::write(oldest, bytes).unwrap();
    let wanted = ["3f2a", "latest", "xvda"];
    let chain_end = |report: &Value| {
        let chain = &report["points"][0]["disk_reports"][0]["chain"];
        chain.as_array().unwrap().last().unwrap().clone()
    };
    let (damaged, report) = run_info(dir.path(), &wanted);
    assert!(damaged);
    let told = chain_end(&report)["problems"].to_string();
    assert!(told.contains("trailing footer"), "{told}");
    // For people each problem stands there once, with its image.
    let mut text = Vec::new();
    info::info(&info_args(dir.path(), &wanted, false), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("trailing footer").count(), 1, "{text}");

    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let (parent, child) = (name(oldest), name(&layers[1].file().path));
    let state = json!({"chain": [parent, child], "step": "mergeBlocks", "currentBlock": 1});
    let state_path = written.chains[0]
        .vdi_dir
        .join(format!(".{parent}.merge.json"));
    fs::write(state_path, state.to_string()).unwrap();
    let (damaged, report) = run_info(dir.path(), &wanted);
    assert!(!damaged, "{report:#}");
    let told = chain_end(&report)["notes"].to_string();
    assert!(told.contains("trailing footer"), "{told}");
}

#[test]
fn info_of_a_repository_tells_all_its_vms() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(22);
    web(&mut rng).write(dir.path());
    let mut other = Vm::new(&mut rng, "db");
    let disk = chain(&mut rng, 2, Storage::File);
    other.disk(&mut rng, "root", disk);
    let other = other.write(dir.path());
    let (damaged, report) = run_info(dir.path(), &[]);
    assert!(!damaged, "{report:#}");
    let vms = report["vms"].as_array().unwrap();
    let names: Vec<&Value> = vms.iter().map(|vm| &vm["vm"]["name"]).collect();
    assert_eq!(names, ["db", "web-01 \"α\" / prod"]);
    assert_eq!(vms[0]["points"].as_array().unwrap().len(), 2);
    assert_eq!(vms[1]["points"][2]["disk_reports"][0]["name"], "xvda.raw");
    assert_eq!(report["nameless"], json!([]));

    fs::write(other.chains[0].youngest(), "x").unwrap();
    let (damaged, report) = run_info(dir.path(), &[]);
    assert!(damaged);
    let states: Vec<bool> = ["0", "1"]
        .map(|at| report.pointer(&format!("/vms/{at}/damaged")) == Some(&json!(true)))
        .into();
    assert_eq!(states, [true, false]);
}

#[test]
fn images_that_no_restore_point_names_are_told_with_the_way_to_mount_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(23);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let relative = |path: &Path| {
        path.strip_prefix(dir.path())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    // One point's metadata is lost: nothing is damaged, and its images are told.
    fs::remove_file(&written.points[2].json_path).unwrap();
    let (damaged, report) = run_info(dir.path(), &["3f2a"]);
    assert!(!damaged, "{report:#}");
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("images that no restore point needs: 2"),
        "{notes}"
    );
    assert!(
        notes.contains(&relative(written.chains[1].youngest())),
        "{notes}"
    );

    // All of it is lost.
    for point in &written.points[..2] {
        fs::remove_file(&point.json_path).unwrap();
    }
    for (damaged, report) in [run_ls(dir.path(), None, None), run_info(dir.path(), &[])] {
        assert!(damaged);
        assert_eq!(report["vms"], json!([]));
        let nameless = &report["nameless"][0];
        assert_eq!(nameless["uuid"], vm.uuid);
        let images: Vec<&str> = nameless["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i.as_str().unwrap())
            .collect();
        assert_eq!(images.len(), 7, "{images:?}");
        for chain in &written.chains {
            for layer in &chain.layers {
                assert!(
                    images.contains(&relative(&layer.head).as_str()),
                    "{images:?}"
                );
            }
        }
    }
    let mut text = Vec::new();
    let args = ls::Args {
        json: false,
        ..ls_args(dir.path(), None, None)
    };
    assert!(ls::list(&args, &mut text).unwrap());
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("brfs mount REPOSITORY/IMAGE MOUNTPOINT"),
        "{text}"
    );
    assert!(
        text.contains(&vm.uuid) && !text.contains("No VM backups"),
        "{text}"
    );
    // What is said there is true.
    let image = written.chains[1].youngest();
    let (damaged, report) = run_info(image, &[]);
    assert!(!damaged, "{report:#}");
    assert_eq!(report["disk"]["chain_length"], 3);
}

#[test]
fn info_of_a_restore_point_tells_what_it_takes_to_build_the_vm_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(24);
    let mut vm = web(&mut rng);
    vm.tweak(|_, metadata| {
        metadata["vm"]["VCPUs_max"] = json!(8);
        metadata["vifs"] = json!({"OpaqueRef:1": {"device": "1", "MAC": "02:00:00:aa:bb:cc", "MTU": 1500,
            "$network$name_label": "DMZ\u{1b}[2J", "$network$uuid": "n", "$network$VLAN": -1}});
    });
    vm.write(dir.path());
    let (_, report) = run_info(dir.path(), &["3f2a", "latest"]);
    let hardware = &report["points"][0]["hardware"];
    assert_eq!(hardware["memory"], 2_147_483_648u64);
    assert_eq!(
        (&hardware["vcpus"], &hardware["vcpus_max"]),
        (&json!(2), &json!(8))
    );
    assert_eq!(hardware["firmware"], "uefi");
    assert_eq!(hardware["network_cards"][0]["mac"], "02:00:00:aa:bb:cc");
    assert_eq!(hardware["network_cards"][0]["vlan"], Value::Null);
    let mut text = Vec::new();
    info::info(
        &info_args(dir.path(), &["3f2a", "latest"], false),
        &mut text,
    )
    .unwrap();
    let text = String::from_utf8(text).unwrap();
    for line in [
        "  hardware: 2 vCPUs (at most 8), 2.0 GiB memory, HVM, firmware UEFI, boot order cdn\n",
        "  network card 1: MAC 02:00:00:aa:bb:cc, network \"DMZ\\u{1b}[2J\", MTU 1500\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_vm_with_an_odd_name_shows_its_name_and_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(25);
    let long = "x".repeat(300);
    for (uuid, label) in [
        ("3f2a9c1e", ".."),
        ("3f2a9c1f", long.as_str()),
        ("3f2a9c20", "db"),
    ] {
        let mut vm = Vm::new(&mut rng, label);
        vm.uuid = format!("{uuid}-1111-4222-8333-444455556666");
        vm.full_backups.push(SERIES_START_S);
        vm.write(dir.path());
    }
    let mut text = Vec::new();
    let args = ls::Args {
        json: false,
        ..ls_args(dir.path(), None, None)
    };
    ls::list(&args, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\n\"..\" "), "{text}");
    assert!(
        text.contains("\n\"..\" is vms/_. (3f2a9c1e) in a mount\n"),
        "{text}"
    );
    let db = text.lines().find(|line| line.starts_with("db ")).unwrap();
    assert!(db.len() < 140, "{db}");
    assert!(!text.contains("\ndb is"), "{text}");
    // It is found by its name, and by its folder.
    for name in ["..", "_. (3f2a9c1e)"] {
        let (_, listed) = run_ls(dir.path(), Some(name), None);
        assert_eq!(listed["vm"]["folder"], "_. (3f2a9c1e)");
    }
}

#[test]
fn encrypted_repositories_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(17);
    web(&mut rng).write(dir.path());
    fs::write(
        dir.path().join("encryption.json"),
        r#"{"algorithm":"aes-256-gcm"}"#,
    )
    .unwrap();
    let args = info_args(dir.path(), &["3f2a"], false);
    let e = info::info(&args, &mut Vec::new()).unwrap_err();
    assert!(
        format!("{e:#}").contains("encrypted with aes-256-gcm"),
        "{e:#}"
    );
}
