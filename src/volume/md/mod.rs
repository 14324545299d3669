//! Linux md arrays over the disks of one machine. Nothing here touches the host's md.

pub mod galois;
pub mod grid;
pub mod pattern;
pub mod superblock;

use std::sync::Arc;

use super::map::{Mapped, Source};
use super::problem::Problem;
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use grid::{Grid, Parity};
use pattern::Pattern;
use superblock::Superblock;

/// Arrays of more members than this are not believed.
const MAX_MEMBERS: u32 = 384;

/// A volume that says it is a member of an array.
#[derive(Clone)]
pub struct Member {
    /// Where it was found, for people.
    pub place: String,
    /// Its bytes, superblock included.
    pub volume: Arc<dyn ReadAt>,
}

/// An array that can be read.
#[derive(Clone)]
pub struct Array {
    /// Its name, unlike that of all others.
    pub name: String,
    /// Its bytes.
    pub volume: Arc<dyn ReadAt>,
}

type Found = (String, Arc<dyn ReadAt>, Superblock);

/// Puts arrays together from whatever members are there.
pub fn assemble_arrays(members: &[Member]) -> (Vec<Array>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut sets: Vec<Vec<Found>> = Vec::new();
    for member in members {
        match superblock::read(&*member.volume) {
            Ok(block) => {
                let found = (member.place.clone(), member.volume.clone(), block);
                match sets.iter_mut().find(|set| set[0].2.uuid == found.2.uuid) {
                    Some(set) => set.push(found),
                    None => sets.push(vec![found]),
                }
            }
            Err(error) => problems.push(Problem::new(&member.place, error.to_string())),
        }
    }
    let mut arrays: Vec<Array> = Vec::new();
    for set in sets {
        let name = unused_name(&set[0].2, &arrays);
        match assemble_one(&name, set, &mut problems) {
            Ok(volume) => arrays.push(Array { name, volume }),
            Err(error) => problems.push(Problem::new(format!("md/{name}"), error.to_string())),
        }
    }
    (arrays, problems)
}

fn unused_name(block: &Superblock, arrays: &[Array]) -> String {
    let ok = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut name = block.name.clone();
    if name.is_empty() || name.starts_with('.') || !name.chars().all(ok) {
        name = block.uuid[..4].iter().map(|b| format!("{b:02x}")).collect();
    }
    let taken = |name: &str| arrays.iter().any(|array| array.name == name);
    let mut unused = name.clone();
    let mut count = 1;
    while taken(&unused) {
        count += 1;
        unused = format!("{name}~{count}");
    }
    unused
}

fn assemble_one(
    name: &str,
    mut set: Vec<Found>,
    problems: &mut Vec<Problem>,
) -> Result<Arc<dyn ReadAt>> {
    // The member that saw most decides what the array is like; those that were dropped are stale.
    set.sort_by_key(|(_, _, block)| std::cmp::Reverse(block.events));
    let array = set[0].2.clone();
    if array.raid_disks == 0 || array.raid_disks > MAX_MEMBERS {
        return Err(Error::corrupt("an array of no or too many members"));
    }
    let mut known: Vec<u32> = Vec::new();
    set.retain(|(place, _, block)| {
        // A clean stop may leave members one event apart.
        let current = block.events.saturating_add(1) >= array.events;
        // So may a member that failed, and does not know: the others do.
        let told = array.roles.get(block.device).copied().flatten();
        let current = current && told == block.role;
        let same = (
            block.level,
            block.layout,
            block.chunk_bytes,
            block.raid_disks,
        ) == (
            array.level,
            array.layout,
            array.chunk_bytes,
            array.raid_disks,
        );
        let why = match (current && same, block.trouble) {
            (false, _) => "it is out of date",
            (true, Some(trouble)) => trouble,
            (true, None) => return true,
        };
        problems.push(Problem::new(
            format!("md/{name}"),
            format!("{place} is not used: {why}"),
        ));
        known.extend(block.role);
        false
    });
    let mut places: Vec<Option<&Found>> = vec![None; array.raid_disks as usize];
    for found in &set {
        if let Some(place) = found.2.role.and_then(|role| places.get_mut(role as usize)) {
            place.get_or_insert(found);
        }
    }
    if matches!(array.level, 1 | 4 | 5 | 6 | 10) {
        for (role, _) in (0u32..).zip(&places).filter(|(_, p)| p.is_none()) {
            if known.contains(&role) {
                continue;
            }
            let message = match array.roles.contains(&Some(role)) {
                // Nothing on the others would tell.
                true => {
                    "is not among these disks; it is done without. Should the array have gone on \
                     with it and without one of the others, what is shown is old"
                }
                false => "had failed; it is done without",
            };
            let message = format!("member {role} {message}");
            problems.push(Problem::new(format!("md/{name}"), message));
        }
    }
    let volume = match array.level {
        1 => mirror(&array, &places)?,
        0 => striped(&array, &places)?,
        -1 => linear(&array, &places)?,
        4 | 5 | 6 | 10 => grid(&array, &places)?,
        level => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("md arrays of level {level} are not read"),
            ));
        }
    };
    if let Some(missing) = volume.first_missing() {
        problems.push(Problem::new(format!("md/{name}"), missing));
    }
    Ok(Arc::new(volume))
}

