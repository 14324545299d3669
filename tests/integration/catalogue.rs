//! The catalogue and the tree over generated repositories, without FUSE.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use crate::support::chain::Storage;
use crate::support::dates::SERIES_START_S;
use crate::support::repo::{Cache, Vm};
use crate::support::rng::Rng;
use crate::support::vhd_dir::Filter;
use crate::support::web::{WEB, chain, web};
use crate::support::{catalogue, clutter};
use crate::tree_walk::{
    WatchedStore, find, lookup_error, must_find, names, names_until_error, read_all, read_error,
    target, walk, xattr,
};
use brfs::error::{Error, ErrorKind, Result};
use brfs::image::DiskContext;
use brfs::repo::Catalogue;
use brfs::store::{Entry, LocalStore, Store, StoreLayer, StorePath};
use brfs::tree::{Node, NodeKind};
use brfs::views::{bare_root, repository_root_with, split_bare_path};
use serde_json::json;

const CACHE_BYTES: u64 = 8 << 20;

/// The tree of a repository that is looked at anew at every call.
fn root_of(store: Arc<dyn Store>) -> Node {
    aged_root_of(store, Duration::ZERO)
}

fn aged_root_of(store: Arc<dyn Store>, max_age: Duration) -> Node {
    let disks = DiskContext::new(store.clone(), CACHE_BYTES);
    repository_root_with(Catalogue::new(store, max_age), disks, Default::default())
}

fn local(path: &Path) -> Arc<dyn Store> {
    Arc::new(LocalStore::open(path).unwrap())
}

/// The files of a restore point; beside them are the directories of what is inside the disks.
fn files_in(dir: &Node) -> Vec<String> {
    let is_file = |name: &String| name.ends_with(".raw") || name.ends_with(".json");
    names(dir).into_iter().filter(is_file).collect()
}

#[test]
fn tree_shows_every_restore_point_with_the_right_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(1);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    clutter::around_vms(dir.path(), &mut rng);
    clutter::inside_vm(&written.directory, &mut rng);
    let root = root_of(local(dir.path()));

    assert_eq!(names(&root), ["by-date", "by-uuid", "vms"]);
    assert_eq!(names(&must_find(&root, "vms")), [WEB]);
    let dates: Vec<&str> = written.points.iter().map(|p| p.date.as_str()).collect();
    let mut shown = dates.clone();
    shown.push("latest");
    let vm_dir = must_find(&root, &format!("vms|{WEB}"));
    assert_eq!(names(&vm_dir), shown);
    assert_eq!(target(&must_find(&vm_dir, "latest")), dates[2]);

    for (number, point) in written.points.iter().enumerate() {
        let dir = must_find(&vm_dir, &point.date);
        let files = match number {
            0 => vec!["backup.json", "suspend.raw", "xvda.raw", "xvdb.raw"],
            _ => vec!["backup.json", "xvda.raw", "xvdb.raw"],
        };
        assert_eq!(files_in(&dir), files);
        let time =
            SystemTime::UNIX_EPOCH + Duration::from_secs(SERIES_START_S + 3600 * number as u64);
        assert_eq!(dir.base().attr().unwrap().mtime, time);
        let json = must_find(&dir, "backup.json");
        assert_eq!(read_all(&json), fs::read(&point.json_path).unwrap());
        for disk in &point.disks {
            let name = ["xvda.raw", "xvdb.raw", "suspend.raw"][disk.disk];
            let file = must_find(&dir, name);
            let chain = &vm.disks[disk.disk].chain;
            let attr = file.base().attr().unwrap();
            assert_eq!(
                (attr.size_bytes, attr.mtime),
                (chain.size_bytes(disk.layer), time)
            );
            assert!(attr.allocated_bytes > 0);
            let expected = chain.read(disk.layer, 0, attr.size_bytes as usize);
            assert!(read_all(&file) == expected, "{} {name}", point.date);
        }
    }
    walk(&root);
}

