//! `brfs umount`.

use std::path::PathBuf;

use anyhow::Result;

use crate::fuse;

/// Unmount a repository; plain `umount` and `fusermount3 -u` do as well
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Take the directory away at once, even when programs still use it; they may finish
    #[arg(short = 'z', long)]
    lazy: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    Ok(fuse::unmount(&args.mountpoint, args.lazy)?)
}
