//! Kernel requests ↔ tree: mounting, serving and unmounting a tree of nodes with FUSE.
//!
//! [`mount`] shows a [`Node`](crate::tree::Node) at a directory and serves it in the background;
//! [`unmount`] takes any brfs mount away. This is the only place that knows errno and the protocol;
//! it knows nothing of repositories, disks or where bytes come from.

mod acl;
mod adapter;
mod attach;
mod attrs;
mod error_log;
mod handlers;
mod handles;
mod inodes;
mod mount;
mod negotiate;
mod own;
mod pool;
mod readdirplus;
mod table;
mod unmount;
mod waiting;

pub use mount::{
    MountOptions, Mounted, SESSION_THREADS, Unmounter, check_answers, mount, raise_read_ahead,
    session_config,
};
pub use negotiate::negotiate;
pub use table::{is_brfs_mount, mounted_source};
pub use unmount::{unmount, unmount_by_force};
