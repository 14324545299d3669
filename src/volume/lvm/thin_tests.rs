//! Tests of [`super::thin`] on metadata that `thin_restore` made (`tests/fixtures/guests`).

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use super::label::tests::make;
use super::thin::Pool;
use super::{PhysicalVolume, assemble_groups};
use crate::error::Result;
use crate::io::{ExtentKind, ReadAt};
use crate::volume::bits::crc32c;

const CHUNK: u64 = 64 << 10;
/// Longer than any device is mapped.
const CHUNKS: u64 = 6100;

fn golden(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/tests/fixtures/guests/thin-metadata.{name}.zst",
        env!("CARGO_MANIFEST_DIR")
    );
    let file = std::fs::File::open(path).unwrap();
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

/// Chunk → chunk of the data, of each device.
fn mappings() -> BTreeMap<u64, BTreeMap<u64, u64>> {
    let mut all: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::from([(7, BTreeMap::new())]);
    for line in String::from_utf8(golden("manifest")).unwrap().lines() {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let device = all.entry(numbers[0]).or_default();
        device.insert(numbers[1], numbers[2]);
    }
    all
}

/// Byte `n` of chunk `c` is made of both, and never 0.
fn byte(chunk: u64, at: u64) -> u8 {
    (chunk * 7 + chunk / 251 + at) as u8 | 1
}

struct Data;

impl ReadAt for Data {
    fn len_bytes(&self) -> u64 {
        4096 * CHUNK
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        for (slot, at) in buf.iter_mut().zip(offset..) {
            *slot = byte(at / CHUNK, at % CHUNK);
        }
        Ok(())
    }
}

fn pool(metadata: Vec<u8>) -> Result<Arc<Pool>> {
    Pool::open(Arc::new(metadata), Arc::new(Data), CHUNK)
}

#[test]
fn every_chunk_is_where_the_metadata_says() {
    let pool = pool(golden("img")).unwrap();
    for (device, chunks) in mappings() {
        let volume = pool.volume(device, CHUNKS * CHUNK, None).unwrap();
        // From the last bytes of one chunk into the next.
        let mut buf = [0; 20];
        for chunk in 0..CHUNKS - 1 {
            volume
                .read_exact_at(&mut buf, (chunk + 1) * CHUNK - 10)
                .unwrap();
            let expected: Vec<u8> = (0..20)
                .map(|n| {
                    let (chunk, at) = match n {
                        0..10 => (chunk, CHUNK - 10 + n),
                        _ => (chunk + 1, n - 10),
                    };
                    chunks.get(&chunk).map_or(0, |&data| byte(data, at))
                })
                .collect();
            assert_eq!(buf[..], expected, "device {device}, chunk {chunk}");
        }
        // Holes are told in one go, and are holes.
        let mut at = 0;
        let mut extents = 0;
        while at < CHUNKS * CHUNK {
            let extent = volume.extent_at(at).unwrap();
            let is_mapped = chunks.contains_key(&(at / CHUNK));
            assert_eq!(extent.kind == ExtentKind::Data, is_mapped);
            if !is_mapped {
                assert_eq!(chunks.range(at / CHUNK..extent.end / CHUNK).count(), 0);
            }
            at = extent.end;
            extents += 1;
        }
        assert!(extents <= 2 * chunks.len() + 1);
    }
    assert!(pool.volume(3, CHUNK, None).is_err());
}

/// All that the pool says of its devices: chunk by chunk a byte, or an error.
fn all_of(metadata: Vec<u8>) -> Vec<Result<u8>> {
    let pool = pool(metadata);
    let mut found = Vec::new();
    for device in [1, 2, 7, 9] {
        let volume = pool
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|pool| pool.volume(device, CHUNKS * CHUNK, None));
        for chunk in (0..CHUNKS).step_by(11) {
            let mut byte = [0];
            let read = volume
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|volume| volume.read_exact_at(&mut byte, chunk * CHUNK + 5));
            found.push(read.map(|()| byte[0]));
        }
    }
    found
}

