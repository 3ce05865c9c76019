//! Rows are changed behind the engine's back while a node is down: no read ever shows it, and the
//! node corrects them, from its log or from a peer; or it reports the damage and serves nothing.
//!
//! `STEADFAST_LIVES_BIG=200` adds 200,000 rows to each node, which take longer to count than an
//! open waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use steadfast::engine::{
    Change, Direction, EngineBatch, EngineFactory, KeyRange, NoxuFactory, ScanLimit, StorageEngine,
};
use steadfast::ids::DatabaseId;

use crate::group::{End, Group, NODES};
use crate::model::Model;
use crate::protocol::{Rows, Stream, Write};
use crate::{PATIENCE, number_of};

/// Database of the rows to change.
const DATABASE: &str = "victims";
/// Number of rows that exist, and of rows that were deleted.
const ROWS: usize = 40;
/// By then everything has long been in the engine.
const REST: Duration = Duration::from_secs(1);
/// The log reaches back to the first row.
const KEPT: &[(&str, u64)] = &[("flush_interval_ms", 20)];
/// By hand: thousands of rows in a database that is counted before the one that is changed.
const BIG: &str = "STEADFAST_LIVES_BIG";
const KIB: u64 = 1024;
/// The log is purged continually and retained for nobody.
const PURGED: &[(&str, u64)] = &[
    ("flush_interval_ms", 20),
    ("log_segment_bytes", 64 * KIB),
    ("log_cache_bytes_max", 0),
    ("log_keep_bytes", 64 * KIB),
    ("log_retain_bytes_max", 64 * KIB),
    ("log_retain_ms_max", 100),
];

fn kept_row(n: usize) -> String {
    format!("row-{n:03}")
}

fn deleted_row(n: usize) -> String {
    format!("gone-{n:03}")
}

fn value(n: usize) -> String {
    format!("value-{n}-{}", "v".repeat(100))
}

fn stream(changes: impl Iterator<Item = (String, String, Option<String>)>) -> Vec<Stream> {
    let writes = (1..).zip(changes).map(|(number, change)| Write {
        number,
        changes: vec![change],
    });
    vec![Stream {
        number: 0,
        writes: writes.collect(),
    }]
}

/// This many thousand rows, as many per write as the smallest segment takes.
fn big_database(thousands: u64) -> Vec<Stream> {
    let row = |write, n| {
        (
            "big".to_owned(),
            format!("{write:06}-{n:03}"),
            Some(format!("{n}")),
        )
    };
    let write = |number| Write {
        number,
        changes: (0..250).map(|n| row(number, n)).collect(),
    };
    vec![Stream {
        number: 0,
        writes: (0..4 * thousands).map(write).collect(),
    }]
}

/// A group with the rows to change, watched from each node's first answer on.
fn written_group(numbers: &[(&str, u64)]) -> Group {
    let mut group = Group::new(numbers);
    let keys = (0..ROWS).flat_map(|n| [kept_row(n), deleted_row(n)]);
    let keys: Vec<_> = keys.collect();
    group.start(&[0, 1, 2]);
    group.write(big_database(number_of(BIG, 0)));
    let database = || DATABASE.to_owned();
    let put = |n| {
        let row = |key| (database(), key, Some(value(n)));
        [row(kept_row(n)), row(deleted_row(n))]
    };
    group.write(stream((0..ROWS).flat_map(put)));
    let delete = |n| (database(), deleted_row(n), None);
    group.write(stream((0..ROWS).map(delete)));
    group.watched.insert(database(), keys.into_iter().collect());
    group
}

/// Writes other data until no log holds what it holds now.
fn purge(group: &mut Group) {
    let newest: Vec<_> = (0..NODES).map(|at| segments(group, at).pop()).collect();
    let is_purged = |group: &Group, at: usize| segments(group, at).first() > newest[at].as_ref();
    let deadline = Instant::now() + PATIENCE;
    while !(0..NODES).all(|at| is_purged(group, at)) {
        assert!(Instant::now() < deadline, "the logs are not purged");
        let filler = |n| ("filler".to_owned(), format!("{n}"), Some("f".repeat(4_096)));
        group.write(stream((0..64).map(filler)));
    }
}

/// The segments of a node's log, oldest first.
fn segments(group: &Group, at: usize) -> Vec<PathBuf> {
    let mut segments: Vec<_> = entries(&group.data_dir(at))
        .filter(|path| starts_with(path, "log"))
        .flat_map(|dir| entries(&dir).collect::<Vec<_>>())
        .filter(|path| path.extension().is_some_and(|own| own == "log"))
        .collect();
    segments.sort_unstable();
    segments
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").path())
}

