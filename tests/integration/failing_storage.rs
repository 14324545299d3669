//! Storage that fails at one request, or from one on, for every request of a walk over a repository with
//! guests: what is shown then is right or an error, never less than there is; and when the storage is
//! back, everything is right again.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, fs, io};

use brfs::error::{Error, ErrorKind, Result};
use brfs::image::DiskContext;
use brfs::io::ReadAt;
use brfs::repo::Catalogue;
use brfs::store::{
    Entry, EntryKind, LinkFault, LocalStore, Meta, Store, StoreLayer, StorePath, StoreTraits,
    StoredFile, Validity,
};
use brfs::tree::{Directory, Node, NodeKind};
use brfs::views::repository_root_with;
use bytes::Bytes;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::brfs::{BrfsMount, brfs, brfs_json};
use crate::support::chain::{Chain, Storage};
use crate::support::far::far;
use crate::support::md;
use crate::support::mountpoint::{UnmountOnDrop, can_mount, has_program, needs, sh};
use crate::support::repo::{Vm, WrittenPoint};
use crate::support::rng::Rng;
use crate::support::vhd_dir::Filter;
use crate::support::web::{WEB, web};
use crate::tree_walk::{
    lookup_error, must_find, names, names_until_error, read_error, target, xattr,
};

/// Which requests fail: those numbered `from..until`, with this kind.
#[derive(Debug, Clone, Copy)]
struct Fault {
    from: u64,
    until: u64,
    kind: ErrorKind,
}

#[derive(Debug, Default)]
struct Plan {
    asked: AtomicU64,
    /// What failed.
    failed: Mutex<Vec<String>>,
    fault: Mutex<Option<Fault>>,
}

impl Plan {
    fn set(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap() = fault;
        self.asked.store(0, Relaxed);
        self.failed.lock().unwrap().clear();
    }

    fn request(&self, path: &dyn fmt::Display) -> Result<()> {
        let number = self.asked.fetch_add(1, Relaxed);
        match *self.fault.lock().unwrap() {
            Some(fault) if (fault.from..fault.until).contains(&number) => {
                self.failed.lock().unwrap().push(path.to_string());
                Err(Error::new(fault.kind, "the storage failed").with_object(path))
            }
            _ => Ok(()),
        }
    }
}

/// A store, one request at a time, that fails as planned.
#[derive(Debug)]
struct Failing {
    inner: Arc<dyn Store>,
    plan: Arc<Plan>,
}

struct FailingFile {
    inner: Arc<dyn StoredFile>,
    path: StorePath,
    plan: Arc<Plan>,
}

impl Failing {
    fn file(&self, path: &StorePath, inner: Arc<dyn StoredFile>) -> Arc<dyn StoredFile> {
        let (path, plan) = (path.clone(), self.plan.clone());
        Arc::new(FailingFile { inner, path, plan })
    }
}

impl StoreLayer for Failing {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        self.plan.request(dir)?;
        self.inner.list(dir)
    }
    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.plan.request(path)?;
        self.inner.head(path)
    }
    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        self.plan.request(path)?;
        self.inner.read(path, max_len, validity)
    }
    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        if listed.is_none() {
            self.plan.request(path)?;
        }
        Ok(self.file(path, self.inner.open(path, listed)?))
    }
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            parallelism: 1,
            ..self.inner.traits()
        }
    }
}

impl ReadAt for FailingFile {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.plan.request(&self.path)?;
        self.inner.read_exact_at(buf, offset)
    }
}

impl StoredFile for FailingFile {
    fn opened_meta(&self) -> Meta {
        self.inner.opened_meta()
    }
    fn head(&self) -> Result<Meta> {
        self.plan.request(&self.path)?;
        self.inner.head()
    }
    fn is_pinned(&self) -> bool {
        self.inner.is_pinned()
    }
}

