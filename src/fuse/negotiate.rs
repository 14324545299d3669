//! The agreement with the kernel on how to work together.

use fuser::{InitFlags, KernelConfig};

/// Requests of read-ahead and asynchronous direct reads that the kernel keeps in flight.
const MAX_BACKGROUND: u16 = 64;
/// Largest transfer agreed on; the kernel's own limit is 1 MiB unless its administrator raised it.
const MAX_TRANSFER: u32 = 1024 * 1024;

/// Agrees with the kernel on how to work together. Public for the same reason as
/// [`session_config`](super::session_config).
pub fn negotiate(config: &mut KernelConfig) {
    // Listings with attributes, when the kernel finds that they are wanted: of guest files. Of other
    // directories it gets names all the same, as a plain `ls` must not open every disk to tell its
    // attributes.
    for wish in [
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
    ] {
        // An older kernel without one of these does without.
        config.add_capabilities(wish).ok();
    }
    if let Err(most) = config.set_max_readahead(u32::MAX) {
        config.set_max_readahead(most).ok();
    }
    // Sets the transfer size of reads as well.
    if let Err(most) = config.set_max_write(MAX_TRANSFER) {
        config.set_max_write(most).ok();
    }
    config.set_max_background(MAX_BACKGROUND).ok();
    config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3).ok();
}

/// Agrees that the kernel asks for access control lists and holds users to them.
///
/// # Errors
/// When the kernel cannot. Modes alone would admit whom a list refuses.
pub(super) fn negotiate_acls(config: &mut KernelConfig) -> std::io::Result<()> {
    config
        .add_capabilities(InitFlags::FUSE_POSIX_ACL)
        .map_err(|_| {
            std::io::Error::other("this kernel does not enforce access control lists through FUSE")
        })
}