fn starts_with(path: &Path, word: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(word))
}

/// The directory of a node's engine, a new one after each copy of a peer's state.
fn engine_dir(group: &Group, at: usize) -> PathBuf {
    let entries = entries(&group.data_dir(at));
    let mut dirs = entries.filter(|path| path.is_dir() && starts_with(path, "engine"));
    let dir = dirs.next().expect("an engine");
    assert_eq!(dirs.next(), None, "one engine");
    dir
}

/// The engine of a stopped node, and its database that has the rows.
fn open_engine(group: &Group, at: usize) -> (std::sync::Arc<dyn StorageEngine>, DatabaseId) {
    let factory = NoxuFactory {
        cache_bytes: 16 << 20,
    };
    let engine = factory.open(&engine_dir(group, at)).expect("opened");
    let has_rows = |database: &DatabaseId| {
        let range = KeyRange::prefix(b"row-");
        let found = engine.scan(*database, range, Direction::Forward, ScanLimit::keys(1));
        !found.expect("read").is_empty()
    };
    let databases = engine.databases().expect("open").into_iter();
    let mut users = databases.filter(|database| database.0 > 0);
    let database = users.find(has_rows).expect("the database");
    (engine, database)
}

/// In a stopped node's engine: deletes a row, flips a bit of another one, and revives a deleted
/// one.
fn tamper(group: &Group, at: usize, n: usize) {
    let (engine, database) = open_engine(group, at);
    let bytes = |text: String| Bytes::from(text.into_bytes());
    let there = |key: &str| engine.get(database, key.as_bytes()).expect("read");
    let (lost, flipped, back) = (kept_row(n), kept_row(n + ROWS / 2), deleted_row(n));
    assert!(there(&lost).is_some() && there(&back).is_none());
    let mut value_flipped = there(&flipped).expect("a row").to_vec();
    value_flipped[0] ^= 1;
    let mut changes = vec![
        (database, bytes(lost), Change::Delete),
        (
            database,
            bytes(flipped),
            Change::Put(Bytes::from(value_flipped)),
        ),
        (database, bytes(back), Change::Put(bytes(value(n)))),
    ];
    changes.sort_by(|a, b| a.1.cmp(&b.1));
    let applied = engine.applied().expect("open").expect("a batch");
    engine
        .apply(&EngineBatch { applied, changes })
        .expect("changed");
    engine.close().expect("closed");
}

/// Ends all nodes, and changes rows of some of them.
fn end_and_tamper(group: &mut Group, end: End, (nodes, n): (&[usize], usize)) {
    group.wait_for(REST, |_| false);
    group.end_all(end);
    group.note(&format!("change rows {n} on {nodes:?}"));
    for at in nodes {
        tamper(group, *at, n);
    }
}

/// Everything watchers have found, from the first answer on, is what must be there.
fn check_watched(group: &Group) {
    for (seen, n) in group.seen.iter().zip(1..) {
        for found in &seen.watched {
            let right = group.model.check(&group.watched, found);
            right.unwrap_or_else(|what| panic!("n{n} has answered {what}"));
        }
    }
}

/// Stops all nodes, and checks their engines against what must be there.
fn check_engines(group: &mut Group) {
    group.end_all(End::Stop);
    for at in 0..NODES {
        let (engine, database) = open_engine(group, at);
        let all = KeyRange::all();
        let found = engine.scan(database, all, Direction::Forward, ScanLimit::NONE);
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let found = found.expect("read").into_iter();
        let found = found.map(|(key, value)| (text(&key), text(&value)));
        let found = Rows::from([(DATABASE.to_owned(), found.collect())]);
        let right = group.model.check_rows(&group.watched, &found);
        right.unwrap_or_else(|what| panic!("the engine of n{}: {what}", at + 1));
        engine.close().expect("closed");
    }
}

/// Runs a verb on all nodes; returns its exit code and output.
fn ask(group: &Group, verb: &str, output: &str) -> (Option<i32>, String) {
    let mut arguments: Vec<_> = vec![verb, "--output", output];
    let addresses: Vec<_> = (0..NODES).map(|at| group.address(at)).collect();
    let list = addresses.join(",");
    match verb {
        "status" => arguments.extend(addresses),
        _ => arguments.extend(["--ask", &list]),
    }
    let output = Command::new(env!("CARGO_BIN_EXE_steadfast"))
        .args(arguments)
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text + &errors)
}

/// What `status` reports for each node, by index.
fn statuses(group: &Group) -> Vec<Value> {
    let (_, text) = ask(group, "status", "json");
    let status: Value = serde_json::from_str(&text).expect("JSON");
    let mut nodes = status["nodes"].as_array().expect("a list").clone();
    nodes.sort_by_key(|node| node["name"].as_str().map(str::to_owned));
    nodes
        .into_iter()
        .map(|node| node["status"].clone())
        .collect()
}

