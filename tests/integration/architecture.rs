//! Holds the table of `docs/ARCHITECTURE.md` true: which module may use which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

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

/// The source files with the top-level module each belongs to.
fn sources() -> Vec<(String, PathBuf)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    let module = |path: &Path| {
        let first = path
            .strip_prefix(&src)
            .unwrap()
            .components()
            .next()
            .unwrap();
        let name = first.as_os_str().to_str().unwrap();
        name.trim_end_matches(".rs").to_owned()
    };
    files.into_iter().map(|f| (module(&f), f)).collect()
}

/// What of a file is neither comment nor test: tests may build what they need.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    let lines = text[..end].lines();
    lines
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n")
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
    for (module, path) in sources() {
        if module == "lib" {
            continue;
        }
        let Some(may) = allowed.get(&module) else {
            wrong.push(format!("{module} has no row"));
            continue;
        };
        for other in used(&code(&path)) {
            if other != module && !may.contains(&other) && !may.contains("all") {
                wrong.push(format!("{}: {module} may not use {other}", path.display()));
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
    let there: BTreeSet<String> = sources().into_iter().map(|(module, _)| module).collect();
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
