//! The repository as XO lays it out: which VMs, restore points and disks there are.
//!
//! Reads directory listings and JSON metadata through [`crate::store`] and gives typed, safe names
//! to what it finds. Everything read here is hostile until checked: sizes are bounded, types may be
//! odd, paths are confined. It opens no disk image and knows nothing of the mount.
//!
//! The listing of a VM's directory is the truth of which restore points exist; `<date>.json` is
//! the truth about each; `cache.json.gz` is a hint, used where it saves requests.

pub mod cache_index;
pub mod catalogue;
pub mod date;
mod disk_ref;
pub mod hardware;
pub mod images;
mod json;
pub mod layout;
pub mod metadata;
pub mod naming;
pub mod open;
pub mod vm;

pub use catalogue::{Catalogue, Folders};
pub use disk_ref::DiskRef;
pub use metadata::{DiskRecord, Mode, RestorePoint};
pub use open::{OpenRepository, encryption_algorithm, open_encrypted};
pub use vm::{Listing, PointRef, Vm};
