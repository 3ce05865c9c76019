//! Acknowledged data survives every kind of end; a wiped directory does not come back.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use steadfast::machine::Machine;
use steadfast::quorum_loss::{self, NextStep};
use steadfast::{ConsistencyPolicy, OpenError, ReadError, ReadyError};

use crate::support::{Env, Group, PATIENCE, Release, Storage, eventually, put, stays};

/// Small segments, because a crash in memory copies them.
const CRASHING: &[(&str, u64)] = &[
    ("flush_bytes", 1024),
    ("commit_timeout_ms", 1000),
    ("log_segment_bytes", 1 << 20),
];

fn fill(node: &Env, from: u32, count: u32) {
    for n in from..from + count {
        let _token = put(node, format!("k{n}"), n.to_le_bytes()).expect("committed");
    }
}

fn assert_filled(node: &Env, count: u32) {
    let rows = node.read(
        ConsistencyPolicy::Linearizable,
        |s| -> Result<_, ReadError> {
            let db = s.database("d")?;
            for n in 0..count {
                assert_eq!(
                    db.get(format!("k{n}"))?.as_deref(),
                    Some(&n.to_le_bytes()[..])
                );
            }
            Ok(db.prefix("k").count())
        },
    );
    assert_eq!(rows.expect("read"), count as usize);
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn a_closed_node_opens_again_with_everything() {
    let mut group = Group::on_disk(1, &[]);
    let mut digest = 0;
    for round in 0..3 {
        fill(group.master(), round * 30, 30);
        digest = group.digest();
        group.close(0);
        group.reopen(0).expect("opened");
        group.wait_ready();
        assert_eq!(group.digest(), digest);
    }
    assert_filled(group.master(), 90);
    assert_ne!(digest, 0);
}

#[test]
fn three_closed_nodes_open_again_with_everything() {
    let mut group = Group::on_disk(3, &[]);
    fill(group.master(), 0, 60);
    let digest = group.digest();
    (0..3).for_each(|at| group.close(at));
    (0..3).for_each(|at| group.reopen(at).expect("opened"));
    group.wait_ready();
    assert_eq!(group.digest(), digest);
    for node in group.open_nodes() {
        assert_filled(node, 60);
    }
    fill(group.master(), 60, 1);
}

/// Makes the node of a copied directory the only member of its group.
fn recover_from(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let machine = Machine::real(1 << 20).expect("entropy");
        let plan = quorum_loss::plan(&machine, &[dir.to_owned()], &[]).await;
        let next = plan.expect("its original is gone").next;
        let NextStep::Apply { confirm, .. } = next else {
            panic!("{next:?}");
        };
        let applied = quorum_loss::apply(&machine, dir, &confirm).await;
        applied.expect("recovered");
    });
}

#[test]
fn the_files_of_a_running_node_hold_everything_that_was_acknowledged() {
    // Part of it flushed to the engine, the rest only in the log.
    let mut group = Group::on_disk(
        1,
        &[("flush_bytes", 1024), ("flush_interval_ms", 3_600_000)],
    );
    fill(group.master(), 0, 100);
    let node = group.master();
    let mut settled = 0;
    eventually("a quiet window", || {
        let now = node.status().window_bytes;
        settled = if now < 5_000 { settled + 1 } else { 0 };
        settled > 50
    });
    let image = tempfile::TempDir::new().expect("a directory");
    copy_tree(group.storages[0].dir(), image.path());
    group.close(0);
    group.storages[0] = Storage::Real(image.path().to_owned());
    // The image is a copy, which opens only after a recovery.
    let refused = group.reopen(0);
    assert!(matches!(refused, Err(OpenError::Copied { .. })));
    recover_from(image.path());
    group.reopen(0).expect("the image opens");
    group.wait_ready();
    assert_filled(group.master(), 100);
    group.close(0);
}

/// Writes from several threads until told to stop or refused; returns what was acknowledged.
fn write_until(node: &Env, round: usize, stop: &AtomicBool) -> Vec<String> {
    let acknowledged = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let acknowledged = &acknowledged;
            scope.spawn(move || {
                for n in 0.. {
                    let key = format!("{round}/{thread}/{n}");
                    if stop.load(Ordering::Relaxed) || put(node, &key, b"v").is_err() {
                        return;
                    }
                    acknowledged.lock().expect("no panic").push(key);
                }
            });
        }
    });
    acknowledged.into_inner().expect("no panic")
}

fn assert_holds(node: &Env, acknowledged: &[String]) {
    let read = node.read(
        ConsistencyPolicy::Linearizable,
        |s| -> Result<_, ReadError> {
            let db = s.database("d")?;
            for key in acknowledged {
                assert_eq!(db.get(key)?.as_deref(), Some(&b"v"[..]), "{key}");
            }
            Ok(())
        },
    );
    read.expect("read");
}

