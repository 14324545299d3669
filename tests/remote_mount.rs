//! Repositories that Xen Orchestra's own code wrote, served by real object stores and mounted by the
//! real program with XO's URL: every disk of every restore point has its sum, the commands tell the
//! same as on a local directory, and the secrets of the URL are nowhere to be seen.
#![cfg(feature = "s3")]

mod support;

#[path = "support/s3_server.rs"]
mod s3_server;
#[allow(dead_code)] // Other tests need more of it.
#[path = "support/tempdir.rs"]
mod tempdir;
#[path = "support/upload.rs"]
mod upload;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use support::brfs::{BrfsMount, brfs_json};
use support::golden::{self, DATES, Repository, SIZES, Set, VM_FOLDER};
use support::mountpoint::can_mount;
use tempdir::TempDir;
use upload::Server;

const DISKS: [&str; 2] = ["xvda.raw", "xvdb.raw"];
const KEY: &str = "0123456789abcdef0123456789abcdef";

/// A file that only its owner may read.
fn private_file(dir: &TempDir, name: &str, content: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn check_disks(set: &Set, repository: &Repository, mount: &BrfsMount) {
    let vm = mount.join("vms").join(VM_FOLDER);
    for (point, date) in DATES.iter().enumerate().skip(repository.first) {
        for (disk, name) in DISKS.iter().enumerate() {
            let path = vm.join(date).join(name);
            let what = format!("{} {date} {name}", repository.name);
            assert_eq!(fs::metadata(&path).unwrap().len(), SIZES[disk], "{what}");
            if disk < repository.disks {
                assert_eq!(golden::sha256(&path), set.sum(disk, point), "{what}");
            } else {
                let e = fs::File::open(&path).expect_err("opened a missing disk");
                assert_eq!(e.raw_os_error(), Some(5), "{what}: {e}");
            }
        }
    }
}

/// Object stores hold VHD directories only: XO cannot merge files there.
fn check_set(set: &Set, server: &Server, prefix: &str) {
    for repository in set.repositories.iter().filter(|r| !r.has_files()) {
        let name = format!("{prefix}{}", repository.name);
        let url = server.upload(&set.path(repository.name), &name);
        let mount = BrfsMount::new(Path::new(&url), &[]);
        check_disks(set, repository, &mount);
    }
}

/// The encrypted repositories, where the whole set is there.
fn check_encrypted(server: &Server) {
    let Some(set) = golden::whole_set() else {
        return;
    };
    let private = TempDir::new("remote-key");
    let key_file = private_file(&private, "key", &format!("{KEY}\n"));
    for name in ["enc-chacha20", "enc-aes256gcm"] {
        let repository = Repository {
            name,
            disks: 2,
            first: 0,
            compression: "brotli",
        };
        let url = server.upload(&set.path(name), name);
        let mount = BrfsMount::new(
            Path::new(&url),
            &["--encryption-key-file", key_file.to_str().unwrap()],
        );
        check_disks(&set, &repository, &mount);
    }
}

#[test]
fn golden_restore_points_read_right_from_an_s3_server() {
    if can_mount() {
        check_set(&golden::set(), &Server::own(), "golden-");
    }
}

#[test]
fn encrypted_restore_points_read_right_from_an_s3_server() {
    if can_mount() {
        check_encrypted(&Server::own());
    }
}

/// See `support/upload.rs`.
#[test]
fn restore_points_read_right_from_another_server() {
    let Some(server) = Server::other().filter(|_| can_mount()) else {
        eprintln!("skipped: BRFS_TEST_S3_URL is not set");
        return;
    };
    check_set(&golden::set(), &server, "mounted-");
    check_encrypted(&server);
}

#[test]
fn ls_and_info_tell_of_a_bucket_what_they_tell_of_a_directory() {
    let set = golden::set();
    let server = Server::own();
    for name in ["vhddir-brotli", "midmerge-dir"] {
        let local = set.path(name);
        let url = server.upload(&local, name);
        for command in ["ls", "info"] {
            let of = |repository: &str| {
                let mut arguments = vec![command, "--json", repository];
                if command == "info" {
                    arguments.extend(["web-01", "latest"]);
                }
                brfs_json(&arguments)
            };
            let (status, mut here) = of(local.to_str().unwrap());
            let (status_there, mut there) = of(&url);
            assert_eq!(status, status_there, "{command} {name}");
            for told in [&mut here, &mut there] {
                if let Some(told) = told.as_object_mut() {
                    told.remove("repository");
                }
            }
            assert_eq!(here, there, "{command} {name}");
        }
    }
}

/// The processes that serve this mount point.
fn servers_of(mountpoint: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let serves = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("brfs") && line.contains(mountpoint.to_str().unwrap())
    };
    processes.map(|p| p.path()).filter(serves).collect()
}

