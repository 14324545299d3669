//! `brfs info`: chains, sizes, formats, and what is wrong.

use std::collections::HashSet;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::inside::Inside;
use super::inspect::{DiskReport, PointReport, VmReport, inspect, inspect_all, inspect_disk};
use super::ls::NAME_UNKNOWN;
use super::output::{escape, human_size, print_json, show_name, to_stdout};
use super::select;
use super::storage_args::StorageArgs;
use super::unnamed::print_nameless;
use crate::image::{BlockChecks, DiskContext, LinkReport};
use crate::repo::date;
use crate::repo::hardware::Hardware;

/// Cache for opening disks: they are not read.
const CACHE_BYTES: u64 = 8 << 20;

/// Tell what restore points and disks consist of and what is wrong with them: of a whole repository, a
/// VM, a restore point or a disk.
///
/// Reads metadata, headers and block tables and lists the blocks; of the data only partition tables and
/// the starts of the volumes, where one restore point or disk is asked for. Exit code: 0 when nothing
/// wrong was found, 1 when something was, or cannot be restored, 2 when nothing could be looked at.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repository: a directory or a URL of Xen Orchestra's; or a single .vhd, a file, a VHD directory
    /// or a URL.
    pub repository: Option<String>,
    /// A VM: its name, its folder in the mount, its uuid, or a part that only one VM has.
    pub vm: Option<String>,
    /// A restore point: its name, the start of it (2026-11-19 works), or "latest".
    pub point: Option<String>,
    /// A disk: its name in the mount, or its VDI's uuid or name.
    pub disk: Option<String>,
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
/// When nothing could be looked at: exit code 2.
pub fn run(args: Args) -> Result<ExitCode> {
    let damaged = to_stdout(|out| info(&args, out))?;
    Ok(ExitCode::from(u8::from(damaged)))
}

/// Prints what is asked for; tells whether anything is wrong.
///
/// # Errors
/// When nothing could be looked at.
pub fn info(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let Some(vm) = &args.vm else {
        return bare_info(args, out);
    };
    let catalogue = select::open_catalogue(&args.storage, args.repository.as_deref())?;
    let vm = select::find_vm(&catalogue, vm)?;
    let point = match &args.point {
        Some(text) => Some(select::find_point(&vm, text)?),
        None => None,
    };
    let disk = match (&args.disk, &point) {
        (Some(text), Some(name)) => {
            let point = vm
                .vm
                .point(name)?
                .context("the restore point was just removed")?;
            Some(select::find_disk(&point, text)?.name.clone())
        }
        _ => None,
    };
    let context = DiskContext::new(catalogue.store().clone(), CACHE_BYTES);
    let (only_point, only_disk) = (point.as_deref(), disk.as_deref());
    let report = inspect(&catalogue, &context, &vm, only_point, only_disk)?;
    if args.json {
        print_json(out, &report)?;
    } else {
        print_report(out, &report.of_vm, point.is_some())?;
    }
    Ok(report.of_vm.damaged)
}

/// All VMs of a repository.
fn repository_info(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let catalogue = select::open_catalogue(&args.storage, args.repository.as_deref())?;
    let context = DiskContext::new(catalogue.store().clone(), CACHE_BYTES);
    let report = inspect_all(&catalogue, &context)?;
    if args.json {
        print_json(out, &report)?;
        return Ok(report.damaged);
    }
    for (index, vm) in report.vms.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        print_report(out, vm, false)?;
    }
    if report.vms.is_empty() && report.nameless.is_empty() {
        writeln!(out, "No VM backups in this repository.")?;
    }
    if !report.vms.is_empty() && !report.nameless.is_empty() {
        writeln!(out)?;
    }
    print_nameless(out, &report.nameless)?;
    Ok(report.damaged)
}