/// What a node is, as far as a look without entering it tells.
#[derive(Debug, Clone, PartialEq)]
struct Facts {
    kind: NodeKind,
    size: u64,
    target: Option<OsString>,
    xattrs: Vec<OsString>,
    start: Vec<u8>,
    /// Of a directory: its names.
    names: Vec<(OsString, NodeKind)>,
}

/// Everything there is, by its path.
type Truth = BTreeMap<String, Facts>;

/// What an error in place of a fact must be: never that something is not there.
fn must_be_failure(what: &str, path: &str, error: &Error) {
    assert_ne!(error.kind(), ErrorKind::NotFound, "{what} {path}: {error}");
}

fn start_of(node: &Node) -> Result<Vec<u8>> {
    let Node::File(file) = node else {
        return Ok(Vec::new());
    };
    let file = file.open()?;
    let mut buf = vec![0; file.len_bytes().min(4096) as usize];
    let chunk = file.read_chunk_at(&mut buf, 0)?;
    Ok(chunk.bytes(&buf).to_vec())
}

/// A listing as far as it went, sorted, and the error that it ended with.
fn list(dir: &dyn Directory) -> (Vec<(OsString, NodeKind)>, Option<Error>) {
    let mut names = Vec::new();
    let mut stream = match dir.list() {
        Ok(stream) => stream,
        Err(e) => return (names, Some(e)),
    };
    let failed = loop {
        match stream.next_entry() {
            Ok(Some(entry)) => names.push((entry.name, entry.kind)),
            Ok(None) => break None,
            Err(e) => break Some(e),
        }
    };
    names.sort_by(|a, b| a.0.cmp(&b.0));
    (names, failed)
}

/// Looks at everything, with nothing failing.
fn learn(path: &str, node: &Node, truth: &mut Truth) {
    let attr = node.base().attr().unwrap();
    let target = match node {
        Node::Leaf(leaf) => leaf.target().unwrap(),
        _ => None,
    };
    let mut facts = Facts {
        kind: attr.kind,
        size: attr.size_bytes,
        target,
        xattrs: node.base().xattr_names().unwrap(),
        start: start_of(node).unwrap(),
        names: Vec::new(),
    };
    if let Node::Dir(dir) = node {
        let (names, failed) = list(&**dir);
        assert!(failed.is_none(), "{path}: {failed:?}");
        for (name, _) in &names {
            let child = dir.lookup(name).unwrap().expect("listed");
            learn(&format!("{path}/{}", name.display()), &child, truth);
        }
        facts.names = names;
    }
    truth.insert(path.to_owned(), facts);
}

/// Looks at everything that there is: whatever is told is the truth. Gives the failures.
fn compare(path: &str, node: &Node, truth: &Truth) -> Vec<String> {
    let facts = &truth[path];
    let mut failures = Vec::new();
    let mut failed = |what: &str, e: &Error| {
        must_be_failure(what, path, e);
        failures.push(format!("{what} {path}: {e:?}"));
    };
    for attr in [node.base().quick_attr(), node.base().attr()] {
        match attr {
            Ok(attr) => assert_eq!(
                (attr.kind, attr.size_bytes),
                (facts.kind, facts.size),
                "{path}"
            ),
            Err(e) => failed("attributes of", &e),
        }
    }
    match node.base().xattr_names() {
        // That there is a problem may be told.
        Ok(mut names) => {
            names.retain(|name| name != "user.brfs.problem" || facts.xattrs.contains(name));
            assert_eq!(names, facts.xattrs, "{path}");
        }
        Err(e) => failed("extended attributes of", &e),
    }
    match start_of(node) {
        Ok(start) => assert!(start == facts.start, "{path} reads otherwise"),
        Err(e) => failed("reading", &e),
    }
    if let Node::Leaf(leaf) = node {
        assert_eq!(leaf.target().unwrap(), facts.target, "{path}");
    }
    let Node::Dir(dir) = node else {
        return failures;
    };
    let (mut names, ended) = list(&**dir);
    // Empty ones are shown until the disks have been looked at.
    names.retain(|name| facts.names.contains(name) || (name.0 != "lvm" && name.0 != "md"));
    match (names, ended) {
        (names, None) => assert_eq!(names, facts.names, "{path}"),
        (names, Some(e)) => {
            failed("listing", &e);
            for name in names {
                assert!(facts.names.contains(&name), "{path}: {name:?}");
            }
        }
    }
    match dir.lookup(OsStr::new("nothing of this name")) {
        Ok(found) => assert!(found.is_none(), "{path}"),
        Err(e) => failed("looking into", &e),
    }
    for (name, _) in &facts.names {
        let below = format!("{path}/{}", name.display());
        match dir.lookup(name) {
            Ok(Some(child)) => failures.extend(compare(&below, &child, truth)),
            Ok(None) => panic!("{below} is said not to be there"),
            Err(e) => {
                must_be_failure("looking up", &below, &e);
                failures.push(format!("looking up {below}: {e:?}"));
            }
        }
    }
    failures
}

