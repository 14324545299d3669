//! Repositories that Xen Orchestra's own code wrote, served by real object stores and mounted by the
//! real program with XO's URL: every disk of every restore point has its sum, the commands tell the
//! same as on a local directory, and the secrets of the URL are nowhere to be seen.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::fault_server::{Bucket, FaultServer};
use crate::seal::KEY;
use crate::support::blocks::Bitmaps;
use crate::support::brfs::{BrfsMount, brfs_json};
use crate::support::chain::{Chain, Storage};
use crate::support::far::files_of;
use crate::support::golden::{self, DATES, Repository, SIZES, Set, VM_FOLDER};
use crate::support::mountpoint::can_mount;
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::tempdir::TempDir;
use crate::upload::{SECRET_IN_URL, Server};

const DISKS: [&str; 2] = ["xvda.raw", "xvdb.raw"];

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
        let set = golden::whole_set().unwrap_or_else(golden::set);
        check_set(&set, &Server::own(), "golden-");
    }
}

#[test]
fn encrypted_restore_points_read_right_from_an_s3_server() {
    if can_mount() {
        check_encrypted(&Server::own());
    }
}

#[test]
fn a_single_disk_of_files_is_mounted_by_its_url_and_read_in_blocks() {
    if !can_mount() {
        return;
    }
    let rng = &mut Rng::new(11);
    let size = 24 << 20;
    let mut chain = Chain::new();
    for n in 0..2 {
        chain
            .push(rng, size)
            .storage(Storage::File)
            .bitmaps(Bitmaps::Partial)
            .write(n * 5000, 40_000, Fill::Random(n));
    }
    let dir = TempDir::new("single");
    let written = chain.write(dir.path());
    let name = written.youngest().file_name().unwrap().to_str().unwrap();
    let server = Server::own();
    let url = server.upload(dir.path(), "disks");
    let url = url.replace('#', &format!("/{name}#"));
    for (command, disk) in [("ls", "/disks/0"), ("info", "/disk")] {
        let (status, told) = brfs_json(&[command, "--json", &url]);
        assert_eq!(status, 0, "{told}");
        assert_eq!(told.pointer(disk).unwrap()["chain_length"], 2, "{told}");
    }
    let mount = BrfsMount::new(Path::new(&url), &[]);
    let bytes = fs::read(mount.join("disk.raw")).unwrap();
    assert!(bytes == chain.read(1, 0, size as usize));
    let (_, stats) = brfs_json(&["stats", "--json", mount.path().to_str().unwrap()]);
    let requests = |kind: &str| stats["storage"][kind]["requests"].as_u64().unwrap();
    // Each of the 12 blocks once of either image; and both ends of both files, each time they are
    // opened.
    let blocks = requests("get_range");
    assert!((20..=2 * 12 + 2 * 4).contains(&blocks), "{blocks} ranges");
    assert!(requests("head") <= 2 * 2 + 1, "{stats}");
}

/// See `support/upload.rs`.
#[test]
fn restore_points_read_right_from_another_server() {
    let Some(server) = Server::other().filter(|_| can_mount()) else {
        eprintln!("skipped: BRFS_TEST_S3_URL is not set");
        return;
    };
    let set = golden::whole_set().unwrap_or_else(golden::set);
    check_set(&set, &server, "mounted-");
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

/// The repository in a server that lists ETags, as every provider does and `s3s-fs` does not; and its
/// URL.
fn serve(repository: &Path) -> (FaultServer, String) {
    let mut bucket = Bucket::new("bucket", &[]);
    let mut pending = vec![repository.to_owned()];
    while let Some(dir) = pending.pop() {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let key = path.strip_prefix(repository).unwrap().to_str().unwrap();
            let content = fs::read(&path).unwrap();
            bucket.objects.insert(format!("dir/{key}"), content);
        }
    }
    let server = FaultServer::start(move |seen| bucket.answer(seen));
    let address = server.address;
    let url = format!("s3+http://AKIATEST:{SECRET_IN_URL}@{address}/bucket/dir#us-east-1");
    (server, url)
}

