//! Journals of ext3 and ext4 as they are written, and as machines that stop leave them: what was committed is shown,
//! what was not is not, and what cannot be told is an error.

use std::sync::Arc;

use crate::guest_support::context_of;
use crate::support::ext::*;
use brfs::error::{Error, ErrorKind, Result};
use brfs::tree::{Directory, Node};
use brfs::views::guest::{OpenDisk, disk_children};

type Disk = (&'static str, Vec<u8>);

fn root_of(disks: &[Disk]) -> Arc<dyn Directory> {
    let all: Vec<(&str, Arc<dyn brfs::io::ReadAt>)> = disks
        .iter()
        .map(|(name, bytes)| (*name, Arc::new(bytes.clone()) as _))
        .collect();
    let first = all[0].1.clone();
    let open: OpenDisk = Arc::new(move || Ok(first.clone()));
    disk_children(context_of(all), disks[0].0, open)
}

/// What the files are full of, by their names.
fn shown(disks: &[Disk]) -> Result<Vec<String>> {
    let root = root_of(disks);
    let mut stream = root.list()?;
    let mut all = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        let name = entry.name.into_string().unwrap();
        match root.lookup(name.as_ref())?.unwrap() {
            Node::File(file) => {
                let size = file.attr()?.size_bytes;
                let mut content = vec![0; size as usize];
                let open = file.open()?;
                open.read_exact_at(&mut content, 0)?;
                let mut runs: Vec<(u8, usize)> = Vec::new();
                for byte in content {
                    match runs.last_mut() {
                        Some((last, count)) if *last == byte => *count += 1,
                        _ => runs.push((byte, 1)),
                    }
                }
                let text: String = runs
                    .iter()
                    .map(|(byte, count)| format!("{}{count}", byte.escape_ascii()))
                    .collect();
                all.push(format!("{name}={text}"));
            }
            Node::Dir(dir) => all.push(format!("{name}/{}", dir.attr()?.links)),
            Node::Leaf(leaf) => {
                let target = leaf.target()?.unwrap_or_default();
                all.push(format!("{name}->{}", target.to_string_lossy()));
            }
        }
    }
    all.sort();
    Ok(all)
}

fn inside(journal: &Journal) -> Vec<Disk> {
    vec![("xvda", Volume::new().with(journal))]
}

fn error_of(disks: &[Disk]) -> Error {
    match shown(disks) {
        Err(error) => error,
        Ok(all) => panic!("shown all the same: {all:?}"),
    }
}

const BEFORE: [&str; 3] = ["0=a1024", "1=b1024", "2=c1024"];
const ALL: [(Sums, bool); 8] = [
    (Sums::None, false),
    (Sums::None, true),
    (Sums::V1, false),
    (Sums::V1, true),
    (Sums::V2, false),
    (Sums::V2, true),
    (Sums::V3, false),
    (Sums::V3, true),
];
const A: u64 = CONTENTS as u64;

#[test]
fn what_was_committed_counts_whatever_the_sums() {
    for (sums, wide) in ALL {
        let mut journal = Journal::new(sums, wide, 0, 0);
        let escaped = [&[0xC0, 0x3B, 0x39, 0x98][..], &[b'z'; BLOCK - 4]].concat();
        journal.blocks(&[(A, &[b'x'; BLOCK]), (A + 1, &[b'y'; BLOCK])]);
        journal.commit();
        journal.blocks(&[(A + 2, &escaped)]);
        journal.blocks(&[(A + 1, &[b'w'; BLOCK])]);
        journal.commit();
        // Never finished.
        journal.blocks(&[(A, &[b'!'; BLOCK])]);
        let expected = ["0=x1024", "1=w1024", "2=\\xc01;191\\x981z1020"];
        assert_eq!(
            shown(&inside(&journal)).unwrap(),
            expected,
            "{sums:?} {wide}"
        );
    }
}

#[test]
fn what_was_revoked_does_not_count() {
    for (sums, wide) in ALL {
        let mut journal = Journal::new(sums, wide, 0, 0);
        journal.blocks(&[(A, &[b'x'; BLOCK]), (A + 1, &[b'y'; BLOCK])]);
        journal.commit();
        journal.revoke(&[A, A + 1]);
        journal.commit();
        // Used again since.
        journal.blocks(&[(A + 1, &[b'z'; BLOCK])]);
        journal.commit();
        let expected = ["0=a1024", "1=z1024", "2=c1024"];
        assert_eq!(
            shown(&inside(&journal)).unwrap(),
            expected,
            "{sums:?} {wide}"
        );
    }
}

