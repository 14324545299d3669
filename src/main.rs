//! The `brfs` command; see `brfs::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    brfs::cli::main()
}
