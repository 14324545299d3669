//! A damage matrix: every place of a stored backup that can break, times every way to break it.
//!
//! [`spots`] names the places of one stored layer, [`Damage::ALL`] the ways; a test loops over both
//! on copies of a sound repository. The oracle: what is read is right or an error, nothing panics,
//! and everything else in the repository stays readable; unless the spot is [`Spot::silent`], where
//! the format gives a reader no chance to notice.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::chain::{Stored, WrittenLayer};
use super::rng::Rng;
use super::vhd::{FOOTER_BYTES, HEADER_BYTES};
use super::vhd_dir::Filter;

/// A range of bytes of one file that holds one structure.
#[derive(Clone, Debug)]
pub struct Spot {
    /// What is there: `leading footer`, `BAT entry 3`, …
    pub name: String,
    pub path: PathBuf,
    pub offset: u64,
    pub len_bytes: u64,
    /// No checksum covers it: changed bytes can give other data without any sign of it.
    pub silent: bool,
}

impl Spot {
    pub fn new(name: impl Into<String>, path: &Path, offset: u64, len_bytes: u64) -> Self {
        Self {
            name: name.into(),
            path: path.to_owned(),
            offset,
            len_bytes,
            silent: false,
        }
    }

    /// A whole file: alias, metadata, cache, merge state.
    pub fn whole(name: impl Into<String>, path: &Path) -> Self {
        Self::new(name, path, 0, fs::metadata(path).unwrap().len())
    }

    fn silent(mut self) -> Self {
        self.silent = true;
        self
    }
}

/// All places of one stored layer.
pub fn spots(layer: &WrittenLayer) -> Vec<Spot> {
    match &layer.stored {
        Stored::File(file) => {
            let mut spots = Vec::new();
            let path = &file.path;
            if let Some(bat_offset) = file.bat_offset {
                let footer = FOOTER_BYTES as u64;
                spots.push(Spot::new("leading footer", path, 0, footer));
                spots.push(Spot::new("header", path, footer, HEADER_BYTES as u64));
                let bat_bytes = 4 * u64::from(file.bat_entries);
                spots.push(Spot::new("whole BAT", path, bat_offset, bat_bytes).silent());
            }
            for number in file.blocks.keys() {
                let entry = file.bat_entry_offset(*number);
                let (bitmap, data) = (file.bitmap_offset(*number), file.data_offset(*number));
                let block_size = u64::from(file.block_size);
                spots.extend([
                    Spot::new(format!("BAT entry {number}"), path, entry, 4).silent(),
                    Spot::new(format!("bitmap {number}"), path, bitmap, data - bitmap).silent(),
                    Spot::new(format!("block data {number}"), path, data, block_size).silent(),
                ]);
            }
            if let Some(offset) = file.batmap_offset {
                spots.push(Spot::new("batmap", path, offset, 512));
            }
            if let Some(offset) = file.trailing_footer_offset {
                spots.push(Spot::new(
                    "trailing footer",
                    path,
                    offset,
                    FOOTER_BYTES as u64,
                ));
            }
            spots.push(Spot::whole("whole file", path).silent());
            spots
        }
        Stored::Dir(dir) => {
            let part = |name: &str| Spot::whole(name, &dir.path.join(name));
            // gzip carries a CRC; brotli and plain parts nothing.
            let unchecked = dir.filter != Filter::Gzip;
            let mark = |spot: Spot| if unchecked { spot.silent() } else { spot };
            let mut spots = vec![part("footer"), part("header"), mark(part("bat"))];
            if dir.filter.json().is_some() {
                spots.push(part("chunk-filters.json"));
            }
            for number in &dir.blocks {
                let name = format!("block object {number}");
                spots.push(mark(Spot::whole(name, &dir.block_path(*number))));
            }
            spots.push(Spot::whole("alias", &layer.head));
            spots
        }
    }
}

