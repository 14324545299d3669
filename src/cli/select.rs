//! Which VM, restore point or disk a person means, and what to say when that is not clear.

use std::time::Duration;

use anyhow::{Result, bail};

use super::output::escape;
use super::single::{OpenSingle, single_disk};
use super::storage_args::StorageArgs;
use crate::config::Location;
use crate::repo::catalogue::NamedVm;
use crate::repo::{Catalogue, DiskRecord, RestorePoint};

/// Stands in the place of the repository where that is said by a file or the environment.
const ELSEWHERE: &str = "-";

/// Most candidates that an error message names.
const SHOWN: usize = 20;
/// A catalogue for one command is never re-read: all it prints is of one moment.
const ONE_COMMAND: Duration = Duration::from_secs(3600);

/// Opens a repository for a command, asking for its key where that is possible.
///
/// # Errors
/// When the location cannot be parsed or opened, or the key is missing or wrong.
pub fn open_catalogue(storage: &StorageArgs, repository: Option<&str>) -> Result<Catalogue> {
    let mut collected = storage.collect(repository.filter(|text| *text != ELSEWHERE))?;
    collected.ask_for_key(storage)?;
    let repository = storage.repository(&collected)?;
    if let Location::Local(path) = &repository.location
        && path.is_file()
    {
        let path = path.display().to_string();
        bail!(
            "{} is a file, not a repository; a single .vhd has no VMs to choose from",
            escape(&path)
        );
    }
    Ok(Catalogue::of(repository.open()?, ONE_COMMAND))
}

/// Opens the single image that stands in the place of a repository; `None` when none does.
///
/// # Errors
/// When the location cannot be parsed, or the image cannot be opened.
pub(super) fn open_single(
    storage: &StorageArgs,
    repository: Option<&str>,
    cache_bytes: u64,
) -> Result<Option<OpenSingle>> {
    let mut collected = storage.collect(repository.filter(|text| *text != ELSEWHERE))?;
    let found = storage.repository(&collected)?;
    let Some(single) = single_disk(&found.location)? else {
        return Ok(None);
    };
    collected.ask_for_key(storage)?;
    let options = storage.repository(&collected)?.options;
    single.open(&options, cache_bytes).map(Some)
}

fn candidates<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let mut text: String = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("\n  {}", escape(name)))
        .collect();
    if names.len() > SHOWN {
        text += &format!("\n  … and {} more", names.len() - SHOWN);
    }
    text
}

/// The one that is meant among those that match.
fn only<T>(found: Vec<T>, what: &str, text: &str, name: impl Fn(&T) -> &str) -> Result<Option<T>> {
    if found.len() > 1 {
        let list = candidates(found.iter().map(name));
        bail!("{what} {text:?} is ambiguous; it may be one of:{list}");
    }
    Ok(found.into_iter().next())
}

/// The VM called `text`: its name in the mount, its uuid, its own name; else, whatever the case of
/// its letters, the start of one of these, or a part of the names. The first of these that any VM
/// fits decides.
///
/// # Errors
/// When there is none or more than one, with candidates; when it may be one whose name cannot be
/// fetched.
pub fn find_vm(catalogue: &Catalogue, text: &str) -> Result<NamedVm> {
    if let Some(vm) = catalogue.vm_by_name(text)? {
        return Ok(vm);
    }
    let lower = text.to_ascii_lowercase();
    for folder in [text, &lower] {
        if let Some(vm) = catalogue.vm_by_folder(folder)? {
            return Ok(vm);
        }
    }
    let vms = catalogue.vms()?;
    if let Some(e) = vms.iter().find_map(|vm| vm.check_name().err()) {
        bail!("which VM {text:?} is cannot be told (its uuid names it all the same): {e}");
    }
    let with = |matches: &dyn Fn(&NamedVm) -> bool| -> Vec<NamedVm> {
        vms.iter().filter(|vm| matches(vm)).cloned().collect()
    };
    let by_label = with(&|vm| vm.label.as_deref() == Some(text));
    if let Some(vm) = only(by_label, "VM", text, |vm| &vm.name)? {
        return Ok(vm);
    }
    let lower = text.to_lowercase();
    if !lower.is_empty() {
        // A uuid's start and a name's start count the same: `db` must not lead to whichever VM
        // happens to have a uuid that starts with it when another is called `db-01`.
        let kinds: [&dyn Fn(&NamedVm) -> bool; 3] = [
            &|vm| names_of(vm).any(|name| name == lower),
            &|vm| {
                vm.vm.folder().to_lowercase().starts_with(&lower)
                    || names_of(vm).any(|name| name.starts_with(&lower))
            },
            &|vm| names_of(vm).any(|name| name.contains(&lower)),
        ];
        for matches in kinds {
            if let Some(vm) = only(with(matches), "VM", text, |vm| &vm.name)? {
                return Ok(vm);
            }
        }
    }
    if vms.is_empty() {
        bail!("no VM {text:?}: the repository holds no VM backups");
    }
    let list = candidates(vms.iter().map(|vm| vm.name.as_str()));
    bail!("no VM {text:?} in the repository; there are:{list}")
}

/// What a VM is called, in lower case: by itself and in the mount.
fn names_of(vm: &NamedVm) -> impl Iterator<Item = String> {
    [vm.label.as_deref(), Some(vm.name.as_str())]
        .into_iter()
        .flatten()
        .map(str::to_lowercase)
}

/// The date name of the restore point called `text`: `latest`, its name, or the start of it.
///
/// # Errors
/// When there is none or more than one, with candidates.
pub fn find_point(vm: &NamedVm, text: &str) -> Result<String> {
    let listing = vm.vm.listing()?;
    if text == "latest"
        && let Some(newest) = listing.newest()
    {
        return Ok(newest.name.clone());
    }
    // 2026-11-19 and 2026-11-19T02:00 are how people write the same.
    let plain: String = text.chars().filter(|c| !"-: ".contains(*c)).collect();
    let found: Vec<&str> = match plain.is_empty() {
        true => Vec::new(),
        false => listing
            .with_prefix(&plain)
            .map(|p| p.name.as_str())
            .collect(),
    };
    if let Some(name) = only(found, "restore point", text, |name| name)? {
        return Ok(name.to_owned());
    }
    let list = candidates(listing.points.iter().rev().map(|p| p.name.as_str()));
    bail!(
        "no restore point {text:?} of {}; there are:{list}",
        escape(&vm.name)
    )
}

/// The disk called `text`: its name with or without `.raw`, or the VDI's uuid or name.
///
/// # Errors
/// When there is none or more than one, with candidates.
pub fn find_disk<'p>(point: &'p RestorePoint, text: &str) -> Result<&'p DiskRecord> {
    let stem = text.strip_suffix(".raw").unwrap_or(text);
    let named = point
        .disks
        .iter()
        .find(|d| d.name == text || d.name == stem);
    if let Some(disk) = named {
        return Ok(disk);
    }
    let is_meant = |d: &&DiskRecord| {
        d.vdi_uuid.as_deref() == Some(text) || d.vdi_name.as_deref() == Some(text)
    };
    let found: Vec<&DiskRecord> = point.disks.iter().filter(is_meant).collect();
    if let Some(disk) = only(found, "disk", text, |d| &d.name)? {
        return Ok(disk);
    }
    if point.disks.is_empty() {
        bail!(
            "no disk {text:?}: nothing is known of the disks of {}",
            point.name
        );
    }
    let list = candidates(point.disks.iter().map(|d| d.name.as_str()));
    bail!("no disk {text:?} in {}; there are:{list}", point.name)
}
