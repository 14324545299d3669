//! From a request to the tree to show: where the storage, the catalogue and the views meet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::mount::Request;
use super::storage_args::Repository;
use crate::config::Location;
use crate::guestfs::node::GuestOptions;
use crate::image::DiskContext;
use crate::store::{EntryKind, Store, StorePath};
use crate::tree::Node;
use crate::views;

/// The directory that makes a directory an XO backup repository.
const MARK: &str = "xo-vm-backups";

/// Default of `--refresh`.
const REFRESH_SECONDS: u64 = 60;

/// What to mount.
pub(super) struct View {
    /// The root directory.
    pub(super) root: Node,
    /// For the mount table: never with secrets.
    pub(super) source: String,
}

/// Opens the repository, or the single disk, and builds the tree.
pub(super) fn open(request: &Request) -> Result<View> {
    let mut repository = request.storage.repository(&request.repository)?;
    repository.options.disk_cache = request.disk_cache();
    let location = &repository.location;
    if let Some((root, inside)) = single_disk(location)? {
        return open_bare(&root, &inside, &repository, request);
    }
    let store = repository.open()?;
    check_repository(&*store, location)?;
    let source = store.describe();
    let disks = DiskContext::new(store, request.cache_bytes);
    let refresh = Duration::from_secs(request.refresh_seconds.unwrap_or(REFRESH_SECONDS));
    let root = views::repository_root(disks.clone(), refresh, guest_options(request));
    let root = views::with_stats(root, disks, repository.options.stats.clone());
    Ok(View { root, source })
}

fn guest_options(request: &Request) -> GuestOptions {
    GuestOptions {
        guest_owner: request.guest_owner,
        for_all: request.allow_other,
    }
}

/// Where to look for the chain of the single image that a location names, and the image there; `None`
/// when it names none. On object storage, where nothing tells a file from a directory but what is
/// asked of it, its name does.
fn single_disk(location: &Location) -> Result<Option<(Location, StorePath)>> {
    let mut root = location.clone();
    let dir = match &mut root {
        Location::Local(path) => {
            if !path.is_file() {
                return Ok(None);
            }
            let real = std::fs::canonicalize(&*path).with_context(|| path.display().to_string())?;
            let (dir, inside) = views::split_bare_path(&real)?;
            return Ok(Some((Location::Local(dir), inside)));
        }
        Location::S3(s3) => &mut s3.dir,
        Location::Azure(azure) => &mut azure.dir,
    };
    if !dir.ends_with(".vhd") {
        return Ok(None);
    }
    let (above, inside) = views::split_bare_path(&Path::new("/").join(&*dir))?;
    *dir = above.to_string_lossy().trim_matches('/').to_owned();
    Ok(Some((root, inside)))
}

/// A single image, with its chain taken from beside it.
fn open_bare(
    root: &Location,
    inside: &StorePath,
    repository: &Repository,
    request: &Request,
) -> Result<View> {
    let store = root.open(&repository.options)?;
    let source = format!("{root}/{inside}");
    let disks = DiskContext::new(store, request.cache_bytes);
    // What is no image at all is better said now than by every program that reads it. A chain that
    // is broken further down mounts: it is readable in part.
    disks.open_disk(inside, None)?;
    let root = views::bare_root(disks.clone(), inside, guest_options(request))?;
    let root = views::with_stats(root, disks, repository.options.stats.clone());
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
    if let Location::Local(path) = location
        && let Some(meant) = suggestion(path)
    {
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
