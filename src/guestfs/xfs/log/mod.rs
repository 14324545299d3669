//! The log of XFS 4 with small inodes, replayed into memory.
//!
//! `rust-fs-xfs` replays logs, but not those of inodes of 256 bytes, which version 4 had unless asked otherwise (RHEL
//! 6 and the first of 7): several lie in one sector. So for those the log is replayed here, and the crate gets a
//! volume that looks as if it had been unmounted. Metadata of version 4 have no sequence numbers and the log has no inode
//! creations or intents but those of freed extents, which keeps this small.
//!
//! Format: `fs/xfs/libxfs/xfs_log_format.h`, `xfs_log_recover.c` and `xfs_*_item_recover.c` of Linux.

mod active;
mod error;
mod head;
mod inode;
mod overlay;
mod record;
mod replay;
mod ring;
#[cfg(test)]
mod tests;
mod transaction;

use std::sync::Arc;

use fs_xfs::Superblock;

use self::active::Active;
use self::overlay::Overlay;
use self::replay::{Geometry, replay};
use self::ring::{BLOCK_BYTES, RECORD_MAGIC, Ring};
use crate::error::{Error, Result};
use crate::guestfs::host::device::{Cached, Device};
use crate::guestfs::xfs::error::from_xfs;
use crate::io::ReadAt;
use crate::volume::bits::has;

/// The least size of inodes that the crate replays.
const CRATE_INODE_BYTES: u16 = 512;
/// What the crate reads of the superblock.
const SUPERBLOCK_BYTES: usize = 4096;

/// The volume as it is after its log, where that has to be made here; `None` where the volume is that already, or
/// the crate makes it.
///
/// # Errors
/// `Corrupt` for a log that makes no sense, `Unsupported` for one that is not understood, and whatever kept
/// something from being read.
pub fn replayed(volume: &Arc<dyn ReadAt>) -> Result<Option<Arc<dyn ReadAt>>> {
    let device = Arc::new(Device::new(volume.clone()));
    let Ok(superblock) = superblock(&Cached(device.clone())) else {
        // The crate says what is wrong with it.
        return Ok(None);
    };
    match superblock.is_v5() || superblock.inodesize >= CRATE_INODE_BYTES {
        true => Ok(None),
        false => replayed_v4(volume, &device, &superblock),
    }
}

fn superblock(volume: &dyn ReadAt) -> Result<Superblock> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    volume.read_exact_at(&mut bytes, 0)?;
    Superblock::parse(&bytes).map_err(from_xfs)
}

/// Whatever the size of inodes.
fn replayed_v4(
    volume: &Arc<dyn ReadAt>,
    device: &Arc<Device>,
    superblock: &Superblock,
) -> Result<Option<Arc<dyn ReadAt>>> {
    let block_bytes = u64::from(superblock.blocksize);
    let len_bytes = u64::from(superblock.logblocks) * block_bytes;
    let start = superblock.fsblock_offset(superblock.logstart);
    if !superblock.has_internal_log() {
        // The crate refuses it.
        return Ok(None);
    }
    let log = match start.checked_add(len_bytes) {
        Some(end) if len_bytes > 0 && end <= volume.len_bytes() => start..end,
        _ => return Err(Error::corrupt("the log of XFS lies outside of its volume")),
    };
    let ring = Ring {
        device,
        start,
        blocks: len_bytes / BLOCK_BYTES as u64,
        uuid: superblock.uuid,
    };
    let Some(active) = Active::find(&ring)? else {
        return Ok(None);
    };
    let geometry = Geometry {
        inode_bytes: usize::from(superblock.inodesize),
        log: log.clone(),
    };
    // A sector may be changed by as little as a quarter of its bytes. Twice the log is more than is ever so.
    let mut overlay = Overlay::new(Arc::new(Cached(device.clone())), 2 * ring.blocks);
    replay(&ring, &active, &geometry, &mut overlay)?;
    forget_unlinked(&mut overlay)?;
    overlay.blank(log);
    overlay.write(start, &clean_log(&superblock.uuid))?;
    Ok(Some(Arc::new(overlay.over(volume.clone()))))
}

/// Inodes that were open and in no directory when the machine stopped: the kernel frees them, and so nothing that is
/// shown leads there. The crate refuses a clean volume that has any.
fn forget_unlinked(overlay: &mut Overlay) -> Result<()> {
    const MAGIC: &[u8] = b"XAGI";
    const LISTS: usize = 40;
    const LISTS_BYTES: usize = 64 * 4;
    const NONE: u8 = 0xFF;
    // The log may have made the file system larger.
    let superblock = superblock(overlay)?;
    for group in 0..superblock.agcount {
        let start = u64::from(group)
            .saturating_mul(u64::from(superblock.agblocks))
            .saturating_mul(u64::from(superblock.blocksize))
            .saturating_add(2 * u64::from(superblock.sectsize));
        let mut header = [0; LISTS + LISTS_BYTES];
        if start >= overlay.len_bytes() {
            break;
        }
        overlay.read_exact_at(&mut header, start)?;
        if has(&header, 0, MAGIC) && header[LISTS..].iter().any(|&byte| byte != NONE) {
            overlay.write(start + LISTS as u64, &[NONE; LISTS_BYTES])?;
        }
    }
    Ok(())
}

/// The first two sectors of a log that has nothing to replay: the record of an unmount.
fn clean_log(uuid: &[u8; 16]) -> [u8; 2 * BLOCK_BYTES] {
    const CYCLE: u32 = 1;
    const OPERATION: usize = BLOCK_BYTES;
    let mut log = [0; 2 * BLOCK_BYTES];
    let mut put = |at: usize, value: u32| log[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(0, RECORD_MAGIC);
    put(4, CYCLE);
    put(8, 2); // h_version
    put(12, BLOCK_BYTES as u32); // h_len
    put(16, CYCLE); // h_lsn, h_tail_lsn: cycle and sector 0
    put(24, CYCLE);
    put(40, 1); // h_num_logops
    put(300, 1); // h_fmt
    put(320, 32 << 10); // h_size
    put(OPERATION, CYCLE);
    log[304..320].copy_from_slice(uuid);
    log[OPERATION + 8] = 0xAA; // XFS_LOG
    log[OPERATION + 9] = 0x20; // XLOG_UNMOUNT_TRANS
    log
}