/// A disk with one partition that holds this.
fn partitioned(volume: &[u8]) -> Vec<u8> {
    const START: usize = 64;
    let mut disk = vec![0; START * 512];
    let entry = &mut disk[446..462];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&(START as u32).to_le_bytes());
    entry[12..16].copy_from_slice(&((volume.len() / 512) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    disk.extend_from_slice(volume);
    disk
}

/// An ext4 of 1 MiB with a few files.
fn small_ext4(scratch: &Path) -> Vec<u8> {
    let tree = scratch.join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(tree.join("big"), vec![7; 20_000]).unwrap();
    std::os::unix::fs::symlink("etc/hosts", tree.join("link")).unwrap();
    let image = scratch.join("image");
    sh(&format!(
        "PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -b 1024 -O ^has_journal -m 0 -d {tree:?} {image:?} 1m"
    ));
    fs::read(image).unwrap()
}

/// A chain whose oldest image holds this, and the others a copy of its start.
fn chain_of(rng: &mut Rng, content: &[u8], storage: Storage, layers: usize) -> Chain {
    let mut chain = Chain::new();
    let size = content.len().next_multiple_of(512) as u64;
    for layer in 0..layers {
        let part = if layer == 0 {
            content
        } else {
            &content[..4096]
        };
        let layer = chain.push(rng, size).storage(storage).block_size(64 << 10);
        for (piece, sector) in part.chunks(4096).zip((0..).step_by(8)) {
            if piece.iter().any(|&byte| byte != 0) {
                layer.writes.write_bytes(sector, piece);
            }
        }
    }
    chain
}

/// A VM with partitions, a volume group over two disks and an array over two, and one without anything.
fn repository(scratch: &Path) -> PathBuf {
    let mut rng = Rng::new(0xfa11);
    let root = scratch.join("repository");
    let ext4 = small_ext4(scratch);
    let array = md::Array {
        level: 1,
        layout: 0,
        chunk_bytes: 0,
        disks: 2,
        events: 5,
        dropped: None,
    };
    let lvm = crate::kernel_volumes::disks_of("lvm-plain");
    let mut vm = Vm::new(&mut rng, "guests");
    let mut disk = |content: &[u8], storage, layers| {
        let chain = chain_of(&mut rng, content, storage, layers);
        vm.disk(&mut rng, "disk", chain);
    };
    disk(&partitioned(&ext4), Storage::File, 2);
    disk(&ext4, Storage::Dir(Filter::Absent), 2);
    for role in 0..2 {
        disk(&md::member(array, role, &ext4), Storage::File, 1);
    }
    for image in lvm {
        disk(&image, Storage::File, 1);
    }
    vm.write(&root);
    let mut other = Vm::new(&mut rng, "other");
    let chain = chain_of(&mut rng, &[5; 8192], Storage::Dir(Filter::Gzip), 1);
    other.disk(&mut rng, "disk", chain);
    other.write(&root);
    root
}

/// A root over storage that fails as planned.
fn root_over(store: Arc<dyn Store>, plan: &Arc<Plan>, max_age: Duration) -> Node {
    let plan = plan.clone();
    let inner = store;
    let store: Arc<dyn Store> = Arc::new(Failing { inner, plan });
    let disks = DiskContext::new(store.clone(), 64 << 20);
    repository_root_with(Catalogue::new(store, max_age), disks, Default::default())
}

/// Walks with each of `numbers` failing, and again once the storage is back.
fn walk_with_failures(
    store: &dyn Fn() -> Arc<dyn Store>,
    max_age: Duration,
    kind: ErrorKind,
    goes_on: bool,
    step: u64,
) {
    let plan = Arc::new(Plan::default());
    let mut truth = Truth::new();
    let root = root_over(store(), &plan, max_age);
    learn("", &root, &mut truth);
    truth.clear();
    learn("", &root, &mut truth);
    assert!(truth.len() > 60, "{}", truth.len());
    for path in [
        "part1/etc/hosts",
        "md/data.raw",
        "md/data/etc/hosts",
        "lvm/",
    ] {
        assert!(truth.keys().any(|known| known.contains(path)), "{path}");
    }
    plan.set(None);
    compare("", &root_over(store(), &plan, max_age), &truth);
    let requests = plan.asked.load(Relaxed);
    eprintln!("{requests} requests, {} paths", truth.len());
    // Every one of the catalogue, and so many of the others that all of them come up in one of the runs.
    let numbers = (0..requests).filter(|n| (*n < 100 && step < 50) || n % step == step / 2);
    for from in numbers {
        let root = root_over(store(), &plan, max_age);
        let until = if goes_on { u64::MAX } else { from + 1 };
        plan.set(Some(Fault { from, until, kind }));
        let failures = compare("", &root, &truth);
        // One failure may be got over, the death of the storage not.
        let failed = plan.failed.lock().unwrap().clone();
        let is_told = !failures.is_empty() || !goes_on || failed.is_empty();
        assert!(is_told, "{from}: {failed:?}");
        plan.set(None);
        let left = compare("", &root, &truth);
        assert!(left.is_empty(), "request {from} failed before: {left:#?}");
    }
}

/// Whether the tests can run, and may open many files: what a root has open goes only with the process.
fn can_run() -> bool {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    needs("mkfs.ext4", has_program("mkfs.ext4"))
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn whatever_request_fails_nothing_is_missing() {
    if !can_run() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = repository(scratch.path());
    let local = || -> Arc<dyn Store> { Arc::new(LocalStore::open(&path).unwrap()) };
    walk_with_failures(&local, HOUR, ErrorKind::Io, false, 10);
    walk_with_failures(&local, Duration::ZERO, ErrorKind::Transient, false, 60);
    walk_with_failures(&local, HOUR, ErrorKind::Denied, false, 60);
}

#[test]
fn when_the_storage_dies_nothing_is_missing() {
    if !can_run() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = repository(scratch.path());
    let local = || -> Arc<dyn Store> { Arc::new(LocalStore::open(&path).unwrap()) };
    walk_with_failures(&local, HOUR, ErrorKind::Io, true, 20);
    walk_with_failures(&local, Duration::ZERO, ErrorKind::Denied, true, 70);
    walk_with_failures(&local, HOUR, ErrorKind::Transient, true, 70);
}

/// Where objects are listed with their states, `cache.json.gz` is believed and much is asked at once.
#[test]
fn whatever_object_cannot_be_fetched_nothing_is_missing() {
    if !can_run() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = repository(scratch.path());
    let remote = || -> Arc<dyn Store> { far(&path, 0) };
    for goes_on in [false, true] {
        walk_with_failures(&remote, HOUR, ErrorKind::Transient, goes_on, 2);
        walk_with_failures(&remote, HOUR, ErrorKind::Io, goes_on, 51);
        walk_with_failures(&remote, HOUR, ErrorKind::Denied, goes_on, 51);
        walk_with_failures(&remote, Duration::ZERO, ErrorKind::Transient, goes_on, 60);
    }
}

/// The listings of a mount, by their paths.
fn listings(root: &Path) -> BTreeMap<PathBuf, Vec<OsString>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            names.push(entry.file_name());
        }
        names.sort();
        found.insert(dir.strip_prefix(root).unwrap().to_owned(), names);
    }
    found
}