#[test]
fn links_by_uuid_and_by_date_lead_to_the_points() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(2);
    let mut vm = web(&mut rng);
    for disk in &mut vm.disks {
        disk.chain.date_from(SERIES_START_S, 86_400);
    }
    vm.write(dir.path());
    let root = root_of(local(dir.path()));

    assert_eq!(names(&must_find(&root, "by-uuid")), [vm.uuid.as_str()]);
    let link = must_find(&root, &format!("by-uuid|{}", vm.uuid));
    assert_eq!(target(&link), format!("../vms/{WEB}"));
    let days = ["2026-03-01", "2026-03-02", "2026-03-03"];
    assert_eq!(names(&must_find(&root, "by-date")), days);
    let day = must_find(&root, "by-date|2026-03-02");
    assert_eq!(names(&day), [WEB]);
    assert_eq!(names(&must_find(&day, WEB)), ["20260302T013000Z"]);
    let link = must_find(&day, &format!("{WEB}|20260302T013000Z"));
    assert_eq!(
        target(&link),
        format!("../../../vms/{WEB}/20260302T013000Z")
    );
    for nothing in [
        "by-date|2026-03-09",
        "by-date|x",
        "by-date|2026-03-02|other (3f2a9c1e)",
        "by-date|2026-03-02|x",
        "by-uuid|3f2a9c1e",
        "vms|web",
        "vms|WEB-01 \"α\" _ prod (3f2a9c1e)",
        "nothing",
    ] {
        assert!(find(&root, nothing).is_none(), "{nothing}");
    }
    let other_day = format!("by-date|2026-03-02|{WEB}|20260301T013000Z");
    assert!(find(&root, &other_day).is_none());
}

#[test]
fn backups_appear_and_vanish_while_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(3);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let root = root_of(local(dir.path()));
    let vm_dir = must_find(&root, &format!("vms|{WEB}"));
    let newest = &written.points[2];
    let old_point = must_find(&vm_dir, &newest.date);
    let old_disk = must_find(&old_point, "xvda.raw");
    let json = fs::read(&newest.json_path).unwrap();

    fs::remove_file(&newest.json_path).unwrap();
    assert_eq!(
        target(&must_find(&vm_dir, "latest")),
        written.points[1].date
    );
    assert!(find(&vm_dir, &newest.date).is_none());
    let Node::Dir(gone) = &old_point else {
        panic!()
    };
    assert_eq!(gone.list().err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(read_error(&old_disk), ErrorKind::NotFound);

    // Made again under the same name, it is another object.
    fs::write(&newest.json_path, [&json[..], b"\n"].concat()).unwrap();
    assert_eq!(target(&must_find(&vm_dir, "latest")), newest.date);
    let new_point = must_find(&vm_dir, &newest.date);
    assert_ne!(new_point.base().identity(), old_point.base().identity());
    let new_disk = must_find(&new_point, "xvda.raw");
    assert_ne!(new_disk.base().identity(), old_disk.base().identity());
    assert_eq!(read_error(&old_disk), ErrorKind::Changed);
    read_all(&new_disk);

    for point in &written.points {
        fs::remove_file(&point.json_path).unwrap();
    }
    assert!(find(&vm_dir, "latest").is_none());
    assert!(names(&must_find(&root, "vms")).is_empty());
    let mut other = Vm::new(&mut rng, "new");
    other.full_backups.push(SERIES_START_S);
    other.write(dir.path());
    assert_eq!(names(&must_find(&root, "vms")).len(), 1);
}

#[test]
fn a_renamed_vm_is_found_under_its_new_name_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(4);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let root = root_of(local(dir.path()));
    must_find(&root, &format!("vms|{WEB}"));
    let mut metadata = written.points[2].metadata.clone();
    metadata["vm"]["name_label"] = json!("db-02");
    fs::write(&written.points[2].json_path, metadata.to_string()).unwrap();
    assert!(find(&root, &format!("vms|{WEB}")).is_none());
    assert_eq!(names(&must_find(&root, "vms")), ["db-02 (3f2a9c1e)"]);
}

