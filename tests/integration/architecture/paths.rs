//! Which module uses which, by the paths in the sources: `crate::`, `super::`, `self::`, names of child modules and names
//! that a `use` brought in. A name that a module only passes on counts as one of the module that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module by the names that lead to it from the crate: empty for the crate itself.
pub type Module = Vec<String>;

/// One module's file.
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// Its code: neither comments nor tests.
    pub code: String,
    /// All paths in it, those of `use` among them.
    paths: Vec<Vec<String>>,
    /// What names a `use` brought in stand for.
    imported: BTreeMap<String, Vec<String>>,
}

/// All modules of the library but those with tests.
pub struct Sources(pub BTreeMap<Module, Source>);

impl Sources {
    /// Reads all files below `src`.
    pub fn read(src: &Path) -> Sources {
        let mut files = Vec::new();
        walk(src, &mut files);
        let texts = files.iter().map(|file| {
            let name = file.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(file).unwrap())
        });
        Sources::of(texts)
    }

    /// The sources with these names below `src`.
    pub fn of(texts: impl IntoIterator<Item = (String, String)>) -> Sources {
        let mut found = BTreeMap::new();
        let mut tests = BTreeSet::new();
        for (name, text) in texts {
            let module = module_of(&name);
            let (code, of_tests) = without_tests(&without_comments(&text));
            tests.extend(of_tests.into_iter().map(|name| child(&module, &name)));
            let (paths, imported) = paths_in(&code);
            let file = PathBuf::from(name);
            let source = Source {
                file,
                code,
                paths,
                imported,
            };
            found.insert(module, source);
        }
        found.retain(|module, _| !(1..=module.len()).any(|n| tests.contains(&module[..n])));
        Sources(found)
    }

    /// The modules that a module uses, itself not among them.
    pub fn used_by(&self, module: &Module) -> BTreeSet<Module> {
        let paths = &self.0[module].paths;
        let mut used: BTreeSet<Module> = paths
            .iter()
            .filter_map(|path| self.resolve(module, path, 0))
            .collect();
        used.remove(module);
        used
    }

    /// The module in which a path ends, if it is one of the library's.
    fn resolve(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        if depth > 8 {
            return None;
        }
        match first.as_str() {
            "crate" => self.descend(Module::new(), rest, depth),
            "self" => self.descend(from.clone(), rest, depth),
            "super" => {
                let mut at = from.clone();
                at.pop()?;
                let ups = rest.iter().take_while(|name| *name == "super").count();
                at.truncate(at.len().checked_sub(ups)?);
                self.descend(at, &rest[ups..], depth)
            }
            name => {
                if self.0.contains_key(&child(from, name)) {
                    return self.descend(from.clone(), path, depth);
                }
                let stands_for = self.0.get(from)?.imported.get(name)?;
                // What is taken from a crate under its own name leads to itself.
                if stands_for.first() == path.first() {
                    return None;
                }
                let whole: Vec<String> = stands_for.iter().chain(rest).cloned().collect();
                self.resolve(from, &whole, depth + 1)
            }
        }
    }

    fn descend(&self, mut at: Module, mut rest: &[String], depth: usize) -> Option<Module> {
        while let Some((name, after)) = rest.split_first() {
            let next = child(&at, name);
            if !self.0.contains_key(&next) {
                // A name that the module itself only took from elsewhere.
                let passed_on = self.0.get(&at).and_then(|s| s.imported.get(name));
                return match passed_on {
                    Some(path) => self.resolve(&at, path, depth + 1).or(Some(at)),
                    None => Some(at),
                };
            }
            (at, rest) = (next, after);
        }
        Some(at)
    }
}

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

fn child(module: &[String], name: &str) -> Module {
    let mut child = module.to_vec();
    child.push(name.to_owned());
    child
}

