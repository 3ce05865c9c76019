//! Modules import from their own layer and from those below, never from above, and never in a circle.
//!
//! The layers of the library stand in one list, the table under "Layers" in ARCHITECTURE.md, those of the
//! program, the server and the simulator in docs/architecture/code-map.md: a row is a layer, from the top down. A fault is told as `file:line: what is wrong`. Tests may look upward.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are at the edge: these read the repository's own files"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The longest circle of imports between files of one folder. Between folders there is none.
const CIRCLE_MAX: usize = 3;

/// One `crate::module` in a source file.
struct Import {
    /// `file:line`.
    place: String,
    from: String,
    to: String,
    text: String,
}

const CODE_MAP: &str = "docs/architecture/code-map.md";

/// The sources of each crate, the document and the heading of its list, and the number of imports
/// that there are at least.
const LISTS: [(&str, &str, &str, usize); 4] = [
    ("crates/core/src", "ARCHITECTURE.md", "Layers", 500),
    ("crates/cli/src", CODE_MAP, "crates/cli/src", 50),
    ("crates/sim/src", CODE_MAP, "crates/sim/src", 50),
    ("crates/server/src", CODE_MAP, "crates/server/src", 50),
];

#[test]
fn no_module_imports_from_above() {
    for (crate_sources, document, heading, at_least) in LISTS {
        let sources = root().join(crate_sources);
        let layers = layers(&fs::read_to_string(root().join(document)).unwrap(), heading);
        let modules: BTreeSet<String> = top_modules(&sources).into_iter().collect();
        let listed: BTreeSet<String> = layers.keys().cloned().collect();
        assert_eq!(
            listed, modules,
            "{document} lists other modules than there are in {crate_sources}"
        );
        let imports = imports_of(&sources);
        assert!(
            imports.len() > at_least,
            "{crate_sources}: imports were not found"
        );
        let faults = faults(&imports, &layers);
        assert!(faults.is_empty(), "{crate_sources}\n{}", faults.join("\n"));
    }
}

#[test]
fn an_import_from_above_and_a_circle_of_folders_are_told_with_their_line() {
    let table = "## Layers\n\n| top | `a/` | x |\n| middle | `b/`, `c/` | x |\n";
    let layers = layers(table, "Layers");
    let import = |from: &str, to: &str| Import {
        place: format!("{from}/mod.rs:7"),
        from: from.to_owned(),
        to: to.to_owned(),
        text: format!("use crate::{to}::X;"),
    };
    assert!(
        faults(
            &[import("a", "b"), import("a", "c"), import("b", "c")],
            &layers
        )
        .is_empty()
    );
    let upward = faults(&[import("b", "a")], &layers);
    assert_eq!(upward, ["b/mod.rs:7: use crate::a::X; imports from above"]);
    let circle = faults(&[import("b", "c"), import("c", "b")], &layers);
    assert_eq!(circle, ["a circle of imports: b, c"]);
}

#[test]
fn files_of_a_folder_import_each_other_in_short_circles_only() {
    let sources = root().join("crates/core/src");
    let files = file_imports(&sources);
    assert!(files.len() > 100, "files were not found");
    let mut longest: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for start in files.keys() {
        let folder = start.split('/').next().unwrap();
        let circle = longest_circle(&files, &mut vec![start.as_str()]);
        if circle.len() > CIRCLE_MAX {
            longest.insert(folder, circle);
        }
    }
    assert!(longest.is_empty(), "{longest:?}");
}

#[test]
fn the_longest_circle_of_files_is_found() {
    let to = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let files: Files = [
        ("a".to_owned(), to(&["a/b"])),
        ("a/b".to_owned(), to(&["a", "a/c", "a/d"])),
        ("a/c".to_owned(), to(&["a"])),
        ("a/d".to_owned(), to(&["a/e"])),
        ("a/e".to_owned(), to(&["a", "x"])),
        ("x".to_owned(), to(&["a"])),
    ]
    .into();
    let longest = longest_circle(&files, &mut vec!["a"]);
    assert_eq!(longest, ["a", "a/b", "a/d", "a/e"]);
    let paths = paths_of("crate::log::{self, Log, disk::{Disk, DiskFile}}");
    assert_eq!(
        paths,
        [
            "crate::log::self",
            "crate::log::Log",
            "crate::log::disk::Disk",
            "crate::log::disk::DiskFile"
        ]
    );
}

