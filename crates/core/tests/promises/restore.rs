//! A node whose log was left behind copies a peer's state, whatever happens meanwhile; and only log
//! entries that nobody needs are purged.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use steadfast::limits::CLOSE_MAX;
use steadfast::log::Disk;
use steadfast::{
    CommitToken, ConsistencyPolicy, FeedError, FeedEvent, NodeType, ReadError, RestoreProgress,
    StartAt, WriteError,
};

use crate::support::{Env, Group, Numbers, eventually, get, in_time, put};

const KIB: u64 = 1024;

/// Logs that are purged continually and retained for nobody.
const SMALL: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 120_000),
    ("flush_interval_ms", 20),
    ("log_segment_bytes", 64 * KIB),
    ("log_cache_bytes_max", 0),
    ("log_keep_bytes", 64 * KIB),
    ("log_retain_bytes_max", 64 * KIB),
    ("log_retain_ms_max", 100),
];

/// The same, with copies slow enough to observe.
const SLOW: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 120_000),
    ("flush_interval_ms", 20),
    ("log_segment_bytes", 64 * KIB),
    ("log_cache_bytes_max", 0),
    ("log_keep_bytes", 64 * KIB),
    ("log_retain_bytes_max", 64 * KIB),
    ("log_retain_ms_max", 100),
    ("restore_bytes_per_s_max", 512 * KIB),
];

/// The segments of a node's log, oldest first.
fn segments(group: &Group, at: usize) -> Vec<String> {
    let names = group.storages[at].disk().list(Path::new("/data/log"));
    let mut names = names.expect("a log");
    names.retain(|name| name.strip_suffix(".log").is_some());
    names
}

/// The first segment of a node's log.
fn first_segment(group: &Group, at: usize) -> Option<String> {
    segments(group, at).first().cloned()
}

fn write_kib(node: &Env, prefix: &str, kib: u64) -> Vec<CommitToken> {
    let value = vec![7; 4 * 1024];
    let put = |n| put(node, format!("{prefix}{n:05}"), &value).expect("committed");
    (0..kib / 4).map(put).collect()
}

/// Waits until a node's log begins later than it does now.
fn wait_purged(group: &Group, at: usize, before: Option<&String>) {
    eventually("the log is purged", || {
        first_segment(group, at).as_ref() > before
    });
}

/// Closes a node, and lets the others go on until their logs begin after its end. Some of what is
/// written meanwhile is overwritten, deleted and dropped.
fn leave_behind(group: &mut Group, at: usize, kib: u64) {
    group.close(at);
    let master = group.master_except(Some(at));
    let node = group.node(master).clone();
    let _token = put(&node, "needle", b"in-a-haystack").expect("committed");
    let put_in = |name: &str| node.write(|txn| txn.database(name)?.put("k", "v"));
    let _token = put_in("dropped").expect("committed");
    group.wait_persisted();
    let open = group
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.is_some());
    let written: Vec<_> = open
        .map(|(at, _)| (at, segments(group, at).pop()))
        .collect();
    write_kib(&node, "a", kib);
    write_kib(&node, "a", 64);
    for n in 0..4 {
        let key = format!("a{n:05}");
        let deleted = node.write(|txn| txn.database("d")?.delete(&key));
        let _token = deleted.expect("committed");
    }
    let dropped = node.write(|txn| txn.drop_database("dropped").map(drop));
    let _token = dropped.expect("committed");
    let _token = put_in("late").expect("committed");
    // What the node lacks is in no log.
    for (at, last) in written {
        wait_purged(group, at, last.as_ref());
    }
}

fn progress(group: &Group, at: usize) -> Option<RestoreProgress> {
    group.node(at).status().restore
}

fn wait_bytes(group: &Group, at: usize, bytes: u64) {
    eventually("a copy is under way", || {
        progress(group, at).is_some_and(|progress| progress.bytes >= bytes)
    });
}

#[test]
fn a_close_during_a_copy_is_over_in_time_at_both_ends() {
    let mut group = Group::in_memory(3, SLOW);
    write_kib(group.master(), "before", 32);
    leave_behind(&mut group, 2, 8 * 1024);
    group.reopen(2).expect("opened");
    wait_bytes(&group, 2, 1);
    let copying = progress(&group, 2).expect("under way");
    let source = copying.source.expect("a source");
    let is_source = |node: &&Env| node.status().node.id == source;
    let source = group.open_nodes().find(is_source).expect("open").clone();
    assert_eq!(source.status().copies, 1);
    for node in [&source, group.node(2)] {
        let began = Instant::now();
        node.close().expect("closed");
        assert!(began.elapsed() <= CLOSE_MAX, "{:?}", began.elapsed());
    }
}

