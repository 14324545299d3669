//! What the fuzz targets run: plain functions from bytes, so that a test on stable drives them, too
//! (`tests/integration/fuzz_bodies.rs`), and they cannot rot.
//!
//! A body only has to come back: panics, and what a fuzzer notices besides (time, memory), are the
//! finds. Where a checksum would keep every change out, the body makes it right again.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use brfs::guestfs::btrfs::block::{Block, SUM_BYTES};
use brfs::guestfs::btrfs::checksum::Checksum;
use brfs::guestfs::btrfs::chunk::Chunk;
use brfs::guestfs::btrfs::dir_item::Records;
use brfs::guestfs::btrfs::extent::{FileExtent, Place};
use brfs::guestfs::btrfs::inode::Inode;
use brfs::guestfs::btrfs::unpack::{Compression, MAX_UNPACKED_BYTES};
use brfs::guestfs::btrfs::{key, roots};
use brfs::guestfs::ntfs::attribute::{Value, parse_list};
use brfs::guestfs::ntfs::boot::Boot;
use brfs::guestfs::ntfs::record::{Record, fix_up};
use brfs::guestfs::ntfs::wof::Algorithm;
use brfs::guestfs::ntfs::{dir, lznt1, reparse, runs, special};
use brfs::image::merge_state::{MergeState, merge_state_file_name, parent_of_merge_state};
use brfs::image::{DiskContext, vhd};
use brfs::io::{Extent, ReadAt};
use brfs::repo::{RestorePoint, date, naming};
use brfs::store::{LocalStore, StorePath};
use brfs::volume::lvm::{config, metadata};
use brfs::volume::{assemble, read_table};

/// A target: its name and what it does with its input.
pub type Body = (&'static str, fn(&[u8]));

/// All but the guest file systems, which are in [`super::guests`].
pub const BODIES: &[Body] = &[
    ("vhd_file", vhd_file),
    ("vhd_directory", vhd_directory),
    ("metadata", metadata_json),
    ("merge_state", merge_state),
    ("partitions", partitions),
    ("lvm_text", lvm_text),
    ("lvm_volume", lvm_volume),
    ("lvm_layers", lvm_layers),
    ("md", md),
    ("wof_chunk", wof_chunk),
    ("ext_journal", ext_journal),
    ("lznt1", lznt1_unit),
    ("ntfs_boot", ntfs_boot),
    ("ntfs_record", ntfs_record),
    ("ntfs_index", ntfs_index),
    ("btrfs_block", btrfs_block),
    ("btrfs_extent", btrfs_extent),
];

/// What tells apart the pieces of inputs that have several.
pub const SEPARATOR: &[u8] = b"\0\xFF--\xFF\0";

/// The pieces of an input, exactly `N`; missing ones are empty.
fn pieces<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data;
    std::array::from_fn(|_| {
        let found = rest
            .windows(SEPARATOR.len())
            .position(|window| window == SEPARATOR);
        let Some(at) = found else {
            return std::mem::take(&mut rest);
        };
        let piece = &rest[..at];
        rest = &rest[at + SEPARATOR.len()..];
        piece
    })
}

/// A VHD file: footer, header, block table, blocks.
pub fn vhd_file(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.truncate(4 << 20);
    fix_vhd(&mut bytes);
    let _ = vhd::Footer::parse(&bytes);
    let _ = bytes.get(512..).map(vhd::Header::parse);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("20260301T013000Z.vhd"), &bytes).unwrap();
    read_disk(dir.path(), "20260301T013000Z.vhd");
}

