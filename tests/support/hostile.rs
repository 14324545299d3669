//! Malicious input: aliases, parent names and metadata that lead outside the repository, chains that
//! loop, JSON of all sorts.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::absurd::{BLOCK_BYTES, Case, SIZE_BYTES, small_disk};
use super::blocks::LayerBlocks;
use super::chain::{Chain, Layer, Storage};
use super::files::{write_file, write_hole};
use super::rng::Rng;
use super::vhd::disk_type;
use super::vhd_dir::Filter;
use super::vhd_file::VhdFileSpec;

/// Aliases that lead astray; `secret` is a file outside the repository that must not be read.
pub fn hostile_aliases(directory: &Path, rng: &mut Rng, secret: &Path) -> Vec<Case> {
    let absolute = secret.to_string_lossy().into_owned();
    let climbing = format!("{}{}", "../".repeat(40), absolute.trim_start_matches('/'));
    let targets: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("dot", b".".to_vec()),
        ("dots", b"..".to_vec()),
        ("slash", b"/".to_vec()),
        ("shadow", b"../../../../etc/shadow".to_vec()),
        ("climbing", climbing.into_bytes()),
        ("absolute", absolute.into_bytes()),
        ("gone", b"data/gone.vhd".to_vec()),
        ("itself", b"20260301T013000Z.alias.vhd".to_vec()),
        ("another alias", b"sound.alias.vhd".to_vec()),
        ("nul", b"data/\0.vhd".to_vec()),
        ("newline", b"data/20260301T013000Z.vhd\n".to_vec()),
        ("not UTF-8", b"data/\xff\xfe.vhd".to_vec()),
        ("url", b"file:///etc/passwd".to_vec()),
        ("long", [b"a/".repeat(5000), b"x.vhd".to_vec()].concat()),
        ("long name", vec![b'n'; 1000]),
        ("through a link", b"outside/secret.vhd".to_vec()),
        ("a link", b"link.vhd".to_vec()),
    ];
    let mut cases = Vec::new();
    for (name, target) in targets {
        let folder = directory.join(format!("alias {name}").replace(' ', "-"));
        let mut chain = Chain::new();
        let layer = chain.push(rng, SIZE_BYTES);
        layer.name = "sound".to_owned();
        layer
            .block_size(BLOCK_BYTES)
            .storage(Storage::Dir(Filter::Absent));
        layer.writes = small_disk();
        chain.write(&folder);
        symlink(secret.parent().unwrap(), folder.join("outside")).unwrap();
        symlink(secret, folder.join("link.vhd")).unwrap();
        let head = folder.join("20260301T013000Z.alias.vhd");
        write_file(&head, &target);
        let name = format!("alias: {name}");
        cases.push(Case { name, head });
    }
    let head = directory.join("alias-huge/20260301T013000Z.alias.vhd");
    write_hole(&head, 1 << 30);
    let name = "alias: 1 GiB".to_owned();
    cases.push(Case { name, head });
    cases
}

/// Differencing disks whose parents cannot be: loops, escapes, names that are no names.
pub fn hostile_parents(directory: &Path, rng: &mut Rng, secret: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    let absolute = secret.to_string_lossy().into_owned();
    let names: Vec<(&str, Vec<u16>)> = [
        ("empty", ""),
        ("dot", "."),
        ("dots", ".."),
        ("shadow", "../../../../etc/shadow"),
        ("absolute", &absolute),
        ("climbing", &format!("{}{absolute}", "../".repeat(40))),
        ("host path", "/dev/VG_XenStorage-1/VHD-2"),
        ("windows path", "C:\\disks\\parent.vhd"),
        ("gone", "20250101T000000Z.vhd"),
        ("metadata", "../../../20260301T013000Z.json"),
        ("nul inside", "a\0b.vhd"),
        ("newline", "a\nb.vhd"),
    ]
    .map(|(name, text)| (name, text.encode_utf16().collect()))
    .into_iter()
    .chain([
        ("lone surrogate", vec![0xd800, 0x0041]),
        ("256 units", vec![0x0041; 256]),
    ])
    .collect();
    for (name, units) in names {
        let folder = directory.join(format!("parent {name}").replace(' ', "-"));
        let parent_id = rng.uuid();
        let head = folder.join("20260302T013000Z.vhd");
        let sound = VhdFileSpec::differencing(SIZE_BYTES, BLOCK_BYTES, rng.uuid(), parent_id, "");
        let mut spec = sound;
        spec.header.parent_unicode_name = units;
        let disk = small_disk();
        spec.write(
            &head,
            &LayerBlocks::new(&disk, BLOCK_BYTES, SIZE_BYTES / 512),
        );
        let name = format!("parent: {name}");
        cases.push(Case { name, head });
    }
    for (name, length) in [("itself", 1), ("loop of two", 2), ("loop of 500", 500)] {
        let folder = directory.join(format!("parent {name}").replace(' ', "-"));
        cases.push(Case {
            name: format!("parent: {name}"),
            head: write_loop(&folder, rng, length),
        });
    }
    cases
}