#[test]
fn a_log_goes_on_at_its_start() {
    for fast in [0, 0x20] {
        let end = JOURNAL_BLOCKS - if fast == 0 { 0 } else { FAST_BLOCKS };
        let mut journal = Journal::new(Sums::V3, true, fast, 0);
        journal.start(end - 2);
        journal.blocks(&[(A, &[b'x'; BLOCK]), (A + 1, &[b'y'; BLOCK])]);
        journal.commit();
        assert!(journal.at < 10);
        let expected = ["0=x1024", "1=y1024", "2=c1024"];
        assert_eq!(shown(&inside(&journal)).unwrap(), expected);
    }
}

#[test]
fn a_journal_that_nobody_needs_is_not_looked_at() {
    let mut journal = Journal::new(Sums::None, false, 0, 0);
    journal.blocks(&[(A, &[b'x'; BLOCK])]);
    journal.commit();
    let mut volume = Volume::new();
    volume.set(0x60, &0x42u32.to_le_bytes());
    assert_eq!(shown(&[("xvda", volume.with(&journal))]).unwrap(), BEFORE);
    journal.start(0);
    assert_eq!(shown(&inside(&journal)).unwrap(), BEFORE);
}

/// A commit is written after all else has reached the disk. Where it may come before, a last transaction that does not
/// hold is one of a machine that stopped.
#[test]
fn damage_is_told_from_a_transaction_that_was_being_written() {
    for (sums, wide) in ALL.into_iter().filter(|(sums, _)| *sums != Sums::None) {
        for (flaw, block) in [("descriptor", 1), ("data", 2), ("commit", 3)] {
            let damaged = |later: bool, asynchronous: u32| {
                let mut journal = Journal::new(sums, wide, asynchronous, 0);
                journal.blocks(&[(A, &[b'x'; BLOCK])]);
                journal.commit();
                if later {
                    journal.blocks(&[(A + 1, &[b'y'; BLOCK])]);
                    journal.commit();
                }
                // Within what sums cover, but for the numbers of blocks.
                journal.bytes[block * BLOCK + 600] ^= 0x10;
                inside(&journal)
            };
            let message = format!("{sums:?} {wide} {flaw}");
            if sums == Sums::V1 && flaw == "commit" {
                // There the sum is of what comes before it.
                continue;
            }
            assert_eq!(
                error_of(&damaged(true, 0)).kind(),
                ErrorKind::Corrupt,
                "{message}"
            );
            assert_eq!(
                error_of(&damaged(true, 4)).kind(),
                ErrorKind::Corrupt,
                "{message}"
            );
            assert_eq!(shown(&damaged(false, 4)).unwrap(), BEFORE, "{message}");
            let error = error_of(&damaged(false, 0));
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{message}");
        }
    }
}

