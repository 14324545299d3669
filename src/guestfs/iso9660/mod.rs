//! ISO 9660 with Rock Ridge or Joliet.
//!
//! An own reader: the format is small. Of several trees that one is shown which Linux mounts: with Rock
//! Ridge if there is any, otherwise Joliet's, otherwise the plain one. Source: ECMA-119; the behaviour
//! where it leaves room is that of Linux' `isofs`.
//!
//! An inode number is the byte on the volume at which a directory record begins. Of a directory that is
//! its own record (`.`), at the start of its content, so that moved directories have one number.

mod record;
mod rock_ridge;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::listings::Listings;
use crate::guestfs::common::run_file::{Run, RunFile, RunMap};
use crate::guestfs::common::unix::kind_of_mode;
use crate::guestfs::host::device::Device;
use crate::guestfs::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode};
use crate::io::ReadAt;
use crate::kind::NodeKind;
use record::Record;
use rock_ridge::Fields;

const SECTOR_BYTES: u64 = 2048;
/// Volume descriptors begin here.
const FIRST_DESCRIPTOR: u64 = 16;
const MAX_DESCRIPTORS: u64 = 64;
/// Bytes of a directory; some 500,000 entries.
const MAX_DIR_BYTES: u64 = 96 << 20;
/// Bytes of a directory that one part of a listing reads.
const PART_BYTES: u64 = 256 << 10;
/// Records that one file may be continued over: 16 TiB.
const MAX_EXTENTS: usize = 4096;

/// How names are stored in the tree that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    Plain,
    Joliet,
    /// With the bytes to skip at the start of system use areas.
    RockRidge(usize),
}

/// An open ISO 9660 volume.
pub struct IsoFs {
    device: Arc<Device>,
    block_bytes: u64,
    root: GuestInode,
    naming: Naming,
    listings: Listings,
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("iso9660: {message}"))
}

/// A volume descriptor's block size and the place of its root directory.
#[derive(Clone, Copy)]
struct Tree {
    block_bytes: u64,
    root: u64,
}

impl Tree {
    fn parse(descriptor: &[u8], at: u64) -> Result<Tree> {
        let block_bytes = u64::from(descriptor[128]) | u64::from(descriptor[129]) << 8;
        if !matches!(block_bytes, 512 | 1024 | 2048) {
            return Err(bad("the block size makes no sense"));
        }
        let record = Record::parse(&descriptor[156..190], at + 156)?
            .filter(|record| record.is_dir)
            .ok_or_else(|| bad("a volume descriptor has no root directory"))?;
        Ok(Tree {
            block_bytes,
            root: record.first_block * block_bytes,
        })
    }
}

