//! The VMs of a repository.
//!
//! A listing of 1,000 VMs costs one directory listing and, on remote storage, one `cache.json.gz` per
//! VM, many at once; where that is missing or broken, and on local storage, a listing and one
//! metadata file per VM. A look-up of one VM costs the listing of the top and that one VM. What is
//! known is kept and re-checked by age (see [`Catalogue::new`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::layout::{self, VM_BACKUPS};
use super::naming;
use super::open::{OpenRepository, check_is_repository};
use super::vm::{Shared, Vm};
use crate::error::{Error, ErrorKind, Result};
use crate::parallel::parallel_map;
use crate::store::{Entry, EntryKind, Store, StorePath, StoreTraits};
use crate::sync::lock;

/// How long listings of local storage are taken for granted: long enough that one `ls -l` lists
/// every directory once, too short for a person to notice.
const LOCAL_MAX_AGE: Duration = Duration::from_millis(100);

/// How old a listing may be that opening the repository has left.
const FIRST_MAX_AGE: Duration = Duration::from_secs(3);

/// The directories below `xo-vm-backups` at one moment.
pub struct Folders {
    at: Instant,
    /// By directory name.
    pub vms: BTreeMap<String, Arc<Vm>>,
    /// Directories for which there is a lock: XO is, or was when it was killed, at work there.
    pub locked: HashSet<String>,
    /// Short ids that more than one of them have.
    shared_ids: HashSet<String>,
}

/// A VM with its name in the mount.
#[derive(Clone)]
pub struct NamedVm {
    /// Its folder name: `web-01 (3f2a9c1e)`.
    pub name: String,
    /// The VM's own name, when it is known.
    pub label: Option<Arc<str>>,
    /// The VM.
    pub vm: Arc<Vm>,
    /// Why its restore points cannot be listed.
    pub problem: Option<Error>,
    /// Whether the name is not known, for that reason: `name` must then be shown to nobody, because
    /// under it the VM would pass for another one.
    pub is_name_unknown: bool,
}

impl NamedVm {
    /// Fails when the name is not known.
    ///
    /// # Errors
    /// What kept it from being fetched.
    pub fn check_name(&self) -> Result<()> {
        match &self.problem {
            Some(e) if self.is_name_unknown => Err(e.clone()),
            _ => Ok(()),
        }
    }
}

/// Something to find out about a VM.
type Probe = fn(&Vm);

/// The catalogue of a repository. All calls may block on storage.
pub struct Catalogue {
    shared: Arc<Shared>,
    folders: Mutex<Option<Arc<Folders>>>,
    /// The listing of `xo-vm-backups` that opening the repository has made, until it is used.
    first: Mutex<Option<(Instant, Vec<Entry>)>>,
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Catalogue")
            .field(&self.shared.store)
            .finish()
    }
}

impl Catalogue {
    /// A catalogue whose listings are at most `max_age` old (zero: always made anew). See
    /// [`Catalogue::max_age_for`].
    pub fn new(store: Arc<dyn Store>, max_age: Duration) -> Self {
        Catalogue {
            shared: Arc::new(Shared::new(store, max_age)),
            folders: Mutex::new(None),
            first: Mutex::new(None),
        }
    }

    /// The catalogue of a repository that was just opened, which begins with what opening has listed.
    pub fn of(opened: OpenRepository, max_age: Duration) -> Self {
        let (store, first) = opened.into_parts();
        Catalogue {
            first: Mutex::new(first.at.zip(first.vms)),
            ..Catalogue::new(store, max_age)
        }
    }