/// The files that each file imports, all named as modules: `folder/file`.
type Files = BTreeMap<String, BTreeSet<String>>;

/// The longest circle, within one folder, that begins with `path` and names no file before its
/// first one: each circle is found once.
fn longest_circle<'a>(files: &'a Files, path: &mut Vec<&'a str>) -> Vec<&'a str> {
    let (first, last) = (path[0], path[path.len() - 1]);
    let folder = first.split('/').next();
    let mut longest = Vec::new();
    let mut found = |circle: Vec<&'a str>| {
        if circle.len() > longest.len() {
            longest = circle;
        }
    };
    for next in files.get(last).into_iter().flatten() {
        if next == first {
            found(path.clone());
        } else if **next > *first && next.split('/').next() == folder && !path.contains(&&**next) {
            path.push(next);
            found(longest_circle(files, path));
            path.pop();
        }
    }
    longest
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The modules in the table under a heading, with the number of their layer, from 0 at the top.
fn layers(document: &str, heading: &str) -> BTreeMap<String, usize> {
    let section = document
        .split("\n## ")
        .find(|part| part.trim_start_matches("## ").starts_with(heading));
    let rows = section
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut layers = BTreeMap::new();
    for (layer, row) in rows.enumerate() {
        let modules = row.split('|').nth(2).unwrap();
        for module in modules.split('`').skip(1).step_by(2) {
            layers.insert(module.trim_end_matches('/').to_owned(), layer);
        }
    }
    layers
}

