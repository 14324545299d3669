//! The command line: the one place, with `main`, that may see every module and use `anyhow`.
//!
//! Each command has a file of its own with its arguments and a `run`. A person reads what it
//! prints, so errors say what to do; scripts read its exit status, which is 0 only when what was
//! asked for is done.

mod compose;
mod daemon;
mod fstab;
mod logging;
mod mount;
mod placeholder;
mod serve;
mod size;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
    Umount(umount::Args),
    #[command(hide = true)]
    Serve(serve::Args),
}

/// Runs the command that the process's arguments ask for.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let result = if fstab::is_helper_call(&arguments) {
        fstab::run(&arguments)
    } else {
        run(Cli::parse_from(arguments))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Plain `brfs: …` rather than a backtrace: these are messages for people.
            eprintln!("brfs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Mount(args) => mount::run(args, cli.verbose),
        Command::Umount(args) => umount::run(&args),
        Command::Serve(args) => serve::run(&args),
    }
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
