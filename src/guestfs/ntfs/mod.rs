//! NTFS, on `rust-fs-ntfs`.
//!
//! The crate reads the boot sector and parses file records. Done here: the file records themselves
//! (`volume`), directories (`dir`), the contents of streams (`data`), reparse points
//! (`reparse`, `wof`). An inode number is a file reference: the record with the sequence number it must
//! still have above it.
//!
//! Names are matched exactly, as on a Linux file system. The journal is not replayed and a hibernated
//! volume is shown as it is on disk: Windows itself may hold newer data elsewhere.

mod data;
mod dir;
mod reparse;
mod volume;
pub mod wof;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fs_ntfs::attr_io::{self, AttrType};
use fs_ntfs::mft_io;
use fs_ntfs::read;
use fs_ntfs::upcase::UpcaseTable;

use super::chunked::ChunkedFile;
use super::device::Device;
use super::guard::{Budget, Outcome, guarded};
use super::recent::Recent;
use super::utf16;
use super::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, time};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::tree::NodeKind;

use data::Stream;
use dir::Index;
use reparse::{TAG_WOF, check_is_here, link_target};
use volume::{Io, Volume};

/// Streams longer than this are not given as attributes (the kernel's limit).
const MAX_XATTR_BYTES: u64 = 64 << 10;
/// Reparse data has at most 16 KiB.
const MAX_REPARSE_BYTES: u64 = 16 << 10;

const ATTRIBUTE_READ_ONLY: u32 = 0x1;
/// Directories whose indexes are kept, and what these take together.
const KEPT_INDEXES: usize = 64;
const KEPT_INDEX_BYTES: usize = 4 << 20;
/// How a record marks a directory.
const IS_DIRECTORY: u16 = 2;
const ATTRIBUTE_REPARSE: u32 = 0x400;
/// How an index entry marks a directory.
const ATTRIBUTE_DIRECTORY: u32 = 0x1000_0000;

/// An open NTFS.
pub struct NtfsFs {
    volume: Volume,
    /// Read when it is first needed.
    upcase: OnceLock<UpcaseTable>,
    /// Indexes of the directories that were used last.
    indexes: Recent<Index>,
    said_too_long: AtomicBool,
}

