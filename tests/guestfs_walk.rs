//! The tree that brfs shows of a guest file system is the tree that the kernel's own driver shows:
//! names, types, modes, owners, sizes, times, link counts, targets, attributes and contents.
//!
//! The images under `tests/fixtures/guests` were made by `scripts/fixtures/make-guests`, which also
//! wrote down what the kernel showed. Larger ones can be compared with
//! `BRFS_GUESTS=DIR cargo test --release --test guestfs_walk -- --ignored`.

mod guest_support;

use std::path::Path;
use std::sync::Arc;

use brfs::io::ReadAt;
use guest_support::{Image, differences, disk, walk};

fn compare(name: &str, image: Arc<dyn ReadAt>, manifest: &str) {
    let found = walk(&*disk(image));
    let count = found.len();
    let different = differences(manifest, found);
    assert!(
        different.is_empty(),
        "{name}: {} differences in {count} paths:\n{}",
        different.len(),
        different[..different.len().min(400)].join("\n")
    );
    assert!(count > 0, "{name}: nothing was found");
    println!("{name}: {count} paths are equal");
}

#[test]
#[ignore = "needs images made by scripts/fixtures/make-guests"]
fn given_images_are_as_the_kernel_shows_them() {
    let Some(dir) = std::env::var_os("BRFS_GUESTS") else {
        panic!("set BRFS_GUESTS to a directory made by make-guests");
    };
    let only = std::env::var("BRFS_GUEST").unwrap_or_default();
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".manifest").map(str::to_string)
        })
        .filter(|name| only.is_empty() || *name == only)
        .collect();
    names.sort();
    let mut failed = Vec::new();
    for name in names {
        let image = Image::open(&Path::new(&dir).join(format!("{name}.img")));
        let manifest =
            std::fs::read_to_string(Path::new(&dir).join(format!("{name}.manifest"))).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            compare(&name, image, &manifest)
        }));
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().cloned();
            println!("{}", text.unwrap_or_default());
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