/// The group is whole, every node holds what it must, and none has ever answered otherwise.
fn check_whole(group: &mut Group) {
    group.verify(false);
    check_watched(group);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (code, text) = ask(group, "status", "table");
        if code == Some(0) {
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
    }
}

#[test]
fn rows_that_the_log_holds_are_put_right_before_anything_is_read() {
    let mut group = written_group(KEPT);
    let rounds: [(End, &[usize]); 6] = [
        (End::Stop, &[0]),
        (End::Kill, &[1]),
        (End::Stop, &[1, 2]),
        (End::Kill, &[0, 2]),
        (End::Stop, &[0, 1, 2]),
        (End::Kill, &[0, 1, 2]),
    ];
    for (n, (end, nodes)) in rounds.into_iter().enumerate() {
        end_and_tamper(&mut group, end, (nodes, n));
        group.start(&[2, 0, 1]);
        check_whole(&mut group);
        for (at, status) in statuses(&group).iter().enumerate() {
            let due = if nodes.contains(&at) { 3 } else { 0 };
            let n = at + 1;
            assert_eq!(status["put_right"], due, "n{n} after {end:?}: {status}");
        }
    }
    check_engines(&mut group);
}

/// Rows that no log holds are changed on some nodes, which then copy a correct node's state.
fn are_copied_from_a_right_peer(nodes: &[usize]) {
    let mut group = written_group(PURGED);
    purge(&mut group);
    for (n, end) in [End::Stop, End::Kill].into_iter().enumerate() {
        let before: Vec<_> = (0..NODES).map(|at| engine_dir(&group, at)).collect();
        end_and_tamper(&mut group, end, (nodes, n));
        group.start(&[0, 1, 2]);
        check_whole(&mut group);
        for (at, before) in before.iter().enumerate() {
            let is_copy = engine_dir(&group, at) != *before;
            assert_eq!(is_copy, nodes.contains(&at), "n{} after {end:?}", at + 1);
        }
    }
    check_engines(&mut group);
}

#[test]
fn rows_that_no_log_holds_are_copied_where_one_node_is_wrong() {
    are_copied_from_a_right_peer(&[1]);
}

#[test]
fn rows_that_no_log_holds_are_copied_where_two_nodes_are_wrong() {
    are_copied_from_a_right_peer(&[0, 2]);
}

#[test]
fn rows_that_nobody_holds_are_reported_and_nothing_is_served() {
    for end in [End::Stop, End::Kill] {
        let mut group = written_group(PURGED);
        purge(&mut group);
        end_and_tamper(&mut group, end, (&[0, 1, 2], 0));
        group.may_fail = true;
        group.begin(&[0, 1, 2]);
        wait_damage_told(&mut group);
        // Time for a read that should not be answered.
        group.wait_for(REST, |_| false);
        check_watched(&group);
        for verb in ["status", "doctor"] {
            let (code, text) = ask(&group, verb, "table");
            assert_ne!(code, Some(0), "{text}");
            for word in ["is bad", DATABASE, "backup", "older data directory"] {
                assert!(text.contains(word), "{word:?} is not in {verb}: {text}");
            }
            for word in ["HEALTHY", "by itself"] {
                assert!(!text.contains(word), "{word:?} is in {verb}: {text}");
            }
        }
    }
}

/// Waits until `status` reports every node's data as damaged.
fn wait_damage_told(group: &mut Group) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        check_watched(group);
        let (_, text) = ask(group, "status", "json");
        let status: Value = serde_json::from_str(&text).unwrap_or_default();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let is_told = |node: &Value| node["status"]["damage"].is_string();
        if nodes.len() == NODES && nodes.iter().all(is_told) {
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
        group.wait_for(Duration::from_millis(100), |_| false);
    }
}

#[test]
fn a_changed_row_is_seen_by_the_check_of_these_tests() {
    let put = (
        DATABASE.to_owned(),
        kept_row(0),
        Some("as written".to_owned()),
    );
    let write = Write {
        number: 1,
        changes: vec![put],
    };
    let mut model = Model::default();
    model.leave_unknown(write);
    let rows = |value: &str| {
        let row = (kept_row(0), value.to_owned());
        Rows::from([(DATABASE.to_owned(), [row].into())])
    };
    model.settle(&rows("as written"));
    assert!(model.check_rows(&model.keys, &rows("as written")).is_ok());
    assert!(model.check_rows(&model.keys, &rows("altered")).is_err());
    assert!(model.check_rows(&model.keys, &Rows::new()).is_err());
}