impl NtfsFs {
    /// Reads the boot sector, the place of the file records, and the volume's record.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let device = Arc::new(Device::new(volume));
        let info = read::read_volume_info(&mut Io(&device)).map_err(from_ntfs)?;
        if info.flags & read::VOLUME_IS_DIRTY != 0 {
            tracing::warn!("ntfs: the volume is marked dirty; it is shown without its journal");
        }
        let fs = NtfsFs {
            volume: Volume::open(device)?,
            upcase: OnceLock::new(),
            indexes: Recent::new(KEPT_INDEXES, KEPT_INDEX_BYTES),
            said_too_long: AtomicBool::new(false),
        };
        // Guarded by itself: damage that only this meets must not keep the volume from being opened.
        if let Outcome::Done(Ok(true)) = guarded(Budget::CALL, || fs.is_hibernated()) {
            tracing::warn!(
                "ntfs: Windows was hibernated or shut down with Fast Startup; what it had not written to the volume \
                 by then is not shown"
            );
        }
        Ok(Arc::new(fs))
    }

    fn upcase(&self) -> Result<&UpcaseTable> {
        if let Some(table) = self.upcase.get() {
            return Ok(table);
        }
        let table = UpcaseTable::load_io(&mut Io(&self.volume.device)).map_err(from_ntfs)?;
        Ok(self.upcase.get_or_init(|| table))
    }

    fn index(&self, dir: GuestInode) -> Result<Arc<Index>> {
        if let Some(index) = self.indexes.get(dir) {
            return Ok(index);
        }
        let (number, record) = self.volume.record_in_use(dir)?;
        if mft_io::record_flags(&record) & IS_DIRECTORY == 0 {
            return Err(Error::new(ErrorKind::Invalid, "not a directory"));
        }
        let index = Index::open(&self.volume, number, &record)?;
        Ok(self.indexes.put(dir, index.weight_bytes(), index))
    }

    /// The reparse tag and data of a record.
    fn reparse(&self, number: u64, record: &[u8]) -> Result<Option<(u32, Vec<u8>)>> {
        let kind = AttrType::ReparsePoint;
        let Some(stream) = data::locate_kind(&self.volume, number, record, kind, "")? else {
            return Ok(None);
        };
        if !(8..=MAX_REPARSE_BYTES).contains(&stream.len_bytes()) {
            return Err(Error::corrupt("a reparse point has a wrong length"));
        }
        let content = stream.into_content(&self.volume)?;
        let mut value = vec![0; content.len_bytes() as usize];
        content.read_exact_at(&mut value, 0)?;
        let tag = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        Ok(Some((tag, value)))
    }

    /// Whether the system that used the volume means to go on where it was.
    fn is_hibernated(&self) -> Result<bool> {
        let name: Vec<u16> = "hiberfil.sys".encode_utf16().collect();
        let root = self.index(read::ROOT_RECORD_NUMBER)?;
        let Some(found) = root.find(&name, self.upcase()?)? else {
            return Ok(false);
        };
        let (number, record) = self.volume.record_in_use(found)?;
        let stream = self.stream(number, &record, "")?;
        let Some(stream) = stream.filter(|stream| stream.len_bytes() >= 4) else {
            return Ok(false);
        };
        let mut head = [0; 4];
        let content = stream.into_content(&self.volume)?;
        content.read_exact_at(&mut head, 0)?;
        // Other heads, and none, are left over from systems that went on.
        Ok(head.eq_ignore_ascii_case(b"HIBR"))
    }

    /// Says once what attributes cannot hold; failing over it would take the file's other attributes along.
    fn say_what_is_too_long(&self, number: u64, name: &str, len_bytes: u64) {
        if !self.said_too_long.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "ntfs: the stream {name:?} of file record {number} has {len_bytes} bytes; streams of more than \
                 64 KiB are not shown (said once for each volume)"
            );
        }
    }

    fn stream(&self, number: u64, record: &[u8], name: &str) -> Result<Option<Stream>> {
        data::locate(&self.volume, number, record, name)
    }

    /// The content of a file that has this reparse point of WOF.
    fn system_compressed(
        &self,
        number: u64,
        record: &[u8],
        reparse: &[u8],
    ) -> Result<Arc<dyn ReadAt>> {
        let algorithm = wof::Algorithm::of_reparse_point(reparse)?;
        let missing = || Error::corrupt("ntfs: a file compressed by the system lacks a stream");
        let stream = |name| self.stream(number, record, name)?.ok_or_else(missing);
        let len_bytes = stream("")?.len_bytes();
        let packed = stream(wof::STREAM)?.into_content(&self.volume)?;
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
    fn of(record: &[u8]) -> Result<Self> {
        let value = attr_io::iter_attributes(record)
            .find(|location| location.type_code == AttrType::StandardInformation as u32)
            .and_then(|location| attr_io::resident_value_start(&location))
            .and_then(|start| record.get(start..start.checked_add(36)?))
            .ok_or_else(|| Error::corrupt("ntfs: a record says nothing about its file"))?;
        let field = |at: usize, len: usize| {
            let bytes = value[at..at + len].iter().rev();
            bytes.fold(0u64, |all, &byte| all << 8 | u64::from(byte))
        };
        Ok(Standard {
            modified: field(8, 8),
            changed: field(16, 8),
            accessed: field(24, 8),
            attributes: field(32, 4) as u32,
        })
    }
}

