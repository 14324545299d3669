//! What else lies about in repositories: locks, temporary files, indexes, leftovers, foreign files.
//! None of it is a VM or a restore point, and none of it may disturb a listing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::files::{write_file, write_hole};
use super::rng::Rng;

/// Adds clutter at the top of the repository and around its VMs.
pub fn around_vms(repository: &Path, rng: &mut Rng) {
    let vms = repository.join("xo-vm-backups");
    // proper-lockfile makes a directory for each lock, next to what it locks.
    fs::create_dir_all(vms.join(format!("{}.lock", rng.uuid_text()))).unwrap();
    fs::create_dir_all(vms.join(".lock")).unwrap();
    write_file(&vms.join(".nfs000000000001"), b"unlinked while open");
    write_file(&vms.join("README.txt"), b"left here by a person");
    // A VM without anything, and one whose restore points are all gone.
    fs::create_dir_all(vms.join(rng.uuid_text())).unwrap();
    let emptied = vms.join(rng.uuid_text());
    fs::create_dir_all(emptied.join("vdis").join(rng.uuid_text())).unwrap();
    write_file(&emptied.join("cache.json.gz"), &super::repo::gzip(b"{}"));
    // A file where a directory is expected.
    write_file(&vms.join(rng.uuid_text()), b"not a directory");
    fs::create_dir_all(vms.join("not-a-uuid")).unwrap();
    // XO's command for readable names makes folders of links; a link to nowhere among them.
    let index = vms.join("indexes").join("by-name");
    fs::create_dir_all(&index).unwrap();
    symlink("../../gone", index.join("some vm")).unwrap();
    symlink("../..", index.join("loop")).unwrap();

    let schedule = rng.uuid_text();
    let config = repository.join("xo-config-backups").join(&schedule);
    write_file(&config.join("20260301T013000Z/metadata.json"), b"{}");
    write_file(&config.join("20260301T013000Z/data.json"), b"{}");
    let pool = repository
        .join("xo-pool-metadata-backups")
        .join(schedule)
        .join(rng.uuid_text());
    write_file(&pool.join("20260301T013000Z/data"), b"<xapi/>");
    write_file(&repository.join(".test-file"), b"");
    fs::create_dir_all(repository.join("lost+found")).unwrap();
    fs::create_dir_all(repository.join("@eaDir")).unwrap();
}

/// Adds clutter inside a VM's directory.
pub fn inside_vm(vm: &Path, rng: &mut Rng) {
    write_file(&vm.join(".20260101T000000Z.json.tmp"), b"{\"mode\":");
    write_file(&vm.join("20260101T000000Z.json.bak"), b"{}");
    write_file(&vm.join("notes.json"), b"{}");
    write_file(&vm.join("Thumbs.db"), b"\x00\x01");
    fs::create_dir_all(vm.join("cache.json.gz.lock")).unwrap();
    fs::create_dir_all(vm.join("20260102T000000Z.json")).unwrap();
    // An XVA whose metadata was never written, and a checksum without its file.
    write_hole(&vm.join(".20260103T000000Z.xva"), 4096);
    write_hole(&vm.join("20260104T000000Z.xva"), 4096);
    write_file(&vm.join("20260105T000000Z.xva.checksum"), b"$1$$0");
    // A VHD that no restore point names.
    let vdi = vm.join("vdis").join(rng.uuid_text()).join(rng.uuid_text());
    write_hole(&vdi.join("20260101T000000Z.vhd"), 512);
    write_file(&vdi.join("20260101T000000Z.vhd.checksum"), b"$1$$0");
    write_file(&vdi.join("20260102T000000Z.alias.vhd"), b"data/gone.vhd");
}
