//! `brfs umount`.

use std::path::PathBuf;

use anyhow::Result;

use crate::fuse;

/// Unmount a repository; plain `umount` and `fusermount3 -u` do as well
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Take the directory away at once, even when programs still use it; they may finish, except
    /// those that wait for storage that does not answer
    #[arg(short = 'z', long)]
    lazy: bool,
    /// Take it away whatever uses it: programs that still do get errors
    #[arg(short, long, conflicts_with = "lazy")]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    match args.force {
        true => fuse::unmount_by_force(&args.mountpoint)?,
        false => fuse::unmount(&args.mountpoint, args.lazy)?,
    }
    Ok(())
}
