//! Access control lists of guests under `--guest-owner --allow-other`: nobody is admitted whom the guest would refuse,
//! and nobody refused whom it would admit.

use std::path::PathBuf;

use crate::support::brfs::BrfsMount;
use crate::support::chain::{Chain, Storage};
use crate::support::ext::*;
use crate::support::mountpoint::{TempDir, can_mount, has_program, needs, sh};
use crate::support::rng::Rng;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Owned by 1000, group 65534, with attributes in this block.
fn owned(mode: u16, block: usize, attributes: usize) -> Vec<u8> {
    let size = BLOCK as u32;
    let mut raw = inode(mode, size, 1, 4, EXTENTS, &extent(1, block as u32));
    raw[2..4].copy_from_slice(&1000u16.to_le_bytes());
    raw[0x18..0x1A].copy_from_slice(&65534u16.to_le_bytes());
    raw[0x68..0x6C].copy_from_slice(&(attributes as u32).to_le_bytes());
    raw
}

/// The group's bits of all modes are those of masks, which admit more than the group itself gets.
fn volume() -> Vec<u8> {
    let user = acl(&[
        (USER_OBJ, 6, None),
        (USER, 6, Some(1234)),
        (GROUP_OBJ, 0, None),
        (MASK, 6, None),
        (OTHER, 0, None),
    ]);
    let group = acl(&[
        (USER_OBJ, 6, None),
        (GROUP_OBJ, 0, None),
        (GROUP, 4, Some(4321)),
        (MASK, 6, None),
        (OTHER, 0, None),
    ]);
    let directory_list = acl(&[
        (USER_OBJ, 7, None),
        (USER, 5, Some(1234)),
        (GROUP_OBJ, 0, None),
        (MASK, 7, None),
        (OTHER, 0, None),
    ]);
    let mut volume = Volume::new();
    volume.set(0x5C, &8u32.to_le_bytes()); // attributes, and no journal
    volume.set(0x60, &0x42u32.to_le_bytes());
    volume.set_block(40, &attributes(&[(2, &user)]));
    volume.set_block(41, &attributes(&[(2, &group)]));
    volume.set_block(42, &attributes(&[(2, &directory_list), (3, &user)]));
    volume.set_inode(12, &owned(0o100_660, CONTENTS, 40));
    volume.set_inode(13, &owned(0o100_660, CONTENTS + 1, 41));
    volume.set_inode(14, &owned(0o100_640, CONTENTS + 2, 0));
    volume.set_inode(15, &owned(0o040_770, 43, 42));
    volume.set_block(43, &directory(&[("inside", 16, 1)]));
    volume.set_inode(
        16,
        &inode(
            0o100_644,
            BLOCK as u32,
            1,
            2,
            EXTENTS,
            &extent(1, CONTENTS as u32),
        ),
    );
    volume.set_root(&[
        ("user", 12, 1),
        ("group", 13, 1),
        ("plain", 14, 1),
        ("dir", 15, 2),
    ]);
    volume.0
}

fn mounted(flags: &[&str]) -> Option<(BrfsMount, PathBuf, TempDir)> {
    let tools = ["setpriv", "getfacl"];
    if !can_mount()
        || !needs(
            "setpriv, getfacl",
            tools.iter().all(|tool| has_program(tool)),
        )
    {
        return None;
    }
    let dir = TempDir::new();
    let bytes = volume();
    let mut chain = Chain::new();
    let layer = chain.push(&mut Rng::new(1), bytes.len() as u64);
    layer.storage(Storage::File).writes.write_bytes(0, &bytes);
    let written = chain.write(dir.path());
    let flags = [&["--allow-other", "--guest-owner"], flags].concat();
    let mount = BrfsMount::new(written.youngest(), &flags);
    let root = mount.join("disk");
    Some((mount, root, dir))
}

/// Whether a user of one group may do this.
fn may(uid: u32, gid: u32, command: &str) -> bool {
    sh(&format!(
        "setpriv --reuid {uid} --regid {gid} --clear-groups {command} >/dev/null 2>&1 && echo yes || echo no"
    ))
    .starts_with("yes")
}

#[test]
fn lists_admit_and_refuse_as_in_the_guest() {
    let Some((_mount, root, _dir)) = mounted(&[]) else {
        return;
    };
    let cat = |name: &str| format!("cat {:?}", root.join(name));
    for (uid, gid, name, admitted) in [
        (1000, 1000, "user", true),
        (1234, 1234, "user", true),
        (65534, 65534, "user", false),
        (5555, 4321, "user", false),
        (0, 0, "user", true),
        (1000, 1000, "group", true),
        (5555, 4321, "group", true),
        (65534, 65534, "group", false),
        (1234, 1234, "group", false),
        (65534, 65534, "plain", true),
        (1234, 1234, "plain", false),
        (1234, 1234, "dir/inside", true),
        (65534, 65534, "dir/inside", false),
        (1000, 1, "dir/inside", true),
    ] {
        assert_eq!(may(uid, gid, &cat(name)), admitted, "{uid}:{gid} {name}");
    }
    let list = format!("ls {:?}", root.join("dir"));
    assert!(may(1234, 1234, &list));
    assert!(!may(65534, 65534, &list));
    // And they are shown, and copied where that is possible.
    let shown =
        |path: &std::path::Path| sh(&format!("cd {path:?} && getfacl -cn user group plain dir"));
    let own = shown(&root);
    for words in [
        "user:1234:rw-",
        "group:4321:r--",
        "default:user:1234:rw-",
        "mask::rwx",
    ] {
        assert!(own.contains(words), "{own}");
    }
    let copies = TempDir::new();
    let able = sh(&format!(
        "setfacl -m u:1:r {:?} 2>/dev/null && echo yes || echo no",
        copies.path()
    ));
    if needs(
        "a file system with access control lists",
        able.starts_with("yes"),
    ) {
        let to = copies.path().join("all");
        sh(&format!("cp -a {root:?} {to:?}"));
        assert_eq!(shown(&to), own);
    }
}

/// What the mount takes away it takes from lists, too.
#[test]
fn a_umask_counts_for_lists() {
    let Some((_mount, root, _dir)) = mounted(&["--umask", "070"]) else {
        return;
    };
    let cat = |name: &str| format!("cat {:?}", root.join(name));
    assert!(may(1000, 1000, &cat("user")));
    assert!(!may(1234, 1234, &cat("user")));
    assert!(!may(5555, 4321, &cat("group")));
    assert!(!may(1234, 1234, &cat("dir/inside")));
}
