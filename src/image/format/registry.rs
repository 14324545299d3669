//! Opening an image by its path, whatever its format, shared with whoever has it open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::image::{Found, Image};
use super::{Opened, alias, vhd_directory, vhd_file};
use crate::cache::TablePageCache;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Meta, Store, StorePath, Version};
use crate::sync;

type RegistryKey = (StorePath, Vec<Version>);

/// All images that are open somewhere, so that restore points share their ancestors and blocks.
pub(in crate::image) struct Registry {
    store: Arc<dyn Store>,
    pages: Arc<TablePageCache>,
    open: Mutex<HashMap<RegistryKey, Weak<Image>>>,
    next_id: AtomicU64,
}

impl Registry {
    pub(in crate::image) fn new(store: Arc<dyn Store>, pages: Arc<TablePageCache>) -> Self {
        Registry {
            store,
            pages,
            open: Mutex::new(HashMap::new()),
            next_id: AtomicU64::new(1),
        }
    }

    /// A number for the caches that nobody else has.
    pub(in crate::image) fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens the image at `path`, through an alias if it is one. `listed` is the state of the file
    /// there, if a listing has just told it.
    pub(in crate::image) fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Found> {
        let data_path = if alias::is_alias(path) {
            match alias::resolve(self.store.as_ref(), path, listed) {
                Ok(target) => target,
                // One version of XO put the directory itself where the alias should be.
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    return match self.open_dir(path) {
                        Ok(image) => Ok(Found {
                            path: path.clone(),
                            image,
                        }),
                        Err(dir) if dir.kind() == ErrorKind::NotFound => Err(e),
                        Err(dir) => Err(dir),
                    };
                }
                Err(e) => return Err(e),
            }
        } else {
            path.clone()
        };
        // What was listed at an alias' path is the alias.
        let listed = listed.filter(|_| data_path == *path);
        let image = self.open_data(&data_path, listed)?;
        Ok(Found {
            path: path.clone(),
            image,
        })
    }

    /// Opens what is at `path` itself: the one place that decides of which format it is.
    fn open_data(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<Image>> {
        let id = self.new_id();
        let open_file = |listed| -> Result<Arc<Image>> {
            let opened = vhd_file::open::open(&self.store, path, listed, id, &self.pages)?;
            Ok(self.share(path, id, opened))
        };
        // A listing that tells a state has seen a file.
        if listed.is_some() {
            match open_file(listed) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                other => return other,
            }
        }
        // A directory first: a file answers quickly.
        match self.open_dir(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => match open_file(None) {
                Err(e) if e.kind() == ErrorKind::NotFound => Err(self.neither(path)),
                other => other,
            },
            other => other,
        }
    }

    fn open_dir(&self, path: &StorePath) -> Result<Arc<Image>> {
        let id = self.new_id();
        let opened = vhd_directory::open::open(&self.store, path, id, &self.pages)?;
        Ok(self.share(path, id, opened))
    }

    /// What is said of a path that is neither a file nor a VHD directory.
    fn neither(&self, path: &StorePath) -> Error {
        let what = match self.store.list(path) {
            Ok(_) => "is a directory without a footer, so not a VHD directory",
            Err(_) => "is not there",
        };
        Error::new(ErrorKind::NotFound, what).with_object(path)
    }

    fn share(&self, path: &StorePath, id: u64, opened: Opened) -> Arc<Image> {
        let key = (path.clone(), opened.versions);
        let mut open = sync::lock(&self.open);
        if let Some(image) = open.get(&key).and_then(Weak::upgrade) {
            return image;
        }
        let image = Arc::new(Image {
            id,
            data_path: path.clone(),
            facts: opened.facts,
            format: opened.format,
        });
        if open.len() >= open.capacity() {
            open.retain(|_, weak| weak.strong_count() > 0);
        }
        open.insert(key, Arc::downgrade(&image));
        image
    }
}
