//! One suite for every store: whatever the layers above rely on must hold on local directories
//! and on object storage alike, and as well through decryption.

use std::collections::BTreeMap;
use std::sync::Arc;

use brfs::config::{Location, StoreOptions};
use brfs::error::{Error, ErrorKind};
use brfs::repo::open_encrypted;
use brfs::store::{Entry, EntryKind, Store, StorePath, Validity};

use crate::tempdir::TempDir;

/// More names than fit into one page of a listing.
const MANY: usize = 1205;
const BIG: usize = (10 << 20) + 5;

fn big() -> Vec<u8> {
    (0..BIG).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// What every store is filled with before the suite runs.
fn content() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut add = |name: &str, data: &[u8]| files.insert(name.to_owned(), data.to_vec());
    add("metadata.json", b"{\"random\":\"x\"}");
    add("empty", b"");
    add("dir/big.vhd", &big());
    add("dir/sub/deep/leaf", b"leaf");
    add("dir/.hidden.merge.json", b"{}");
    add("odd/a+b c.json", b"plus");
    add("odd/100%25 é 日本.json", b"unicode");
    add("odd/sp ace/x", b"x");
    for n in 0..MANY {
        add(&format!("many/{n}"), n.to_string().as_bytes());
    }
    files
}

fn path(text: &str) -> StorePath {
    StorePath::new(text).unwrap()
}

fn listing(store: &dyn Store, dir: &str) -> BTreeMap<String, Entry> {
    let entries = store.list(&path(dir)).unwrap();
    let count = entries.len();
    let map: BTreeMap<_, _> = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
    assert_eq!(map.len(), count, "a name is listed twice");
    map
}

fn names(store: &dyn Store, dir: &str) -> Vec<(String, EntryKind)> {
    let entries = listing(store, dir);
    entries.into_values().map(|e| (e.name, e.kind)).collect()
}

fn suite(store: &Arc<dyn Store>) {
    lists(&**store);
    reads(&**store);
    opens(&**store);
    opens_as_listed(&**store);
    missing(&**store);
    serves_many_threads(store);
}

fn lists(store: &dyn Store) {
    use EntryKind::{Dir, File};
    let root: Vec<_> = names(store, "")
        .into_iter()
        .filter(|(name, _)| name != "encryption.json")
        .collect();
    let expected = [
        ("dir", Dir),
        ("empty", File),
        ("many", Dir),
        ("metadata.json", File),
        ("odd", Dir),
    ];
    assert_eq!(root, expected.map(|(name, kind)| (name.to_owned(), kind)));
    let expected = [
        (".hidden.merge.json", File),
        ("big.vhd", File),
        ("sub", Dir),
    ];
    assert_eq!(
        names(store, "dir"),
        expected.map(|(name, kind)| (name.to_owned(), kind))
    );
    let mut expected = ["a+b c.json", "100%25 é 日本.json", "sp ace"];
    expected.sort();
    let odd: Vec<String> = names(store, "odd").into_iter().map(|(n, _)| n).collect();
    assert_eq!(odd, expected);
    assert_eq!(names(store, "odd/sp ace").len(), 1);
    let many = listing(store, "many");
    assert_eq!(many.len(), MANY);
    assert!((0..MANY).all(|n| many.contains_key(&n.to_string())));
    for (name, entry) in listing(store, "dir") {
        if let Some(meta) = entry.meta {
            let head = store.head(&path("dir").child(&name)).unwrap();
            assert_eq!(meta, head, "{name}");
        }
    }
}

fn reads(store: &dyn Store) {
    for (name, data) in content() {
        if name.starts_with("many/") && !name.ends_with("99") {
            continue;
        }
        let path = path(&name);
        let len = data.len() as u64;
        let (found, meta) = store.read(&path, len, Validity::Ask).unwrap();
        assert!(found == data, "{name}");
        assert_eq!(meta.len_bytes, len, "{name}");
        assert!(meta.modified.is_some());
        assert_eq!(store.head(&path).unwrap(), meta, "{name}");
        assert_eq!(
            store.read(&path, u64::MAX, Validity::Ask).unwrap().0.len() as u64,
            len
        );
        if len > 0 {
            let error = store.read(&path, len - 1, Validity::Ask).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
            assert_eq!(error.object(), Some(name.as_str()));
        }
    }
}

fn opens(store: &dyn Store) {
    let data = big();
    let file = store.open(&path("dir/big.vhd"), None).unwrap();
    assert_eq!(file.opened_meta().len_bytes, BIG as u64);
    assert_eq!(file.head().unwrap(), file.opened_meta());
    for (start, len) in [
        (0, 1),
        (0, BIG),
        (BIG - 1, 1),
        (511, 513),
        ((8 << 20) - 3, 7),
        (BIG, 0),
        (12_345, 0),
    ] {
        let mut buf = vec![0xEE; len];
        file.read_exact_at(&mut buf, start as u64).unwrap();
        assert!(buf == data[start..start + len], "{start}+{len}");
    }
    for (start, len) in [
        (BIG as u64, 1),
        (BIG as u64 - 1, 2),
        (u64::MAX, 1),
        (1 << 40, 9),
    ] {
        let error = file.read_exact_at(&mut vec![0; len], start).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{start}+{len}");
    }
    let empty = store.open(&path("empty"), None).unwrap();
    assert_eq!(empty.opened_meta().len_bytes, 0);
    assert!(empty.read_exact_at(&mut [0], 0).is_err());
}

