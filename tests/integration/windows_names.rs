//! `--windows-names`: names that Samba can show, through a real mount, and the way back.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::brfs::BrfsMount;
use crate::support::chain::{Chain, Storage};
use crate::support::mountpoint::{TempDir, can_mount, has_program, needs, sh};
use crate::support::repo::Vm;
use crate::support::rng::Rng;

const UUID: &str = "3f2a9c1e-1111-4222-8333-444455556666";

fn names(dir: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// Names of a guest's files, and how they are shown.
fn guest_names() -> Vec<(OsString, OsString)> {
    let long = ":".repeat(255);
    let mut names: Vec<(OsString, OsString)> = [
        ("plain", "plain"),
        ("a:b", "a%3Ab"),
        ("a%3Ab", "a%253Ab"),
        ("con.txt", "%63on.txt"),
        ("dot.", "dot%2E"),
        ("100%", "100%"),
    ]
    .map(|(name, shown)| (name.into(), shown.into()))
    .into();
    let latin = OsStr::from_bytes(b"latin\xe9").to_owned();
    names.push((latin, "latin%E9".into()));
    names.push((long.into(), OsString::new()));
    names
}

/// A repository with a VM of an awkward name, on whose disk an ext4 with awkward names lies.
fn repository(scratch: &Path) -> std::path::PathBuf {
    let tree = scratch.join("tree");
    fs::create_dir_all(tree.join("d:ir")).unwrap();
    for (name, _) in guest_names() {
        fs::write(tree.join(&name), name.as_bytes()).unwrap();
    }
    fs::write(tree.join("d:ir/what?"), "inside").unwrap();
    symlink("d:ir/what?", tree.join("link")).unwrap();
    let image = scratch.join("image.raw");
    sh(&format!(
        "truncate -s 8M {image:?}
         PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -d {tree:?} {image:?} 2>&1"
    ));
    let mut rng = Rng::new(0x77696e);
    let mut chain = Chain::new();
    let bytes = fs::read(&image).unwrap();
    let layer = chain
        .push(&mut rng, bytes.len() as u64)
        .storage(Storage::File);
    for (index, piece) in bytes.chunks(65536).enumerate() {
        if piece.iter().any(|&b| b != 0) {
            layer.writes.write_bytes(index as u64 * 128, piece);
        }
    }
    let mut vm = Vm::new(&mut rng, "WEG14:BÜRO \"x\"");
    vm.uuid = UUID.to_owned();
    vm.disk(&mut rng, "root", chain);
    let repository = scratch.join("repository");
    vm.write(&repository);
    repository
}

#[test]
fn names_are_shown_as_windows_takes_them_and_lead_back() {
    if !can_mount() || !needs("mkfs.ext4", has_program("mkfs.ext4")) {
        return;
    }
    let dir = TempDir::new();
    let repository = repository(dir.path());
    for flags in [&["--windows-names"][..], &["-o", "windows_names"]] {
        let mount = BrfsMount::new(&repository, flags);
        let vm = "WEG14%3ABÜRO %22x%22 (3f2a9c1e)";
        assert_eq!(names(&mount.join("vms")), [OsString::from(vm)].into());
        assert!(!mount.join("vms/WEG14:BÜRO \"x\" (3f2a9c1e)").exists());
        let latest = mount.join(format!("vms/{vm}/latest"));
        // Links lead to the names that are shown.
        for way in [
            format!("by-uuid/{UUID}"),
            format!("by-date/2026-03-01/{vm}/20260301T013000Z"),
        ] {
            let way = mount.join(way);
            let seen = fs::metadata(&way).unwrap_or_else(|e| panic!("{way:?}: {e}"));
            assert!(seen.is_dir());
            let target = fs::read_link(&way).unwrap();
            let len = fs::symlink_metadata(&way).unwrap().len();
            assert_eq!(len, target.as_os_str().len() as u64);
        }
        let root = latest.join("xvda");
        let listed = names(&root);
        assert_eq!(listed.len(), guest_names().len() + 3, "{listed:?}");
        for (name, shown) in guest_names() {
            let shown = match shown.is_empty() {
                false => shown,
                // Too long: it is cut, and found all the same.
                true => {
                    let cut = |n: &&OsString| n.as_bytes().windows(2).any(|two| two == b"%~");
                    listed.iter().find(cut).unwrap().clone()
                }
            };
            assert!(listed.contains(&shown), "{shown:?} of {listed:?}");
            // Each file holds its own name.
            assert_eq!(fs::read(root.join(&shown)).unwrap(), name.as_bytes());
            // (One of them is called as another is shown.)
            if !listed.contains(&name) {
                let e = fs::metadata(root.join(&name)).unwrap_err();
                assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "{name:?}");
            }
        }
        assert_eq!(fs::read(root.join("d%3Air/what%3F")).unwrap(), b"inside");
        assert_eq!(fs::read(root.join("link")).unwrap(), b"inside");
    }
    let plain = BrfsMount::new(&repository, &[]);
    assert!(plain.join("vms/WEG14:BÜRO \"x\" (3f2a9c1e)").is_dir());
}
