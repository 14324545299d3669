//! Thin pools: which chunk of a pool's data holds which chunk of a thin volume.
//!
//! A pool's metadata volume begins with a superblock; that names a B-tree from device numbers to the
//! root of each device's own tree, which leads from chunks of the device to chunks of the data volume.
//! Snapshots are devices that share chunks, nothing more. Every block carries its number and a CRC-32C.
//! Layouts: `dm-thin-metadata.c` and `dm-btree-internal.h` of Linux; metadata made by `thin_restore`.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::super::bits::{crc32c, le32, le64};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};

/// Metadata is in blocks of this size.
const BLOCK_BYTES: u64 = 4096;
const HEADER_BYTES: usize = 32;
const MAGIC: u64 = 27_022_010;
/// What checksums are combined with, for superblocks and for nodes.
const SUPERBLOCK_XOR: u32 = 160_774;
const NODE_XOR: u32 = 121_107;
const INTERNAL_NODE: u32 = 1;
const LEAF_NODE: u32 = 2;
/// Levels of one tree; 252 entries in a node make 2^64 chunks in nine.
const MAX_LEVELS: usize = 12;
/// In a mapping, the bits below the data chunk are a time.
const TIME_BITS: u32 = 24;
/// Nodes kept for a pool: 2 MiB.
const KEPT_NODES: usize = 512;

fn bad(message: &str) -> Error {
    Error::corrupt(format!("thin pool: {message}"))
}

/// A pool's metadata and data.
pub struct Pool {
    metadata: Arc<dyn ReadAt>,
    data: Arc<dyn ReadAt>,
    chunk_bytes: u64,
    devices: u64,
    nodes: Cache<u64, Arc<Node>>,
}

/// A node of a tree, checked.
struct Node {
    is_leaf: bool,
    keys: Vec<u64>,
    values: Vec<u64>,
}

/// What a chunk of a device is, up to (not including) another chunk for which the same can be said.
struct Found {
    data: Option<u64>,
    /// `None`: to the end of the device.
    next: Option<u64>,
}

impl Pool {
    /// Opens a pool whose volume group says that its chunks have this size.
    ///
    /// # Errors
    /// `Corrupt` when the superblock is damaged or says otherwise; `Unsupported` for features that are
    /// not known.
    pub fn open(
        metadata: Arc<dyn ReadAt>,
        data: Arc<dyn ReadAt>,
        chunk_bytes: u64,
    ) -> Result<Arc<Pool>> {
        let block = read_block(&*metadata, 0, SUPERBLOCK_XOR)?;
        if le64(&block, 32) != MAGIC {
            return Err(bad("there is no superblock"));
        }
        let (version, incompatible) = (le32(&block, 40), le32(&block, 360));
        if !(1..=2).contains(&version) || incompatible != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("thin pool metadata of version {version} is not read"),
            ));
        }
        if u64::from(le32(&block, 336)) * 512 != chunk_bytes || chunk_bytes == 0 {
            return Err(bad(
                "superblock and volume group do not agree on the size of chunks",
            ));
        }
        Ok(Arc::new(Pool {
            metadata,
            data,
            chunk_bytes,
            devices: le64(&block, 320),
            nodes: Cache::new(KEPT_NODES),
        }))
    }

    /// The thin volume with this device number.
    ///
    /// # Errors
    /// `Corrupt` when the pool has no such device.
    pub fn volume(self: &Arc<Self>, device: u64, len_bytes: u64) -> Result<Arc<dyn ReadAt>> {
        let root = self.find(self.devices, device)?.data;
        let root = root.ok_or_else(|| bad("the volume is not in the pool's metadata"))?;
        self.node(root)?;
        Ok(Arc::new(ThinVolume {
            pool: self.clone(),
            root,
            len_bytes,
        }))
    }

    /// The value of a key in a tree.
    fn find(&self, root: u64, key: u64) -> Result<Found> {
        let mut at = root;
        let mut next = None;
        for _ in 0..MAX_LEVELS {
            let node = self.node(at)?;
            // The last entry that does not lie behind the key.
            let behind = node.keys.partition_point(|&known| known <= key);
            next = node.keys.get(behind).copied().or(next);
            let Some(index) = behind.checked_sub(1) else {
                return Ok(Found { data: None, next });
            };
            if !node.is_leaf {
                at = node.values[index];
                continue;
            }
            let data = (node.keys[index] == key).then(|| node.values[index]);
            return Ok(Found { data, next });
        }
        Err(bad("a tree is deeper than any"))
    }

    fn node(&self, number: u64) -> Result<Arc<Node>> {
        if let Some(node) = self.nodes.get(&number) {
            return Ok(node);
        }
        let block = read_block(&*self.metadata, number, NODE_XOR)?;
        let (flags, entries, room, value_bytes) = (
            le32(&block, 4),
            le32(&block, 16) as usize,
            le32(&block, 20) as usize,
            le32(&block, 24),
        );
        let fits = room <= (BLOCK_BYTES as usize - HEADER_BYTES) / 16;
        // Both trees have values of 8 bytes, in their inner nodes and in their leaves.
        if !matches!(flags, INTERNAL_NODE | LEAF_NODE) || value_bytes != 8 || !fits {
            return Err(bad("a node of a tree makes no sense"));
        }
        if entries > room || (entries == 0 && flags == INTERNAL_NODE) {
            return Err(bad("a node of a tree has more entries than room"));
        }
        let numbers = |start: usize| -> Vec<u64> {
            (0..entries).map(|i| le64(&block, start + i * 8)).collect()
        };
        let keys = numbers(HEADER_BYTES);
        if !keys.is_sorted_by(|a, b| a < b) {
            return Err(bad("the keys of a tree are not in order"));
        }
        let node = Arc::new(Node {
            is_leaf: flags == LEAF_NODE,
            keys,
            values: numbers(HEADER_BYTES + room * 8),
        });
        self.nodes.insert(number, node.clone());
        Ok(node)
    }
}

