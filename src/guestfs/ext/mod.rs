//! ext2, ext3 and ext4, on `rust-fs-ext4`.
//!
//! The crate parses the superblock, group descriptors, inodes, hash trees, inline data and extended
//! attributes, and verifies checksums. Done here: the journal (`journal`), whole runs of
//! file contents (`map`), directories in parts (also the linear ones of ext2/3 and those with
//! 64 KiB blocks, which the crate does not list), ACLs in the kernel's form.

mod error;
mod journal;
mod map;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use fs_ext4::Filesystem;
use fs_ext4::inode::Inode;

use self::error::from_ext;
use self::journal::changes::Changes;
use self::journal::{Header, Journal};
use self::map::InodeMap;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::common::run_file::RunFile;
use crate::guestfs::common::unix::{kind_of_mode, time};
use crate::guestfs::host::device::Device;
use crate::guestfs::{Batch, GuestAttr, GuestEntry, GuestFs, GuestInode, Others};
use crate::io::ReadAt;
use crate::kind::NodeKind;
use crate::volume::bits::le32;

const ROOT: u32 = 2;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EA_INODE: u32 = 0x400;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_HUGE_FILE: u32 = 0x8;
const FLAG_INDEX: u32 = 0x1000;
const FLAG_ENCRYPT: u32 = 0x800;
const FLAG_HUGE_FILE: u32 = 0x4_0000;
const MAX_TARGET_BYTES: u64 = 4096;
/// A part of a listing ends after so many entries or blocks.
const BATCH_ENTRIES: usize = 4096;
const BATCH_BLOCKS: u64 = 256;

/// An open ext file system.
pub struct ExtFs {
    fs: Arc<Filesystem>,
    /// What file contents are read from: the volume, or what its journal makes of it.
    contents: Arc<dyn ReadAt>,
    /// What was synced since the journal's last full commit.
    changes: Changes,
}

impl ExtFs {
    /// Reads the superblock and the group descriptors, and the journal when it is dirty.
    pub fn open(volume: Arc<dyn ReadAt>, others: Others<'_>) -> Result<Arc<dyn GuestFs>> {
        let header = Header::read(&*volume)?;
        let fs = mount(journal::without(volume.clone(), &header)?)?;
        header.warn();
        if !header.needs_recovery() {
            return Ok(Arc::new(ExtFs {
                fs,
                contents: volume,
                changes: Changes::default(),
            }));
        }
        let journal = match header.journal_inode() {
            Some(inode) => journal_in(&fs, inode, volume.clone())?,
            None => Journal::outside(&header, others)?,
        };
        let replayed = journal.replay(volume.clone())?;
        let fs = mount(replayed.volume.clone())?;
        let inode_bytes = usize::from(fs.sb.inode_size);
        let stored = |inode| fs.read_inode_raw(inode).map_err(from_ext);
        let changes = Changes::of(replayed.fast, inode_bytes, &stored)?;
        let contents = match replayed.is_bare {
            true => volume,
            false => replayed.volume,
        };
        Ok(Arc::new(ExtFs {
            fs,
            contents,
            changes,
        }))
    }

    fn inode(&self, number: GuestInode) -> Result<(u32, Inode, Vec<u8>)> {
        let number = u32::try_from(number)
            .ok()
            .filter(|&n| n != 0 && n <= self.fs.sb.inodes_count)
            .ok_or_else(|| Error::corrupt("an inode number is out of range"))?;
        let (mut inode, raw) = match self.changes.inode_of(number) {
            Some(raw) => self.changed_inode(raw)?,
            None => self.fs.read_inode_verified(number).map_err(from_ext)?,
        };
        inode.links_count = self.changes.links_of(number, inode.links_count);
        if inode.links_count == 0 || inode.mode == 0 {
            return Err(Error::corrupt(
                "a name leads to an inode that is not in use",
            ));
        }
        Ok((number, inode, raw))
    }

    /// An inode from a fast commit, which has no checksum of its own.
    fn changed_inode(&self, raw: &[u8]) -> Result<(Inode, Vec<u8>)> {
        let inode = Inode::parse(raw).map_err(from_ext)?;
        // As the crate does: directories have no holes.
        if inode.is_dir() && inode.size > self.contents.len_bytes() {
            return Err(Error::corrupt("a directory is larger than its file system"));
        }
        Ok((inode, raw.to_vec()))
    }

