//! NTFS, on `rust-fs-ntfs`.
//!
//! The crate reads the boot sector, MFT records and the entries of directories. It has no state of its
//! own: every call is given the device. Done here: look-ups (through listings that are kept, since the
//! crate would load its case table for each), the blocks of directories (`ntfs_dir`), the contents of
//! streams (`ntfs_data`), reparse points. An inode number is a file reference: the record with the
//! sequence number it must still have above it.
//!
//! Names are matched exactly, as on a Linux file system. The journal is not replayed and a hibernated
//! volume is shown as it is on disk: Windows itself may hold newer data elsewhere.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use fs_ntfs::attr_io::{self, AttrType};
use fs_ntfs::block_io::BlockIo;
use fs_ntfs::mft_io::{self, BootParams};
use fs_ntfs::read;

use super::device::Device;
use super::listings::Listings;
use super::ntfs_data::{self, Stream};
use super::ntfs_dir;
use super::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, time};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::tree::NodeKind;

/// Streams longer than this are not given as attributes (the kernel's limit).
const MAX_XATTR_BYTES: u64 = 64 << 10;
/// Reparse data has at most 16 KiB.
const MAX_REPARSE_BYTES: usize = 16 << 10;

const ATTRIBUTE_READ_ONLY: u32 = 0x1;
const ATTRIBUTE_OFFLINE: u32 = 0x1000;
const ATTRIBUTE_RECALL: u32 = 0x40_0000;

const TAG_MOUNT_POINT: u32 = 0xA000_0003;
const TAG_SYMLINK: u32 = 0xA000_000C;
const TAG_LX_SYMLINK: u32 = 0xA000_001D;
const TAG_DEDUP: u32 = 0x8000_0013;
const TAG_WOF: u32 = 0x8000_0017;
const TAG_HSM: u32 = 0xC000_0004;
const TAG_HSM2: u32 = 0x8000_0006;

/// The record number in a file reference; the sequence number is above it, 0 for "any".
const NUMBER_MASK: u64 = (1 << 48) - 1;
const ATTRIBUTE_REPARSE: u32 = 0x400;
/// How an index entry marks a directory.
const ATTRIBUTE_DIRECTORY: u32 = 0x1000_0000;

/// An open NTFS.
pub struct NtfsFs {
    device: Arc<Device>,
    boot: BootParams,
    listings: Listings,
}

/// The device in the shape of the crate.
pub(super) struct Io<'a>(pub &'a Device);

impl BlockIo for Io<'_> {
    fn read_exact_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        self.0.read(buf, offset).map_err(|error| error.to_string())
    }

    fn write_all_at(&mut self, _offset: u64, _buf: &[u8]) -> Result<(), String> {
        Err("read-only".to_string())
    }

    fn size(&self) -> u64 {
        self.0.volume().len_bytes()
    }
}

impl NtfsFs {
    /// Reads the boot sector and the volume's record.
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Arc<dyn GuestFs>> {
        let device = Arc::new(Device::new(volume));
        let mut io = Io(&device);
        let boot = mft_io::read_boot_params_io(&mut io).map_err(from_ntfs)?;
        let info = read::read_volume_info(&mut io).map_err(from_ntfs)?;
        if info.flags & read::VOLUME_IS_DIRTY != 0 {
            tracing::warn!("ntfs: the volume is marked dirty; it is shown without its journal");
        }
        Ok(Arc::new(NtfsFs {
            device,
            boot,
            listings: Listings::default(),
        }))
    }

