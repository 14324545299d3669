//! The replay against what kernels left (`tests/fixtures/guests`): whole, torn and damaged.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::error::ErrorKind;
use crate::guestfs::xfs::XfsFs;
use crate::guestfs::{GuestAttr, GuestFs};
use crate::kind::NodeKind;

/// Inodes of 256 bytes, records with extended headers, around the end of the log.
const POWER_CUT: &str = "xfs-4-power-cut";

fn golden(name: &str) -> Arc<dyn ReadAt> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/guests")
        .join(format!("{name}.img.zst"));
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut bytes = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(file).unwrap();
    std::io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
    Arc::new(bytes)
}

fn ring_of<T>(volume: &Arc<dyn ReadAt>, look: impl FnOnce(&Ring) -> T) -> T {
    let superblock = superblock(volume).unwrap();
    let block_bytes = u64::from(superblock.blocksize);
    look(&Ring {
        device: &Device::new(volume.clone()),
        start: superblock.fsblock_offset(superblock.logstart),
        blocks: u64::from(superblock.logblocks) * block_bytes / BLOCK_BYTES as u64,
        uuid: superblock.uuid,
    })
}

/// First sector and sectors of the records to replay.
fn records(volume: &Arc<dyn ReadAt>) -> Vec<(u64, u64)> {
    ring_of(volume, |ring| {
        let mut found = Vec::new();
        let active = Active::find(ring).unwrap().unwrap();
        active
            .each(ring, |record| {
                found.push((record.at, record.blocks()));
                Ok(())
            })
            .unwrap();
        found
    })
}

/// The volume with other bytes in its log, as pairs of a byte offset in the log and what to combine the byte with.
fn with_log(
    volume: &Arc<dyn ReadAt>,
    edits: impl IntoIterator<Item = (u64, u8)>,
) -> Arc<dyn ReadAt> {
    let start = ring_of(volume, |ring| ring.start);
    let mut changed = Overlay::new(volume.clone(), u64::MAX);
    for (offset, bits) in edits {
        let mut byte = [0];
        changed.read_exact_at(&mut byte, start + offset).unwrap();
        changed.write(start + offset, &[byte[0] ^ bits]).unwrap();
    }
    Arc::new(changed)
}

#[derive(Debug, PartialEq)]
struct Seen {
    attr: GuestAttr,
    content: Vec<u8>,
    attributes: Vec<(std::ffi::OsString, Vec<u8>)>,
}

/// All that a file system shows, by path.
fn tree(fs: &dyn GuestFs) -> BTreeMap<std::path::PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut stack = vec![(std::path::PathBuf::from("/"), fs.root())];
    while let Some((path, inode)) = stack.pop() {
        let attr = fs.attr(inode).unwrap();
        let content = match attr.kind {
            NodeKind::File => {
                let mut bytes = vec![0; attr.size_bytes as usize];
                fs.open(inode)
                    .unwrap()
                    .read_exact_at(&mut bytes, 0)
                    .unwrap();
                bytes
            }
            NodeKind::Symlink => fs.read_link(inode).unwrap().into_encoded_bytes(),
            _ => Vec::new(),
        };
        if attr.kind == NodeKind::Dir {
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                let batch = fs.list(inode, at).unwrap();
                for entry in batch.entries {
                    if entry.name != "." && entry.name != ".." {
                        stack.push((path.join(&entry.name), entry.inode));
                    }
                }
                cursor = batch.next;
            }
        }
        let attributes = fs.xattrs(inode).unwrap();
        seen.insert(
            path,
            Seen {
                attr,
                content,
                attributes,
            },
        );
    }
    seen
}

