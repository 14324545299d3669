//! The bodies of brfs' fuzz targets.

pub mod bodies;
pub mod guests;

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use brfs::io::ReadAt;

/// The image that the target `guest` damages: the one that `BRFS_GUEST` names.
static GUEST: LazyLock<(Arc<dyn ReadAt>, Vec<u64>)> = LazyLock::new(|| {
    // What a reader panics over is caught and becomes an error; the fuzzer's own hook would end the run.
    std::panic::set_hook(Box::new(|_| {}));
    let name = std::env::var("BRFS_GUEST").unwrap_or("ext4-dirty".into());
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/guests")
        .join(format!("{name}.img.zst"));
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut image = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file)
        .unwrap()
        .read_to_end(&mut image)
        .unwrap();
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
