//! Storage engine files are damaged on a real disk while their node is closed: it repairs itself,
//! or the damage hit nothing. Its data never differs from the others'.

use std::fs;
use std::path::{Path, PathBuf};

use crate::repair::{PURGED, votes, write};
use crate::support::{Group, eventually};

/// Damages the files of an engine.
type Damage = fn(&[PathBuf]);

/// The files of a closed node's engine, oldest first.
fn files(group: &Group, at: usize) -> Vec<PathBuf> {
    let names = fs::read_dir(group.storages[at].dir()).expect("a directory");
    let mut dirs = names.map(|entry| entry.expect("an entry").path());
    let is_engine = |dir: &PathBuf| {
        let name = dir.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("engine"))
    };
    let dir = dirs.find(is_engine).expect("an engine");
    let files = fs::read_dir(dir).expect("a directory");
    let files = files.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|own| own == "ndb"))
        .collect();
    files.sort_unstable();
    files
}

fn flip(file: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(file).expect("read");
    let at = at(bytes.len());
    bytes[at] ^= 0x10;
    fs::write(file, bytes).expect("written");
}

fn cut(file: &Path, length: impl Fn(u64) -> u64) {
    let file = fs::OpenOptions::new().write(true).open(file);
    let file = file.expect("opened");
    let before = file.metadata().expect("a file").len();
    file.set_len(length(before)).expect("cut");
}

#[test]
fn damage_to_the_files_of_the_engine_is_repaired_or_harmless() {
    let mut group = Group::on_disk(3, PURGED);
    write(group.master(), "before");
    let damages: [(&str, Damage); 7] = [
        ("a flip in the middle", |files| {
            flip(&files[0], |length| length / 2);
        }),
        ("a flip early", |files| flip(&files[0], |_| 36 + 40)),
        ("a flip in the header", |files| flip(&files[0], |_| 9)),
        ("a flip late", |files| {
            flip(&files[0], |length| length * 9 / 10);
        }),
        ("cut to nothing", |files| cut(&files[0], |_| 0)),
        ("the first is gone", |files| {
            fs::remove_file(&files[0]).expect("removed");
        }),
        ("all are gone", |files| {
            for file in files {
                fs::remove_file(file).expect("removed");
            }
        }),
    ];
    for (what, damage) in damages {
        write(group.master(), what);
        group.wait_persisted();
        let at = (group.master_except(None) + 1) % 3;
        group.close(at);
        damage(&files(&group, at));
        write(group.master(), "meanwhile");
        group.reopen(at).expect(what);
        group.wait_ready();
        group.digest();
        eventually(what, || votes(&group, at));
    }
}
