//! Z: the ceiling. A `fuser` file system of one file of zeros, answered straight from memory, under
//! exactly the settings that brfs mounts with. Whatever brfs does above, it cannot be faster.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use brfs::fuse::{MountOptions, negotiate, raise_read_ahead, session_config};
use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request, Session,
};

const TTL: Duration = Duration::from_secs(60);
const FILE: INodeNo = INodeNo(2);

/// The file's name in the mount.
pub const NAME: &str = "zero.raw";

struct Zeros {
    size: u64,
    zeros: Vec<u8>,
}

impl Zeros {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_file = ino == FILE;
        FileAttr {
            ino,
            size: if is_file { self.size } else { 0 },
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o555,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 128 * 1024,
            flags: 0,
        }
    }
}

impl Filesystem for Zeros {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config);
        Ok(())
    }
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_KEEP_CACHE);
    }
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.size.saturating_sub(offset).min(u64::from(size));
        reply.data(&self.zeros[..len as usize]);
    }
}

/// Mounts Z.
pub fn mount(at: &Path, size: u64, options: &MountOptions) -> BackgroundSession {
    let zeros = Zeros {
        size,
        zeros: vec![0; 16 << 20],
    };
    let session = Session::new(zeros, at, &session_config(options))
        .and_then(Session::spawn)
        .expect("Z does not mount");
    raise_read_ahead(at);
    session
}
