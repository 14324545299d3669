//! A restore point with more disks than most have: to list it opens nothing, and what was opened stays open while
//! all its disks are read in turns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use brfs::error::Result;
use brfs::image::DiskContext;
use brfs::io::ReadAt;
use brfs::repo::Catalogue;
use brfs::store::{LocalStore, Meta, Store, StoreLayer, StorePath, StoredFile};
use brfs::tree::{Identity, Node, NodeKind};
use brfs::views::repository_root_with;

use crate::support::chain::{Chain, Storage};
use crate::support::repo::Vm;
use crate::support::rng::Rng;
use crate::support::{ext, table};
use crate::tree_walk::{find, must_find, names, read_all};

const DISKS: usize = 40;
/// Where the partition begins, in sectors.
const START: u32 = 64;

/// How often each image was opened, and read.
type Count = BTreeMap<String, (usize, usize)>;

/// A store that counts what is asked of images.
#[derive(Debug)]
struct Counting {
    inner: LocalStore,
    count: Arc<Mutex<Count>>,
}

struct CountingFile {
    inner: Arc<dyn StoredFile>,
    path: String,
    count: Arc<Mutex<Count>>,
}

impl StoreLayer for Counting {
    fn inner(&self) -> &dyn Store {
        &self.inner
    }
    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        let inner = self.inner.open(path, listed)?;
        let path = path.to_string();
        self.count
            .lock()
            .unwrap()
            .entry(path.clone())
            .or_default()
            .0 += 1;
        let count = self.count.clone();
        Ok(Arc::new(CountingFile { inner, path, count }))
    }
}

impl ReadAt for CountingFile {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.count
            .lock()
            .unwrap()
            .entry(self.path.clone())
            .or_default()
            .1 += 1;
        self.inner.read_exact_at(buf, offset)
    }
}

impl StoredFile for CountingFile {
    fn opened_meta(&self) -> Meta {
        self.inner.opened_meta()
    }
    fn head(&self) -> Result<Meta> {
        self.inner.head()
    }
    fn is_pinned(&self) -> bool {
        self.inner.is_pinned()
    }
}

/// A disk with one partition, in whose file system the file `0` is full of this byte.
fn disk_with(byte: u8) -> Vec<u8> {
    let mut volume = ext::Volume::new();
    // Without "needs recovery".
    volume.set(0x60, &0x42_u32.to_le_bytes());
    volume.set_block(ext::CONTENTS, &[byte; ext::BLOCK]);
    let mut disk = vec![0; START as usize * 512];
    let sectors = (volume.0.len() / 512) as u32;
    disk[..512].copy_from_slice(&table::mbr(&[(0x83, START, sectors)]));
    disk.extend_from_slice(&volume.0);
    disk
}

fn chain_of(rng: &mut Rng, disk: &[u8]) -> Chain {
    let mut chain = Chain::new();
    let layer = chain.push(rng, disk.len() as u64).storage(Storage::File);
    for (piece, sector) in disk.chunks(4096).zip((0..).step_by(8)) {
        if piece.iter().any(|&byte| byte != 0) {
            layer.writes.write_bytes(sector, piece);
        }
    }
    chain
}

/// The entries of a directory: names, types, identities.
fn entries(node: &Node) -> Vec<(String, NodeKind, Identity)> {
    let Node::Dir(dir) = node else {
        panic!("no directory")
    };
    let mut stream = dir.list().unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = stream.next_entry().unwrap() {
        let name = entry.name.into_string().unwrap();
        entries.push((name, entry.kind, entry.identity));
    }
    entries
}

#[test]
fn listing_opens_nothing_and_what_was_opened_is_opened_once() {
    let scratch = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(40);
    let mut vm = Vm::new(&mut rng, "many");
    for number in 0..DISKS {
        let chain = chain_of(&mut rng, &disk_with(number as u8 + 1));
        vm.disk(&mut rng, "disk", chain);
    }
    let written = vm.write(scratch.path());
    // Old enough that their time stamps show changes: a read is one read then.
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for chain in &written.chains {
        let file = std::fs::File::options().write(true).open(chain.youngest());
        file.unwrap().set_modified(long_ago).unwrap();
    }
    let count = Arc::new(Mutex::new(Count::new()));
    let store: Arc<dyn Store> = Arc::new(Counting {
        inner: LocalStore::open(scratch.path()).unwrap(),
        count: count.clone(),
    });
    let images = || -> Count {
        let all = count.lock().unwrap().clone();
        all.into_iter()
            .filter(|(path, _)| path.ends_with(".vhd"))
            .collect()
    };
    let disks = DiskContext::new(store.clone(), 8 << 20);
    let catalogue = Catalogue::new(store, Duration::ZERO);
    let root = repository_root_with(catalogue, disks, Default::default());
    let vm_dir = must_find(
        &root,
        &format!("vms|{}", names(&must_find(&root, "vms"))[0]),
    );
    let point = must_find(&vm_dir, &written.points[0].date);

    // backup.json, xvdN.raw, xvdN, lvm, md
    let listed = entries(&point);
    assert_eq!(listed.len(), 1 + 2 * DISKS + 2);
    for (name, kind, identity) in &listed {
        let node = must_find(&point, name);
        assert_eq!(node.base().identity(), *identity, "{name}");
        assert_eq!(
            matches!(node, Node::Dir(_)),
            *kind == NodeKind::Dir,
            "{name}"
        );
    }
    assert_eq!(entries(&point), listed);
    assert_eq!(images(), Count::new(), "names alone open nothing");

    let is_disk = |name: &String| find(&point, &format!("{name}.raw")).is_some();
    let disks: Vec<String> = names(&point).into_iter().filter(is_disk).collect();
    assert_eq!(disks.len(), DISKS);
    let read_each = || {
        let mut found = BTreeSet::new();
        for disk in &disks {
            let file = must_find(&point, &format!("{disk}|part1|0"));
            let bytes = read_all(&file);
            assert_eq!(bytes, [bytes[0]; ext::BLOCK]);
            found.insert(bytes[0]);
            let raw = must_find(&point, &format!("{disk}.raw"));
            raw.base().attr().unwrap();
        }
        let all: BTreeSet<u8> = (1..=DISKS as u8).collect();
        assert_eq!(found, all);
    };
    read_each();
    let first = images();
    assert_eq!(first.len(), DISKS);
    for (path, (opened, _)) in &first {
        assert_eq!(*opened, 1, "{path}");
    }

    entries(&point);
    read_each();
    let second = images();
    for (path, (opened, read)) in &second {
        assert_eq!(*opened, 1, "{path}");
        // The file system is still open as well: the file's one block is all that is read.
        assert_eq!(*read, first[path].1 + 1, "{path}");
    }
}
