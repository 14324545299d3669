//! Attributes of nodes as the kernel wants them, under the mount's owner and umask.

use fuser::{FileAttr, FileType, INodeNo};

use crate::tree::{Attr, NodeKind};

/// `st_blksize`: what `cp`, `cat` and standard I/O libraries read at once. Larger values do not
/// make sequential reads faster (the kernel reads ahead anyway) but make every small look into a
/// file cost as much.
const PREFERRED_READ: u32 = 128 * 1024;

/// Who owns nodes without an owner of their own, and which permission bits the mount takes away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) umask: u16,
    /// The kernel goes by access control lists: users are held to what the guest allows.
    pub(super) acls: bool,
}

impl Ownership {
    pub(super) fn file_attr(&self, ino: u64, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: INodeNo(ino),
            size: attr.size_bytes,
            blocks: attr.allocated_bytes.div_ceil(512),
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            crtime: attr.ctime,
            kind: file_type(attr.kind),
            perm: match attr.kind {
                // Links have no permissions of their own; everything else shows 0777, so do we.
                NodeKind::Symlink => 0o777,
                // Disks, volumes and metadata as they are stored: whoever reads them reads what the guest keeps from
                // them.
                NodeKind::File if self.acls && attr.uid.is_none() => {
                    attr.permissions & 0o7700 & !self.umask
                }
                _ => attr.permissions & 0o7777 & !self.umask,
            },
            nlink: attr.links,
            uid: attr.uid.unwrap_or(self.uid),
            gid: attr.gid.unwrap_or(self.gid),
            rdev: attr.rdev,
            blksize: PREFERRED_READ,
            flags: 0,
        }
    }
}

pub(super) fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Dir => FileType::Directory,
        NodeKind::File => FileType::RegularFile,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        NodeKind::Socket => FileType::Socket,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn umask_takes_bits_away_and_owner_fills_in() {
        let ownership = Ownership {
            uid: 1000,
            gid: 100,
            umask: 0o077,
            acls: false,
        };
        let mut attr = Attr::file(1 << 40, 513, SystemTime::UNIX_EPOCH);
        let shown = ownership.file_attr(5, &attr);
        assert_eq!((shown.perm, shown.uid, shown.gid), (0o400, 1000, 100));
        assert_eq!((shown.size, shown.blocks), (1 << 40, 2));
        attr.uid = Some(0);
        assert_eq!(ownership.file_attr(5, &attr).uid, 0);
    }

    #[test]
    fn stored_bytes_are_the_owners_alone_where_users_are_held_to_the_guests_modes() {
        let perm = |acls, kind, uid| {
            let ownership = Ownership {
                uid: 0,
                gid: 0,
                umask: 0,
                acls,
            };
            let file = Attr::file(1, 1, SystemTime::UNIX_EPOCH);
            ownership.file_attr(5, &Attr { kind, uid, ..file }).perm
        };
        assert_eq!(perm(false, NodeKind::File, None), 0o444);
        assert_eq!(perm(true, NodeKind::File, None), 0o400);
        assert_eq!(perm(true, NodeKind::File, Some(0)), 0o444);
        assert_eq!(perm(true, NodeKind::Dir, None), 0o444);
    }
}
