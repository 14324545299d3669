//! Tests of [`super::group`] on physical volumes made here.

use std::sync::Arc;

use super::label::tests::make;
use super::{PhysicalVolume, VolumeGroup, assemble_groups};
use crate::io::ReadAt;
use crate::volume::Problem;

const EXTENT: usize = 4096;
const START: usize = 128 << 10;

/// A volume group named `vg` over two physical volumes of 64 extents, with these logical volumes.
fn text(vg: &str, id: &str, seqno: u32, logical: &str) -> String {
    let (a, b) = (format!("{id}a"), format!("{id}b"));
    format!(
        "{vg} {{ id = \"{id}\" seqno = {seqno} extent_size = 8
          physical_volumes {{
            pv0 {{ id = \"{a:0<32}\" pe_start = 256 pe_count = 64 }}
            pv1 {{ id = \"{b:0<32}\" device = \"/dev/sdb\" pe_start = 256 pe_count = 64 }}
          }}
          logical_volumes {{ {logical} }} }}"
    )
}

fn linear(name: &str, pv: &str, at: u32, extents: u32) -> String {
    segment(
        name,
        extents,
        &format!("type = \"striped\" stripe_count = 1 stripes = [\"{pv}\", {at}]"),
    )
}

fn segment(name: &str, extents: u32, body: &str) -> String {
    hidden(name, extents, body).replacen('{', "{ status = [\"READ\", \"VISIBLE\"]", 1)
}

fn hidden(name: &str, extents: u32, body: &str) -> String {
    format!(
        "{name} {{ id = \"{name}\" segment1 {{ start_extent = 0 extent_count = {extents} {body} }} }}\n"
    )
}

/// Byte `n` of extent `e` on physical volume `p` is `p * 100 + e`.
fn physical(id: &str, number: u8, text: &str, wrap: usize) -> PhysicalVolume {
    let mut disk = make(id, text.as_bytes(), wrap, START + 64 * EXTENT);
    for extent in 0..64 {
        let at = START + extent * EXTENT;
        disk[at..at + EXTENT].fill(number * 100 + extent as u8);
    }
    PhysicalVolume {
        place: format!("xvd{}", (b'a' + number) as char),
        volume: Arc::new(disk),
    }
}

fn pair(logical: &str) -> Vec<PhysicalVolume> {
    let text = text("vg", "i", 1, logical);
    vec![
        physical("ia", 0, &text, 3000),
        physical("ib", 1, &text, 100),
    ]
}

fn group(members: &[PhysicalVolume]) -> (VolumeGroup, Vec<Problem>) {
    let (mut groups, problems) = assemble_groups(members);
    assert_eq!(groups.len(), 1);
    (groups.remove(0), problems)
}

fn bytes(group: &VolumeGroup, name: &str) -> Vec<u8> {
    let volume = &group
        .volumes
        .iter()
        .find(|v| v.name == name)
        .unwrap()
        .volume;
    let mut out = Vec::new();
    for extent in 0..volume.len_bytes() / EXTENT as u64 {
        let mut byte = [0];
        volume
            .read_exact_at(&mut byte, extent * EXTENT as u64 + 7)
            .unwrap();
        out.push(byte[0]);
    }
    out
}

#[test]
fn linear_and_striped_volumes_map_to_their_extents() {
    let members = pair(&format!(
        "{}{}",
        linear("lin", "pv1", 10, 3),
        segment(
            "str",
            4,
            "type = \"striped\" stripe_count = 2 stripe_size = 8 stripes = [\"pv0\", 20, \"pv1\", 30]"
        )
    ));
    let (group, problems) = group(&members);
    assert!(problems.is_empty() && group.problems.is_empty());
    assert_eq!(bytes(&group, "lin"), [110, 111, 112]);
    assert_eq!(bytes(&group, "str"), [20, 130, 21, 131]);
}

#[test]
fn a_missing_disk_leaves_the_other_volumes_readable_and_is_named() {
    let mut members = pair(&format!(
        "{}{}",
        linear("here", "pv0", 5, 2),
        linear("gone", "pv1", 0, 2)
    ));
    members.remove(1);
    let (group, _) = group(&members);
    assert_eq!(bytes(&group, "here"), [5, 6]);
    let gone = &group.volumes[1];
    assert!(!gone.complete);
    assert!(gone.volume.read_exact_at(&mut [0], 0).is_err());
    assert!(
        group
            .problems
            .iter()
            .any(|p| p.message.contains("/dev/sdb"))
    );
}

#[test]
fn mirrors_are_read_from_the_copy_that_is_there() {
    let logical = format!(
        "{}{}{}{}{}",
        hidden(
            "im0",
            2,
            "type = \"striped\" stripe_count = 1 stripes = [\"pv1\", 4]"
        ),
        hidden(
            "im1",
            2,
            "type = \"striped\" stripe_count = 1 stripes = [\"pv0\", 8]"
        ),
        hidden(
            "me0",
            1,
            "type = \"striped\" stripe_count = 1 stripes = [\"pv1\", 3]"
        ),
        hidden(
            "me1",
            1,
            "type = \"striped\" stripe_count = 1 stripes = [\"pv0\", 7]"
        ),
        segment(
            "old",
            2,
            "type = \"mirror\" mirror_count = 2 mirrors = [\"im0\", 0, \"im1\", 0]"
        )
    ) + &segment(
        "new",
        2,
        "type = \"raid1\" device_count = 2 raids = [\"me0\", \"im0\", \"me1\", \"im1\"]",
    );
    let mut members = pair(&logical);
    let (both, _) = group(&members);
    assert_eq!(bytes(&both, "old"), [104, 105]);
    assert_eq!(bytes(&both, "new"), [104, 105]);
    members.remove(1);
    let (one, _) = group(&members);
    assert_eq!(bytes(&one, "new"), [8, 9]);
    // The first copy of the old one is gone, and the other may never have been filled.
    let old = one.volumes.iter().find(|v| v.name == "old").unwrap();
    assert!(!old.complete);
    assert!(old.volume.read_exact_at(&mut [0], 0).is_err());
}

#[test]
fn groups_of_one_name_are_told_apart_by_id() {
    let first = text("vg", "i", 1, &linear("root", "pv0", 1, 1));
    let second = text("vg", "j", 1, &linear("root", "pv0", 2, 1));
    let members = [
        physical("ia", 0, &first, 900),
        physical("ja", 0, &second, 900),
        physical("ja", 0, &second, 900),
    ];
    let (groups, problems) = assemble_groups(&members);
    assert_eq!(groups.len(), 2);
    assert_eq!(
        (groups[0].name.as_str(), groups[1].name.as_str()),
        ("vg", "vg~2")
    );
    assert_eq!(bytes(&groups[1], "root"), [2]);
    assert_eq!(problems.len(), 1);
}

#[test]
fn the_newest_metadata_counts() {
    let members = [
        physical(
            "ia",
            0,
            &text("vg", "i", 2, &linear("new", "pv0", 1, 1)),
            900,
        ),
        physical(
            "ib",
            1,
            &text("vg", "i", 1, &linear("old", "pv0", 1, 1)),
            900,
        ),
    ];
    let (group, _) = group(&members);
    assert_eq!(group.volumes.len(), 1);
    assert_eq!(group.volumes[0].name, "new");
}

#[test]
fn volumes_that_make_no_sense_are_problems_beside_those_that_do() {
    let members = pair(
        &[
            linear("good", "pv0", 1, 1),
            linear("far", "pv0", 60, 5),
            linear("huge", "pv0", 1, 2_000_000_000),
            linear("loop", "loop", 0, 1),
            linear("nowhere", "pv9", 0, 1),
            segment("odd", 1, "type = \"vdo\""),
            segment(
                "snap",
                1,
                "type = \"striped\" stripe_count = 1 stripes = [\"pv0\", 9]",
            ),
            segment(
                "snapshot0",
                1,
                "type = \"snapshot\" origin = \"good\" cow_store = \"snap\"",
            ),
        ]
        .concat(),
    );
    let (group, _) = group(&members);
    let names: Vec<_> = group.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["good"]);
    assert_eq!(group.problems.len(), 6, "{:?}", group.problems);
}

/// Which of the two the machine uses cannot be seen, as with other snapshots.
#[test]
fn a_thin_volume_that_another_one_is_merged_into_is_left_out() {
    let thin = |merge: &str| {
        let body = format!("type = \"thin\" thin_pool = \"pool\" device_id = 1 {merge}");
        hidden("snap", 1, &body)
    };
    for (merge, is_shown) in [("", true), ("merge = \"origin\"", false)] {
        let (group, _) = group(&pair(&format!(
            "{}{}",
            linear("origin", "pv0", 3, 1),
            thin(merge)
        )));
        let shown = group.volumes.iter().any(|volume| volume.name == "origin");
        assert_eq!(shown, is_shown, "{:?}", group.problems);
    }
}

/// A volume of one extent that is this one.
fn same_as(name: &str, below: &str) -> String {
    let body = format!("type = \"striped\" stripe_count = 1 stripes = [\"{below}\", 0]");
    segment(name, 1, &body)
}

/// However the text orders them: what is built already must not be built upon without end.
#[test]
fn towers_of_volumes_are_refused_from_a_height_on() {
    let floor = |level| match level {
        0 => linear("v0", "pv0", 3, 1),
        _ => same_as(&format!("v{level}"), &format!("v{}", level - 1)),
    };
    let mut floors: Vec<String> = (0..100).map(floor).collect();
    let (upwards, _) = group(&pair(&floors.concat()));
    floors.reverse();
    let (downwards, _) = group(&pair(&floors.concat()));
    let shown = |group: &VolumeGroup| {
        let mut names: Vec<_> = group.volumes.iter().map(|v| v.name.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(shown(&upwards).len(), 9);
    assert_eq!(shown(&upwards), shown(&downwards));
    assert_eq!(bytes(&upwards, "v8"), [3]);
}

/// Each level would try the one below it 20 times, and that one the next.
#[test]
fn what_cannot_be_built_is_not_tried_again_and_again() {
    let level = |number: u32| {
        let below = format!("\"v{}\", \"ok\", ", number + 1);
        let raids = below.repeat(20);
        let body = format!("type = \"raid1\" device_count = 21 raids = [{raids} \"ok\", \"no\"]");
        segment(&format!("v{number}"), 1, &body)
    };
    let levels: String = (0..30).map(level).collect();
    let itself = "type = \"raid1\" device_count = 1 raids = [\"own\", \"ok\"]";
    let (group, _) = group(&pair(&format!(
        "{}{levels}{}",
        linear("ok", "pv0", 3, 1),
        segment("own", 1, itself)
    )));
    let names: Vec<_> = group.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["ok", "own"], "{:?}", group.problems);
    assert!(!group.volumes[1].complete, "it has no record of its own");
}

/// A byte of what is not there costs a read of all the others: of others that are such arrays, without end.
#[test]
fn arrays_of_arrays_with_parity_are_refused() {
    let array = |name: &str, below: &str| {
        let pairs = format!("\"{below}\", \"{below}\", ").repeat(3);
        let raids = pairs.trim_end_matches(", ");
        let body = format!("type = \"raid5\" device_count = 3 stripe_size = 8 raids = [{raids}]");
        segment(name, 1, &body)
    };
    let (group, _) = group(&pair(
        &[
            linear("plain", "pv0", 3, 1),
            array("one", "plain"),
            array("two", "one"),
        ]
        .concat(),
    ));
    let names: Vec<_> = group.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["plain", "one"]);
    assert!(group.problems[0].message.contains("within another"));
}

#[test]
fn flipped_bits_anywhere_never_panic() {
    let members = pair(&linear("lin", "pv1", 10, 3));
    let mut disk = vec![0; 128 << 10];
    members[0].volume.read_exact_at(&mut disk, 0).unwrap();
    let mut state = 1u64;
    for _ in 0..3000 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let at = (state >> 33) as usize % 1024;
        let at = if state & 1 == 0 { at } else { 4096 + at };
        let old = disk[at];
        disk[at] ^= 1 << ((state >> 20) & 7);
        let member = PhysicalVolume {
            place: "x".into(),
            volume: Arc::new(disk.clone()),
        };
        assemble_groups(&[member]);
        disk[at] = old;
    }
}
