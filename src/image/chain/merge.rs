//! The merges that the state files of a directory tell of.

use super::merge_state::{
    MAX_MERGE_STATE_BYTES, MergeState, MergeStep, merge_state_file_name, parent_of_merge_state,
};
use crate::error::{ErrorKind, Result};
use crate::image::uuid::Uuid;
use crate::store::{Store, StorePath, Validity};

/// A merge that is running or was interrupted, with its paths resolved.
#[derive(Debug, Clone)]
pub(in crate::image) struct Merge {
    /// The image that blocks are merged into.
    pub target: StorePath,
    /// The images merged into it, oldest first; empty when an old state file does not name them.
    pub children: Vec<StorePath>,
    /// Uuid that the target takes over at the end.
    pub child_uuid: Option<Uuid>,
    /// Whether all blocks are merged and the target has taken over the child's identity.
    pub in_cleanup: bool,
}

impl Merge {
    /// Whether `child` is merged into `target` by this merge. `is_next` tells whether `child` is
    /// the target's direct child: what old state files, which name no child, are about.
    pub(in crate::image) fn concerns(
        &self,
        target: &StorePath,
        child: &StorePath,
        is_next: bool,
    ) -> bool {
        self.target == *target
            && (self.children.contains(child) || (self.children.is_empty() && is_next))
    }
}

/// The merges that the state files of a directory tell of. Damaged ones are reported, not followed:
/// without them a moved block is an error, never a guess.
///
/// # Errors
/// What kept one from being fetched.
pub(in crate::image) fn merges_of(
    store: &dyn Store,
    dir: &StorePath,
    names: &[String],
    problems: &mut Vec<String>,
) -> Result<Vec<Merge>> {
    let mut merges = Vec::new();
    for name in names {
        let Some(parent) = parent_of_merge_state(name) else {
            continue;
        };
        let path = dir.child(name);
        let parsed = store
            .read(&path, MAX_MERGE_STATE_BYTES, Validity::Ask)
            .and_then(|(json, _)| MergeState::parse(&json).map_err(|e| e.with_object(&path)))
            .and_then(|state| resolve(dir, parent, &state));
        match parsed {
            Ok(merge) => merges.push(merge),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.is_fetch_failure() => return Err(e),
            Err(e) => problems.push(format!("merge state cannot be used: {e}")),
        }
    }
    Ok(merges)
}

fn resolve(dir: &StorePath, parent: &str, state: &MergeState) -> Result<Merge> {
    let mut chain = state
        .chain
        .iter()
        .map(|path| dir.join(path))
        .collect::<Result<Vec<_>>>()?
        .into_iter();
    let target = chain.next().unwrap_or_else(|| dir.child(parent));
    Ok(Merge {
        target,
        children: chain.collect(),
        child_uuid: state.child_uuid.as_deref().and_then(Uuid::parse),
        in_cleanup: state.step == MergeStep::Cleanup,
    })
}

/// The merge state of the directory of `child` as it is now, for a block that is missing.
///
/// # Errors
/// What kept it from being fetched.
pub(in crate::image) fn current_merges(
    store: &dyn Store,
    target: &StorePath,
) -> Result<Vec<Merge>> {
    let dir = target.parent();
    let name = merge_state_file_name(target.file_name());
    merges_of(store, &dir, &[name], &mut Vec::new())
}
