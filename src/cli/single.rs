//! A single image in the place of a repository: for `mount`, `info` and `ls` alike.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::config::{Location, StoreOptions};
use crate::image::{Disk, DiskContext, is_image_name};
use crate::repo::layout::VM_BACKUPS;
use crate::repo::open_encrypted;
use crate::store::StorePath;
use crate::views;

/// Directories above its own to which the names in an image that is in no repository may lead: what is
/// there is opened only when an image names it by a relative path, and used only if it has the
/// parent's uuid.
const MAX_ABOVE: usize = 8;

/// Where a single image is.
pub(super) struct Single {
    /// What is opened as a store: its chain can lead anywhere in it.
    pub(super) root: Location,
    /// The image there.
    pub(super) inside: StorePath,
}

/// A single image that is open.
pub(super) struct OpenSingle {
    pub(super) single: Single,
    pub(super) context: Arc<DiskContext>,
    pub(super) disk: Arc<Disk>,
}

/// The single image that a location names; `None` when it names none. On object storage, where nothing
/// tells a file from a directory but what is asked of it, its name does.
///
/// # Errors
/// When a local path cannot be resolved.
pub(super) fn single_disk(location: &Location) -> Result<Option<Single>> {
    let mut root = location.clone();
    let dir = match &mut root {
        Location::Local(path) => {
            if !path.is_file() && !is_vhd_dir(path) {
                return Ok(None);
            }
            let real = std::fs::canonicalize(&*path).with_context(|| path.display().to_string())?;
            let (dir, inside) = views::split_bare_path(&real)?;
            let root = Location::Local(dir);
            return Ok(Some(Single { root, inside }));
        }
        Location::S3(s3) => &mut s3.dir,
        Location::Azure(azure) => &mut azure.dir,
    };
    if !is_image_name(dir) {
        return Ok(None);
    }
    let (above, inside) = views::split_bare_path(&Path::new("/").join(&*dir))?;
    *dir = above.to_string_lossy().trim_matches('/').to_owned();
    Ok(Some(Single { root, inside }))
}

/// Whether a directory is a VHD directory, not one that holds a repository.
fn is_vhd_dir(path: &Path) -> bool {
    path.join("footer").is_file() && path.join("header").is_file()
}

impl Single {
    /// Opens the image and its chain.
    ///
    /// # Errors
    /// When the image itself cannot be opened. A chain that is cut opens all the same.
    pub(super) fn open(mut self, options: &StoreOptions, cache_bytes: u64) -> Result<OpenSingle> {
        let mut above = 0;
        loop {
            let store = open_encrypted(self.root.open(options)?, options.encryption_key.clone())?;
            let context = DiskContext::new(store, cache_bytes);
            let disk = context.open_disk(&self.inside, None)?;
            let wider = match disk.leads_out() && above < MAX_ABOVE {
                true => self.above(),
                false => None,
            };
            let Some(wider) = wider else {
                return Ok(OpenSingle {
                    single: self,
                    context,
                    disk,
                });
            };
            above += 1;
            self = wider;
        }
    }

    /// The same image seen from one directory further up, unless its place bounds what it may use.
    fn above(&self) -> Option<Single> {
        if self.inside.components().any(|c| c == VM_BACKUPS) {
            return None;
        }
        let mut root = self.root.clone();
        let name = match &mut root {
            Location::Local(path) => {
                let name = path.file_name()?.to_str()?.to_owned();
                path.pop();
                name
            }
            Location::S3(s3) => last_part(&mut s3.dir)?,
            Location::Azure(azure) => last_part(&mut azure.dir)?,
        };
        let inside = StorePath::new(&format!("{name}/{}", self.inside)).ok()?;
        Some(Single { root, inside })
    }
}

/// Takes the last part off an object store's directory.
fn last_part(dir: &mut String) -> Option<String> {
    let (above, name) = match dir.rsplit_once('/') {
        Some((above, name)) => (above.to_owned(), name.to_owned()),
        None => (String::new(), std::mem::take(dir)),
    };
    *dir = above;
    (!name.is_empty()).then_some(name)
}