/// One way to break something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The file ends in the middle of the spot.
    TruncateInside,
    /// The file ends right before the spot.
    TruncateBefore,
    /// One bit of the spot is the other way round.
    FlipBit,
    Zeros,
    Ones,
    Garbage,
    /// The whole file is gone.
    Delete,
    /// The whole file is there, with no content.
    EmptyFile,
    /// The whole file is 4 KiB of garbage.
    GarbageFile,
    /// The whole file has grown to 8 GiB (a hole).
    HugeFile,
    /// 4 KiB of garbage come after the file's end.
    Appended,
    /// A directory stands in the file's place.
    Directory,
    /// A symbolic link to itself stands in the file's place.
    LinkToItself,
    /// A symbolic link to a file outside the repository stands in the file's place.
    LinkOutside,
    /// A named pipe, which would block whoever opens it carelessly.
    Pipe,
}

impl Damage {
    pub const ALL: [Self; 15] = [
        Self::TruncateInside,
        Self::TruncateBefore,
        Self::FlipBit,
        Self::Zeros,
        Self::Ones,
        Self::Garbage,
        Self::Delete,
        Self::EmptyFile,
        Self::GarbageFile,
        Self::HugeFile,
        Self::Appended,
        Self::Directory,
        Self::LinkToItself,
        Self::LinkOutside,
        Self::Pipe,
    ];

    /// Whether the damage changes bytes in place, so that [`Spot::silent`] matters.
    pub fn is_in_place(self) -> bool {
        matches!(
            self,
            Self::FlipBit | Self::Zeros | Self::Ones | Self::Garbage
        )
    }

    pub fn apply(self, spot: &Spot, rng: &mut Rng) {
        let path = &spot.path;
        let open = || {
            OpenOptions::new()
                .write(true)
                .read(true)
                .open(path)
                .unwrap()
        };
        let (offset, len) = (spot.offset, spot.len_bytes.min(1 << 24) as usize);
        let overwrite = |bytes: &[u8]| open().write_all_at(bytes, offset).unwrap();
        match self {
            Self::TruncateInside => open().set_len(offset + spot.len_bytes / 2).unwrap(),
            Self::TruncateBefore => open().set_len(offset).unwrap(),
            Self::FlipBit => {
                let at = offset + rng.below(spot.len_bytes);
                let mut byte = [0];
                open().read_exact_at(&mut byte, at).unwrap();
                byte[0] ^= 1 << rng.below(8);
                open().write_all_at(&byte, at).unwrap();
            }
            Self::Zeros => overwrite(&vec![0; len]),
            Self::Ones => overwrite(&vec![0xff; len]),
            Self::Garbage => {
                let mut bytes = vec![0; len];
                rng.fill(&mut bytes);
                overwrite(&bytes);
            }
            Self::Delete => fs::remove_file(path).unwrap(),
            Self::EmptyFile => fs::write(path, b"").unwrap(),
            Self::GarbageFile => {
                let mut bytes = vec![0; 4096];
                rng.fill(&mut bytes);
                fs::write(path, bytes).unwrap();
            }
            Self::HugeFile => open().set_len(8 << 30).unwrap(),
            Self::Appended => {
                let mut bytes = vec![0; 4096];
                rng.fill(&mut bytes);
                let file = open();
                let end = file.metadata().unwrap().len();
                file.write_all_at(&bytes, end).unwrap();
            }
            Self::Directory => {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }
            Self::LinkToItself => {
                fs::remove_file(path).unwrap();
                symlink(path.file_name().unwrap(), path).unwrap();
            }
            Self::LinkOutside => {
                fs::remove_file(path).unwrap();
                symlink("/etc/passwd", path).unwrap();
            }
            Self::Pipe => {
                fs::remove_file(path).unwrap();
                let status = Command::new("mkfifo").arg(path).status().unwrap();
                assert!(status.success());
            }
        }
    }
}

/// Copies a directory tree with its holes and links, so that each damage starts from sound data.
pub fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .args(["-a", "--sparse=always", "--reflink=auto"])
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success(), "cp {} failed", from.display());
}

/// The same spot in a copy of the tree.
pub fn in_copy(spot: &Spot, original: &Path, copy: &Path) -> Spot {
    let relative = spot.path.strip_prefix(original).expect("inside the tree");
    Spot {
        path: copy.join(relative),
        ..spot.clone()
    }
}
