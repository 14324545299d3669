//! What a mount has asked of its storage so far, as an extended attribute of the mount's root.
//!
//! An attribute needs no socket and no file: who may use the mount may read it, and it goes away with
//! the mount. It is in no list of attributes, so that nothing copies it.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::image::{BlockCacheStats, DiskContext};
use crate::store::{StatsSnapshot, StoreStats};
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node};

/// The attribute's name.
pub const STATS_XATTR: &str = "user.brfs.stats";

/// What the attribute holds, as JSON. Fields that an older or newer program does not know are left
/// at zero.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MountStats {
    /// Where the repository is.
    pub repository: String,
    /// How long it has been mounted.
    pub seconds: u64,
    /// Requests to the storage, and the cache on disk.
    pub storage: StatsSnapshot,
    /// Decoded blocks in memory.
    pub memory_cache: BlockCacheStats,
}

/// A root that tells the statistics of its mount besides what `root` shows.
pub fn with_stats(root: Node, disks: Arc<DiskContext>, stats: Arc<StoreStats>) -> Node {
    let Node::Dir(root) = root else {
        return root;
    };
    Node::Dir(Arc::new(StatsRoot {
        root,
        disks,
        stats,
        since: Instant::now(),
    }))
}

struct StatsRoot {
    root: Arc<dyn Directory>,
    disks: Arc<DiskContext>,
    stats: Arc<StoreStats>,
    since: Instant,
}

impl Base for StatsRoot {
    fn identity(&self) -> Identity {
        self.root.identity()
    }
    fn attr(&self) -> Result<Attr> {
        self.root.attr()
    }
    fn quick_attr(&self) -> Result<Attr> {
        self.root.quick_attr()
    }
    fn xattr_names(&self) -> Result<Vec<OsString>> {
        self.root.xattr_names()
    }
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if name != STATS_XATTR {
            return self.root.xattr(name);
        }
        let stats = MountStats {
            repository: self.disks.store().describe(),
            seconds: self.since.elapsed().as_secs(),
            storage: self.stats.snapshot(),
            memory_cache: self.disks.cache_stats(),
        };
        Ok(serde_json::to_vec(&stats).ok())
    }
    fn is_quick(&self) -> bool {
        self.root.is_quick()
    }
}

impl Directory for StatsRoot {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        self.root.lookup(name)
    }
    fn list(&self) -> Result<Box<dyn DirStream>> {
        self.root.list()
    }
}