fn missing(role: usize) -> Error {
    Error::corrupt(format!("member {role} of the array is not there"))
}

fn mirror(array: &Superblock, places: &[Option<&Found>]) -> Result<Mapped> {
    let mut whole = Mapped::new();
    let (_, volume, block) = places
        .iter()
        .flatten()
        .find(|(_, _, block)| block.data_len >= array.used_bytes)
        .ok_or_else(|| missing(0))?;
    let source = Source::Linear(volume.clone(), block.data_start);
    whole.push(array.used_bytes, source)?;
    Ok(whole)
}

/// RAID 4, 5, 6 and 10.
fn grid(array: &Superblock, places: &[Option<&Found>]) -> Result<Mapped> {
    let pattern = Pattern::of(array.level, array.layout, places.len() as u64)?;
    let members = places
        .iter()
        .map(|place| place.map(|(_, volume, block)| (volume.clone(), block.data_start)))
        .collect();
    let grid = Grid::new(
        members,
        pattern,
        array.chunk_bytes,
        array.used_bytes,
        match array.is_clean {
            true => Parity::Fits,
            false => Parity::Unknown,
        },
    )?;
    let mut whole = Mapped::new();
    whole.push(grid.len_bytes(), Source::Linear(Arc::new(grid), 0))?;
    Ok(whole)
}

/// What a member gives to an array of this chunk size.
fn whole_chunks(block: &Superblock, chunk: u64) -> u64 {
    block.data_len - block.data_len.checked_rem(chunk).unwrap_or(0)
}

fn linear(array: &Superblock, places: &[Option<&Found>]) -> Result<Mapped> {
    let mut whole = Mapped::new();
    for (role, place) in places.iter().enumerate() {
        // How long a member is only it knows: what follows one that is gone cannot be placed.
        let Some((_, volume, block)) = place else {
            return match role {
                0 => Err(missing(0)),
                _ => Ok(whole),
            };
        };
        let source = Source::Linear(volume.clone(), block.data_start);
        whole.push(whole_chunks(block, array.chunk_bytes), source)?;
    }
    Ok(whole)
}

/// `create_strip_zones`: as far as the shortest member goes all are taken in turn, then those that
/// are longer, and so on.
fn striped(array: &Superblock, places: &[Option<&Found>]) -> Result<Mapped> {
    let chunk = array.chunk_bytes;
    if chunk == 0 || !chunk.is_multiple_of(512) {
        return Err(Error::corrupt("a striped array without a chunk size"));
    }
    let mut members = Vec::new();
    for (role, place) in places.iter().enumerate() {
        let (_, volume, block) = place.ok_or_else(|| missing(role))?;
        members.push((volume, block.data_start, whole_chunks(block, chunk)));
    }
    let mut whole = Mapped::new();
    let mut done = 0;
    let mut first_chunk: u64 = 0;
    while let Some(end) = members.iter().map(|m| m.2).filter(|&len| len > done).min() {
        let mut runs = Vec::new();
        for (volume, start, len) in &members {
            if *len > done {
                let at = start
                    .checked_add(done)
                    .ok_or_else(|| Error::corrupt("a member reaches past 2^64"))?;
                runs.push(((*volume).clone(), at));
            }
        }
        let count = runs.len() as u64;
        if done > 0 {
            match array.layout {
                // The original way: who is next goes by the chunk's number in the array.
                1 => runs.rotate_left((first_chunk % count) as usize),
                2 => {}
                _ => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "a striped array of unequal members that does not say its layout",
                    ));
                }
            }
        }
        let len = (end - done)
            .checked_mul(count)
            .ok_or_else(|| Error::corrupt("an array of nearly 2^64 bytes"))?;
        let source = Source::Striped {
            members: runs,
            stripe_bytes: chunk,
        };
        whole.push(len, source)?;
        first_chunk = first_chunk.saturating_add(len / chunk);
        done = end;
    }
    Ok(whole)
}
