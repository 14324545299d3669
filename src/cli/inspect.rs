//! What `brfs info` finds out, as data: per VM, restore point and disk, what there is and what is
//! wrong. Printing is in `info`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use super::inside::{Inside, look_inside};
use super::ls::{DiskRow, PointRow, VmRow, disk_row, open_disk, point_row, vm_row};
use super::unnamed::{NamelessVm, nameless_vms, note_unused};
use crate::error::ErrorKind;
use crate::image::merge_state::{
    MAX_MERGE_STATE_BYTES, MergeState, MergeStep, parent_of_merge_state,
};
use crate::image::{BlockChecks, Disk, DiskContext, LinkReport};
use crate::io::ReadAt;
use crate::parallel::parallel_map;
use crate::repo::cache_index::CacheIndex;
use crate::repo::catalogue::NamedVm;
use crate::repo::hardware::Hardware;
use crate::repo::{Catalogue, RestorePoint};
use crate::store::{EntryKind, Store, StorePath, Validity};

/// Everything about a repository.
#[derive(Debug, Serialize)]
pub(super) struct RepositoryReport {
    pub repository: String,
    pub damaged: bool,
    pub vms: Vec<VmReport>,
    /// VMs of which there are images and no metadata.
    pub nameless: Vec<NamelessVm>,
}

/// Everything about what was asked for of a VM.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub repository: String,
    #[serde(flatten)]
    pub of_vm: VmReport,
}

/// A VM, and its restore points as far as they were asked for.
#[derive(Debug, Serialize)]
pub(super) struct VmReport {
    /// Whether anything is wrong anywhere below.
    pub damaged: bool,
    pub vm: VmRow,
    /// What is worth knowing about the VM but no damage.
    pub notes: Vec<String>,
    pub points: Vec<PointReport>,
}

/// A restore point and its disks.
#[derive(Debug, Serialize)]
pub(super) struct PointReport {
    #[serde(flatten)]
    pub row: PointRow,
    pub damaged: bool,
    /// What it takes to build the VM by hand; told of a single point only.
    pub hardware: Option<Hardware>,
    pub disk_reports: Vec<DiskReport>,
}

/// A disk and its chain.
#[derive(Debug, Serialize)]
pub(super) struct DiskReport {
    #[serde(flatten)]
    pub row: DiskRow,
    /// Bytes allocated over the whole chain, when they can be counted.
    pub allocated: Option<u64>,
    /// What is in it, where a single restore point or disk was asked for.
    pub inside: Option<Inside>,
    /// What is worth knowing but no damage.
    pub notes: Vec<String>,
    /// The images, youngest first.
    pub chain: Vec<LinkReport>,
}

/// Looks at all VMs of a repository.
pub(super) fn inspect_all(
    catalogue: &Catalogue,
    context: &Arc<DiskContext>,
) -> Result<RepositoryReport> {
    let vms = catalogue.vms()?;
    let reports = vms
        .iter()
        .map(|vm| match inspect(catalogue, context, vm, None, None) {
            Ok(report) => report.of_vm,
            // It cannot be listed, which its row says.
            Err(_) => VmReport {
                damaged: true,
                vm: vm_row(vm),
                notes: Vec::new(),
                points: Vec::new(),
            },
        });
    let vms: Vec<VmReport> = reports.collect();
    let nameless = nameless_vms(catalogue)?;
    Ok(RepositoryReport {
        repository: catalogue.store().describe(),
        damaged: !nameless.is_empty() || vms.iter().any(|vm| vm.damaged),
        vms,
        nameless,
    })
}

/// Looks at the restore points named by `points` (all when empty), or one disk of theirs.
pub(super) fn inspect(
    catalogue: &Catalogue,
    context: &Arc<DiskContext>,
    vm: &NamedVm,
    only_point: Option<&str>,
    only_disk: Option<&str>,
) -> Result<Report> {
    let listing = vm.vm.listing()?;
    let checks = BlockChecks::default();
    let mut points = Vec::new();
    for listed in &listing.points {
        if only_point.is_some_and(|name| name != listed.name) {
            continue;
        }
        // Always the truth, never the hint.
        let Some(point) = vm.vm.report_point(listed) else {
            continue;
        };
        let is_single = only_point.is_some();
        let mut report = inspect_point(context, &checks, &point, only_disk, is_single);
        if is_single && !point.unreadable {
            match Hardware::read(&**catalogue.store(), &point.json_path) {
                Ok(hardware) => report.hardware = Some(hardware),
                Err(e) => (report.row.notes).push(format!("the VM's hardware is unknown: {e}")),
            }
        }
        points.push(report);
    }
    let row = vm_row(vm);
    let damaged = !row.problems.is_empty() || points.iter().any(|p| p.damaged);
    let mut notes = vm_notes(catalogue, vm);
    if only_point.is_none() {
        let disks = || points.iter().flat_map(|p| &p.disk_reports);
        let links = disks().flat_map(|d| d.chain.iter().map(|link| link.path.as_str()));
        let used = links.chain(disks().filter_map(|d| d.row.path.as_deref()));
        // Whatever an unreadable point needs, its own images carry its name.
        let unreadable = points.iter().filter(|p| p.row.mode.is_none());
        let unreadable = unreadable.map(|p| p.row.name.as_str()).collect();
        let store = &**catalogue.store();
        notes.extend(note_unused(
            store,
            vm.vm.dir(),
            &used.collect(),
            &unreadable,
        ));
    }
    Ok(Report {
        repository: catalogue.store().describe(),
        of_vm: VmReport {
            damaged,
            notes,
            vm: row,
            points,
        },
    })
}

