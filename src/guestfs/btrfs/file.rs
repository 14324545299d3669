//! The contents of btrfs files: by extents, each sector against its checksum.
//!
//! Extents that are stored as they are go from the volume into the reader's buffer; compressed ones (at
//! most 128 KiB) are unpacked whole, and the last few are kept.

use std::sync::Arc;

use super::checksum::Checksum;
use super::extent::{FileExtent, Place};
use super::fault::bad;
use super::key::{CSUM_OBJECT, EXTENT_CSUM, EXTENT_DATA, Key};
use super::space::keep_failure;
use super::superblock::Root;
use super::tree::Trees;
use super::unpack::Compression;
use crate::error::{Error, Result};
use crate::guestfs::common::recent::Recent;
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};
use crate::volume::bits::index;

/// Unpacked extents kept by one open file: as many as a read of 1 MiB may meet.
const KEPT: usize = 8;

/// One file's content.
pub(super) struct Content {
    /// The trees.
    pub trees: Arc<Trees>,
    /// The subvolume's tree.
    pub root: Root,
    /// The inode number.
    pub number: u64,
    /// Length in bytes, less than 2^63.
    pub len_bytes: u64,
    /// How contents are verified.
    pub sums: Sums,
    /// Unpacked extents by their logical address.
    kept: Recent<Vec<u8>>,
}

/// How the contents of a file are verified.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// The tree of checksums; `None` for files that have none.
    pub root: Option<Root>,
    /// Their kind.
    pub kind: Checksum,
    /// Bytes that each of them is over.
    pub sector_bytes: u32,
}

/// What a part of a file is.
enum Piece {
    Hole,
    Inline(Vec<u8>),
    /// At a logical address.
    Plain(u64),
    Packed(Packed),
}

struct Packed {
    logical: u64,
    stored_bytes: usize,
    unpacked_bytes: usize,
    /// Where in the unpacked bytes this part begins.
    within: u64,
    method: Compression,
    /// Whether the file ends in it: only then may it unpack to less than it says.
    is_last: bool,
}

/// A part of a file from `start` to `end` (exclusive).
struct Part {
    start: u64,
    end: u64,
    piece: Piece,
}

impl Content {
    /// A file of `len_bytes` bytes.
    ///
    /// # Errors
    /// `Corrupt` for a length that no file can have.
    pub(super) fn new(
        trees: Arc<Trees>,
        root: Root,
        number: u64,
        len_bytes: u64,
        sums: Sums,
    ) -> Result<Self> {
        if i64::try_from(len_bytes).is_err() {
            return Err(bad("a file says it has more than 2^63 bytes"));
        }
        Ok(Content {
            trees,
            root,
            number,
            len_bytes,
            sums,
            kept: Recent::of_count(KEPT),
        })
    }

    fn sector_bytes(&self) -> u64 {
        u64::from(self.sums.sector_bytes)
    }

    /// The part of the file that `offset` is in.
    fn part_at(&self, offset: u64) -> Result<Part> {
        let wanted = Key::new(self.number, EXTENT_DATA, offset);
        let found = self.trees.at_or_before(self.root, wanted)?;
        if let Some((found, data)) = found.as_ref().and_then(|place| place.item())
            && found.objectid == self.number
            && found.key_type == EXTENT_DATA
        {
            let part = self.decode(found.offset, data)?;
            if part.end > offset {
                return Ok(part);
            }
        }
        // Between extents: a hole up to the next one.
        let mut end = u64::MAX;
        self.trees.scan(self.root, wanted, |found, _| {
            if found.objectid == self.number && found.key_type == EXTENT_DATA {
                end = found.offset;
            }
            Ok(false)
        })?;
        Ok(Part {
            start: offset,
            end,
            piece: Piece::Hole,
        })
    }

    /// What an extent item says.
    fn decode(&self, start: u64, item: &[u8]) -> Result<Part> {
        let extent = FileExtent::parse(item)?;
        let (len_bytes, piece) = match (extent.place, extent.method) {
            (Place::Hole(len_bytes), _) => (len_bytes, Piece::Hole),
            (Place::Inline(stored), method) => {
                let bytes = match method {
                    None => stored.to_vec(),
                    // At most 128 KiB, see `FileExtent::parse`.
                    Some(method) => {
                        self.unpack(method, stored, index(extent.unpacked_bytes), true)?
                    }
                };
                (bytes.len() as u64, Piece::Inline(bytes))
            }
            (
                Place::Extent {
                    logical,
                    within,
                    len_bytes,
                    ..
                },
                None,
            ) => {
                let at = logical
                    .checked_add(within)
                    .ok_or_else(|| bad("a file's extent is past the end of everything"))?;
                (len_bytes, Piece::Plain(at))
            }
            (
                Place::Extent {
                    logical,
                    stored_bytes,
                    within,
                    len_bytes,
                },
                Some(method),
            ) => {
                let packed = Packed {
                    logical,
                    stored_bytes: index(stored_bytes),
                    unpacked_bytes: index(extent.unpacked_bytes),
                    within,
                    method,
                    is_last: start.saturating_add(extent.unpacked_bytes) >= self.len_bytes,
                };
                (len_bytes, Piece::Packed(packed))
            }
        };
        let end = start
            .checked_add(len_bytes)
            .filter(|&end| end > start)
            .ok_or_else(|| bad("a file's extent has no end"))?;
        Ok(Part { start, end, piece })
    }

    fn unpack(
        &self,
        method: Compression,
        stored: &[u8],
        unpacked_bytes: usize,
        is_last: bool,
    ) -> Result<Vec<u8>> {
        let sector_bytes = self.sums.sector_bytes as usize;
        method.unpack(stored, unpacked_bytes, sector_bytes, is_last)
    }

