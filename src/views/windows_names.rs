//! Names that Windows can show, in place of those it cannot: reversible, each of one name only.
//!
//! What Windows does not take is written as `%` and two digits, as in URLs: `a:b` is `a%3Ab`, `con` is
//! `%63on`, a trailing `.` is `%2E`. A `%` that could be taken for the start of such an escape is
//! itself `%25`; all others stay. So most names stay as they are, no two names become one, and the
//! original is found by decoding. Only of names that become longer than a file name may be, a part is
//! cut away and a hash added, which a listing must be searched for.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::hash::StableHash;

/// Longest file name, in bytes.
const MAX_BYTES: usize = 255;
/// Starts the hash at the end of a name that was cut; no other name has it.
const CUT_MARK: &str = "%~";
/// Bytes of the mark and the digits of the hash.
const CUT_LEN: usize = CUT_MARK.len() + 16;

/// What a shown name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Original {
    /// This name.
    Name(OsString),
    /// One that was cut: the one that [`shown`] makes this of.
    Cut,
    /// No name is shown like this.
    None,
}

/// The name as it is shown to Windows.
pub(super) fn shown(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    let mut text = String::with_capacity(bytes.len() + 8);
    let escape = |text: &mut String, byte: u8| {
        let _ = write!(text, "%{byte:02X}");
    };
    let is_device = is_device(bytes);
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let next = at + c.len_utf8();
            let is_last = next == bytes.len();
            let is_odd = match c {
                '"' | '*' | ':' | '<' | '>' | '?' | '\\' | '|' => true,
                '\0'..='\u{1f}' => true,
                '.' | ' ' => is_last,
                '%' => starts_escape(&bytes[at..]),
                _ => at == 0 && is_device,
            };
            match is_odd {
                // All of these are one byte.
                true => escape(&mut text, c as u8),
                false => text.push(c),
            }
            at = next;
        }
        // Not UTF-8: Samba could not convert it.
        for byte in chunk.invalid() {
            escape(&mut text, *byte);
            at += 1;
        }
    }
    if text.len() > MAX_BYTES {
        let mut end = MAX_BYTES - CUT_LEN;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        let hash = StableHash::new().part(bytes).finish_u64();
        let _ = write!(text, "{CUT_MARK}{hash:016x}");
    }
    text.into()
}

/// What a name that somebody asks for stands for. Only names as [`shown`] makes them stand for any.
pub(super) fn original(name: &OsStr) -> Original {
    let bytes = name.as_bytes();
    let mark = bytes.len().checked_sub(CUT_LEN);
    if mark.is_some_and(|at| bytes[at..].starts_with(CUT_MARK.as_bytes())) {
        return Original::Cut;
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let digits = tail.get(..2).filter(|_| *first == b'%');
        match digits.and_then(|d| Some(hex(d[0])? << 4 | hex(d[1])?)) {
            Some(byte) => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            None => decoded.push(*first),
        }
    }
    let decoded = OsString::from_vec(decoded);
    let is_name = !decoded.as_bytes().iter().any(|b| matches!(b, 0 | b'/'));
    if is_name && shown(&decoded) == name {
        Original::Name(decoded)
    } else {
        Original::None
    }
}

/// The target of a symbolic link, so that it leads to the names that are shown. Absolute targets lead
/// out of the mount and stay.
pub(super) fn shown_target(target: &OsStr) -> OsString {
    if target.as_bytes().starts_with(b"/") {
        return target.to_owned();
    }
    let mut mapped = Vec::with_capacity(target.len());
    for (index, part) in target.as_bytes().split(|b| *b == b'/').enumerate() {
        if index > 0 {
            mapped.push(b'/');
        }
        match part {
            b"" | b"." | b".." => mapped.extend(part),
            _ => mapped.extend(shown(OsStr::from_bytes(part)).as_bytes()),
        }
    }
    OsString::from_vec(mapped)
}

