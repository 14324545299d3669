//! Images that no restore point names: their metadata is lost, or not written yet. They can still be
//! mounted one by one.

use std::collections::HashSet;
use std::io::{self, Write};

use serde::Serialize;

use super::output::escape;
use crate::error::Result;
use crate::parallel::parallel_map;
use crate::repo::Catalogue;
use crate::repo::images::images_of;
use crate::store::{Store, StorePath};

/// How to get at them.
pub(super) const REMEDY: &str =
    "`brfs mount REPOSITORY/IMAGE MOUNTPOINT` shows an image, with its chain, as a disk";

/// Most images that are shown; --json has all.
const SHOWN: usize = 10;

/// A VM's directory with images and without any restore point.
#[derive(Debug, Serialize)]
pub(super) struct NamelessVm {
    /// The directory's name, which is the VM's uuid.
    pub uuid: String,
    /// Paths in the repository, of each disk's the oldest first.
    pub images: Vec<String>,
    pub problems: Vec<String>,
}

/// The directories of VMs that hold images and no metadata at all.
pub(super) fn nameless_vms(catalogue: &Catalogue) -> Result<Vec<NamelessVm>> {
    let folders = catalogue.folders()?;
    let store = &**catalogue.store();
    let vms: Vec<_> = folders.vms.values().collect();
    let found = parallel_map(&vms, store.traits().parallelism, |vm| {
        // A directory that cannot be listed is a VM that says so.
        if vm
            .listing()
            .map_or(true, |listing| !listing.points.is_empty())
        {
            return None;
        }
        let uuid = vm.folder().to_owned();
        let (images, problems) = match images_of(store, vm.dir()) {
            Ok(images) if images.is_empty() => return None,
            Ok(images) => {
                let count = images.len();
                let problem = format!("{count} images, and no restore point that names them");
                (images, problem)
            }
            Err(e) => (Vec::new(), format!("its images cannot be listed: {e}")),
        };
        Some(NamelessVm {
            uuid,
            images: images.iter().map(StorePath::to_string).collect(),
            problems: vec![problems],
        })
    });
    Ok(found.into_iter().flatten().collect())
}

/// Prints them, and how to mount one.
pub(super) fn print_nameless(out: &mut dyn Write, vms: &[NamelessVm]) -> io::Result<()> {
    for vm in vms {
        writeln!(
            out,
            "{}: {}",
            escape(&vm.uuid),
            escape(&vm.problems.join("; "))
        )?;
        for image in vm.images.iter().take(SHOWN) {
            writeln!(out, "  {}", escape(image))?;
        }
        if vm.images.len() > SHOWN {
            writeln!(
                out,
                "  … and {} more (--json lists all)",
                vm.images.len() - SHOWN
            )?;
        }
    }
    if vms.iter().any(|vm| !vm.images.is_empty()) {
        writeln!(out, "{REMEDY}.")?;
    }
    Ok(())
}

/// A note on the images of a VM that are not among `used`, the images that its restore points need.
/// Those of points that cannot be read (`unreadable`, by their names) are not called unused.
pub(super) fn note_unused(
    store: &dyn Store,
    vm_dir: &StorePath,
    used: &HashSet<&str>,
    unreadable: &HashSet<&str>,
) -> Option<String> {
    let images = match images_of(store, vm_dir) {
        Ok(images) => images,
        Err(e) => {
            return Some(format!(
                "images without restore point cannot be looked for: {e}"
            ));
        }
    };
    let is_unused = |image: &&StorePath| {
        let point = image.file_name().split('.').next().unwrap_or_default();
        !used.contains(image.as_str()) && !unreadable.contains(point)
    };
    let unused: Vec<&StorePath> = images.iter().filter(is_unused).collect();
    let last = unused.last()?;
    let count = unused.len();
    Some(format!(
        "images that no restore point needs: {count}, the last of them {last} \
         (being written, left by a merge, or without metadata); {REMEDY}"
    ))
}
