//! Holds `docs/ARCHITECTURE.md` true: which module may use which, and that within a module nothing goes in circles.

mod circles;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use circles::{Circle, circles};
use paths::Sources;

const DOCUMENT: &str = "docs/ARCHITECTURE.md";

/// module → what it may use, from the table under the heading "Who may use whom".
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join(DOCUMENT)).unwrap();
    let mut table = BTreeMap::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('#') {
            inside = line.trim_start_matches(['#', ' ']) == "Who may use whom";
            continue;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        // "| `module` | what it is for | `may`, `use` |"
        let [_, module, _, uses, _] = cells[..] else {
            continue;
        };
        if !inside || !module.starts_with('`') {
            continue;
        }
        let names = |cell: &str| -> BTreeSet<String> {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let uses = names(uses);
        for module in names(module) {
            let twice = table.insert(module.clone(), uses.clone());
            assert!(twice.is_none(), "{module} has two rows");
        }
    }
    assert!(table.len() > 5, "no table found in {DOCUMENT}");
    table
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Sources {
    Sources::read(&root().join("src"))
}

/// The top-level modules named after `crate::` (or `crate::{…}`).
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let name = |text: &str| -> String {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    for after in code.split("crate::").skip(1) {
        let Some(group) = after.strip_prefix('{') else {
            found.insert(name(after));
            continue;
        };
        // Names at the outer level of the group.
        let (mut depth, mut begins) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if depth == 0 && begins && !c.is_whitespace() => {
                    found.insert(name(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for (module, source) in sources().0 {
        let Some(module) = module.first() else {
            continue;
        };
        let Some(may) = allowed.get(module) else {
            wrong.push(format!("{module} has no row"));
            continue;
        };
        for other in used(&source.code) {
            if other != *module && !may.contains(&other) && !may.contains("all") {
                let file = source.file.display();
                wrong.push(format!("{file}: {module} may not use {other}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "against {DOCUMENT}:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn table_has_no_ring_and_no_dead_rows() {
    let allowed = allowed();
    let modules = sources().0.into_keys();
    let there: BTreeSet<String> = modules.filter_map(|m| m.first().cloned()).collect();
    for (module, may) in &allowed {
        assert!(there.contains(module), "{module} is in the table only");
        for other in may {
            assert!(
                other == "all" || allowed.contains_key(other),
                "{module} may use {other}, which has no row"
            );
        }
    }
    // Taking away what uses nothing that is left must take away everything.
    let mut left = allowed;
    while !left.is_empty() {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|_, may| {
            may.iter().any(|m| names.contains(m)) || (may.contains("all") && names.len() > 2)
        });
        assert!(left.len() < before, "a ring among {names:?}");
    }
}

#[test]
fn uses_are_found_in_every_form() {
    let code = "use crate::error::{Error, Result};\nuse crate::{a::b, c::{d, e}, f};\nlet x = crate::io::check();";
    let found: Vec<String> = used(code).into_iter().collect();
    assert_eq!(found, ["a", "c", "error", "f", "io"]);
}

#[test]
fn nothing_within_a_module_goes_in_circles() {
    let mut found = String::new();
    for ((folder, names), uses) in circles(&sources()) {
        found += &format!("in {folder}: {names:?}\n    {}\n", uses.join("\n    "));
    }
    assert!(found.is_empty(), "circles:\n{found}");
}

fn made_of(files: &[(&str, &str)]) -> Sources {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    Sources::of(files.iter().map(owned))
}

#[test]
fn circles_are_found_over_files_folders_and_names_passed_on() {
    let found = |files: &[(&str, &str)]| -> Vec<Circle> {
        let lib = [("lib.rs", "pub mod m;")];
        let all: Vec<_> = lib.iter().chain(files).copied().collect();
        circles(&made_of(&all)).into_keys().collect()
    };
    let circle = |folder: &str, names: &[&str]| -> Circle {
        let names = names.iter().map(|name| (*name).to_owned());
        (folder.to_owned(), names.collect())
    };
    // Two files, one of them within a folder; the way back leads over a third.
    let three = [
        ("m/mod.rs", "mod a;\nmod b;\nmod c;\nmod d;"),
        ("m/a/mod.rs", "mod inner;"),
        ("m/a/inner.rs", "use crate::m::b::{self, Thing};"),
        ("m/b.rs", "fn f() { super::c::g() }"),
        ("m/c.rs", "use super::a::{self as other};"),
        ("m/d.rs", "use super::a;"),
    ];
    assert_eq!(found(&three), [circle("m", &["a", "b", "c"])]);
    // What the folder's own file passes on is not its own, and passing on is no use.
    let passed_on = [
        (
            "m/mod.rs",
            "mod a;\nmod b;\npub use a::A;\npub use self::b::B;",
        ),
        ("m/a.rs", "use super::B;"),
        ("m/b.rs", "use crate::m::A as Other;"),
    ];
    assert_eq!(found(&passed_on), [circle("m", &["a", "b"])]);
    // What it says itself is.
    let own = [
        ("m/mod.rs", "mod a;\npub use a::A;\npub struct Own(A);"),
        ("m/a.rs", "use super::Own;"),
    ];
    assert_eq!(found(&own), [circle("m", &["a", "mod"])]);
    // Tests and comments use what they want; other crates' names are not ours.
    let tests = [
        (
            "m/mod.rs",
            "mod a;\nmod b;\n#[cfg(test)]\nmod t;\nuse a::A;\nfn f() { A::new() }",
        ),
        (
            "m/a.rs",
            "use b::B; // super::b\n#[cfg(test)]\nmod tests {\n    use super::super::f;\n}\n",
        ),
        ("m/b.rs", "use super::a::A;"),
        ("m/t.rs", "use super::*;\nuse super::f;"),
    ];
    assert_eq!(found(&tests), []);
}