#[test]
fn secrets_of_a_url_are_seen_nowhere() {
    if !can_mount() {
        return;
    }
    let server = Server::own();
    let url = server.upload(&golden::set().path("vhddir-brotli"), "secret");
    let private = TempDir::new("remote-secrets");
    let url_file = private_file(&private, "url", &format!("{url}\n"));
    let log = private.path().join("log");
    let log_flag = ["--log-file", log.to_str().unwrap(), "-vv"];
    // As an argument; and as people should do it.
    let typed = BrfsMount::new(Path::new(&url), &log_flag);
    let arguments = [&["--repository-file"], &log_flag[..]].concat();
    let told = BrfsMount::with_flags_first(&arguments[..1], &url_file, &arguments[1..]);
    for mount in [&typed, &told] {
        assert!(mount.join("vms").join(VM_FOLDER).is_dir());
        let servers = servers_of(mount.path());
        assert!(!servers.is_empty());
        let mut seen = vec![fs::read_to_string("/proc/mounts").unwrap()];
        for process in servers {
            for file in ["cmdline", "environ"] {
                let bytes = fs::read(process.join(file)).unwrap();
                seen.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        let log = fs::read_to_string(&log).unwrap();
        assert!(log.contains("mounted at"), "{log}");
        seen.push(log);
        for text in seen {
            for secret in ["with+odd", "with%2Bodd"] {
                let line = text.lines().find(|line| line.contains(secret));
                assert!(line.is_none(), "{line:?}");
            }
        }
    }
}

#[test]
fn a_second_mount_with_a_cache_directory_says_that_it_fetched_no_block() {
    if !can_mount() {
        return;
    }
    let set = golden::set();
    let server = Server::own();
    let url = server.upload(&set.path("vhddir-brotli"), "cached");
    let cache = TempDir::new("remote-cache");
    let dir = cache.path().join("blocks");
    let read = || {
        let mount = BrfsMount::new(Path::new(&url), &["--cache-dir", dir.to_str().unwrap()]);
        let disk = mount.join("vms").join(VM_FOLDER).join("latest/xvda.raw");
        assert_eq!(golden::sha256(&disk), set.sum(0, 3));
        let (status, stats) = brfs_json(&["stats", "--json", mount.path().to_str().unwrap()]);
        assert_eq!(status, 0);
        let shown = support::brfs::brfs(&["stats", mount.path().to_str().unwrap()]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("blocks on disk:"), "{shown}");
        assert!(!format!("{stats}{shown}").contains("with"), "{shown}");
        stats["storage"].clone()
    };
    let (first, second) = (read(), read());
    let written = first["disk_cache"]["writes"].as_u64().unwrap();
    assert!(written > 10, "{first:#}");
    assert_eq!(second["disk_cache"]["hits"], written);
    assert_eq!(second["disk_cache"]["misses"], 0);
    let bytes = |stats: &serde_json::Value| stats["get"]["bytes"].as_u64().unwrap();
    assert!(bytes(&second) * 10 < bytes(&first), "{second:#}");
    let none = support::brfs::brfs(&["stats", cache.path().to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(2));
}