    fn io(&self) -> Io<'_> {
        Io(&self.device)
    }

    /// The record number and the record of a file reference.
    fn record(&self, inode: GuestInode) -> Result<(u64, Vec<u8>)> {
        let number = inode & NUMBER_MASK;
        let (_, record) = mft_io::read_mft_record_io(&mut self.io(), number).map_err(from_ntfs)?;
        const IN_USE: u16 = 1;
        let sequence = inode >> 48;
        if mft_io::record_flags(&record) & IN_USE == 0
            || (sequence != 0 && u64::from(mft_io::record_sequence(&record)) != sequence)
        {
            return Err(Error::corrupt(
                "a name leads to a record that is not in use",
            ));
        }
        Ok((number, record))
    }

    fn entries(&self, dir: GuestInode) -> Result<Vec<GuestEntry>> {
        let (number, record) = self.record(dir)?;
        const IS_DIRECTORY: u16 = 2;
        if mft_io::record_flags(&record) & IS_DIRECTORY == 0 {
            return Err(Error::new(ErrorKind::Invalid, "not a directory"));
        }
        let entries = ntfs_dir::entries(&self.device, &self.boot, number, &record)?;
        Ok(entries
            .into_iter()
            .map(|entry| GuestEntry {
                name: entry.name.into(),
                inode: entry.file_record_number | u64::from(entry.sequence) << 48,
                kind: match entry.file_attributes {
                    // The record says whether it is a link.
                    bits if bits & ATTRIBUTE_REPARSE != 0 => None,
                    bits if bits & ATTRIBUTE_DIRECTORY != 0 => Some(NodeKind::Dir),
                    _ => Some(NodeKind::File),
                },
            })
            .collect())
    }

    /// The reparse tag and data of a record.
    fn reparse(&self, number: u64) -> Result<Option<(u32, Vec<u8>)>> {
        let value = read::read_attribute_value_if_present(
            &mut self.io(),
            number,
            AttrType::ReparsePoint,
            None,
        )
        .map_err(from_ntfs)?;
        let Some(value) = value else {
            return Ok(None);
        };
        if value.len() < 8 || value.len() > MAX_REPARSE_BYTES {
            return Err(Error::corrupt("a reparse point has a wrong length"));
        }
        let tag = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        Ok(Some((tag, value)))
    }

    fn stream(&self, number: u64, record: &[u8], name: &str) -> Result<Option<Stream>> {
        ntfs_data::locate(&self.device, &self.boot, number, record, name)
    }
}

