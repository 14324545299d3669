//! The bodies of brfs' fuzz targets.

pub mod bodies;
pub mod guests;
pub mod seal;

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use brfs::io::ReadAt;

fn name_or(other: &str) -> String {
    // What a reader panics over is caught and becomes an error; the fuzzer's own hook would end the run.
    std::panic::set_hook(Box::new(|_| {}));
    std::env::var("BRFS_GUEST").unwrap_or(other.into())
}

/// A committed image, if there is one of that name.
fn golden(name: &str) -> Option<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/guests")
        .join(format!("{name}.img.zst"));
    let file = std::fs::File::open(&path).ok()?;
    let mut image = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file)
        .unwrap()
        .read_to_end(&mut image)
        .unwrap();
    Some(image)
}

/// The image that the target `guest` damages: the one that `BRFS_GUEST` names.
static GUEST: LazyLock<(Arc<dyn ReadAt>, Vec<u64>)> = LazyLock::new(|| {
    let name = name_or("ext4-dirty");
    let image = golden(&name).unwrap_or_else(|| panic!("there is no {name}"));
    let blocks = guests::interesting_blocks(&image);
    (Arc::new(image), blocks)
});

/// Unpacks the image, which takes a while: no input should be blamed for it.
pub fn load_guest() {
    LazyLock::force(&GUEST);
}

/// A committed guest image with some bytes changed.
pub fn guest(input: &[u8]) {
    let (image, blocks) = &*GUEST;
    guests::look_at(guests::Damaged::of(image.clone(), blocks, input));
}

/// The images that the target `btrfs_set` changes: those of the set that `BRFS_GUEST` names.
static SET: LazyLock<seal::Set> = LazyLock::new(|| {
    let name = name_or("btrfs-raid6");
    let images = ["a", "b", "c", "d"].iter().filter_map(|letter| golden(&format!("{name}-{letter}")));
    seal::Set::new(images.map(|image| Arc::new(image) as Arc<dyn ReadAt>).collect())
});

/// The devices of a committed btrfs with some metadata changed, and checksums that hold.
pub fn btrfs_set(input: &[u8]) {
    guests::look_at_all(SET.changed(input));
}
