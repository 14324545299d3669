//! Inode numbers: which node the kernel means by a number.
//!
//! The table holds the nodes that the kernel refers to and no others: a look-up adds one reference, an
//! entry of a listing with attributes does too, `forget` takes them away, and a node without references is dropped. Its size is thus bounded by
//! the kernel's own inode cache.
//!
//! A number is the hash of what the object *is*: its parent's number, its name and its
//! [`Identity`] (or only the identity of an object with several names). The same object therefore
//! has the same number before and after the kernel forgot it, in listings (`d_ino`) as in `stat`,
//! and in the next mount too; an object with another identity has another number. Should two live
//! objects hash to one number, the later one takes the next that is free, so that two objects never
//! share a number at the same time, which is what the kernel's page cache relies on.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use crate::hash::StableHash;
use crate::sync::lock;
use crate::tree::{Attr, Identity, Node};

/// The root's number, fixed by the protocol.
pub(super) const ROOT: u64 = 1;

/// Numbers below this one are never given to nodes found by name.
const FIRST: u64 = 16;

/// Paths in log lines end after this many components: an unbounded walk is not worth a log line.
const MAX_PATH_DEPTH: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Root,
    Named(u64, OsString, u64),
    Shared(u64, u64),
}

impl Key {
    fn new(parent: u64, name: &OsStr, identity: Identity) -> Self {
        match identity {
            Identity::Named(generation) => Key::Named(parent, name.to_owned(), generation),
            Identity::Shared(file_system, number) => Key::Shared(file_system, number),
        }
    }

    /// A number of 63 bits, so that programs that keep inode numbers in signed integers live.
    fn number(&self) -> u64 {
        let hash = match self {
            Key::Root => return ROOT,
            Key::Named(parent, name, generation) => StableHash::new()
                .number(*parent)
                .part(name.as_bytes())
                .number(*generation),
            Key::Shared(file_system, number) => {
                StableHash::new().number(*file_system).number(*number)
            }
        };
        (hash.finish_u64() >> 1).max(FIRST)
    }
}

struct Known {
    /// `None` for what was listed only. The kernel looks it up before it does anything with it.
    node: Option<Node>,
    /// What the kernel was told when a node was found whose attributes are not at hand in a listing.
    told: Option<Box<Attr>>,
    key: Key,
    /// Where it was last found, to tell its path; for shared objects one name of several.
    found_at: (u64, OsString),
    lookups: u64,
}

#[derive(Default)]
struct Tables {
    by_number: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
}

/// See the module's documentation.
pub(super) struct Inodes {
    tables: Mutex<Tables>,
}

impl Inodes {
    pub(super) fn new(root: Node) -> Self {
        let mut tables = Tables::default();
        let known = Known {
            node: Some(root),
            told: None,
            key: Key::Root,
            found_at: (ROOT, OsString::new()),
            lookups: 1,
        };
        tables.by_number.insert(ROOT, known);
        tables.by_key.insert(Key::Root, ROOT);
        Inodes {
            tables: Mutex::new(tables),
        }
    }

