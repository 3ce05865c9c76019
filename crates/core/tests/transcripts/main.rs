//! Stories of the protocol as files to read: what is done to a group, and what the nodes then say
//! to each other, write to their disks and tell their clients.
//!
//! ```text
//! # A comment.
//! > isolate n1              what is done; script.rs has the commands
//!   n2 -> n3 vote? term 2   what happens then, until the group is quiet
//!   ...
//! >> write n2 b=2           the same, with what happens left out
//! ```
//!
//! The nodes are whole, on in-memory disks, engines and network, under paused time. A story is run
//! and compared with its file, line by line. `STEADFAST_BLESS=1` rewrites the files instead: read
//! what has changed before you commit it.
//!
//! Messages are taken from the network and records from the disk, and decoded as
//! docs/protocol.md and docs/format.md describe them, not by the code of the library. A message
//! stands where the node that dialled sends it or receives it. `2/7` is the entry of term 2 at
//! position 7, and the node with the id 3 is called n3.
//!
//! Lines that follow each other and differ in one node only are one line, with the nodes in the
//! order of their names: `n2, n3 syncs 2/7`. Nothing else is sorted. Left out are the hellos that
//! are accepted or come before there is a group, heartbeats, appends without entries, `NODE_STATE`,
//! marks in the log, and whatever differs from run to run or says nothing: durations, UUIDs,
//! incarnations.
//!
//! Each story has its own process, because some of the randomness below us has per-process state.

#![expect(
    clippy::disallowed_methods,
    reason = "tests are at the edge: these read and write files of the repository"
)]

mod conversation;
mod disk;
mod group;
mod journal;
mod messages;
mod script;
mod tap;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::runtime::RngSeed;

/// Set: the files are rewritten.
const BLESS: &str = "STEADFAST_BLESS";
/// Tells the child which story to run.
const STORY: &str = "STEADFAST_STORY";
/// Stands before and after the story in what the child prints.
const MARK: &str = "=====";
/// Lines that are shown before and after what differs.
const CONTEXT: usize = 3;
/// Lines of it that are shown.
const LINES_SHOWN: usize = 20;

fn stories() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let files = fs::read_dir(directory).expect("the stories");
    let paths = files.map(|file| file.expect("a file").path());
    let mut stories: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    stories.sort();
    stories
}

fn start(path: &Path) -> Child {
    let this = std::env::current_exe().expect("this program has a path");
    Command::new(this)
        .args(["child", "--exact", "--nocapture"])
        .env(STORY, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program can run itself")
}

/// What the child has told; the reason, if it could not end.
fn told(child: Child) -> Result<String, String> {
    let output = child.wait_with_output().expect("it ends");
    let printed = String::from_utf8_lossy(&output.stdout);
    match printed.split(MARK).collect::<Vec<_>>()[..] {
        [_, told, _] if output.status.success() => Ok(told.to_owned()),
        _ => Err(format!(
            "{printed}\n{}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// From the first line that differs to the last one, with what is around them.
fn difference(written: &str, told: &str) -> Option<String> {
    let (written, told): (Vec<_>, Vec<_>) = (written.lines().collect(), told.lines().collect());
    if written == told {
        return None;
    }
    let is_same = |(left, right): &(&&str, &&str)| left == right;
    let same = written.iter().zip(&told).take_while(is_same).count();
    let (left, right) = (written[same..].iter().rev(), told[same..].iter().rev());
    let same_end = left.zip(right).take_while(is_same).count();
    let mut shown = String::new();
    let mut show = |sign: char, lines: &[&str]| {
        for line in lines.iter().take(LINES_SHOWN) {
            writeln!(shown, "    {sign} {line}").expect("a string takes everything");
        }
    };
    show(' ', &written[same.saturating_sub(CONTEXT)..same]);
    show('-', &written[same..written.len() - same_end]);
    show('+', &told[same..told.len() - same_end]);
    let end = &told[told.len() - same_end..];
    show(' ', &end[..end.len().min(CONTEXT)]);
    Some(format!("line {}:\n{shown}", same + 1))
}

#[test]
fn every_story_happens_as_it_is_written() {
    let stories = stories();
    assert!(!stories.is_empty());
    let children: Vec<_> = stories.iter().map(|path| start(path)).collect();
    let mut faults = String::new();
    for (path, child) in stories.iter().zip(children) {
        let fault = match told(child) {
            Err(why) => Some(why),
            Ok(told) if std::env::var_os(BLESS).is_some() => {
                fs::write(path, told).expect("written");
                None
            }
            Ok(told) => difference(&fs::read_to_string(path).expect("a story"), &told),
        };
        if let Some(fault) = fault {
            let name = path.file_name().expect("a file").display();
            writeln!(faults, "{name}, {fault}").expect("a string takes everything");
        }
    }
    assert!(
        faults.is_empty(),
        "what happens (+) is not what is written (-)\n\n{faults}\n{BLESS}=1 rewrites the files"
    );
}

/// Not a test of its own: runs one story for the parent.
#[test]
fn child() {
    let Some(path) = std::env::var_os(STORY) else {
        return;
    };
    let text = fs::read_to_string(path).expect("a story");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        // Decides which of several waiters on a tokio channel is woken first.
        .rng_seed(RngSeed::from_bytes(b"transcripts"))
        .build()
        .expect("a runtime");
    let told = runtime.block_on(script::tell(&text));
    println!("{MARK}{told}{MARK}");
}
