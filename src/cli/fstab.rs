//! How mount(8) asks for a line of `/etc/fstab`.
//!
//! `/srv/backups /mnt/br fuse.brfs allow_other 0 0` runs `brfs /srv/backups /mnt/br -o …` (by way of
//! `mount.fuse`, which comes with fuse3); with the type `brfs`, it is a link `/sbin/mount.brfs` to
//! this program that runs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Parser;

use super::mount::{self, Settings};
use super::storage_args::StorageArgs;
use crate::fuse;

#[derive(Debug, Parser)]
#[command(name = "mount.brfs", version)]
struct Cli {
    repository: String,
    mountpoint: PathBuf,
    #[arg(short = 'o')]
    options: Vec<String>,
    /// Check the options only, as mount(8) passes `--fake` on
    #[arg(short)]
    fake: bool,
    /// Tolerate unknown options: accepted, not followed
    #[arg(short)]
    sloppy: bool,
    /// Do not write /etc/mtab: nothing does
    #[arg(short)]
    no_mtab: bool,
    #[arg(short)]
    verbose: bool,
    /// The file system's type
    #[arg(short = 't')]
    kind: Option<String>,
}

/// Options that mount(8) and `mount.fuse` add unasked. A person who writes one into `fstab` gets
/// what a brfs mount always is.
const ADDED: [&str; 3] = ["rw", "suid", "dev"];

/// Whether these arguments are a mount helper's. mount(8) runs `mount.<type>`; `mount.fuse` runs the
/// program itself, without a command.
pub(super) fn is_helper_call(arguments: &[OsString]) -> bool {
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    let by_name = called.is_some_and(|name| name == "mount.brfs");
    let by_mount_fuse = arguments.len() == 5
        && arguments[3] == "-o"
        && arguments[1..3]
            .iter()
            .all(|a| !a.as_bytes().starts_with(b"-"))
        && arguments[1] != "mount";
    by_name || by_mount_fuse
}

pub(super) fn run(arguments: &[OsString]) -> Result<()> {
    let cli = Cli::parse_from(arguments);
    let mut settings = Settings::default();
    let mut storage = StorageArgs::default();
    for list in &cli.options {
        let kept: Vec<&str> = list.split(',').filter(|o| !ADDED.contains(o)).collect();
        settings.apply(&kept.join(","), &mut storage)?;
    }
    if cli.fake {
        return Ok(());
    }
    let verbose = u8::from(cli.verbose);
    // A line of fstab has a first field in any case; with a file for the URL it only is a name.
    let repository = match storage.repository_file {
        Some(_) => None,
        None => Some(cli.repository.as_str()),
    };
    let mountpoint = &cli.mountpoint;
    // Secrets have left the command line before anything else is done. What remains is what mount(8)
    // compares with the mount table, to know what is mounted already. Where the first field had
    // secrets it cannot tell, and asks again.
    let source = cli.repository.clone();
    let is_there = mountpoint.metadata().is_ok()
        && mountpoint
            .canonicalize()
            .is_ok_and(|at| fuse::mounted_source(&at).is_some_and(|there| *there == *source));
    if is_there {
        return Ok(());
    }
    let source = Some(source);
    mount::start(
        repository, mountpoint, source, settings, storage, false, verbose,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_mount_helpers_are_told_from_commands() {
        let is = |line: &str| {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            is_helper_call(&arguments)
        };
        assert!(is("/sbin/mount.brfs /srv /mnt -o rw"));
        assert!(is("/sbin/mount.brfs /srv /mnt"));
        assert!(is("brfs /srv /mnt -o rw,dev,suid"));
        assert!(!is("brfs mount /srv /mnt -o noexec"));
        assert!(!is("brfs mount /srv -o noexec"));
        assert!(!is("brfs -v mount -o /srv"));
        assert!(!is("brfs umount /mnt"));
    }
}