#[test]
fn damaged_metadata_hides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(5);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let root = root_of(local(dir.path()));
    let cut = fs::read(&written.points[2].json_path).unwrap();
    for damage in [&cut[..cut.len() / 2], b"", b"[1, 2]", &[0; 1000]] {
        fs::write(&written.points[2].json_path, damage).unwrap();
        // The name comes from the newest point that can be read.
        assert_eq!(names(&must_find(&root, "vms")), [WEB]);
        let vm_dir = must_find(&root, &format!("vms|{WEB}"));
        assert_eq!(names(&vm_dir).len(), 4);
        let point = must_find(&vm_dir, &written.points[2].date);
        assert_eq!(names(&point), ["backup.json"]);
        assert_eq!(read_all(&must_find(&point, "backup.json")), damage);
        assert!(xattr(&point, "problem").unwrap().contains("metadata"));
        let sound = must_find(&vm_dir, &written.points[1].date);
        read_all(&must_find(&sound, "xvda.raw"));
        assert!(xattr(&sound, "problem").is_none());
        walk(&root);
    }
}

#[test]
fn a_disk_without_its_vhd_stays_visible_and_fails_when_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(6);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let head = &written.chains[0].layers[2].head;
    fs::remove_file(head).unwrap();
    let root = root_of(local(dir.path()));
    let point = must_find(&root, &format!("vms|{WEB}|{}", written.points[2].date));
    assert_eq!(files_in(&point), ["backup.json", "xvda.raw", "xvdb.raw"]);
    let lost = must_find(&point, "xvda.raw");
    assert_eq!(lost.base().attr().unwrap().size_bytes, (3 << 20) + 1536);
    assert_eq!(read_error(&lost), ErrorKind::NotFound);
    assert!(xattr(&lost, "problem").is_some());
    read_all(&must_find(&point, "xvdb.raw"));
    let earlier = must_find(&root, &format!("vms|{WEB}|{}", written.points[1].date));
    read_all(&must_find(&earlier, "xvda.raw"));
}

#[test]
fn attributes_tell_where_things_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(7);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let root = root_of(local(dir.path()));
    let vm_dir = must_find(&root, &format!("vms|{WEB}"));
    assert_eq!(xattr(&vm_dir, "uuid").as_deref(), Some(vm.uuid.as_str()));
    assert_eq!(
        xattr(&vm_dir, "name").as_deref(),
        Some("web-01 \"α\" / prod")
    );
    let point = must_find(&vm_dir, &written.points[2].date);
    assert_eq!(xattr(&point, "mode").as_deref(), Some("delta"));
    assert_eq!(xattr(&point, "job").as_deref(), Some(vm.jobs[0].as_str()));
    let disk = must_find(&point, "xvdb.raw");
    assert_eq!(xattr(&disk, "chain_length").as_deref(), Some("3"));
    assert_eq!(xattr(&disk, "compression").as_deref(), Some("brotli"));
    assert_eq!(xattr(&disk, "format").as_deref(), Some("VHD directory"));
    assert_eq!(xattr(&disk, "vdi_name").as_deref(), Some("data"));
    let layers = &vm.disks[1].chain.layers;
    let uuid = |layer: usize| crate::support::rng::uuid_text(&layers[layer].unique_id);
    assert_eq!(xattr(&disk, "uuid"), Some(uuid(2)));
    assert_eq!(xattr(&disk, "parent_uuid"), Some(uuid(1)));
    assert_eq!(xattr(&disk, "problem"), None);
    let names = disk.base().xattr_names().unwrap();
    for name in names {
        assert!(disk.base().xattr(&name).unwrap().is_some());
    }
    let foreign = "security.capability".as_ref();
    assert_eq!(disk.base().xattr(foreign).unwrap(), None);
}

#[test]
fn full_backups_are_shown_and_say_that_they_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(8);
    let mut vm = web(&mut rng);
    vm.full_backups.push(SERIES_START_S + 1_000_000);
    let written = vm.write(dir.path());
    let root = root_of(local(dir.path()));
    let point = must_find(&root, &format!("vms|{WEB}|{}", written.points[3].date));
    assert_eq!(names(&point), ["backup.json"]);
    assert!(xattr(&point, "problem").unwrap().contains("not read yet"));
}