/// A chain whose oldest layer names the youngest as its parent, uuids and all.
pub fn write_loop(folder: &Path, rng: &mut Rng, length: u64) -> PathBuf {
    let mut chain = Chain::long(rng, length, SIZE_BYTES, BLOCK_BYTES);
    let (parent_id, parent_name) = {
        let youngest: &Layer = chain.layers.last().expect("length is at least 1");
        (youngest.unique_id, youngest.head_name())
    };
    chain.layers[0].file_tweak(move |spec| {
        spec.footer.disk_type = disk_type::DIFFERENCING;
        spec.header = spec.header.clone().with_parent(parent_id, &parent_name);
    });
    chain.write(folder).youngest().to_owned()
}

/// Bytes that may stand in a `.json` file instead of a restore point's metadata.
pub fn hostile_json(sound: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut half = sound.len() / 2;
    while !sound.is_char_boundary(half) {
        half -= 1;
    }
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("empty", Vec::new()),
        ("truncated", text(&sound[..half])),
        ("last byte missing", text(&sound[..sound.len() - 1])),
        ("bytes after the end", text(&format!("{sound}garbage"))),
        ("byte order mark", text(&format!("\u{feff}{sound}"))),
        (
            "not UTF-8",
            [
                &sound.as_bytes()[..half],
                b"\xff",
                &sound.as_bytes()[half..],
            ]
            .concat(),
        ),
        ("zeros", vec![0; 10_000]),
        ("null", text("null")),
        ("array", text("[]")),
        ("string", text("\"delta\"")),
        ("number", text("1e999")),
        ("empty object", text("{}")),
        ("mode only", text(r#"{"mode":"delta"}"#)),
        (
            "unknown mode",
            text(r#"{"mode":"quantum","version":"9.0.0"}"#),
        ),
        (
            "wrong types",
            text(
                r#"{"mode":1,"timestamp":"x","vm":[],"vdis":7,"vbds":null,"vhds":[{}],"size":-1,"jobId":{}}"#,
            ),
        ),
        (
            "paths that climb",
            text(
                r#"{"mode":"delta","version":"2.0.0","timestamp":1,"vm":{"uuid":"x","name_label":"n"},"vdis":{"OpaqueRef:1":{"uuid":"u"}},"vbds":{},"vhds":{"OpaqueRef:1":"../../../../etc/shadow"}}"#,
            ),
        ),
        (
            "xva that climbs",
            text(
                r#"{"mode":"full","version":"2.0.0","timestamp":1,"vm":{},"xva":"../../../../etc/shadow"}"#,
            ),
        ),
        (
            "huge timestamp",
            text(r#"{"mode":"delta","timestamp":1.7e308,"vm":{}}"#),
        ),
        (
            "negative timestamp",
            text(r#"{"mode":"delta","timestamp":-99999999999999999999,"vm":{}}"#),
        ),
        (
            "doubled keys",
            text(r#"{"mode":"delta","mode":"full","vm":{},"vm":null}"#),
        ),
        (
            "deep arrays",
            [b"[".repeat(200_000), b"]".repeat(200_000)].concat(),
        ),
        ("deep objects", b"{\"a\":".repeat(200_000)),
        ("huge string", text(&format!("\"{}\"", "x".repeat(4 << 20)))),
    ]
}
