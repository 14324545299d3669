//! The journal of ext3 and ext4, replayed as a view: nothing is copied, and the reader gets a volume that looks as if
//! it had been unmounted.
//!
//! A journal is an inode of the file system or a device of its own. Its log gives blocks that count in place of the
//! volume's ([`overlay`]). What was synced since the last full commit is in fast commits ([`fast_commit`]), which tell
//! of inodes, ranges and names and not of blocks; they become [`changes`] that the reader looks at first.
//!
//! Format: Linux's Documentation/filesystems/ext4/journal.rst; of the values in fast commits what images show.
#![cfg_attr(
    not(test),
    warn(
        unreachable_pub,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::indexing_slicing
    )
)]

pub(super) mod changes;
mod fast_commit;
mod header;
mod log;
mod overlay;
mod place;
mod superblock;

use std::fmt::Write as _;
use std::sync::Arc;

use self::fast_commit::FastCommit;
pub(super) use self::header::Header;
use self::header::SUPERBLOCK_AT;
use self::overlay::Overlay;
use self::place::{Blocks, Place};
use self::superblock::JournalSuperblock;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::Others;
use crate::guestfs::host::device::Device;
use crate::io::ReadAt;
use crate::volume::Content;
use crate::volume::bits::be32;

/// The volume as it is on the disk, for a reader that is not to look at the journal.
///
/// # Errors
/// None so far.
pub(super) fn without(volume: Arc<dyn ReadAt>, header: &Header) -> Result<Arc<dyn ReadAt>> {
    let mut view = Overlay::new(volume, None)?;
    view.set_superblock(header.without_journal());
    Ok(Arc::new(view))
}

/// A journal that was found, and which of its blocks is its superblock.
pub(super) struct Journal {
    place: Place,
    superblock: u64,
}

impl Journal {
    /// A journal in these runs of a volume's blocks: the end of each in the journal, and where it begins.
    ///
    /// # Errors
    /// `Corrupt` when they do not lie on the volume.
    pub(super) fn inside(
        volume: Arc<dyn ReadAt>,
        block_bytes: u64,
        runs: impl Iterator<Item = Result<(u64, u64)>>,
    ) -> Result<Self> {
        let mut place = Place::new(Arc::new(Device::new(volume)), block_bytes);
        for run in runs {
            let (end, physical) = run?;
            place.push(end, physical)?;
        }
        Ok(Journal {
            place,
            superblock: 0,
        })
    }

    /// Looks for the journal device that a superblock names.
    ///
    /// # Errors
    /// `Unsupported` when it is not there, or twice: what it holds would be missing.
    pub(super) fn outside(header: &Header, others: Others<'_>) -> Result<Self> {
        let wanted = header.uuid(0xD0);
        let named = uuid_text(wanted);
        let mut found = Vec::new();
        for (place, volume) in others(Content::ExtJournal)? {
            let other = Header::read(&*volume)?;
            if other.uuid(0x68) == wanted {
                found.push((place, other, volume));
            }
        }
        let unsupported = |message: String| Err(Error::new(ErrorKind::Unsupported, message));
        if found.len() > 1 {
            let places: Vec<&str> = found.iter().map(|(place, ..)| place.as_str()).collect();
            return unsupported(format!(
                "the journal of this file system (UUID {named}) is there more than once: {}",
                places.join(", ")
            ));
        }
        let Some((at, other, volume)) = found.pop() else {
            return unsupported(format!(
                "the journal of this file system is on another disk (UUID {named}), which was not found; without it an older state would be shown"
            ));
        };
        let Some(block_bytes) = other
            .block_bytes()
            .filter(|_| other.block_bytes() == header.block_bytes())
        else {
            return Err(Error::corrupt(format!(
                "the journal at {at} has blocks of another size than its file system"
            )));
        };
        tracing::debug!(journal = %at, "ext: the journal is on another disk");
        let mut place = Place::new(Arc::new(Device::new(volume)), block_bytes);
        // Its blocks are counted from the start of the device; its superblock follows that of ext.
        place.push(other.blocks(), 0)?;
        Ok(Journal {
            place,
            superblock: SUPERBLOCK_AT / block_bytes + 1,
        })
    }

    /// Reads the journal: the volume as it is after the log, and the fast commits that come on top of that.
    ///
    /// # Errors
    /// `Corrupt` for a journal that makes no sense, `Unsupported` for one that is not understood, and whatever
    /// kept something from being read.
    pub(super) fn replay(self, volume: Arc<dyn ReadAt>) -> Result<Replayed> {
        const USERS: usize = 0x40;
        let mut blocks = Blocks::new(&self.place);
        let first = blocks.get(self.superblock)?;
        if self.superblock != 0 && be32(first, USERS) > 1 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the journal is shared by several file systems",
            ));
        }
        let superblock = JournalSuperblock::parse(first, self.place.blocks())?;
        let log = log::read(&self.place, &superblock)?;
        // Without a log there is nothing that fast commits could be on top of.
        let fast = match &superblock.fast {
            Some(area) if superblock.start != 0 => {
                fast_commit::read(&self.place, area.clone(), log.next)?
            }
            _ => Vec::new(),
        };
        let mut overlay = Overlay::new(volume, Some((self.place, log)))?;
        let header = Header::read(&overlay)?;
        overlay.set_superblock(header.without_journal());
        Ok(Replayed {
            is_bare: overlay.is_bare(),
            volume: Arc::new(overlay),
            fast,
        })
    }
}

/// A volume after its journal.
pub(super) struct Replayed {
    /// The volume, with a superblock that says that there is no journal.
    pub volume: Arc<dyn ReadAt>,
    /// Whether only the superblock is another one.
    pub is_bare: bool,
    /// What comes on top.
    pub fast: Vec<FastCommit>,
}

fn uuid_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}
