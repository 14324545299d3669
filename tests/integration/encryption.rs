//! Encrypted repositories: self-made ones, and those that XO's own code wrote where the whole set
//! of them is there.

use std::sync::Arc;
use std::time::Duration;

use brfs::codec::aead::Key;
use brfs::error::ErrorKind;
use brfs::image::DiskContext;
use brfs::repo::{Catalogue, open_encrypted};
use brfs::store::{EntryKind, LocalStore, Store, StorePath, Validity};
use brfs::views::repository_root_with;

use crate::seal::{KEY, seal};
use crate::tempdir::TempDir;
use crate::tree_walk::{must_find, names, read_all};

const ALGORITHMS: [&str; 3] = ["chacha20-poly1305", "aes-256-gcm", "aes-256-cbc"];
const OTHER_KEY: &str = "abcdef0123456789abcdef0123456789";
const VM: &str = "xo-vm-backups/a6e898cb-777d-4f29-a073-ec9ff70ed330";

fn path(text: &str) -> StorePath {
    StorePath::new(text).unwrap()
}

fn key(text: &str) -> Option<Key> {
    Some(Key::new(text).unwrap())
}

fn local(dir: &TempDir) -> Arc<dyn Store> {
    Arc::new(LocalStore::open(dir.path()).unwrap())
}

/// A minimal encrypted repository, with everything that stays in clear.
fn repository(algorithm: &str) -> TempDir {
    let dir = TempDir::new("encryption");
    let json = format!("{{\"algorithm\":\"{algorithm}\"}}");
    dir.write("encryption.json", json.as_bytes());
    let random = br#"{"random":"0a1b2c3d-0000-4000-8000-0123456789ab"}"#;
    dir.write("metadata.json", &seal(algorithm, KEY, random));
    dir.write("immutability.json", b"{\"immutable\":true}");
    dir.write(
        &format!("{VM}/20260301T013000Z.json"),
        &seal(algorithm, KEY, b"{\"mode\":\"full\"}"),
    );
    dir.write(
        &format!("{VM}/20260301T013000Z.xva"),
        &seal(algorithm, KEY, &[0x5A; 100_000]),
    );
    dir.write(&format!("{VM}/20260301T013000Z.xva.checksum"), b"$1$$00");
    dir
}

#[test]
fn the_right_key_opens_every_algorithm_and_clear_files_pass() {
    for algorithm in ALGORITHMS {
        let dir = repository(algorithm);
        let store = open_encrypted(local(&dir), key(KEY)).unwrap();
        let xva = path(&format!("{VM}/20260301T013000Z.xva"));
        let (data, meta) = store.read(&xva, 100_000, Validity::Ask).unwrap();
        assert_eq!((data.len(), meta.len_bytes), (100_000, 100_000));
        assert!(data.iter().all(|b| *b == 0x5A));
        let slack = if algorithm == "aes-256-cbc" { 16 } else { 0 };
        let told = store.head(&xva).unwrap().len_bytes;
        assert!((100_000..=100_000 + slack).contains(&told), "{told}");
        let clear = path(&format!("{VM}/20260301T013000Z.xva.checksum"));
        assert_eq!(store.read(&clear, 6, Validity::Ask).unwrap().0, "$1$$00");
        let clear = path("immutability.json");
        assert_eq!(
            store.read(&clear, 99, Validity::Ask).unwrap().1.len_bytes,
            18
        );
        assert!(store.describe().contains(algorithm));
    }
}

