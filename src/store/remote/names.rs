//! Keys below a prefix, turned into the names of a directory.

use std::collections::{BTreeMap, HashSet};

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Entry, EntryKind, Meta};

/// What a listing has brought so far.
#[derive(Default)]
pub(crate) struct Names {
    files: BTreeMap<String, (u64, Option<Meta>)>,
    dirs: HashSet<String>,
    /// A key that is the prefix itself: some tools mark directories so.
    marked: bool,
}

/// What one element of a page stands for.
pub(crate) enum Listed {
    Object { size: u64, meta: Option<Meta> },
    Prefix,
}

impl Names {
    pub(crate) fn add(&mut self, prefix: &str, key: &str, listed: Listed) -> Result<()> {
        let Some(rest) = key.strip_prefix(prefix) else {
            return Err(Error::new(
                ErrorKind::Io,
                format!("the server lists {key:?}, which was not asked for"),
            ));
        };
        if rest.is_empty() {
            self.marked = true;
            return Ok(());
        }
        // A server that ignores the delimiter lists whole trees: the first component counts.
        let (name, is_dir) = match rest.split_once('/') {
            Some((name, _)) => (name, true),
            None => (rest, false),
        };
        // Keys that no path can name ("a//b", "a/../b") are not XO's.
        if matches!(name, "" | "." | "..") || name.contains('\0') {
            return Ok(());
        }
        match listed {
            Listed::Object { size, meta } if !is_dir => {
                self.files.insert(name.to_owned(), (size, meta));
            }
            _ => {
                self.dirs.insert(name.to_owned());
            }
        }
        Ok(())
    }

    /// # Errors
    /// `NotFound` when nothing was listed: there are no empty directories.
    pub(crate) fn into_entries(self, prefix: &str) -> Result<Vec<Entry>> {
        if self.files.is_empty() && self.dirs.is_empty() && !self.marked {
            let message = match prefix {
                "" => "the bucket or container is empty",
                _ => "is not there",
            };
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let Names { files, dirs, .. } = self;
        // Some tools leave an empty object under a directory's name.
        let shadowed = |name: &String, size: u64| size == 0 && dirs.contains(name);
        let files = files
            .into_iter()
            .filter(|(name, (size, _))| !shadowed(name, *size))
            .map(|(name, (_, meta))| Entry {
                name,
                kind: EntryKind::File,
                meta,
            })
            .collect::<Vec<_>>();
        let dirs = dirs.into_iter().map(|name| Entry {
            name,
            kind: EntryKind::Dir,
            meta: None,
        });
        Ok(files.into_iter().chain(dirs).collect())
    }
}