impl IsoFs {
    /// Reads the volume descriptors and the root's first record.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let device = Arc::new(Device::new(volume));
        let (mut primary, mut joliet) = (None, None);
        for number in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + MAX_DESCRIPTORS {
            let mut descriptor = [0; SECTOR_BYTES as usize];
            let at = number * SECTOR_BYTES;
            device.read(&mut descriptor, at)?;
            if &descriptor[1..6] != b"CD001" {
                break;
            }
            match descriptor[0] {
                1 if primary.is_none() => primary = Some(Tree::parse(&descriptor, at)?),
                2 if joliet.is_none() && is_joliet(&descriptor) => {
                    // A damaged second tree does not take the first one away.
                    joliet = Tree::parse(&descriptor, at).ok();
                }
                255 => break,
                _ => {}
            }
        }
        let primary = primary.ok_or_else(|| bad("there is no primary volume descriptor"))?;
        let mut fs = IsoFs {
            device,
            block_bytes: primary.block_bytes,
            root: primary.root,
            naming: Naming::Plain,
            listings: Listings::default(),
        };
        if let Some(skip) = fs.rock_ridge()? {
            fs.naming = Naming::RockRidge(skip);
        } else if let Some(tree) = joliet {
            fs.naming = Naming::Joliet;
            fs.block_bytes = tree.block_bytes;
            fs.root = tree.root;
        }
        Ok(Arc::new(fs))
    }

    /// The bytes to skip in system use areas, when the root directory has Rock Ridge fields.
    fn rock_ridge(&self) -> Result<Option<usize>> {
        let root = self.record(self.root)?;
        let Some(skip) = rock_ridge::skipped_bytes(&root.system_use) else {
            return Ok(None);
        };
        let start = root.system_use.get(skip..).unwrap_or_default();
        let fields = rock_ridge::read(&self.device, self.block_bytes, start)?;
        Ok((fields.has_extension || fields.posix.is_some()).then_some(skip))
    }

    /// The record at a byte of the volume.
    fn record(&self, at: u64) -> Result<Record> {
        // Records do not cross sectors.
        let left = SECTOR_BYTES - at % SECTOR_BYTES;
        let mut bytes = vec![0; left.min(255) as usize];
        self.device.read(&mut bytes, at)?;
        Record::parse(&bytes, at)?.ok_or_else(|| bad("there is no record where one should be"))
    }

    fn fields(&self, record: &Record) -> Result<Fields> {
        let Naming::RockRidge(skip) = self.naming else {
            return Ok(Fields::default());
        };
        let area = record.system_use.get(skip..).unwrap_or_default();
        rock_ridge::read(&self.device, self.block_bytes, area)
    }

    /// The record of a directory itself.
    fn directory(&self, inode: GuestInode) -> Result<Record> {
        let record = self.record(inode)?;
        if !record.is_dir {
            return Err(Error::new(ErrorKind::Invalid, "not a directory"));
        }
        if record.first_block * self.block_bytes != inode {
            return Err(bad("a directory does not begin with itself"));
        }
        if record.is_continued || record.is_interleaved {
            return Err(bad("a directory is in several pieces"));
        }
        if u64::from(record.size) > MAX_DIR_BYTES {
            return Err(bad("a directory is too large"));
        }
        Ok(record)
    }

    /// The entry that a record stands for, `None` for one that is not shown.
    fn entry(&self, record: &Record) -> Result<Option<GuestEntry>> {
        let fields = match self.fields(record) {
            Ok(fields) => fields,
            // Shown under the name that is left; what it is cannot be said, and looking at it fails.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return Ok(Some(GuestEntry {
                    name: OsString::from_vec(record.plain_name()),
                    inode: record.at,
                    kind: None,
                }));
            }
            Err(error) => return Err(error),
        };
        // Shown where it belongs.
        if fields.is_relocated {
            return Ok(None);
        }
        let name = match (fields.name, self.naming) {
            (Some(name), _) if !name.is_empty() => name,
            (_, Naming::Joliet) => record.joliet_name(),
            _ => record.plain_name(),
        };
        let (inode, kind) = match fields.child_block {
            Some(block) => (u64::from(block) * self.block_bytes, NodeKind::Dir),
            None if record.is_dir => (record.first_block * self.block_bytes, NodeKind::Dir),
            None => {
                let kind = file_kind(fields.posix.map(|posix| posix.mode));
                (record.at, kind.unwrap_or(NodeKind::File))
            }
        };
        Ok(Some(GuestEntry {
            name: OsString::from_vec(name),
            inode,
            kind: Some(kind),
        }))
    }

    /// The entries from `cursor` on, a part at a time.
    fn part(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        let size = u64::from(self.directory(dir)?.size);
        let mut batch = Batch::default();
        let mut at = cursor - cursor.min(size) % SECTOR_BYTES;
        let mut is_continuation = false;
        while at < size && (batch.next.is_none() || is_continuation) {
            let mut bytes = vec![0; PART_BYTES.min(size - at) as usize];
            self.device.read(&mut bytes, dir + at)?;
            for (sector, number) in bytes.chunks(SECTOR_BYTES as usize).zip(0..) {
                let start = dir + at + number * SECTOR_BYTES;
                let mut within = 0;
                while let Some(record) = Record::parse(&sector[within..], start + within as u64)? {
                    within += record.len;
                    // The records of one file follow each other; the first one stands for all.
                    let is_first = !std::mem::replace(&mut is_continuation, record.is_continued);
                    if is_first
                        && !record.is_dot()
                        && !record.is_associated
                        && let Some(entry) = self.entry(&record)?
                    {
                        batch.entries.push(entry);
                    }
                }
            }
            at += bytes.len() as u64;
            batch.next = (at < size).then_some(at);
        }
        Ok(batch)
    }

    /// All entries of a directory.
    fn entries(&self, dir: GuestInode) -> Result<Vec<GuestEntry>> {
        let mut all = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let batch = self.part(dir, at)?;
            all.extend(batch.entries);
            cursor = batch.next;
        }
        Ok(all)
    }

    /// The extents of a file: first byte on the volume and length, in order.
    fn extents(&self, first: &Record) -> Result<Vec<(u64, u64)>> {
        let mut extents = Vec::new();
        let mut record = first.clone();
        loop {
            if record.is_interleaved {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "interleaved files of ISO 9660 are not read",
                ));
            }
            let start = record.first_block * self.block_bytes;
            extents.push((start, u64::from(record.size)));
            if !record.is_continued {
                return Ok(extents);
            }
            if extents.len() >= MAX_EXTENTS {
                return Err(bad("a file goes on without an end"));
            }
            let next = self.following(&record)?;
            if next.is_dir || next.name != first.name {
                return Err(bad("a file is not continued where it should be"));
            }
            record = next;
        }
    }

    /// The record after one, in the same sector or at the start of the next.
    fn following(&self, record: &Record) -> Result<Record> {
        let at = record.at + record.len as u64;
        let next_sector = at.next_multiple_of(SECTOR_BYTES);
        let mut length = [0];
        if at < next_sector {
            self.device.read(&mut length, at)?;
        }
        self.record(if length == [0] { next_sector } else { at })
    }

    fn content_bytes(&self, record: &Record, fields: &Fields) -> Result<u64> {
        if let Some(unpacked) = fields.zisofs_bytes {
            return Ok(unpacked);
        }
        // At most 4096 numbers of 32 bits.
        Ok(self.extents(record)?.iter().map(|(_, len)| len).sum())
    }
}

