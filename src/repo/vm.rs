//! One VM's directory: its restore points and its name, re-checked when they may have changed.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::cache_index::CacheIndex;
use super::layout::{self, CACHE_FILE, MAX_METADATA_BYTES};
use super::metadata::RestorePoint;
use super::{json, naming};
use crate::error::{Error, ErrorKind, Result};
use crate::parallel::parallel_map;
use crate::store::{EntryKind, LinkFault, Meta, Store, StorePath, Validity, Version};
use crate::sync::lock;

/// Memory for parsed metadata, in bytes, over all VMs.
const METADATA_CACHE_BYTES: u64 = 16 << 20;
/// Most restore points that are tried for a readable name of a VM.
const MAX_NAME_TRIES: usize = 64;

/// Weighs parsed metadata by the memory it takes.
#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<(StorePath, Version), Arc<RestorePoint>> for ByWeight {
    fn weight(&self, key: &(StorePath, Version), point: &Arc<RestorePoint>) -> u64 {
        point.weight() + key.0.as_str().len() as u64 + 64
    }
}

/// What all VMs of a repository share.
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    /// How old a listing may be before it is made again.
    pub(super) max_age: Duration,
    metadata: Cache<(StorePath, Version), Arc<RestorePoint>, ByWeight>,
}

impl Shared {
    pub(super) fn new(store: Arc<dyn Store>, max_age: Duration) -> Self {
        Shared {
            store,
            max_age,
            metadata: Cache::with_weighter(4096, METADATA_CACHE_BYTES, ByWeight),
        }
    }
}

/// A restore point as the listing of its VM's directory tells it.
#[derive(Debug)]
pub struct PointRef {
    /// The date name.
    pub name: String,
    meta: OnceLock<Meta>,
    /// The metadata file is a symbolic link that is not followed.
    pub link: Option<LinkFault>,
}

/// The restore points of a VM at one moment.
#[derive(Debug)]
pub struct Listing {
    /// When the listing was begun.
    at: Instant,
    /// Oldest first.
    pub points: Vec<PointRef>,
    /// Whether there is a `cache.json.gz`, and its state where the listing tells it.
    index: Option<Option<Meta>>,
    /// Symbolic links in the directory that are not followed, besides those that stand for points.
    pub links: Vec<(String, LinkFault)>,
}

impl Listing {
    /// The newest restore point.
    pub fn newest(&self) -> Option<&PointRef> {
        self.points.last()
    }

    /// The point of this name.
    pub fn find(&self, name: &str) -> Option<&PointRef> {
        let at = self.points.binary_search_by(|p| p.name.as_str().cmp(name));
        self.points.get(at.ok()?)
    }

    /// The points whose names start with `prefix`, oldest first.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a PointRef> {
        let start = self.points.partition_point(|p| p.name.as_str() < prefix);
        self.points[start..]
            .iter()
            .take_while(move |p| p.name.starts_with(prefix))
    }
}

/// The name of a VM, and what it was read from.
#[derive(Clone)]
struct Label {
    text: Option<Arc<str>>,
    point: String,
    version: Version,
}

/// What `cache.json.gz` tells of a VM, at one moment.
#[derive(Clone)]
struct Hint {
    at: Instant,
    text: Arc<str>,
    newest: Arc<str>,
    /// See `Newest::as_of`.
    as_of: Option<SystemTime>,
}

/// A directory below `xo-vm-backups`.
pub struct Vm {
    shared: Arc<Shared>,
    folder: String,
    dir: StorePath,
    /// The directory is a symbolic link that is not followed.
    link: Option<LinkFault>,
    listing: Mutex<Option<Arc<Listing>>>,
    label: Mutex<Option<Label>>,
    /// What [`Self::label`] told last.
    last_label: Mutex<Option<Arc<str>>>,
    /// Whether it has been said that the VM cannot be listed.
    pub(super) is_reported: AtomicBool,
    /// What `cache.json.gz` told last.
    hint: Mutex<Option<Hint>>,
}