    /// A compressed extent, unpacked.
    fn unpacked(&self, packed: &Packed) -> Result<Arc<Vec<u8>>> {
        if let Some(bytes) = self.kept.get(packed.logical) {
            return Ok(bytes);
        }
        let mut stored = vec![0; packed.stored_bytes];
        self.read_verified(packed.logical, &mut stored)?;
        let bytes = self.unpack(
            packed.method,
            &stored,
            packed.unpacked_bytes,
            packed.is_last,
        )?;
        Ok(self.kept.put(packed.logical, 1, bytes))
    }

    /// Reads bytes at a logical address, verified. Checksums are those of whole sectors.
    fn read_verified(&self, logical: u64, buf: &mut [u8]) -> Result<()> {
        let sector = self.sector_bytes();
        let skip = logical % sector;
        let whole = (skip + buf.len() as u64).next_multiple_of(sector);
        if skip == 0 && whole == buf.len() as u64 {
            return self.read_sectors(logical, buf);
        }
        let mut sectors = vec![0; index(whole)];
        self.read_sectors(logical - skip, &mut sectors)?;
        let skip = index(skip);
        let wanted = sectors.get(skip..skip + buf.len());
        let wanted = wanted.ok_or_else(|| bad("a read leaves its sectors"))?;
        buf.copy_from_slice(wanted);
        Ok(())
    }

    /// Reads whole sectors, run by run: what lies in one piece on a device.
    fn read_sectors(&self, logical: u64, buf: &mut [u8]) -> Result<()> {
        let locate = |at| Ok(((), self.trees.space().run_end(at)?));
        let sector = self.sector_bytes();
        read_pieces(buf, logical, locate, |(), run, at| {
            let Some(root) = self.sums.root else {
                return self.trees.space().read_unverified(at, run);
            };
            let failed = match self.read_sound(root, at, run) {
                Err(error) if run.len() as u64 > sector => error,
                done => return done,
            };
            if self.trees.space().ways_to(at, 1)? == 1 {
                return Err(failed);
            }
            // No copy is good as a whole, but each sector may be good in one of them.
            let sectors = run.chunks_mut(index(sector));
            for (sector_bytes, at) in sectors.zip((at..).step_by(index(sector))) {
                self.read_sound(root, at, sector_bytes)?;
            }
            Ok(())
        })
    }

    /// Reads sectors of one run, in the first way that gives what their checksums say.
    fn read_sound(&self, sums: Root, logical: u64, buf: &mut [u8]) -> Result<()> {
        let space = self.trees.space();
        let mut failed = None;
        for way in 0..space.ways_to(logical, buf.len() as u64)? {
            let read = space
                .read(logical, way, buf)
                .and_then(|()| self.verify(sums, logical, buf));
            match read {
                Ok(()) => return Ok(()),
                Err(error) => keep_failure(&mut failed, error),
            }
        }
        Err(failed.unwrap_or_else(|| bad("a file's extent has no copies")))
    }

    fn verify(&self, root: Root, logical: u64, bytes: &[u8]) -> Result<()> {
        let sector = self.sector_bytes();
        let method = self.sums.kind;
        let size = method.len_bytes();
        let mut rest = bytes.chunks_exact(index(sector));
        let mut at = logical;
        while rest.len() > 0 {
            let none = || bad("a file's content has no checksum").at(at);
            let wanted = Key::new(CSUM_OBJECT, EXTENT_CSUM, at);
            let place = self.trees.at_or_before(root, wanted)?.ok_or_else(none)?;
            let (found, sums) = place.item().ok_or_else(none)?;
            if found.objectid != CSUM_OBJECT || found.key_type != EXTENT_CSUM {
                return Err(none());
            }
            let first = index((at - found.offset) / sector);
            let sums = sums.chunks_exact(size).skip(first);
            if sums.len() == 0 {
                return Err(none());
            }
            let count = sums.len().min(rest.len());
            for (sum, sector_bytes) in sums.zip(rest.by_ref().take(count)) {
                if !method.verify(sector_bytes, sum) {
                    return Err(bad("a file's content has a wrong checksum").at(at));
                }
                at += sector;
            }
        }
        Ok(())
    }
}

impl ReadAt for Content {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let copy = |from: &[u8], skip: u64, to: &mut [u8]| {
            let from = usize::try_from(skip)
                .ok()
                .and_then(|skip| from.get(skip..skip.checked_add(to.len())?))
                .ok_or_else(|| bad("a file's extent is shorter than it says"))?;
            to.copy_from_slice(from);
            Ok::<(), Error>(())
        };
        let locate = |at| {
            let part = self.part_at(at)?;
            let end = part.end;
            Ok((part, end))
        };
        read_pieces(buf, offset, locate, |part, now, offset| {
            let skip = offset - part.start;
            match &part.piece {
                Piece::Hole => {
                    now.fill(0);
                    Ok(())
                }
                Piece::Inline(bytes) => copy(bytes, skip, now),
                Piece::Packed(packed) => {
                    let bytes = self.unpacked(packed)?;
                    copy(&bytes, packed.within + skip, now)
                }
                Piece::Plain(logical) => {
                    let at = logical
                        .checked_add(skip)
                        .ok_or_else(|| bad("a file's extent is past the end of everything"))?;
                    self.read_verified(at, now)
                }
            }
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let part = self.part_at(offset)?;
        Ok(Extent {
            kind: match part.piece {
                Piece::Hole => ExtentKind::Hole,
                _ => ExtentKind::Data,
            },
            end: part.end.min(self.len_bytes),
        })
    }
}
