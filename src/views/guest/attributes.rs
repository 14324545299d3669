//! What is known of disks and volumes, as extended attributes.

use std::ffi::{OsStr, OsString};

use crate::guestfs::is_readable;
use crate::volume::{Content, DiskVolumes, Problem, TableKind};

/// Why something inside a directory cannot be shown.
pub(super) const PROBLEM: &str = "user.brfs.problem";

/// Extended attributes.
pub(super) type Attributes = Vec<(OsString, Vec<u8>)>;

pub(super) fn names_of(attributes: &Attributes) -> Vec<OsString> {
    attributes.iter().map(|(name, _)| name.clone()).collect()
}

pub(super) fn value_of(attributes: &Attributes, name: &OsStr) -> Option<Vec<u8>> {
    let found = attributes.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.clone())
}

/// Why nothing is shown of a volume with this content, where that is not clear from what it is.
fn why_nothing(content: Content) -> Option<String> {
    use Content::{BitLocker, ExtJournal, LvmMember, MdMember, Swap, Unknown, Zeros};
    match content {
        Content::Luks | BitLocker => Some(format!(
            "encrypted ({}): without the key there is nothing to read",
            content.as_str()
        )),
        Unknown => Some("no file system, volume or partition table that brfs knows".to_string()),
        LvmMember | MdMember | Swap | ExtJournal | Zeros => None,
        content if is_readable(content) => None,
        content => Some(format!(
            "{} is not read: there are only the raw bytes",
            content.as_str()
        )),
    }
}

/// What is known of a volume, as attributes of its raw file.
pub(super) fn describe(content: Content, problems: &[String]) -> Attributes {
    let mut attributes: Attributes = vec![("user.brfs.content".into(), content.as_str().into())];
    let said = problems.iter().cloned();
    add_problem(&mut attributes, said.chain(why_nothing(content)));
    attributes
}

/// What is known of a disk, as attributes of its directory.
pub(super) fn describe_disk(found: &DiskVolumes, problems: &[Problem]) -> Attributes {
    let (content, why) = match found.table {
        TableKind::None => (found.content.as_str(), why_nothing(found.content)),
        table => (table.as_str(), None),
    };
    let mut attributes: Attributes = vec![("user.brfs.content".into(), content.into())];
    let said = problems.iter().map(|problem| problem.within(&found.name));
    // What is wrong with the table is why nothing is known of the disk.
    let why = why.filter(|_| problems.is_empty() || found.content != Content::Unknown);
    add_problem(&mut attributes, said.chain(why));
    attributes
}

pub(super) fn add_problem(attributes: &mut Attributes, problems: impl Iterator<Item = String>) {
    let text = problems.collect::<Vec<_>>().join("; ");
    if !text.is_empty() {
        attributes.push((PROBLEM.into(), text.into()));
    }
}

pub(super) fn in_words(problem: &Problem) -> String {
    format!("{}: {}", problem.subject, problem.message)
}
