//! NTFS.
//!
//! From below: `boot` (sizes), `record` and `attribute` (file records and what is in them), `runs` (where
//! clusters are), `data` (the contents of streams, by `lznt1` where they are compressed), `volume` (records by
//! their number, the streams of a file over all its records), `dir` (directories, in the order of `upcase`),
//! `reparse` and `wof` (links, and contents that are elsewhere or compressed by the system), `special` (FIFOs, devices
//! and the like). An inode number is a file reference: the record with the sequence number it must still have above
//! it.
//!
//! Names are matched exactly, as on a Linux file system. The journal is not replayed and a hibernated
//! volume is shown as it is on disk: Windows itself may hold newer data elsewhere.
#![cfg_attr(
    not(test),
    warn(
        unreachable_pub,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::indexing_slicing
    )
)]

pub mod attribute;
pub mod boot;
mod data;
pub mod dir;
mod error;
mod fields;
pub mod lznt1;
pub mod record;
pub mod reparse;
pub mod runs;
pub mod special;
mod upcase;
mod volume;
pub mod wof;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::chunked::ChunkedFile;
use crate::guestfs::common::recent::Recent;
use crate::guestfs::common::unix::{device_number, time};
use crate::guestfs::common::utf16;
use crate::guestfs::host::device::Device;
use crate::guestfs::host::guard::{Budget, Outcome, guarded};
use crate::guestfs::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode};
use crate::io::ReadAt;
use crate::kind::NodeKind;

use attribute::{Value, kind};
use data::Stream;
use dir::Index;
use error::bad;
use fields::{byte, le16, le32, le64};
use reparse::{TAG_WOF, check_is_here, link_target};
use special::{ATTRIBUTE_SYSTEM, MAX_INTERIX_BYTES, Special};
use upcase::Upcase;
use volume::{File, Volume};

/// Streams longer than this are not given as attributes (the kernel's limit).
const MAX_XATTR_BYTES: u64 = 64 << 10;
/// Reparse data has at most 16 KiB.
const MAX_REPARSE_BYTES: u64 = 16 << 10;
/// What all extended attributes of a file can have.
const MAX_EXTENDED_BYTES: u64 = 64 << 10;

const ATTRIBUTE_READ_ONLY: u32 = 0x1;
/// Directories whose indexes are kept, and what these take together.
const KEPT_INDEXES: usize = 64;
const KEPT_INDEX_BYTES: usize = 4 << 20;
/// Records that are always at the same place.
const ROOT_RECORD: u64 = 5;
const VOLUME_RECORD: u64 = 3;
/// How the volume's record marks one that was not unmounted.
const VOLUME_IS_DIRTY: u16 = 1;
/// The name of a file that is only there for programs that want 8.3 names.
const NAMESPACE_DOS: u8 = 2;
const ATTRIBUTE_REPARSE: u32 = 0x400;
/// How an index entry marks a directory.
const ATTRIBUTE_DIRECTORY: u32 = 0x1000_0000;

/// An open NTFS.
pub struct NtfsFs {
    volume: Volume,
    /// Read when it is first needed.
    upcase: OnceLock<Upcase>,
    /// Indexes of the directories that were used last.
    indexes: Recent<Index>,
    said_too_long: AtomicBool,
}