#[test]
fn one_vm_that_cannot_be_listed_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(9);
    let bad = web(&mut rng);
    bad.write(dir.path());
    let mut good = Vm::new(&mut rng, "good");
    good.full_backups.push(SERIES_START_S);
    good.write(dir.path());
    let store = WatchedStore::new(dir.path());
    let root = root_of(store.clone());
    assert_eq!(names(&must_find(&root, "vms")).len(), 2);
    let good_name = format!("good ({})", &good.uuid[..8]);

    store.fail(&format!("xo-vm-backups/{}", bad.uuid));
    // Its name was known and stays known.
    assert_eq!(names(&must_find(&root, "vms")), [good_name.as_str(), WEB]);
    let failing = must_find(&root, &format!("vms|{WEB}"));
    assert_eq!(names_until_error(&failing), (vec![], Some(ErrorKind::Io)));
    assert!(xattr(&failing, "problem").is_some());

    // Whoever does not know it gets the others, and then the error.
    let fresh = root_of(store.clone());
    let (vms, by_uuid) = (must_find(&fresh, "vms"), must_find(&fresh, "by-uuid"));
    let io = Some(ErrorKind::Io);
    assert_eq!(names_until_error(&vms), (vec![good_name.clone()], io));
    assert_eq!(names_until_error(&by_uuid), (vec![good.uuid.clone()], io));
    must_find(&vms, &good_name);
    for name in [WEB, "unnamed (3f2a9c1e)", "other (3f2a9c1e)"] {
        assert_eq!(lookup_error(&vms, name), io);
    }
    assert_eq!(lookup_error(&by_uuid, &bad.uuid), io);
    for root in [&root, &fresh] {
        let by_date = must_find(root, "by-date");
        let day = "2026-03-01".to_owned();
        assert_eq!(names_until_error(&by_date), (vec![day.clone()], io));
        assert_eq!(lookup_error(&by_date, "2026-03-02"), io);
        let day = must_find(&by_date, &day);
        assert_eq!(names_until_error(&day), (vec![good_name.clone()], io));
    }

    // A failed listing of all is an error, never an empty directory.
    store.fail("xo-vm-backups");
    for path in ["vms", "by-uuid", "by-date"] {
        let Node::Dir(dir) = must_find(&root, path) else {
            panic!()
        };
        assert_eq!(dir.list().err().unwrap().kind(), ErrorKind::Io);
    }
}

#[test]
fn a_share_that_is_not_mounted_is_no_empty_repository() {
    let dir = tempfile::tempdir().unwrap();
    let root = root_of(local(dir.path()));
    let Node::Dir(vms) = must_find(&root, "vms") else {
        panic!()
    };
    assert_eq!(vms.list().err().unwrap().kind(), ErrorKind::NotFound);
    fs::create_dir(dir.path().join("xo-config-backups")).unwrap();
    assert!(names(&must_find(&root, "vms")).is_empty());
}

/// A server that answers from what it knew earlier does not find what it lists.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<dyn Store>,
    /// How many listings do not find the directory of the backups.
    misses: AtomicUsize,
}

impl StoreLayer for Forgetful {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        let left = |misses: usize| misses.checked_sub(1);
        let misses = dir.as_str() == "xo-vm-backups"
            && self.misses.fetch_update(Relaxed, Relaxed, left).is_ok();
        match misses {
            true => Err(Error::new(ErrorKind::NotFound, "is not there")),
            false => self.inner.list(dir),
        }
    }
}

#[test]
fn backups_that_are_listed_and_not_found_are_no_empty_repository() {
    let dir = tempfile::tempdir().unwrap();
    web(&mut Rng::new(4)).write(dir.path());
    let forgetful = |misses: usize| {
        root_of(Arc::new(Forgetful {
            inner: local(dir.path()),
            misses: misses.into(),
        }))
    };
    let once = must_find(&forgetful(1), "vms");
    assert_eq!(names(&once), [WEB]);
    let always = must_find(&forgetful(usize::MAX), "vms");
    assert_eq!(
        names_until_error(&always),
        (vec![], Some(ErrorKind::Changed))
    );
}

