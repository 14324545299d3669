//! Absurd structures with everything around them sound (checksums right), so that they get as far
//! into a reader as possible: sizes from nowhere, tables that overlap, tables and parts of many GiB,
//! blocks that explode when they are decompressed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::blocks::LayerBlocks;
use super::files::{write_file, write_hole};
use super::rng::Rng;
use super::sparse::{Fill, SparseDisk};
use super::vhd::{BAT_UNUSED, disk_type};
use super::vhd_dir::{Filter, VhdDirSpec, write_alias};
use super::vhd_file::{VhdFileSpec, WrittenVhdFile};

/// A named piece of bad input.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// The `.vhd` or `.alias.vhd` to open.
    pub head: PathBuf,
}

pub const SIZE_BYTES: u64 = 64 * 4096;
pub const BLOCK_BYTES: u32 = 4096;

type SpecChange = (&'static str, fn(&mut VhdFileSpec));

/// Headers and footers with absurd fields.
const ABSURD_FIELDS: [SpecChange; 33] = [
    ("block size 0", |s| s.header.block_size = 0),
    ("block size 1", |s| s.header.block_size = 1),
    ("block size 256", |s| s.header.block_size = 256),
    ("block size 513", |s| s.header.block_size = 513),
    ("block size 3 MiB", |s| s.header.block_size = 3 << 20),
    ("block size 2^31", |s| s.header.block_size = 1 << 31),
    ("block size 2^32-1", |s| s.header.block_size = u32::MAX),
    ("max table entries 0", |s| s.header.max_table_entries = 0),
    ("max table entries 1", |s| s.header.max_table_entries = 1),
    ("max table entries 2^31", |s| {
        s.header.max_table_entries = 1 << 31
    }),
    ("max table entries 2^32-1", |s| {
        s.header.max_table_entries = u32::MAX
    }),
    ("table offset 0", |s| s.header.table_offset = 0),
    ("table offset in header", |s| s.header.table_offset = 512),
    ("table offset odd", |s| s.header.table_offset = 1537),
    ("table offset past the end", |s| {
        s.header.table_offset = 1 << 40
    }),
    ("table offset 2^64-1", |s| s.header.table_offset = u64::MAX),
    ("table offset 2^63", |s| s.header.table_offset = 1 << 63),
    ("header cookie", |s| s.header.cookie = *b"conectix"),
    ("header version 2.0", |s| {
        s.header.header_version = 0x0002_0000
    }),
    ("locator at 2^64-1", |s| {
        s.header.parent_locators[0].platform_code = *b"W2ku";
        s.header.parent_locators[0].platform_data_length = u32::MAX;
        s.header.parent_locators[0].platform_data_offset = u64::MAX;
    }),
    ("size 0", |s| s.footer.current_size = 0),
    ("size 1", |s| s.footer.current_size = 1),
    ("size 2^63", |s| s.footer.current_size = 1 << 63),
    ("size 2^64-1", |s| s.footer.current_size = u64::MAX),
    ("size 2^64-512", |s| s.footer.current_size = u64::MAX - 511),
    ("size beyond the table", |s| s.footer.current_size = 1 << 40),
    ("disk type 0", |s| s.footer.disk_type = 0),
    ("disk type 5", |s| s.footer.disk_type = 5),
    ("disk type 2^32-1", |s| s.footer.disk_type = u32::MAX),
    ("data offset 0", |s| s.footer.data_offset = 0),
    ("data offset 2^64-1", |s| s.footer.data_offset = u64::MAX),
    ("data offset past the end", |s| {
        s.footer.data_offset = 1 << 50
    }),
    ("fixed type on a dynamic file", |s| {
        s.footer.disk_type = disk_type::FIXED
    }),
];

/// What the disks of all bad input hold where they are sound.
pub fn small_disk() -> SparseDisk {
    let mut disk = SparseDisk::new();
    disk.write(0, 3, Fill::Random(1));
    disk.write(100, 30, Fill::Random(2));
    disk
}

fn small_file(path: &Path, rng: &mut Rng, change: impl Fn(&mut VhdFileSpec)) -> WrittenVhdFile {
    let disk = small_disk();
    let blocks = LayerBlocks::new(&disk, BLOCK_BYTES, SIZE_BYTES / 512);
    let sound = VhdFileSpec::dynamic(SIZE_BYTES, BLOCK_BYTES, rng.uuid());
    let written = sound.write(path, &blocks);
    // Layout of the sound file, structures of the absurd one.
    let mut absurd = sound;
    change(&mut absurd);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let footer = absurd.footer.to_bytes();
    file.write_all_at(&footer, 0).unwrap();
    file.write_all_at(&absurd.header.to_bytes(), 512).unwrap();
    let end = written.trailing_footer_offset.expect("just written");
    file.write_all_at(&footer, end).unwrap();
    written
}

/// VHD files with absurd structures, one `.vhd` each, in a directory each.
pub fn absurd_files(directory: &Path, rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, make: &mut dyn FnMut(&Path)| {
        let folder = directory.join(format!("file {name}").replace(' ', "-"));
        let head = folder.join("20260301T013000Z.vhd");
        make(&head);
        let name = format!("file: {name}");
        cases.push(Case { name, head });
    };
    for (name, change) in ABSURD_FIELDS {
        add(name, &mut |path| {
            small_file(path, rng, change);
        });
    }
    // (name, first entry, second entry); a sound file has its tables in the sectors 0 to 3.
    let entries: [(&str, Option<u32>, Option<u32>); 8] = [
        ("BAT entry in the footer", Some(0), None),
        ("BAT entry in the header", Some(1), None),
        ("BAT entry in the BAT", Some(3), None),
        ("BAT entry past the end", Some(1 << 20), None),
        ("BAT entry 2^32-2", Some(BAT_UNUSED - 1), None),
        ("BAT entry in the last footer", Some(u32::MAX / 2), None),
        ("BAT entries equal", Some(4), Some(4)),
        ("BAT entries overlap", Some(4), Some(6)),
    ];
    for (name, first, second) in entries {
        add(name, &mut |path| {
            let written = small_file(path, rng, |_| {});
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let footer_sector = written.trailing_footer_offset.unwrap() / 512;
            let first = first.map(|s| {
                if s == u32::MAX / 2 {
                    footer_sector as u32
                } else {
                    s
                }
            });
            for (number, entry) in [(0, first), (12, second)] {
                if let Some(entry) = entry {
                    let at = written.bat_entry_offset(number);
                    file.write_all_at(&entry.to_be_bytes(), at).unwrap();
                }
            }
        });
    }
    // A table of 16 GiB that is really there, as a hole: every entry points to the footer.
    add("16 GiB of BAT", &mut |path| {
        let written = small_file(path, rng, |spec| {
            spec.header.max_table_entries = u32::MAX;
            spec.footer.current_size = u64::from(u32::MAX) * u64::from(BLOCK_BYTES);
        });
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(written.len_bytes + (17 << 30)).unwrap();
    });
    cases
}

/// VHD directories with absurd structures, each behind an alias.
pub fn absurd_dirs(directory: &Path, rng: &mut Rng, bomb_bytes: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add =
        |name: &str, filter: Filter, change: &dyn Fn(&mut VhdDirSpec), after: &dyn Fn(&Path)| {
            let folder = directory.join(format!("dir {name} {filter:?}").replace(' ', "-"));
            let head = folder.join("20260301T013000Z.alias.vhd");
            let target = "data/20260301T013000Z.vhd";
            let disk = small_disk();
            let blocks = LayerBlocks::new(&disk, BLOCK_BYTES, SIZE_BYTES / 512);
            let mut spec = VhdDirSpec::dynamic(SIZE_BYTES, BLOCK_BYTES, rng.uuid(), filter);
            change(&mut spec);
            write_alias(&head, target);
            spec.write(&folder.join(target), &blocks);
            after(&folder.join(target));
            let name = format!("directory ({filter:?}): {name}");
            cases.push(Case { name, head });
        };
    let nothing: &dyn Fn(&mut VhdDirSpec) = &|_| {};
    let untouched: &dyn Fn(&Path) = &|_| {};
    for (name, change) in ABSURD_FIELDS {
        // A table of 2^32-1 bytes would really be written; the field alone is enough here.
        let change = move |spec: &mut VhdDirSpec| {
            let mut as_file = VhdFileSpec::dynamic(SIZE_BYTES, BLOCK_BYTES, [0; 16]);
            as_file.footer = spec.footer.clone();
            as_file.header = spec.header.clone();
            change(&mut as_file);
            spec.footer = as_file.footer;
            spec.header = as_file.header;
            if spec.header.max_table_entries > 1 << 20 {
                spec.bat_length = super::vhd_dir::BatLength::Given(64);
            }
        };
        add(name, Filter::Absent, &change, untouched);
    }
    for filter in [Filter::Gzip, Filter::Brotli] {
        for part in ["footer", "header", "bat", "blocks/0/0"] {
            let name = format!("bomb as {}", part.replace('/', "_"));
            add(&name, filter, nothing, &|path| {
                write_file(&path.join(part), &bomb(filter, bomb_bytes));
            });
        }
    }
    for filter in Filter::ALL {
        let lengths = [0, 1, 511, 512, 4607, 4609, 512 + 8192];
        for len in lengths {
            add(&format!("block of {len} bytes"), filter, nothing, &|path| {
                write_file(&path.join("blocks/0/0"), &filter.encode(&vec![0xff; len]));
            });
        }
        add("announced block missing", filter, nothing, &|path| {
            fs::remove_file(path.join("blocks/0/0")).unwrap();
        });
        add("bytes after the block", filter, nothing, &|path| {
            let mut bytes = fs::read(path.join("blocks/0/0")).unwrap();
            bytes.extend([0xaa; 100]);
            write_file(&path.join("blocks/0/0"), &bytes);
        });
        add("bat of no bytes", filter, nothing, &|path| {
            write_file(&path.join("bat"), &filter.encode(b""));
        });
        add("bat too short", filter, nothing, &|path| {
            write_file(&path.join("bat"), &filter.encode(&[0x80]));
        });
        add("bat all ones", filter, nothing, &|path| {
            write_file(&path.join("bat"), &filter.encode(&[0xff; 64]));
        });
    }
    add("bat of 64 GiB", Filter::Absent, nothing, &|path| {
        write_hole(&path.join("bat"), 64 << 30);
    });
    add("block of 64 GiB", Filter::Absent, nothing, &|path| {
        write_hole(&path.join("blocks/0/0"), 64 << 30);
    });
    let filters = [
        "",
        "null",
        "{}",
        "[",
        "[\"zstd\"]",
        "[\"brotli\",\"gzip\"]",
        "[1]",
        "\"brotli\"",
        "[[]]",
        "[\"aes-256-gcm\"]",
        "\u{feff}[]",
    ];
    for (index, text) in filters.iter().enumerate() {
        add(
            &format!("chunk-filters {index}"),
            Filter::Brotli,
            nothing,
            &|path| {
                write_file(&path.join("chunk-filters.json"), text.as_bytes());
            },
        );
    }
    add(
        "chunk-filters of 64 GiB",
        Filter::Brotli,
        nothing,
        &|path| {
            write_hole(&path.join("chunk-filters.json"), 64 << 30);
        },
    );
    cases
}

/// Few bytes that decompress to `len_bytes` zeros (whole MiB).
pub fn bomb(filter: Filter, len_bytes: u64) -> Vec<u8> {
    assert_eq!(len_bytes % MIB, 0, "whole MiB only");
    match filter {
        Filter::Absent | Filter::EmptyList => vec![0; len_bytes as usize],
        Filter::Gzip => gzip_bomb(len_bytes),
        Filter::Brotli => brotli_bomb(len_bytes),
    }
}

const MIB: u64 = 1 << 20;

/// Compresses two MiB only: after the first, every further one gives the same bytes.
fn gzip_bomb(len_bytes: u64) -> Vec<u8> {
    let piece = vec![0; MIB as usize];
    let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
    let mut step = |input: &[u8], flush| {
        let mut out = Vec::with_capacity(1 << 16);
        deflate.compress_vec(input, &mut out, flush).unwrap();
        out
    };
    let first = step(&piece, flate2::FlushCompress::Sync);
    let further = step(&piece, flate2::FlushCompress::Sync);
    let end = step(&[], flate2::FlushCompress::Finish);
    let mut crc = flate2::Crc::new();
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    for index in 0..len_bytes / MIB {
        bytes.extend(if index == 0 { &first } else { &further });
        crc.update(&piece);
    }
    bytes.extend(end);
    bytes.extend(crc.sum().to_le_bytes());
    bytes.extend((len_bytes as u32).to_le_bytes());
    bytes
}

/// The same for brotli: flushed at every MiB, its output repeats from the second one on.
fn brotli_bomb(len_bytes: u64) -> Vec<u8> {
    let piece = vec![0; MIB as usize];
    let mut encoder = brotli::CompressorWriter::new(Vec::new(), 1 << 16, 5, 22);
    let mut ends = Vec::new();
    for _ in 0..3 {
        encoder.write_all(&piece).unwrap();
        encoder.flush().unwrap();
        ends.push(encoder.get_ref().len());
    }
    let all = encoder.into_inner();
    let further = &all[ends[0]..ends[1]];
    assert_eq!(
        further,
        &all[ends[1]..ends[2]],
        "the encoder does not repeat"
    );
    let mut bytes = all[..ends[0]].to_vec();
    for _ in 1..len_bytes / MIB {
        bytes.extend(further);
    }
    bytes.extend(&all[ends[2]..]);
    bytes
}
