//! `brfs ls`: the catalogue without mounting.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;

use super::output::{Table, escape, human_size, print_json, show_name, to_stdout};
use super::select;
use super::single::OpenSingle;
use super::storage_args::StorageArgs;
use super::unnamed::{NamelessVm, nameless_vms, print_nameless};
use crate::error::{Error, ErrorKind};
use crate::image::{Disk, DiskContext, RestorePointGuard};
use crate::io::ReadAt;
use crate::parallel::parallel_map;
use crate::repo::catalogue::NamedVm;
use crate::repo::{Catalogue, DiskRecord, DiskRef, Listing, RestorePoint, date};
use crate::store::{Store, StorePath};

/// Stands for a VM's name that cannot be told.
pub(super) const NAME_UNKNOWN: &str = "(name unknown)";

/// Cache for opening disks: they are not read.
const CACHE_BYTES: u64 = 8 << 20;

/// List VMs, the restore points of a VM, or the disks of a restore point.
///
/// Exit code: 0 when nothing is wrong with what was listed, 1 when something is, or cannot be
/// restored (it is listed all the same), 2 when nothing could be listed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repository: a directory or a URL of Xen Orchestra's; or a single .vhd; `-` (or nothing)
    /// where --repository-file or BRFS_REPOSITORY tells it.
    pub repository: Option<String>,
    /// A VM: its name, its folder in the mount, its uuid, or a part that only one VM has.
    pub vm: Option<String>,
    /// A restore point: its name, the start of it (2026-11-19 works), or "latest".
    pub point: Option<String>,
    /// Print JSON for scripts (fields: docs/COMMANDS.md).
    #[arg(long)]
    pub json: bool,
    /// How to get at the repository.
    #[command(flatten)]
    pub storage: StorageArgs,
}

/// Runs the command.
///
/// # Errors
/// When nothing could be listed: exit code 2.
pub fn run(args: Args) -> Result<ExitCode> {
    let damaged = to_stdout(|out| list(&args, out))?;
    Ok(ExitCode::from(u8::from(damaged)))
}

/// Prints what is asked for; tells whether something is wrong with it.
///
/// # Errors
/// When nothing could be listed.
pub fn list(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let given = args.repository.as_deref();
    if args.vm.is_none()
        && let Some(single) = select::open_single(&args.storage, given, CACHE_BYTES)?
    {
        return list_single(&single, args.json, out);
    }
    let catalogue = select::open_catalogue(&args.storage, given)?;
    let Some(vm) = &args.vm else {
        return list_vms(&catalogue, args.json, out);
    };
    let vm = select::find_vm(&catalogue, vm)?;
    match &args.point {
        None => list_points(&vm, args.json, out),
        Some(point) => {
            let name = select::find_point(&vm, point)?;
            list_disks(&vm, &name, args.json, out)
        }
    }
}

/// A VM in JSON.
#[derive(Debug, Serialize)]
pub(super) struct VmRow {
    /// The VM's own name.
    pub name: Option<String>,
    /// Its directory in the mount, below `vms/`; `null` while its name cannot be fetched.
    pub folder: Option<String>,
    pub uuid: String,
    /// How many restore points there are.
    pub points: Option<usize>,
    /// The newest one's name.
    pub newest: Option<String>,
    pub problems: Vec<String>,
}

impl VmRow {
    /// The VM's own name, or its folder's where it has none.
    pub(super) fn shown_name(&self) -> String {
        let name = self.name.as_deref().map(show_name);
        name.or_else(|| self.folder.clone())
            .unwrap_or_else(|| NAME_UNKNOWN.to_owned())
    }

    /// Says what its folder is called where that is not the name with digits of the uuid.
    pub(super) fn note_of_folder(&self) -> Option<String> {
        let (name, folder) = (self.name.as_ref()?, self.folder.as_ref()?);
        let is_plain = (folder.strip_prefix(name.as_str()))
            .is_some_and(|rest| rest.starts_with(" (") && rest.ends_with(')'));
        (!is_plain).then(|| format!("{} is vms/{folder} in a mount", show_name(name)))
    }
}

pub(super) fn vm_row(vm: &NamedVm) -> VmRow {
    vm_row_as(vm, false)
}

