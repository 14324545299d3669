//! All integration tests in one program, so that a round of editing and testing compiles the helpers
//! and links the library once. One topic a file; `docs/ARCHITECTURE.md`, "Testing", says which.
//!
//! `cargo nextest run TOPIC::` runs one of them.

mod architecture;
#[cfg(feature = "s3")]
mod azure_faults;
mod btrfs_devices;
mod cache_dir;
mod catalogue;
mod chains;
mod cli_mount;
mod commands;
mod damage;
mod disk_layout;
mod encryption;
mod ext_journal;
mod failing_storage;
mod far_files;
#[cfg(feature = "s3")]
mod first_contact;
mod fuse_mount;
mod fuzz_bodies;
mod guest_acls;
mod guest_mount;
mod guest_root;
mod guest_support;
mod guestfs_mutation;
mod guestfs_walk;
#[cfg(feature = "s3")]
mod handshake;
mod kernel_volumes;
mod key_sources;
mod known_damage;
mod many_disks;
mod md_arrays;
mod mount_tools;
mod odd_blocks;
#[cfg(feature = "s3")]
mod proxy;
mod remote;
#[cfg(feature = "s3")]
mod remote_mount;
#[cfg(feature = "s3")]
mod s3_faults;
mod second_mount;
#[cfg(feature = "s3")]
mod secrets;
mod storage_returns;
mod store_conformance;
mod tree_walk;
mod waiting;
mod windows_chains;
mod windows_names;
mod xo_written;

// Helpers. The folder beside this one is shared with the benches.
#[path = "../../fuzz/src/bodies.rs"]
mod bodies;
#[cfg(feature = "s3")]
#[path = "../support/fault_server.rs"]
mod fault_server;
#[path = "../../fuzz/src/guests.rs"]
mod guests;
#[cfg(feature = "s3")]
#[path = "../support/s3_server.rs"]
mod s3_server;
#[path = "../support/seal.rs"]
mod seal;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tempdir.rs"]
mod tempdir;
#[cfg(feature = "s3")]
#[path = "../support/tls_server.rs"]
mod tls_server;
#[cfg(feature = "s3")]
#[path = "../support/upload.rs"]
mod upload;