#[test]
fn without_file_descriptors_nothing_is_missing() {
    if !can_mount() || !can_run() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = repository(scratch.path());
    let sound = BrfsMount::new(&path, &[]);
    listings(sound.path());
    // Without the empty directories that are shown until the disks have been looked at.
    let truth = listings(sound.path());
    for limit in [12, 14, 16, 20, 24] {
        let at = scratch.path().join(format!("mnt{limit}"));
        let log = scratch.path().join(format!("log{limit}"));
        fs::create_dir(&at).unwrap();
        let brfs = env!("CARGO_BIN_EXE_brfs");
        let script = format!("ulimit -n {limit}; {brfs} mount {path:?} {at:?} --log-file {log:?}");
        let mounted = Command::new("bash").args(["-c", &script]).output().unwrap();
        let at = UnmountOnDrop(at);
        if !mounted.status.success() {
            // Too few to mount at all, which is said.
            assert!(!mounted.stderr.is_empty());
            continue;
        }
        let mut failures = 0;
        let mut check = |path: &Path, e: &io::Error| {
            assert_ne!(e.kind(), io::ErrorKind::NotFound, "{limit}: {path:?}");
            failures += 1;
        };
        for (dir, names) in &truth {
            let dir = at.0.join(dir);
            for name in names {
                let file = dir.join(name);
                if let Err(e) = fs::symlink_metadata(&file) {
                    check(&file, &e);
                }
            }
            let listed = fs::read_dir(&dir).and_then(|entries| {
                let names = entries.map(|entry| Ok(entry?.file_name()));
                names.collect::<io::Result<Vec<OsString>>>()
            });
            match listed {
                Ok(mut listed) => {
                    listed.sort();
                    listed.retain(|name| names.contains(name) || (name != "lvm" && name != "md"));
                    assert_eq!(listed, *names, "{limit}: {dir:?}");
                }
                Err(e) => check(&dir, &e),
            }
        }
        let logged = fs::read_to_string(&log).unwrap_or_default();
        let is_told = failures == 0 || logged.contains("Too many open files");
        assert!(is_told, "{limit}: {logged}");
    }
}