fn is_joliet(descriptor: &[u8]) -> bool {
    matches!(&descriptor[88..91], b"%/@" | b"%/C" | b"%/E")
}

/// The kind of what is not a directory.
fn file_kind(mode: Option<u32>) -> Result<NodeKind> {
    match mode.map(kind_of_mode) {
        None => Ok(NodeKind::File),
        Some(Some(kind)) if kind != NodeKind::Dir => Ok(kind),
        Some(_) => Err(bad("a file's mode is not one of a file")),
    }
}

/// FUSE's device number.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
}

impl GuestFs for IsoFs {
    fn root(&self) -> GuestInode {
        self.root
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let record = self.record(inode)?;
        let fields = self.fields(&record)?;
        let mode = fields.posix.map(|posix| posix.mode);
        let kind = match record.is_dir {
            true => NodeKind::Dir,
            false => file_kind(mode)?,
        };
        let size_bytes = match kind {
            NodeKind::Dir => u64::from(record.size),
            NodeKind::File => self.content_bytes(&record, &fields)?,
            NodeKind::Symlink => fields.target.as_ref().map_or(0, |t| t.len() as u64),
            _ => 0,
        };
        let [mtime, atime, ctime] = fields.times.map(|time| time.unwrap_or(record.time));
        Ok(GuestAttr {
            kind,
            size_bytes,
            allocated_bytes: match kind {
                NodeKind::Dir | NodeKind::File => size_bytes
                    .div_ceil(SECTOR_BYTES)
                    .saturating_mul(SECTOR_BYTES),
                _ => 0,
            },
            // Without Rock Ridge Linux lets everybody read and execute.
            permissions: mode.map_or(0o555, |mode| (mode & 0o7777) as u16),
            links: fields.posix.map_or(1, |posix| posix.links.max(1)),
            uid: fields.posix.map_or(0, |posix| posix.uid),
            gid: fields.posix.map_or(0, |posix| posix.gid),
            atime,
            mtime,
            ctime,
            rdev: fields.device.map_or(0, encode_device),
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        self.listings.lookup(dir, name, || self.entries(dir))
    }

    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        let batch = self.part(dir, cursor)?;
        if cursor == 0 && batch.next.is_none() {
            self.listings.keep(dir, &batch.entries);
        }
        Ok(batch)
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let fields = self.fields(&self.record(inode)?)?;
        match fields.target {
            Some(target) if !target.is_empty() => Ok(OsString::from_vec(target)),
            _ => Err(bad("a symbolic link has no target")),
        }
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let record = self.record(inode)?;
        let fields = self.fields(&record)?;
        let kind = file_kind(fields.posix.map(|posix| posix.mode))?;
        if record.is_dir || kind != NodeKind::File {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        if fields.zisofs_bytes.is_some() || fields.is_sparse {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "files that zisofs compressed, and sparse ones, are not read from ISO 9660",
            ));
        }
        let extents = Extents::new(self.extents(&record)?);
        let len = extents.len_bytes();
        let file = RunFile::new(self.device.volume().clone(), extents, len)?;
        Ok(Arc::new(file))
    }
}

/// The extents of a file: where each ends in the file, and where its end is on the volume.
struct Extents(Vec<(u64, u64)>);

impl Extents {
    fn new(extents: Vec<(u64, u64)>) -> Self {
        let mut end = 0;
        let ends = extents.into_iter().map(|(start, len)| {
            end += len;
            (end, start + len)
        });
        Extents(ends.collect())
    }

    fn len_bytes(&self) -> u64 {
        self.0.last().map_or(0, |(end, _)| *end)
    }
}

impl RunMap for Extents {
    fn run_at(&self, offset: u64) -> Result<Run> {
        let index = self.0.partition_point(|(end, _)| *end <= offset);
        let (end, volume_end) = self
            .0
            .get(index)
            .ok_or_else(|| bad("a file is shorter than it says"))?;
        Ok(Run {
            end: *end,
            at: Some(volume_end - (end - offset)),
        })
    }
}
