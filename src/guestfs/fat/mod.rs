//! FAT12, FAT16, FAT32 and exFAT.
//!
//! An own reader: the formats are small, and the crate that was looked at shows what lies behind a
//! file's valid length on exFAT, reads a directory again for every inode, and ends a broken chain
//! without an error. Sources: Microsoft's FAT specification 1.03 and exFAT specification 1.00, and
//! Linux' `fs/fat` where the two leave room.
//!
//! An inode number is the place of a directory entry on the volume in units of 32 bytes; on exFAT that of
//! the first entry of a set, and whether the directory it is in has no chain. That is enough to find the
//! second one, which may be in another cluster.

mod dir;
mod volume;

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use self::dir::{Item, Parsed};
use self::volume::{Geometry, Piece, Volume, Width, bad};
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::recent::Recent;
use crate::guestfs::common::run_file::{Run, RunFile, RunMap};
use crate::guestfs::host::device::Device;
use crate::guestfs::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode};
use crate::io::ReadAt;
use crate::kind::NodeKind;

/// No entry can be at byte 32 of a volume.
const ROOT: GuestInode = 1;
/// Set in the inode numbers of what is in a directory whose clusters follow one another without a chain.
const NO_CHAIN: GuestInode = 1 << 62;
/// What exFAT allows for a directory; FAT ends at 2 MiB.
const MAX_DIR_BYTES: u64 = 256 << 20;
/// Bytes of a directory that are parsed at once; an item has at most 21 entries of 32.
const PART_BYTES: usize = 128 << 10;
/// … and when one item is looked at.
const ITEM_BYTES: usize = 21 * 32;
const ENTRY_BYTES: u64 = 32;
/// Directories whose clusters are remembered, and how many pieces those have together.
const KEPT_DIRS: usize = 64;
const KEPT_PIECES: usize = 100_000;
/// Directories whose names are remembered, and how many names those are together (8 bytes each).
const KEPT_NAMES: usize = 2 << 20;

/// An open FAT or exFAT.
pub struct FatFs {
    volume: Volume,
    dirs: Recent<Dir>,
    names: Recent<Names>,
    hasher: RandomState,
}

/// Where a directory's entries are.
struct Dir {
    /// Outside the clusters: start and length in bytes.
    fixed: Option<(u64, u64)>,
    pieces: Vec<Piece>,
    has_no_chain: bool,
    cluster_bytes: u64,
}

/// The names of a directory: their hashes, in order, each with the entry it begins at.
struct Names(Vec<(u32, u32)>);

impl Dir {
    fn len_bytes(&self) -> u64 {
        let clusters = self
            .pieces
            .last()
            .map_or(0, |last| last.before + last.count);
        self.fixed
            .map_or(clusters * self.cluster_bytes, |(_, len)| len)
    }

    /// The byte of the volume that holds a byte of the directory, and how many follow it there.
    fn place(&self, geometry: &Geometry, at: u64) -> Result<(u64, u64)> {
        if let Some((start, len)) = self.fixed {
            return Ok((start + at, len - at));
        }
        let cluster = at / self.cluster_bytes;
        let index = self
            .pieces
            .partition_point(|piece| piece.before + piece.count <= cluster);
        let piece = self
            .pieces
            .get(index)
            .ok_or_else(|| bad("a directory is shorter than it is"))?;
        let within = at - piece.before * self.cluster_bytes;
        let start = geometry.cluster_start(piece.first)?;
        Ok((start + within, piece.count * self.cluster_bytes - within))
    }
}

