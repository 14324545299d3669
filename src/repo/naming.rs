//! Safe, unique and stable file names for what people named freely.
//!
//! A name depends only on the thing itself and on the set it stands in, never on the order of a
//! listing. Nothing is dropped: what has no usable name gets one, what collides gets its id added.

use std::collections::{HashMap, HashSet};

use super::json::cut;
use crate::hash::StableHash;

/// Longest file name that Linux takes, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// What stands for a VM or disk without a usable name.
pub const UNNAMED: &str = "unnamed";

/// Makes a text usable as (part of) a file name: `/`, control characters, line and paragraph
/// separators and bidirectional overrides become `_`, and so does a leading dot, which would hide
/// the entry. Spaces and all other Unicode stay. `None` when nothing visible is left.
pub fn sanitize(text: &str) -> Option<String> {
    if text.trim().is_empty() {
        return None;
    }
    let mut safe: String = text
        .chars()
        .map(|c| if is_unsafe(c) { '_' } else { c })
        .collect();
    if safe.starts_with('.') {
        safe.replace_range(..1, "_");
    }
    Some(safe)
}

/// Characters that never appear in a name or on a terminal: they could forge lines or the order of
/// what is shown.
pub fn is_unsafe(c: char) -> bool {
    c == '/'
        || c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// The short id of a VM folder: its first eight characters when it looks like a uuid.
pub fn short_id(folder: &str) -> String {
    match folder.get(..8) {
        Some(start) if start.bytes().all(|b| b.is_ascii_alphanumeric()) => start.to_owned(),
        _ => long_id(folder),
    }
}

/// An id that differs for every folder: the folder's name, or a hash where that is no safe name.
fn long_id(folder: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    if !folder.is_empty() && folder.len() <= 64 && folder.bytes().all(plain) {
        folder.to_owned()
    } else {
        hashed(folder)
    }
}

/// The name of a VM's folder in the mount: `web-01 (3f2a9c1e)`. `short_is_unique` tells whether no
/// other VM of the repository has the same short id; otherwise the whole id is shown. Because ids
/// differ, so do the names, whatever the labels are.
pub fn vm_folder_name(label: Option<&str>, folder: &str, short_is_unique: bool) -> String {
    let id = if short_is_unique {
        short_id(folder)
    } else {
        long_id(folder)
    };
    let label = label
        .and_then(sanitize)
        .unwrap_or_else(|| UNNAMED.to_owned());
    let room = MAX_NAME_BYTES - 3 - id.len();
    format!("{} ({id})", cut(&label, room))
}

/// The id that a name made by [`vm_folder_name`] ends with.
pub fn id_of_vm_folder_name(name: &str) -> Option<&str> {
    let (_, id) = name.strip_suffix(')')?.rsplit_once(" (")?;
    Some(id)
}

/// The device name of a VBD position: 0 is `xvda`, 25 `xvdz`, 26 `xvdaa`.
pub fn device_of_position(position: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = u64::from(position) + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    let letters: String = letters.into_iter().rev().collect();
    format!("xvd{letters}")
}

/// One thing that wants a name within a set.
#[derive(Debug, Clone)]
pub struct NameRequest {
    /// Lower ranks keep their names when they collide with higher ones.
    pub rank: u8,
    /// The name wanted; need not be safe.
    pub name: Option<String>,
    /// A short id to tell it from others with the same name, as a rule uuid digits.
    pub short_id: String,
    /// An id that no other of the set has.
    pub unique_id: String,
}

/// Gives every wish a name, in the order of `wishes`: safe, unique, with at least `reserve` bytes
/// to spare below [`MAX_NAME_BYTES`]. Things of one rank that want the same name all get their id
/// added, so that none of them changes its name when the listing's order does.
pub fn unique_names(wishes: &[NameRequest], reserve: usize) -> Vec<String> {
    let room = MAX_NAME_BYTES.saturating_sub(reserve);
    let wanted: Vec<String> = wishes
        .iter()
        .map(|wish| {
            let name = wish.name.as_deref().and_then(sanitize);
            let name = name.unwrap_or_else(|| UNNAMED.to_owned());
            cut(&name, room).to_owned()
        })
        .collect();
    let mut count: HashMap<(u8, &str), usize> = HashMap::new();
    for (wish, name) in wishes.iter().zip(&wanted) {
        *count.entry((wish.rank, name)).or_default() += 1;
    }
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    order.sort_by_key(|&i| (wishes[i].rank, &wishes[i].unique_id));

    let mut taken = HashSet::new();
    let mut names = vec![String::new(); wishes.len()];
    for i in order {
        let (wish, name) = (&wishes[i], &wanted[i]);
        let alone = count.get(&(wish.rank, name.as_str())) == Some(&1);
        let plain = alone.then(|| name.clone());
        let ids = [sanitize(&wish.short_id), Some(hashed(&wish.unique_id))];
        let with_ids = ids.into_iter().flatten().map(|id| with_id(name, &id, room));
        // Distinct texts can share a hash; counting on always ends.
        let counted = (2..=wishes.len() + 2).map(|n| with_id(name, &n.to_string(), room));
        let chosen = plain
            .into_iter()
            .chain(with_ids)
            .chain(counted)
            .find(|candidate| !taken.contains(candidate))
            .unwrap_or_default();
        taken.insert(chosen.clone());
        names[i] = chosen;
    }
    names
}

fn with_id(name: &str, id: &str, room: usize) -> String {
    let id = cut(id, 64);
    format!("{} ({id})", cut(name, room.saturating_sub(id.len() + 3)))
}

/// Sixteen hexadecimal digits for a text, the same at every run.
fn hashed(text: &str) -> String {
    format!("{:016x}", StableHash::new().part(text).finish_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "3f2a9c1e-1111-4222-8333-444455556666";

    fn wish(rank: u8, name: &str, id: &str) -> NameRequest {
        NameRequest {
            rank,
            name: Some(name.to_owned()),
            short_id: id.to_owned(),
            unique_id: format!("ref-{id}"),
        }
    }

    #[test]
    fn vm_folders_carry_label_and_first_uuid_digits() {
        assert_eq!(
            vm_folder_name(Some("web-01"), UUID, true),
            "web-01 (3f2a9c1e)"
        );
        assert_eq!(
            vm_folder_name(Some("web-01 \"α\" / prod"), UUID, true),
            "web-01 \"α\" _ prod (3f2a9c1e)"
        );
        assert_eq!(vm_folder_name(None, UUID, true), "unnamed (3f2a9c1e)");
        assert_eq!(
            vm_folder_name(Some(" \t"), UUID, true),
            "unnamed (3f2a9c1e)"
        );
        assert_eq!(
            vm_folder_name(Some("web"), UUID, false),
            format!("web ({UUID})")
        );
        assert_eq!(id_of_vm_folder_name("a (b) (3f2a9c1e)"), Some("3f2a9c1e"));
        assert_eq!(id_of_vm_folder_name("web"), None);
    }

    #[test]
    fn hostile_names_become_safe_and_keep_their_unicode() {
        assert_eq!(sanitize("..").as_deref(), Some("_."));
        assert_eq!(sanitize(".hidden").as_deref(), Some("_hidden"));
        assert_eq!(
            sanitize("a/b\0c\n\u{1b}[31m").as_deref(),
            Some("a_b_c__[31m")
        );
        assert_eq!(sanitize("x\u{202e}gpj").as_deref(), Some("x_gpj"));
        assert_eq!(
            sanitize("データ ディスク é").as_deref(),
            Some("データ ディスク é")
        );
        assert_eq!(sanitize("   "), None);
    }

    #[test]
    fn names_never_exceed_what_linux_takes() {
        let long = "é".repeat(400);
        assert!(vm_folder_name(Some(&long), UUID, false).len() <= MAX_NAME_BYTES);
        let wishes = [wish(0, &long, "aaaaaaaa"), wish(0, &long, "bbbbbbbb")];
        let names = unique_names(&wishes, 4);
        assert!(names.iter().all(|n| n.len() + 4 <= MAX_NAME_BYTES));
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn positions_become_device_names() {
        for (position, name) in [
            (0, "xvda"),
            (1, "xvdb"),
            (25, "xvdz"),
            (26, "xvdaa"),
            (27, "xvdab"),
            (701, "xvdzz"),
            (702, "xvdaaa"),
        ] {
            assert_eq!(device_of_position(position), name);
        }
        assert!(device_of_position(u32::MAX).len() < 12);
    }

    #[test]
    fn colliding_names_get_ids_whatever_the_order() {
        let wishes = vec![
            wish(0, "xvda", "11111111"),
            wish(1, "xvda", "22222222"),
            wish(1, "data", "33333333"),
            wish(1, "data", "44444444"),
            wish(1, "alone", "55555555"),
        ];
        let names = unique_names(&wishes, 4);
        assert_eq!(
            names,
            [
                "xvda",
                "xvda (22222222)",
                "data (33333333)",
                "data (44444444)",
                "alone"
            ]
        );
        let reversed: Vec<NameRequest> = wishes.into_iter().rev().collect();
        let mut again = unique_names(&reversed, 4);
        again.reverse();
        assert_eq!(again, names);
    }

    #[test]
    fn ids_that_collide_too_still_give_unique_names() {
        let mut wishes = vec![wish(0, "a", "x"), wish(0, "a", "x"), wish(0, "a (x)", "x")];
        wishes[1].unique_id = "other".into();
        wishes[2].unique_id = "third".into();
        let names = unique_names(&wishes, 4);
        let distinct: HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), 3, "{names:?}");
        assert!(names.iter().all(|n| !n.is_empty()));
    }

    #[test]
    fn folders_that_are_no_uuids_get_safe_ids() {
        assert_eq!(short_id("test"), "test");
        assert_eq!(short_id("3f2a9c1e-xx"), "3f2a9c1e");
        assert_eq!(short_id("a (b) c"), long_id("a (b) c"));
        assert_eq!(long_id("a (b) c").len(), 16);
    }
}