/// A directory seen through a process that can be killed.
struct Bound {
    process: Child,
    at: PathBuf,
}

impl Bound {
    fn new(of: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let process = Command::new("bindfs")
            .arg("-f")
            .args([of, at])
            .spawn()
            .unwrap();
        let bound = Bound {
            process,
            at: at.to_owned(),
        };
        for _ in 0..100 {
            if fs::read_dir(at).is_ok_and(|mut names| names.next().is_some()) {
                return bound;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("bindfs shows nothing");
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_mirror_of_a_restore_point_survives_the_death_of_the_storage() {
    if !can_mount()
        || !needs("bindfs", has_program("bindfs"))
        || !needs("rsync", has_program("rsync"))
    {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let repository = scratch.path().join("repository");
    web(&mut Rng::new(1)).write(&repository);
    let mut bound = Bound::new(&repository, &scratch.path().join("bound"));
    let log = scratch.path().join("log");
    let mount = BrfsMount::new(&bound.at, &["--log-file", log.to_str().unwrap()]);
    let vm = mount.join("vms").join(WEB);
    let mut points: Vec<_> = fs::read_dir(&vm)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("latest"))
        .collect();
    points.sort();
    // What the mirror has, it was given when the storage was there.
    let mirror = scratch.path().join("mirror");
    fs::create_dir(&mirror).unwrap();
    for name in ["backup.json", "xvda.raw", "xvdb.raw", "suspend.raw"] {
        fs::write(mirror.join(name), "kept").unwrap();
    }
    bound.kill();

    let eio = Some(Errno::IO.raw_os_error());
    for point in &points {
        let listed = fs::read_dir(point).map(drop).unwrap_err();
        assert_eq!(listed.raw_os_error(), eio, "{listed}");
        let found = fs::symlink_metadata(point.join("xvda.raw")).unwrap_err();
        assert_eq!(found.raw_os_error(), eio, "{found}");
        let from = format!("{}/", point.display());
        let rsync = Command::new("rsync")
            .args(["-r", "--delete", &from])
            .arg(&mirror)
            .output()
            .unwrap();
        assert!(!rsync.status.success());
    }
    assert_eq!(fs::read_dir(&mirror).unwrap().count(), 4);
    // The name that was known stays known, and no other takes its place.
    for entry in fs::read_dir(mount.join("vms")).unwrap().flatten() {
        assert_eq!(entry.file_name(), WEB);
    }
    let logged = fs::read_to_string(&log).unwrap();
    assert!(
        logged.contains(points[0].file_name().unwrap().to_str().unwrap()),
        "{logged}"
    );
}

/// A repository of which these paths, relative to the VM's directory, lie elsewhere and are linked to.
fn linked(scratch: &Path, outside: &[&str]) -> (PathBuf, Vec<WrittenPoint>) {
    let repository = scratch.join("linked");
    let vm = web(&mut Rng::new(1));
    let written = vm.write(&repository);
    for (number, path) in outside.iter().enumerate() {
        let from = written.directory.join(path);
        let to = scratch.join(format!("elsewhere{number}"));
        let from = fs::canonicalize(from).unwrap();
        fs::rename(&from, &to).unwrap();
        std::os::unix::fs::symlink(&to, &from).unwrap();
    }
    (repository, written.points)
}

fn root_of(repository: &Path) -> Node {
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(repository).unwrap());
    let disks = DiskContext::new(store.clone(), 8 << 20);
    let catalogue = Catalogue::new(store, Duration::ZERO);
    repository_root_with(catalogue, disks, Default::default())
}

const LINK: Option<ErrorKind> = Some(ErrorKind::Link);

#[test]
fn a_vm_behind_a_link_out_of_the_repository_is_shown_with_the_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let (repository, _) = linked(scratch.path(), &["."]);
    let root = root_of(&repository);
    let vms = must_find(&root, "vms");
    assert_eq!(names(&vms), ["unnamed (3f2a9c1e)"]);
    let vm = must_find(&vms, "unnamed (3f2a9c1e)");
    assert_eq!(names_until_error(&vm), (vec![], LINK));
    assert_eq!(lookup_error(&vm, "latest"), LINK);
    let problem = xattr(&vm, "problem").unwrap();
    assert!(problem.contains("mount --bind"), "{problem}");
    assert_eq!(
        names_until_error(&must_find(&root, "by-date")),
        (vec![], LINK)
    );

    let repository = repository.to_str().unwrap();
    let (code, told) = brfs_json(&["ls", repository, "--json"]);
    assert_eq!((code, told["vms"].as_array().unwrap().len()), (1, 1));
    let told = told["vms"][0]["problems"][0].as_str().unwrap();
    assert!(told.contains("out of the repository"), "{told}");
    let table = brfs(&["ls", repository]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("3f2a9c1e-1111-4222-8333-444455556666"),
        "{table}"
    );
    let info = brfs(&["info", repository, "3f2a9c1e"]);
    let errors = String::from_utf8(info.stderr).unwrap();
    assert!(
        !info.status.success() && errors.contains("mount --bind"),
        "{errors}"
    );
}

#[test]
fn metadata_and_images_behind_links_are_shown_with_the_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, points) = linked(&scratch.path().join("sound"), &[]);
    let older = format!("{}.json", points[0].date);
    let newest = format!("{}.json", points[2].date);
    let (repository, points) = linked(scratch.path(), &[&older, &newest, "vdis"]);
    let root = root_of(&repository);
    // Named by the one that is left.
    let vm = must_find(&root, &format!("vms|{WEB}"));
    let dates: Vec<&str> = points.iter().map(|p| p.date.as_str()).collect();
    assert_eq!(names(&vm), [&dates[..], &["latest"]].concat());
    assert_eq!(target(&must_find(&vm, "latest")), dates[2]);
    for date in [dates[0], dates[2]] {
        let point = must_find(&vm, date);
        assert_eq!(names_until_error(&point), (vec![], LINK));
        assert_eq!(lookup_error(&point, "xvda.raw"), LINK);
        assert!(xattr(&point, "problem").unwrap().contains(date));
    }
    assert!(xattr(&vm, "problem").unwrap().contains("vdis"));
    let disk = must_find(&vm, &format!("{}|xvda.raw", dates[1]));
    assert_eq!(disk.base().attr().unwrap().size_bytes, (3 << 20) + 1536);
    assert_eq!(read_error(&disk), ErrorKind::Link);
    assert!(xattr(&disk, "problem").unwrap().contains("mount --bind"));

