//! `backup.json`: a restore point's metadata, byte for byte as the store gives it.

use std::sync::Arc;
use std::time::SystemTime;

use super::nodes::point_identity;
use crate::error::{Error, ErrorKind, Result};
use crate::io::ReadAt;
use crate::repo::Vm;
use crate::repo::layout::MAX_METADATA_BYTES;
use crate::store::{Meta, StorePath, StoredFile, Validity};
use crate::tree::{Attr, Base, File, Identity};

/// The metadata as stored.
pub(super) const BACKUP_JSON: &str = "backup.json";

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
        let Some(mut meta) = vm.point_meta(listed)? else {
            return Ok(None);
        };
        if !vm.store().traits().exact_lengths {
            let Some(point) = vm.read_point(listed)? else {
                return Ok(None);
            };
            // What cannot be read at all says so when it is opened.
            let read = point.json_meta.filter(|read| read.version == meta.version);
            meta = read.unwrap_or(meta);
        }
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
    fn open(&self) -> Result<Arc<dyn ReadAt>> {
        let store = self.vm.store();
        if self.meta.len_bytes <= MAX_METADATA_BYTES {
            // A copy may be given, but the server vouches for it now: the listing may be a minute old.
            let now = match store.has_copy(&self.path, None) {
                true => Some(store.head(&self.path)?),
                false => None,
            };
            let (data, meta) = store.read(
                &self.path,
                MAX_METADATA_BYTES,
                Validity::Listed(now.as_ref()),
            )?;
            if meta.version != self.meta.version {
                return Err(self.changed());
            }
            return Ok(Arc::new(data));
        }
        let file = store.open(&self.path, None)?;
        if file.opened_meta().version != self.meta.version {
            return Err(self.changed());
        }
        let (path, meta) = (self.path.clone(), self.meta);
        Ok(Arc::new(Unchanged { file, path, meta }))
    }
}

/// A file that may be written to while it is read: each read counts only if the file is as it was.
struct Unchanged {
    file: Arc<dyn StoredFile>,
    path: StorePath,
    meta: Meta,
}

impl ReadAt for Unchanged {
    fn len_bytes(&self) -> u64 {
        self.meta.len_bytes
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset)?;
        // After the read: what was read is what was opened only if nothing was written until now.
        if self.file.head()?.version != self.meta.version {
            let e = Error::new(
                ErrorKind::Changed,
                "the file was overwritten while it was read",
            );
            return Err(e.with_object(&self.path));
        }
        Ok(())
    }
}