/// An alias and the parts of a VHD directory: chunk filters, header, footer, block table, one block.
pub fn vhd_directory(data: &[u8]) {
    let [alias, filters, header, footer, table, block] = pieces(data);
    let dir = tempfile::tempdir().unwrap();
    let vhd = dir.path().join("data/a.vhd");
    fs::create_dir_all(vhd.join("blocks/0")).unwrap();
    let mut head = [footer, header].concat();
    // Compressed ones are what they are.
    if (footer.len(), header.len()) == (512, 1024) {
        fix_vhd(&mut head);
    }
    let (footer, header) = head.split_at(footer.len());
    for (name, bytes) in [
        ("chunk-filters.json", filters),
        ("footer", footer),
        ("header", header),
        ("bat", table),
        ("blocks/0/0", block),
    ] {
        fs::write(vhd.join(name), &bytes[..bytes.len().min(4 << 20)]).unwrap();
    }
    fs::write(dir.path().join("20260301T013000Z.alias.vhd"), alias).unwrap();
    read_disk(dir.path(), "20260301T013000Z.alias.vhd");
    read_disk(dir.path(), "data/a.vhd");
}

/// Opens a disk and reads it here and there.
fn read_disk(root: &Path, name: &str) {
    let context = DiskContext::new(Arc::new(LocalStore::open(root).unwrap()), 8 << 20);
    let Ok(disk) = context.open_disk(&StorePath::new(name).unwrap(), None) else {
        return;
    };
    let reader = disk.reader();
    let len = disk.len_bytes();
    let mut buf = vec![0; 64 << 10];
    for offset in [0, 4096, len / 2, len.saturating_sub(1000)] {
        let left = len.saturating_sub(offset).min(buf.len() as u64);
        let _ = reader.read_exact_at(&mut buf[..left as usize], offset);
        if offset < len
            && let Ok(Extent { end, .. }) = disk.extent_at(offset)
        {
            assert!(end > offset && end <= len);
        }
    }
    let _ = disk.allocated_bytes();
    let _ = disk.problems(&disk.checked_links(&Default::default()));
}

