//! What was found out about the disks of one restore point, and what of it was said.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use crate::sync;
use crate::volume::{Content, DiskVolumes, Problem};

/// Warnings that are remembered to be said once.
const REMEMBERED: usize = 4096;

/// What is known of the disks of a restore point. Nothing in it goes out of date: the disks do not change.
#[derive(Default)]
pub struct Machine {
    disks: Mutex<HashMap<String, Holds>>,
    said: Mutex<HashSet<(String, String)>>,
}

/// What of a disk belongs to something that may lie over several.
#[derive(Clone, Copy)]
struct Holds {
    lvm: bool,
    md: bool,
}

impl Machine {
    /// Remembers what a disk holds, if all of it could be read.
    pub(super) fn note(&self, disk: &DiskVolumes) {
        if !disk.partitions.iter().all(|part| part.is_identified) {
            return;
        }
        let parts = disk.partitions.iter().map(|part| part.content);
        let all: Vec<Content> = parts.chain([disk.content]).collect();
        let holds = Holds {
            lvm: all.contains(&Content::LvmMember),
            md: all.contains(&Content::MdMember),
        };
        sync::lock(&self.disks).insert(disk.name.clone(), holds);
    }

    /// Whether all these disks were looked at and none has a member of an md array.
    pub fn has_no_md<'a>(&self, disks: impl IntoIterator<Item = &'a str>) -> bool {
        self.all(disks, |holds| !holds.md)
    }

    /// Whether all these disks were looked at and none has a physical volume, nor an array that may hold one.
    pub fn has_no_lvm<'a>(&self, disks: impl IntoIterator<Item = &'a str>) -> bool {
        self.all(disks, |holds| !holds.md && !holds.lvm)
    }

    fn all<'a>(
        &self,
        disks: impl IntoIterator<Item = &'a str>,
        test: impl Fn(Holds) -> bool,
    ) -> bool {
        let known = sync::lock(&self.disks);
        let mut disks = disks.into_iter();
        disks.all(|name| known.get(name).copied().is_some_and(&test))
    }

    /// Logs problems, each once: what looks at all disks finds again what was found in one of them.
    pub(super) fn warn<'a>(&self, problems: impl IntoIterator<Item = &'a Problem>) {
        for problem in problems {
            let mut said = sync::lock(&self.said);
            if said.len() >= REMEMBERED {
                said.clear();
            }
            if said.insert((problem.subject.clone(), problem.message.clone())) {
                tracing::warn!(subject = %problem.subject, "{}", problem.message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::TableKind;

    fn disk(name: &str, content: Content) -> DiskVolumes {
        DiskVolumes {
            name: name.to_string(),
            table: TableKind::None,
            content,
            partitions: Vec::new(),
        }
    }

    #[test]
    fn only_disks_that_were_all_looked_at_hold_nothing() {
        let machine = Machine::default();
        machine.note(&disk("xvda", Content::Ext));
        assert!(machine.has_no_lvm(["xvda"]));
        assert!(!machine.has_no_lvm(["xvda", "xvdb"]));
        machine.note(&disk("xvdb", Content::LvmMember));
        assert!(machine.has_no_md(["xvda", "xvdb"]));
        assert!(!machine.has_no_lvm(["xvda", "xvdb"]));
        machine.note(&disk("xvdb", Content::MdMember));
        assert!(!machine.has_no_lvm(["xvda", "xvdb"]));
    }
}