impl Vm {
    pub(super) fn new(shared: Arc<Shared>, folder: &str, link: Option<LinkFault>) -> Self {
        Vm {
            shared,
            folder: folder.to_owned(),
            dir: StorePath::root().child(layout::VM_BACKUPS).child(folder),
            link,
            listing: Mutex::new(None),
            label: Mutex::new(None),
            last_label: Mutex::new(None),
            is_reported: AtomicBool::new(false),
            hint: Mutex::new(None),
        }
    }

    /// The directory's name: the VM's uuid.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The directory's path in the repository.
    pub fn dir(&self) -> &StorePath {
        &self.dir
    }

    /// Why the directory is not entered, where it is a symbolic link that is not followed.
    pub fn link(&self) -> Option<LinkFault> {
        self.link
    }

    /// The restore points there are now (or were, at most the catalogue's `max_age` ago).
    ///
    /// # Errors
    /// As the storage says; `NotFound` when the directory is gone. A failed listing is never an
    /// empty one.
    pub fn listing(&self) -> Result<Arc<Listing>> {
        if let Some(link) = self.link {
            return Err(link.error(&self.dir));
        }
        if let Some(known) = self.known_listing()
            && known.at.elapsed() < self.shared.max_age
        {
            return Ok(known);
        }
        let at = Instant::now();
        let entries = self.shared.store.list(&self.dir)?;
        let index = entries.iter().find(|e| e.name == CACHE_FILE);
        let index = index.map(|e| e.meta);
        let mut points = Vec::new();
        let mut links = Vec::new();
        for entry in entries {
            let link = match entry.kind {
                EntryKind::Dir => continue,
                EntryKind::File => None,
                EntryKind::Link(fault) => Some(fault),
            };
            match (layout::point_of_file(&entry.name), link) {
                (Some(name), link) => points.push(PointRef {
                    name: name.to_owned(),
                    meta: entry.meta.map_or_else(OnceLock::new, OnceLock::from),
                    link,
                }),
                (None, Some(fault)) => links.push((entry.name, fault)),
                (None, None) => {}
            }
        }
        links.sort_by(|a, b| a.0.cmp(&b.0));
        points.sort_by(|a, b| a.name.cmp(&b.name));
        points.dedup_by(|a, b| a.name == b.name);
        points.shrink_to_fit();
        let listing = Arc::new(Listing {
            at,
            points,
            index,
            links,
        });
        let mut known = lock(&self.listing);
        // A slower listing that was begun earlier must not overwrite a newer one.
        if known.as_ref().is_none_or(|k| k.at <= at) {
            *known = Some(listing.clone());
        }
        Ok(listing)
    }

    /// [`Self::listing`], for somebody on the way to a restore point: `None` for the newest one. On
    /// remote storage its metadata, which is wanted next, is asked for together with the listing; it
    /// counts only if it is in the state that the listing tells.
    ///
    /// # Errors
    /// As [`Self::listing`].
    pub fn listing_towards(&self, point: Option<&str>) -> Result<Arc<Listing>> {
        let wanted = match point {
            Some(name) => Some(Arc::from(name)),
            None => self.hinted_newest(),
        };
        let is_point = |name: &Arc<str>| {
            let file = format!("{name}.json");
            layout::point_of_file(&file).is_some()
                && !self.shared.store.has_copy(&self.json_path(name), None)
        };
        let wanted = wanted.filter(is_point);
        let (Some(wanted), true, false) =
            (wanted, self.shared.store.traits().remote, self.is_listed())
        else {
            return self.listing();
        };
        let both = [None, Some(wanted)];
        let mut listing = parallel_map(&both, both.len(), |point| match point {
            None => Some(self.listing()),
            Some(name) => {
                // What fails is told by whoever needs it.
                let read = self.read_json(name, None);
                if let Some((point, meta)) = read.ok().filter(|(point, _)| !point.unreadable) {
                    let key = (self.json_path(name), meta.version);
                    self.shared.metadata.insert(key, Arc::new(point));
                }
                None
            }
        })
        .into_iter()
        .flatten();
        listing.next().unwrap_or_else(|| self.listing())
    }

