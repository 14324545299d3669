//! A disk image without its repository: a root with just `disk.raw`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::disk::{add_disk_xattrs, disk_attr, disk_xattr, disk_xattr_names, open_disk};
use super::guest::{GuestOptions, Guests, OpenDisk, Over, PointDisks};
use super::nodes::{StaticDir, Xattrs, identity};
use super::point_guests::missing_is_damage;
use super::pool::DiskPool;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Disk, DiskContext, DiskStreams};
use crate::io::ReadAt;
use crate::repo::DiskRef;
use crate::repo::layout::VM_BACKUPS;
use crate::store::{Meta, StorePath};
use crate::tree::{Attr, Base, File, Identity, Node};

/// The directory to open as a store for the image at `path`, and the image's path in it: the
/// repository's root where the image lies below `xo-vm-backups`, so that its chain may lead
/// anywhere within the repository; else the image's own directory. `path` must be absolute and
/// without links (`std::fs::canonicalize`). Does no I/O.
///
/// # Errors
/// `Invalid` when the path names no file or is not UTF-8 where it matters.
pub fn split_bare_path(path: &Path) -> Result<(PathBuf, StorePath)> {
    let invalid = || {
        Error::new(ErrorKind::Invalid, "is not the path of a disk image")
            .with_object(path.display())
    };
    let own_dir = path.parent().ok_or_else(invalid)?;
    // The topmost one: XO never nests them, and the chain may use all below it.
    let repository = own_dir
        .ancestors()
        .filter(|dir| dir.file_name() == Some(OsStr::new(VM_BACKUPS)))
        .last()
        .and_then(Path::parent);
    let root = repository.unwrap_or(own_dir);
    let inside = path.strip_prefix(root).map_err(|_| invalid())?;
    let inside = StorePath::new(inside.to_str().ok_or_else(invalid)?)?;
    if inside.as_str().is_empty() {
        return Err(invalid());
    }
    Ok((root.to_owned(), inside))
}

/// The root of a mounted bare image (`.vhd`, `.alias.vhd` or VHD directory): `disk.raw`, with the image's time, and
/// what is inside it.
///
/// # Errors
/// When there is no such file or VHD directory. What is not a sound image is shown; reading it fails.
pub fn bare_root(
    context: Arc<DiskContext>,
    path: &StorePath,
    guests: GuestOptions,
) -> Result<Node> {
    let store = context.store();
    let meta = match store.head(path) {
        // A VHD directory.
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let footer = store.head(&path.child("footer"));
            footer.map_err(|of_footer| match of_footer.is_fetch_failure() {
                true => of_footer,
                false => e,
            })?
        }
        other => other?,
    };
    let file = Arc::new(BareDisk {
        pool: DiskPool::new(context),
        place: DiskRef::VhdChain(path.clone()),
        meta,
        time: meta.modified.unwrap_or_else(SystemTime::now),
    });
    let time = file.time;
    let open: OpenDisk = {
        let file = Arc::clone(&file);
        Arc::new(move || {
            let disk = file.disk().map_err(missing_is_damage)?;
            Ok(Arc::new(DiskStreams::new(disk)) as Arc<dyn ReadAt>)
        })
    };
    let guests = Guests::new(guests);
    let machine = guests.machine(file.identity());
    let disks = || PointDisks {
        all: Arc::new([("disk".into(), open.clone())]),
        machine: machine.clone(),
    };
    let inside = guests.of_disk(file.identity(), "disk", time, open.clone(), disks);
    let over = |over: Over| {
        let dir = guests.of_disks(file.identity(), over, time, disks);
        (over.name(), Node::Dir(dir))
    };
    let mut children = vec![
        ("disk", Node::Dir(inside)),
        ("disk.raw", Node::File(file.clone())),
    ];
    children.extend(Over::ALL.map(over));
    Ok(Node::Dir(Arc::new(StaticDir::new("bare", children, time))))
}

struct BareDisk {
    pool: DiskPool,
    place: DiskRef,
    meta: Meta,
    time: SystemTime,
}

impl BareDisk {
    fn disk(&self) -> Result<Arc<Disk>> {
        self.pool.open(&self.place, None)
    }

    fn attr_with(&self, exact: bool) -> Result<Attr> {
        match self.disk() {
            Ok(disk) => disk_attr(&disk, exact, self.time),
            Err(e) if e.is_fetch_failure() => Err(e),
            Err(_) => Ok(Attr::file(0, 0, self.time)),
        }
    }

    fn xattrs(&self, disk: &Result<Arc<Disk>>) -> Xattrs {
        let mut xattrs = Xattrs::default();
        add_disk_xattrs(&mut xattrs, disk);
        xattrs
    }
}

impl Base for BareDisk {
    fn identity(&self) -> Identity {
        identity(
            &["bare", self.place.path().as_str()],
            Some(self.meta.version),
        )
    }
    fn attr(&self) -> Result<Attr> {
        self.attr_with(true)
    }
    fn quick_attr(&self) -> Result<Attr> {
        self.attr_with(false)
    }
    fn xattr_names(&self) -> Result<Vec<OsString>> {
        disk_xattr_names(self.disk(), |disk| self.xattrs(disk))
    }
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        disk_xattr(name, || self.disk(), |disk| self.xattrs(disk))
    }
}

impl File for BareDisk {
    fn open(&self) -> Result<Arc<dyn ReadAt>> {
        open_disk(self.disk(), self.place.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_repository_are_opened_from_its_root() {
        let path = Path::new("/srv/br/xo-vm-backups/u/vdis/j/v/20260301T013000Z.vhd");
        let (root, inside) = split_bare_path(path).unwrap();
        assert_eq!(root, Path::new("/srv/br"));
        assert_eq!(
            inside.as_str(),
            "xo-vm-backups/u/vdis/j/v/20260301T013000Z.vhd"
        );
    }

    #[test]
    fn other_images_are_opened_from_their_own_directory() {
        let (root, inside) = split_bare_path(Path::new("/a/b c/disk.vhd")).unwrap();
        assert_eq!(root, Path::new("/a/b c"));
        assert_eq!(inside.as_str(), "disk.vhd");
        let (root, inside) = split_bare_path(Path::new("/disk.vhd")).unwrap();
        assert_eq!(
            (root.as_path(), inside.as_str()),
            (Path::new("/"), "disk.vhd")
        );
        assert!(split_bare_path(Path::new("/")).is_err());
    }
}