    fn map(&self, number: u32, inode: &Inode) -> InodeMap {
        let map = InodeMap::new(self.fs.clone(), number, inode.clone());
        map.with(self.changes.ranges_of(number))
    }

    fn directory(&self, number: GuestInode) -> Result<(u32, Inode, Vec<u8>)> {
        let (number, inode, raw) = self.inode(number)?;
        if !inode.is_dir() {
            return Err(Error::new(ErrorKind::Invalid, "not a directory"));
        }
        if inode.flags & FLAG_ENCRYPT != 0 {
            return Err(encrypted("the names in an encrypted directory"));
        }
        Ok((number, inode, raw))
    }

    fn has_file_types(&self) -> bool {
        self.fs.sb.feature_incompat & INCOMPAT_FILETYPE != 0
    }

    /// The entries of a directory that is kept in its inode.
    fn inline_entries(&self, number: u32, inode: &Inode, raw: &[u8]) -> Result<Vec<GuestEntry>> {
        let entries = fs_ext4::inline_data::read_dir(
            &*self.fs.dev,
            number,
            inode,
            raw,
            self.fs.sb.inode_size,
            self.fs.sb.block_size(),
            self.has_file_types(),
        )
        .map_err(from_ext)?;
        Ok(entries
            .into_iter()
            .map(|entry| GuestEntry {
                name: OsString::from_vec(entry.name),
                inode: u64::from(entry.inode),
                kind: kind_of_entry(entry.file_type as u8),
            })
            .collect())
    }

    /// Whether a link's target is in its inode and not in a block. Linux goes by whether the link has blocks other
    /// than that of its attributes; where attributes may be inodes, which count as well, by the length.
    fn is_fast_link(&self, inode: &Inode) -> bool {
        if inode.has_extents() {
            return false;
        }
        if self.fs.sb.feature_incompat & INCOMPAT_EA_INODE != 0 {
            return inode.size < inode.block.len() as u64;
        }
        let attributes = match inode.file_acl {
            0 => 0,
            _ => self.cluster_bytes(),
        };
        inode.blocks.saturating_mul(self.unit_bytes(inode)) == attributes
    }

    /// What is allocated at once.
    fn cluster_bytes(&self) -> u64 {
        match self.fs.sb.feature_ro_compat & RO_COMPAT_BIGALLOC {
            0 => u64::from(self.fs.sb.block_size()),
            _ => 1024u64
                .checked_shl(le32(&self.fs.sb.raw, 0x1C))
                .unwrap_or(0),
        }
    }

    /// What `blocks` of an inode counts.
    fn unit_bytes(&self, inode: &Inode) -> u64 {
        let in_blocks = inode.flags & FLAG_HUGE_FILE != 0
            && self.fs.sb.feature_ro_compat & RO_COMPAT_HUGE_FILE != 0;
        match in_blocks {
            true => u64::from(self.fs.sb.block_size()),
            false => 512,
        }
    }

    /// A part of the names that are on the volume.
    fn stored_list(&self, number: u32, inode: &Inode, raw: &[u8], cursor: u64) -> Result<Batch> {
        if inode.has_inline_data() {
            return Ok(Batch {
                entries: self.inline_entries(number, inode, raw)?,
                next: None,
            });
        }
        let mut all = Vec::new();
        let next = self.for_blocks(number, inode, cursor, |logical, entries| {
            all.extend(entries);
            all.len() < BATCH_ENTRIES && logical - cursor < BATCH_BLOCKS
        })?;
        Ok(Batch { entries: all, next })
    }

    /// Calls `each` for the blocks of a directory from `from` on, until it says stop.
    fn for_blocks(
        &self,
        number: u32,
        inode: &Inode,
        from: u64,
        mut each: impl FnMut(u64, Vec<GuestEntry>) -> bool,
    ) -> Result<Option<u64>> {
        let map = self.map(number, inode);
        let blocks = inode.size.div_ceil(u64::from(self.fs.sb.block_size()));
        let mut logical = from;
        while logical < blocks {
            let run = map.block_run(logical)?;
            let Some(physical) = run.physical else {
                logical = run.end;
                continue;
            };
            let block = self.fs.read_block(physical).map_err(from_ext)?;
            if inode.flags & FLAG_INDEX != 0 && is_index_block(&block, logical) {
                logical += 1;
                continue;
            }
            if self.fs.csum.enabled
                && fs_ext4::dir::has_csum_tail(&block)
                && !self
                    .fs
                    .csum
                    .verify_dir_entry_tail(number, inode.generation, &block)
            {
                return Err(Error::corrupt("a directory block has a wrong checksum"));
            }
            logical += 1;
            if !each(logical, parse_block(&block, self.has_file_types())?) {
                return Ok((logical < blocks).then_some(logical));
            }
        }
        Ok(None)
    }
}