/// What a mount with a cache directory has asked of its storage after somebody looked at all there
/// is and read a disk.
fn look_around(url: &str, cache: &Path, key: &[&str], set: &Set) -> serde_json::Value {
    let flags = [&["--cache-dir", cache.to_str().unwrap()], key].concat();
    let mount = BrfsMount::new(Path::new(url), &flags);
    let vm = mount.join("vms").join(VM_FOLDER);
    assert_eq!(fs::read_dir(&vm).unwrap().count(), DATES.len() + 1);
    for date in DATES {
        let json = fs::read(vm.join(date).join("backup.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&json).unwrap();
    }
    assert_eq!(golden::sha256(&vm.join("latest/xvda.raw")), set.sum(0, 3));
    let (status, stats) = brfs_json(&["stats", "--json", mount.path().to_str().unwrap()]);
    assert_eq!(status, 0);
    let shown = crate::support::brfs::brfs(&["stats", mount.path().to_str().unwrap()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("kept on disk:"), "{shown}");
    assert!(!format!("{stats}{shown}").contains("with"), "{shown}");
    stats["storage"].clone()
}

fn check_second_mount(url: &str, cache: &Path, key: &[&str], set: &Set) {
    let look = || look_around(url, cache, key, set);
    let (first, second) = (look(), look());
    let written = first["disk_cache"]["writes"].as_u64().unwrap();
    assert!(written > 10, "{first:#}");
    for request in ["get", "get_range"] {
        assert_eq!(second[request]["requests"], 0, "{second:#}");
    }
    let told = &second["disk_cache"];
    assert!(told["hits"].as_u64().unwrap() > 10, "{second:#}");
    assert_eq!((&told["misses"], &told["damaged"]), (&0.into(), &0.into()));
    // Two at once.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(look);
        }
    });
}

#[test]
fn a_second_mount_with_a_cache_directory_fetches_nothing() {
    if !can_mount() {
        return;
    }
    let set = golden::set();
    let (_server, url) = serve(&set.path("vhddir-brotli"));
    let cache = TempDir::new("remote-cache");
    check_second_mount(&url, &cache.path().join("kept"), &[], &set);
    let none = crate::support::brfs::brfs(&["stats", cache.path().to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(2));
}

/// An encrypted copy of a repository.
fn sealed_copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => sealed_copy(&from, &to),
            false => {
                let content = fs::read(&from).unwrap();
                fs::write(&to, crate::seal::seal("chacha20-poly1305", KEY, &content)).unwrap();
            }
        }
    }
}

#[test]
fn what_is_kept_of_an_encrypted_repository_is_as_encrypted() {
    if !can_mount() {
        return;
    }
    let set = golden::set();
    let private = TempDir::new("remote-sealed");
    let sealed = private.path().join("sealed");
    sealed_copy(&set.path("vhddir-brotli"), &sealed);
    let json = br#"{"algorithm":"chacha20-poly1305"}"#;
    fs::write(sealed.join("encryption.json"), json).unwrap();
    let proof = crate::seal::seal("chacha20-poly1305", KEY, br#"{"random":"x"}"#);
    fs::write(sealed.join("metadata.json"), proof).unwrap();
    let (_server, url) = serve(&sealed);
    let cache = private.path().join("kept");
    let key = private_file(&private, "key", KEY);
    let key = ["--encryption-key-file", key.to_str().unwrap()];
    check_second_mount(&url, &cache, &key, &set);

    // Nothing of the clear files is in the directory: their beginnings are looked for, and names.
    let mut kept = Vec::new();
    for file in files_of(&cache) {
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        kept.push(fs::read(file).unwrap());
    }
    assert!(kept.len() > 20);
    let mut secret: Vec<Vec<u8>> =
        vec![b"web-01".to_vec(), b"vdis/".to_vec(), b"conectix".to_vec()];
    let mut pending = vec![set.path("vhddir-brotli")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => secret.push(
                    fs::read(entry.path())
                        .unwrap()
                        .into_iter()
                        .take(48)
                        .collect(),
                ),
            }
        }
    }
    secret.retain(|bytes| bytes.len() > 4);
    let holds = |kept: &Vec<u8>, bytes: &[u8]| kept.windows(bytes.len()).any(|w| w == bytes);
    // (Up to 16 KiB of each: the beginnings would be there.)
    for kept in &mut kept {
        kept.truncate(16 << 10);
    }
    for bytes in secret.iter().take(60) {
        assert!(!kept.iter().any(|kept| holds(kept, bytes)), "{bytes:?}");
    }

    // The directory opens nothing: the key is asked for and proved as ever.
    let at = private.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let other = private_file(&private, "other", "abcdef0123456789abcdef0123456789");
    let (at, cache) = (at.to_str().unwrap(), cache.to_str().unwrap());
    for (flags, said) in [
        (vec![], "is encrypted with"),
        (
            vec!["--encryption-key-file", other.to_str().unwrap()],
            "not the key",
        ),
    ] {
        let arguments = [&["mount", &url, at, "--cache-dir", cache], &flags[..]].concat();
        let output = crate::support::brfs::brfs(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains(said), "{errors}");
        assert_eq!(output.status.code(), Some(2));
    }
}