#[test]
fn the_crate_comes_to_the_same_where_it_can() {
    let volume = golden("xfs-4-dirty");
    let superblock = superblock(&volume).unwrap();
    assert!(replayed(&volume).unwrap().is_none(), "left to the crate");
    let device = Arc::new(Device::new(volume.clone()));
    let ours = replayed_v4(&volume, &device, &superblock).unwrap().unwrap();
    let (ours, theirs) = (XfsFs::on(ours).unwrap(), XfsFs::on(volume).unwrap());
    let (ours, theirs) = (tree(&*ours), tree(&*theirs));
    assert!(theirs.len() > 500);
    assert_eq!(ours.len(), theirs.len());
    for (path, seen) in theirs {
        assert_eq!(ours[&path], seen, "{path:?}");
    }
}

#[test]
fn a_clean_log_is_left_alone() {
    let volume = golden("xfs-4");
    assert!(ring_of(&volume, |ring| Active::find(ring)
        .unwrap()
        .is_none()));
    assert!(replayed(&volume).unwrap().is_none());
    // What the crate is given in place of a dirty one is clean to both.
    let volume = replayed(&golden(POWER_CUT)).unwrap().unwrap();
    assert!(ring_of(&volume, |ring| Active::find(ring)
        .unwrap()
        .is_none()));
}

#[test]
fn the_log_of_the_image_is_worth_a_test() {
    let records = records(&golden(POWER_CUT));
    assert!(records.len() > 10, "{records:?}");
    assert!(records.first().unwrap().0 > records.last().unwrap().0);
    assert!(records.iter().any(|(_, blocks)| *blocks > 64 + 1));
}

#[test]
fn a_record_that_was_being_written_when_the_power_went_does_not_count() {
    let volume = golden(POWER_CUT);
    let all = records(&volume);
    let (last, blocks) = all[all.len() - 1];
    // In its data, so that the cycles are what they should be.
    let torn = with_log(&volume, [(last * 512 + blocks * 512 - 100, 1)]);
    assert_eq!(records(&torn), all[..all.len() - 1]);
    // Its sectors behind the first still hold what was there a cycle ago.
    let older = (1..blocks).map(|block| ((last + block) * 512 + 3, 3));
    let partial = with_log(&volume, older);
    assert_eq!(records(&partial), all[..all.len() - 1]);
    assert!(replayed(&torn).unwrap().is_some());
}

#[test]
fn an_older_record_that_is_damaged_is_an_error_that_names_the_log() {
    let volume = golden(POWER_CUT);
    let (first, _) = records(&volume)[0];
    let damaged = with_log(&volume, [(first * 512 + 512 + 100, 1)]);
    let error = replayed(&damaged).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("log of XFS"), "{error}");
}

/// Checksums keep random damage out, and those who mean it can leave them out.
#[test]
fn hostile_logs_give_errors() {
    let volume = golden(POWER_CUT);
    let all = records(&volume);
    let start = ring_of(&volume, |ring| ring.start);
    let mut unsummed = Overlay::new(volume.clone(), u64::MAX);
    for (at, _) in &all {
        unsummed.write(start + at * 512 + 32, &[0; 4]).unwrap();
    }
    let unsummed: Arc<dyn ReadAt> = Arc::new(unsummed);
    assert!(replayed(&unsummed).unwrap().is_some());
    let (mut state, mut errors) = (0x9E37_79B9_u64, 0);
    let mut random = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % bound
    };
    let ring_bytes = ring_of(&volume, |ring| ring.blocks) * 512;
    for _ in 0..150 {
        let mut edits = Vec::new();
        for _ in 0..=random(20) {
            let (at, blocks) = all[random(all.len() as u64) as usize];
            // Headers and the first items more often than the rest.
            let reach = if random(2) == 0 { 1024 } else { blocks * 512 };
            edits.push(((at * 512 + random(reach)) % ring_bytes, 1 << random(8)));
        }
        match replayed(&with_log(&unsummed, edits)) {
            Ok(_) => {}
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Invalid, "{error}");
                errors += 1;
            }
        }
    }
    assert!(errors > 50, "{errors}");
}