/// `folder` or `file.rs`, of those directly below.
fn top_modules(sources: &Path) -> Vec<String> {
    let entries = fs::read_dir(sources).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn imports_of(sources: &Path) -> Vec<Import> {
    let modules = top_modules(sources);
    let find = |name: &str| {
        let is_it = |module: &&String| module.trim_end_matches(".rs") == name;
        modules.iter().find(is_it).cloned()
    };
    let mut imports = Vec::new();
    for file in files_below(sources) {
        let shown = file.strip_prefix(sources).unwrap();
        let from = shown.iter().next().unwrap().to_str().unwrap().to_owned();
        if is_of_tests(&file) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let work = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code = |line: &str| line.split("//").next().unwrap().to_owned();
        let code: String = work.lines().map(|line| code(line) + "\n").collect();
        for (at, found) in code.match_indices("crate::") {
            let number = code[..at].matches('\n').count() + 1;
            let rest = &code[at + found.len()..];
            for to in names(rest).filter_map(find).filter(|to| *to != from) {
                imports.push(Import {
                    place: format!("{}:{number}", shown.display()),
                    from: from.clone(),
                    to,
                    text: work.lines().nth(number - 1).unwrap().trim().to_owned(),
                });
            }
        }
    }
    imports
}

/// The modules that are named after `crate::`: one, or those of a list in braces.
fn names(rest: &str) -> impl Iterator<Item = &str> {
    let is_end = |c: char| !c.is_alphanumeric() && c != '_';
    let list = match rest.strip_prefix('{') {
        Some(list) => list.split("};").next().unwrap(),
        None => rest.split(is_end).next().unwrap(),
    };
    // Names inside of inner braces are no modules of the crate, or are found to be none.
    list.split(',')
        .filter_map(move |item| item.trim().split(is_end).next())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Whether the file, or the folder that it is in, is compiled for tests alone.
fn is_of_tests(file: &Path) -> bool {
    file.ancestors().any(|path| {
        let (Some(name), Some(folder)) = (path.file_stem(), path.parent()) else {
            return false;
        };
        let name = name.to_str().unwrap_or_default();
        let beside = folder.with_extension("rs");
        let parents = [folder.join("mod.rs"), folder.join("lib.rs"), beside];
        let declared = ["mod", "pub(crate) mod"].map(|how| format!("#[cfg(test)]\n{how} {name};"));
        let texts = parents
            .iter()
            .filter_map(|parent| fs::read_to_string(parent).ok());
        texts
            .into_iter()
            .any(|text| declared.iter().any(|line| text.contains(line)))
    })
}

fn faults(imports: &[Import], layers: &BTreeMap<String, usize>) -> Vec<String> {
    let is_upward = |import: &&Import| layers[&import.to] < layers[&import.from];
    let told = |import: &Import| format!("{}: {} imports from above", import.place, import.text);
    let mut faults: Vec<String> = imports.iter().filter(is_upward).map(told).collect();
    let circles = circles(imports).into_iter().filter(|circle| {
        let are_files = circle
            .iter()
            .all(|module| Path::new(module).extension().is_some());
        !are_files || circle.len() > CIRCLE_MAX
    });
    faults.extend(circles.map(|circle| {
        let modules: Vec<String> = circle.into_iter().collect();
        format!("a circle of imports: {}", modules.join(", "))
    }));
    if faults.iter().any(|fault| fault.ends_with("from above")) {
        faults.retain(|fault| fault.ends_with("from above"));
    }
    faults
}

/// Modules that reach each other.
fn circles(imports: &[Import]) -> BTreeSet<BTreeSet<String>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for import in imports {
        next.entry(&import.from).or_default().insert(&import.to);
    }
    let reached = |from: &str| {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = vec![from];
        while let Some(module) = open.pop() {
            for to in next.get(module).into_iter().flatten() {
                if reached.insert(to) {
                    open.push(to);
                }
            }
        }
        reached
    };
    let of = |module: &str| {
        let all = reached(module);
        let others = all
            .into_iter()
            .filter(|other| reached(other).contains(module));
        others.map(str::to_owned).collect::<BTreeSet<String>>()
    };
    next.keys()
        .map(|module| of(module))
        .filter(|circle| !circle.is_empty())
        .collect()
}

fn file_imports(sources: &Path) -> Files {
    let module_of = |file: &PathBuf| {
        let path = file.strip_prefix(sources).unwrap().with_extension("");
        let name = path.to_str().unwrap().to_owned();
        name.strip_suffix("/mod")
            .map_or(name.clone(), str::to_owned)
    };
    let files = files_below(sources);
    let work: Vec<&PathBuf> = files.iter().filter(|file| !is_of_tests(file)).collect();
    let modules: BTreeSet<String> = work.iter().map(|file| module_of(file)).collect();
    let imports = work.iter().map(|file| {
        let (text, own) = (fs::read_to_string(file).unwrap(), module_of(file));
        let work = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let uses = work.split(';').filter_map(|part| {
            let (before, used) = part.rsplit_once("use ")?;
            before
                .lines()
                .last()
                .is_none_or(is_visibility)
                .then_some(used)
        });
        let named = uses
            .flat_map(paths_of)
            .filter_map(|path| named(&own, &path, &modules));
        let named = named.filter(|module| *module != own).collect();
        (own.clone(), named)
    });
    imports.collect()
}

/// What may stand before `use` in its line.
fn is_visibility(before: &str) -> bool {
    let before = before.trim();
    before.is_empty() || before.starts_with("pub")
}

/// The module in which the path of a `use` line of `own` ends, if it is one of these.
fn named(own: &str, path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut place: Vec<&str> = own.split('/').collect();
    let mut parts = path.split("::").peekable();
    match parts.peek() {
        Some(&"crate") => place.clear(),
        Some(&("super" | "self")) => {}
        Some(&first) if modules.contains(&format!("{own}/{first}")) => {}
        _ => return None,
    }
    for part in parts {
        match part {
            "crate" | "self" => {}
            "super" => drop(place.pop()),
            name => place.push(name),
        }
    }
    let mut ends = (1..=place.len())
        .rev()
        .map(|count| place[..count].join("/"));
    ends.find(|module| modules.contains(module))
}

/// The paths of a `use` line, one for each name in its braces.
fn paths_of(tree: &str) -> Vec<String> {
    let tree: String = tree.split_whitespace().collect();
    let Some((before, inside)) = tree.split_once('{') else {
        return vec![tree];
    };
    let inside = inside.strip_suffix('}').unwrap_or(inside);
    let (mut items, mut depth) = (vec![String::new()], 0);
    for c in inside.chars() {
        match c {
            ',' if depth == 0 => items.push(String::new()),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                items.last_mut().unwrap().push(c);
            }
        }
    }
    let items = items.iter().filter(|item| !item.is_empty());
    let paths = items.flat_map(|item| paths_of(item));
    paths.map(|path| format!("{before}{path}")).collect()
}