    let repository = repository.to_str().unwrap();
    for command in [
        &["ls", repository][..],
        &["info", repository, WEB],
        &["ls", repository, WEB],
    ] {
        let output = brfs(command);
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {told}");
        assert!(told.contains("out of the repository"), "{told}");
    }
    let (code, told) = brfs_json(&["ls", repository, "--json"]);
    let problems = told["vms"][0]["problems"].to_string();
    assert_eq!(code, 1);
    for path in [older.as_str(), newest.as_str(), "/vdis:"] {
        assert!(problems.contains(path), "{path}: {problems}");
    }
}

#[test]
fn the_whole_of_the_backups_behind_a_link_is_no_empty_repository() {
    let scratch = tempfile::tempdir().unwrap();
    let (repository, _) = linked(scratch.path(), &[".."]);
    for link in ["to what is elsewhere", "to nothing"] {
        let at = repository.join("xo-vm-backups");
        if link == "to nothing" {
            fs::write(repository.join("metadata.json"), "{}").unwrap();
            fs::remove_file(&at).unwrap();
            std::os::unix::fs::symlink("gone", &at).unwrap();
        }
        let vms = must_find(&root_of(&repository), "vms");
        assert_eq!(names_until_error(&vms), (vec![], LINK), "{link}");
        for command in ["ls", "mount"] {
            let output = brfs(&[command, repository.to_str().unwrap(), "/nowhere"]);
            let errors = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success(), "{link}");
            assert!(
                command == "mount" || errors.contains("symbolic link"),
                "{errors}"
            );
        }
    }
}