impl FatFs {
    /// Reads the boot sector.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        Ok(Arc::new(FatFs {
            volume: Volume::open(Arc::new(Device::new(volume)))?,
            dirs: Recent::new(KEPT_DIRS, KEPT_PIECES),
            names: Recent::new(KEPT_DIRS, KEPT_NAMES),
            hasher: RandomState::new(),
        }))
    }

    fn dir(&self, number: GuestInode) -> Result<Arc<Dir>> {
        if let Some(dir) = self.dirs.get(number) {
            return Ok(dir);
        }
        let geometry = &self.volume.geometry;
        let cluster_bytes = geometry.cluster_bytes;
        let limit = MAX_DIR_BYTES / cluster_bytes + 1;
        let mut dir = Dir {
            fixed: None,
            pieces: Vec::new(),
            has_no_chain: false,
            cluster_bytes,
        };
        if number == ROOT {
            dir.fixed = geometry.fixed_root;
            if dir.fixed.is_none() {
                dir.pieces = self.volume.chain(geometry.root_cluster, limit)?;
            }
        } else {
            let item = self.item(number)?;
            if !item.is_dir {
                return Err(Error::new(ErrorKind::Invalid, "not a directory"));
            }
            dir.has_no_chain = item.is_contiguous;
            dir.pieces = match geometry.width {
                Width::ExFat if item.len_bytes > MAX_DIR_BYTES => Vec::new(),
                Width::ExFat => self.volume.pieces(&item)?,
                _ => self.volume.chain(item.first_cluster, limit)?,
            };
            if item.len_bytes > MAX_DIR_BYTES {
                return Err(bad("a directory is too large"));
            }
        }
        if dir.len_bytes() > MAX_DIR_BYTES.next_multiple_of(cluster_bytes) {
            return Err(bad("a directory is too large"));
        }
        Ok(self.dirs.put(number, dir.pieces.len() + 1, dir))
    }

    /// The items from an entry on that a part of a directory holds, and where to go on.
    fn part(&self, dir: &Dir, slot: u64, part_bytes: usize) -> Result<(Vec<Item>, Option<u64>)> {
        let start = slot
            .checked_mul(ENTRY_BYTES)
            .ok_or_else(|| bad("a directory has no such part"))?;
        let left = dir.len_bytes().saturating_sub(start);
        let mut bytes = vec![0; left.min(part_bytes as u64) as usize];
        let mut done = 0;
        while done < bytes.len() {
            let (at, run) = dir.place(&self.volume.geometry, start + done as u64)?;
            let take = run.min((bytes.len() - done) as u64) as usize;
            self.volume.device.read(&mut bytes[done..done + take], at)?;
            done += take;
        }
        let is_last = bytes.len() as u64 == left;
        let Parsed {
            items,
            next,
            is_end,
        } = match self.volume.geometry.width {
            Width::ExFat => dir::parse_exfat(&bytes, is_last)?,
            width => dir::parse_fat(&bytes, width == Width::Fat32),
        };
        let goes_on = !is_end && !is_last && next > 0;
        Ok((items, goes_on.then_some(slot + next as u64)))
    }

    /// The inode number of an item in a part that begins at this entry.
    fn inode(&self, dir: &Dir, slot: u64, item: &Item) -> Result<GuestInode> {
        let at = (slot + item.slot as u64) * ENTRY_BYTES;
        let (place, _) = dir.place(&self.volume.geometry, at)?;
        let bit = if dir.has_no_chain { NO_CHAIN } else { 0 };
        Ok((place / ENTRY_BYTES) | bit)
    }

    fn hash(&self, name: &[u8]) -> u32 {
        self.hasher.hash_one(name) as u32
    }

    /// The names of a directory; reads all of it.
    fn names(&self, number: GuestInode, dir: &Dir) -> Result<Arc<Names>> {
        if let Some(names) = self.names.get(number) {
            return Ok(names);
        }
        let mut all = Vec::new();
        let mut next = Some(0);
        while let Some(slot) = next {
            let (items, after) = self.part(dir, slot, PART_BYTES)?;
            // A directory has at most 2^23 entries.
            all.extend(items.iter().map(|item| {
                let first = slot + item.first_slot as u64;
                (self.hash(&item.name), first as u32)
            }));
            next = after;
        }
        all.sort_unstable();
        all.shrink_to_fit();
        Ok(self.names.put(number, all.len() + 1, Names(all)))
    }

    /// What an inode number stands for, from its place.
    fn item(&self, inode: GuestInode) -> Result<Item> {
        let at = (inode & !NO_CHAIN)
            .checked_mul(ENTRY_BYTES)
            .ok_or_else(|| bad("an inode number is out of range"))?;
        let mut entry = [0; ENTRY_BYTES as usize];
        self.volume.device.read(&mut entry, at)?;
        let found = match self.volume.geometry.width {
            Width::ExFat => {
                let mut stream = [0; ENTRY_BYTES as usize];
                let second = self.second(at, inode & NO_CHAIN != 0)?;
                self.volume.device.read(&mut stream, second)?;
                dir::exfat_pair(&entry, &stream)
            }
            width => dir::fat_entry(&entry, width == Width::Fat32),
        };
        found.ok_or_else(|| bad("a name leads to an entry that is not in use"))
    }

    /// Where the entry behind this one is.
    fn second(&self, at: u64, has_no_chain: bool) -> Result<u64> {
        let geometry = &self.volume.geometry;
        let within = at
            .checked_sub(geometry.heap_start)
            .ok_or_else(|| bad("an inode number is out of range"))?;
        if !(within + ENTRY_BYTES).is_multiple_of(geometry.cluster_bytes) {
            return Ok(at + ENTRY_BYTES);
        }
        let cluster = u32::try_from(within / geometry.cluster_bytes + 2)
            .map_err(|_| bad("an inode number is out of range"))?;
        let next = match has_no_chain {
            true => cluster.checked_add(1),
            false => self.volume.after(cluster)?,
        };
        geometry.cluster_start(next.ok_or_else(|| bad("an entry set is not whole"))?)
    }
}