#[test]
fn damage_is_an_error_and_never_another_byte() {
    let sound = golden("img");
    let used: Vec<usize> = (0..sound.len() / 4096)
        .filter(|block| sound[block * 4096..][..4096].iter().any(|&b| b != 0))
        .collect();
    let expected = all_of(sound.clone());
    assert!(expected.iter().all(Result::is_ok));
    let mut errors = 0;
    for (&block, round) in used.iter().cycle().take(60).zip(0usize..) {
        let at = block * 4096 + round * 67 % 4096;
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << (round % 8);
        for (have, want) in all_of(damaged.clone()).iter().zip(&expected) {
            match have {
                Ok(byte) => assert_eq!(byte, want.as_ref().unwrap(), "round {round}"),
                Err(_) => errors += 1,
            }
        }
        // With a checksum that holds anything may come, but it comes.
        let xor = if block == 0 { 160_774 } else { 121_107 };
        let part = &mut damaged[block * 4096..][..4096];
        let sum = !crc32c(&part[4..]) ^ xor;
        part[..4].copy_from_slice(&sum.to_le_bytes());
        let _ = all_of(damaged);
    }
    assert!(errors > 100);
}

#[test]
fn thin_volumes_of_a_group_are_read_and_their_pool_is_no_volume() {
    // Extents of 64 KiB: 64 of metadata, then 300 of data.
    let text = r#"vg { id = "g" seqno = 1 extent_size = 128
      physical_volumes { pv0 { id = "p0000000000000000000000000000000" pe_start = 256 pe_count = 400 } }
      logical_volumes {
        pool { id = "1" status = ["READ", "VISIBLE"] segment1 { start_extent = 0 extent_count = 300
          type = "thin-pool" metadata = "pool_tmeta" pool = "pool_tdata" transaction_id = 4 chunk_size = 128 } }
        pool_tmeta { id = "2" segment1 { start_extent = 0 extent_count = 64
          type = "striped" stripe_count = 1 stripes = ["pv0", 0] } }
        pool_tdata { id = "3" segment1 { start_extent = 0 extent_count = 300
          type = "striped" stripe_count = 1 stripes = ["pv0", 64] } }
        shared { id = "4" status = ["READ", "VISIBLE"] segment1 { start_extent = 0 extent_count = 50
          type = "thin" thin_pool = "pool" transaction_id = 0 device_id = 2 } }
        far { id = "5" status = ["READ", "VISIBLE"] segment1 { start_extent = 0 extent_count = 6000
          type = "thin" thin_pool = "pool" transaction_id = 0 device_id = 9 } }
        outside { id = "6" status = ["READ", "VISIBLE"] segment1 { start_extent = 0 extent_count = 50
          type = "thin" thin_pool = "pool" transaction_id = 0 device_id = 7 external_origin = "base" } }
        gone { id = "7" status = ["READ", "VISIBLE"] segment1 { start_extent = 0 extent_count = 50
          type = "thin" thin_pool = "pool" transaction_id = 0 device_id = 4 } }
      } }"#;
    let start = 128 << 10;
    let mut disk = make("p", text.as_bytes(), 5000, start + 400 * CHUNK as usize);
    let metadata = golden("img");
    disk[start..start + metadata.len()].copy_from_slice(&metadata);
    for chunk in 0..300 {
        let at = start + (64 + chunk) * CHUNK as usize;
        disk[at..at + CHUNK as usize].fill(byte(chunk as u64, 0));
    }
    let member = |disk: Vec<u8>| PhysicalVolume {
        place: "xvda".into(),
        volume: Arc::new(disk),
    };
    let (groups, problems) = assemble_groups(&[member(disk.clone())]);
    assert!(problems.is_empty());
    let names: Vec<_> = groups[0].volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["shared", "far"]);
    assert_eq!(groups[0].problems.len(), 2, "{:?}", groups[0].problems);
    let volume = &groups[0].volumes[0].volume;
    let mut buf = vec![0; 50 * CHUNK as usize];
    volume.read_exact_at(&mut buf, 0).unwrap();
    for chunk in 0..50 {
        let expected = if chunk < 40 { byte(chunk * 7, 0) } else { 0 };
        let bytes = &buf[(chunk * CHUNK) as usize..][..CHUNK as usize];
        assert!(bytes.iter().all(|&byte| byte == expected), "{chunk}");
    }
    // What the metadata places behind the end of the data fails.
    let far = &groups[0].volumes[1].volume;
    assert!(far.read_exact_at(&mut [0], 0).is_ok());
    assert!(far.read_exact_at(&mut [0], 5000 * CHUNK).is_err());
}
