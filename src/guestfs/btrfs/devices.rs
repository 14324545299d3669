//! The devices of a file system, found among the volumes of a machine.
//!
//! Disks that were backed up together may hold more than the members: one that was removed or replaced and
//! kept its superblock, a snapshot or a copy of another. What is shown is one state, never a mixture:
//!
//! - While each device is there once, the superblock of the highest generation counts, as in Linux.
//!   Devices of a lower one missed commits: what they hold must prove itself.
//! - When one is there more than once, the volume that was entered counts, and with it only devices of
//!   the very same commit.
//! - Superblocks of one generation that say different things are of two histories, and do not go together.

use std::sync::Arc;

use super::space::Member;
use super::superblock::Superblock;
use crate::error::Result;
use crate::guestfs::Others;
use crate::guestfs::host::device::Device;
use crate::io::ReadAt;
use crate::volume::Content;

/// A file system may have as many devices; mkfs and the kernel stop far below.
const MAX_DEVICES: usize = 1024;

/// The devices that are there, and what they agree on.
pub(super) struct Devices {
    /// The superblock that counts.
    pub superblock: Superblock,
    /// Each with an id of its own.
    pub members: Vec<Member>,
    /// What tree blocks on seed devices carry in place of the file system's UUID.
    pub seeds: Vec<[u8; 16]>,
}

struct Candidate {
    place: String,
    volume: Arc<dyn ReadAt>,
    superblock: Superblock,
}

impl Candidate {
    fn leave_out(&self, why: &str) {
        tracing::warn!(volume = %self.place, "btrfs: {} is not used: {why}", self.superblock.device);
    }
}

/// Finds the devices of the file system on `volume`. The other volumes are asked for only when its superblock
/// says that there are more devices.
///
/// # Errors
/// `Corrupt` without a superblock; what kept other volumes from being looked at, if that may pass: without
/// them another state might be shown than with them.
pub(super) fn find(volume: Arc<dyn ReadAt>, others: Others<'_>) -> Result<Devices> {
    let superblock = Superblock::read(&*volume)?;
    let entered = Candidate {
        place: "the volume that was entered".to_string(),
        volume,
        superblock,
    };
    if entered.superblock.num_devices == 1 {
        let superblock = entered.superblock.clone();
        return Ok(gathered(superblock, vec![entered]));
    }
    let first = entered.superblock.clone();
    let mut candidates = vec![entered];
    let mut seeds = Vec::new();
    for (place, volume) in others(Content::Btrfs)? {
        let superblock = match Superblock::read(&*volume) {
            Ok(superblock) => superblock,
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => {
                tracing::warn!(volume = %place, "{error}");
                continue;
            }
        };
        let found = Candidate {
            place,
            volume,
            superblock,
        };
        if candidates.len() + seeds.len() >= MAX_DEVICES {
            found.leave_out("there are too many");
        } else if found.superblock.fsid == first.fsid {
            candidates.push(found);
        } else if found.superblock.is_seed() {
            seeds.push(found);
        }
    }
    let superblock = choose(&first, &mut candidates);
    // What a file system grew from: chunks name its devices by their UUIDs. Its superblocks stay as they
    // were.
    drop_twins(&mut seeds, 0);
    let ids: Vec<_> = candidates.iter().map(|c| c.superblock.device).collect();
    seeds.retain(|seed| !ids.contains(&seed.superblock.device));
    candidates.append(&mut seeds);
    Ok(gathered(superblock, candidates))
}

/// The superblock that counts. Leaves out what does not go with it; the first candidate is the volume that
/// was entered.
fn choose(entered: &Superblock, candidates: &mut Vec<Candidate>) -> Superblock {
    let is_twin = |candidate: &Candidate| {
        let same = |other: &&Candidate| other.superblock.device == candidate.superblock.device;
        candidates.iter().filter(same).count() > 1
    };
    if candidates.iter().any(is_twin) {
        let mut is_first = true;
        candidates.retain(|candidate| {
            let found = &candidate.superblock;
            let why = match (std::mem::take(&mut is_first), found.device == entered.device) {
                (true, _) => return true,
                (false, true) => "the volume that was entered counts, which is the same device",
                (false, false) if found.is_same_state(entered) => return true,
                _ => "devices are there more than once, and it is of another state than what was entered",
            };
            candidate.leave_out(why);
            false
        });
        drop_twins(candidates, 1);
        return entered.clone();
    }
    let mut newest = entered;
    for candidate in candidates.iter() {
        if candidate.superblock.generation > newest.generation {
            newest = &candidate.superblock;
        }
    }
    let newest = newest.clone();
    candidates.retain(|candidate| {
        let found = &candidate.superblock;
        let keep = found.generation < newest.generation || found.is_same_state(&newest);
        if !keep {
            candidate.leave_out("it is of another history");
        }
        keep
    });
    newest
}

/// Leaves out, from the index `from` on, all of those that have the same id: which one counts cannot be told.
fn drop_twins(candidates: &mut Vec<Candidate>, from: usize) {
    let ids: Vec<_> = candidates.iter().map(|c| c.superblock.device).collect();
    let mut index = 0;
    candidates.retain(|candidate| {
        let same = |id: &&_| **id == candidate.superblock.device;
        let keep = index < from || ids.iter().filter(same).count() == 1;
        index += 1;
        if !keep {
            candidate.leave_out("it is there more than once");
        }
        keep
    });
}

fn gathered(superblock: Superblock, candidates: Vec<Candidate>) -> Devices {
    let count = candidates.len();
    let is_seed = |found: &Superblock| found.fsid != superblock.fsid;
    let all = candidates.iter().map(|candidate| &candidate.superblock);
    let seeds = all.filter(|found| is_seed(found));
    let seeds = seeds.map(|found| found.node_uuid).collect();
    let members = candidates.into_iter().map(|candidate| {
        let found = &candidate.superblock;
        let is_current = is_seed(found) || found.generation == superblock.generation;
        if !is_current {
            tracing::warn!(
                volume = %candidate.place,
                "btrfs: {} is out of date: it has seen {} of {} commits",
                found.device, found.generation, superblock.generation
            );
        }
        Member {
            id: found.device,
            is_current,
            device: Device::one_of(candidate.volume, count),
        }
    });
    let members = members.collect();
    Devices {
        superblock,
        members,
        seeds,
    }
}