#[test]
fn limits_are_those_of_the_content() {
    for algorithm in ALGORITHMS {
        let dir = repository(algorithm);
        let store = open_encrypted(local(&dir), key(KEY)).unwrap();
        let json = path(&format!("{VM}/20260301T013000Z.json"));
        assert!(store.read(&json, 15, Validity::Ask).is_ok());
        let error = store.read(&json, 14, Validity::Ask).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn a_wrong_or_missing_key_is_one_error_at_once() {
    for algorithm in ALGORITHMS {
        let dir = repository(algorithm);
        let error = open_encrypted(local(&dir), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert!(error.to_string().contains("--encryption-key-file"));
        let error = open_encrypted(local(&dir), key(OTHER_KEY)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey, "{algorithm}");
        assert!(!format!("{error:?}").contains(OTHER_KEY));
    }
}

#[test]
fn damage_is_corrupt_and_names_the_object() {
    for algorithm in &ALGORITHMS[..2] {
        let dir = repository(algorithm);
        let name = format!("{VM}/20260301T013000Z.xva");
        let mut sealed = seal(algorithm, KEY, &[0x5A; 4096]);
        for at in [0, 12, 2000, sealed.len() - 1] {
            sealed[at] ^= 1;
            dir.write(&name, &sealed);
            sealed[at] ^= 1;
            let store = open_encrypted(local(&dir), key(KEY)).unwrap();
            for error in [
                store
                    .read(&path(&name), 1 << 20, Validity::Ask)
                    .unwrap_err(),
                store.open(&path(&name), None).err().unwrap(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert_eq!(error.object(), Some(name.as_str()));
            }
        }
        dir.write(&name, b"in clear, but longer than an iv and a tag");
        let store = open_encrypted(local(&dir), key(KEY)).unwrap();
        assert!(store.read(&path(&name), 1 << 20, Validity::Ask).is_err());
    }
}

#[test]
fn opened_files_read_at_offsets_and_refuse_what_is_not_there() {
    for algorithm in ALGORITHMS {
        let dir = TempDir::new("encryption-open");
        let content: Vec<u8> = (0..50_000u32).map(|i| (i % 251) as u8).collect();
        let json = format!("{{\"algorithm\":\"{algorithm}\"}}");
        dir.write("encryption.json", json.as_bytes());
        dir.write("metadata.json", &seal(algorithm, KEY, b"{}"));
        dir.write("disk.vhd", &seal(algorithm, KEY, &content));
        let store = open_encrypted(local(&dir), key(KEY)).unwrap();
        let file = store.open(&path("disk.vhd"), None).unwrap();
        assert_eq!(file.opened_meta().len_bytes, 50_000);
        assert_eq!(file.head().unwrap(), file.opened_meta());
        let mut buf = [0; 777];
        file.read_exact_at(&mut buf, 31_000).unwrap();
        assert_eq!(buf[..], content[31_000..31_777]);
        let error = file.read_exact_at(&mut buf, 49_500).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let error = file.read_exact_at(&mut buf, u64::MAX - 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn a_lost_metadata_json_is_replaced_by_a_backup_as_proof() {
    let dir = repository("aes-256-gcm");
    std::fs::remove_file(dir.path().join("metadata.json")).unwrap();
    // One damaged candidate must not make the right key look wrong.
    dir.write(&format!("{VM}/20260228T013000Z.json"), &[1; 99]);
    assert!(open_encrypted(local(&dir), key(KEY)).is_ok());
    let error = open_encrypted(local(&dir), key(OTHER_KEY)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
}

#[test]
fn a_lost_encryption_json_is_noticed() {
    for algorithm in ALGORITHMS {
        let dir = repository(algorithm);
        std::fs::remove_file(dir.path().join("encryption.json")).unwrap();
        let error = open_encrypted(local(&dir), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        let error = open_encrypted(local(&dir), key(OTHER_KEY)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        let store = open_encrypted(local(&dir), key(KEY)).unwrap();
        let json = path(&format!("{VM}/20260301T013000Z.json"));
        assert_eq!(
            store.read(&json, 99, Validity::Ask).unwrap().0,
            "{\"mode\":\"full\"}"
        );
    }
}

#[test]
fn clear_repositories_pass_with_and_without_their_files() {
    let dir = TempDir::new("clear");
    assert!(open_encrypted(local(&dir), None).is_ok());
    dir.write("metadata.json", b"{\"random\":\"x\"}");
    assert!(open_encrypted(local(&dir), None).is_ok());
    dir.write("encryption.json", b"{\"algorithm\":\"none\"}");
    let store = open_encrypted(local(&dir), key(KEY)).unwrap();
    assert_eq!(store.head(&path("metadata.json")).unwrap().len_bytes, 14);
    for bad in [&b"{\"algorithm\":"[..], b"{}", b"\xff\xff", b""] {
        dir.write("encryption.json", bad);
        let error = open_encrypted(local(&dir), key(KEY)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.object(), Some("encryption.json"));
    }
    dir.write("encryption.json", b"{\"algorithm\":\"rot13\"}");
    let error = open_encrypted(local(&dir), key(KEY)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

fn unbrotli(data: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut reader = brotlic::DecompressorReader::new(data);
    std::io::Read::read_to_end(&mut reader, &mut plain).unwrap();
    plain
}

#[test]
fn what_xen_orchestra_sealed_opens_completely() {
    let Some(set) = crate::support::golden::whole_set() else {
        return;
    };
    for name in ["enc-chacha20", "enc-aes256gcm"] {
        let clear: Arc<dyn Store> = Arc::new(LocalStore::open(&set.path(name)).unwrap());
        assert!(open_encrypted(clear.clone(), key(OTHER_KEY)).is_err());
        let store = open_encrypted(clear, key(KEY)).unwrap();
        let mut pending = vec![StorePath::root()];
        let mut files = 0;
        while let Some(dir) = pending.pop() {
            for entry in store.list(&dir).unwrap() {
                let path = dir.child(&entry.name);
                if entry.kind == EntryKind::Dir {
                    pending.push(path);
                    continue;
                }
                let (data, _) = store.read(&path, 4 << 20, Validity::Ask).unwrap();
                files += 1;
                match entry.name.as_str() {
                    // Compressed before they were sealed.
                    "footer" => assert_eq!(unbrotli(&data)[..8], *b"conectix"),
                    "header" => assert_eq!(unbrotli(&data)[..8], *b"cxsparse"),
                    "chunk-filters.json" => assert_eq!(data, "[\"brotli\"]"),
                    "cache.json.gz" => assert_eq!(data[..2], [0x1f, 0x8b]),
                    name if name.ends_with(".json") => {
                        serde_json::from_slice::<serde_json::Value>(&data).unwrap();
                    }
                    name if name.ends_with(".alias.vhd") => {
                        assert!(std::str::from_utf8(&data).unwrap().ends_with(".vhd"));
                    }
                    _ => {}
                }
            }
        }
        assert!(files > 50, "{files}");
    }
}

/// Padding hides how long a file is until it is read; what is shown has its real length all the same.
#[test]
fn metadata_is_shown_with_its_length_whatever_the_padding() {
    for algorithm in ALGORITHMS {
        let dir = repository(algorithm);
        for less in 0..16 {
            let json = format!("{{\"mode\":\"full\"{}}}", " ".repeat(16 - less));
            let sealed = seal(algorithm, KEY, json.as_bytes());
            dir.write(&format!("{VM}/20260301T013000Z.json"), &sealed);
            let store = open_encrypted(local(&dir), key(KEY)).unwrap();
            let disks = DiskContext::new(store.clone(), 8 << 20);
            let catalogue = Catalogue::new(store, Duration::ZERO);
            let root = repository_root_with(catalogue, disks, Default::default());
            let vms = must_find(&root, "vms");
            let vm = must_find(&vms, &names(&vms)[0]);
            let file = must_find(&vm, "20260301T013000Z|backup.json");
            let len = json.len() as u64;
            assert_eq!(file.base().quick_attr().unwrap().size_bytes, len);
            assert!(read_all(&file) == json.as_bytes(), "{algorithm} {less}");
        }
    }
}
