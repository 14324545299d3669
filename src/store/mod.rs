//! Where a repository lives: listing, heads and reads of named objects, nothing else.
//!
//! A store knows no format. Paths are [`StorePath`]s, relative to the repository's root and unable
//! to leave it. On file systems objects are files; on object stores directories are key prefixes.

#[cfg(feature = "s3")]
pub mod azure;
mod cache_entry;
mod cached;
mod decrypt;
mod disk_cache;
mod layer;
mod local;
mod local_root;
pub mod notice;
mod path;
#[cfg(feature = "s3")]
mod remote;
#[cfg(feature = "s3")]
pub mod s3;
mod stats;

pub use cached::{CachedStore, DiskCacheOptions};
pub use decrypt::{DecryptStore, MAX_OPEN_LEN};
pub use layer::StoreLayer;
pub use local::LocalStore;
pub use path::StorePath;
pub use stats::{
    CountingStore, DiskCacheSnapshot, Request, RequestSnapshot, StatsSnapshot, StoreStats,
};

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::buffers::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;

/// An opaque mark of an object's content: equal marks mean that nothing has been written since.
/// Local files: device, inode, size and mtime; object stores: the ETag (or a hash of it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(pub u128);

/// What is known of an object without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Length in bytes as stored.
    pub len_bytes: u64,
    /// Time of the last modification as the storage tells it.
    pub modified: Option<SystemTime>,
    /// Changes when the content does.
    pub version: Version,
}

/// What an entry is; of symbolic links that are followed, what they lead to. Anything else (sockets,
/// devices) is left out of listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file or object.
    File,
    /// A directory or key prefix.
    Dir,
    /// A symbolic link that is not followed. What it stands for is not seen, and whoever lists must say so.
    Link(LinkFault),
}

/// Why a symbolic link is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkFault {
    /// It leads out of the repository.
    Outside,
    /// What it leads to does not exist.
    Dangling,
    /// It leads to itself, or through too many other links.
    Loop,
    /// The kernel cannot keep it from leading out of the repository.
    OldKernel,
}

impl LinkFault {
    /// The error of using what is at `path`, with what a person can do.
    pub fn error(self, path: &StorePath) -> Error {
        let message = match self {
            LinkFault::Outside => {
                "is a symbolic link out of the repository, which is not followed: mount what it leads \
                 to in its place (mount --bind)"
            }
            LinkFault::Dangling => "is a symbolic link to something that does not exist",
            LinkFault::Loop => "is a symbolic link that leads in a circle",
            LinkFault::OldKernel => {
                "is a symbolic link, which is not followed on kernels before 5.6: mount what it leads \
                 to in its place (mount --bind)"
            }
        };
        Error::new(ErrorKind::Link, message).with_object(path)
    }
}

/// One name of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last path component. Names that are not UTF-8 are foreign to XO and are left out.
    pub name: String,
    /// File or directory.
    pub kind: EntryKind,
    /// Present where the listing tells it at no extra cost (object stores), absent otherwise.
    pub meta: Option<Meta>,
}

/// A file opened for reading at offsets. It stays readable, with the content it was opened with,
/// as far as the storage can promise that (an unlinked local file does; see [`StoredFile::head`]).
///
/// It is bytes at an offset ([`ReadAt`]) and its state. The length is that of the opened state. A range
/// past the end is `Corrupt`: the caller took the range from a structure that promised those bytes.
/// (A file that has grown meanwhile has them.)
pub trait StoredFile: ReadAt {
    /// The file's state when it was opened.
    fn opened_meta(&self) -> Meta;

    /// The file's state now, by its handle, not its name. Cheap on local storage.
    fn head(&self) -> Result<Meta>;

    /// The `len` bytes from `offset`, where a copy into the caller's buffer would be one too many.
    ///
    /// # Errors
    /// As [`ReadAt::read_exact_at`].
    fn read_bytes_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut buf = Buffer::new(len);
        self.read_exact_at(&mut buf, offset)?;
        Ok(buf.into_bytes())
    }

    /// Whether all that is read is of the one state in which the file was opened: once it is replaced,
    /// reads fail with `Changed`. So it is with objects; files of a file system can be written to.
    fn is_pinned(&self) -> bool {
        false
    }

    /// Tells that this range will be read soon. Storage that gains by it begins to fetch it; nobody
    /// waits for that.
    fn will_read(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}

