//! The bodies of the fuzz targets, on stable: a fixed seed, a bounded number of rounds.
//! `BRFS_FUZZ_SECONDS=60` makes more of it. `fuzz/README.md` tells how to run the real thing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bodies::{BODIES, DATA_AT, EXT_BLOCKS, EXT_PIECES, SEPARATOR};
use crate::guest_support::seal::sealed_blocks;
use crate::support::chain::{Chain, Storage};
use crate::support::ext;
use crate::support::golden::unpack;
use crate::support::md;
use crate::support::rng::Rng;
use crate::support::sparse::Fill;
use crate::support::vhd_dir::Filter;
use brfs::io::ReadAt;
use brfs::volume::lvm::label::{read_label, read_text};

const ROUNDS: u32 = 400;
const SIZE_BYTES: u64 = 64 * 4096;

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(SEPARATOR)
}

/// A chain of one image in this storage, written to a directory.
fn image(dir: &Path, storage: Storage) -> std::path::PathBuf {
    let mut rng = Rng::new(1);
    let mut chain = Chain::new();
    let layer = chain.push(&mut rng, SIZE_BYTES);
    layer.block_size(4096).storage(storage);
    layer.write(3, 20, Fill::Random(7));
    chain.write(dir).youngest().to_owned()
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    match name {
        "vhd_file" => vec![std::fs::read(image(dir.path(), Storage::File)).unwrap()],
        "vhd_directory" => [Filter::Absent, Filter::Gzip, Filter::Brotli]
            .into_iter()
            .map(|filter| {
                let dir = dir.path().join(format!("{filter:?}"));
                let alias = image(&dir, Storage::Dir(filter));
                let target = std::fs::read_to_string(alias).unwrap();
                let read = |part: &str| {
                    std::fs::read(dir.join(&target).join(part)).unwrap_or_default()
                };
                joined(&[
                    b"data/a.vhd",
                    &read("chunk-filters.json"),
                    &read("header"),
                    &read("footer"),
                    &read("bat"),
                    &read("blocks/0/0"),
                ])
            })
            .collect(),
        "metadata" => vec![joined(&[
            b"0260301T013000Z.json",
            br#"{"mode":"delta","version":"2.0.0","timestamp":1772328600000,"isVhdDifferencing":{"a":true},
            "vm":{"uuid":"a6e898cb-777d-4f29-a073-ec9ff70ed330","name_label":"web","other_config":{}},
            "vdis":{"OpaqueRef:1":{"uuid":"e6f43d85-f513-4627-a818-c50cd40a2ecd","name_label":"root","virtual_size":4096}},
            "vbds":{"OpaqueRef:2":{"VDI":"OpaqueRef:1","type":"Disk","userdevice":"0","device":"xvda"}},
            "vhds":{"OpaqueRef:1":"./vdis/j/v/20260301T013000Z.vhd"}}"#,
        ])],
        "merge_state" => vec![
            br#"{"parent":{"uuid":"A6e898cb"},"child":{"uuid":"b6e898cb"},"currentBlock":17,
            "mergedDataSize":4096,"step":"mergeBlocks","chain":["a.vhd","b.vhd"]}"#
                .to_vec(),
        ],
        "partitions" => {
            let mut gpt = vec![0; 2 << 20];
            crate::guest_support::golden("partitioned")
                .read_exact_at(&mut gpt, 0)
                .unwrap();
            let mut mbr = vec![0; 64 << 10];
            for (at, kind, start) in [(446, 0x83, 8u32), (462, 5, 16), (16 * 512 + 446, 6, 4)] {
                mbr[at + 4] = kind;
                mbr[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
                mbr[at + 12] = 8;
            }
            for sector in [0, 16] {
                mbr[sector * 512 + 510..][..2].copy_from_slice(&[0x55, 0xAA]);
            }
            vec![gpt, mbr]
        }
        "lvm_text" | "lvm_volume" => {
            let disk = crate::guest_support::golden("lvm-a");
            let area = read_label(&disk).unwrap().unwrap().metadata_areas[0];
            vec![read_text(&disk, area).unwrap().unwrap()]
        }
        "lvm_layers" => ["snapshots", "thin", "cachevol-writeback", "mirrors", "raid5_ls"]
            .map(|scenario| {
                let dir = unpack(
                    &Path::new(env!("CARGO_MANIFEST_DIR"))
                        .join("tests/fixtures/guests/kernel-lvm.tar.zst"),
                    "kernel-lvm",
                );
                let disks = [0, 1].map(|number| {
                    let name = format!("lvm-{scenario}/disk{number}.img");
                    std::fs::read(dir.join(name)).unwrap_or_default()
                });
                let area = read_label(&disks[0]).unwrap().unwrap().metadata_areas[0];
                let text = read_text(&disks[0], area).unwrap().unwrap();
                // Where the metadata of all layers is.
                let behind = |disk: &Vec<u8>| {
                    let end = disk.len().min(3 << 19);
                    disk.get(DATA_AT..end).unwrap_or_default().to_vec()
                };
                joined(&[&text, &behind(&disks[0]), &behind(&disks[1])])
            })
            .to_vec(),
        "md" => [(0, 0), (1, 0), (-1, 0), (4, 0), (5, 2), (6, 10), (10, 0x102), (10, 0x1_0201)]
            .map(|(level, layout)| {
                let disks = if level == 6 { 4 } else { 2 };
                let array = md::Array {
                    level,
                    layout,
                    chunk_bytes: 4096,
                    disks,
                    dropped: None,
                    events: 5,
                };
                let members = [0, 1, 2, 3].map(|role| md::member(array, role, &[7; 16 << 10]));
                let members: Vec<&[u8]> = members.iter().map(Vec::as_slice).collect();
                joined(&members[..disks as usize])
            })
            .to_vec(),
        "wof_chunk" => {
            let file = crate::guest_support::golden_bytes("ntfs-wof.chunks");
            let mut rest = &file[..];
            let mut chunks = Vec::new();
            while let Some((len, behind)) = rest.split_first_chunk() {
                let (chunk, behind) = behind.split_at(u32::from_le_bytes(*len) as usize);
                chunks.push(chunk.to_vec());
                rest = behind;
            }
            chunks
        }
        "ext_journal" => [(ext::Sums::None, 0), (ext::Sums::None, 0x20), (ext::Sums::V2, 4)]
            .map(|(sums, features)| {
                let at = ext::CONTENTS as u64;
                let mut journal = ext::Journal::new(sums, features == 0, features, 0);
                journal.blocks(&[(at, &[7; ext::BLOCK]), (at + 1, &[8; ext::BLOCK])]);
                journal.commit();
                journal.revoke(&[at + 2]);
                journal.commit();
                let raw = ext::inode(0o100_644, 3000, 1, 6, ext::EXTENTS, &ext::extent(1, 30));
                let commits = [
                    vec![
                        ext::tags::inode(20, &raw),
                        ext::tags::add_range(20, 0, 2, 30),
                        ext::tags::create(2, 20, "new"),
                    ],
                    vec![
                        ext::tags::delete_range(20, 1, 1),
                        ext::tags::link(2, 12, "again"),
                        ext::tags::unlink(2, 12, "0"),
                    ],
                ];
                journal.fast(journal.sequence, &commits);
                let volume = ext::Volume::new().with(&journal);
                let [_, start, fast] = EXT_BLOCKS.map(|block| block * ext::BLOCK);
                joined(&[
                    &volume[..start],
                    &volume[start..start + EXT_PIECES[0] * ext::BLOCK],
                    &volume[fast..fast + 3 * ext::BLOCK],
                ])
            })
            .to_vec(),
        // The example of [MS-XCA] 2.5.3, and a chunk that is as it was.
        "lznt1" => vec![
            b"\x38\xB0\x88\x46\x23\x20\x00\x20\x47\x20\x41\x00\x10\xA2\x47\x01\xA0\x45\x20\x44\
              \x00\x08\x45\x01\x50\x79\x00\xC0\x45\x20\x05\x24\x13\x88\x05\xB4\x02\x4A\x44\xEF\
              \x03\x58\x02\x8C\x09\x16\x01\x48\x45\x00\xBE\x00\x9E\x00\x04\x01\x18\x90\x00\x04\
              \x30plain"
                .to_vec(),
        ],
        "ntfs_boot" => ["ntfs", "ntfs-64k"]
            .map(|image| {
                let mut sector = vec![0; 512];
                let image = crate::guest_support::golden(image);
                image.read_exact_at(&mut sector, 0).unwrap();
                sector
            })
            .to_vec(),
        "ntfs_record" => ntfs_structures(b"FILE", 1024, 60),
        "ntfs_index" => ntfs_structures(b"INDX", 4096, 4),
        "btrfs_block" => {
            let disk = crate::guest_support::golden("btrfs");
            let mut blocks = BTreeMap::new();
            // The first is the superblock. Of each level of each tree, one block.
            for (at, len) in sealed_blocks(&*disk).into_iter().skip(1) {
                let mut block = vec![0; len];
                disk.read_exact_at(&mut block, at).unwrap();
                blocks.insert((block[0x58..0x60].to_vec(), block[0x64]), block);
            }
            assert!(blocks.len() > 5, "few kinds of tree blocks");
            blocks.into_values().collect()
        }
        // "brfs " 21 times in zlib and zstd, and 12 bytes in two pieces of LZO.
        "btrfs_extent" => vec![
            vec![1, 35, 0, 0x78, 0xDA, 0x4B, 0x2A, 0x4A, 0x2B, 0x56, 0x48, 0xA2, 0x03, 0x01, 0x00, 0xDF, 0xD6, 0x25, 0xD2],
            vec![3, 35, 0, 0x28, 0xB5, 0x2F, 0xFD, 0x20, 0x69, 0x65, 0x00, 0x00, 0x28, 0x62, 0x72, 0x66, 0x73, 0x20, 0x01, 0x00, 0x01, 0x69, 0xD1, 0x02],
            b"\x02\x04\0\x22\0\0\0\x06\0\0\0\x13ab\x11\0\0..\x0E\0\0\0\x1B0123456789\x11\0\0"
                .to_vec(),
        ],
        other => panic!("{other} has no seeds"),
    }
}

