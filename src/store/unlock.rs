//! Deciding whether a repository is encrypted, and proving the key before anything is shown.
//!
//! `encryption.json` (clear) names the algorithm; `metadata.json` (sealed) holds nothing of worth
//! and is there to be opened. A key that does not open it is refused at once: otherwise a wrong
//! key would show up as thousands of "damaged" files.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::decrypt::DecryptStore;
use super::primed::PrimedStore;
use super::{EntryKind, Meta, Store, StorePath, Validity, read_listed_as};
use crate::codec::aead::{Algorithm, Cipher, Key};
use crate::error::{Error, ErrorKind, Result};

/// Where restore points are.
const VM_BACKUPS: &str = "xo-vm-backups";
/// More than either file ever needs (they hold tens of bytes).
const MAX_DESCRIPTION_LEN: u64 = 64 << 10;
/// Bound on a metadata file read to prove the key where `metadata.json` is missing.
const MAX_PROBE_LEN: u64 = 16 << 20;
/// How many files to try before a key counts as wrong: one of them may be damaged.
const MAX_PROBES: usize = 3;

#[derive(Deserialize)]
struct EncryptionJson {
    algorithm: String,
}

/// Wraps the store so that everything above reads clear text; returns it as it is when the
/// repository is not encrypted.
///
/// # Errors
/// `WrongKey` when a key is needed and missing or not the right one; `Corrupt` or `Unsupported`
/// when `encryption.json` cannot be made sense of; whatever kept the files from being read.
pub fn open_encrypted(store: Arc<dyn Store>, key: Option<Key>) -> Result<Arc<dyn Store>> {
    if !store.traits().remote {
        return open_with(store, &Root(None), key);
    }
    let primed = Arc::new(PrimedStore::new(store));
    let root = Root::of(&primed)?;
    if key.is_some() {
        root.read_both(&primed)?;
    }
    open_with(primed, &root, key)
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

/// What lies in the repository's root, where one listing costs less than asking for two files of
/// which one or both may not be there, or of which a copy may be at hand.
struct Root(Option<HashMap<String, Option<Meta>>>);

impl Root {
    fn of(store: &PrimedStore) -> Result<Self> {
        // The first that is asked of a server: what is wrong with the whole shows here. The VMs are what
        // is wanted next.
        let vms = StorePath::new(VM_BACKUPS)?;
        let entries = store.list_both(&StorePath::root(), &vms).map_err(|e| {
            let e = match e.kind() {
                ErrorKind::NotFound => Error::new(
                    ErrorKind::NotFound,
                    "there is nothing of this name: check the directory in the URL",
                ),
                _ => e,
            };
            e.with_object(store.describe())
        })?;
        let files = entries.into_iter().filter(|e| e.kind == EntryKind::File);
        Ok(Root(Some(files.map(|e| (e.name, e.meta)).collect())))
    }

    /// Has both descriptions read at once, where both are needed.
    fn read_both(&self, store: &PrimedStore) -> Result<()> {
        let paths = [
            StorePath::new("encryption.json")?,
            StorePath::new("metadata.json")?,
        ];
        let listed = paths
            .iter()
            .map(|path| Ok((path, self.listed(path)?)))
            .collect::<Result<Vec<_>>>();
        // One that is not there is somebody else's to tell of.
        if let Ok(files) = listed {
            store.read_all(&files, MAX_DESCRIPTION_LEN);
        }
        Ok(())
    }

    /// The state of a file as stored, where the listing tells it.
    ///
    /// # Errors
    /// `NotFound` when it is not there.
    fn listed(&self, path: &StorePath) -> Result<Option<Meta>> {
        let Some(files) = &self.0 else {
            return Ok(None);
        };
        let listed = files.get(path.file_name()).copied();
        listed.ok_or_else(|| Error::new(ErrorKind::NotFound, "is not there").with_object(path))
    }
}

/// The algorithm that `encryption.json` names, `None` when there is no such file.
fn read_description(store: &dyn Store, root: &Root) -> Result<Option<Algorithm>> {
    let path = StorePath::new("encryption.json")?;
    let read = root.listed(&path).and_then(|listed| {
        let parse = |json, _| parse_description(&json).map_err(|e| e.with_object(&path));
        read_listed_as(store, &path, MAX_DESCRIPTION_LEN, listed.as_ref(), parse)
    });
    match read {
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
    let path = StorePath::new("metadata.json")?;
    let read = root.listed(&path).and_then(|listed| {
        store.read(
            &path,
            MAX_DESCRIPTION_LEN,
            Validity::Listed(listed.as_ref()),
        )
    });
    let metadata = match read {
        Ok((data, _)) => data,
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
    let path = StorePath::new("metadata.json")?;
    let read = root.listed(&path).and_then(|listed| {
        let listed = listed.map(|meta| opened.clear_meta(meta));
        let parse = |json: Bytes, _| match is_json(&json) {
            true => Ok(()),
            false => Err(Error::corrupt("is not JSON")),
        };
        read_listed_as(opened, &path, MAX_DESCRIPTION_LEN, listed.as_ref(), parse)
    });
    match read {
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
    let vms = vms.iter().filter(|e| {
        e.kind == EntryKind::Dir && !e.name.starts_with('.') && !e.name.ends_with(".lock")
    });
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