/// What it takes to build the VM by hand.
fn print_hardware(out: &mut dyn Write, hardware: &Hardware) -> Result<()> {
    let mut parts = Vec::new();
    if let Some(vcpus) = hardware.vcpus {
        let mut part = format!("{vcpus} vCPUs");
        if let Some(most) = hardware.vcpus_max.filter(|most| *most != vcpus) {
            part += &format!(" (at most {most})");
        }
        if let Some(cores) = hardware.cores_per_socket {
            part += &format!(", {cores} cores per socket");
        }
        parts.push(part);
    }
    if let Some(memory) = hardware.memory {
        let mut part = format!("{} memory", human_size(memory));
        if let Some(most) = hardware.memory_static_max.filter(|most| *most != memory) {
            part += &format!(" (at most {})", human_size(most));
        }
        parts.push(part);
    }
    if let Some(kind) = &hardware.domain_type {
        parts.push(kind.to_uppercase());
    }
    if let Some(firmware) = &hardware.firmware {
        parts.push(format!("firmware {}", firmware.to_uppercase()));
    }
    if hardware.secure_boot {
        parts.push("secure boot".to_owned());
    }
    if let Some(order) = &hardware.boot_order {
        parts.push(format!("boot order {order}"));
    }
    if !parts.is_empty() {
        writeln!(out, "  hardware: {}", escape(&parts.join(", ")))?;
    }
    let Some(cards) = &hardware.network_cards else {
        writeln!(out, "  network cards: not told by the metadata")?;
        return Ok(());
    };
    for card in cards {
        let mut parts = Vec::new();
        if let Some(mac) = &card.mac {
            parts.push(format!("MAC {mac}"));
        }
        if let Some(name) = card.network_name.as_ref().or(card.network_uuid.as_ref()) {
            parts.push(format!("network {name:?}"));
        }
        if let Some(vlan) = card.vlan {
            parts.push(format!("VLAN {vlan}"));
        }
        if let Some(mtu) = card.mtu {
            parts.push(format!("MTU {mtu}"));
        }
        let device = card.device.as_deref().unwrap_or("?");
        let line = format!("network card {device}: {}", parts.join(", "));
        writeln!(out, "  {}", escape(&line))?;
    }
    Ok(())
}

/// A single image without its repository.
fn bare_info(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let given = args.repository.as_deref();
    let Some(single) = select::open_single(&args.storage, given, CACHE_BYTES)? else {
        return repository_info(args, out);
    };
    let (row, context, disk) = (single.row(), single.context, single.disk);
    let checks = BlockChecks::default();
    let report = inspect_disk(context.store(), &checks, row, Some(disk), true);
    let damaged = !report.row.problems.is_empty();
    if args.json {
        #[derive(Serialize)]
        struct Bare {
            repository: String,
            damaged: bool,
            disk: DiskReport,
        }
        let repository = context.store().describe();
        let disk = report;
        print_json(
            out,
            &Bare {
                repository,
                damaged,
                disk,
            },
        )?;
    } else {
        print_disk(out, &report, true)?;
    }
    Ok(damaged)
}

fn print_report(out: &mut dyn Write, report: &VmReport, with_chains: bool) -> Result<()> {
    let vm = &report.vm;
    let name = match &vm.name {
        Some(name) => show_name(name),
        None => NAME_UNKNOWN.to_owned(),
    };
    let points = vm.points.unwrap_or(0);
    writeln!(
        out,
        "{}  {}  {points} restore points",
        escape(&name),
        escape(&vm.uuid)
    )?;
    if let Some(note) = vm.note_of_folder() {
        writeln!(out, "  {}", escape(&note))?;
    }
    print_lines(out, "  ", &vm.problems, &report.notes)?;
    for point in &report.points {
        print_point(out, point, with_chains)?;
    }
    Ok(())
}

fn print_lines(
    out: &mut dyn Write,
    indent: &str,
    problems: &[String],
    notes: &[String],
) -> Result<()> {
    for problem in problems {
        writeln!(out, "{indent}PROBLEM: {}", escape(problem))?;
    }
    for note in notes {
        writeln!(out, "{indent}note: {}", escape(note))?;
    }
    Ok(())
}

fn print_point(out: &mut dyn Write, point: &PointReport, with_chains: bool) -> Result<()> {
    let row = &point.row;
    write!(out, "\n{}", row.name)?;
    if let Some(time) = row.timestamp.and_then(date::from_unix_millis) {
        write!(out, "  {} UTC", date::format_utc(time))?;
    }
    if let Some(mode) = &row.mode {
        write!(out, "  {}", escape(mode))?;
    }
    if let Some(size) = row.size {
        write!(out, "  {} transferred", human_size(size))?;
    }
    writeln!(out)?;
    if with_chains {
        for (what, id) in [("job", &row.job), ("schedule", &row.schedule)] {
            if let Some(id) = id {
                writeln!(out, "  {what} {}", escape(id))?;
            }
        }
    }
    if let Some(hardware) = &point.hardware {
        print_hardware(out, hardware)?;
    }
    print_lines(out, "  ", &row.problems, &row.notes)?;
    for disk in &point.disk_reports {
        print_disk(out, disk, with_chains)?;
    }
    Ok(())
}

