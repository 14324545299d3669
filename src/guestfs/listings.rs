//! Directory listings kept for look-ups, where a file system can only be searched by reading all of a
//! directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{GuestEntry, GuestInode};
use crate::error::Result;

/// Listings kept, and the names in all of them together (the one used last is always kept).
const LISTINGS: usize = 16;
const NAMES: usize = 400_000;

type Listing = Arc<HashMap<OsString, GuestInode>>;

/// A bounded number of listings, the one used last in front.
#[derive(Default)]
pub struct Listings {
    kept: Mutex<Vec<(GuestInode, Listing)>>,
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
        if let Some(listing) = self.find(dir) {
            return Ok(listing.get(name).copied());
        }
        let entries = read()?;
        Ok(self.keep(dir, &entries).get(name).copied())
    }

    /// Keeps the entries of a directory.
    pub fn keep(
        &self,
        dir: GuestInode,
        entries: &[GuestEntry],
    ) -> Arc<HashMap<OsString, GuestInode>> {
        let mut names = HashMap::with_capacity(entries.len());
        for entry in entries {
            // Of two entries of one name the first one counts, as in the listing.
            names.entry(entry.name.clone()).or_insert(entry.inode);
        }
        let listing: Listing = Arc::new(names);
        let mut kept = self.lock();
        kept.retain(|(known, _)| *known != dir);
        kept.insert(0, (dir, listing.clone()));
        let mut total = 0;
        let mut count = 0;
        for (_, listing) in kept.iter().take(LISTINGS) {
            total += listing.len();
            if count > 0 && total > NAMES {
                break;
            }
            count += 1;
        }
        kept.truncate(count);
        listing
    }

    fn find(&self, dir: GuestInode) -> Option<Listing> {
        let mut kept = self.lock();
        let index = kept.iter().position(|(known, _)| *known == dir)?;
        let found = kept.remove(index);
        let listing = found.1.clone();
        kept.insert(0, found);
        Some(listing)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(GuestInode, Listing)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_once_for_many_lookups_and_listings_are_bounded() {
        let listings = Listings::default();
        let entries = |dir: u64| {
            vec![GuestEntry {
                name: "a".into(),
                inode: dir + 100,
                kind: None,
            }]
        };
        let look = |dir| {
            listings
                .lookup(dir, "a".as_ref(), || Ok(entries(dir)))
                .unwrap()
        };
        assert_eq!(look(1), Some(101));
        let again = listings.lookup(1, "b".as_ref(), || panic!("it is kept"));
        assert_eq!(again.unwrap(), None);
        for dir in 2..40 {
            assert_eq!(look(dir), Some(dir + 100));
        }
        assert_eq!(listings.lock().len(), LISTINGS);
    }
}
