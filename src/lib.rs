//! brfs: a read-only view of Xen Orchestra backup repositories as files.
//!
//! The library behind the `brfs` command. Bytes travel one way, each module knowing only those
//! before it: `store` → `codec` → `image` (with `cache`) → `repo` → `tree` → `views` → `fuse`; see
//! `docs/ARCHITECTURE.md`.

pub mod buffers;
pub mod cache;
pub mod call;
pub mod cli;
pub mod codec;
pub mod config;
pub mod error;
pub mod fuse;
pub mod guestfs;
pub mod hash;
pub mod image;
pub mod io;
pub mod kind;
pub mod parallel;
pub mod repo;
pub mod secret;
pub mod store;
pub mod sync;
pub mod tree;
pub mod views;
pub mod volume;