/// With `believe`, `cache.json.gz` stands for the newest metadata file where it is as new.
fn vm_row_as(vm: &NamedVm, believe: bool) -> VmRow {
    let listing = vm.vm.listing();
    let mut problems = Vec::new();
    match (&listing, &vm.label) {
        (Err(e), _) => problems.push(format!("restore points cannot be listed: {e}")),
        (Ok(listing), Some(_)) if believe && vm.vm.is_newest_known(listing) => {}
        (Ok(listing), label) => {
            let newest = listing.newest().and_then(|p| vm.vm.report_point(p));
            if let Some(newest) = newest.filter(|p| p.unreadable) {
                let told = newest.problems.iter();
                problems.extend(told.map(|p| format!("{}: {p}", newest.name)));
            } else if label.is_none() {
                problems.push("metadata does not tell the VM's name".into());
            }
        }
    }
    let listing = listing.ok();
    if let Some(listing) = &listing {
        problems.extend(link_problems(vm, listing));
    }
    VmRow {
        name: vm.label.as_deref().map(str::to_owned),
        folder: (!vm.is_name_unknown).then(|| vm.name.clone()),
        uuid: vm.vm.folder().to_owned(),
        points: listing.as_ref().map(|l| l.points.len()),
        newest: listing.and_then(|l| l.newest().map(|p| p.name.clone())),
        problems,
    }
}

/// What a VM's directory has of links that are not followed, but for the newest restore point.
fn link_problems(vm: &NamedVm, listing: &Listing) -> Vec<String> {
    let older = listing.points.iter().rev().skip(1);
    let points = older.filter_map(|p| Some((vm.vm.json_path(&p.name), p.link?)));
    let others = listing.links.iter();
    let others = others.map(|(name, fault)| (vm.vm.dir().child(name), *fault));
    let all = points.chain(others);
    all.map(|(path, fault)| fault.error(&path).to_string())
        .collect()
}

fn list_vms(catalogue: &Catalogue, json: bool, out: &mut dyn Write) -> Result<bool> {
    let vms = catalogue.vms_and_points()?;
    let threads = catalogue.store().traits().parallelism;
    let rows = parallel_map(&vms, threads, |vm| vm_row_as(vm, true));
    let nameless = nameless_vms(catalogue)?;
    let damaged = rows.iter().any(|row| !row.problems.is_empty()) || !nameless.is_empty();
    if json {
        #[derive(Serialize)]
        struct Vms {
            repository: String,
            vms: Vec<VmRow>,
            nameless: Vec<NamelessVm>,
        }
        let repository = catalogue.store().describe();
        let vms = rows;
        let listed = Vms {
            repository,
            vms,
            nameless,
        };
        print_json(out, &listed)?;
        return Ok(damaged);
    }
    if rows.is_empty() && nameless.is_empty() {
        writeln!(out, "No VM backups in this repository.")?;
    } else if !rows.is_empty() {
        let mut table = Table::new(&["VM", "UUID", ">POINTS", "NEWEST", "PROBLEMS"]);
        let renamed: Vec<String> = rows.iter().filter_map(VmRow::note_of_folder).collect();
        for row in rows {
            table.row(vec![
                row.shown_name(),
                row.uuid,
                row.points.map_or("?".into(), |p| p.to_string()),
                row.newest.unwrap_or_default(),
                row.problems.join("; "),
            ]);
        }
        table.print(out)?;
        for note in renamed {
            writeln!(out, "{}", escape(&note))?;
        }
    }
    print_nameless(out, &nameless)?;
    Ok(damaged)
}

/// A restore point in JSON.
#[derive(Debug, Serialize)]
pub(super) struct PointRow {
    /// The date name: its directory in the mount.
    pub name: String,
    /// Milliseconds since 1970.
    pub timestamp: Option<u64>,
    /// `delta` or `full`; `null` when the metadata cannot be read.
    pub mode: Option<String>,
    pub job: Option<String>,
    pub schedule: Option<String>,
    /// Bytes that XO says it transferred.
    pub size: Option<u64>,
    /// File names of the disks.
    pub disks: Vec<String>,
    /// Whether all of it can be had, as far as was looked; else `problems` or `notes` tell why not.
    pub restorable: bool,
    /// What is worth knowing but no damage.
    pub notes: Vec<String>,
    pub problems: Vec<String>,
}