/// Whether a block of an indexed directory belongs to the index: the first one (which as a list holds
/// only `.` and `..`), and those that as a list are one unused entry. Their checksum is another one,
/// and behind the index there may be what looks like the tail of an older list.
fn is_index_block(block: &[u8], logical: u64) -> bool {
    let Some(header) = block.get(..6) else {
        return false;
    };
    let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let whole = len == block.len() || (block.len() > 65535 && matches!(len, 0 | 65535));
    logical == 0 || (header[..4] == [0; 4] && whole)
}

/// The entries in use in one block of a directory (`struct ext4_dir_entry_2`).
fn parse_block(block: &[u8], has_file_types: bool) -> Result<Vec<GuestEntry>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(header) = block.get(at..at + 8) {
        let inode = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let stored = usize::from(u16::from_le_bytes([header[4], header[5]]));
        // Blocks of 64 KiB: 0 and 65535 stand for 65536, low bits for high ones
        // (`ext4_rec_len_from_disk`).
        let len = match stored {
            0 | 65535 if block.len() > 65535 => block.len(),
            _ if block.len() > 65535 => (stored & 65532) | ((stored & 3) << 16),
            _ => stored,
        };
        let name_len = match has_file_types {
            true => usize::from(header[6]),
            false => usize::from(u16::from_le_bytes([header[6], header[7]])),
        };
        if len < 8 || len % 4 != 0 || len > block.len() - at {
            return Err(Error::corrupt("a directory entry has a wrong length"));
        }
        if inode != 0 {
            let name = block
                .get(at + 8..at + 8 + name_len)
                .filter(|_| 8 + name_len <= len)
                .ok_or_else(|| Error::corrupt("a name leaves its directory entry"))?;
            entries.push(GuestEntry {
                name: OsStr::from_bytes(name).to_os_string(),
                inode: u64::from(inode),
                kind: has_file_types.then(|| kind_of_entry(header[7])).flatten(),
            });
        }
        at += len;
    }
    Ok(entries)
}

fn kind_of_entry(kind: u8) -> Option<NodeKind> {
    Some(match kind {
        1 => NodeKind::File,
        2 => NodeKind::Dir,
        3 => NodeKind::CharDevice,
        4 => NodeKind::BlockDevice,
        5 => NodeKind::Fifo,
        6 => NodeKind::Socket,
        7 => NodeKind::Symlink,
        _ => return None,
    })
}

impl GuestFs for ExtFs {
    fn root(&self) -> GuestInode {
        u64::from(ROOT)
    }

