//! The corpora of `fuzz/`, replayed.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use super::TARGETS;

/// What the names of this crate's targets begin with.
const PREFIX: &str = "server_";

#[test]
fn what_clients_send_in_the_corpora_is_decoded_without_a_panic() {
    for (name, decode) in TARGETS {
        let inputs = files_in(&fuzz().join("corpus").join(name)).into_iter();
        let panics = |input: &PathBuf| {
            let bytes = fs::read(input).expect("a file");
            catch_unwind(|| decode(&bytes)).is_err()
        };
        let failed: Vec<_> = inputs.filter(panics).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in("corpus"), known);
    assert_eq!(names_in("fuzz_targets"), known);
    for name in known {
        assert!(
            !files_in(&fuzz().join("corpus").join(&name)).is_empty(),
            "{name}"
        );
    }
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// The names in a folder of `fuzz/` that are of this crate.
fn names_in(folder: &str) -> BTreeSet<String> {
    let names = files_in(&fuzz().join(folder)).into_iter();
    let names = names.map(|path| {
        let stem = path.file_stem().and_then(std::ffi::OsStr::to_str);
        stem.expect("a name in text").to_owned()
    });
    names.filter(|name| name.starts_with(PREFIX)).collect()
}
