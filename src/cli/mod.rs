//! The command line: options and subcommands.

mod hide;
pub mod storage_args;

pub use hide::hide_secrets;
