//! What lies on a disk: the partitions of its table, or one volume that takes all of it.
//!
//! Decided by all that speaks for the disk: a superblock that takes the whole disk goes before a table that is damaged.

use super::claim::{Claim, Verdict};
use super::problem::Problem;
use super::signature::{self, Content};
use super::table::{Table, TableKind, read_table};
use crate::error::{ErrorKind, Result};
use crate::io::ReadAt;

/// What a disk is: partitions, or one volume.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The table that counts.
    pub table: Table,
    /// What the disk holds as a whole, also beside a table that may be older or newer.
    pub content: Content,
}

/// Decides what lies on a disk by all that speaks for it: its partition table, and superblocks that take the whole
/// disk.
///
/// # Errors
/// Only when the disk cannot be read.
pub fn lay_out(disk: &dyn ReadAt) -> Result<Layout> {
    let mut table = read_table(disk)?;
    if table.kind == TableKind::None {
        let content = signature::identify(disk)?;
        return Ok(Layout { table, content });
    }
    let claim = match Claim::find(disk, &table) {
        // Damage elsewhere on the disk does not hide the partitions.
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
            let message =
                format!("whether the disk as a whole is something else is not known: {error}");
            table
                .problems
                .push(Problem::new("partition table", message));
            None
        }
        found => found?,
    };
    let Some(claim) = claim else {
        let content = Content::Unknown;
        return Ok(Layout { table, content });
    };
    let (is, kind) = (claim.content.as_str(), table.kind.as_str());
    let verdict = claim.against(&table);
    let mut say = |message: String| {
        table
            .problems
            .push(Problem::new("partition table", message));
    };
    match verdict {
        Verdict::Claim => {
            let message = format!(
                "what is left of it ({kind}) is not used: the disk as a whole is {is}, and the table is damaged"
            );
            table = Table::none();
            table
                .problems
                .push(Problem::new("partition table", message));
        }
        Verdict::Inside => table = Table::none(),
        Verdict::Table => {
            say(format!(
                "it counts, though the disk as a whole was {is} before: that is not used"
            ));
            let content = Content::Unknown;
            return Ok(Layout { table, content });
        }
        Verdict::Both => say(format!(
            "the disk as a whole is {is}, too, and nothing tells which of the two is newer: both are shown, \
             and one of them is out of date"
        )),
    }
    let content = claim.content;
    Ok(Layout { table, content })
}
