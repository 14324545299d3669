//! What stands in the mount for a symbolic link that is not followed: a directory that is seen, and whose
//! use fails with the reason.

use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use super::nodes::{Xattrs, is_ours};
use crate::error::{Error, Result};
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node};

pub(super) struct LinkDir {
    identity: Identity,
    time: SystemTime,
    reason: Error,
}

impl LinkDir {
    pub(super) fn new(identity: Identity, time: SystemTime, reason: Error) -> Self {
        LinkDir {
            identity,
            time,
            reason,
        }
    }

    fn xattrs(&self) -> Xattrs {
        let mut xattrs = Xattrs::default();
        xattrs.add("problem", self.reason.to_string());
        xattrs
    }
}

impl Base for LinkDir {
    fn identity(&self) -> Identity {
        self.identity
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.time))
    }
    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(self.xattrs().names())
    }
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if !is_ours(name) {
            return Ok(None);
        }
        Ok(self.xattrs().get(name))
    }
}

impl Directory for LinkDir {
    fn lookup(&self, _name: &OsStr) -> Result<Option<Node>> {
        Err(self.reason.clone())
    }
    fn list(&self) -> Result<Box<dyn DirStream>> {
        Err(self.reason.clone())
    }
}