#[test]
fn links_are_listed_as_what_they_lead_to_or_as_links() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join("store").join(name);
    fs::create_dir_all(at("dir/below")).unwrap();
    fs::write(at("file"), "x").unwrap();
    for (name, target) in [
        ("to-dir", "dir/below"),
        ("to-file", "dir/../file"),
        ("absolute", "/etc/passwd"),
        ("up", "../.."),
        ("nothing", "dir/gone"),
        ("through-a-file", "file/x"),
        ("circle", "circle"),
    ] {
        std::os::unix::fs::symlink(target, at(name)).unwrap();
    }
    let store = LocalStore::open(&at("")).unwrap();
    let kinds = store.list(&StorePath::root()).unwrap().into_iter();
    let kinds: BTreeMap<String, EntryKind> = kinds.map(|e| (e.name, e.kind)).collect();
    use LinkFault::{Dangling, Loop, Outside};
    let expected = [
        ("absolute", EntryKind::Link(Outside)),
        ("circle", EntryKind::Link(Loop)),
        ("dir", EntryKind::Dir),
        ("file", EntryKind::File),
        ("nothing", EntryKind::Link(Dangling)),
        ("through-a-file", EntryKind::Link(Dangling)),
        ("to-dir", EntryKind::Dir),
        ("to-file", EntryKind::File),
        ("up", EntryKind::Link(Outside)),
    ];
    assert_eq!(
        kinds,
        expected.map(|(name, kind)| (name.to_owned(), kind)).into()
    );
}