pub(super) fn point_row(point: &RestorePoint) -> PointRow {
    PointRow {
        name: point.name.clone(),
        timestamp: point.timestamp_ms,
        mode: (!point.unreadable).then(|| point.mode.as_str().to_owned()),
        job: point.job_id.clone(),
        schedule: point.schedule_id.clone(),
        size: point.size_bytes,
        disks: point.disks.iter().map(DiskRecord::file_name).collect(),
        restorable: point.problems.is_empty() && point.note().is_none(),
        notes: point.note().map(str::to_owned).into_iter().collect(),
        problems: point.problems.clone(),
    }
}

fn list_points(vm: &NamedVm, json: bool, out: &mut dyn Write) -> Result<bool> {
    let points = vm.vm.points()?;
    let images = ImageListings::of(&**vm.vm.store(), &points);
    let rows = points.iter().map(|point| {
        let mut row = point_row(point);
        row.problems.extend(images.problems_of(point));
        row.restorable &= row.problems.is_empty();
        row
    });
    let rows: Vec<PointRow> = rows.collect();
    let damaged = rows.iter().any(|row| !row.restorable);
    if json {
        #[derive(Serialize)]
        struct Points {
            vm: VmRow,
            points: Vec<PointRow>,
        }
        let vm = vm_row(vm);
        let points = rows;
        print_json(out, &Points { vm, points })?;
        return Ok(damaged);
    }
    let headings = [
        "POINT",
        "TIME (UTC)",
        "MODE",
        "JOB",
        "DISKS",
        ">SIZE",
        "PROBLEMS",
    ];
    let mut table = Table::new(&headings);
    for (row, point) in rows.into_iter().zip(&points) {
        let job = row.job.unwrap_or_default();
        table.row(vec![
            row.name,
            point.time().map(date::format_utc).unwrap_or_default(),
            row.mode.unwrap_or_default(),
            // Enough to tell jobs apart; --json has the whole.
            job.chars().take(8).collect(),
            row.disks.join(" "),
            row.size.map(human_size).unwrap_or_default(),
            row.problems
                .into_iter()
                .chain(row.notes)
                .collect::<Vec<_>>()
                .join("; "),
        ]);
    }
    table.print(out)?;
    Ok(damaged)
}

/// The directories in which the youngest images of restore points lie: one listing tells of many
/// points whether their images are there at all.
struct ImageListings(BTreeMap<StorePath, Result<HashSet<String>, Error>>);

impl ImageListings {
    fn of(store: &dyn Store, points: &[Arc<RestorePoint>]) -> Self {
        let disks = points.iter().flat_map(|point| &point.disks);
        let dirs = disks.filter_map(|disk| Some(disk.place.as_ref().ok()?.path().parent()));
        let dirs: BTreeSet<StorePath> = dirs.collect();
        let dirs: Vec<StorePath> = dirs.into_iter().collect();
        let listed = parallel_map(&dirs, store.traits().parallelism, |dir| {
            match store.list(dir) {
                Ok(entries) => Ok(entries.into_iter().map(|e| e.name).collect()),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(HashSet::new()),
                Err(e) => Err(e),
            }
        });
        ImageListings(dirs.into_iter().zip(listed).collect())
    }

    /// What is wrong with the places of a point's images.
    fn problems_of(&self, point: &RestorePoint) -> Vec<String> {
        let told = point.disks.iter().filter_map(|disk| {
            let path = disk.place.as_ref().ok()?.path();
            let problem = match self.0.get(&path.parent())? {
                Ok(names) if names.contains(path.file_name()) => return None,
                Ok(_) => format!("its image {path} is missing"),
                Err(e) => format!("its image cannot be looked for: {e}"),
            };
            Some(format!("disk {:?}: {problem}", disk.name))
        });
        told.collect()
    }
}

/// A disk in JSON.
#[derive(Debug, Serialize)]
pub(super) struct DiskRow {
    /// The file name in the mount.
    pub name: String,
    pub vdi_uuid: Option<String>,
    pub vdi_name: Option<String>,
    /// XAPI's VDI type.
    pub vdi_type: Option<String>,
    /// Path of the youngest image in the repository.
    pub path: Option<String>,
    /// Virtual size in bytes, of the image, or of the VDI record when the image cannot be opened.
    pub size: Option<u64>,
    /// `VHD file` or `VHD directory`.
    pub format: Option<&'static str>,
    pub compression: Option<&'static str>,
    /// How many images the chain has.
    pub chain_length: Option<usize>,
    pub problems: Vec<String>,
}

