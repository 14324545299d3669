//! The command line: the one place, with `main`, that may see every module and use `anyhow`.
//!
//! Each command has a file of its own with its arguments and a `run`. A person reads what it
//! prints, so errors say what to do; scripts read its exit status, which is 0 only when what was
//! asked for is done.

mod daemon;
mod fstab;
pub mod info;
mod inside;
mod inspect;
mod logging;
pub mod ls;
mod mount;
mod open_view;
pub mod output;
mod redact_args;
mod request;
pub mod select;
mod serve;
mod single;
mod size;
mod stats;
pub mod storage_args;
mod umount;
mod unnamed;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::call;
use crate::store::notice;

/// Browse Xen Orchestra backups as files.
#[derive(Debug, Parser)]
#[command(name = "brfs", version, arg_required_else_help = true)]
struct Cli {
    /// Say more in the log (twice: everything); BRFS_LOG holds a finer filter.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Args),
    Ls(ls::Args),
    Info(info::Args),
    Stats(stats::Args),
    Umount(umount::Args),
    #[command(hide = true)]
    Serve(serve::Args),
}

/// Exit status when what was asked for could not be done at all; 1 is for "done, and something is
/// wrong with the backups".
const NOTHING_DONE: u8 = 2;

/// Runs the command that the process's arguments ask for.
pub fn main() -> ExitCode {
    if let Err(error) = redact_args::redact() {
        eprintln!("brfs: {error}");
        return ExitCode::from(NOTHING_DONE);
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let result = if fstab::is_helper_call(&arguments) {
        fstab::run(&arguments).map(|()| ExitCode::SUCCESS)
    } else {
        run(Cli::parse_from(arguments))
    };
    result.unwrap_or_else(|error| {
        // Plain `brfs: …` rather than a backtrace: these are messages for people.
        eprintln!("brfs: {}", output::told(&error));
        ExitCode::from(NOTHING_DONE)
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Mount(args) => mount::run(args, cli.verbose)?,
        Command::Ls(args) => return at_a_terminal(|| ls::run(args)),
        Command::Info(args) => return at_a_terminal(|| info::run(args)),
        Command::Stats(args) => stats::run(&args)?,
        Command::Umount(args) => umount::run(&args)?,
        Command::Serve(args) => serve::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command for which a person waits: who is told why that takes long.
fn at_a_terminal<T>(command: impl FnOnce() -> T) -> T {
    notice::listen(|text| eprintln!("brfs: {text}"));
    call::on_call(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