/// The first structures with this magic in an NTFS.
fn ntfs_structures(magic: &[u8], len: usize, count: usize) -> Vec<Vec<u8>> {
    let image = crate::guest_support::golden("ntfs");
    let mut bytes = vec![0; 16 << 20];
    image.read_exact_at(&mut bytes, 0).unwrap();
    let all = bytes.chunks_exact(len).map(<[u8]>::to_vec);
    let found: Vec<_> = all
        .filter(|bytes| bytes.starts_with(magic))
        .take(count)
        .collect();
    assert_eq!(found.len(), count);
    found
}

/// Some changes of the kinds that find things.
fn mutated(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + rng.below(8) {
        if bytes.is_empty() {
            break;
        }
        // Headers more often than what they describe.
        let span = match rng.below(3) {
            0 => bytes.len(),
            1 => bytes.len().min(2048),
            _ => bytes.len().min(8192),
        };
        let at = rng.below(span as u64) as usize;
        match rng.below(6) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = *rng.pick(&[0, 1, 0x7F, 0x80, 0xFF, b'0', b'9', b'"', b'{', b']']),
            2 => {
                // A number of 4 or 8 bytes that is large, or next to nothing.
                let value = *rng.pick(&[0, 1, u64::MAX, u64::MAX >> 1, 1 << 31, 1 << 40, 511]);
                let value = match rng.below(2) {
                    0 => value.to_be_bytes(),
                    _ => value.to_le_bytes(),
                };
                let len = (4 << rng.below(2)).min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&value[..len]);
            }
            3 => bytes.truncate(at),
            4 => {
                let len = (rng.below(64) as usize).min(bytes.len() - at);
                let piece = bytes[at..at + len].to_vec();
                let to = rng.below(bytes.len() as u64) as usize;
                bytes.splice(to..to, piece);
            }
            _ => {
                let len = (rng.below(16) as usize).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
        }
    }
    bytes
}

