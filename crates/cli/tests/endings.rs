//! Verbs that start other processes end cleanly, and leave nothing behind.

#![expect(
    clippy::disallowed_methods,
    reason = "tests use real processes and deadlines"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the program with its temporary directories below `temporary`.
fn steadfast(arguments: &[&str], temporary: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_steadfast"))
        .args(arguments)
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Reads lines until one contains `word`; the test harness kills a program that hangs.
fn read_until(lines: &mut impl BufRead, word: &str) {
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        let read = lines.read_line(&mut line).expect("text");
        assert!(read > 0, "the program ended before it said {word:?}");
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([name, &pid]).status();
    assert!(sent.expect("kill runs").success());
}

/// The processes whose arguments name `dir`.
fn processes_of(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.display().to_string();
    let all = fs::read_dir("/proc").expect("a list of processes");
    all.map(|entry| entry.expect("an entry").path())
        .filter(|process| {
            // A process may end while we look at it; then it is not one of ours.
            let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(&dir)
        })
        .collect()
}

fn assert_nothing_runs(dir: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !processes_of(dir).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", processes_of(dir));
        std::thread::yield_now();
    }
}

#[test]
fn ctrl_c_ends_a_demo_and_leaves_nothing() {
    let temporary = TempDir::new().expect("a directory");
    let mut demo = steadfast(&["demo"], temporary.path());
    let mut lines = BufReader::new(demo.stderr.take().expect("piped"));
    read_until(&mut lines, "the load begins");
    assert_eq!(processes_of(temporary.path()).len(), 3);
    signal(&demo, "-INT");
    lines.read_to_string(&mut String::new()).expect("text");
    assert_eq!(demo.wait().expect("it ends").code(), Some(130));
    assert_eq!(processes_of(temporary.path()), [] as [PathBuf; 0]);
    let left = fs::read_dir(temporary.path()).expect("a directory").count();
    assert_eq!(left, 0, "the data directories are removed");
}

#[test]
fn nodes_of_a_demo_that_was_killed_end_by_themselves() {
    let temporary = TempDir::new().expect("a directory");
    let mut demo = steadfast(&["demo"], temporary.path());
    let mut lines = BufReader::new(demo.stderr.take().expect("piped"));
    read_until(&mut lines, "the load begins");
    demo.kill().expect("killed");
    demo.wait().expect("it ends");
    assert_nothing_runs(temporary.path());
}

#[test]
fn a_group_to_play_with_tells_of_a_dead_node_and_ends_by_ctrl_c() {
    let temporary = TempDir::new().expect("a directory");
    let mut dev = steadfast(&["dev"], temporary.path());
    let mut lines = BufReader::new(dev.stdout.take().expect("piped"));
    read_until(&mut lines, "is master");
    let node = processes_of(temporary.path()).remove(0);
    let pid = node
        .file_name()
        .expect("a pid")
        .to_string_lossy()
        .into_owned();
    let killed = Command::new("kill").args(["-KILL", &pid]).status();
    assert!(killed.expect("kill runs").success());
    read_until(&mut lines, "has ended (signal: 9");
    signal(&dev, "-INT");
    lines.read_to_string(&mut String::new()).expect("text");
    assert_eq!(dev.wait().expect("it ends").code(), Some(0));
    assert_eq!(processes_of(temporary.path()), [] as [PathBuf; 0]);
    let left = fs::read_dir(temporary.path()).expect("a directory").count();
    assert_eq!(left, 0, "the data directories are removed");
}