impl GuestFs for NtfsFs {
    fn root(&self) -> GuestInode {
        read::ROOT_RECORD_NUMBER
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let (number, record) = self.volume.record_in_use(inode)?;
        let standard = Standard::of(&record)?;
        let mut kind = match mft_io::record_flags(&record) & IS_DIRECTORY {
            0 => NodeKind::File,
            _ => NodeKind::Dir,
        };
        let (mut size_bytes, mut allocated_bytes) = (0, 0);
        let reparse = self.reparse(number, &record)?;
        let tag = reparse.as_ref().map(|(tag, _)| *tag);
        if let Some((tag, value)) = reparse
            && let Some(target) = link_target(tag, &value)?
        {
            kind = NodeKind::Symlink;
            size_bytes = target.len() as u64;
        } else if kind == NodeKind::File
            && let Some(stream) = self.stream(number, &record, "")?
        {
            size_bytes = stream.len_bytes();
            allocated_bytes = stream.allocated_bytes();
            // The stream itself is a hole.
            if tag == Some(TAG_WOF)
                && let Some(packed) = self.stream(number, &record, wof::STREAM)?
            {
                allocated_bytes = packed.allocated_bytes();
            }
        }
        // A record counts the 8.3 alias of a name as a link of its own.
        let aliases = attr_io::iter_attributes(&record)
            .filter(|location| location.type_code == AttrType::FileName as u32)
            .filter(|location| {
                let start = attr_io::resident_value_start(location);
                start.and_then(|start| record.get(start + 65)) == Some(&2)
            })
            .count() as u32;
        let link_count = u16::from_le_bytes([record[18], record[19]]);
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
            links: u32::from(link_count).saturating_sub(aliases).max(1),
            uid: 0,
            gid: 0,
            atime: windows_time(standard.accessed),
            mtime: windows_time(standard.modified),
            ctime: windows_time(standard.changed),
            rdev: 0,
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
                _ => Some(NodeKind::File),
            },
        });
        Ok(Batch {
            entries: entries.collect(),
            next,
        })
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let (number, record) = self.volume.record_in_use(inode)?;
        match self.reparse(number, &record)? {
            Some((tag, value)) => link_target(tag, &value)?,
            None => None,
        }
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "not a symbolic link"))
    }

    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let (number, record) = self.volume.record_in_use(inode)?;
        let mut out = Vec::new();
        for name in data::stream_names(&self.volume, &record)? {
            let Some(stream) = self.stream(number, &record, &name)? else {
                continue;
            };
            if name == wof::STREAM {
                continue;
            }
            if stream.len_bytes() > MAX_XATTR_BYTES {
                self.say_what_is_too_long(number, &name, stream.len_bytes());
                continue;
            }
            let content = stream.into_content(&self.volume)?;
            let mut value = vec![0; content.len_bytes() as usize];
            content.read_exact_at(&mut value, 0)?;
            out.push((format!("user.{name}").into(), value));
        }
        Ok(out)
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (number, record) = self.volume.record_in_use(inode)?;
        let attributes = Standard::of(&record)?.attributes;
        if mft_io::record_flags(&record) & IS_DIRECTORY != 0 {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        let reparse = self.reparse(number, &record)?;
        if let Some((TAG_WOF, value)) = &reparse {
            return self.system_compressed(number, &record, value);
        }
        let stream = self.stream(number, &record, "")?;
        if let Some((tag, _)) = reparse {
            let has_holes = stream.as_ref().is_some_and(Stream::has_holes);
            check_is_here(tag, attributes, has_holes)?;
        }
        match stream {
            Some(stream) => stream.into_content(&self.volume),
            // No content at all, which is allowed.
            None => Ok(Arc::new(Vec::new())),
        }
    }
}

/// 100 ns since 1601 as a time.
fn windows_time(ticks: u64) -> std::time::SystemTime {
    time(read::nt_to_unix(ticks), (ticks % 10_000_000) as u32 * 100)
}

/// The crate's errors as ours. I/O errors arrive as text, but `guard` has kept the real one.
fn from_ntfs(error: fs_ntfs::error::Error) -> Error {
    Error::corrupt(format!("ntfs: {}", error.message()))
}
