//! From the youngest image to the last of its ancestors: which image is whose parent.
//!
//! A child names its parent by path and by uuid. Both can be out of date while XO merges, after it
//! was interrupted, and after people have moved files; what then counts as sound is decided here
//! and nowhere else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::merge::{Merge, merges_of};
use super::{Chain, ChainLink, parent_name};
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::image::{Found, Image};
use crate::image::format::recognise::is_vhd_name;
use crate::image::format::registry::Registry;
use crate::image::guard::{Guard, RestorePointGuard};
use crate::image::uuid::Uuid;
use crate::parallel::parallel_map;
use crate::store::{Entry, EntryKind, Meta, Store, StorePath};

/// Longest chain that is followed. XO's longest are some hundreds; the limit bounds the work that
/// hostile files can cause.
const MAX_CHAIN: usize = 16_384;

/// Images opened at once with the first one, and at the most later: chains are seldom longer than
/// a month of days, and opening what is not needed costs requests.
const FIRST_BATCH: usize = 32;
const MAX_BATCH: usize = 512;

/// What linking needs to know of one directory of images.
struct DirIndex {
    names: Vec<String>,
    /// The states of files, where the listing tells them.
    metas: HashMap<String, Meta>,
    by_uuid: Option<HashMap<Uuid, Vec<Found>>>,
}

/// Links the chain whose youngest image is at `path`; `guard` is the file that guards it.
///
/// # Errors
/// When the youngest image cannot be opened, and when anything cannot be fetched: the chain could then
/// be another one than it is. What is wrong with images further down ends the chain there and is kept
/// in it.
pub(in crate::image) fn link(
    registry: &Registry,
    store: &Arc<dyn Store>,
    path: &StorePath,
    guard: Option<RestorePointGuard>,
) -> Result<Chain> {
    let mut linker = Linker {
        registry,
        store,
        dirs: HashMap::new(),
        opened: HashMap::new(),
        batch: FIRST_BATCH,
        merges: Vec::new(),
        problems: Vec::new(),
        guard: Guard::new(guard),
        checked: false,
        listings: HashMap::new(),
        leads_out: false,
    };
    linker.learn_dir(&path.parent())?;
    let mut links = vec![linker.open_youngest(path)?];
    let mut broken = None;
    while links[links.len() - 1].found.image.is_differencing() {
        if links.len() >= MAX_CHAIN {
            broken = Some(Error::corrupt(format!(
                "chain has more than {MAX_CHAIN} links"
            )));
            break;
        }
        match linker.parent_of(&links) {
            Ok(parent) => {
                if parent.replaces_child {
                    links.pop();
                }
                links.push(parent);
            }
            Err(e) if e.is_fetch_failure() => return Err(e),
            Err(e) => {
                broken = Some(e);
                break;
            }
        }
    }
    let mut chain = Chain::new(
        registry.new_id(),
        links,
        broken,
        linker.merges,
        linker.problems,
        linker.guard,
    );
    chain.leads_out = linker.leads_out;
    Ok(chain)
}

struct Linker<'a> {
    registry: &'a Registry,
    store: &'a Arc<dyn Store>,
    dirs: HashMap<StorePath, DirIndex>,
    /// Images opened ahead of their turn, on storage where each takes a round trip.
    opened: HashMap<StorePath, Result<Found>>,
    /// How many of them the next time.
    batch: usize,
    merges: Vec<Merge>,
    problems: Vec<String>,
    guard: Guard,
    /// Whether the restore point has been checked to exist.
    checked: bool,
    /// Directories in which parents were looked for whatever the case of their names.
    listings: HashMap<StorePath, Result<Arc<Vec<String>>>>,
    /// Whether a relative name of a parent led above the root.
    leads_out: bool,
}

/// What is asked of the storage together.
enum Ask {
    Open(StorePath),
    /// Whether the restore point is there.
    CheckGuard,
}

