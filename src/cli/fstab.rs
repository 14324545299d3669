//! `mount.brfs`: how mount(8) asks for a line of `/etc/fstab`.
//!
//! With a link `/sbin/mount.brfs` to this program, `/srv/backups /mnt/br brfs allow_other 0 0`
//! works.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use super::mount::{self, Settings};

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

pub(super) fn run(arguments: &[OsString]) -> Result<()> {
    let cli = Cli::parse_from(arguments);
    let mut settings = Settings::default();
    for list in &cli.options {
        settings.apply(list)?;
    }
    if cli.fake {
        return Ok(());
    }
    let verbose = u8::from(cli.verbose);
    mount::start(&cli.repository, &cli.mountpoint, settings, false, verbose)
}
