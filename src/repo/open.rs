//! Opening a repository: whether it is one, whether it is encrypted, and the proof of the key before
//! anything is shown.
//!
//! `encryption.json` (clear) names the algorithm; `metadata.json` (sealed) holds nothing of worth
//! and is there to be opened. A key that does not open it is refused at once: otherwise a wrong
//! key would show up as thousands of "damaged" files.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::Deserialize;

use super::layout::{self, ENCRYPTION_FILE, METADATA_FILE, REPOSITORY_MARKERS, VM_BACKUPS};
use crate::codec::aead::{Algorithm, Cipher, Key};
use crate::error::{Error, ErrorKind, Result};
use crate::parallel::parallel_map;
use crate::store::{
    DecryptStore, Entry, EntryKind, Meta, Store, StorePath, Validity, read_listed_as,
};

/// More than either file ever needs (they hold tens of bytes).
const MAX_DESCRIPTION_LEN: u64 = 64 << 10;
/// Bound on a metadata file read to prove the key where `metadata.json` is missing.
const MAX_PROBE_LEN: u64 = 16 << 20;
/// How many files to try before a key counts as wrong: one of them may be damaged.
const MAX_PROBES: usize = 3;

/// A repository that was opened.
pub struct OpenRepository {
    /// Its storage; what is read through it is clear.
    pub store: Arc<dyn Store>,
    /// What opening has listed on the way.
    first: FirstListings,
}

/// Listings that opening a repository on remote storage has made, for whoever wants them next: each costs
/// a round trip. They are of the moment `at`.
#[derive(Default)]
pub(super) struct FirstListings {
    pub(super) at: Option<Instant>,
    root: Option<Vec<Entry>>,
    pub(super) vms: Option<Vec<Entry>>,
}

impl OpenRepository {
    /// Opens the repository in `store`, with its key where it is encrypted.
    ///
    /// # Errors
    /// `WrongKey` when a key is needed and missing or not the right one; `Corrupt` or `Unsupported`
    /// when `encryption.json` cannot be made sense of; whatever kept the files from being read.
    pub fn new(store: Arc<dyn Store>, key: Option<Key>) -> Result<Self> {
        if !store.traits().remote {
            return Ok(OpenRepository {
                store: open_with(store, &Root::default(), key)?,
                first: FirstListings::default(),
            });
        }
        let (mut root, first) = Root::list(&*store)?;
        if key.is_some() {
            root.read_descriptions(&*store)?;
        }
        Ok(OpenRepository {
            store: open_with(store, &root, key)?,
            first,
        })
    }

    /// Fails when this is no repository: mounting it would only show empty directories.
    ///
    /// # Errors
    /// `NotFound` then; `Denied` for a directory of backups that is a link leading out; as the storage says.
    pub fn check_is_repository(&self) -> Result<()> {
        match &self.first.root {
            Some(root) => check_is_repository(&*self.store, root),
            None => check_is_repository(&*self.store, &self.store.list(&StorePath::root())?),
        }
    }

    pub(super) fn into_parts(self) -> (Arc<dyn Store>, FirstListings) {
        (self.store, self.first)
    }
}

/// [`OpenRepository::new`] for those who want its storage only.
///
/// # Errors
/// As there.
pub fn open_encrypted(store: Arc<dyn Store>, key: Option<Key>) -> Result<Arc<dyn Store>> {
    OpenRepository::new(store, key).map(|opened| opened.store)
}

/// The algorithm that a repository is encrypted with; `None` when it says nothing of it, or that it is
/// not.
///
/// # Errors
/// `Corrupt` or `Unsupported` when `encryption.json` cannot be made sense of; otherwise as the storage
/// says.
pub fn encryption_algorithm(store: &dyn Store) -> Result<Option<Algorithm>> {
    let algorithm = read_description(store, &Root::default())?;
    Ok(algorithm.filter(|algorithm| *algorithm != Algorithm::None))
}

/// Whether a root directory with these entries is a repository's. A missing `xo-vm-backups` means "no
/// backups yet" only where something else says that XO was here; otherwise a share that is not mounted
/// would look like an empty repository.
pub(super) fn check_is_repository(store: &dyn Store, root: &[Entry]) -> Result<()> {
    let named = |name: &str| root.iter().find(|e| e.name == name).map(|e| e.kind);
    match named(VM_BACKUPS) {
        Some(EntryKind::Dir) => return Ok(()),
        Some(EntryKind::Link(fault)) => {
            return Err(fault.error(&StorePath::root().child(VM_BACKUPS)));
        }
        _ => {}
    }
    if REPOSITORY_MARKERS.iter().any(|name| named(name).is_some()) {
        return Ok(());
    }
    let mut message = format!("holds no {VM_BACKUPS} directory: is this a backup repository?");
    let is_part_of_vm = |e: &Entry| e.name == "vdis" || layout::point_of_file(&e.name).is_some();
    if root.iter().any(is_part_of_vm) {
        message += " It looks like one VM's directory; give the repository two levels up";
    } else if root
        .iter()
        .any(|e| e.name.len() == 36 && e.kind == EntryKind::Dir)
    {
        message += " If it is that directory itself, give the one above it";
    }
    Err(Error::new(ErrorKind::NotFound, message).with_object(store.describe()))
}