impl Linker<'_> {
    /// Lists a directory of images once and learns of its merges.
    ///
    /// # Errors
    /// What kept the directory, or the state of a merge, from being fetched.
    fn learn_dir(&mut self, dir: &StorePath) -> Result<()> {
        if self.dirs.contains_key(dir) {
            return Ok(());
        }
        let entries = match self.store.list(dir) {
            Ok(entries) => entries,
            Err(e) if e.is_fetch_failure() => return Err(e),
            Err(e) => {
                self.problems
                    .push(format!("images beside it cannot be listed: {e}"));
                Vec::new()
            }
        };
        let known = |e: &Entry| Some((e.name.clone(), e.meta?));
        let metas: HashMap<String, Meta> = entries.iter().filter_map(known).collect();
        let told = Instant::now();
        for modified in metas.values().filter_map(|meta| meta.modified) {
            self.guard.note_modified(modified, told);
        }
        let names: Vec<String> = entries
            .into_iter()
            .filter(|e| e.kind == EntryKind::File || is_vhd_name(&e.name))
            .map(|e| e.name)
            .collect();
        let merges = merges_of(self.store.as_ref(), dir, &names, &mut self.problems)?;
        self.merges.extend(merges);
        self.dirs.insert(
            dir.clone(),
            DirIndex {
                names,
                metas,
                by_uuid: None,
            },
        );
        Ok(())
    }

    /// What the listing of its directory told of a file.
    fn listed(&self, path: &StorePath) -> Option<&Meta> {
        let index = self.dirs.get(&path.parent())?;
        index.metas.get(path.file_name())
    }

    fn open_one(&self, path: &StorePath) -> Result<Found> {
        self.registry.open(path, self.listed(path))
    }

    /// Opens an image. Where every request takes a round trip, the images that are next in the
    /// directory's order of dates are opened with it, all at once: as a rule they are its ancestors.
    fn open(&mut self, path: &StorePath) -> Result<Found> {
        if self.store.traits().cheap_ranges {
            return self.open_one(path);
        }
        if !self.opened.contains_key(path) {
            let dir = path.parent();
            let mut paths = vec![path.clone()];
            if let Some(index) = self.dirs.get(&dir) {
                let mut older: Vec<&String> = index
                    .names
                    .iter()
                    .filter(|name| is_vhd_name(name) && name.as_str() < path.file_name())
                    .collect();
                older.sort_unstable_by(|a, b| b.cmp(a));
                paths.extend(older.iter().take(self.batch).map(|name| dir.child(name)));
            }
            paths.retain(|p| !self.opened.contains_key(p));
            self.batch = (self.batch * 2).min(MAX_BATCH);
            // The listing has told when the images were modified: a check covers all before that.
            let check = (!self.checked && self.guard.path().is_some()).then_some(Ask::CheckGuard);
            self.checked = true;
            let asks: Vec<Ask> = check
                .into_iter()
                .chain(paths.into_iter().map(Ask::Open))
                .collect();
            let threads = self.store.traits().parallelism;
            let found = parallel_map(&asks, threads, |ask| match ask {
                Ask::Open(path) => Some((path.clone(), self.open_one(path))),
                Ask::CheckGuard => {
                    // Whoever needs the file asks again.
                    let _ = self.guard.check_state(self.store.as_ref());
                    None
                }
            });
            self.opened.extend(found.into_iter().flatten());
        }
        match self.opened.get(path) {
            Some(found) => found.clone(),
            None => self.open_one(path),
        }
    }

    /// The youngest image, or the image that XO has merged it into without having renamed that yet.
    fn open_youngest(&mut self, path: &StorePath) -> Result<ChainLink> {
        let error = match self.open(path) {
            Ok(found) => return Ok(ChainLink::new(found)),
            Err(e) if e.is_fetch_failure() => return Err(e),
            Err(e) => e,
        };
        for merge in &self.merges {
            if merge.children.last() != Some(path) {
                continue;
            }
            // Old state files tell no uuid; in their last step the target is the child all the same.
            let is_child = |target: &Found| match merge.child_uuid {
                Some(uuid) => uuid == target.image.uuid(),
                None => merge.in_cleanup && error.kind() == ErrorKind::NotFound,
            };
            if let Some(target) = fetched(self.open_one(&merge.target))?
                && is_child(&target)
            {
                let mut link = ChainLink::new(target);
                link.notes.push(format!(
                    "stands in for {path}, which was merged into it but is not replaced by it yet"
                ));
                return Ok(link);
            }
        }
        Err(error)
    }

    /// The parent of the last link.
    fn parent_of(&mut self, links: &[ChainLink]) -> Result<ChainLink> {
        let child = &links[links.len() - 1].found;
        let Some(parent) = &child.image.facts.parent else {
            return Err(Error::corrupt("has no parent").with_object(&child.path));
        };
        let wanted = parent.uuid;
        let dir = child.path.parent();
        let by_name = dir
            .join(&parent.name)
            .and_then(|path| {
                if parent.name.is_empty() || path == child.path {
                    return Err(Error::corrupt("names no parent"));
                }
                self.learn_dir(&path.parent())?;
                self.open(&path)
            })
            .and_then(|parent| self.accept(links, parent, wanted));
        let not_by_name = match by_name {
            Ok(link) => return self.check_loop(links, link),
            Err(e) if e.is_fetch_failure() => return Err(e),
            Err(e) => e,
        };
        if let Some(link) = self.merged_ancestor(child)? {
            return self.check_loop(links, link);
        }
        let (by_other_name, dirs) = self.by_other_names(child, wanted);
        let not_by_name = match by_other_name {
            Some(Ok(link)) => return self.check_loop(links, link),
            Some(Err(e)) if e.is_fetch_failure() => return Err(e),
            Some(Err(e)) => e,
            None => not_by_name,
        };
        let mut found = None;
        for dir in [&dir].into_iter().chain(&dirs) {
            found = self.by_uuid(dir, wanted, &child.image)?;
            if found.is_some() {
                break;
            }
        }
        match found {
            Some(found) => {
                let mut link = ChainLink::new(found);
                link.notes.push(format!(
                    "found by its uuid: the child's name for it ({:?}) leads nowhere",
                    parent.name
                ));
                self.check_loop(links, link)
            }
            None => Err(Error::corrupt(format!(
                "its parent {:?} ({wanted}) cannot be used: {not_by_name}",
                parent.name
            ))
            .with_object(&child.path)
            .with_source(not_by_name)),
        }
    }

    /// The parent as others than XO name it: by a Windows path, by parent locators, whatever the case of
    /// the letters. `None` when no such name leads to a file, an error when one leads to something
    /// else; and the directories to which they lead.
    fn by_other_names(
        &mut self,
        child: &Found,
        wanted: Uuid,
    ) -> (Option<Result<ChainLink>>, Vec<StorePath>) {
        let mut names: Vec<String> = Vec::new();
        let parent = child.image.facts.parent.as_ref();
        names.extend(parent.map(|parent| parent.name.clone()));
        let mut error = None;
        match child.image.format.other_parent_names() {
            Ok(more) => names.extend(more),
            Err(e) if e.is_fetch_failure() => return (Some(Err(e)), Vec::new()),
            Err(e) => error = Some(e),
        }
        let mut paths: Vec<String> = names
            .iter()
            .filter_map(|name| parent_name::relative_path(name))
            .collect();
        // What other machines call its directories can be wrong where its own name is right.
        let files: Vec<String> = paths
            .iter()
            .filter_map(|path| path.rsplit('/').next())
            .map(str::to_owned)
            .collect();
        paths.extend(files);
        let (mut tried, mut dirs) = (Vec::new(), Vec::new());
        for path in paths {
            let found = self.find_in_any_case(&child.path.parent(), &path);
            let found = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(e) if e.is_fetch_failure() => return (Some(Err(e)), dirs),
                Err(e) => {
                    error = Some(e);
                    continue;
                }
            };
            if found == child.path || tried.contains(&found) {
                continue;
            }
            tried.push(found.clone());
            dirs.push(found.parent());
            match self.open(&found) {
                Ok(parent) if parent.image.uuid() == wanted => {
                    let mut link = ChainLink::new(parent);
                    let name = names.first().map_or("", String::as_str);
                    link.notes.push(format!(
                        "found as {path:?}: the child's name for it is {name:?}"
                    ));
                    return (Some(Ok(link)), dirs);
                }
                Ok(other) => {
                    let what = format!("has uuid {}", other.image.uuid());
                    error = Some(Error::corrupt(what).with_object(&found));
                }
                Err(e) if e.is_fetch_failure() => return (Some(Err(e)), dirs),
                Err(e) => error = Some(e),
            }
        }
        (error.map(Err), dirs)
    }

    /// What a relative path leads to from a directory, within the repository and as Windows would
    /// look: by the names as they are, or else by the one that differs in case only.
    fn find_in_any_case(&mut self, dir: &StorePath, path: &str) -> Result<Option<StorePath>> {
        let mut at = dir.clone();
        for part in path.split('/') {
            match part {
                "" | "." => continue,
                ".." => {
                    if at == StorePath::root() {
                        self.leads_out = true;
                        return Ok(None);
                    }
                    at = at.parent();
                    continue;
                }
                _ => {}
            }
            let names = match self.all_names(&at) {
                Ok(names) => names,
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            let folded = part.to_lowercase();
            let name = if names.iter().any(|name| name == part) {
                part
            } else {
                let mut alike = names.iter().filter(|name| name.to_lowercase() == folded);
                match (alike.next(), alike.next()) {
                    (Some(only), None) => only,
                    (None, _) => return Ok(None),
                    (Some(_), Some(_)) => {
                        return Err(Error::corrupt(format!(
                            "several names differ from {part:?} in the case of letters only"
                        ))
                        .with_object(&at));
                    }
                }
            };
            at = at.child(name);
        }
        Ok(Some(at))
    }

    /// All names in a directory, listed once.
    fn all_names(&mut self, dir: &StorePath) -> Result<Arc<Vec<String>>> {
        if let Some(names) = self.listings.get(dir) {
            return names.clone();
        }
        let entries = self.store.list(dir);
        let names = entries.map(|all| Arc::new(all.into_iter().map(|e| e.name).collect()));
        self.listings.insert(dir.clone(), names.clone());
        names
    }

    /// Accepts an image found under the parent's name if it is the parent: by its uuid, or because
    /// a merge tells that it already carries the child's.
    fn accept(&mut self, links: &[ChainLink], parent: Found, wanted: Uuid) -> Result<ChainLink> {
        let found = parent.image.uuid();
        if found == wanted {
            return Ok(ChainLink::new(parent));
        }
        // At the end of a merge the target takes the uuid of the youngest image merged into it,
        // before it takes its name. The children stay on top as long as their tables can be read:
        // blocks not moved are still there, blocks moved are found through the merge.
        let child = &links[links.len() - 1].found;
        let merged = self.merges.iter().any(|merge| {
            merge.concerns(&parent.path, &child.path, true)
                && links.iter().any(|link| {
                    let youngest = merge.children.last().unwrap_or(&child.path);
                    link.found.path == *youngest && link.image().uuid() == found
                })
        });
        if merged {
            let mut link = ChainLink::new(parent);
            link.notes.push(
                "already carries its child's uuid: their merge is finished but for its cleanup"
                    .into(),
            );
            link.replaces_child = fetched(child.image.format.load_table())?.is_none();
            return Ok(link);
        }
        Err(Error::corrupt(format!("has uuid {found}")).with_object(&parent.path))
    }

    /// The target of a finished merge of `child`, when the images between them are removed already.
    fn merged_ancestor(&self, child: &Found) -> Result<Option<ChainLink>> {
        let concerned = self
            .merges
            .iter()
            .filter(|m| m.children.last() == Some(&child.path));
        let mut target = None;
        for merge in concerned {
            target = fetched(self.open_one(&merge.target))?;
            if target.is_some() {
                break;
            }
        }
        let Some(target) = target else {
            return Ok(None);
        };
        if target.image.uuid() != child.image.uuid() || target.image.id == child.image.id {
            return Ok(None);
        }
        let mut link = ChainLink::new(target);
        link.notes
            .push("the images merged into it together with its child are removed already".into());
        link.replaces_child = fetched(child.image.format.load_table())?.is_none();
        Ok(Some(link))
    }

    /// The one image of the directory with this uuid.
    ///
    /// # Errors
    /// What kept an image of the directory from being fetched: it could have this uuid.
    fn by_uuid(
        &mut self,
        dir: &StorePath,
        wanted: Uuid,
        child: &Arc<Image>,
    ) -> Result<Option<Found>> {
        self.learn_dir(dir)?;
        let (registry, store) = (self.registry, self.store);
        let Some(index) = self.dirs.get_mut(dir) else {
            return Ok(None);
        };
        let (names, metas) = (&index.names, &index.metas);
        if index.by_uuid.is_none() {
            let images: Vec<StorePath> = names
                .iter()
                .filter(|name| is_vhd_name(name))
                .map(|name| dir.child(name))
                .collect();
            let threads = store.traits().parallelism;
            let found = parallel_map(&images, threads, |path| {
                registry.open(path, metas.get(path.file_name()))
            });
            let mut map: HashMap<Uuid, Vec<Found>> = HashMap::new();
            for found in found {
                let Some(found) = fetched(found)? else {
                    continue;
                };
                let same = map.entry(found.image.uuid()).or_default();
                // Two aliases of one directory are one image.
                if !same.iter().any(|f| f.image.id == found.image.id) {
                    same.push(found);
                }
            }
            index.by_uuid = Some(map);
        }
        let of_uuid = index.by_uuid.as_ref().and_then(|map| map.get(&wanted));
        Ok(match of_uuid.map(Vec::as_slice) {
            Some([one]) if one.image.id != child.id => Some(one.clone()),
            Some([_, _, ..]) => {
                self.problems.push(format!(
                    "several images have the uuid {wanted}; none is used"
                ));
                None
            }
            _ => None,
        })
    }

    fn check_loop(&self, links: &[ChainLink], link: ChainLink) -> Result<ChainLink> {
        // Two aliases can lead to one directory while XO cleans up after a merge; then the image
        // stands in for both and its own parent comes next. Anything else is a loop.
        if links
            .iter()
            .any(|l| l.found.image.id == link.found.image.id)
        {
            return Err(Error::corrupt("is its own ancestor: the chain is a loop")
                .with_object(&link.found.path));
        }
        Ok(link)
    }
}

/// What was fetched, `None` when it is damaged or not there.
///
/// # Errors
/// What kept it from being fetched.
fn fetched<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_fetch_failure() => Err(e),
        Err(_) => Ok(None),
    }
}