/// Whether text that starts with a `%` could be taken for an escape, or for the mark of a cut.
fn starts_escape(text: &[u8]) -> bool {
    match text {
        [_, b'~', ..] => true,
        [_, a, b, ..] => hex(*a).is_some() && hex(*b).is_some(),
        _ => false,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Names that Windows keeps for devices, also with an extension.
fn is_device(name: &[u8]) -> bool {
    let stem = name.split(|b| *b == b'.').next().unwrap_or_default();
    let Ok(stem) = std::str::from_utf8(stem.trim_ascii_end()) else {
        return false;
    };
    let stem = stem.to_ascii_uppercase();
    if matches!(
        stem.as_str(),
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$"
    ) {
        return true;
    }
    let number = stem
        .strip_prefix("COM")
        .or_else(|| stem.strip_prefix("LPT"));
    // The superscript digits count, too.
    number.is_some_and(|n| {
        matches!(n, "¹" | "²" | "³") || n.len() == 1 && n.as_bytes()[0].is_ascii_digit()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_text(name: &[u8]) -> String {
        shown(OsStr::from_bytes(name)).into_string().unwrap()
    }

    #[test]
    fn names_that_windows_takes_stay() {
        for name in [
            "web-01 (3f2a9c1e)",
            "a.b.c",
            ".hidden",
            "100%",
            "50% off",
            "a%",
            "%zz",
            "é ü 漢",
            "console",
            "com",
            "com10",
            "nullify.txt",
            "a con",
            "lpt",
        ] {
            assert_eq!(shown_text(name.as_bytes()), name);
            assert_eq!(original(OsStr::new(name)), Original::Name(name.into()));
        }
    }

    #[test]
    fn what_windows_does_not_take_is_escaped() {
        for (name, expected) in [
            (&b"a:b"[..], "a%3Ab"),
            (
                b"web \"x\" <1> | ? * \\",
                "web %22x%22 %3C1%3E %7C %3F %2A %5C",
            ),
            (b"dot.", "dot%2E"),
            (b"dots..", "dots.%2E"),
            (b"space ", "space%20"),
            (b"tab\there", "tab%09here"),
            (b"con", "%63on"),
            (b"NUL.tar.gz", "%4EUL.tar.gz"),
            (b"Com1 .txt", "%43om1 .txt"),
            ("lpt²".as_bytes(), "%6Cpt²"),
            (b"latin\xe9", "latin%E9"),
            (b"a%3Ab", "a%253Ab"),
            (b"a%~b", "a%25~b"),
            (b"%:", "%%3A"),
            (b"%2:", "%2%3A"),
        ] {
            assert_eq!(shown_text(name), expected);
            let back = original(OsStr::new(expected));
            assert_eq!(back, Original::Name(OsString::from_vec(name.to_vec())));
        }
        // Other spellings of these stand for nothing: listing and look-up agree.
        for spelling in ["a:b", "a%3ab", "%61", "con", "a%2Fb", "a%00", "dot."] {
            assert_eq!(original(OsStr::new(spelling)), Original::None, "{spelling}");
        }
    }

    #[test]
    fn no_two_names_become_one() {
        let letters = b"%:3A~. a2\xc3\xa9";
        let mut names: Vec<Vec<u8>> = vec![Vec::new()];
        let mut all = Vec::new();
        for _ in 0..4 {
            names = names
                .iter()
                .flat_map(|name| letters.iter().map(move |l| [&name[..], &[*l]].concat()))
                .collect();
            all.extend(names.iter().cloned());
        }
        let mut seen = std::collections::HashSet::new();
        for name in all {
            let name = OsString::from_vec(name);
            let text = shown(&name);
            assert!(!text.as_bytes().contains(&b':') && text.to_str().is_some());
            assert_eq!(original(&text), Original::Name(name));
            assert!(seen.insert(text));
        }
    }

    #[test]
    fn long_names_are_cut_and_stay_different() {
        let long = |end: &str| OsString::from(format!("{}{end}", ":".repeat(250)));
        let (a, b) = (shown(&long("a")), shown(&long("b")));
        assert!(a != b && a.len() <= MAX_BYTES && b.len() <= MAX_BYTES);
        assert_eq!(original(&a), Original::Cut);
        // At the very limit nothing is cut.
        let fits = OsString::from("x".repeat(255));
        assert_eq!(shown(&fits), fits);
        assert_eq!(original(&fits), Original::Name(fits.clone()));
    }

    #[test]
    fn links_lead_to_the_names_that_are_shown() {
        for (target, expected) in [
            ("../vms/a:b (1)/x", "../vms/a%3Ab (1)/x"),
            ("/etc/a:b", "/etc/a:b"),
            ("./con/", "./%63on/"),
        ] {
            assert_eq!(shown_target(OsStr::new(target)), expected);
        }
    }
}
