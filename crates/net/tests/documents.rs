//! The repository's documents: their links resolve, the tests they name exist, and the two that
//! everyone reads first stay short.
//!
//! A fault is reported as `file:line: what is wrong`. Links to other sites are not followed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are at the edge: these read the repository's own files"
)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Documents checked in addition to all of `docs/`.
const AT_THE_ROOT: [&str; 4] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
];

/// Maximum number of lines in these documents.
const LINES_MAX: [(&str, usize); 2] = [("README.md", 90), ("ARCHITECTURE.md", 150)];

const GUARANTEES: &str = "docs/guarantees.md";

#[test]
fn every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading() {
    let mut faults = Vec::new();
    let mut links = 0;
    for document in documents() {
        for (line, target) in links_of(&prose(&document)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            if let Err(fault) = follow(&document, &target) {
                faults.push(format!("{}:{line}: {fault}", shown(&document)));
            }
        }
    }
    assert!(links > 0, "no link was found in any document");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let functions = functions_of_the_crates();
    let mut names = 0;
    let mut faults = Vec::new();
    for (line, text) in prose(&root().join(GUARANTEES)) {
        for name in code_spans(&text).filter(|span| is_function_name(span)) {
            names += 1;
            if !functions.contains(name) {
                faults.push(format!(
                    "{GUARANTEES}:{line}: no `fn {name}` is in any crate"
                ));
            }
        }
    }
    assert!(names > 0, "{GUARANTEES} names no test");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_documents_that_everybody_reads_first_are_short() {
    for (document, max) in LINES_MAX {
        let lines = fs::read_to_string(root().join(document))
            .unwrap()
            .lines()
            .count();
        assert!(
            lines <= max,
            "{document}:{lines}: it has {lines} lines, and may have {max}"
        );
    }
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap().to_owned()
}

fn shown(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.display().to_string()
}

fn documents() -> Vec<PathBuf> {
    let mut found: Vec<_> = AT_THE_ROOT.map(|name| root().join(name)).into();
    found.extend(files_below(&root().join("docs"), "md"));
    found
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The lines of a document outside its code blocks, each with its number from 1.
fn prose(document: &Path) -> Vec<(usize, String)> {
    let text =
        fs::read_to_string(document).unwrap_or_else(|error| panic!("{}: {error}", shown(document)));
    let mut fence = None;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mark = ["```", "~~~"]
            .into_iter()
            .find(|mark| line.trim_start().starts_with(mark));
        match (fence, mark) {
            (None, Some(_)) => fence = mark,
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, None) => lines.push((index + 1, line.to_owned())),
            (Some(_), _) => {}
        }
    }
    lines
}

/// The targets of `[text](target)`, of images, and of `[name]: target`.
fn links_of(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in lines {
        let line = without_code(line);
        let inline = line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
            .map(|(target, _)| target);
        let named = line
            .starts_with('[')
            .then(|| line.split_once("]: "))
            .flatten()
            .map(|(_, target)| target);
        for target in inline.chain(named) {
            // A title may follow the target.
            if let Some(target) = target.split_whitespace().next() {
                links.push((*number, target.to_owned()));
            }
        }
    }
    links
}

fn follow(document: &Path, target: &str) -> Result<(), String> {
    let (file, anchor) = match target.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (target, None),
    };
    let path = if file.is_empty() {
        document.to_owned()
    } else {
        document.parent().unwrap().join(file)
    };
    if !path.exists() {
        return Err(format!("the link `{target}` leads to no file"));
    }
    match anchor {
        None => Ok(()),
        Some(anchor) if path.is_file() && anchors_of(&path).contains(anchor) => Ok(()),
        Some(_) => Err(format!("the link `{target}` leads to no heading")),
    }
}

/// The anchors of a document's headings, by GitHub's rules: lower case, no punctuation, a hyphen
/// for each space, and a number from 1 for each repetition.
fn anchors_of(document: &Path) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(document) {
        let text = line.trim_start_matches('#');
        if !(1..=6).contains(&(line.len() - text.len())) || !text.starts_with(' ') {
            continue;
        }
        let text = without_targets(text.trim().trim_end_matches('#').trim_end());
        let anchor: String = text
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let repeated = seen.entry(anchor.clone()).or_default();
        anchors.insert(match *repeated {
            0 => anchor,
            n => format!("{anchor}-{n}"),
        });
        *repeated += 1;
    }
    anchors
}

/// Replaces `[text](target)` with `text`: an anchor contains only the text of a link.
fn without_targets(heading: &str) -> String {
    let mut parts = heading.split("](");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    text
}

fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The line without its code spans: what looks like a link in them is none.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// Test names have several words; a single word in code is something else.
fn is_function_name(span: &str) -> bool {
    span.contains('_')
        && span
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn functions_of_the_crates() -> BTreeSet<String> {
    let mut functions = BTreeSet::new();
    for file in files_below(&root().join("crates"), "rs") {
        let source = fs::read_to_string(file).unwrap();
        for definition in source.split("fn ").skip(1) {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            functions.extend(definition.split(|c| !is_name(c)).next().map(str::to_owned));
        }
    }
    functions
}
