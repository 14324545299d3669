//! All disks of a restore point, for what lies over several.
//!
//! Of a file system that does, the other volumes are looked for anew each time that it is opened: nothing is kept
//! that could be out of date, and a disk that could not be read then may be readable now.

use std::sync::{Arc, Mutex};

use super::context::OpenDisk;
use crate::error::{Error, Result};
use crate::io::{Extent, ReadAt};
use crate::sync;
use crate::volume::{Content, PlacedVolume, find_all};

/// What `look` finds on all disks. A disk that is damaged or gone counts as missing, with a warning; one
/// that cannot be fetched does not.
///
/// # Errors
/// What kept a disk from being searched, if that may pass. Without it, what is found could be in an older state
/// than with it: a copy that was left behind, in place of the one that counts.
pub(super) fn search<T>(
    disks: &[(String, OpenDisk)],
    look: impl FnOnce(&[PlacedVolume]) -> T,
) -> Result<T> {
    let passing: Passing = Arc::default();
    let mut opened: Vec<PlacedVolume> = Vec::new();
    for (name, open) in disks {
        match open() {
            Ok(disk) => opened.push((name.clone(), Watched::over(disk, &passing))),
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => tracing::warn!(disk = %name, "not searched: {error}"),
        }
    }
    let found = look(&opened);
    check(&passing, found)
}

/// What `look` finds in a volume.
///
/// # Errors
/// What `look` gives; or else the first failure to read that may pass, whatever was made of it.
pub(super) fn look_at<T>(
    volume: &Arc<dyn ReadAt>,
    look: impl FnOnce(&Arc<dyn ReadAt>) -> Result<T>,
) -> Result<T> {
    let passing: Passing = Arc::default();
    let found = look(&Watched::over(volume.clone(), &passing))?;
    check(&passing, found)
}

fn check<T>(passing: &Passing, found: T) -> Result<T> {
    match sync::lock(passing).take() {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

/// All volumes with this content but the one at `own`.
///
/// # Errors
/// As [`search`].
pub(super) fn other_volumes(
    disks: &[(String, OpenDisk)],
    content: Content,
    own: &str,
) -> Result<Vec<PlacedVolume>> {
    let (mut found, problems) = search(disks, |opened| find_all(content, opened))?;
    for problem in problems {
        tracing::warn!(subject = %problem.subject, "{}", problem.message);
    }
    found.retain(|(place, _)| place != own);
    Ok(found)
}

/// The first failure that may pass.
type Passing = Arc<Mutex<Option<Error>>>;

/// A disk whose failures are noted: the search itself only says in words what it could not read.
struct Watched {
    disk: Arc<dyn ReadAt>,
    passing: Passing,
}

impl Watched {
    fn over(disk: Arc<dyn ReadAt>, passing: &Passing) -> Arc<dyn ReadAt> {
        let passing = passing.clone();
        Arc::new(Watched { disk, passing })
    }

    fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.may_pass()
        {
            sync::lock(&self.passing).get_or_insert_with(|| error.clone());
        }
        result
    }
}

impl ReadAt for Watched {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.note(self.disk.read_exact_at(buf, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.note(self.disk.extent_at(offset))
    }
}