fn drive(name: &str) {
    let (_, body) = BODIES.iter().find(|(known, _)| *known == name).unwrap();
    let seeds = seeds(name);
    let until = std::env::var("BRFS_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut rng = Rng::new(0xF022);
    for seed in &seeds {
        body(seed);
    }
    let mut round = 0;
    while until.map_or(round < ROUNDS, |until| Instant::now() < until) {
        let input = mutated(rng.pick::<Vec<u8>>(&seeds), &mut rng);
        let start = Instant::now();
        body(&input);
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(30),
            "{name}: round {round} took {took:?}"
        );
        round += 1;
    }
    println!("{name}: {round} rounds");
}

#[test]
fn vhd_files() {
    drive("vhd_file");
}

#[test]
fn vhd_directories() {
    drive("vhd_directory");
}

#[test]
fn metadata() {
    drive("metadata");
}

#[test]
fn merge_states() {
    drive("merge_state");
}

#[test]
fn partition_tables() {
    drive("partitions");
}

#[test]
fn lvm_metadata() {
    drive("lvm_text");
    drive("lvm_volume");
    drive("lvm_layers");
}

#[test]
fn md_superblocks() {
    drive("md");
}

#[test]
fn chunks_of_system_compression() {
    drive("wof_chunk");
}

#[test]
fn journals_of_ext() {
    drive("ext_journal");
}

#[test]
fn structures_of_ntfs() {
    drive("lznt1");
    drive("ntfs_boot");
    drive("ntfs_record");
    drive("ntfs_index");
}

#[test]
fn tree_blocks_and_extents_of_btrfs() {
    drive("btrfs_block");
    drive("btrfs_extent");
}

/// For cargo-fuzz, which finds more when it begins with what is sound: see `fuzz/README.md`.
#[test]
#[ignore = "writes the seeds to BRFS_FUZZ_CORPUS"]
fn seeds_for_cargo_fuzz() {
    let Some(corpus) = std::env::var_os("BRFS_FUZZ_CORPUS") else {
        panic!("set BRFS_FUZZ_CORPUS to a directory");
    };
    for (name, _) in BODIES {
        let dir = Path::new(&corpus).join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for (seed, number) in seeds(name).iter().zip(0..) {
            std::fs::write(dir.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}

/// Every body is driven above, and every target is declared.
#[test]
fn no_target_is_forgotten() {
    let own = include_str!("fuzz_bodies.rs");
    let manifest = include_str!("../../fuzz/Cargo.toml");
    for (name, _) in BODIES {
        assert!(own.contains(&format!("drive(\"{name}\")")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
