//! A minimal `fuser` file system of one file, under exactly the settings that brfs mounts with: what a
//! mount can do at best.
//!
//! Z, the ceiling, is a file of zeros, answered straight from memory. The pass-through answers from a
//! file by `pread`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
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
pub const NAME: &str = "one.raw";

enum Content {
    Zeros(Vec<u8>),
    File(File),
}

struct OneFile {
    content: Content,
    size: u64,
}

impl OneFile {
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

impl Filesystem for OneFile {
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
        thread_local! {
            static BUF: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        let len = self.size.saturating_sub(offset).min(u64::from(size)) as usize;
        let file = match &self.content {
            Content::Zeros(zeros) => return reply.data(&zeros[..len]),
            Content::File(file) => file,
        };
        BUF.with_borrow_mut(|buf| {
            if buf.len() < len {
                buf.resize(len.next_power_of_two(), 0);
            }
            match file.read_exact_at(&mut buf[..len], offset) {
                Ok(()) => reply.data(&buf[..len]),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }
}

/// Mounts Z.
// Each bench uses its own part.
#[allow(dead_code)]
pub fn mount_zeros(at: &Path, size: u64, options: &MountOptions) -> BackgroundSession {
    mount(at, Content::Zeros(vec![0; 16 << 20]), size, options)
}

/// Mounts a file as it is.
#[allow(dead_code)]
pub fn mount_file(at: &Path, backing: &Path, options: &MountOptions) -> BackgroundSession {
    let file = File::open(backing).expect("backing file");
    let size = file.metadata().expect("its size").len();
    mount(at, Content::File(file), size, options)
}

fn mount(at: &Path, content: Content, size: u64, options: &MountOptions) -> BackgroundSession {
    let session = Session::new(OneFile { content, size }, at, &session_config(options))
        .and_then(Session::spawn)
        .expect("does not mount");
    raise_read_ahead(at);
    session
}
