//! Linux md arrays: put together from members in any order, and left out where a byte could be wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::guest_support::{context_of, differences, golden, golden_text, walk};
use crate::support::md;
use crate::support::reading::read_some;
use brfs::error::{Error, ErrorKind, Result};
use brfs::io::ReadAt;
use brfs::tree::Node;
use brfs::views::guest::{GuestContext, OpenDisk, md_root};
use brfs::volume::Problem;
use brfs::volume::md::{Array, Member, assemble_arrays};

const CHUNK: usize = 4096;

fn array(level: i32, disks: u32) -> md::Array {
    md::Array {
        level,
        layout: 0,
        chunk_bytes: CHUNK as u32,
        disks,
        events: 5,
        dropped: None,
    }
}

/// A member whose data is chunks filled with these bytes.
fn member(array: md::Array, role: u16, chunks: &[u8]) -> Vec<u8> {
    let data: Vec<u8> = chunks.iter().flat_map(|&byte| [byte; CHUNK]).collect();
    md::member(array, role, &data)
}

fn assemble(disks: Vec<Vec<u8>>) -> (Vec<Array>, Vec<Problem>) {
    let members: Vec<Member> = disks
        .into_iter()
        .enumerate()
        .map(|(index, disk)| Member {
            place: format!("disk{index}"),
            volume: Arc::new(disk),
        })
        .collect();
    assemble_arrays(&members)
}

fn chunks(array: &Array) -> Vec<u8> {
    let mut bytes = vec![0; array.volume.len_bytes() as usize];
    array.volume.read_exact_at(&mut bytes, 0).unwrap();
    bytes.chunks(CHUNK).map(|chunk| chunk[0]).collect()
}

#[test]
fn a_superblock_is_believed_only_with_its_checksum() {
    let sound = member(array(1, 1), 0, &[1]);
    assert_eq!(assemble(vec![sound.clone()]).0.len(), 1);
    let mut damaged = sound;
    damaged[4096 + 92] ^= 1;
    for disk in [damaged, vec![0; 64 << 10], vec![0; 100], Vec::new()] {
        let (arrays, problems) = assemble(vec![disk]);
        assert_eq!((arrays.len(), problems.len()), (0, 1));
    }
}

#[test]
fn stripes_are_taken_in_turn_whatever_the_order_of_disks() {
    let striped = array(0, 2);
    let disks = vec![
        member(striped, 1, &[2, 4, 6]),
        member(striped, 0, &[1, 3, 5]),
    ];
    let (arrays, problems) = assemble(disks);
    assert!(problems.is_empty());
    assert_eq!(arrays[0].name, "data");
    assert_eq!(chunks(&arrays[0]), [1, 2, 3, 4, 5, 6]);
    let (arrays, problems) = assemble(vec![member(striped, 0, &[1])]);
    assert_eq!(
        (arrays.len(), problems.len()),
        (0, 1),
        "a stripe is missing"
    );
}

#[test]
fn unequal_stripes_need_a_layout() {
    let disks = |layout: u32| {
        let unequal = md::Array {
            layout,
            ..array(0, 3)
        };
        vec![
            member(unequal, 0, &[1]),
            member(unequal, 1, &[2, 4, 6]),
            member(unequal, 2, &[3, 5, 7]),
        ]
    };
    assert!(assemble(disks(0)).0.is_empty());
    assert_eq!(chunks(&assemble(disks(2)).0[0]), [1, 2, 3, 4, 5, 6, 7]);
    // Chunk 3 of the array is on member 3 % 2 of the two that are left.
    assert_eq!(chunks(&assemble(disks(1)).0[0]), [1, 2, 3, 5, 4, 7, 6]);
}

#[test]
fn a_mirror_reads_from_the_copy_that_is_current() {
    let stale = md::Array {
        events: 2,
        ..array(1, 2)
    };
    let disks = vec![member(stale, 0, &[9, 9]), member(array(1, 2), 1, &[1, 2])];
    let (arrays, problems) = assemble(disks);
    assert_eq!(chunks(&arrays[0]), [1, 2]);
    assert_eq!(problems.len(), 1);
}

#[test]
fn a_member_that_failed_one_event_ago_is_not_current() {
    // It does not know, and a clean stop can leave members as far apart.
    let before = md::Array {
        events: 4,
        ..array(1, 2)
    };
    let after = md::Array {
        dropped: Some(0),
        ..array(1, 2)
    };
    let disks = vec![member(before, 0, &[9, 9]), member(after, 1, &[1, 2])];
    let (arrays, problems) = assemble(disks);
    assert_eq!(chunks(&arrays[0]), [1, 2]);
    assert!(
        format!("{problems:?}").contains("out of date"),
        "{problems:?}"
    );
    let disks = vec![member(before, 0, &[1, 2]), member(array(1, 2), 1, &[1, 2])];
    let (arrays, problems) = assemble(disks);
    assert_eq!((chunks(&arrays[0]), problems.len()), (vec![1, 2], 0));
}

#[test]
fn linear_arrays_follow_one_another_and_unknown_levels_are_left_out() {
    let linear = array(-1, 2);
    let (arrays, _) = assemble(vec![member(linear, 1, &[3]), member(linear, 0, &[1, 2])]);
    assert_eq!(chunks(&arrays[0]), [1, 2, 3]);
    let (arrays, problems) = assemble(vec![member(array(-5, 3), 0, &[1])]);
    assert_eq!((arrays.len(), problems.len()), (0, 1));
}

