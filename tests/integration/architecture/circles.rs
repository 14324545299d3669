//! Circles among the modules of one folder: files and folders that use one another, directly or over others.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::{Module, Sources};

/// A folder with those of its children that cannot be understood one after the other. What the folder's own file says
/// (`mod.rs`) is the child `mod`.
pub type Circle = (String, Vec<String>);

/// All circles, and for each of their members what it takes from the others.
pub fn circles(sources: &Sources) -> BTreeMap<Circle, Vec<String>> {
    // Folder → child → the other children that it uses, each with the files that do.
    type Uses = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;
    let mut folders: BTreeMap<Module, Uses> = BTreeMap::new();
    for module in sources.0.keys() {
        for other in sources.used_by(module) {
            let common = (0..)
                .take_while(|&n| module.get(n).is_some() && module.get(n) == other.get(n))
                .count();
            // What lies between top-level modules is the table's.
            if common == 0 {
                continue;
            }
            let within = |module: &Module| {
                let name = module.get(common);
                name.cloned().unwrap_or_else(|| "mod".to_owned())
            };
            let uses = folders.entry(module[..common].to_vec()).or_default();
            let files = uses.entry(within(module)).or_default();
            let file = format!("{} uses {}", module.join("::"), other.join("::"));
            files.entry(within(&other)).or_default().insert(file);
        }
    }
    let mut found = BTreeMap::new();
    for (folder, uses) in folders {
        let reach: BTreeMap<&String, BTreeSet<&String>> = uses
            .keys()
            .map(|from| (from, reached(&uses, from)))
            .collect();
        for (from, to) in &reach {
            let others =
                |name: &&&String| reach.get(**name).is_some_and(|back| back.contains(from));
            let members: Vec<String> = to.iter().filter(others).map(|s| s.to_string()).collect();
            if members.is_empty() {
                continue;
            }
            let lines = members.iter().flat_map(|from| {
                let to = uses[from].iter().filter(|(to, _)| members.contains(to));
                to.flat_map(|(_, lines)| lines.iter().cloned())
            });
            found.insert((folder.join("/"), members.clone()), lines.collect());
        }
    }
    found
}

/// What a child uses, over others too; itself only if it is in a circle.
fn reached<'a, T>(
    uses: &'a BTreeMap<String, BTreeMap<String, T>>,
    from: &String,
) -> BTreeSet<&'a String> {
    let mut found = BTreeSet::new();
    let mut left = vec![from];
    while let Some(name) = left.pop() {
        let next = uses.get(name).into_iter().flat_map(BTreeMap::keys);
        for other in next {
            if found.insert(other) {
                left.push(other);
            }
        }
    }
    found
}
