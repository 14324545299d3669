//! `backup.json`: a restore point's metadata, byte for byte as the store gives it.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::nodes::point_identity;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Chunk, Extent, ExtentKind};
use crate::repo::Vm;
use crate::repo::layout::MAX_METADATA_BYTES;
use crate::store::{Meta, StorePath, StoredFile};
use crate::tree::{Attr, Base, File, Identity, OpenFile};

/// The metadata file of a restore point, in one of its states.
pub(super) struct JsonFile {
    vm: Arc<Vm>,
    path: StorePath,
    meta: Meta,
    time: SystemTime,
}

impl JsonFile {
    /// The file as it is now, `None` when it is gone.
    pub(super) fn new(vm: Arc<Vm>, point: &str, time: SystemTime) -> Result<Option<Self>> {
        let listing = vm.listing()?;
        let Some(listed) = listing.find(point) else {
            return Ok(None);
        };
        let Some(meta) = vm.point_meta(listed)? else {
            return Ok(None);
        };
        let path = vm.json_path(point);
        Ok(Some(JsonFile {
            vm,
            path,
            meta,
            time,
        }))
    }

    fn changed(&self) -> Error {
        Error::new(ErrorKind::Changed, "the metadata was written anew").with_object(&self.path)
    }
}

impl Base for JsonFile {
    fn identity(&self) -> Identity {
        point_identity(&self.path, Some(self.meta.version), "json")
    }
    fn attr(&self) -> Result<Attr> {
        let len_bytes = self.meta.len_bytes;
        let allocated = len_bytes.div_ceil(512).saturating_mul(512);
        Ok(Attr::file(len_bytes, allocated, self.time))
    }
}

impl File for JsonFile {
    /// Reads all of it, so that nothing that happens to the file later is seen by this reader.
    /// What is too long to be metadata is read in place.
    fn open(&self) -> Result<Arc<dyn OpenFile>> {
        let store = self.vm.store();
        if self.meta.len_bytes <= MAX_METADATA_BYTES {
            // A copy may be given, but the server vouches for it now: the listing may be a minute old.
            let now = match store.is_kept(&self.path, None) {
                true => Some(store.head(&self.path)?),
                false => None,
            };
            let (data, meta) = store.read_kept(&self.path, MAX_METADATA_BYTES, now.as_ref())?;
            if meta.version != self.meta.version {
                return Err(self.changed());
            }
            return Ok(Arc::new(InMemory(data)));
        }
        let file = store.open(&self.path)?;
        if file.opened_meta().version != self.meta.version {
            return Err(self.changed());
        }
        let (path, meta) = (self.path.clone(), self.meta);
        Ok(Arc::new(InPlace { file, path, meta }))
    }
}

struct InMemory(Bytes);

impl OpenFile for InMemory {
    fn read(&self, offset: u64, len: usize, _buf: &mut [u8]) -> Result<Chunk> {
        let start = usize::try_from(offset).map_or(self.0.len(), |o| o.min(self.0.len()));
        let end = start.saturating_add(len).min(self.0.len());
        Ok(Chunk::Shared(self.0.slice(start..end)))
    }
    fn is_quick(&self, _offset: u64, _len: usize) -> bool {
        true
    }
    fn extent_at(&self, _offset: u64) -> Result<Extent> {
        Ok(data_to(self.0.len() as u64))
    }
}

struct InPlace {
    file: Arc<dyn StoredFile>,
    path: StorePath,
    meta: Meta,
}

impl OpenFile for InPlace {
    fn read(&self, offset: u64, len: usize, buf: &mut [u8]) -> Result<Chunk> {
        let left = self.meta.len_bytes.saturating_sub(offset);
        let len = len
            .min(buf.len())
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_exact_at(&mut buf[..len], offset)?;
        // After the read: what was read is what was opened only if nothing was written until now.
        if self.file.head()?.version != self.meta.version {
            let e = Error::new(
                ErrorKind::Changed,
                "the file was overwritten while it was read",
            );
            return Err(e.with_object(&self.path));
        }
        Ok(Chunk::Filled(len))
    }
    fn extent_at(&self, _offset: u64) -> Result<Extent> {
        Ok(data_to(self.meta.len_bytes))
    }
}

fn data_to(end: u64) -> Extent {
    let kind = ExtentKind::Data;
    Extent { kind, end }
}
