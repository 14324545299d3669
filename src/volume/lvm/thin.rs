//! Thin pools: which chunk of a pool's data holds which chunk of a thin volume.
//!
//! A pool's metadata volume begins with a superblock; that names a B-tree from device numbers to the
//! root of each device's own tree, which leads from chunks of the device to chunks of the data volume.
//! Snapshots are devices that share chunks, nothing more.
//! Layouts: `dm-thin-metadata.c` of Linux; metadata made by `thin_restore` and by the kernel.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::super::bits::{le32, le64};
use super::persistent::{Kind, MAX_LEVELS, Node, read_block};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Extent, ExtentKind, ReadAt, check_range, read_pieces};

const MAGIC: u64 = 27_022_010;
const SUPERBLOCK: Kind = Kind {
    xor: 160_774,
    number_at: 8,
};
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
        let block = read_block(&*metadata, 0, SUPERBLOCK)?;
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

    /// The thin volume with this device number. What it never wrote is in the volume `outside`, if there is one, as
    /// far as that goes.
    ///
    /// # Errors
    /// `Corrupt` when the pool has no such device.
    pub fn volume(
        self: &Arc<Self>,
        device: u64,
        len_bytes: u64,
        outside: Option<Arc<dyn ReadAt>>,
    ) -> Result<Arc<dyn ReadAt>> {
        let root = self.find(self.devices, device)?.data;
        let root = root.ok_or_else(|| bad("the volume is not in the pool's metadata"))?;
        self.node(root)?;
        Ok(Arc::new(ThinVolume {
            pool: self.clone(),
            root,
            len_bytes,
            outside,
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
        let node = Arc::new(Node::read(&*self.metadata, number)?);
        self.nodes.insert(number, node.clone());
        Ok(node)
    }
}

/// A thin volume.
struct ThinVolume {
    pool: Arc<Pool>,
    root: u64,
    len_bytes: u64,
    outside: Option<Arc<dyn ReadAt>>,
}

/// Where a byte of a thin volume is.
#[derive(Clone, Copy)]
enum At {
    /// In the pool's data.
    Pool(u64),
    /// In the volume outside.
    Outside(u64),
    /// Nowhere: it reads as zero.
    Nowhere,
}

impl ThinVolume {
    /// Where the byte at `offset` is, and the first byte for which that has to be asked again.
    fn place(&self, offset: u64) -> Result<(At, u64)> {
        let chunk_bytes = self.pool.chunk_bytes;
        let chunk = offset / chunk_bytes;
        let found = self.pool.find(self.root, chunk)?;
        let within = offset % chunk_bytes;
        let (place, next) = match found.data {
            Some(value) => {
                let start = (value >> TIME_BITS).checked_mul(chunk_bytes);
                let start = start.filter(|start| start.checked_add(chunk_bytes).is_some());
                let start = start.ok_or_else(|| bad("a chunk lies past the end of everything"))?;
                (At::Pool(start + within), Some(chunk + 1))
            }
            None => (At::Nowhere, found.next),
        };
        let end = next.map_or(u64::MAX, |next| next.saturating_mul(chunk_bytes));
        let end = end.min(self.len_bytes);
        match (
            place,
            self.outside.as_ref().map(|outside| outside.len_bytes()),
        ) {
            (At::Nowhere, Some(len)) if offset < len => Ok((At::Outside(offset), end.min(len))),
            _ => Ok((place, end)),
        }
    }
}

impl ReadAt for ThinVolume {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        let data = &self.pool.data;
        let fill = |place: At, now: &mut [u8], _| {
            let at = match (place, &self.outside) {
                (At::Pool(at), _) => at,
                (At::Outside(at), Some(outside)) => return outside.read_exact_at(now, at),
                _ => {
                    now.fill(0);
                    return Ok(());
                }
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
        let kind = match (place, &self.outside) {
            (At::Pool(_), _) => ExtentKind::Data,
            (At::Outside(at), Some(outside)) => {
                let inner = outside.extent_at(at)?;
                return Ok(Extent {
                    kind: inner.kind,
                    end: inner.end.min(end),
                });
            }
            _ => ExtentKind::Hole,
        };
        Ok(Extent { kind, end })
    }
}