    /// No user code runs under the lock, so a poisoned one is still consistent.
    fn lock(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// The node of a number, `None` when the kernel has forgotten it (or made it up).
    pub(super) fn node(&self, ino: u64) -> Option<Node> {
        self.lock().by_number.get(&ino)?.node.clone()
    }

    /// Adds one reference to the node found under `name`, and tells its number. The node replaces
    /// the one that was known by this number: they are the same object, and the new one is younger.
    /// `told` is what the kernel is told about it, unless the attributes of the node cannot change.
    pub(super) fn remember(
        &self,
        parent: u64,
        name: &OsStr,
        node: Node,
        told: Option<&Attr>,
    ) -> u64 {
        let key = Key::new(parent, name, node.base().identity());
        let told = told.map(|attr| Box::new(attr.clone()));
        self.add(parent, name, key, Some((node, told))).0
    }

    /// Adds one reference to what a listing has under `name`, without its node: the number, and what
    /// the kernel was told about it before.
    pub(super) fn remember_listed(
        &self,
        parent: u64,
        name: &OsStr,
        identity: Identity,
    ) -> (u64, Option<Box<Attr>>) {
        self.add(parent, name, Key::new(parent, name, identity), None)
    }

    /// Notes what the kernel is told about a node now.
    pub(super) fn tell(&self, ino: u64, attr: &Attr) {
        if let Some(known) = self.lock().by_number.get_mut(&ino) {
            known.told = Some(Box::new(attr.clone()));
        }
    }

    fn add(
        &self,
        parent: u64,
        name: &OsStr,
        key: Key,
        found: Option<(Node, Option<Box<Attr>>)>,
    ) -> (u64, Option<Box<Attr>>) {
        let mut guard = self.lock();
        let tables = &mut *guard;
        let ino = match tables.by_key.get(&key) {
            Some(ino) => *ino,
            None => {
                let mut ino = key.number();
                while tables.by_number.contains_key(&ino) {
                    ino = (ino.wrapping_add(1) & (u64::MAX >> 1)).max(FIRST);
                }
                tables.by_key.insert(key.clone(), ino);
                ino
            }
        };
        let (replaced, told) = match tables.by_number.entry(ino) {
            Slot::Occupied(mut slot) => {
                let known = slot.get_mut();
                known.lookups = known.lookups.saturating_add(1);
                if let Some((node, told)) = found {
                    known.told = told.or(known.told.take());
                    (known.node.replace(node), None)
                } else {
                    (None, known.told.clone())
                }
            }
            Slot::Vacant(slot) => {
                let (node, told) = found.unzip();
                slot.insert(Known {
                    node,
                    told: told.flatten(),
                    key,
                    found_at: (parent, name.to_owned()),
                    lookups: 1,
                });
                (None, None)
            }
        };
        drop(guard);
        // Dropping a node may close files: not under the lock.
        drop(replaced);
        (ino, told)
    }

    /// Takes away references; the last one drops the node. The root is never dropped.
    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        if ino == ROOT {
            return;
        }
        let mut tables = self.lock();
        let Some(known) = tables.by_number.get_mut(&ino) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        let gone = tables.by_number.remove(&ino);
        if let Some(known) = &gone {
            tables.by_key.remove(&known.key);
        }
        drop(tables);
        drop(gone);
    }

    /// The number that a listing shows for an entry: the known one, or the one it would get.
    pub(super) fn number_for_listing(&self, parent: u64, name: &OsStr, identity: Identity) -> u64 {
        let key = Key::new(parent, name, identity);
        let known = self.lock().by_key.get(&key).copied();
        known.unwrap_or_else(|| key.number())
    }

    /// The number of a directory's parent, for `..`.
    pub(super) fn parent(&self, ino: u64) -> u64 {
        self.lock()
            .by_number
            .get(&ino)
            .map_or(ROOT, |k| k.found_at.0)
    }