/// What is left of the journal of a file system that was here before, where the log would go on.
#[test]
fn a_transaction_from_before_the_last_one_is_left_over() {
    for (sums, wide) in ALL.into_iter().filter(|(sums, _)| *sums != Sums::None) {
        for (flaw, block) in [("descriptor", 4), ("data", 5), ("commit", 6)] {
            if sums == Sums::V1 && flaw == "commit" {
                continue;
            }
            let shown_at = |second: u64| {
                let mut journal = Journal::new(sums, wide, 0, 0);
                journal.time = 1_700_000_000;
                journal.blocks(&[(A, &[b'x'; BLOCK])]);
                journal.commit();
                journal.time = second;
                journal.blocks(&[(A + 1, &[b'y'; BLOCK])]);
                journal.commit();
                journal.bytes[block * BLOCK + 600] ^= 0x10;
                shown(&inside(&journal))
            };
            let message = format!("{sums:?} {wide} {flaw}");
            // A data block alone: the commit is of this file system.
            let is_own = flaw == "data" && sums != Sums::V1;
            for (second, is_old) in [(1_699_999_999, !is_own), (1_700_000_000, false)] {
                match shown_at(second) {
                    Ok(all) => {
                        assert!(is_old, "{message}");
                        assert_eq!(all, ["0=x1024", "1=b1024", "2=c1024"], "{message}");
                    }
                    Err(error) => {
                        assert!(!is_old, "{message}");
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{message}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let mut journal = Journal::new(Sums::V3, false, 0x40, 0);
    journal.blocks(&[(A, &[b'x'; BLOCK])]);
    journal.commit();
    let error = error_of(&inside(&journal));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("features (0x40)"), "{error}");
    let mut volume = Volume::new();
    volume.set(0x60, &0x0004_1046u32.to_le_bytes());
    let error = error_of(&[("xvda", volume.0)]);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("dirdata, unknown (0x40000)"),
        "{error}"
    );
    // A block past the end of the file system; a superblock that does not hold.
    let mut journal = Journal::new(Sums::V3, true, 0, 0);
    journal.blocks(&[(1 << 33, &[b'x'; BLOCK])]);
    journal.commit();
    assert_eq!(error_of(&inside(&journal)).kind(), ErrorKind::Corrupt);
    journal.bytes[0x18] ^= 1;
    assert_eq!(error_of(&inside(&journal)).kind(), ErrorKind::Corrupt);
}

#[test]
fn a_journal_on_another_disk_is_found_or_asked_for() {
    let mut journal = Journal::new(Sums::V3, true, 0, 2);
    journal.blocks(&[(A, &[b'x'; BLOCK])]);
    journal.commit();
    let volume = || ("xvda", Volume::new().elsewhere());
    let (other, again) = (("xvdb", device(&journal)), ("xvdc", device(&journal)));
    let mut foreign = device(&journal);
    foreign[BLOCK + 0x68] ^= 1;
    let expected = ["0=x1024", "1=b1024", "2=c1024"];
    assert_eq!(
        shown(&[volume(), ("xvdd", foreign.clone()), other.clone()]).unwrap(),
        expected
    );
    for (disks, words) in [
        (
            vec![volume()],
            "22222222-2222-2222-2222-222222222222), which was not found",
        ),
        (vec![volume(), ("xvdd", foreign)], "was not found"),
        (vec![volume(), other, again], "more than once: xvdb, xvdc"),
    ] {
        let error = error_of(&disks);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(words), "{error}");
    }
    // One that was unmounted needs none.
    let mut clean = Volume::new();
    clean.set(0x60, &0x42u32.to_le_bytes());
    assert_eq!(shown(&[("xvda", clean.elsewhere())]).unwrap(), BEFORE);
}

fn fast(commits: &[Vec<(u16, Vec<u8>)>]) -> Journal {
    let mut journal = Journal::new(Sums::V3, true, 0x20, 0);
    journal.blocks(&[(A + 2, &[b'x'; BLOCK])]);
    journal.commit();
    journal.fast(journal.sequence, commits);
    journal
}

#[test]
fn fast_commits_come_on_top() {
    let file = |size: u32, links| inode(0o100_644, size, links, 2, EXTENTS, &extent(1, 999));
    let dir = inode(0o040_755, BLOCK as u32, 3, 2, EXTENTS, &extent(1, 999));
    let sub = inode(0o040_755, BLOCK as u32, 2, 2, EXTENTS, &extent(1, 999));
    let commits = [
        vec![
            // A new file over two places, the second of which moves.
            tags::inode(20, &file(3000, 1)),
            tags::add_range(20, 0, 2, A as u32),
            tags::create(2, 20, "new"),
            tags::add_range(20, 1, 1, A as u32 + 2),
            // Allocated, never written.
            tags::add_range(20, 2, 32769, A as u32),
        ],
        vec![
            tags::unlink(2, 12, "0"),
            tags::link(2, 13, "1-too"),
            tags::inode(13, &file(1500, 2)),
            tags::delete_range(13, 0, 1),
            tags::add_range(13, 1, 1, A as u32),
        ],
        vec![
            tags::inode(21, &dir),
            tags::create(2, 21, "dir"),
            tags::inode(22, &sub),
            tags::create(21, 22, "sub"),
        ],
        // It does not say how many links its parent has then.
        vec![tags::inode(23, &sub), tags::create(21, 23, "sub-2")],
        // Renamed over another.
        vec![
            tags::unlink(2, 14, "2"),
            tags::link(2, 20, "2"),
            tags::unlink(2, 20, "new"),
        ],
    ];
    let second = format!("\\x001024a{}", 1500 - 1024);
    let expected = [
        format!("1-too={second}"),
        format!("1={second}"),
        "2=a1024x1024\\x00952".to_string(),
        "dir/4".to_string(),
    ];
    assert_eq!(shown(&inside(&fast(&commits))).unwrap(), expected);
    // A commit counts when its end is there.
    for (cut, before) in [(0, 3), (1, 4)] {
        let mut journal = fast(&commits);
        journal.bytes[(FAST + cut) * BLOCK..][..BLOCK].fill(0);
        let all = shown(&inside(&journal)).unwrap();
        assert_eq!(all.len(), before, "{all:?}");
        assert!(all.contains(&"2=x1024".to_string()));
        // With its end, and damaged: not one that was being written.
        let mut journal = fast(&commits);
        journal.bytes[(FAST + cut) * BLOCK + 20] ^= 1;
        let error = error_of(&inside(&journal));
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("older state"), "{error}");
    }
}

/// A file that got its first name by a fast commit (`O_TMPFILE`): its blocks were committed before, with no link.
#[test]
fn a_file_that_had_no_name_keeps_its_blocks() {
    let block = extent(1, A as u32);
    let file = |links, generation: u8| {
        let mut raw = inode(0o100_644, BLOCK as u32, links, 2, EXTENTS, &block);
        raw[0x64] = generation;
        raw
    };
    for (generation, content) in [(5, "new=a1024"), (6, "new=\\x001024")] {
        let journal = fast(&[vec![
            tags::link(2, 20, "new"),
            tags::inode(20, &file(1, generation)),
        ]]);
        let mut volume = Volume::new();
        volume.set_inode(20, &file(0, 5));
        let all = shown(&[("xvda", volume.with(&journal))]).unwrap();
        assert_eq!(all, ["0=a1024", "1=b1024", "2=x1024", content]);
    }
}

#[test]
fn fast_commits_of_another_transaction_do_not_count() {
    let mut journal = fast(&[]);
    for sequence in [journal.sequence - 1, journal.sequence + 1] {
        journal.fast(sequence, &[vec![tags::unlink(2, 12, "0")]]);
        assert_eq!(
            shown(&inside(&journal)).unwrap(),
            ["0=a1024", "1=b1024", "2=x1024"]
        );
    }
    // Nor do those without a log.
    journal.fast(journal.sequence, &[vec![tags::unlink(2, 12, "0")]]);
    assert_eq!(shown(&inside(&journal)).unwrap(), ["1=b1024", "2=x1024"]);
    journal.start(0);
    assert_eq!(shown(&inside(&journal)).unwrap(), BEFORE);
    // A number that was given to another file: nothing of the old one shows through.
    let other = inode(0o100_644, 2048, 1, 2, EXTENTS, &[]);
    let mut journal = fast(&[vec![
        tags::unlink(2, 12, "0"),
        tags::inode(12, &other),
        tags::create(2, 12, "3"),
    ]]);
    assert_eq!(
        shown(&inside(&journal)).unwrap(),
        ["1=b1024", "2=x1024", "3=\\x002048"]
    );
    // Features that are not known.
    journal.bytes[FAST * BLOCK + 4] = 1;
    let error = error_of(&inside(&journal));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("features (0x1)"), "{error}");
}

