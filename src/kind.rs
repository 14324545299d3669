//! File types, as guests record them and mounts show them.

/// File types as `stat` knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe of a guest (harmless: opened by the kernel, not by us).
    Fifo,
    /// A character device of a guest (mounts are `nodev`).
    CharDevice,
    /// A block device of a guest.
    BlockDevice,
    /// A socket of a guest.
    Socket,
}