impl GuestFs for FatFs {
    fn root(&self) -> GuestInode {
        ROOT
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let item = match inode {
            ROOT => Item::root(),
            inode => self.item(inode)?,
        };
        let cluster_bytes = self.volume.geometry.cluster_bytes;
        Ok(GuestAttr {
            kind: match item.is_dir {
                true => NodeKind::Dir,
                false => NodeKind::File,
            },
            size_bytes: if item.is_dir { 0 } else { item.len_bytes },
            allocated_bytes: item
                .len_bytes
                .div_ceil(cluster_bytes)
                .saturating_mul(cluster_bytes),
            permissions: match (item.is_dir, item.is_read_only) {
                (true, _) => 0o755,
                (false, false) => 0o644,
                (false, true) => 0o444,
            },
            links: 1,
            uid: 0,
            gid: 0,
            atime: item.accessed,
            mtime: item.modified,
            ctime: item.modified,
            rdev: 0,
        })
    }

    fn lookup(&self, number: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        let dir = self.dir(number)?;
        let names = self.names(number, &dir)?;
        let hash = self.hash(name.as_bytes());
        let first = names.0.partition_point(|(other, _)| *other < hash);
        // Of two items with one name the first one counts, as in the listing.
        for (_, slot) in names.0[first..]
            .iter()
            .take_while(|(other, _)| *other == hash)
        {
            let slot = u64::from(*slot);
            let (items, _) = self.part(&dir, slot, ITEM_BYTES)?;
            if let Some(item) = items.first().filter(|item| item.name == name.as_bytes()) {
                return self.inode(&dir, slot, item).map(Some);
            }
        }
        Ok(None)
    }

    fn list(&self, number: GuestInode, cursor: u64) -> Result<Batch> {
        let dir = self.dir(number)?;
        let (items, next) = self.part(&dir, cursor, PART_BYTES)?;
        let entries = items.into_iter().map(|item| {
            Ok(GuestEntry {
                inode: self.inode(&dir, cursor, &item)?,
                kind: Some(match item.is_dir {
                    true => NodeKind::Dir,
                    false => NodeKind::File,
                }),
                name: OsString::from_vec(item.name),
            })
        });
        Ok(Batch {
            entries: entries.collect::<Result<_>>()?,
            next,
        })
    }

    fn read_link(&self, _inode: GuestInode) -> Result<OsString> {
        Err(Error::new(ErrorKind::Invalid, "not a symbolic link"))
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let item = match inode {
            ROOT => Item::root(),
            inode => self.item(inode)?,
        };
        if item.is_dir {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        let map = Chain {
            pieces: self.volume.pieces(&item)?,
            geometry: self.volume.geometry.clone(),
            valid_bytes: item.valid_bytes,
        };
        let file = RunFile::new(self.volume.device.volume().clone(), map, item.len_bytes)?;
        Ok(Arc::new(file))
    }
}

struct Chain {
    pieces: Vec<Piece>,
    geometry: Geometry,
    /// exFAT: what lies behind was never written and reads as zeros.
    valid_bytes: u64,
}

impl RunMap for Chain {
    fn run_at(&self, offset: u64) -> Result<Run> {
        if offset >= self.valid_bytes {
            return Ok(Run {
                end: u64::MAX,
                at: None,
            });
        }
        let cluster_bytes = self.geometry.cluster_bytes;
        let cluster = offset / cluster_bytes;
        let index = self
            .pieces
            .partition_point(|piece| piece.before + piece.count <= cluster);
        let piece = self
            .pieces
            .get(index)
            .ok_or_else(|| bad("a file's chain of clusters is shorter than the file"))?;
        let start = self.geometry.cluster_start(piece.first)?;
        Ok(Run {
            end: ((piece.before + piece.count) * cluster_bytes).min(self.valid_bytes),
            at: Some(start + offset - piece.before * cluster_bytes),
        })
    }
}