impl NtfsFs {
    /// Reads the boot sector, the place of the file records, and the volume's record.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let fs = NtfsFs {
            volume: Volume::open(Arc::new(Device::new(volume)))?,
            upcase: OnceLock::new(),
            indexes: Recent::new(KEPT_INDEXES, KEPT_INDEX_BYTES),
            said_too_long: AtomicBool::new(false),
        };
        // Guarded by themselves: damage that only these meet must not keep the volume from being opened.
        match guarded(Budget::CALL, || fs.is_dirty()) {
            Outcome::Done(Ok(false)) => {}
            Outcome::Done(Ok(true)) => {
                tracing::warn!("ntfs: the volume is marked dirty; it is shown without its journal");
            }
            Outcome::Done(Err(error)) | Outcome::Panicked(error) => {
                tracing::warn!("ntfs: whether the volume is dirty cannot be told: {error}");
            }
        }
        if let Outcome::Done(Ok(true)) = guarded(Budget::CALL, || fs.is_hibernated()) {
            tracing::warn!(
                "ntfs: Windows was hibernated or shut down with Fast Startup; what it had not written to the volume \
                 by then is not shown"
            );
        }
        Ok(Arc::new(fs))
    }

    fn upcase(&self) -> Result<&Upcase> {
        if let Some(table) = self.upcase.get() {
            return Ok(table);
        }
        let table = Upcase::read(&self.volume)?;
        Ok(self.upcase.get_or_init(|| table))
    }

    fn index(&self, dir: GuestInode) -> Result<Arc<Index>> {
        if let Some(index) = self.indexes.get(dir) {
            return Ok(index);
        }
        let file = self.volume.file(dir)?;
        if !file.record.is_directory() {
            return Err(Error::new(ErrorKind::Invalid, "not a directory"));
        }
        let index = Index::open(&self.volume, &file)?;
        Ok(self.indexes.put(dir, index.weight_bytes(), index))
    }

    /// The reparse tag and data of a file.
    fn reparse(&self, file: &File) -> Result<Option<(u32, Vec<u8>)>> {
        let Some(stream) = self.volume.stream(file, kind::REPARSE_POINT, &[])? else {
            return Ok(None);
        };
        let value = stream.into_bytes(&self.volume.clusters, MAX_REPARSE_BYTES)?;
        match value.filter(|value| value.len() >= 8) {
            Some(value) => Ok(Some((le32(&value, 0)?, value))),
            None => Err(bad("a reparse point has a wrong length")),
        }
    }

    /// Whether the volume was in use and not unmounted.
    fn is_dirty(&self) -> Result<bool> {
        let file = self.volume.file(VOLUME_RECORD)?;
        let missing = || bad("the volume's record says nothing about it");
        let value = self
            .volume
            .stream(&file, kind::VOLUME_INFORMATION, &[])?
            .ok_or_else(missing)?
            .into_bytes(&self.volume.clusters, MAX_REPARSE_BYTES)?
            .ok_or_else(missing)?;
        Ok(le16(&value, 10)? & VOLUME_IS_DIRTY != 0)
    }

    /// Whether the system that used the volume means to go on where it was.
    fn is_hibernated(&self) -> Result<bool> {
        let name: Vec<u16> = "hiberfil.sys".encode_utf16().collect();
        let root = self.index(ROOT_RECORD)?;
        let Some(found) = root.find(&name, self.upcase()?)? else {
            return Ok(false);
        };
        let stream = self.stream(&self.volume.file(found)?, &[])?;
        let Some(stream) = stream.filter(|stream| stream.len_bytes() >= 4) else {
            return Ok(false);
        };
        let mut head = [0; 4];
        let content = stream.into_content(&self.volume.clusters)?;
        content.read_exact_at(&mut head, 0)?;
        // Other heads, and none, are left over from systems that went on.
        Ok(head.eq_ignore_ascii_case(b"HIBR"))
    }

    /// Says once what attributes cannot hold; failing over it would take the file's other attributes along.
    fn say_what_is_too_long(&self, number: u64, name: &[u16], len_bytes: u64) {
        let name = String::from_utf16_lossy(name);
        if !self.said_too_long.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "ntfs: the stream {name:?} of file record {number} has {len_bytes} bytes; streams of more than \
                 64 KiB are not shown (said once for each volume)"
            );
        }
    }

    /// What a file is when it is no regular one and no directory: links of all kinds, devices, FIFOs, sockets.
    fn special(
        &self,
        file: &File,
        attributes: u32,
        reparse: Option<&(u32, Vec<u8>)>,
    ) -> Result<Option<Special>> {
        let is_directory = file.record.is_directory();
        let Some((tag, value)) = reparse else {
            if is_directory || attributes & ATTRIBUTE_SYSTEM == 0 {
                return Ok(None);
            }
            let stream = self.stream(file, &[])?;
            // What cannot be read is a file that says so when it is opened.
            let Some(stream) = stream.filter(|stream| !stream.is_encrypted()) else {
                return Ok(None);
            };
            return special::of_interix(attributes, stream.len_bytes(), || {
                let content = stream.into_bytes(&self.volume.clusters, MAX_INTERIX_BYTES)?;
                Ok(content.unwrap_or_default())
            });
        };
        if let Some(target) = link_target(*tag, value)? {
            return Ok(Some(Special::Link(target.into_vec())));
        }
        if is_directory {
            return Ok(None);
        }
        special::of_wsl(*tag, || {
            let Some(stream) = self.volume.stream(file, kind::EXTENDED_ATTRIBUTES, &[])? else {
                return Ok(None);
            };
            let all = stream
                .into_bytes(&self.volume.clusters, MAX_EXTENDED_BYTES)?
                .ok_or_else(|| bad("a file has too long extended attributes"))?;
            let value = special::extended_attribute(&all, special::LXDEV)?;
            value.map(|value| special::lxdev(&value)).transpose()
        })
    }

    fn stream(&self, file: &File, name: &[u16]) -> Result<Option<Stream>> {
        self.volume.stream(file, kind::DATA, name)
    }

    /// The content of a file that has this reparse point of WOF.
    fn system_compressed(&self, file: &File, reparse: &[u8]) -> Result<Arc<dyn ReadAt>> {
        let algorithm = wof::Algorithm::of_reparse_point(reparse)?;
        let stream = |name: &[u16]| {
            self.stream(file, name)?
                .ok_or_else(|| bad("a file compressed by the system lacks a stream"))
        };
        let len_bytes = stream(&[])?.len_bytes();
        let packed = stream(&wof::STREAM)?.into_content(&self.volume.clusters)?;
        let chunks = wof::Chunks::new(packed, algorithm, len_bytes)?;
        Ok(Arc::new(ChunkedFile::new(chunks)?))
    }
}