/// The target of a link, `None` for reparse points that are no links.
fn link_target(tag: u32, value: &[u8]) -> Result<Option<OsString>> {
    let bad = || Error::corrupt("a link's reparse point makes no sense");
    let u16_at = |at: usize| -> Result<usize> {
        let bytes = value.get(at..at + 2).ok_or_else(bad)?;
        Ok(usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    };
    // Behind the tag and length: where the two names lie, flags (links only), then the names.
    let (names_at, is_relative) = match tag {
        TAG_MOUNT_POINT => (16, false),
        TAG_SYMLINK => (20, u16_at(16)? & 1 != 0),
        TAG_LX_SYMLINK => {
            let target = value.get(12..).filter(|t| !t.is_empty()).ok_or_else(bad)?;
            let target = String::from_utf8_lossy(target).into_owned();
            return Ok(Some(target.into()));
        }
        _ => return Ok(None),
    };
    let name = |at: usize| -> Result<String> {
        let start = names_at + u16_at(at)?;
        let bytes = value.get(start..start + u16_at(at + 2)?).ok_or_else(bad)?;
        let units = bytes
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        Ok(char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect())
    };
    let shown = match name(12)? {
        print if !print.is_empty() => print,
        _ => name(8)?.trim_start_matches("\\??\\").to_string(),
    };
    if shown.is_empty() {
        return Err(bad());
    }
    // A relative target works here once its separators are ours; an absolute one names a drive.
    Ok(Some(match is_relative {
        true => shown.replace('\\', "/").into(),
        false => shown.into(),
    }))
}

impl GuestFs for NtfsFs {
    fn root(&self) -> GuestInode {
        read::ROOT_RECORD_NUMBER
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let (number, record) = self.record(inode)?;
        let stat = read::read_stat(&mut self.io(), number).map_err(from_ntfs)?;
        let mut kind = match stat.is_dir {
            true => NodeKind::Dir,
            false => NodeKind::File,
        };
        let mut size_bytes = if stat.is_dir { 0 } else { stat.size };
        let mut allocated_bytes = 0;
        if let Some((tag, value)) = self.reparse(number)?
            && let Some(target) = link_target(tag, &value)?
        {
            kind = NodeKind::Symlink;
            size_bytes = target.len() as u64;
        } else if kind == NodeKind::File
            && let Some(stream) = self.stream(number, &record, "")?
        {
            size_bytes = stream.len_bytes();
            allocated_bytes = stream.allocated_bytes();
        }
        // A record counts the 8.3 alias of a name as a link of its own.
        let aliases = attr_io::iter_attributes(&record)
            .filter(|location| location.type_code == AttrType::FileName as u32)
            .filter(|location| {
                let start = attr_io::resident_value_start(location);
                start.and_then(|start| record.get(start + 65)) == Some(&2)
            })
            .count() as u32;
        let permissions = match kind {
            NodeKind::Dir => 0o755,
            NodeKind::Symlink => 0o777,
            _ => 0o644,
        };
        let read_only = stat.file_attributes & ATTRIBUTE_READ_ONLY != 0 && kind == NodeKind::File;
        Ok(GuestAttr {
            kind,
            size_bytes,
            allocated_bytes,
            permissions: permissions & if read_only { !0o222 } else { 0o7777 },
            links: u32::from(stat.link_count).saturating_sub(aliases).max(1),
            uid: 0,
            gid: 0,
            atime: windows_time(stat.accessed_nt),
            mtime: windows_time(stat.modified_nt),
            ctime: windows_time(stat.mft_modified_nt),
            rdev: 0,
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        self.listings.lookup(dir, name, || self.entries(dir))
    }

    fn list(&self, dir: GuestInode, _cursor: u64) -> Result<Batch> {
        let entries = self.entries(dir)?;
        self.listings.keep(dir, &entries);
        Ok(Batch {
            entries,
            next: None,
        })
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let (number, _) = self.record(inode)?;
        match self.reparse(number)? {
            Some((tag, value)) => link_target(tag, &value)?,
            None => None,
        }
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "not a symbolic link"))
    }

    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let (number, record) = self.record(inode)?;
        let mut out = Vec::new();
        for name in ntfs_data::stream_names(&self.device, number, &record)? {
            let Some(stream) = self.stream(number, &record, &name)? else {
                continue;
            };
            if stream.len_bytes() > MAX_XATTR_BYTES || name == "WofCompressedData" {
                continue;
            }
            let content = stream.into_content(&self.device, &self.boot)?;
            let mut value = vec![0; content.len_bytes() as usize];
            content.read_exact_at(&mut value, 0)?;
            out.push((format!("user.{name}").into(), value));
        }
        Ok(out)
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (number, record) = self.record(inode)?;
        let stat = read::read_stat(&mut self.io(), number).map_err(from_ntfs)?;
        if stat.is_dir {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        let refuse = |what: &str| {
            Err(Error::new(
                ErrorKind::Unsupported,
                format!("{what} is not read"),
            ))
        };
        match self.reparse(number)? {
            Some((TAG_DEDUP, _)) => return refuse("a deduplicated file"),
            Some((TAG_WOF, _)) => return refuse("a file compressed by the system (WOF)"),
            Some((TAG_HSM | TAG_HSM2, _)) => return refuse("a file moved to other storage"),
            Some(_) if stat.file_attributes & (ATTRIBUTE_OFFLINE | ATTRIBUTE_RECALL) != 0 => {
                return refuse("a file whose content is kept elsewhere");
            }
            _ => {}
        }
        match self.stream(number, &record, "")? {
            Some(stream) => stream.into_content(&self.device, &self.boot),
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
pub(super) fn from_ntfs(error: fs_ntfs::error::Error) -> Error {
    Error::corrupt(format!("ntfs: {}", error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symlink(flags: u32, print: &str) -> Vec<u8> {
        let name: Vec<u8> = print.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut value = TAG_SYMLINK.to_le_bytes().to_vec();
        value.extend([0; 4]);
        value.extend([0; 4]);
        value.extend(0u16.to_le_bytes());
        value.extend((name.len() as u16).to_le_bytes());
        value.extend(flags.to_le_bytes());
        value.extend(name);
        value
    }

    #[test]
    fn link_targets_are_read_and_relative_ones_made_usable() {
        let relative = link_target(TAG_SYMLINK, &symlink(1, r"..\a\b"));
        assert_eq!(relative.unwrap(), Some("../a/b".into()));
        let absolute = link_target(TAG_SYMLINK, &symlink(0, r"C:\Users"));
        assert_eq!(absolute.unwrap(), Some(r"C:\Users".into()));
        assert_eq!(link_target(TAG_WOF, &[0; 20]).unwrap(), None);
        for len in 0..20 {
            assert!(link_target(TAG_SYMLINK, &symlink(1, "abc")[..len]).is_err());
        }
    }
}