/// `a/mod.rs` and `a.rs` are the module `a`, `lib.rs` is the crate. (`main.rs` is another one, which no path leads to.)
fn module_of(name: &str) -> Module {
    let name = name.strip_suffix(".rs").unwrap();
    let name = name.strip_suffix("/mod").unwrap_or(name);
    match name {
        "lib" => Module::new(),
        name => name.split('/').map(str::to_owned).collect(),
    }
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Code without its modules of tests, and the names of those that have files of their own. A module of tests with a
/// body ends at the next line with nothing but a brace, as rustfmt writes it.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let (mut kept, mut files) = (String::new(), Vec::new());
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let module = lines.peek().and_then(|next| {
            let name = next.split_once("mod ")?.1;
            (line == "#[cfg(test)]" && !next.starts_with(' ')).then(|| name.to_owned())
        });
        match module {
            Some(name) if name.ends_with(';') => {
                files.push(name.trim_end_matches(';').to_owned());
                lines.next();
            }
            Some(_) => {
                lines.by_ref().find(|line| *line == "}");
            }
            None => {
                kept.push_str(line);
                kept.push('\n');
            }
        }
    }
    (kept, files)
}

type Paths = (Vec<Vec<String>>, BTreeMap<String, Vec<String>>);

/// All paths of two and more names that the code uses, and what the names stand for that a `use` brings in. What is
/// only passed on (`pub use`) is not used.
fn paths_in(code: &str) -> Paths {
    let (mut paths, mut imported) = (Vec::new(), BTreeMap::new());
    let (mut passed_on, mut named) = (BTreeMap::new(), BTreeSet::new());
    let mut words = Words { rest: code };
    let mut before = "";
    while let Some(word) = words.next() {
        if word == "use" {
            let mut tree = Vec::new();
            use_tree(&mut words, &[], &mut tree);
            tree.retain(|(path, _)| path.len() > 1);
            imported.extend(tree.iter().cloned().map(|(path, name)| (name, path)));
            // `pub`, or `pub(crate)`.
            if matches!(before, "pub" | ")") {
                passed_on.extend(tree.into_iter().map(|(path, name)| (name, path)));
            } else {
                paths.extend(tree.into_iter().map(|(path, _)| path));
            }
        } else if is_name(word) && before != "::" {
            let mut path = vec![word.to_owned()];
            while let Some(name) = words.path_goes_on() {
                path.push(name.to_owned());
            }
            named.insert(word);
            if path.len() > 1 {
                paths.push(path);
            }
        }
        before = word;
    }
    let used_too = passed_on
        .into_iter()
        .filter(|(name, _)| named.contains(name.as_str()));
    paths.extend(used_too.map(|(_, path)| path));
    (paths, imported)
}

/// What a `use` names, each with the name that it gets, up to the end of the tree.
fn use_tree(words: &mut Words<'_>, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let mut path = before.to_vec();
    while let Some(word) = words.peek() {
        match word {
            "," | "}" | ";" => break,
            "{" => {
                words.next();
                while words.peek().is_some_and(|word| word != "}") {
                    use_tree(words, &path, found);
                    if words.peek() == Some(",") {
                        words.next();
                    }
                }
                words.next();
                return;
            }
            "as" => {
                words.next();
                let name = words.next().unwrap_or_default().to_owned();
                found.push((path, name));
                return;
            }
            "::" => {}
            // `a::{self}` is `a`.
            "self" if !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        words.next();
    }
    if let Some(last) = path.last().cloned() {
        found.push((path, last));
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::`, and all other characters one by one.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        Words { rest: self.rest }.next()
    }

    /// The next name of a path that goes on here.
    fn path_goes_on(&mut self) -> Option<&'a str> {
        let mut ahead = Words { rest: self.rest };
        (ahead.next() == Some("::")).then_some(())?;
        let name = ahead.next().filter(|word| is_name(word))?;
        self.rest = ahead.rest;
        Some(name)
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let first = text.chars().next()?;
        let end = if text.starts_with("::") {
            2
        } else if first.is_alphanumeric() || first == '_' {
            text.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(text.len())
        } else {
            first.len_utf8()
        };
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        Some(word)
    }
}
