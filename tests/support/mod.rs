//! Test data: backup repositories, VHD chains, interrupted merges and damage, made from the
//! format's specification alone.
//!
//! Nothing here may use the reader it is there to test: a shared misunderstanding would go unseen.
//! Everything is deterministic (seeded), and files are sparse, so that 64 TiB disks cost a few KiB.
//!
//! | module | makes |
//! | --- | --- |
//! | `rng`, `dates`, `files` | numbers, XO's date names, sparse file writing |
//! | `sparse` | what a disk's sectors hold, as runs |
//! | `blocks` | VHD blocks (bitmap + data) from such runs |
//! | `vhd` | footer and header bytes |
//! | `vhd_file`, `vhd_dir` | one VHD, as a file or as a directory |
//! | `chain`, `random_chain` | chains of them, with the flat reference every read is compared to |
//! | `repo`, `records`, `clutter` | repositories: metadata, caches, oddities, what else lies about |
//! | `catalogue`, `web` | big listings, and one VM to look at closely |
//! | `golden` | nothing: finds the committed data that XO wrote, and its sums |
//! | `merge`, `merge_file` | interrupted merges |
//! | `damage` | every place that can break, times every way to break it |
//! | `absurd`, `hostile` | sound containers of absurd or malicious content |
//! | `memtree`, `mountpoint` | trees in memory and real mounts of them |
//! | `reading` | nothing: reads as programs make them |
//! | `brfs`, `extents` | nothing: the program itself, and where files have holes |
//! | `far` | an object store's behaviour over a directory, and counts of requests |
//! | `guest`, `md` | disks with a real file system on them, members of md arrays |

// Each test binary and bench uses its own part of this tree.
#![allow(dead_code)]

pub mod absurd;
pub mod blocks;
pub mod brfs;
pub mod catalogue;
pub mod chain;
pub mod clutter;
pub mod damage;
pub mod dates;
pub mod ext;
pub mod extents;
pub mod far;
pub mod files;
pub mod golden;
pub mod guest;
pub mod hostile;
pub mod md;
pub mod memtree;
pub mod merge;
pub mod merge_file;
pub mod mountpoint;
pub mod random_chain;
pub mod reading;
pub mod records;
pub mod repo;
pub mod rng;
pub mod sparse;
pub mod table;
pub mod vhd;
pub mod vhd_dir;
pub mod vhd_file;
pub mod web;