#[test]
fn a_node_that_was_left_behind_copies_the_state_and_goes_on() {
    let mut group = Group::in_memory(3, SMALL);
    write_kib(group.master(), "before", 32);
    leave_behind(&mut group, 2, 1024);
    group.reopen(2).expect("opened");
    group.wait_ready();
    group.digest();
    assert!(group.storages[2].is_copy());
    let value = get(group.node(2), ConsistencyPolicy::Linearizable, "needle");
    assert_eq!(value.expect("read").as_deref(), Some(&b"in-a-haystack"[..]));
    // It goes on from there, across a restart and as one of two.
    write_kib(group.master(), "after", 32);
    group.digest();
    group.close(2);
    group.reopen(2).expect("opened");
    let master = group.master_except(None);
    group.close((0..2).find(|at| *at != master).expect("two"));
    write_kib(group.master(), "two", 8);
    group.digest();
}

#[test]
fn on_a_real_disk_too() {
    let mut group = Group::on_disk(3, SMALL);
    let master = group.master_except(None);
    let behind = (master + 1) % 3;
    group.close(behind);
    let node = group.node(master).clone();
    let first = || first_file(group.storages[master].dir());
    let before = first();
    write_kib(&node, "a", 1024);
    eventually("the log is purged", || first() > before);
    group.reopen(behind).expect("opened");
    group.wait_ready();
    group.digest();
    assert!(group.storages[behind].is_copy(), "the old state is gone");
    group.close(behind);
    group.reopen(behind).expect("opened");
    group.wait_ready();
    group.digest();
}

/// The first file of a log on a real disk.
fn first_file(dir: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(dir.join("log")).expect("a log");
    let names = names.map(|entry| entry.expect("a file").path());
    names
        .filter(|path| path.extension().is_some_and(|of| of == "log"))
        .min()
}

#[test]
fn the_log_is_purged_under_writers_that_never_pause() {
    const BUSY: Numbers = &[
        ("window_bytes_max", 4 * 1024 * KIB),
        ("flush_bytes", 1024 * KIB),
        ("flush_interval_ms", 100),
        ("log_segment_bytes", 1024 * KIB),
        ("log_keep_bytes", 1024 * KIB),
        ("log_retain_bytes_max", 1024 * KIB),
    ];
    let group = Group::on_disk(1, BUSY);
    let node = group.node(0);
    let first = || first_file(group.storages[0].dir());
    let before = first();
    let is_purged = &|| first() > before;
    // Otherwise a log that is not purged would fill the volume.
    let deadline = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        for writer in 0..8_u64 {
            scope.spawn(move || {
                for n in 0..u64::MAX {
                    if is_purged() || Instant::now() > deadline {
                        return;
                    }
                    let written = node.write(|txn| {
                        let data = txn.database("d")?;
                        (0..100).try_for_each(|i: u64| {
                            let key = [writer, n % 100, i].map(u64::to_be_bytes).concat();
                            data.put(key, [7; 1024])
                        })
                    });
                    let _token = written.expect("committed");
                }
            });
        }
    });
    assert!(is_purged());
}

#[test]
fn a_copy_goes_on_from_another_node_when_its_source_dies() {
    let mut group = Group::in_memory(3, SLOW);
    leave_behind(&mut group, 2, 1536);
    group.reopen(2).expect("opened");
    wait_bytes(&group, 2, 400 * KIB);
    let source = progress(&group, 2).and_then(|progress| progress.source);
    let source = source.expect("it has one");
    let is_source = |at: &usize| group.node(*at).status().node.id == source;
    let dying = (0..2).find(is_source).expect("a peer");
    group.crash(dying);
    group.wait_ready();
    group.reopen(dying).expect("opened");
    group.wait_ready();
    group.digest();
    assert!(group.storages[2].is_copy());
}

#[test]
fn a_copy_that_is_cut_short_again_and_again_becomes_whole() {
    let mut group = Group::in_memory(3, SLOW);
    leave_behind(&mut group, 2, 1024);
    let mut newest = 0;
    for point in 1..=20 {
        group.reopen(2).expect("opened");
        wait_bytes(&group, 2, point * 50 * KIB);
        newest = progress(&group, 2).map_or(newest, |progress| progress.bytes);
        let key = format!("point{point}");
        let _token = put(group.master(), key, b"v").expect("committed");
        group.crash(2);
    }
    group.reopen(2).expect("opened");
    group.wait_ready();
    group.digest();
    assert!(group.storages[2].is_copy());
    assert!(newest > 900 * KIB, "the last one was cut near its end");
}

#[test]
fn a_copy_whose_next_entries_are_gone_begins_anew() {
    let mut group = Group::in_memory(3, SLOW);
    leave_behind(&mut group, 2, 512);
    group.reopen(2).expect("opened");
    wait_bytes(&group, 2, 256 * KIB);
    group.close(2);
    let master = group.master_except(None);
    let ends = segments(&group, master).pop();
    write_kib(group.master(), "more", 256);
    for at in 0..2 {
        wait_purged(&group, at, ends.as_ref());
    }
    group.reopen(2).expect("opened");
    group.wait_ready();
    group.digest();
    assert!(group.storages[2].is_copy());
}

