//! Inodes of squashfs 4: seven types, each in a short and an extended form.

use super::table::{Cursor, bad, le16, le32, le64};
use crate::error::{Error, ErrorKind, Result};
use crate::kind::NodeKind;

/// A link's target is at most a page in Linux.
const MAX_TARGET_BYTES: u32 = 64 << 10;
/// Blocks in one file; their size words are 32 MiB.
const MAX_BLOCKS: u64 = 8 << 20;
const NO_FRAGMENT: u32 = u32::MAX;

/// An inode.
#[derive(Debug)]
pub struct Inode {
    pub kind: NodeKind,
    pub permissions: u16,
    /// Places in the table of ids.
    pub uid: u16,
    pub gid: u16,
    pub mtime: u32,
    pub links: u32,
    /// Place in the table of attributes, `None` when it has none.
    pub xattrs: Option<u32>,
    pub body: Body,
}

/// What each type has besides.
#[derive(Debug)]
pub enum Body {
    Dir {
        /// Metadata block within the directory table, offset in it, bytes of entries.
        block: u32,
        offset: u16,
        len_bytes: u32,
    },
    File(Layout),
    Symlink(Vec<u8>),
    /// In the kernel's own encoding, which is FUSE's.
    Device(u32),
    Other,
}

/// Where a file's content is.
#[derive(Debug)]
pub struct Layout {
    pub len_bytes: u64,
    /// Of those, never written.
    pub sparse_bytes: u64,
    /// Byte on the volume at which the first block lies; the others follow.
    pub start: u64,
    /// Number of a fragment block, and where in it the end of the file lies.
    pub tail: Option<(u32, u32)>,
    /// Whole blocks; their size words follow the inode.
    pub blocks: u64,
}

/// Reads an inode. The cursor is then at the size words of a file's blocks.
///
/// # Errors
/// `Corrupt` for what no inode can be; `Unsupported` for files of too many blocks.
pub fn read(cursor: &mut Cursor<'_>, block_bytes: u32) -> Result<Inode> {
    let common = cursor.bytes(16)?;
    let number = le16(&common, 0);
    let is_extended = number > 7;
    let kind = kind(if is_extended { number - 7 } else { number })
        .ok_or_else(|| bad("an inode is of no type"))?;
    let mut inode = Inode {
        kind,
        permissions: le16(&common, 2) & 0o7777,
        uid: le16(&common, 4),
        gid: le16(&common, 6),
        mtime: le32(&common, 8),
        links: 1,
        xattrs: None,
        body: Body::Other,
    };
    let mut xattrs = u32::MAX;
    inode.body = match (kind, is_extended) {
        (NodeKind::Dir, false) => {
            let fields = cursor.bytes(16)?;
            inode.links = le32(&fields, 4);
            Body::Dir {
                block: le32(&fields, 0),
                len_bytes: entry_bytes(u32::from(le16(&fields, 8))),
                offset: le16(&fields, 10),
            }
        }
        (NodeKind::Dir, true) => {
            let fields = cursor.bytes(24)?;
            inode.links = le32(&fields, 0);
            xattrs = le32(&fields, 20);
            Body::Dir {
                block: le32(&fields, 8),
                len_bytes: entry_bytes(le32(&fields, 4)),
                offset: le16(&fields, 18),
            }
        }
        (NodeKind::File, false) => {
            let fields = cursor.bytes(16)?;
            let tail = (le32(&fields, 4), le32(&fields, 8));
            Body::File(layout(
                u64::from(le32(&fields, 0)),
                u64::from(le32(&fields, 12)),
                0,
                tail,
                block_bytes,
            )?)
        }
        (NodeKind::File, true) => {
            let fields = cursor.bytes(40)?;
            inode.links = le32(&fields, 24);
            xattrs = le32(&fields, 36);
            let tail = (le32(&fields, 28), le32(&fields, 32));
            Body::File(layout(
                le64(&fields, 0),
                le64(&fields, 8),
                le64(&fields, 16),
                tail,
                block_bytes,
            )?)
        }
        (NodeKind::Symlink, _) => {
            let fields = cursor.bytes(8)?;
            inode.links = le32(&fields, 0);
            let len = le32(&fields, 4);
            if len == 0 || len > MAX_TARGET_BYTES {
                return Err(bad("a link's target has a length that none can have"));
            }
            let target = cursor.bytes(len as usize)?;
            if is_extended {
                xattrs = le32(&cursor.bytes(4)?, 0);
            }
            Body::Symlink(target)
        }
        _ => {
            inode.links = le32(&cursor.bytes(4)?, 0);
            let device = match kind {
                NodeKind::BlockDevice | NodeKind::CharDevice => {
                    Body::Device(le32(&cursor.bytes(4)?, 0))
                }
                _ => Body::Other,
            };
            if is_extended {
                xattrs = le32(&cursor.bytes(4)?, 0);
            }
            device
        }
    };
    inode.xattrs = Some(xattrs).filter(|&number| number != u32::MAX);
    Ok(inode)
}

/// The kind of a short inode's type, which is also what directories say.
pub fn kind(number: u16) -> Option<NodeKind> {
    Some(match number {
        1 => NodeKind::Dir,
        2 => NodeKind::File,
        3 => NodeKind::Symlink,
        4 => NodeKind::BlockDevice,
        5 => NodeKind::CharDevice,
        6 => NodeKind::Fifo,
        7 => NodeKind::Socket,
        _ => return None,
    })
}

/// A directory's size counts three bytes that are not there, for `.` and `..`.
fn entry_bytes(size: u32) -> u32 {
    size.saturating_sub(3)
}

fn layout(
    start: u64,
    len_bytes: u64,
    sparse_bytes: u64,
    (fragment, offset): (u32, u32),
    block_bytes: u32,
) -> Result<Layout> {
    if i64::try_from(len_bytes).is_err() {
        return Err(bad("a file is longer than any"));
    }
    let tail = (fragment != NO_FRAGMENT).then_some((fragment, offset));
    let blocks = match tail {
        Some(_) => len_bytes / u64::from(block_bytes),
        None => len_bytes.div_ceil(u64::from(block_bytes)),
    };
    if blocks > MAX_BLOCKS {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a file of squashfs has more blocks than are read",
        ));
    }
    Ok(Layout {
        len_bytes,
        sparse_bytes,
        start,
        tail,
        blocks,
    })
}