    /// The path within the mount, for log lines; as far as it is still known.
    pub(super) fn path(&self, ino: u64) -> PathBuf {
        let tables = self.lock();
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT && names.len() < MAX_PATH_DEPTH {
            match tables.by_number.get(&at) {
                Some(known) => {
                    names.push(known.found_at.1.clone());
                    at = known.found_at.0;
                }
                None => {
                    names.push(OsString::from("…"));
                    break;
                }
            }
        }
        names.into_iter().rev().collect()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().by_number.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::tree::{Attr, Base, Leaf};
    use std::sync::Arc;
    use std::time::SystemTime;

    struct Thing(Identity);

    impl Base for Thing {
        fn identity(&self) -> Identity {
            self.0
        }
        fn attr(&self) -> Result<Attr> {
            Ok(Attr::symlink(0, SystemTime::UNIX_EPOCH))
        }
    }

    impl Leaf for Thing {
        fn target(&self) -> Result<Option<OsString>> {
            Ok(None)
        }
    }

    fn thing(identity: Identity) -> Node {
        Node::Leaf(Arc::new(Thing(identity)))
    }

    /// Backup programs and NFS clients know files by these numbers from one mount to the next.
    #[test]
    fn numbers_are_the_same_in_every_build() {
        let named = Key::new(ROOT, "vms".as_ref(), Identity::Named(3));
        let shared = Key::new(ROOT, "any".as_ref(), Identity::Shared(5, 12));
        assert_eq!(
            (named.number(), shared.number()),
            (2357988089603776236, 6959170736167988034)
        );
    }

    #[test]
    fn number_is_kept_while_known_and_after_being_forgotten() {
        let inodes = Inodes::new(thing(Identity::Named(0)));
        let name = OsStr::new("a");
        let listed = inodes.number_for_listing(ROOT, name, Identity::Named(7));
        let first = inodes.remember(ROOT, name, thing(Identity::Named(7)), None);
        assert_eq!(first, listed);
        assert_eq!(
            inodes.remember(ROOT, name, thing(Identity::Named(7)), None),
            first
        );
        inodes.forget(first, 1);
        assert!(inodes.node(first).is_some());
        inodes.forget(first, 1);
        assert!(inodes.node(first).is_none());
        assert_eq!(inodes.len(), 1);
        assert_eq!(
            inodes.remember(ROOT, name, thing(Identity::Named(7)), None),
            first
        );
    }

    #[test]
    fn another_identity_under_the_same_name_has_another_number() {
        let inodes = Inodes::new(thing(Identity::Named(0)));
        let old = inodes.remember(ROOT, OsStr::new("a"), thing(Identity::Named(1)), None);
        let new = inodes.remember(ROOT, OsStr::new("a"), thing(Identity::Named(2)), None);
        assert_ne!(old, new);
        inodes.forget(old, 1);
        assert!(inodes.node(new).is_some());
    }

    #[test]
    fn names_of_one_shared_object_have_one_number() {
        let inodes = Inodes::new(thing(Identity::Named(0)));
        let a = inodes.remember(ROOT, OsStr::new("a"), thing(Identity::Shared(3, 9)), None);
        let b = inodes.remember(ROOT, OsStr::new("b"), thing(Identity::Shared(3, 9)), None);
        assert_eq!(a, b);
        inodes.forget(a, 2);
        assert_eq!(inodes.len(), 1);
    }

    #[test]
    fn live_objects_never_share_a_number() {
        let inodes = Inodes::new(thing(Identity::Named(0)));
        let a = inodes.remember(ROOT, OsStr::new("a"), thing(Identity::Named(0)), None);
        // Make the next object's own number look taken.
        let key = Key::new(ROOT, OsStr::new("b"), Identity::Named(0));
        {
            let mut tables = inodes.lock();
            let known = tables.by_number.remove(&a).unwrap();
            tables.by_number.insert(key.number(), known);
        }
        let b = inodes.remember(ROOT, OsStr::new("b"), thing(Identity::Named(0)), None);
        assert_eq!(b, key.number() + 1);
    }

    #[test]
    fn what_was_listed_counts_references_and_is_no_node_until_it_is_looked_up() {
        let inodes = Inodes::new(thing(Identity::Named(0)));
        let name = OsStr::new("a");
        let (listed, told) = inodes.remember_listed(ROOT, name, Identity::Named(7));
        assert!(inodes.node(listed).is_none() && told.is_none());
        let attr = Attr::file(5, 5, SystemTime::UNIX_EPOCH);
        let node = thing(Identity::Named(7));
        assert_eq!(inodes.remember(ROOT, name, node, Some(&attr)), listed);
        assert!(inodes.node(listed).is_some());
        let (_, told) = inodes.remember_listed(ROOT, name, Identity::Named(7));
        assert_eq!(told.as_deref(), Some(&attr));
        assert!(inodes.node(listed).is_some());
        inodes.forget(listed, 2);
        assert!(inodes.node(listed).is_some());
        inodes.forget(listed, 1);
        assert_eq!(inodes.len(), 1);
    }

    #[test]
    fn path_is_told_from_the_names_looked_up() {
        let inodes = Inodes::new(thing(Identity::Named(0)));
        let a = inodes.remember(ROOT, OsStr::new("vms"), thing(Identity::Named(0)), None);
        let b = inodes.remember(a, OsStr::new("web 01"), thing(Identity::Named(0)), None);
        assert_eq!(inodes.path(b), PathBuf::from("vms/web 01"));
        assert_eq!(inodes.parent(b), a);
    }
}