    /// The age to allow: `refresh` on remote storage, next to none on local.
    pub fn max_age_for(traits: StoreTraits, refresh: Duration) -> Duration {
        if traits.remote {
            refresh
        } else {
            refresh.min(LOCAL_MAX_AGE)
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The VM directories, empty ones included.
    ///
    /// # Errors
    /// As the storage says; `NotFound` when this is no repository at all.
    pub fn folders(&self) -> Result<Arc<Folders>> {
        let known = {
            let known = lock(&self.folders);
            known.clone()
        };
        if let Some(known) = &known
            && known.at.elapsed() < self.shared.max_age
        {
            return Ok(known.clone());
        }
        let store = &*self.shared.store;
        let first = {
            let mut first = lock(&self.first);
            first.take().filter(|(at, _)| at.elapsed() < FIRST_MAX_AGE)
        };
        let (at, listed) = match first {
            Some((at, entries)) => (at, Ok(entries)),
            None => {
                let at = Instant::now();
                (at, store.list(&StorePath::root().child(VM_BACKUPS)))
            }
        };
        let entries = match listed {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let root = store.list(&StorePath::root())?;
                check_is_repository(store, &root)?;
                let is_there = |e: &Entry| e.name == VM_BACKUPS && e.kind == EntryKind::Dir;
                match root.iter().any(is_there) {
                    // Made since, or not seen by a server that answers from what it knew.
                    true => list_again(store)?,
                    false => Vec::new(),
                }
            }
            Err(e) => return Err(e),
        };
        let mut folders = Folders {
            at,
            vms: BTreeMap::new(),
            locked: HashSet::new(),
            shared_ids: HashSet::new(),
        };
        let mut ids: HashMap<String, usize> = HashMap::new();
        for entry in entries {
            if let Some(locked) = layout::locked_folder(&entry.name) {
                folders.locked.insert(locked.to_owned());
            }
            let link = match entry.kind {
                EntryKind::Dir => None,
                EntryKind::Link(fault) => Some(fault),
                EntryKind::File => continue,
            };
            if !layout::is_vm_folder(&entry.name) {
                continue;
            }
            *ids.entry(naming::short_id(&entry.name)).or_default() += 1;
            let vm = known.as_ref().and_then(|k| k.vms.get(&entry.name)).cloned();
            let vm = vm.filter(|vm| vm.link() == link);
            let make = || Arc::new(Vm::new(self.shared.clone(), &entry.name, link));
            let vm = vm.unwrap_or_else(make);
            folders.vms.insert(entry.name, vm);
        }
        folders.shared_ids = ids
            .into_iter()
            .filter_map(|(id, count)| (count > 1).then_some(id))
            .collect();
        let folders = Arc::new(folders);
        let mut known = lock(&self.folders);
        if known.as_ref().is_none_or(|k| k.at <= at) {
            *known = Some(folders.clone());
        }
        Ok(folders)
    }

    /// Names a VM of `folders`; `None` when it has no restore points. A VM that cannot be listed says
    /// why: it is not "nothing there". It keeps the name that it had; one whose name was not known has
    /// none (see [`NamedVm::is_name_unknown`]), unless it is a link that is not followed.
    pub fn name_vm(&self, folders: &Folders, vm: &Arc<Vm>) -> Option<NamedVm> {
        let (label, problem) = match vm.label() {
            Ok(Some(label)) => (Some(label), None),
            Ok(None) => match vm.listing() {
                Ok(listing) if listing.points.is_empty() => return None,
                Ok(_) => (None, None),
                Err(e) => (None, Some(e)),
            },
            Err(e) => (vm.last_label(), Some(e)),
        };
        if problem
            .as_ref()
            .is_some_and(|e| e.kind() == ErrorKind::NotFound)
        {
            return None;
        }
        let was_reported = vm.is_reported.swap(problem.is_some(), Relaxed);
        if let Some(e) = problem.as_ref().filter(|_| !was_reported) {
            tracing::warn!("cannot list a VM's restore points: {e}");
        }
        let is_name_unknown = problem.is_some() && label.is_none() && vm.link().is_none();
        let unique = !folders.shared_ids.contains(&naming::short_id(vm.folder()));
        Some(NamedVm {
            name: naming::vm_folder_name(label.as_deref(), vm.folder(), unique),
            label,
            vm: vm.clone(),
            problem,
            is_name_unknown,
        })
    }

    /// All VMs that have restore points, by name.
    ///
    /// # Errors
    /// When the VM directories cannot be listed. What is wrong with one VM is told by that VM.
    pub fn vms(&self) -> Result<Vec<NamedVm>> {
        let folders = self.folders()?;
        let vms: Vec<&Arc<Vm>> = folders.vms.values().collect();
        let threads = self.shared.store.traits().parallelism;
        let named = parallel_map(&vms, threads, |vm| self.name_vm(&folders, vm));
        let mut named: Vec<NamedVm> = named.into_iter().flatten().collect();
        named.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(named)
    }

    /// [`Self::vms`], for whoever asks for all their restore points as well: on remote storage, what
    /// the names and what the points take is asked for at once.
    ///
    /// # Errors
    /// As [`Self::vms`].
    pub fn vms_and_points(&self) -> Result<Vec<NamedVm>> {
        let traits = self.shared.store.traits();
        if traits.remote {
            let folders = self.folders()?;
            // The name first: a VM that is listed is not asked for its `cache.json.gz`.
            let asks: [Probe; 2] = [Vm::ask_hint, Vm::ask_listing];
            let both: Vec<(&Vm, Probe)> = (folders.vms.values())
                .flat_map(|vm| asks.map(|ask| (&**vm, ask)))
                .collect();
            // What fails is told by whoever asks next.
            parallel_map(&both, traits.parallelism, |(vm, ask)| ask(vm));
        }
        let mut vms = self.vms()?;
        // A `cache.json.gz` can outlive the points it tells of.
        vms.retain(|vm| !vm.vm.listing().is_ok_and(|l| l.points.is_empty()));
        Ok(vms)
    }

    /// The VM with this name in the mount. Looks at no other VM than those with its id.
    ///
    /// # Errors
    /// When the VM directories cannot be listed, or the name of one that it may be is not known.
    pub fn vm_by_name(&self, name: &str) -> Result<Option<NamedVm>> {
        let Some(id) = naming::id_of_vm_folder_name(name) else {
            return Ok(None);
        };
        let folders = self.folders()?;
        // A safe id is the start of the folder's name; others are hashes and take a search.
        let candidates = folders.vms.values().filter(|vm| {
            let folder = vm.folder();
            folder.starts_with(id) || !folder.starts_with(&naming::short_id(folder))
        });
        let mut unknown = None;
        for vm in candidates {
            vm.ask_both();
            match self.name_vm(&folders, vm) {
                Some(vm) if vm.is_name_unknown => unknown = vm.problem,
                Some(vm) if vm.name == name => return Ok(Some(vm)),
                _ => {}
            }
        }
        unknown.map_or(Ok(None), Err)
    }

    /// The VM of this directory name (its uuid), when it has restore points.
    ///
    /// # Errors
    /// When the VM directories cannot be listed.
    pub fn vm_by_folder(&self, folder: &str) -> Result<Option<NamedVm>> {
        let folders = self.folders()?;
        let vm = folders.vms.get(folder).inspect(|vm| vm.ask_both());
        Ok(vm.and_then(|vm| self.name_vm(&folders, vm)))
    }
}

/// Lists the VM directories, which were not found and are there. If they still are not found, that is no
/// repository without backups.
fn list_again(store: &dyn Store) -> Result<Vec<Entry>> {
    let dir = StorePath::root().child(VM_BACKUPS);
    store.list(&dir).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            let message = "is listed in the repository, and then not found";
            Error::new(ErrorKind::Changed, message).with_object(&dir)
        }
        _ => e,
    })
}