#[derive(Deserialize)]
struct EncryptionJson {
    algorithm: String,
}

fn open_with(store: Arc<dyn Store>, root: &Root, key: Option<Key>) -> Result<Arc<dyn Store>> {
    let Some(algorithm) = read_description(&*store, root)? else {
        return without_description(store, root, key);
    };
    if algorithm == Algorithm::None {
        if key.is_some() {
            // Somebody who can write to the storage can also switch encryption off in this file.
            tracing::warn!(
                repository = store.describe(),
                "an encryption key was given, but the repository says that it is not encrypted: \
                 nothing read from it is authenticated"
            );
        }
        return Ok(store);
    }
    let Some(key) = key else {
        return Err(missing_key(&format!(
            "the repository is encrypted with {}",
            algorithm.as_str()
        )));
    };
    let opened = wrap(&store, algorithm, &key)?;
    if opens_metadata(&opened, root)? == Proof::Failed {
        return Err(wrong_key(algorithm));
    }
    if algorithm == Algorithm::Aes256Cbc {
        tracing::warn!(
            repository = store.describe(),
            "aes-256-cbc carries no authentication: brfs can read this repository, but cannot \
             tell whether its files were changed or damaged"
        );
    }
    Ok(Arc::new(opened))
}

/// What is known of the repository's root, where one listing costs less than asking for two files of
/// which one or both may not be there, or of which a copy may be at hand. By default: nothing.
#[derive(Default)]
struct Root {
    files: Option<HashMap<String, Option<Meta>>>,
    /// Files that were read together, as stored.
    read: HashMap<StorePath, Bytes>,
}

impl Root {
    /// Lists the root and, at the same time, the VMs, which are wanted next.
    fn list(store: &dyn Store) -> Result<(Self, FirstListings)> {
        let at = Instant::now();
        let dirs = [StorePath::root(), StorePath::root().child(VM_BACKUPS)];
        let mut listings = parallel_map(&dirs, dirs.len(), |dir| store.list(dir)).into_iter();
        let (Some(root), vms) = (listings.next(), listings.next()) else {
            return Ok((Root::default(), FirstListings::default()));
        };
        // The first that is asked of a server: what is wrong with the whole shows here.
        let root = root.map_err(|e| {
            let e = match e.kind() {
                ErrorKind::NotFound => Error::new(
                    ErrorKind::NotFound,
                    "there is nothing of this name: check the directory in the URL",
                ),
                _ => e,
            };
            e.with_object(store.describe())
        })?;
        let files = root.iter().filter(|e| e.kind == EntryKind::File);
        let files = files.map(|e| (e.name.clone(), e.meta)).collect();
        let known = Root {
            files: Some(files),
            read: HashMap::new(),
        };
        let first = FirstListings {
            at: Some(at),
            root: Some(root),
            // What kept them from being listed is met again by whoever lists them.
            vms: vms.and_then(Result::ok),
        };
        Ok((known, first))
    }

    /// Reads both descriptions at once, where both are there and wanted.
    fn read_descriptions(&mut self, store: &dyn Store) -> Result<()> {
        let paths = [
            StorePath::new(ENCRYPTION_FILE)?,
            StorePath::new(METADATA_FILE)?,
        ];
        let listed = paths.iter().map(|path| Ok((path, self.listed(path)?)));
        // One that is not there is somebody else's to tell of.
        let Ok(files) = listed.collect::<Result<Vec<_>>>() else {
            return Ok(());
        };
        let read = parallel_map(&files, files.len(), |(path, listed)| {
            store.read(path, MAX_DESCRIPTION_LEN, Validity::Listed(listed.as_ref()))
        });
        // What failed is asked for again, and told then.
        let read = paths.iter().zip(read);
        self.read = read
            .filter_map(|(path, read)| Some((path.clone(), read.ok()?.0)))
            .collect();
        Ok(())
    }

    /// The state of a file as stored, where the listing tells it.
    ///
    /// # Errors
    /// `NotFound` when it is not there.
    fn listed(&self, path: &StorePath) -> Result<Option<Meta>> {
        let Some(files) = &self.files else {
            return Ok(None);
        };
        let listed = files.get(path.file_name()).copied();
        listed.ok_or_else(|| Error::new(ErrorKind::NotFound, "is not there").with_object(path))
    }

    /// A file as it is stored, made sense of by `parse`. What is corrupt is fetched once more: a copy may
    /// have been damaged on its way, before it was kept.
    fn read_as<T>(
        &self,
        store: &dyn Store,
        path: &StorePath,
        parse: impl Fn(Bytes) -> Result<T>,
    ) -> Result<T> {
        let listed = self.listed(path)?;
        if let Some(content) = self.read.get(path) {
            match parse(content.clone()) {
                Err(e) if e.kind() == ErrorKind::Corrupt && store.has_copy(path, None) => {}
                parsed => return parsed,
            }
            let (content, _) = store.read(path, MAX_DESCRIPTION_LEN, Validity::Listed(None))?;
            return parse(content);
        }
        read_listed_as(store, path, MAX_DESCRIPTION_LEN, listed.as_ref(), |c, _| {
            parse(c)
        })
    }
}