    /// The newest point as `cache.json.gz` told last.
    fn hinted_newest(&self) -> Option<Arc<str>> {
        let hint = lock(&self.hint);
        hint.as_ref().map(|hint| Arc::clone(&hint.newest))
    }

    /// Reads and parses the metadata of a point.
    fn read_json(&self, name: &str, listed: Option<&Meta>) -> Result<(RestorePoint, Meta)> {
        let path = self.json_path(name);
        let (data, meta) =
            (self.shared.store).read(&path, MAX_METADATA_BYTES, Validity::Listed(listed))?;
        let point = RestorePoint::parse(&self.dir, name, Some(meta), &data);
        Ok((point, meta))
    }

    fn known_listing(&self) -> Option<Arc<Listing>> {
        let known = lock(&self.listing);
        known.clone()
    }

    /// Forgets the listing: something turned out to be gone.
    fn forget_listing(&self) {
        *lock(&self.listing) = None;
    }

    /// The path of a point's metadata file.
    pub fn json_path(&self, point: &str) -> StorePath {
        self.dir.child(&format!("{point}.json"))
    }

    /// The state of a point's metadata file, `None` when it is gone.
    ///
    /// # Errors
    /// As the storage says.
    pub fn point_meta(&self, point: &PointRef) -> Result<Option<Meta>> {
        if let Some(meta) = point.meta.get() {
            return Ok(Some(*meta));
        }
        match self.shared.store.head(&self.json_path(&point.name)) {
            Ok(meta) => Ok(Some(*point.meta.get_or_init(|| meta))),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.forget_listing();
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// A restore point by its date name, `None` when there is none.
    ///
    /// # Errors
    /// When the VM's directory cannot be listed; otherwise as [`Self::read_point`].
    pub fn point(&self, name: &str) -> Result<Option<Arc<RestorePoint>>> {
        match self.listing()?.find(name) {
            Some(point) => self.read_point(point),
            None => Ok(None),
        }
    }

    /// Reads the metadata of a listed point; `None` when it is gone meanwhile. Metadata that was read
    /// and is damaged makes a point that says so.
    ///
    /// # Errors
    /// What kept the metadata from being fetched: which disks there are is then not known.
    pub fn read_point(&self, point: &PointRef) -> Result<Option<Arc<RestorePoint>>> {
        let path = self.json_path(&point.name);
        if let Some(link) = point.link {
            return Err(link.error(&path));
        }
        let unreadable = |e: Error| {
            let meta = point.meta.get().copied();
            let problem = format!("metadata cannot be read: {e}");
            let point = RestorePoint::unreadable(&self.dir, &point.name, meta, problem);
            Ok(Some(Arc::new(point)))
        };
        let Some(meta) = self.point_meta(point)? else {
            return Ok(None);
        };
        let key = (path, meta.version);
        if let Some(known) = self.shared.metadata.get(&key) {
            return Ok(Some(known));
        }
        let read = |listed| self.read_json(&point.name, listed);
        let damaged = |read: &Result<(RestorePoint, Meta)>| match read {
            Ok((point, _)) => point.unreadable,
            Err(e) => e.kind() == ErrorKind::Corrupt,
        };
        let mut found = read(Some(&meta));
        // As [`crate::store::read_listed_as`] does it.
        if damaged(&found) && self.shared.store.has_copy(&key.0, None) {
            found = read(None);
        }
        match found {
            Ok((point, meta)) => {
                let point = Arc::new(point);
                let key = (key.0, meta.version);
                self.shared.metadata.insert(key, point.clone());
                Ok(Some(point))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.forget_listing();
                Ok(None)
            }
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::WrongKey) => unreadable(e),
            Err(e) => Err(e),
        }
    }

    /// [`Self::read_point`] for a report, which goes on and tells of what cannot be fetched.
    pub fn report_point(&self, point: &PointRef) -> Option<Arc<RestorePoint>> {
        self.read_point(point).unwrap_or_else(|e| {
            let meta = point.meta.get().copied();
            let problem = format!("metadata cannot be fetched: {e}");
            let point = RestorePoint::unreadable(&self.dir, &point.name, meta, problem);
            Some(Arc::new(point))
        })
    }

    /// Whether reading the metadata again would give the same, as long as it is not rewritten.
    fn is_settled(&self, point: &RestorePoint) -> bool {
        let kept = |meta: Meta| {
            let key = (point.json_path.clone(), meta.version);
            self.shared.metadata.get(&key).is_some()
        };
        !point.unreadable || point.json_meta.is_some_and(kept)
    }

    /// The metadata of all restore points, oldest first, for a report: see [`Self::report_point`]. On
    /// remote storage `cache.json.gz` saves a request per point where it is as new as the point.
    ///
    /// # Errors
    /// When the VM's directory cannot be listed.
    pub fn points(&self) -> Result<Vec<Arc<RestorePoint>>> {
        let listing = self.listing()?;
        let traits = self.shared.store.traits();
        let index = match listing.index {
            Some(listed) if traits.remote && listing.points.len() > 1 => {
                let store = &*self.shared.store;
                CacheIndex::load(store, &self.dir, listed.as_ref()).unwrap_or_else(|e| {
                    tracing::info!("{e}; reading the restore points one by one");
                    None
                })
            }
            _ => None,
        };
        let points = parallel_map(&listing.points, traits.parallelism, |point| {
            let hint = || {
                let meta = self.point_meta(point).ok()??;
                let known = index.as_ref()?.fresh(&point.name, &meta)?;
                // An entry that makes no sense is no reason not to ask the truth.
                (!known.unreadable).then(|| {
                    let json_meta = Some(meta);
                    Arc::new(RestorePoint {
                        json_meta,
                        ..known.clone()
                    })
                })
            };
            hint().or_else(|| self.report_point(point))
        });
        Ok(points.into_iter().flatten().collect())
    }

    /// What `cache.json.gz` has: one request where the truth takes a listing and a file. (Where the
    /// store has kept a copy, that one request is the listing.) Asked only while nothing better is
    /// known, and then believed as long as a listing is, also when the VM is listed meanwhile: a
    /// name must not change under somebody who is just entering the directory.
    fn hint(&self) -> Option<Hint> {
        if !self.shared.store.traits().remote || self.link.is_some() {
            return None;
        }
        let known = || lock(&self.hint);
        if let Some(hint) = &*known()
            && hint.at.elapsed() < self.shared.max_age
        {
            return Some(hint.clone());
        }
        if self.is_listed() {
            return None;
        }
        let at = Instant::now();
        let store = &*self.shared.store;
        let listed = match store.has_copy(&self.dir.child(CACHE_FILE), None) {
            // Without it, or when listing fails, the truth is asked for.
            true => self.listing().ok()?.index?,
            false => None,
        };
        match CacheIndex::newest(store, &self.dir, listed.as_ref()) {
            Ok(newest) => {
                let newest = newest?;
                let text = json::cut(&newest.vm_name, 4 * naming::MAX_NAME_BYTES);
                let hint = Hint {
                    at,
                    text: Arc::from(text),
                    newest: Arc::from(newest.date),
                    as_of: newest.as_of,
                };
                *known() = Some(hint.clone());
                Some(hint)
            }
            Err(e) => {
                tracing::info!("{e}; listing the VM's directory instead");
                None
            }
        }
    }

    /// Asks for `cache.json.gz` where it may be believed and nothing better is known.
    pub(super) fn ask_hint(&self) {
        let _ = self.hint();
    }

    /// Lists the directory, unless asking for the hint does: a copy of `cache.json.gz` is vouched for by
    /// a listing.
    pub(super) fn ask_listing(&self) {
        if !self
            .shared
            .store
            .has_copy(&self.dir.child(CACHE_FILE), None)
        {
            let _ = self.listing();
        }
    }

    /// On remote storage, asks for `cache.json.gz` and the listing at once while neither is known: who
    /// names one VM, and not all of them, is about to enter it.
    pub(super) fn ask_both(&self) {
        let is_known = self.is_listed() || self.hinted_newest().is_some();
        if is_known || !self.shared.store.traits().remote {
            return;
        }
        let asks: [fn(&Self); 2] = [Self::ask_hint, Self::ask_listing];
        parallel_map(&asks, asks.len(), |ask| ask(self));
    }

    /// Whether `cache.json.gz` has been read, knows the newest point of this listing, and is as new as
    /// that: its entry then stands for the metadata file.
    pub fn is_newest_known(&self, listing: &Listing) -> bool {
        let hint = lock(&self.hint);
        let (Some(hint), Some(newest)) = (&*hint, listing.newest()) else {
            return false;
        };
        let written = newest.meta.get().and_then(|meta| meta.modified);
        *hint.newest == *newest.name && written.is_some_and(|w| Some(w) <= hint.as_of)
    }

    /// Whether a listing is known that is not too old.
    fn is_listed(&self) -> bool {
        let listed = self.known_listing();
        listed.is_some_and(|l| l.at.elapsed() < self.shared.max_age)
    }

    /// The date name of the newest restore point, by what is known cheapest: for showing a time,
    /// not for finding the point.
    ///
    /// # Errors
    /// As [`Self::listing`], when no earlier listing is known either.
    pub fn newest_date(&self) -> Result<Option<Arc<str>>> {
        if !self.is_listed()
            && let Some(hint) = self.hint()
        {
            return Ok(Some(hint.newest));
        }
        let listing = self.listing().or_else(|e| self.known_listing().ok_or(e))?;
        Ok(listing.newest().map(|p| Arc::from(p.name.as_str())))
    }

    /// The VM's name: that of its newest restore point whose metadata is sound. `None` when none is
    /// or there is none. On remote storage `cache.json.gz` may be believed.
    ///
    /// # Errors
    /// When the VM's directory cannot be listed, or metadata on the way to the name cannot be fetched.
    pub fn label(&self) -> Result<Option<Arc<str>>> {
        let label = self.find_label()?;
        let mut last = lock(&self.last_label);
        last.clone_from(&label);
        Ok(label)
    }

    /// What [`Self::label`] told when it last could.
    pub fn last_label(&self) -> Option<Arc<str>> {
        let last = lock(&self.last_label);
        last.clone()
    }

    fn find_label(&self) -> Result<Option<Arc<str>>> {
        if let Some(hint) = self.hint() {
            return Ok(Some(hint.text));
        }
        let listing = self.listing()?;
        let Some(newest) = listing.newest() else {
            return Ok(None);
        };
        let version = match newest.link {
            Some(_) => None,
            None => self.point_meta(newest)?.map(|m| m.version),
        };
        if let Some(known) = &*lock(&self.label)
            && known.point == newest.name
            && Some(known.version) == version
        {
            return Ok(known.text.clone());
        }
        let mut text = None;
        // A point that could not be read for a passing reason must be asked again.
        let mut settled = true;
        let points = listing.points.iter().rev().filter(|p| p.link.is_none());
        for point in points.take(MAX_NAME_TRIES) {
            let read = self.read_point(point)?;
            settled &= read.as_ref().is_some_and(|p| self.is_settled(p));
            let name = read.and_then(|p| p.vm_name.clone());
            // No more of it than a file name takes is ever shown; a repository has many VMs.
            let name = name.filter(|n| !n.trim().is_empty());
            if let Some(name) = name {
                text = Some(Arc::from(json::cut(&name, 4 * naming::MAX_NAME_BYTES)));
                break;
            }
        }
        if let Some(version) = version.filter(|_| settled) {
            let label = Label {
                text: text.clone(),
                point: newest.name.clone(),
                version,
            };
            *lock(&self.label) = Some(label);
        }
        Ok(text)
    }

    /// The store the VM is on.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }
}
