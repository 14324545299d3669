//! `part1.raw`: a volume as a file.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

use super::attributes::{Attributes, names_of, value_of};
use crate::error::{Error, Result};
use crate::io::{ExtentKind, ReadAt};
use crate::tree::{Attr, Base, File, Identity};

/// A volume as a file.
pub(super) struct RawFile {
    pub(super) identity: Identity,
    pub(super) time: SystemTime,
    pub(super) volume: Arc<dyn ReadAt>,
    pub(super) attributes: Attributes,
}

impl Base for RawFile {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn attr(&self) -> Result<Attr> {
        let len = self.volume.len_bytes();
        let (mut offset, mut allocated) = (0, 0);
        while offset < len {
            let extent = self.volume.extent_at(offset)?;
            if extent.end <= offset {
                return Err(Error::corrupt("extents of a volume go backwards"));
            }
            if extent.kind == ExtentKind::Data {
                allocated += extent.end - offset;
            }
            offset = extent.end;
        }
        Ok(Attr::file(len, allocated, self.time))
    }

    fn quick_attr(&self) -> Result<Attr> {
        let len = self.volume.len_bytes();
        Ok(Attr::file(len, len, self.time))
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(names_of(&self.attributes))
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(value_of(&self.attributes, name))
    }
}

impl File for RawFile {
    fn open(&self) -> Result<Arc<dyn ReadAt>> {
        Ok(self.volume.clone())
    }
}