/// The algorithm that `encryption.json` names, `None` when there is no such file.
fn read_description(store: &dyn Store, root: &Root) -> Result<Option<Algorithm>> {
    let path = StorePath::new(ENCRYPTION_FILE)?;
    let parse = |json: Bytes| parse_description(&json).map_err(|e| e.with_object(&path));
    match root.read_as(store, &path, parse) {
        Ok(algorithm) => Ok(Some(algorithm)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse_description(json: &Bytes) -> Result<Algorithm> {
    let description: EncryptionJson = serde_json::from_slice(json)
        .map_err(|e| Error::corrupt(format!("does not tell the encryption algorithm: {e}")))?;
    Algorithm::parse(&description.algorithm)
}

/// No `encryption.json`: old repositories and those in clear. If the file was merely lost,
/// `metadata.json` gives that away.
fn without_description(
    store: Arc<dyn Store>,
    root: &Root,
    key: Option<Key>,
) -> Result<Arc<dyn Store>> {
    let path = StorePath::new(METADATA_FILE)?;
    let metadata = match root.read_as(&*store, &path, Ok) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(store),
        Err(e) => return Err(e),
    };
    if is_json(&metadata) {
        return Ok(store);
    }
    let what = "encryption.json is missing, but metadata.json is encrypted";
    let Some(key) = key else {
        return Err(missing_key(what));
    };
    for algorithm in [
        Algorithm::ChaCha20Poly1305,
        Algorithm::Aes256Gcm,
        Algorithm::Aes256Cbc,
    ] {
        let opened = wrap(&store, algorithm, &key)?;
        if opens_metadata(&opened, root)? == Proof::Given {
            tracing::warn!(
                repository = store.describe(),
                algorithm = algorithm.as_str(),
                "{what}; the key fits"
            );
            return Ok(Arc::new(opened));
        }
    }
    Err(Error::new(
        ErrorKind::WrongKey,
        format!("{what}, and the key given does not open it with any known algorithm"),
    ))
}

fn wrap(store: &Arc<dyn Store>, algorithm: Algorithm, key: &Key) -> Result<DecryptStore> {
    Ok(DecryptStore::new(
        store.clone(),
        Cipher::new(algorithm, key)?,
    ))
}

#[derive(PartialEq, Eq)]
enum Proof {
    Given,
    Failed,
}

/// Opens `metadata.json`, or, where XO has lost it (its issue #8081), a few backup metadata files.
fn opens_metadata(opened: &DecryptStore, root: &Root) -> Result<Proof> {
    let path = StorePath::new(METADATA_FILE)?;
    let parse = |sealed: Bytes| match is_json(&opened.unseal(&path, sealed)?) {
        true => Ok(()),
        false => Err(Error::corrupt("is not JSON").with_object(&path)),
    };
    match root.read_as(opened.sealed(), &path, parse) {
        Ok(()) => return Ok(Proof::Given),
        Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(Proof::Failed),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let candidates = probe_candidates(opened)?;
    if candidates.is_empty() {
        tracing::warn!(
            repository = opened.describe(),
            "metadata.json is missing and there is no backup yet: the encryption key could not be \
             checked"
        );
        return Ok(Proof::Given);
    }
    for path in &candidates {
        match opened.read(path, MAX_PROBE_LEN, Validity::Ask) {
            Ok((json, _)) if is_json(&json) => {
                tracing::warn!(
                    repository = opened.describe(),
                    "metadata.json is missing; the encryption key was checked with {path} instead"
                );
                return Ok(Proof::Given);
            }
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Proof::Failed)
}

/// A few sealed JSON files: metadata of restore points, whichever VM they belong to.
fn probe_candidates(opened: &DecryptStore) -> Result<Vec<StorePath>> {
    let root = StorePath::new(VM_BACKUPS)?;
    let vms = match opened.list(&root) {
        Ok(vms) => vms,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    let vms = vms
        .iter()
        .filter(|e| e.kind == EntryKind::Dir && layout::is_vm_folder(&e.name));
    for vm in vms {
        let dir = root.child(&vm.name);
        for entry in opened.list(&dir)? {
            let is_metadata = entry.name.ends_with(".json") && !entry.name.starts_with('.');
            if entry.kind == EntryKind::File && is_metadata {
                found.push(dir.child(&entry.name));
                if found.len() == MAX_PROBES {
                    return Ok(found);
                }
            }
        }
    }
    Ok(found)
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}

fn missing_key(what: &str) -> Error {
    Error::new(
        ErrorKind::WrongKey,
        format!(
            "{what}: give its key with --encryption-key-file, BRFS_ENCRYPTION_KEY or \
             --encryption-key-command"
        ),
    )
}

fn wrong_key(algorithm: Algorithm) -> Error {
    Error::new(
        ErrorKind::WrongKey,
        format!(
            "the encryption key does not open this repository ({}): it is not the key that the \
             backups were written with",
            algorithm.as_str()
        ),
    )
}