/// How a store behaves, for those who plan reads on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreTraits {
    /// A small ranged read costs about what its bytes cost (local disks): read just what is asked
    /// for. When false (object stores), a block is fetched whole and kept.
    pub cheap_ranges: bool,
    /// A read can take long for reasons outside this machine; never do one on a thread that others
    /// wait for.
    pub remote: bool,
    /// How many requests may usefully be in flight at once.
    pub parallelism: usize,
    /// The lengths that are told of files that were not read are those of their content. When false, a
    /// file can be somewhat shorter.
    pub exact_lengths: bool,
}

/// How long a copy of an object is good: what a read may be answered from instead of the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity<'a> {
    /// No copy is good, and none need be kept.
    Ask,
    /// The caller knows that the content is the same as long as the path and this number are. A copy may be
    /// kept and given; the state told with it is that of the time when it was read.
    Generation(u128),
    /// A small file, of which a copy may be kept. It is given only if it is of exactly the state that a
    /// listing has told here: nothing but the listing vouches for it. Without one the storage is asked.
    Listed(Option<&'a Meta>),
}

/// A repository's storage. All calls block; all are safe from any thread.
///
/// Nothing has a default here, so that no implementation can forget something. What stands before another
/// store implements [`StoreLayer`], where the defaults are the other store's answers.
pub trait Store: Send + Sync + fmt::Debug {
    /// The names in a directory, unordered, complete or an error (a partial listing is never
    /// returned). `NotFound` when there is no such directory.
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>>;

    /// The state of a file. `NotFound` when it is not there or is a directory.
    fn head(&self, path: &StorePath) -> Result<Meta>;

    /// A whole file of at most `max_len` bytes, with the state it had.
    ///
    /// # Errors
    /// `Corrupt` when it is longer than `max_len`: callers know how long the part may be.
    fn read(&self, path: &StorePath, max_len: u64, validity: Validity<'_>)
    -> Result<(Bytes, Meta)>;

    /// Opens a file for reads at offsets. `listed` is the state that a listing has told, if it did: storage
    /// that can tell states apart may take that as the state to open, and ask nothing. Reads fail with
    /// `Changed` when the file is in another state.
    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>>;

    /// Bytes of a file that this store has opened at `path` and whose state is fixed
    /// ([`StoredFile::is_pinned`]). A copy may be kept, as that of this path, state and range, and given.
    ///
    /// # Errors
    /// As [`ReadAt::read_exact_at`].
    fn read_range(
        &self,
        path: &StorePath,
        file: &dyn StoredFile,
        offset: u64,
        len: usize,
    ) -> Result<Bytes>;

    /// Whether a copy is kept: with a generation, one that [`Store::open_copy`] would find; without, what
    /// the last read as [`Validity::Listed`] brought, be it that there is none. Then a listing may save
    /// requests.
    fn has_copy(&self, path: &StorePath, generation: Option<u128>) -> bool;

    /// What was kept as [`Validity::Generation`], where parts of it can be read for little more than their
    /// bytes cost. Nothing is asked of anybody far away, and reads are checked against what was kept: a
    /// damaged part is an error, and reading the whole then fetches it anew.
    fn open_copy(
        &self,
        path: &StorePath,
        max_len: u64,
        generation: u128,
    ) -> Option<Arc<dyn StoredFile>>;

    /// How to plan reads.
    fn traits(&self) -> StoreTraits;

    /// Where this is, for people: never with secrets.
    fn describe(&self) -> String;
}

/// A read as [`Validity::Listed`], made sense of by `parse`. What is corrupt is fetched once more: a copy may
/// have been damaged on its way, before it was kept.
///
/// # Errors
/// As [`Store::read`] and `parse`.
pub fn read_listed_as<T>(
    store: &dyn Store,
    path: &StorePath,
    max_len: u64,
    listed: Option<&Meta>,
    parse: impl Fn(Bytes, Meta) -> Result<T>,
) -> Result<T> {
    let read = |listed| {
        let (content, meta) = store.read(path, max_len, Validity::Listed(listed))?;
        parse(content, meta)
    };
    match read(listed) {
        Err(e)
            if e.kind() == ErrorKind::Corrupt && listed.is_some() && store.has_copy(path, None) =>
        {
            read(None)
        }
        other => other,
    }
}