/// Linux goes by the blocks of a link, not by the length of its target.
#[test]
fn a_short_target_in_a_block_is_read_from_there() {
    let mut volume = Volume::new();
    volume.set(0x60, &0x42u32.to_le_bytes());
    let pointer = (A as u32).to_le_bytes();
    volume.set_block(CONTENTS, b"in-a-block");
    volume.set_inode(12, &inode(0o120_777, 10, 1, 2, 0, &pointer));
    volume.set_inode(13, &inode(0o120_777, 10, 1, 0, 0, b"in-itself!"));
    // With a block for attributes, which is no target.
    let mut with_attributes = inode(0o120_777, 10, 1, 2, 0, b"attributes");
    with_attributes[0x68..0x6C].copy_from_slice(&40u32.to_le_bytes());
    volume.set_inode(14, &with_attributes);
    volume.set_inode(
        15,
        &inode(0o120_777, 10, 1, 2, EXTENTS, &extent(1, A as u32)),
    );
    volume.set_root(&[("a", 12, 7), ("b", 13, 7), ("c", 14, 7), ("d", 15, 7)]);
    let expected = [
        "a->in-a-block",
        "b->in-itself!",
        "c->attributes",
        "d->in-a-block",
    ];
    assert_eq!(shown(&[("xvda", volume.0)]).unwrap(), expected);
}
