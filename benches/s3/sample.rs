//! A repository of one disk on the server, and its objects fetched without a mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use brfs::buffers::Buffer;
use brfs::codec::Filter as Codec;
use brfs::config::{Location, StoreOptions};
use brfs::parallel::parallel_map;
use brfs::store::{Store, StorePath, Validity};

use crate::Run;
use crate::data::{self, BLOCK};
use crate::readers::sync_tree;
use crate::support::chain::{Chain, Storage};
use crate::support::vhd_dir;

/// Bytes of a decoded block: its bitmap and its data.
pub const DECODED: usize = 512 + BLOCK as usize;

/// How many requests brfs has in flight when it reads ahead; the ceilings have as many.
pub const IN_FLIGHT: usize = 32;

/// A written repository of one disk.
pub struct Sample {
    pub name: &'static str,
    pub chain: Chain,
    pub repository: PathBuf,
    images: PathBuf,
}

impl Sample {
    /// A full disk over a chain of so many images.
    pub fn full(run: &Run, name: &'static str, storage: Storage, len: usize) -> Self {
        let chain = data::chain(len, storage, run.size, 0..run.size / BLOCK);
        Self::write(run, name, chain)
    }

    pub fn write(run: &Run, name: &'static str, chain: Chain) -> Self {
        let repository = run.dir.path().join(name);
        let images = data::write(&repository, chain.clone());
        sync_tree(&repository);
        Sample {
            name,
            chain,
            repository,
            images,
        }
    }

    /// The file with the newest state of a block of a VHD directory.
    pub fn block_path(&self, block: u64) -> PathBuf {
        let sector = block * (BLOCK / 512);
        let layers = self.chain.layers.iter();
        let newest = layers.rev().find(|l| l.writes.is_written(sector));
        let directory = format!("data/{}.vhd", newest.expect("a full disk").name);
        vhd_dir::block_path(&self.images.join(directory), block)
    }

    /// The objects with the newest state of all blocks, in the disk's order.
    pub fn objects(&self) -> Vec<StorePath> {
        let blocks = 0..self.chain.layers[0].size_bytes / BLOCK;
        blocks.map(|n| self.object(&self.block_path(n))).collect()
    }

    /// The only VHD file.
    pub fn vhd_file(&self) -> StorePath {
        let layer = self.chain.layers.first().expect("an image");
        self.object(&self.images.join(layer.head_name()))
    }

    fn object(&self, path: &Path) -> StorePath {
        let path = path.strip_prefix(&self.repository).expect("within");
        StorePath::new(path.to_str().expect("text")).expect("a path")
    }

    pub fn remove(self) {
        std::fs::remove_dir_all(&self.repository).ok();
    }
}

/// A client of its own, as a mount would have it, with its first connection made.
pub fn client(url: &str) -> Arc<dyn Store> {
    let location = Location::parse(url).expect("a URL");
    let options = StoreOptions::default();
    let store = location.connect(&options).expect("a client");
    store.list(&StorePath::root()).expect("a listing");
    store
}

/// Fetches objects by a fresh client, decodes them where a codec is named, and throws them away;
/// gives the seconds.
pub fn fetch(url: &str, objects: &[StorePath], in_flight: usize, codec: Option<Codec>) -> f64 {
    let store = client(url);
    let started = Instant::now();
    parallel_map(objects, in_flight, |path| {
        let (stored, _) = store
            .read(path, 64 << 20, Validity::Ask)
            .expect("an object");
        if let Some(codec) = codec {
            let mut decoded = Buffer::new(DECODED);
            codec.decode_into(&stored, &mut decoded).expect("decodes");
            std::hint::black_box(decoded.into_bytes());
        }
    });
    started.elapsed().as_secs_f64()
}

/// Fetches a whole object in ranges of a block; gives the seconds.
pub fn fetch_ranges(url: &str, object: &StorePath, in_flight: usize) -> f64 {
    let store = client(url);
    let file = store.open(object, None).expect("an object");
    let len = file.opened_meta().len_bytes;
    let places: Vec<u64> = (0..len).step_by(BLOCK as usize).collect();
    let started = Instant::now();
    parallel_map(&places, in_flight, |&at| {
        let mut buf = Buffer::new((len - at).min(BLOCK) as usize);
        file.read_exact_at(&mut buf, at).expect("a range");
        std::hint::black_box(buf.into_bytes());
    });
    started.elapsed().as_secs_f64()
}
