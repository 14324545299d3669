//! Small volumes made by hand: what makers of test images do not do.

use super::*;

const BLOCK: usize = 2048;

fn record(name: &[u8], block: u32, size: u32, flags: u8, system_use: &[u8]) -> Vec<u8> {
    let mut record = vec![0; 33];
    record[2..6].copy_from_slice(&block.to_le_bytes());
    record[10..14].copy_from_slice(&size.to_le_bytes());
    record[18..25].copy_from_slice(&[124, 1, 1, 0, 0, 0, 0]);
    record[25] = flags;
    record[32] = name.len() as u8;
    record.extend_from_slice(name);
    record.resize(record.len().next_multiple_of(2), 0);
    record.extend_from_slice(system_use);
    record[0] = record.len() as u8;
    record
}

/// A volume whose root directory, in block 18, has these records after its first two. Byte `n` of block `b`
/// behind it is `b + n`.
fn volume(root_use: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let mut image: Vec<u8> = (0..40 * BLOCK)
        .map(|at| (at / BLOCK + at % BLOCK) as u8)
        .collect();
    image[16 * BLOCK..19 * BLOCK].fill(0);
    for (block, kind) in [(16, 1), (17, 255)] {
        image[block * BLOCK] = kind;
        image[block * BLOCK + 1..][..5].copy_from_slice(b"CD001");
    }
    image[16 * BLOCK + 128..][..2].copy_from_slice(&(BLOCK as u16).to_le_bytes());
    let root = record(b"\0", 18, BLOCK as u32, 2, b"");
    image[16 * BLOCK + 156..][..root.len()].copy_from_slice(&root);
    let mut at = 18 * BLOCK;
    let own = record(b"\0", 18, BLOCK as u32, 2, root_use);
    let parent = record(b"\x01", 18, BLOCK as u32, 2, b"");
    for record in [own, parent].iter().chain(records) {
        image[at..at + record.len()].copy_from_slice(record);
        at += record.len();
    }
    image
}

fn open(image: Vec<u8>) -> Arc<dyn GuestFs> {
    IsoFs::open(Arc::new(image)).unwrap()
}

fn find(fs: &dyn GuestFs, name: &str) -> GuestInode {
    fs.lookup(fs.root(), name.as_ref()).unwrap().unwrap()
}

#[test]
fn a_file_in_several_extents_is_one_file() {
    let fs = open(volume(
        b"",
        &[
            record(b"BIG.;1", 20, 2048, 0x80, b""),
            record(b"BIG.;1", 30, 4096, 0x80, b""),
            record(b"BIG.;1", 25, 100, 0, b""),
            record(b"NEXT.;1", 21, 5, 0, b""),
        ],
    ));
    let batch = fs.list(fs.root(), 0).unwrap();
    let names: Vec<_> = batch.entries.iter().map(|entry| &entry.name).collect();
    assert_eq!(names, ["big", "next"]);
    let big = find(&*fs, "big");
    assert_eq!(fs.attr(big).unwrap().size_bytes, 6244);
    let file = fs.open(big).unwrap();
    let mut bytes = vec![0; 6244];
    file.read_exact_at(&mut bytes, 0).unwrap();
    for (at, byte) in [(0, 20), (2048, 30), (4096, 31), (6144, 25), (6243, 124)] {
        assert_eq!(bytes[at], byte, "{at}");
    }
}

#[test]
fn a_file_that_another_one_continues_is_an_error() {
    let fs = open(volume(
        b"",
        &[
            record(b"A.;1", 20, 2048, 0x80, b""),
            record(b"B.;1", 30, 4096, 0, b""),
        ],
    ));
    assert!(fs.attr(find(&*fs, "a")).is_err());
    let fs = open(volume(b"", &[record(b"A.;1", 20, 2048, 0x80, b"")]));
    assert!(fs.open(find(&*fs, "a")).is_err());
}

#[test]
fn what_cannot_be_given_as_it_is_meant_is_refused() {
    let announce = b"SP\x07\x01\xBE\xEF\0ER\x0A\x01\0\0\0\x01\0\0";
    let mut zisofs = b"ZF\x10\x01pz\x04\x0F".to_vec();
    zisofs.extend(70_000u32.to_le_bytes());
    zisofs.extend(70_000u32.to_be_bytes());
    let astray = {
        let mut field = b"CE\x1C\x01".to_vec();
        field.resize(28, 0xFF);
        field
    };
    let mut gaps = record(b"GAPS.;1", 20, 100, 0, b"");
    gaps[26] = 1;
    let fs = open(volume(
        announce,
        &[
            record(b"PACKED.;1", 20, 100, 0, &zisofs),
            gaps,
            record(b"ASTRAY.;1", 20, 100, 0, &astray),
            record(b"FINE.;1", 20, 100, 0, b""),
            record(b"FAR.;1", 20_000, 100, 0, b""),
        ],
    ));
    assert_eq!(fs.list(fs.root(), 0).unwrap().entries.len(), 5);
    let packed = find(&*fs, "packed");
    assert_eq!(fs.attr(packed).unwrap().size_bytes, 70_000);
    let kind = |name| fs.open(find(&*fs, name)).map(drop).unwrap_err().kind();
    assert_eq!(kind("packed"), ErrorKind::Unsupported);
    assert_eq!(kind("gaps"), ErrorKind::Unsupported);
    assert_eq!(kind("astray"), ErrorKind::Corrupt);
    let far = fs.open(find(&*fs, "far")).unwrap();
    assert!(far.read_exact_at(&mut [0; 10], 0).is_err());
    let fine = fs.open(find(&*fs, "fine")).unwrap();
    fine.read_exact_at(&mut [0; 100], 0).unwrap();
}