/// RAID 5 as mdadm makes it (layout 2) over three members, with these members left out.
fn raid5(without: &[usize], clean: bool) -> (Vec<Array>, Vec<Problem>) {
    let parity = md::Array {
        layout: 2,
        ..array(5, 3)
    };
    let rows = [[1, 2, 1 ^ 2], [4, 3 ^ 4, 3], [5 ^ 6, 5, 6]];
    let disks = (0..3)
        .filter(|number| !without.contains(number))
        .map(|number| {
            let mut disk = member(parity, number as u16, &rows.map(|row| row[number]));
            if !clean {
                // A resync that has not begun. Words of all ones and of zeros make the same checksum.
                disk[4096 + 208..4096 + 216].fill(0);
            }
            disk
        })
        .collect();
    assemble(disks)
}

/// The member that has chunk 1, 2 … of [`raid5`].
fn raid5_member(chunk: usize) -> usize {
    [0, 1, 2, 0, 1, 2][chunk - 1]
}

#[test]
fn parity_stands_in_for_one_member_of_a_clean_array() {
    let (arrays, problems) = raid5(&[], true);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(chunks(&arrays[0]), [1, 2, 3, 4, 5, 6]);
    assert_eq!(chunks(&raid5(&[], false).0[0]), [1, 2, 3, 4, 5, 6]);
    for gone in 0..3 {
        let (arrays, problems) = raid5(&[gone], true);
        assert_eq!(chunks(&arrays[0]), [1, 2, 3, 4, 5, 6], "without {gone}");
        assert_eq!(problems.len(), 1);
        // Parity that may not fit is not used: what the others hold is there, the rest is an error.
        let array = &raid5(&[gone], false).0[0];
        let read = (0..6).map(|chunk| {
            let mut byte = [0];
            let at = (chunk * CHUNK) as u64;
            let read = array.volume.read_exact_at(&mut byte, at);
            read.is_ok().then_some(usize::from(byte[0]))
        });
        let there: Vec<Option<usize>> = read.collect();
        let expected = (1..=6).map(|n| (raid5_member(n) != gone).then_some(n));
        assert_eq!(there, expected.collect::<Vec<_>>(), "without {gone}");
    }
    assert!(raid5(&[0, 1], true).0.is_empty());
}

#[test]
fn raid_10_is_read_from_whatever_copy_is_there() {
    let near = md::Array {
        layout: 0x102,
        ..array(10, 3)
    };
    // a a b / b c c
    let rows = [[1, 1, 2], [2, 3, 3]];
    let disk = |number: usize| member(near, number as u16, &rows.map(|row| row[number]));
    let (arrays, problems) = assemble(vec![disk(2), disk(0), disk(1)]);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(chunks(&arrays[0]), [1, 2, 3]);
    for gone in 0..3 {
        let left = (0..3).filter(|number| *number != gone).map(disk).collect();
        assert_eq!(chunks(&assemble(left).0[0]), [1, 2, 3]);
    }
    let (arrays, _) = assemble(vec![disk(0)]);
    let mut byte = [0];
    let mut read = |chunk: usize| {
        arrays[0]
            .volume
            .read_exact_at(&mut byte, (chunk * CHUNK) as u64)
    };
    assert!(read(0).is_ok() && read(1).is_ok());
    assert!(read(2).is_err(), "both copies are gone");
}

#[test]
fn a_file_system_over_two_disks_is_as_the_kernel_shows_it() {
    let image = golden("ext2-1k");
    let mut bytes = vec![0; image.len_bytes() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    let mut halves = [Vec::new(), Vec::new()];
    for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
        halves[index % 2].extend_from_slice(chunk);
    }
    let member = |half: &[u8], role| Arc::new(md::member(array(0, 2), role, half));
    let disks = context_of(vec![
        ("xvda", member(&halves[0], 0)),
        ("xvdb", member(&halves[1], 1)),
    ]);
    let root = md_root(disks);
    assert!(root.lookup("data.raw".as_ref()).unwrap().is_some());
    let Some(Node::Dir(files)) = root.lookup("data".as_ref()).unwrap() else {
        panic!("the array is a directory");
    };
    let different = differences(&golden_text("ext2-1k.manifest"), walk(&*files));
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Without the disk that cannot be read for now, the member that the array went on without would be taken for it.
#[test]
fn a_disk_that_fails_for_now_is_waited_for() {
    let old = Arc::new(member(array(1, 2), 0, b"old"));
    let newer = md::Array {
        events: 9,
        ..array(1, 2)
    };
    let new = Arc::new(member(newer, 1, b"new"));
    for at_opening in [true, false] {
        let fails = Arc::new(AtomicBool::new(true));
        let (old, new, still) = (old.clone(), new.clone(), fails.clone());
        let open_old: OpenDisk = Arc::new(move || Ok(old.clone()));
        let open_new: OpenDisk = Arc::new(move || match still.load(Ordering::Relaxed) {
            true if at_opening => Err(Error::new(ErrorKind::Transient, "later")),
            true => Ok(Arc::new(Later)),
            false => Ok(new.clone()),
        });
        let disks = vec![("xvda".into(), open_old), ("xvdb".into(), open_new)];
        let root = md_root(GuestContext {
            disks: disks.into(),
            ..context_of(vec![])
        });
        let error = root.list().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
        fails.store(false, Ordering::Relaxed);
        let Some(Node::File(raw)) = root.lookup("data.raw".as_ref()).unwrap() else {
            panic!("the array is a file");
        };
        assert_eq!(read_some(&*raw.open().unwrap(), 0, 1).unwrap(), b"n");
    }
}

/// A disk that was opened, and that cannot be read for now.
struct Later;

impl ReadAt for Later {
    fn len_bytes(&self) -> u64 {
        1 << 20
    }

    fn read_exact_at(&self, _: &mut [u8], _: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Transient, "later"))
    }
}