/// What `$STANDARD_INFORMATION` says, times in 100 ns since 1601.
struct Standard {
    modified: u64,
    changed: u64,
    accessed: u64,
    attributes: u32,
}

impl Standard {
    fn of(file: &File) -> Result<Self> {
        let found = file.record.find(kind::STANDARD_INFORMATION, &[], 0);
        let Some(Value::Resident(value)) = found.map(|attribute| &attribute.value) else {
            return Err(bad("a record says nothing about its file"));
        };
        let value = file.record.bytes(value);
        Ok(Standard {
            modified: le64(value, 8)?,
            changed: le64(value, 16)?,
            accessed: le64(value, 24)?,
            attributes: le32(value, 32)?,
        })
    }
}

impl GuestFs for NtfsFs {
    fn root(&self) -> GuestInode {
        ROOT_RECORD
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let file = self.volume.file(inode)?;
        let standard = Standard::of(&file)?;
        let mut kind = match file.record.is_directory() {
            false => NodeKind::File,
            true => NodeKind::Dir,
        };
        let (mut size_bytes, mut allocated_bytes, mut rdev) = (0, 0, 0);
        let reparse = self.reparse(&file)?;
        let special = self.special(&file, standard.attributes, reparse.as_ref())?;
        if let Some(special) = special {
            match special {
                Special::Plain(own) => kind = own,
                Special::Device(own, (major, minor)) => {
                    kind = own;
                    rdev = device_number(major, minor)
                        .ok_or_else(|| bad("a device has a number that Linux has not"))?;
                }
                Special::Link(target) => {
                    kind = NodeKind::Symlink;
                    size_bytes = target.len() as u64;
                }
            }
        } else if kind == NodeKind::File
            && let Some(stream) = self.stream(&file, &[])?
        {
            size_bytes = stream.len_bytes();
            allocated_bytes = stream.allocated_bytes();
            // The stream itself is a hole.
            if matches!(reparse, Some((TAG_WOF, _)))
                && let Some(packed) = self.stream(&file, &wof::STREAM)?
            {
                allocated_bytes = packed.allocated_bytes();
            }
        }
        let permissions = match kind {
            NodeKind::Dir => 0o755,
            NodeKind::Symlink => 0o777,
            _ => 0o644,
        };
        let read_only = standard.attributes & ATTRIBUTE_READ_ONLY != 0 && kind == NodeKind::File;
        Ok(GuestAttr {
            kind,
            size_bytes,
            allocated_bytes,
            permissions: permissions & if read_only { !0o222 } else { 0o7777 },
            links: links(&file),
            uid: 0,
            gid: 0,
            atime: windows_time(standard.accessed),
            mtime: windows_time(standard.modified),
            ctime: windows_time(standard.changed),
            rdev,
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        match utf16::from_bytes(name.as_bytes()) {
            Some(units) => self.index(dir)?.find(&units, self.upcase()?),
            None => Ok(None),
        }
    }

    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        let (entries, next) = self.index(dir)?.part(cursor)?;
        let entries = entries.into_iter().map(|entry| GuestEntry {
            name: OsString::from_vec(utf16::to_bytes(&entry.name)),
            inode: entry.reference,
            kind: match entry.attributes {
                // The record says whether it is a link.
                bits if bits & ATTRIBUTE_REPARSE != 0 => None,
                bits if bits & ATTRIBUTE_DIRECTORY != 0 => Some(NodeKind::Dir),
                // Or a FIFO or the like.
                bits if bits & ATTRIBUTE_SYSTEM != 0 => None,
                _ => Some(NodeKind::File),
            },
        });
        Ok(Batch {
            entries: entries.collect(),
            next,
        })
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let file = self.volume.file(inode)?;
        let attributes = Standard::of(&file)?.attributes;
        let reparse = self.reparse(&file)?;
        match self.special(&file, attributes, reparse.as_ref())? {
            Some(Special::Link(target)) => Ok(OsString::from_vec(target)),
            _ => Err(Error::new(ErrorKind::Invalid, "not a symbolic link")),
        }
    }

    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let file = self.volume.file(inode)?;
        let mut out = Vec::new();
        for name in self.volume.stream_names(&file)? {
            let Some(stream) = self.stream(&file, &name)? else {
                continue;
            };
            if name == wof::STREAM {
                continue;
            }
            let len_bytes = stream.len_bytes();
            let Some(value) = stream.into_bytes(&self.volume.clusters, MAX_XATTR_BYTES)? else {
                self.say_what_is_too_long(file.number, &name, len_bytes);
                continue;
            };
            let shown = [b"user.", &utf16::to_bytes(&name)[..]].concat();
            out.push((OsString::from_vec(shown), value));
        }
        Ok(out)
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let file = self.volume.file(inode)?;
        let attributes = Standard::of(&file)?.attributes;
        let reparse = self.reparse(&file)?;
        let special = self.special(&file, attributes, reparse.as_ref())?;
        if file.record.is_directory() || special.is_some() {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        if let Some((TAG_WOF, value)) = &reparse {
            return self.system_compressed(&file, value);
        }
        let stream = self.stream(&file, &[])?;
        if let Some((tag, _)) = reparse {
            let has_holes = stream.as_ref().is_some_and(Stream::has_holes);
            check_is_here(tag, attributes, has_holes)?;
        }
        match stream {
            Some(stream) => stream.into_content(&self.volume.clusters),
            // No content at all, which is allowed.
            None => Ok(Arc::new(Vec::new())),
        }
    }
}

/// The names of a file. A record counts the 8.3 alias of a name as a link of its own.
fn links(file: &File) -> u32 {
    let aliases = file.record.attributes.iter().filter(|attribute| {
        let Value::Resident(value) = &attribute.value else {
            return false;
        };
        attribute.kind == kind::FILE_NAME
            && byte(file.record.bytes(value), 65).is_ok_and(|space| space == NAMESPACE_DOS)
    });
    u32::from(file.record.links)
        .saturating_sub(u32::try_from(aliases.count()).unwrap_or(u32::MAX))
        .max(1)
}

/// 100 ns since 1601 as a time.
fn windows_time(ticks: u64) -> std::time::SystemTime {
    const SECONDS_BEFORE_1970: i64 = 11_644_473_600;
    // Neither can be too large for its type.
    let seconds = i64::try_from(ticks / 10_000_000).unwrap_or(i64::MAX);
    let rest = u32::try_from(ticks % 10_000_000).unwrap_or(0);
    time(seconds - SECONDS_BEFORE_1970, rest * 100)
}