impl OpenSingle {
    /// The row of the disk.
    pub(super) fn row(&self) -> DiskRow {
        let links = self.disk.links();
        DiskRow {
            name: "disk.raw".to_owned(),
            vdi_uuid: None,
            vdi_name: None,
            vdi_type: None,
            path: Some(self.single.inside.as_str().to_owned()),
            size: Some(self.disk.len_bytes()),
            format: links.first().map(|l| l.format),
            compression: links.first().map(|l| l.compression),
            chain_length: Some(links.len()),
            problems: self.disk.problems(&links),
        }
    }
}

/// Opens a disk of a restore point.
pub(super) fn open_disk(
    context: &Arc<DiskContext>,
    point: &RestorePoint,
    record: &DiskRecord,
) -> Result<Arc<Disk>, String> {
    let place = record.place.as_ref().map_err(Clone::clone)?;
    let guard = RestorePointGuard {
        path: point.json_path.clone(),
    };
    context.open(place, Some(guard)).map_err(|e| e.to_string())
}

pub(super) fn disk_row(record: &DiskRecord, disk: &Result<Arc<Disk>, String>) -> DiskRow {
    let mut row = DiskRow {
        name: record.file_name(),
        vdi_uuid: record.vdi_uuid.clone(),
        vdi_name: record.vdi_name.clone(),
        vdi_type: record.vdi_type.clone(),
        path: record.place.as_ref().ok().map(DiskRef::to_string),
        size: record.virtual_size,
        format: None,
        compression: None,
        chain_length: None,
        problems: Vec::new(),
    };
    match disk {
        Err(problem) => row.problems.push(format!("cannot be opened: {problem}")),
        Ok(disk) => {
            let links = disk.links();
            row.size = Some(disk.len_bytes());
            row.format = links.first().map(|l| l.format);
            row.compression = links.first().map(|l| l.compression);
            row.chain_length = Some(links.len());
            row.problems = disk.problems(&links);
        }
    }
    row
}

/// A single image in the place of a repository.
fn list_single(single: &OpenSingle, json: bool, out: &mut dyn Write) -> Result<bool> {
    let row = single.row();
    let damaged = !row.problems.is_empty();
    if json {
        #[derive(Serialize)]
        struct Bare {
            repository: String,
            disks: Vec<DiskRow>,
        }
        let repository = single.context.store().describe();
        let disks = vec![row];
        print_json(out, &Bare { repository, disks })?;
    } else {
        print_disks(vec![row], out)?;
    }
    Ok(damaged)
}

fn print_disks(rows: Vec<DiskRow>, out: &mut dyn Write) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let headings = [
        "DISK",
        ">SIZE",
        "FORMAT",
        "COMPRESSION",
        ">CHAIN",
        "VDI",
        "PROBLEMS",
    ];
    let mut table = Table::new(&headings);
    for row in rows {
        table.row(vec![
            row.name,
            row.size.map(human_size).unwrap_or_default(),
            row.format.unwrap_or_default().to_owned(),
            row.compression.unwrap_or_default().to_owned(),
            row.chain_length.map_or(String::new(), |n| n.to_string()),
            row.vdi_name.or(row.vdi_uuid).unwrap_or_default(),
            row.problems.join("; "),
        ]);
    }
    table.print(out)?;
    Ok(())
}

fn list_disks(vm: &NamedVm, name: &str, json: bool, out: &mut dyn Write) -> Result<bool> {
    let point = vm
        .vm
        .point(name)?
        .context("the restore point was just removed")?;
    let context = DiskContext::new(vm.vm.store().clone(), CACHE_BYTES);
    let threads = vm.vm.store().traits().parallelism;
    let rows = parallel_map(&point.disks, threads, |record| {
        disk_row(record, &open_disk(&context, &point, record))
    });
    let mut shown = point_row(&point);
    shown.restorable &= rows.iter().all(|row| row.problems.is_empty());
    let damaged = !shown.restorable;
    if json {
        #[derive(Serialize)]
        struct Disks {
            vm: VmRow,
            point: PointRow,
            disks: Vec<DiskRow>,
        }
        let disks = Disks {
            vm: vm_row(vm),
            point: shown,
            disks: rows,
        };
        print_json(out, &disks)?;
        return Ok(damaged);
    }
    print_disks(rows, out)?;
    for text in point
        .problems
        .iter()
        .map(String::as_str)
        .chain(point.note())
    {
        writeln!(out, "{name}: {}", escape(text))?;
    }
    Ok(damaged)
}