#[test]
fn listing_all_vms_reads_one_metadata_file_of_each() {
    let dir = tempfile::tempdir().unwrap();
    catalogue::write(dir.path(), catalogue::Options::new(40, 30));
    let store = WatchedStore::new(dir.path());
    let root = root_of(store.clone());
    let vms = must_find(&root, "vms");
    assert_eq!(names(&vms).len(), 40);
    assert_eq!(store.reads.load(Relaxed), 40);
    for name in names(&vms) {
        let vm = must_find(&vms, &name);
        assert_eq!(names(&vm).len(), 31);
        vm.base().attr().unwrap();
    }
    names(&must_find(&root, "by-date"));
    names(&must_find(&root, "by-uuid"));
    assert_eq!(
        store.reads.load(Relaxed),
        40,
        "listings read metadata again"
    );
}

#[test]
fn remote_listings_are_kept_for_the_refresh_interval() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(10);
    let vm = web(&mut rng);
    let written = vm.write(dir.path());
    let store = WatchedStore::remote(dir.path());
    let root = aged_root_of(store.clone(), Duration::from_secs(3600));
    let vm_dir = must_find(&root, &format!("vms|{WEB}"));
    assert_eq!(names(&vm_dir).len(), 4);
    let lists = store.lists.load(Relaxed);
    for _ in 0..10 {
        names(&must_find(&root, "vms"));
        names(&must_find(&root, &format!("vms|{WEB}")));
    }
    assert_eq!(store.lists.load(Relaxed), lists);

    // What is seen to be gone is believed at once.
    fs::remove_file(&written.points[1].json_path).unwrap();
    let old = find(&vm_dir, &written.points[1].date);
    if let Some(Node::Dir(point)) = old {
        assert_eq!(point.list().err().unwrap().kind(), ErrorKind::NotFound);
    }
    assert_eq!(names(&vm_dir).len(), 3);
}

#[test]
fn naming_the_vms_of_a_bucket_costs_one_small_file_each() {
    let dir = tempfile::tempdir().unwrap();
    let uuids = catalogue::write(dir.path(), catalogue::Options::new(200, 3));
    // Without the file, with a broken one, and with an empty one, the truth is asked.
    let cache_of = |n: usize| {
        let vm = dir.path().join("xo-vm-backups").join(&uuids[n]);
        vm.join("cache.json.gz")
    };
    fs::remove_file(cache_of(0)).unwrap();
    fs::write(cache_of(1), b"broken").unwrap();
    let store = WatchedStore::remote(dir.path());
    let root = aged_root_of(store.clone(), Duration::from_secs(3600));
    let shown = names(&must_find(&root, "vms"));
    assert_eq!(shown.len(), 200);
    let name = |n: usize| {
        let label = catalogue::vm_name(n).replace('/', "_");
        format!("{label} ({})", &uuids[n][..8])
    };
    for n in 0..200 {
        assert!(shown.contains(&name(n)), "{}", name(n));
    }
    let counted = || (store.lists.load(Relaxed), store.reads.load(Relaxed));
    assert_eq!(counted(), (1 + 2, 200 + 2));
    // Looking at them, as `ls -l` does, costs nothing more.
    for n in 0..200 {
        let vm = must_find(&root, &format!("vms|{}", name(n)));
        assert!(vm.base().attr().unwrap().mtime > SystemTime::UNIX_EPOCH);
    }
    assert_eq!(counted(), (1 + 2, 200 + 2));
    // Entering one lists it, whatever the file says.
    fs::copy(cache_of(7), cache_of(8)).unwrap();
    let entered = must_find(&root, &format!("vms|{}", name(8)));
    assert_eq!(names(&entered).len(), 4);
    assert_eq!(store.lists.load(Relaxed), 1 + 2 + 1);
}

