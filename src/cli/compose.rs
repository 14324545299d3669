//! From a request to the tree to show: where the storage, the catalogue and the views meet.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::mount::Request;
use super::placeholder;
use crate::config::Location;
use crate::store::{EntryKind, Store, StorePath};
use crate::tree::Node;

/// The directory that makes a directory an XO backup repository.
const MARK: &str = "xo-vm-backups";

/// What to mount.
pub(super) struct View {
    /// The root directory.
    pub(super) root: Node,
    /// For the mount table: never with secrets.
    pub(super) source: String,
}

/// Opens the repository, or the single disk, and builds the tree.
pub(super) fn open(request: &Request) -> Result<View> {
    let location = Location::parse(&request.repository)?;
    let store = location.open()?;
    check_repository(&*store, &location)?;
    let source = store.describe();
    let root = placeholder::root(store);
    Ok(View { root, source })
}

/// Refuses what is no repository, with a guess at what was meant: mounting it would only show
/// empty directories.
fn check_repository(store: &dyn Store, location: &Location) -> Result<()> {
    let entries = store
        .list(&StorePath::root())
        .with_context(|| format!("cannot list {}", store.describe()))?;
    if entries
        .iter()
        .any(|e| e.name == MARK && e.kind == EntryKind::Dir)
    {
        return Ok(());
    }
    let mut message = format!(
        "{}: is this a Xen Orchestra backup repository? Expected a directory {MARK} in it",
        store.describe()
    );
    let Location::Local(path) = location;
    if let Some(meant) = suggestion(path) {
        message.push_str(&format!("; did you mean {}?", meant.display()));
    }
    Err(anyhow!(message))
}

/// The nearest directory above that is a repository, or the only one directly below.
fn suggestion(path: &Path) -> Option<PathBuf> {
    let is_repository = |dir: &Path| dir.join(MARK).is_dir();
    if let Some(above) = path.ancestors().skip(1).find(|dir| is_repository(dir)) {
        return Some(above.to_owned());
    }
    let mut below = std::fs::read_dir(path)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|dir| is_repository(dir));
    match (below.next(), below.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}