fn print_disk(out: &mut dyn Write, disk: &DiskReport, with_chain: bool) -> Result<()> {
    let row = &disk.row;
    write!(out, "  {}", escape(&row.name))?;
    if let Some(size) = row.size {
        write!(out, "  {} ({size} bytes)", human_size(size))?;
    }
    if let Some(allocated) = disk.allocated {
        write!(out, ", {} allocated", human_size(allocated))?;
    }
    if let (Some(format), Some(compression)) = (row.format, row.compression) {
        write!(out, "  {format}, {}", compression_words(compression))?;
    }
    if let Some(length) = row.chain_length {
        write!(out, ", chain of {length}")?;
    }
    writeln!(out)?;
    if !with_chain {
        return print_lines(out, "    ", &row.problems, &disk.notes);
    }
    if let Some(name) = &row.vdi_name {
        writeln!(out, "    VDI name {}", escape(name))?;
    }
    if let Some(uuid) = &row.vdi_uuid {
        writeln!(out, "    VDI uuid {}", escape(uuid))?;
    }
    if let Some(inside) = &disk.inside {
        print_inside(out, inside)?;
    }
    print_lines(out, "    ", &problems_of_disk(disk), &disk.notes)?;
    print_chain(out, disk)
}

/// `inside: gpt; part1 efi-system: fat, 512 MiB; part2 linux: ext, 20 GiB`
fn print_inside(out: &mut dyn Write, inside: &Inside) -> Result<()> {
    write!(
        out,
        "    inside: {}",
        inside.content.unwrap_or(inside.table)
    )?;
    for part in &inside.partitions {
        let size = human_size(part.size);
        write!(
            out,
            "; part{} {}: {}, {size}",
            part.number, part.kind, part.content
        )?;
    }
    writeln!(out)?;
    Ok(())
}

/// The problems of the disk that are not those of one of its images: these stand with the image.
fn problems_of_disk(disk: &DiskReport) -> Vec<String> {
    let of_images: HashSet<String> = disk.chain.iter().flat_map(|l| l.told_problems()).collect();
    let problems = disk.row.problems.iter();
    problems
        .filter(|p| !of_images.contains(*p))
        .cloned()
        .collect()
}

fn compression_words(compression: &str) -> &str {
    match compression {
        "none" => "uncompressed",
        other => other,
    }
}

/// The images, youngest first: a line each, and another only for what is unlike the one above.
fn print_chain(out: &mut dyn Write, disk: &DiskReport) -> Result<()> {
    let mut dir = None;
    let mut kind = None;
    for (index, link) in disk.chain.iter().enumerate() {
        let (link_dir, file) = link.path.rsplit_once('/').unwrap_or(("", &link.path));
        if dir != Some(link_dir) && !link_dir.is_empty() {
            writeln!(out, "    in {}/", escape(link_dir))?;
        }
        dir = Some(link_dir);
        let number = index + 1;
        write!(out, "    {number:>3}. {}", escape(file))?;
        if let Some(data) = &link.data_path {
            let below = data
                .strip_prefix(link_dir)
                .and_then(|d| d.strip_prefix('/'));
            write!(out, " -> {}", escape(below.unwrap_or(data)))?;
        }
        writeln!(out, "  {}, uuid {}", link.disk_type, escape(&link.uuid))?;
        let link_kind = kind_of(link);
        if kind.as_ref() != Some(&link_kind) {
            writeln!(out, "         {link_kind}")?;
        }
        kind = Some(link_kind);
        let next = disk.chain.get(number);
        // Where the chain goes on, the parent is the next line.
        if let Some(parent) = &link.parent_uuid
            && next.is_none_or(|next| next.uuid != *parent)
        {
            writeln!(out, "         parent {}", escape(parent))?;
        }
        print_lines(out, "         ", &link.problems, &link.notes)?;
    }
    Ok(())
}

fn kind_of(link: &LinkReport) -> String {
    let mut kind = format!(
        "{}, {}, {} bytes",
        link.format,
        compression_words(link.compression),
        link.virtual_size
    );
    if link.block_size > 0 {
        kind += &format!(" in blocks of {}", human_size(u64::from(link.block_size)));
    }
    kind + &format!(", made by {}", escape(&format!("{:?}", link.creator)))
}
