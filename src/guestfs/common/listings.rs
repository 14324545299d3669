//! Directory listings kept for look-ups, where a file system can only be searched by reading all of a
//! directory and directories are small (ISO 9660, squashfs).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::recent::Recent;
use crate::error::Result;
use crate::guestfs::{GuestEntry, GuestInode};

/// Listings kept, and the names in all of them together (the one used last is always kept).
const LISTINGS: usize = 16;
const NAMES: usize = 400_000;

type Names = HashMap<OsString, GuestInode>;

/// A bounded number of listings.
pub struct Listings(Recent<Names>);

impl Default for Listings {
    fn default() -> Self {
        Listings(Recent::new(LISTINGS, NAMES))
    }
}

impl Listings {
    /// Looks a name up in a directory, whose entries `read` gives when they are not kept.
    ///
    /// # Errors
    /// What `read` gave.
    pub fn lookup(
        &self,
        dir: GuestInode,
        name: &OsStr,
        read: impl FnOnce() -> Result<Vec<GuestEntry>>,
    ) -> Result<Option<GuestInode>> {
        let names = match self.0.get(dir) {
            Some(names) => names,
            None => self.keep(dir, &read()?),
        };
        Ok(names.get(name).copied())
    }

    /// Keeps the entries of a directory.
    pub fn keep(&self, dir: GuestInode, entries: &[GuestEntry]) -> Arc<Names> {
        let mut names = Names::new();
        for entry in entries {
            // Of two entries of one name the first one counts, as in the listing.
            names.entry(entry.name.clone()).or_insert(entry.inode);
        }
        self.0.put(dir, names.capacity(), names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_once_for_many_lookups() {
        let listings = Listings::default();
        let entry = |name: &str, inode| GuestEntry {
            name: name.into(),
            inode,
            kind: None,
        };
        let read = || Ok(vec![entry("a", 7), entry("a", 8)]);
        assert_eq!(listings.lookup(1, "a".as_ref(), read).unwrap(), Some(7));
        let again = listings.lookup(1, "b".as_ref(), || panic!("it is kept"));
        assert_eq!(again.unwrap(), None);
    }
}