    fn attr(&self, inode: GuestInode) -> Result<GuestAttr> {
        let (_, inode, _) = self.inode(inode)?;
        let kind = kind_of_mode(u32::from(inode.mode))
            .ok_or_else(|| Error::corrupt("an inode has no known type"))?;
        let unit = self.unit_bytes(&inode);
        let device = |at: usize| {
            let bytes = &inode.block[at..at + 4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let rdev = match kind {
            // The old form (8 bits each) when it is there, else the kernel's own.
            NodeKind::CharDevice | NodeKind::BlockDevice => match device(0) {
                0 => device(4),
                old => old & 0xFFFF,
            },
            _ => 0,
        };
        // As in Linux: `tar -S` takes a file without blocks for one hole.
        let inline = match kind == NodeKind::File && inode.has_inline_data() {
            true => inode.size,
            false => 0,
        };
        Ok(GuestAttr {
            kind,
            size_bytes: inode.size,
            allocated_bytes: inode.blocks.saturating_mul(unit).saturating_add(inline),
            permissions: inode.mode & 0o7777,
            links: u32::from(inode.links_count),
            uid: inode.uid,
            gid: inode.gid,
            atime: time(inode.atime, inode.atime_nsec),
            mtime: time(inode.mtime, inode.mtime_nsec),
            ctime: time(inode.ctime, inode.ctime_nsec),
            rdev,
        })
    }

    fn lookup(&self, dir: GuestInode, name: &OsStr) -> Result<Option<GuestInode>> {
        let (number, inode, raw) = self.directory(dir)?;
        if let Some(changed) = self.changes.lookup(number, name) {
            return Ok(changed.map(u64::from));
        }
        if inode.has_inline_data() {
            let entries = self.inline_entries(number, &inode, &raw)?;
            let found = entries.into_iter().find(|entry| entry.name == name);
            return Ok(found.map(|entry| entry.inode));
        }
        // The crate looks at the inode on the volume.
        if inode.flags & FLAG_INDEX != 0 && !self.changes.is_new(number) {
            let found = self.fs.lookup_at(number, name.as_bytes());
            match found {
                Ok(found) => return Ok(Some(u64::from(found))),
                Err(fs_ext4::Error::NotFound) => return Ok(None),
                // A damaged index: the entries themselves may still be sound.
                Err(_) => {}
            }
        }
        let mut found = None;
        self.for_blocks(number, &inode, 0, |_, entries| {
            found = entries.into_iter().find(|entry| entry.name == name);
            found.is_none()
        })?;
        Ok(found.map(|entry| entry.inode))
    }

    fn list(&self, dir: GuestInode, cursor: u64) -> Result<Batch> {
        let (number, inode, raw) = self.directory(dir)?;
        let mut batch = self.stored_list(number, &inode, &raw, cursor)?;
        if let Some(changed) = self.changes.names_of(number) {
            batch
                .entries
                .retain(|entry| !changed.contains_key(&entry.name));
            if batch.next.is_none() {
                batch
                    .entries
                    .extend(changed.iter().filter_map(|(name, inode)| {
                        Some(GuestEntry {
                            name: name.clone(),
                            inode: u64::from((*inode)?),
                            kind: None,
                        })
                    }));
            }
        }
        Ok(batch)
    }

    fn read_link(&self, inode: GuestInode) -> Result<OsString> {
        let (number, inode, raw) = self.inode(inode)?;
        if !inode.is_symlink() {
            return Err(Error::new(ErrorKind::Invalid, "not a symbolic link"));
        }
        if inode.flags & FLAG_ENCRYPT != 0 {
            return Err(encrypted("the target of an encrypted link"));
        }
        if inode.size == 0 || inode.size > MAX_TARGET_BYTES {
            return Err(Error::corrupt(
                "a symbolic link has a target of a strange length",
            ));
        }
        let mut target = vec![0; inode.size as usize];
        if inode.has_inline_data() {
            let read = fs_ext4::file_io::read_with_raw_verified(
                &self.fs,
                &inode,
                &raw,
                number,
                0,
                inode.size,
                &mut target,
            )
            .map_err(from_ext)?;
            if read != inode.size {
                return Err(Error::corrupt("a symbolic link's target is cut short"));
            }
        } else if self.is_fast_link(&inode) {
            let stored = inode.block.get(..target.len()).ok_or_else(|| {
                Error::corrupt("a symbolic link's target is longer than its inode holds")
            })?;
            target.copy_from_slice(stored);
        } else {
            let map = self.map(number, &inode);
            RunFile::new(self.contents.clone(), map, inode.size)?.read_exact_at(&mut target, 0)?;
        }
        Ok(OsString::from_vec(target))
    }

    fn xattrs(&self, inode: GuestInode) -> Result<Vec<(OsString, Vec<u8>)>> {
        let (_, inode, raw) = self.inode(inode)?;
        let entries =
            fs_ext4::xattr::read_all_resolved(&self.fs, &inode, &raw).map_err(from_ext)?;
        let mut out = Vec::new();
        for entry in entries {
            match entry.name.as_str() {
                // Where inline contents are kept; an encryption context is of no use to anybody.
                "system.data" | "" | "c" => {}
                name @ ("system.posix_acl_access" | "system.posix_acl_default") => {
                    out.push((name.into(), acl_from_disk(&entry.value)?));
                }
                name => out.push((name.into(), entry.value)),
            }
        }
        Ok(out)
    }

    fn open(&self, inode: GuestInode) -> Result<Arc<dyn ReadAt>> {
        let (number, inode, raw) = self.inode(inode)?;
        if !inode.is_file() {
            return Err(Error::new(ErrorKind::Invalid, "not a regular file"));
        }
        if inode.flags & FLAG_ENCRYPT != 0 {
            return Err(encrypted("an encrypted file"));
        }
        let len = inode.size;
        if inode.has_inline_data() {
            let mut content =
                fs_ext4::file_io::read_inline(&self.fs, &inode, &raw).map_err(from_ext)?;
            if len > u64::from(self.fs.sb.block_size()) {
                return Err(Error::corrupt("an inline file is longer than a block"));
            }
            // What was never written of an inline file reads as zeros.
            content.resize(len as usize, 0);
            return Ok(Arc::new(content));
        }
        let map = self.map(number, &inode);
        Ok(Arc::new(RunFile::new(self.contents.clone(), map, len)?))
    }
}

/// An ACL as ext keeps it (`ext4_acl_header`, short entries) in the form of the system calls
/// (`posix_acl_xattr_header`, an id in every entry).
fn acl_from_disk(value: &[u8]) -> Result<Vec<u8>> {
    let bad = || Error::corrupt("an access control list makes no sense");
    let mut rest = value.strip_prefix(&1u32.to_le_bytes()).ok_or_else(bad)?;
    let mut out = 2u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let head = rest.get(..4).ok_or_else(bad)?;
        let tag = u16::from_le_bytes([head[0], head[1]]);
        out.extend_from_slice(head);
        // Only entries of named users (2) and groups (8) have an id on disk.
        if tag == 2 || tag == 8 {
            out.extend_from_slice(rest.get(4..8).ok_or_else(bad)?);
            rest = &rest[8..];
        } else {
            out.extend_from_slice(&u32::MAX.to_le_bytes());
            rest = &rest[4..];
        }
    }
    Ok(out)
}

/// The crate on a volume without a journal. Its own cache is behind one lock; ours is not, so it gets no blocks.
fn mount(volume: Arc<dyn ReadAt>) -> Result<Arc<Filesystem>> {
    let device = Arc::new(Device::new(volume));
    let fs = Filesystem::mount_with_cache(device, 0).map_err(from_ext)?;
    Ok(Arc::new(fs))
}

/// The journal in an inode of its file system.
fn journal_in(fs: &Arc<Filesystem>, number: u32, volume: Arc<dyn ReadAt>) -> Result<Journal> {
    let (inode, _) = fs.read_inode_verified(number).map_err(from_ext)?;
    if !inode.is_file() || inode.has_inline_data() {
        return Err(Error::corrupt("the inode of the journal is not a file"));
    }
    let block_bytes = u64::from(fs.sb.block_size());
    let blocks = inode.size / block_bytes;
    let map = InodeMap::new(fs.clone(), number, inode);
    let mut next = 0;
    let runs =
        std::iter::from_fn(|| {
            if next >= blocks {
                return None;
            }
            Some(map.block_run(next).and_then(|run| {
                let first = next;
                next = run.end;
                match run.physical {
                    Some(physical) => Ok((run.end.min(blocks), physical)),
                    None => Err(Error::corrupt("the journal has holes")
                        .at(first.saturating_mul(block_bytes))),
                }
            }))
        });
    Journal::inside(volume, block_bytes, runs)
}

fn encrypted(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{what} cannot be read without the guest's key"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_blocks_with_wrong_lengths_are_refused() {
        let mut block = vec![0; 1024];
        block[0] = 12;
        block[4..6].copy_from_slice(&12u16.to_le_bytes());
        block[6] = 1;
        block[7] = 2;
        block[8] = b'.';
        block[16..18].copy_from_slice(&1012u16.to_le_bytes());
        assert_eq!(parse_block(&block, true).unwrap().len(), 1);
        for len in [0u16, 4, 13, 2000] {
            let mut bad = block.clone();
            bad[16..18].copy_from_slice(&len.to_le_bytes());
            assert!(parse_block(&bad, true).is_err(), "{len}");
        }
        block[6] = 5;
        assert!(parse_block(&block, true).is_err());
    }

    #[test]
    fn acls_are_given_in_the_form_of_the_system_calls() {
        let disk = [
            &1u32.to_le_bytes()[..],
            &[1, 0, 6, 0],
            &[2, 0, 4, 0, 0xE8, 3, 0, 0],
        ]
        .concat();
        let expected = [
            &2u32.to_le_bytes()[..],
            &[1, 0, 6, 0, 0xFF, 0xFF, 0xFF, 0xFF],
            &[2, 0, 4, 0, 0xE8, 3, 0, 0],
        ]
        .concat();
        assert_eq!(acl_from_disk(&disk).unwrap(), expected);
        assert!(acl_from_disk(&disk[..disk.len() - 1]).is_err());
        assert!(acl_from_disk(&[]).is_err());
    }
}