#[test]
fn a_node_that_copies_says_so_and_can_be_closed() {
    let mut group = Group::in_memory(3, SLOW);
    leave_behind(&mut group, 2, 1024);
    group.reopen(2).expect("opened");
    wait_bytes(&group, 2, 100 * KIB);
    let node = group.node(2).clone();
    let read = get(&node, ConsistencyPolicy::Eventual, "needle");
    let read = read.expect_err("it takes no part");
    assert!(matches!(read, ReadError::Restoring) && read.is_retryable());
    let written = put(&node, "k", b"v").expect_err("it takes no part");
    assert!(matches!(written, WriteError::Restoring) && written.is_retryable());
    let feed = node.subscribe(StartAt::Now).expect_err("it takes no part");
    assert!(matches!(feed, FeedError::Restoring) && feed.is_retryable());
    let status = node.status();
    assert!(
        status.waiting_for.contains("a copy of the state"),
        "{}",
        status.waiting_for
    );
    let progress = status.restore.expect("it copies");
    assert!(progress.bytes_total >= 900 * KIB && progress.bytes_per_s > 0);
    let source = progress.source.expect("there is one");
    let sends = |node: &Env| (node.status().node.id == source).then(|| node.status().copies);
    assert_eq!(group.open_nodes().find_map(sends), Some(1));
    in_time("closing", move || node.close().expect("closed"));
    group.nodes[2] = None;
    group.reopen(2).expect("opened");
    wait_bytes(&group, 2, progress.bytes);
    group.wait_ready();
    group.digest();
}

#[test]
fn an_arbiter_gets_no_data_by_a_copy() {
    let mut group = Group::in_memory(2, SMALL);
    let arbiter = group.join(NodeType::Arbiter);
    group.wait_ready();
    eventually("it votes", || {
        let members = group.master().status().members;
        members.iter().filter(|member| member.votes).count() == 3
    });
    leave_behind(&mut group, arbiter, 512);
    group.reopen(arbiter).expect("opened");
    group.wait_ready();
    group.wait_persisted();
    assert!(first_segment(&group, arbiter).is_some());
    for bytes in [&b"in-a-haystack"[..], b"needle", &[7; 64]] {
        assert!(!group.log_holds(arbiter, bytes));
    }
    assert_eq!(group.engine(arbiter).databases().expect("open"), []);
    // It votes: with it, one of two data nodes is enough.
    let master = group.master_except(None);
    group.close(1 - master);
    let token = put(group.master(), "k", b"v");
    assert!(token.is_ok(), "{token:?}");
}

#[test]
fn what_was_purged_is_history_that_is_gone() {
    let mut group = Group::in_memory(3, SMALL);
    let old = put(group.master(), "k", b"v").expect("committed");
    leave_behind(&mut group, 2, 512);
    let node = group.master().clone();
    let mut feed = node.subscribe(StartAt::Token(old)).expect("a feed");
    match in_time("an answer", move || feed.next()) {
        Some(Err(FeedError::HistoryGone { oldest })) => assert!(oldest > old.vlsn),
        other => panic!("{other:?}"),
    }
    // A node that was up all the time remembers the term of its transactions.
    group.reopen(2).expect("opened");
    group.wait_ready();
    group.digest();
    let asked = group.node(2).outcome(old);
    assert!(
        matches!(asked, Err(ReadError::HistoryGone { .. })),
        "{asked:?}"
    );
}

#[test]
fn a_subscription_keeps_the_log_that_it_has_not_read() {
    const KEEPING: Numbers = &[
        ("commit_timeout_ms", 120_000),
        ("flush_interval_ms", 20),
        ("log_segment_bytes", 64 * KIB),
        ("log_keep_bytes", 64 * KIB),
        ("log_retain_bytes_max", 1024 * KIB),
    ];
    let group = Group::in_memory(1, KEEPING);
    let node = group.node(0).clone();
    let first = write_kib(&node, "a", 4)[0];
    let mut feed = node.subscribe(StartAt::Token(first)).expect("a feed");
    let tokens = write_kib(&node, "b", 512);
    for token in tokens {
        let event = feed.next();
        assert!(
            matches!(&event, Some(Ok(FeedEvent::Transaction(seen))) if seen.token == token),
            "{event:?}"
        );
    }
    let before = first_segment(&group, 0);
    // Beyond the bound, the log is held for nobody.
    write_kib(&node, "c", 2048);
    wait_purged(&group, 0, before.as_ref());
    let mut events = std::iter::from_fn(|| feed.next());
    let gone = events.find_map(Result::err);
    assert!(
        matches!(gone, Some(FeedError::HistoryGone { .. })),
        "{gone:?}"
    );
}

#[test]
fn a_replica_that_comes_back_in_time_finds_the_log() {
    const KEEPING: Numbers = &[
        ("commit_timeout_ms", 120_000),
        ("flush_interval_ms", 20),
        ("log_segment_bytes", 64 * KIB),
        ("log_keep_bytes", 64 * KIB),
    ];
    let mut group = Group::in_memory(3, KEEPING);
    group.close(2);
    let master = group.master_except(Some(2));
    let _token = put(group.node(master), "needle", b"in-a-haystack").expect("committed");
    write_kib(group.node(master), "a", 512);
    group.reopen(2).expect("opened");
    group.digest();
    assert!(!group.storages[2].is_copy());
}