#[test]
fn a_power_cut_with_writes_in_flight_loses_nothing_acknowledged() {
    let mut group = Group::in_memory(1, CRASHING);
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let (node, disk) = (group.master().clone(), group.storages[0].disk().clone());
        let stop = AtomicBool::new(false);
        let syncs = disk.syncs();
        acknowledged.extend(std::thread::scope(|scope| {
            let writers = scope.spawn(|| write_until(&node, round, &stop));
            let ended = Release(&stop);
            eventually("some writes", || {
                disk.syncs() > syncs + 40 + round as u64 * 7
            });
            disk.crash_keeping(round, |_, offset| {
                usize::try_from(offset / 512 % 3).expect("small") * 200
            });
            drop(ended);
            writers.join().expect("no panic")
        }));
        group.crash(0);
        group.reopen(0).expect("opened after the crash");
        group.wait_ready();
        assert_holds(group.master(), &acknowledged);
    }
    assert!(acknowledged.len() > 40);
}

#[test]
fn a_wiped_directory_is_refused_and_the_old_one_put_back_works() {
    let mut group = Group::on_disk(3, &[]);
    fill(group.master(), 0, 10);
    // The founder's, which could found another group, and one of the others.
    for (round, at) in [0, 2].into_iter().enumerate() {
        let round = u32::try_from(round).expect("small");
        group.close(at);
        let dir = group.storages[at].dir().to_owned();
        let aside = dir.with_extension("aside");
        fs::rename(&dir, &aside).expect("renamed");
        group.reopen(at).expect("it opens, and asks");
        let ready = group.node(at).wait_ready(PATIENCE);
        assert!(
            matches!(ready, Err(ReadyError::Refused { .. })),
            "{ready:?}"
        );
        let others = group.master_except(Some(at));
        fill(group.node(others), 10 + round, 1);
        group.close(at);
        fs::remove_dir_all(&dir).expect("removed");
        fs::rename(&aside, &dir).expect("renamed");
        group.reopen(at).expect("opened");
        group.wait_ready();
        assert_filled(group.node(at), 11 + round);
    }
    group.digest();
}

#[test]
fn a_node_that_ends_before_the_group_has_formed_may_come_back() {
    let storages = (0..3).map(|_| Storage::memory()).collect();
    let mut group = Group::unopened(storages, &[], None);
    for at in [0, 1] {
        group.reopen(at).expect("opened");
    }
    eventually("the first waits for the third alone", || {
        let waiting_for = group.node(0).status().waiting_for;
        waiting_for.contains("n3") && !waiting_for.contains("n2")
    });
    group.crash(0);
    group.close(1);
    for at in [2, 1, 0] {
        group.reopen(at).expect("opened");
    }
    group.wait_ready();
    fill(group.master(), 0, 3);
    for node in group.open_nodes() {
        assert_filled(node, 3);
    }
}

#[test]
fn a_power_cut_of_the_whole_group_loses_nothing_acknowledged() {
    let mut group = Group::in_memory(3, CRASHING);
    let node = group.master().clone();
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writers = scope.spawn(|| write_until(&node, 0, &stop));
        let ended = Release(&stop);
        eventually("some writes", || node.status().vlsn.0 > 100);
        for storage in &group.storages {
            storage.disk().crash();
        }
        drop(ended);
        writers.join().expect("no panic")
    });
    drop(node);
    (0..3).for_each(|at| group.crash(at));
    (0..3).for_each(|at| group.reopen(at).expect("opened after the crash"));
    group.wait_ready();
    assert_holds(group.master(), &acknowledged);
    group.digest();
}

#[test]
fn a_node_alone_takes_writes_as_soon_as_it_is_ready() {
    for round in 0..5 {
        let mut group = Group::in_memory(1, &[]);
        let written = put(group.node(0), "k", b"v");
        assert!(written.is_ok(), "round {round}: {written:?}");
        group.close(0);
        group.reopen(0).expect("opened");
        group.wait_ready();
        let written = put(group.node(0), "k", b"v");
        assert!(written.is_ok(), "round {round}: {written:?}");
    }
}

#[test]
fn a_close_waits_for_the_log_that_is_being_made() {
    let storages = vec![Storage::memory(), Storage::memory()];
    let mut group = Group::unopened(storages, &[], None);
    group.reopen(0).expect("opened");
    let disk = group.storages[0].disk().clone();
    disk.hold_syncs(true);
    let before = disk.steps();
    group.reopen(1).expect("opened");
    eventually("the first has begun to make its log", || {
        disk.steps() > before
    });
    let node = group.nodes[0].take().expect("open");
    let closing = std::thread::spawn(move || node.close());
    // If it were over, the next node in this directory would share it with this one's thread.
    stays("the close waits", || !closing.is_finished());
    assert!(matches!(group.reopen(0), Err(OpenError::InUse { .. })));
    disk.hold_syncs(false);
    eventually("the close ends", || closing.is_finished());
    closing.join().expect("no panic").expect("closed");
    group.reopen(0).expect("opened again");
    group.wait_ready();
}