/// Footer and header get the checksums that their bytes have.
fn fix_vhd(bytes: &mut [u8]) {
    for (start, len, field) in [(0, 512, 64), (512, 1024, 36)] {
        let Some(part) = bytes.get_mut(start..start + len) else {
            return;
        };
        part[field..field + 4].fill(0);
        let sum: u32 = part.iter().map(|&byte| u32::from(byte)).sum();
        part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
    // The copy at the end of a file.
    let end = bytes.len().saturating_sub(512);
    if end >= 1536 {
        bytes.copy_within(..512, end);
    }
}

/// The JSON of a restore point, and a name for it and its VM.
pub fn metadata_json(data: &[u8]) {
    let [name, json] = pieces(data);
    // From a listing: never empty, no slash.
    let name = format!("2{}", String::from_utf8_lossy(name).replace('/', "-"));
    let point = RestorePoint::parse(&StorePath::root(), &name, None, json);
    let _ = (point.note(), point.time());
    let _ = date::system_time(&name);
    let _ = (date::day_of(&name), date::prefix_of_day(&name));
    if let Some(shown) = naming::sanitize(&name) {
        assert!(!shown.contains('/') && !shown.contains('\0'));
    }
    let shown = naming::vm_folder_name(Some(&name), "a6e898cb-777d-4f29-a073-ec9ff70ed330", true);
    assert!(!shown.contains('/') && shown.len() <= 255);
    let _ = naming::id_of_vm_folder_name(&name);
}

/// The state of a merge.
pub fn merge_state(data: &[u8]) {
    let _ = MergeState::parse(data);
    let text = String::from_utf8_lossy(data);
    let _ = parent_of_merge_state(&text);
    assert_eq!(
        parent_of_merge_state(&merge_state_file_name("a.vhd")),
        Some("a.vhd")
    );
}

/// A disk: MBR, GPT, and what its partitions hold.
pub fn partitions(data: &[u8]) {
    let mut disk = data.to_vec();
    disk.truncate(8 << 20);
    fix_gpt(&mut disk);
    if let Ok(table) = read_table(&disk) {
        for partition in &table.partitions {
            let end = partition.start_bytes + partition.len_bytes;
            assert!(end <= disk.len() as u64);
        }
    }
    let _ = assemble(&[("xvda".into(), Arc::new(disk) as Arc<dyn ReadAt>)]);
}

/// The GPT's first copy gets the checksums that its bytes have.
fn fix_gpt(disk: &mut [u8]) {
    let entries = disk.get(1024..1024 + 128 * 128).map(crc32);
    let Some(header) = disk.get_mut(512..604) else {
        return;
    };
    if let Some(entries) = entries {
        header[88..92].copy_from_slice(&entries.to_le_bytes());
    }
    header[16..20].fill(0);
    let sum = crc32(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}

/// The text of LVM metadata.
pub fn lvm_text(data: &[u8]) {
    let _ = config::parse(data);
    let _ = metadata::parse(data);
}

/// The text of LVM metadata on a volume that it describes: sound label, sound checksums.
pub fn lvm_volume(data: &[u8]) {
    let mut text = data.to_vec();
    text.truncate(60 << 10);
    let id = id_of_volume(&text, 0);
    read_groups(vec![physical_volume(&id, &text)]);
}

/// The text of LVM metadata, and what two physical volumes hold behind it: records and bitmaps of RAID, stores of
/// snapshots, metadata of thin pools and caches, with sound checksums.
pub fn lvm_layers(data: &[u8]) {
    let [text, first, second] = pieces(data);
    let text = &text[..text.len().min(60 << 10)];
    let disks = [first, second].into_iter().zip(0..).map(|(bytes, number)| {
        let mut disk = physical_volume(&id_of_volume(text, number), text);
        let mut bytes = bytes[..bytes.len().min(16 << 20)].to_vec();
        fix_device_mapper(&mut bytes);
        disk.truncate(DATA_AT);
        disk.extend(bytes);
        disk
    });
    read_groups(disks.collect());
}

fn read_groups(disks: Vec<Vec<u8>>) {
    let disks: Vec<(String, Arc<dyn ReadAt>)> = disks
        .into_iter()
        .zip(["xvda", "xvdb"])
        .map(|(bytes, name)| (name.to_owned(), Arc::new(bytes) as Arc<dyn ReadAt>))
        .collect();
    for group in &assemble(&disks).groups {
        for volume in &group.volumes {
            let bytes = &volume.volume;
            let len = bytes.len_bytes();
            let mut buf = vec![0; 4096];
            for offset in [0, len / 2, len.saturating_sub(4096)] {
                let take = (len - offset.min(len)).min(4096) as usize;
                let _ = bytes.read_exact_at(&mut buf[..take], offset);
                if offset < len
                    && let Ok(Extent { end, .. }) = bytes.extent_at(offset)
                {
                    assert!(end > offset && end <= len);
                }
            }
        }
    }
}

/// Blocks that look like those of thin pools and caches get the checksums that their bytes have, and their place
/// if they say one of the first blocks (it counts from where the metadata begins, which only the text tells).
fn fix_device_mapper(bytes: &mut [u8]) {
    const THIN: u64 = 27_022_010;
    const CACHE: u64 = 0o6_142_003;
    for block in bytes.chunks_exact_mut(4096) {
        let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        let half = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
        let xor: u32 = match word(32) {
            THIN => 160_774,
            CACHE => 9_031_977,
            _ if matches!(half(4), 1 | 2) && half(24) == 8 => 121_107,
            _ if half(12) == 8 && half(4) == 509 => 595_846_735,
            _ => continue,
        };
        let sum = block[4..].iter().fold(u32::MAX, |mut register, &byte| {
            register ^= u32::from(byte);
            for _ in 0..8 {
                register = (register >> 1) ^ (0x82F6_3B78 & (register & 1).wrapping_neg());
            }
            register
        });
        block[..4].copy_from_slice(&(sum ^ xor).to_le_bytes());
    }
}

/// The id that the text gives a physical volume, without its dashes.
fn id_of_volume(text: &[u8], number: usize) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let id = text
        .split_once(&format!("pv{number} {{"))
        .and_then(|(_, behind)| behind.split_once("id = \""))
        .and_then(|(_, behind)| behind.split_once('"'));
    let mut id: Vec<u8> = id
        .map_or("", |(id, _)| id)
        .bytes()
        .filter(|&byte| byte != b'-')
        .collect();
    id.resize(32, b'0');
    id
}

const AREA: usize = 4096;
const AREA_BYTES: usize = 64 << 10;
/// Where what is behind the metadata begins.
pub const DATA_AT: usize = AREA + AREA_BYTES;

fn physical_volume(id: &[u8], text: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 2 << 20];
    let put = |disk: &mut [u8], at: usize, bytes: &[u8]| {
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let label = &mut disk[512..1024];
    put(label, 0, b"LABELONE\x01");
    put(label, 20, &[32, 0, 0, 0]);
    put(label, 24, b"LVM2 001");
    put(label, 32, &id[..32]);
    put(label, 64, &(2u64 << 20).to_le_bytes());
    put(label, 72, &(1u64 << 20).to_le_bytes());
    put(label, 104, &(AREA as u64).to_le_bytes());
    put(label, 112, &(AREA_BYTES as u64).to_le_bytes());
    let sum = lvm_sum(&label[20..]);
    put(label, 16, &sum.to_le_bytes());
    put(&mut disk, AREA + 512, text);
    let area = &mut disk[AREA..AREA + 512];
    put(area, 4, b" LVM2 x[5A%r0N*>\x01");
    put(area, 24, &(AREA as u64).to_le_bytes());
    put(area, 32, &(AREA_BYTES as u64).to_le_bytes());
    put(area, 40, &512u64.to_le_bytes());
    put(area, 48, &(text.len() as u64).to_le_bytes());
    put(area, 56, &lvm_sum(text).to_le_bytes());
    let sum = lvm_sum(&area[4..]);
    put(area, 0, &sum.to_le_bytes());
    disk
}

/// Up to four members of md arrays, with superblocks of version 1.2.
pub fn md(data: &[u8]) {
    let members: [&[u8]; 4] = pieces(data);
    let disks: Vec<(String, Arc<dyn ReadAt>)> = members
        .iter()
        .zip(["xvda", "xvdb", "xvdc", "xvdd"])
        .filter(|(bytes, _)| !bytes.is_empty())
        .map(|(bytes, name)| {
            let mut bytes = bytes.to_vec();
            fix_md(&mut bytes);
            (name.to_owned(), Arc::new(bytes) as Arc<dyn ReadAt>)
        })
        .collect();
    for array in assemble(&disks).arrays {
        let len = array.volume.len_bytes();
        let mut buf = vec![0; 16 << 10];
        for offset in [0, len / 2, len.saturating_sub(16 << 10)] {
            let take = (len - offset.min(len)).min(16 << 10) as usize;
            let _ = array.volume.read_exact_at(&mut buf[..take], offset);
        }
    }
}

fn fix_md(disk: &mut [u8]) {
    let Some(block) = disk.get_mut(4096..8192) else {
        return;
    };
    let roles = u32::from_le_bytes(block[220..224].try_into().unwrap()) as usize;
    let len = (256 + roles.min(1920) * 2).next_multiple_of(4);
    block[216..220].fill(0);
    let sum: u64 = block[..len]
        .chunks_exact(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
        .sum();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    block[216..220].copy_from_slice(&sum.to_le_bytes());
}

/// A chunk of a file that Windows compressed: the number of the algorithm, the length of what was packed less
/// one (16 bits), and the chunk.
pub fn wof_chunk(data: &[u8]) {
    let [number, low, high, packed @ ..] = data else {
        return;
    };
    let mut reparse_point = vec![0; 24];
    for (at, value) in [(8, 1), (12, 2), (16, 1), (20, *number)] {
        reparse_point[at] = value;
    }
    let Ok(algorithm) = Algorithm::of_reparse_point(&reparse_point) else {
        return;
    };
    let len = 1 + u64::from(u16::from_le_bytes([*low, *high])) % algorithm.chunk_bytes();
    let [zeros, ones] = [0, 0xFF].map(|byte| {
        let mut out = vec![byte; len as usize];
        algorithm.unpack(packed, &mut out).map(|()| out)
    });
    // What is given was all unpacked: nothing is left of what was there before.
    assert_eq!(zeros.ok(), ones.ok());
}

/// A compressed unit of NTFS.
pub fn lznt1_unit(data: &[u8]) {
    if let Ok(plain) = lznt1::unpack(data, 64 << 10) {
        assert_eq!(plain.len(), 64 << 10);
    }
}

/// The boot sector of an NTFS.
pub fn ntfs_boot(data: &[u8]) {
    if let Ok(boot) = Boot::parse(data) {
        assert!(boot.cluster_bytes.is_power_of_two() && boot.cluster_bytes <= 2 << 20);
        assert!(boot.record_bytes.is_power_of_two() && boot.record_bytes <= 64 << 10);
        let _ = boot.table_start();
    }
}

/// A file record of NTFS with all that can be in it; its update sequence is made right.
pub fn ntfs_record(data: &[u8]) {
    let mut bytes = data.to_vec();
    protect(&mut bytes, b"FILE");
    let Ok(record) = Record::parse(bytes) else {
        return;
    };
    for attribute in &record.attributes {
        match &attribute.value {
            Value::Resident(value) => {
                let value = record.bytes(value);
                let _ = parse_list(value);
                let _ = special::extended_attribute(value, special::LXDEV);
                if let Some(tag) = value.first_chunk() {
                    let _ = reparse::link_target(u32::from_le_bytes(*tag), value);
                }
            }
            Value::Clusters(part) => {
                let mut found = Vec::new();
                let list = record.bytes(&part.runs);
                let first = part.first_cluster;
                if let Ok(end) = runs::decode(list, first, 4096, &mut found) {
                    let count: u64 = found.iter().map(|run| run.count).sum();
                    assert_eq!(count, end - first);
                }
            }
        }
    }
}

/// A block of an NTFS directory; its update sequence is made right.
pub fn ntfs_index(data: &[u8]) {
    let mut bytes = data.to_vec();
    protect(&mut bytes, b"INDX");
    if fix_up(&mut bytes, b"INDX").is_ok() {
        let _ = dir::nodes(&bytes, dir::BLOCK_HEADER);
    }
}

/// Makes the ends of all 512 bytes what the update sequence says.
fn protect(bytes: &mut Vec<u8>, magic: &[u8; 4]) {
    bytes.truncate(64 << 10);
    bytes.resize(bytes.len().next_multiple_of(512).max(512), 0);
    bytes[..4].copy_from_slice(magic);
    let at = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    let words = bytes.len() / 512 + 1;
    bytes[6..8].copy_from_slice(&(words as u16).to_le_bytes());
    if let Some(&[low, high]) = bytes.get(at..at + 2) {
        for stride in bytes.chunks_exact_mut(512) {
            stride[510..].copy_from_slice(&[low, high]);
        }
    }
}

/// A tree block of btrfs, with what is in it; its checksum (CRC-32C) is made right.
pub fn btrfs_block(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.truncate(64 << 10);
    if let Some((field, summed)) = bytes.split_at_mut_checked(SUM_BYTES) {
        field[..4].copy_from_slice(&crc32c(summed).to_le_bytes());
    }
    let Some(identity) = bytes.get(0x20..0x38) else {
        return;
    };
    let uuid: [u8; 16] = identity[..16].try_into().unwrap();
    let address = u64::from_le_bytes(identity[16..].try_into().unwrap());
    let Ok(block) = Block::parse(bytes, address, Checksum::Crc32c, &[uuid]) else {
        return;
    };
    let mut last = None;
    for index in 0..block.count() {
        let key = block.key(index).unwrap();
        assert!(last.replace(key).is_none_or(|last| last < key));
        assert_eq!(block.partition_point(|before| before < key), index);
        match block.level {
            0 => btrfs_item(key, block.item(index).unwrap().1),
            _ => assert_eq!(block.pointer(index).unwrap().key, key),
        }
    }
    assert_eq!(
        (block.key(block.count()), block.item(block.count())),
        (None, None)
    );
}

/// What is in a tree, by the type that it is filed under.
fn btrfs_item(key: key::Key, item: &[u8]) {
    match key.key_type {
        key::INODE_ITEM => drop(Inode::parse(key.objectid, item)),
        key::DIR_ITEM | key::DIR_INDEX | key::XATTR_ITEM => {
            let mut bytes = 0;
            for record in Records::of(item).flatten() {
                let _ = (record.kind(), record.is_attribute());
                bytes += record.name.len() + record.value.len();
            }
            assert!(bytes <= item.len());
        }
        key::EXTENT_DATA => {
            if let Ok(extent) = FileExtent::parse(item)
                && let Place::Extent {
                    within, len_bytes, ..
                } = extent.place
            {
                assert!(within.checked_add(len_bytes).unwrap() <= extent.unpacked_bytes);
            }
        }
        key::ROOT_ITEM => drop(roots::parse(item)),
        key::CHUNK_ITEM => drop(Chunk::parse(key.offset, item, 4096)),
        _ => {}
    }
}

/// A compressed extent of btrfs: the number of the compression (and, above 127, whether it may be short), its
/// length (16 bits, in units of 3 bytes), and what is stored. A sector has 16 bytes, so that LZO's pieces meet
/// the ends of many.
pub fn btrfs_extent(data: &[u8]) {
    let [number, low, high, packed @ ..] = data else {
        return;
    };
    let Ok(Some(method)) = Compression::from_number(number & 0x7F) else {
        return;
    };
    let len = 3 * usize::from(u16::from_le_bytes([*low, *high]));
    if let Ok(bytes) = method.unpack(packed, len, 16, number & 0x80 != 0) {
        assert_eq!(bytes.len(), len);
        assert!(len <= MAX_UNPACKED_BYTES);
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !crc(u32::MAX, bytes)
}

fn crc32c(bytes: &[u8]) -> u32 {
    !crc32c_register(u32::MAX, bytes)
}

fn lvm_sum(bytes: &[u8]) -> u32 {
    crc(0xF597_A6CF, bytes)
}

fn crc(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |mut register, &byte| {
        register ^= u32::from(byte);
        for _ in 0..8 {
            register = (register >> 1) ^ (0xEDB8_8320 & (register & 1).wrapping_neg());
        }
        register
    })
}

/// Blocks of the file system that [`ext_journal`] makes, the first of its journal, and the first of its fast commits.
pub const EXT_BLOCKS: [usize; 3] = [1600, 64, 64 + 1025];
/// How many blocks of the journal's log it takes, and how many of fast commits.
pub const EXT_PIECES: [usize; 2] = [48, 31];

/// An ext4 with blocks of 1 KiB: what comes before its journal, the start of that, and its fast commits, whose checksums
/// are made right.
pub fn ext_journal(data: &[u8]) {
    const BLOCK: usize = 1024;
    let [head, log, fast] = pieces(data);
    let [blocks, journal, commits] = EXT_BLOCKS;
    let [log_blocks, fast_blocks] = EXT_PIECES;
    let mut volume = vec![0; blocks * BLOCK];
    for (at, piece, most) in [
        (0, head, journal),
        (journal, log, log_blocks),
        (commits, fast, fast_blocks),
    ] {
        let piece = &piece[..piece.len().min(most * BLOCK)];
        volume[at * BLOCK..][..piece.len()].copy_from_slice(piece);
    }
    let mut sum = 0;
    for block in volume[commits * BLOCK..][..fast_blocks * BLOCK].chunks_mut(BLOCK) {
        let mut at = 0;
        while at + 4 <= block.len() {
            const TAIL: u16 = 8;
            let field = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
            let (tag, len) = (field(at), usize::from(field(at + 2)));
            let end = at + 4 + len;
            if end > block.len() {
                break;
            }
            if tag == TAIL && len >= 8 {
                let right = crc32c_register(sum, &block[at..at + 8]);
                block[at + 8..at + 12].copy_from_slice(&right.to_le_bytes());
                sum = 0;
            } else {
                sum = crc32c_register(sum, &block[at..end]);
            }
            at = end;
        }
    }
    super::guests::look_at(Arc::new(volume));
}

/// CRC-32C without inversions.
fn crc32c_register(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, &byte| {
        (0..8).fold(register ^ u32::from(byte), |r, _| match r & 1 {
            1 => r >> 1 ^ 0x82F6_3B78,
            _ => r >> 1,
        })
    })
}