fn opens_as_listed(store: &dyn Store) {
    let (at, data) = (path("dir/big.vhd"), big());
    let listed = listing(store, "dir")["big.vhd"].meta;
    let file = store.open(&at, listed.as_ref()).unwrap();
    assert_eq!(file.opened_meta(), store.head(&at).unwrap());
    assert!(file.is_pinned() || !store.traits().remote);
    for (start, len) in [(0, 1), (0, BIG), (511, 2 << 20), (BIG - 1, 1), (BIG, 0)] {
        let range = store.read_range(&at, &*file, start as u64, len).unwrap();
        assert!(range == data[start..start + len], "{start}+{len}");
    }
    for (start, len) in [(BIG as u64 - 1, 2), (u64::MAX, 1)] {
        let error = store.read_range(&at, &*file, start, len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{start}+{len}");
    }
}

fn missing(store: &dyn Store) {
    for name in ["none", "dir/none", "none/none", "many/1205", "dir/sub/dee"] {
        let path = path(name);
        assert_eq!(store.head(&path).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.list(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let error = store.read(&path, 99, Validity::Ask).unwrap_err();
        assert_eq!(
            (error.kind(), error.object()),
            (ErrorKind::NotFound, Some(name))
        );
        let error = store.open(&path, None).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    // A file is no directory.
    let error = store.list(&path("metadata.json")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(store.read(&StorePath::root(), 99, Validity::Ask).is_err());
}

/// A directory is no file either. (`s3s-fs` serves directories of its disk as objects.)
fn directories_are_no_files(store: &dyn Store) {
    let path = path("dir");
    let kind = |e: Option<Error>| e.map(|e| e.kind());
    let not_found = Some(ErrorKind::NotFound);
    assert_eq!(kind(store.read(&path, 99, Validity::Ask).err()), not_found);
    assert_eq!(kind(store.head(&path).err()), not_found);
    assert_eq!(kind(store.open(&path, None).err()), not_found);
}

fn serves_many_threads(store: &Arc<dyn Store>) {
    let threads: Vec<_> = (0..16usize)
        .map(|thread| {
            let store = store.clone();
            std::thread::spawn(move || {
                for n in (thread..MANY).step_by(97) {
                    let (data, _) = store
                        .read(&path(&format!("many/{n}")), 9, Validity::Ask)
                        .unwrap();
                    assert_eq!(data, n.to_string());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Fills a directory, sealed or in clear.
fn fill(dir: &TempDir, below: &str, algorithm: &str) {
    for (name, data) in content() {
        let data = crate::seal::seal(algorithm, crate::seal::KEY, &data);
        dir.write(&format!("{below}{name}"), &data);
    }
    let json = format!("{{\"algorithm\":\"{algorithm}\"}}");
    dir.write(&format!("{below}encryption.json"), json.as_bytes());
}

/// As the program opens a repository.
fn try_open(location: &Location, options: &StoreOptions) -> Result<Arc<dyn Store>, Error> {
    open_encrypted(location.open(options)?, options.encryption_key.clone())
}

fn open(location: &Location, options: &StoreOptions) -> Arc<dyn Store> {
    try_open(location, options).unwrap()
}

fn options(algorithm: &str) -> StoreOptions {
    let key = brfs::codec::aead::Key::new(crate::seal::KEY).unwrap();
    StoreOptions {
        encryption_key: (algorithm != "none").then_some(key),
        retry_budget: std::time::Duration::from_secs(5),
        ..StoreOptions::default()
    }
}

const ALGORITHMS: [&str; 3] = ["none", "chacha20-poly1305", "aes-256-gcm"];

#[test]
fn local_directories_conform() {
    for algorithm in ALGORITHMS {
        let dir = TempDir::new("conformance-local");
        fill(&dir, "", algorithm);
        let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let options = options(algorithm);
        let store = open(&location, &options);
        suite(&store);
        directories_are_no_files(&*store);
        let stats = options.stats.snapshot();
        assert!(stats.list.requests > 0 && stats.get.bytes > BIG as u64);
    }
}

#[test]
fn local_files_that_change_are_seen_to() {
    let dir = TempDir::new("conformance-change");
    fill(&dir, "", "none");
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let store = open(&location, &options("none"));
    let before = store.head(&path("metadata.json")).unwrap();
    let file = store.open(&path("metadata.json"), None).unwrap();
    dir.write("new", b"{\"random\":\"y\"}");
    let at = |name| dir.path().join(name);
    std::fs::rename(at("new"), at("metadata.json")).unwrap();
    let after = store.head(&path("metadata.json")).unwrap();
    assert_ne!(before.version, after.version);
    // What was opened stays what it was.
    let mut buf = [0; 14];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"{\"random\":\"x\"}");
}

#[cfg(feature = "s3")]
mod s3 {
    use super::*;
    use crate::s3_server::{KEY_ID, S3Server};
    use crate::upload::Server;

    fn url(server: &S3Server, dir: &str) -> String {
        let secret = "secret%2Fwith%2Bodd%3Dcharacters";
        format!(
            "s3+http://{KEY_ID}:{secret}@{}/bucket{dir}#us-east-1",
            server.address
        )
    }

    #[test]
    fn s3s_fs_conforms() {
        for (algorithm, below) in ALGORITHMS.into_iter().zip(["/backups/xo dir", "", "/é+1"]) {
            let root = TempDir::new("conformance-s3");
            fill(&root, &format!("bucket{below}/"), algorithm);
            let server = S3Server::start(root.path());
            let location = Location::parse(&url(&server, below)).unwrap();
            let options = options(algorithm);
            let store = open(&location, &options);
            suite(&store);
            let stats = options.stats.snapshot();
            // Two pages for the 1205 names, one for every other directory.
            assert_eq!(stats.retries, 0);
            assert!(stats.get.bytes > BIG as u64 && stats.head.requests > 0);
        }
    }

    /// See `support/upload.rs`.
    #[test]
    fn another_server_conforms() {
        let Some(server) = Server::other() else {
            eprintln!("skipped: BRFS_TEST_S3_URL is not set");
            return;
        };
        for algorithm in ALGORITHMS {
            let dir = TempDir::new("conformance-upload");
            fill(&dir, "", algorithm);
            let location = Location::parse(&server.upload(dir.path(), algorithm)).unwrap();
            let store = open(&location, &options(algorithm));
            suite(&store);
            directories_are_no_files(&*store);
        }
        compare_all(&server);
    }

    #[test]
    fn objects_that_change_are_seen_to() {
        let root = TempDir::new("conformance-s3-change");
        fill(&root, "bucket/", "none");
        let server = S3Server::start(root.path());
        let location = Location::parse(&url(&server, "")).unwrap();
        let store = open(&location, &options("none"));
        let at = path("metadata.json");
        let file = store.open(&at, None).unwrap();
        root.write("bucket/metadata.json", b"{\"random\":\"y\"}");
        let reads = [
            file.read_exact_at(&mut [0; 5], 0),
            store.read_range(&at, &*file, 0, 5).map(drop),
        ];
        for read in reads {
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Changed);
        }
        assert_ne!(file.head().unwrap().version, file.opened_meta().version);
        // Also where the new one has no such bytes.
        root.write("bucket/metadata.json", b"{}");
        let error = file.read_exact_at(&mut [0; 5], 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed);
    }

    #[test]
    fn wrong_keys_and_buckets_are_told_apart() {
        let root = TempDir::new("conformance-s3-wrong");
        fill(&root, "bucket/", "none");
        let server = S3Server::start(root.path());
        let open = |url: String| try_open(&Location::parse(&url)?, &options("none"));
        assert!(open(url(&server, "")).is_ok());
        let error = open(url(&server, "").replace("secret%2F", "wrong")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("secret key"), "{error}");
        let error = open(url(&server, "").replace(KEY_ID, "AKIAOTHER")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        let store = open(url(&server, "").replace("/bucket", "/nobucket"));
        let error = store.and_then(|s| s.list(&StorePath::root())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }

    /// Every file of a repository, byte by byte.
    fn compare(local: &dyn Store, remote: &dyn Store) {
        let mut pending = vec![StorePath::root()];
        let mut files = 0;
        while let Some(dir) = pending.pop() {
            assert_eq!(names(local, dir.as_str()), names(remote, dir.as_str()));
            for entry in local.list(&dir).unwrap() {
                let path = dir.child(&entry.name);
                if entry.kind == EntryKind::Dir {
                    pending.push(path);
                    continue;
                }
                let here = local.read(&path, 4 << 20, Validity::Ask).unwrap().0;
                assert!(
                    here == remote.read(&path, 4 << 20, Validity::Ask).unwrap().0,
                    "{path}"
                );
                files += 1;
            }
        }
        assert!(files > 50, "{files}");
    }

    fn local(dir: &std::path::Path, algorithm: &str) -> Arc<dyn Store> {
        let location = Location::parse(dir.to_str().unwrap()).unwrap();
        open(&location, &options(algorithm))
    }

    const XO_WRITTEN: [(&str, &str); 3] = [
        ("enc-chacha20", "chacha20-poly1305"),
        ("enc-aes256gcm", "aes-256-gcm"),
        ("vhddir-brotli", "none"),
    ];

    #[test]
    fn encrypted_repositories_of_xen_orchestra_read_alike_from_s3() {
        compare_all(&Server::own());
    }

    fn compare_all(server: &Server) {
        let Some(set) = crate::support::golden::whole_set() else {
            return;
        };
        for (name, algorithm) in XO_WRITTEN {
            let here = set.path(name);
            let remote = Location::parse(&server.upload(&here, name)).unwrap();
            let remote = open(&remote, &options(algorithm));
            compare(&*local(&here, algorithm), &*remote);
        }
    }
}
