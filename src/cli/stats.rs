//! `brfs stats`: what a mount has asked of its storage, so that people can see what a restore costs.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

use super::output::{Table, escape, human_size, print_json, to_stdout};
use crate::store::RequestSnapshot;
use crate::views::{MountStats, STATS_XATTR};

/// Tell what a mount has asked of its storage: requests, bytes, retries, caches, latencies
///
/// Counts from the moment of mounting. Quantiles are exact to a factor of two.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the repository is mounted
    mountpoint: PathBuf,
    /// Print JSON for scripts (fields: docs/COMMANDS.md)
    #[arg(long)]
    json: bool,
}

/// The largest value of an extended attribute.
const MAX_XATTR_BYTES: usize = 64 << 10;

pub(super) fn run(args: &Args) -> Result<()> {
    let stats = read(&args.mountpoint)?;
    to_stdout(|out| match args.json {
        true => Ok(print_json(out, &stats)?),
        false => print(out, &stats),
    })
}

fn read(mountpoint: &Path) -> Result<MountStats> {
    let shown = mountpoint.display();
    let mut value = vec![0; MAX_XATTR_BYTES];
    match rustix::fs::getxattr(mountpoint, STATS_XATTR, &mut value[..]) {
        Ok(len) => value.truncate(len),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => {
            bail!("{shown} is not where a repository is mounted with brfs")
        }
        Err(error) => return Err(error).with_context(|| shown.to_string()),
    }
    serde_json::from_slice(&value).with_context(|| format!("{shown}: answer not understood"))
}

fn print(out: &mut dyn Write, stats: &MountStats) -> Result<()> {
    let storage = &stats.storage;
    writeln!(
        out,
        "{}, mounted for {} s",
        escape(&stats.repository),
        stats.seconds
    )?;
    writeln!(out)?;
    let mut table = Table::new(&[
        "REQUEST", ">COUNT", ">FAILED", ">BYTES", ">MEAN", ">P50", ">P99", ">MAX",
    ]);
    let kinds: [(&str, &RequestSnapshot); 4] = [
        ("list", &storage.list),
        ("head", &storage.head),
        ("get", &storage.get),
        ("get range", &storage.get_range),
    ];
    for (name, kind) in kinds {
        let ms = |value: f64| format!("{value:.1} ms");
        table.row(vec![
            name.to_owned(),
            kind.requests.to_string(),
            kind.errors.to_string(),
            human_size(kind.bytes),
            ms(kind.mean_ms),
            ms(kind.p50_ms),
            ms(kind.p99_ms),
            ms(kind.max_ms),
        ]);
    }
    table.print(out)?;
    writeln!(out)?;
    write!(out, "retries: {}", storage.retries)?;
    writeln!(out, " ({} asked to slow down)", storage.throttled)?;
    if storage.parallelism > 0 {
        writeln!(out, "requests at once: up to {}", storage.parallelism)?;
    }
    let memory = &stats.memory_cache;
    writeln!(
        out,
        "blocks in memory: {} hits, {} loads, {} held",
        memory.hits,
        memory.loads,
        human_size(memory.bytes)
    )?;
    if let Some(disk) = &storage.disk_cache {
        writeln!(
            out,
            "kept on disk: {} hits ({}), {} misses, {} written ({}), {} damaged, {} evicted, {} held",
            disk.hits,
            human_size(disk.hit_bytes),
            disk.misses,
            disk.writes,
            human_size(disk.written_bytes),
            disk.damaged,
            disk.evicted,
            human_size(disk.held_bytes),
        )?;
    }
    Ok(())
}
