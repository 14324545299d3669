//! The images that lie in a VM's directory, whether or not a restore point names them.

use super::layout::VDIS;
use crate::error::{ErrorKind, Result};
use crate::parallel::parallel_map;
use crate::store::{Entry, EntryKind, Store, StorePath};

/// The disk images of a VM's directory (`vdis/<job>/<vdi>/*.vhd`, aliases included), in the order of
/// their names.
///
/// # Errors
/// As the storage says. Without `vdis` there are none.
pub fn images_of(store: &dyn Store, vm_dir: &StorePath) -> Result<Vec<StorePath>> {
    let jobs = directories(store, &vm_dir.child(VDIS))?;
    let threads = store.traits().parallelism;
    let mut disks = Vec::new();
    for of_job in parallel_map(&jobs, threads, |job| directories(store, job)) {
        disks.extend(of_job?);
    }
    let mut images = Vec::new();
    for (disk, entries) in disks
        .iter()
        .zip(parallel_map(&disks, threads, |d| list(store, d)))
    {
        let names = entries?.into_iter().map(|e| e.name);
        let is_image = |name: &String| name.ends_with(".vhd") && !name.starts_with('.');
        images.extend(names.filter(is_image).map(|name| disk.child(&name)));
    }
    images.sort();
    Ok(images)
}

fn directories(store: &dyn Store, dir: &StorePath) -> Result<Vec<StorePath>> {
    let entries = list(store, dir)?.into_iter();
    let dirs = entries.filter(|e| e.kind == EntryKind::Dir);
    Ok(dirs.map(|e| dir.child(&e.name)).collect())
}

/// What is removed while this looks is not there.
fn list(store: &dyn Store, dir: &StorePath) -> Result<Vec<Entry>> {
    match store.list(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}