/// A metadata block whose checksum holds and that knows where it lies.
fn read_block(metadata: &dyn ReadAt, number: u64, xor: u32) -> Result<Vec<u8>> {
    let at = number
        .checked_mul(BLOCK_BYTES)
        .filter(|&at| check_range(at, BLOCK_BYTES, metadata.len_bytes()).is_ok())
        .ok_or_else(|| bad("a block lies past the end of the metadata"))?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    metadata.read_exact_at(&mut block, at)?;
    // Linux leaves out the final inversion.
    if !crc32c(&block[4..]) ^ xor != le32(&block, 0) || le64(&block, 8) != number {
        return Err(bad("a block of metadata has a wrong checksum").at(at));
    }
    Ok(block)
}

/// A thin volume.
struct ThinVolume {
    pool: Arc<Pool>,
    root: u64,
    len_bytes: u64,
}

impl ThinVolume {
    /// Where the byte at `offset` is in the pool's data (`None`: nowhere, it reads as zero), and the
    /// first byte for which that has to be asked again.
    fn place(&self, offset: u64) -> Result<(Option<u64>, u64)> {
        let chunk_bytes = self.pool.chunk_bytes;
        let chunk = offset / chunk_bytes;
        let found = self.pool.find(self.root, chunk)?;
        let within = offset % chunk_bytes;
        let (place, next) = match found.data {
            Some(value) => {
                let start = (value >> TIME_BITS).checked_mul(chunk_bytes);
                let start = start.filter(|start| start.checked_add(chunk_bytes).is_some());
                let start = start.ok_or_else(|| bad("a chunk lies past the end of everything"))?;
                (Some(start + within), Some(chunk + 1))
            }
            None => (None, found.next),
        };
        let end = next.map_or(u64::MAX, |next| next.saturating_mul(chunk_bytes));
        Ok((place, end.min(self.len_bytes)))
    }
}

impl ReadAt for ThinVolume {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let data = &self.pool.data;
        let fill = |place: Option<u64>, now: &mut [u8], _| {
            let Some(at) = place else {
                now.fill(0);
                return Ok(());
            };
            if check_range(at, now.len() as u64, data.len_bytes()).is_err() {
                return Err(bad("a chunk lies past the end of the pool's data"));
            }
            data.read_exact_at(now, at)
        };
        read_pieces(buf, offset, |at| self.place(at), fill)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let (place, end) = self.place(offset)?;
        Ok(Extent {
            kind: match place {
                None => ExtentKind::Hole,
                Some(_) => ExtentKind::Data,
            },
            end,
        })
    }
}
