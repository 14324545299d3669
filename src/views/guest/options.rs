//! How guest files are presented.

use crate::tree::NodeKind;

/// How guest files are presented.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuestOptions {
    /// Show the guest's own owners and modes, instead of files that the mount's owner can read.
    pub guest_owner: bool,
    /// Without `guest_owner`: others than the mount's owner are admitted, and can read as well.
    pub for_all: bool,
}

impl GuestOptions {
    /// The permission bits that a node gets in addition to the guest's.
    pub(super) fn added(self, kind: NodeKind) -> u16 {
        let bits = match kind {
            NodeKind::Dir => 0o500,
            NodeKind::File => 0o400,
            _ => 0,
        };
        match (self.guest_owner, self.for_all) {
            (true, _) => 0,
            (false, false) => bits,
            (false, true) => bits | bits >> 3 | bits >> 6,
        }
    }

    /// What a directory is shown with at least, whatever the guest's own mode is; under the guest's own owners,
    /// what the mount's owner needs.
    pub(super) fn least_of_dir(self) -> u16 {
        0o500 | self.added(NodeKind::Dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_keeps_from_others_is_kept_only_under_its_own_owners() {
        let bits = |guest_owner, for_all, kind| {
            let options = GuestOptions {
                guest_owner,
                for_all,
            };
            options.added(kind)
        };
        assert_eq!(bits(false, false, NodeKind::File), 0o400);
        assert_eq!(bits(false, true, NodeKind::File), 0o444);
        assert_eq!(bits(false, true, NodeKind::Dir), 0o555);
        assert_eq!(bits(true, true, NodeKind::Dir), 0);
    }
}