#[test]
fn the_index_is_a_hint_in_every_state_it_can_be_in() {
    for cache in Cache::ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng::new(11);
        let mut vm = web(&mut rng);
        vm.cache = cache;
        let written = vm.write(dir.path());
        let store = WatchedStore::remote(dir.path());
        let catalogue = Catalogue::new(store.clone(), Duration::ZERO);
        let found = catalogue.vm_by_folder(&vm.uuid).unwrap().unwrap();
        // For the folder's name it is believed: asking the truth would take two requests a VM.
        let name = match cache {
            Cache::Different => "name in the cache (3f2a9c1e)",
            _ => WEB,
        };
        assert_eq!(found.name, name, "{cache:?}");
        store.reads.store(0, Relaxed);
        let points = found.vm.points().unwrap();
        let dates: Vec<&str> = written.points.iter().map(|p| p.date.as_str()).collect();
        let shown: Vec<&str> = points.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(shown, dates, "{cache:?}");
        for (point, written) in points.iter().zip(&written.points) {
            assert_eq!(point.disks.len(), written.disks.len(), "{cache:?}");
            assert!(point.problems.is_empty(), "{cache:?}");
        }
        if cache == Cache::Fresh {
            assert_eq!(
                store.reads.load(Relaxed),
                1,
                "the index saves the other reads"
            );
        }
    }
}

#[test]
fn a_bare_image_shows_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(12);
    let chain = chain(&mut rng, 3, Storage::Dir(Filter::Gzip));
    let written = chain.write(dir.path());
    let path = written.youngest().canonicalize().unwrap();
    let (root, inside) = split_bare_path(&path).unwrap();
    let context = DiskContext::new(local(&root), CACHE_BYTES);
    let root = bare_root(context.clone(), &inside, Default::default()).unwrap();
    assert_eq!(files_in(&root), ["disk.raw"]);
    let disk = must_find(&root, "disk.raw");
    assert!(read_all(&disk) == chain.read(2, 0, (3 << 20) + 1536));
    assert_eq!(xattr(&disk, "chain_length").as_deref(), Some("3"));
    let nothing = StorePath::new("no.vhd").unwrap();
    let error = bare_root(context, &nothing, Default::default()).err();
    assert_eq!(error.unwrap().kind(), ErrorKind::NotFound);

    // What kept its footer from being looked at is the reason, not that there is no file.
    let name = path.file_name().unwrap().to_str().unwrap();
    let data = path.with_file_name("data");
    let image = data.join(name.replace(".alias.vhd", ".vhd"));
    let (top, inside) = split_bare_path(&image).unwrap();
    let store = WatchedStore::new(&top);
    let context = DiskContext::new(store.clone(), CACHE_BYTES);
    assert!(bare_root(context.clone(), &inside, Default::default()).is_ok());
    store.fail(inside.child("footer").as_str());
    let error = bare_root(context, &inside, Default::default()).err();
    assert_eq!(error.unwrap().kind(), ErrorKind::Io);
}

#[test]
fn hostile_names_are_shown_safely() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(13);
    for label in [
        "..",
        ".",
        "",
        "a/../../b",
        "\u{1b}[2J",
        "\u{202e}txt",
        "x\0y",
    ] {
        let mut vm = Vm::new(&mut rng, label);
        vm.name_label = json!(label);
        for name in ["../../etc/shadow", "dup", "dup", "\n", ""] {
            let chain = chain(&mut rng, 1, Storage::File);
            vm.disk(&mut rng, name, chain).vbd = None;
        }
        vm.write(dir.path());
    }
    for label in [
        json!(5),
        json!(null),
        json!({"a": 1}),
        json!("é".repeat(1000)),
    ] {
        let mut vm = Vm::new(&mut rng, "x");
        vm.name_label = label;
        vm.full_backups.push(SERIES_START_S);
        vm.write(dir.path());
    }
    let root = root_of(local(dir.path()));
    let vms = must_find(&root, "vms");
    assert_eq!(names(&vms).len(), 11);
    for name in names(&vms) {
        let point = must_find(&vms, &format!("{name}|20260301T013000Z"));
        let count = files_in(&point).len();
        assert!(count == 6 || count == 1, "{:?}", names(&point));
    }
    walk(&root);
}

#[test]
fn entries_have_the_kind_and_identity_a_lookup_gives() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(18);
    web(&mut rng).write(dir.path());
    for store in [
        WatchedStore::new(dir.path()),
        WatchedStore::remote(dir.path()),
    ] {
        let seen = walk(&root_of(store));
        let files = seen.iter().filter(|(_, kind)| *kind == NodeKind::File);
        assert_eq!(files.count(), 3 + 7);
    }
}
