//! From a request to the tree to show: where the storage, the catalogue and the views meet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::request::Request;
use super::single::{Single, single_disk};
use super::storage_args::Repository;
use crate::config::Location;
use crate::error::{Error, ErrorKind};
use crate::image::DiskContext;
use crate::repo::layout::VM_BACKUPS;
use crate::tree::Node;
use crate::views;
use crate::views::guest::GuestOptions;

/// Default of `--refresh`.
const REFRESH_SECONDS: u64 = 60;

/// What to mount.
pub(super) struct View {
    /// The root directory.
    pub(super) root: Node,
    /// For the mount table: never with secrets.
    pub(super) source: String,
    /// What is wrong with it and better said at once.
    pub(super) warnings: Vec<String>,
}

/// Opens the repository, or the single disk, and builds the tree.
pub(super) fn open(request: &Request) -> Result<View> {
    let mut repository = request.storage.repository(&request.repository)?;
    repository.options.disk_cache = request.disk_cache();
    let location = &repository.location;
    if let Some(single) = single_disk(location)? {
        return open_bare(single, &repository, request);
    }
    let opened = repository.open()?;
    opened
        .check_is_repository()
        .map_err(|e| with_suggestion(e, location))?;
    let source = opened.store.describe();
    let disks = DiskContext::new(opened.store.clone(), request.cache_bytes);
    let refresh = Duration::from_secs(request.refresh_seconds.unwrap_or(REFRESH_SECONDS));
    let root = views::repository_root(opened, disks.clone(), refresh, guest_options(request));
    let root = views::with_stats(root, disks, repository.options.stats.clone());
    let root = renamed(root, request);
    Ok(View {
        root,
        source,
        warnings: Vec::new(),
    })
}

/// With the names that were asked for.
fn renamed(root: Node, request: &Request) -> Node {
    match request.windows_names {
        true => views::with_windows_names(root),
        false => root,
    }
}

fn guest_options(request: &Request) -> GuestOptions {
    GuestOptions {
        guest_owner: request.guest_owner,
        for_all: request.allow_other,
    }
}

/// A single image, with its chain taken from beside it.
fn open_bare(single: Single, repository: &Repository, request: &Request) -> Result<View> {
    // What is no image at all is better said now than by every program that reads it. A chain that
    // is broken further down mounts: it is readable in part.
    let opened = single.open(&repository.options, request.cache_bytes)?;
    let warnings = opened.row().problems;
    let Single { root, inside } = opened.single;
    let source = format!("{root}/{inside}");
    let disks = opened.context;
    let root = views::bare_root(disks.clone(), &inside, guest_options(request))?;
    let root = views::with_stats(root, disks, repository.options.stats.clone());
    let root = renamed(root, request);
    Ok(View {
        root,
        source,
        warnings,
    })
}

/// Adds a guess at what was meant to the word that something is no repository.
fn with_suggestion(error: Error, location: &Location) -> anyhow::Error {
    let suggestion = match location {
        Location::Local(path) if error.kind() == ErrorKind::NotFound => suggestion(path),
        _ => None,
    };
    match suggestion {
        Some(meant) => anyhow!("{error}; did you mean {}?", meant.display()),
        None => error.into(),
    }
}

/// The nearest directory above that is a repository, or the only one directly below.
fn suggestion(path: &Path) -> Option<PathBuf> {
    let is_repository = |dir: &Path| dir.join(VM_BACKUPS).is_dir();
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
