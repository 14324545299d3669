//! LVM2: physical volumes, their metadata text, and logical volumes as mappings.
//!
//! Flow: [`label`] finds the label and the metadata area of one physical volume and checks the
//! text's checksum; [`config`] parses the text; [`metadata`] turns it into typed segments;
//! [`group`] puts the volumes of a group together from whatever physical volumes are there, with
//! `raid`, `snapshot`, `thin` and `cache` for those that are more than runs of extents. Nothing
//! here talks to the host's LVM. Facts come from LVM2's sources (`lib/format_text/layout.h`,
//! `lib/label/label.h`, `lib/misc/crc.c`) and from volumes written by its tools.

mod builder;
mod cache;
pub mod config;
pub mod group;
#[cfg(test)]
mod group_tests;
pub mod label;
pub mod metadata;
mod persistent;
mod physical;
mod pieces;
mod raid;
mod snapshot;
mod thin;
#[cfg(test)]
mod thin_tests;

pub use group::{LogicalVolume, VolumeGroup, assemble_groups};
pub use physical::PhysicalVolume;