fn inspect_point(
    context: &Arc<DiskContext>,
    checks: &BlockChecks,
    point: &RestorePoint,
    only_disk: Option<&str>,
    is_single: bool,
) -> PointReport {
    let records: Vec<_> = point
        .disks
        .iter()
        .filter(|d| only_disk.is_none_or(|name| name == d.name))
        .collect();
    let threads = context.store().traits().parallelism;
    let disk_reports = parallel_map(&records, threads, |record| {
        let disk = open_disk(context, point, record);
        let row = disk_row(record, &disk);
        let with_inside = is_single && !record.suspend;
        let mut report = inspect_disk(context.store(), checks, row, disk.ok(), with_inside);
        let recorded = record.virtual_size.filter(|s| Some(*s) != report.row.size);
        if let (Some(recorded), Some(_)) = (recorded, report.row.format) {
            let note = format!("the VDI's record tells another size: {recorded} bytes");
            report.notes.push(note);
        }
        report
    });
    let mut row = point_row(point);
    row.restorable &= disk_reports.iter().all(|d| d.row.problems.is_empty());
    PointReport {
        damaged: !row.restorable,
        hardware: None,
        row,
        disk_reports,
    }
}

/// Completes a row with what an opened disk tells.
pub(super) fn inspect_disk(
    store: &Arc<dyn Store>,
    checks: &BlockChecks,
    mut row: DiskRow,
    disk: Option<Arc<Disk>>,
    with_inside: bool,
) -> DiskReport {
    let mut notes = Vec::new();
    // Without a disk the row says why there is none.
    let Some(disk) = disk else {
        return DiskReport {
            row,
            allocated: None,
            inside: None,
            notes,
            chain: Vec::new(),
        };
    };
    let chain = disk.checked_links(checks);
    row.problems = disk.problems(&chain);
    let allocated = disk.allocated_bytes().map_err(|e| {
        row.problems
            .push(format!("allocated size cannot be counted: {e}"));
    });
    notes.extend(merge_notes(&**store, &chain));
    row.size = Some(disk.len_bytes());
    let mut inside = None;
    if with_inside {
        match look_inside(&disk) {
            Ok(found) => {
                notes.extend(found.problems.iter().cloned());
                inside = Some(found);
            }
            // A disk that is known to be damaged is told of already.
            Err(_) if !row.problems.is_empty() => {}
            Err(e) => row
                .problems
                .push(format!("its partition table cannot be read: {e}")),
        }
    }
    DiskReport {
        row,
        allocated: allocated.ok(),
        inside,
        notes,
        chain,
    }
}

/// The merges whose state files name images of this chain.
fn merge_notes(store: &dyn Store, chain: &[LinkReport]) -> Vec<String> {
    let mut by_dir: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for link in chain {
        let (dir, file) = link.path.rsplit_once('/').unwrap_or(("", &link.path));
        by_dir.entry(dir.to_owned()).or_default().push(file);
    }
    let mut notes = Vec::new();
    for (dir, files) in by_dir {
        let Ok(dir) = StorePath::new(&dir) else {
            continue;
        };
        let entries = store.list(&dir).unwrap_or_else(|e| {
            notes.push(format!("merges cannot be looked for: {e}"));
            Vec::new()
        });
        for entry in entries {
            let Some(parent) = parent_of_merge_state(&entry.name) else {
                continue;
            };
            if entry.kind != EntryKind::File {
                continue;
            }
            let read = store.read(
                &dir.child(&entry.name),
                MAX_MERGE_STATE_BYTES,
                Validity::Ask,
            );
            match read.and_then(|(data, _)| MergeState::parse(&data)) {
                Ok(state) => {
                    let named = |file: &&str| state.chain.iter().any(|c| c == file);
                    if files.iter().any(named) || files.contains(&parent) {
                        notes.push(describe_merge(parent, &state));
                    }
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => notes.push(format!("the state of a merge cannot be read: {e}")),
            }
        }
    }
    notes
}

fn describe_merge(parent: &str, state: &MergeState) -> String {
    let step = match state.step {
        MergeStep::MergeBlocks => format!("moving blocks, at block {}", state.current_block),
        MergeStep::Cleanup => "last step, all blocks moved".to_owned(),
        MergeStep::Unknown => "in a step that brfs does not know".to_owned(),
    };
    format!("a merge into {parent} is running or was interrupted ({step})")
}

fn vm_notes(catalogue: &Catalogue, vm: &NamedVm) -> Vec<String> {
    let mut notes = Vec::new();
    match catalogue.folders() {
        Ok(folders) if folders.locked.contains(vm.vm.folder()) => {
            notes
                .push("locked: Xen Orchestra is working on this VM, or was interrupted".to_owned());
        }
        Ok(_) => {}
        Err(e) => notes.push(format!("locks cannot be looked for: {e}")),
    }
    match CacheIndex::load(&**catalogue.store(), vm.vm.dir(), None) {
        Ok(None) => {}
        Ok(Some(index)) => notes.extend(stale_index(vm, &index)),
        Err(e) => notes.push(format!("cache.json.gz is ignored: {e}")),
    }
    notes
}

fn stale_index(vm: &NamedVm, index: &CacheIndex) -> Option<String> {
    let listing = vm.vm.listing().ok()?;
    let gone = index
        .points
        .keys()
        .filter(|name| listing.find(name).is_none());
    let unknown = listing
        .points
        .iter()
        .filter(|p| !index.points.contains_key(&p.name));
    let (gone, unknown) = (gone.count(), unknown.count());
    (gone + unknown > 0).then(|| {
        format!(
            "cache.json.gz is stale: it knows {gone} restore points that are gone and misses \
             {unknown}"
        )
    })
}
