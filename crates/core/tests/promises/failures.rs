//! Failing disks and isolated masters: writers get no false answer, readers no stale one, and the
//! group goes on.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use steadfast::{ConsistencyPolicy, OpenError, Outcome, ReadError, ReadyError, Role, WriteError};

use crate::support::{Env, Group, Numbers, PATIENCE, Release, eventually, get, name, put, stays};

#[test]
fn a_master_whose_disk_fails_acknowledges_nothing_more_and_the_others_go_on() {
    let mut group = Group::in_memory(3, &[("commit_timeout_ms", 2000)]);
    let old = group.master_except(None);
    let acknowledged = Mutex::new(Vec::new());
    let stopped = AtomicU32::new(0);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (group, acknowledged, stopped) = (&group, &acknowledged, &stopped);
            let is_over = &is_over;
            scope.spawn(move || {
                for n in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    let key = format!("{thread}/{n}");
                    match put(group.node(old), &key, b"v") {
                        Ok(_) => acknowledged.lock().expect("no panic").push(key),
                        Err(WriteError::Stopped { .. }) => {
                            stopped.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                        Err(
                            WriteError::NotMaster { .. }
                            | WriteError::NotCommitted { .. }
                            | WriteError::OutcomeUnknown { .. }
                            | WriteError::InsufficientReplicas { .. }
                            | WriteError::InsufficientAcks { .. },
                        ) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
        let _ended = Release(&is_over);
        eventually("some writes", || {
            acknowledged.lock().expect("no panic").len() > 50
        });
        group.storages[old].disk().fail_syncs(true);
        eventually("all are told", || stopped.load(Ordering::Relaxed) == 4);
    });
    let ready = group.node(old).wait_ready(PATIENCE);
    assert!(
        matches!(ready, Err(ReadyError::Stopped { .. })),
        "{ready:?}"
    );
    let new = group.master_except(Some(old));
    let _token = put(group.node(new), "after", b"v").expect("the others go on");
    // It stops; that does not mean that it cannot start again.
    let closed = group.node(old).close();
    assert!(matches!(closed, Err(OpenError::Close(_))), "{closed:?}");
    group.crash(old);
    group.reopen(old).expect("opened on the healed disk");
    group.wait_ready();
    for node in group.open_nodes() {
        for key in acknowledged.lock().expect("no panic").iter() {
            let value = get(node, ConsistencyPolicy::Linearizable, key).expect("read");
            assert_eq!(value.as_deref(), Some(&b"v"[..]), "{key}");
        }
    }
    group.digest();
}

/// Short waits; and a write that the node does not take as master is not given to another.
const CUT_OFF: Numbers = &[
    ("commit_timeout_ms", 300),
    ("read_timeout_ms", 500),
    ("forward_timeout_ms", 0),
];

/// Writes on an isolated master until told to stop. No such write may be acknowledged.
fn write_in_vain(node: &Env, thread: usize, stop: &AtomicBool) -> u32 {
    let mut unknown = 0;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return unknown;
        }
        match put(node, format!("ghost/{thread}/{n}"), b"v") {
            Ok(token) => panic!("acknowledged without a majority: {token}"),
            Err(error) => match error.outcome() {
                Outcome::Committed(token) => panic!("committed without a majority: {token}"),
                Outcome::Unknown(_) | Outcome::Lost => unknown += 1,
                Outcome::NotCommitted => {}
            },
        }
    }
    unknown
}

fn ghosts(node: &Env, policy: ConsistencyPolicy) -> Result<usize, ReadError> {
    node.read(policy, |s| Ok(s.database("d")?.prefix("ghost/").count()))
}

#[test]
fn a_master_that_is_cut_off_acknowledges_and_shows_nothing_that_the_others_do_not_have() {
    let group = Group::in_memory(3, CUT_OFF);
    let old = group.master_except(None);
    let _token = put(group.node(old), "before", b"v").expect("committed");
    group.network.isolate(&name(old));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (node, stop) = (group.node(old), &stop);
        let writers: Vec<_> = (0..4)
            .map(|thread| scope.spawn(move || write_in_vain(node, thread, stop)))
            .collect();
        let ended = Release(stop);
        let new = group.master_except(Some(old));
        let _token = put(group.node(new), "after", b"v").expect("the others go on");
        let asked = Instant::now();
        let read = get(node, ConsistencyPolicy::Linearizable, "after");
        assert!(
            matches!(read, Err(ReadError::NotCurrent { .. })),
            "{read:?}"
        );
        assert!(asked.elapsed() < PATIENCE / 4);
        assert_eq!(ghosts(node, ConsistencyPolicy::Eventual).expect("read"), 0);
        let before = get(node, ConsistencyPolicy::Eventual, "before").expect("read");
        assert_eq!(before.as_deref(), Some(&b"v"[..]));
        drop(ended);
        let unknown: u32 = writers
            .into_iter()
            .map(|w| w.join().expect("no panic"))
            .sum();
        assert!(unknown > 0, "no write was in flight");
        group.network.heal(&name(old));
    });
    eventually("the deposed master follows", || {
        group.node(old).state().role == Role::Replica
    });
    for node in group.open_nodes() {
        let after = get(node, ConsistencyPolicy::Linearizable, "after").expect("read");
        assert_eq!(after.as_deref(), Some(&b"v"[..]));
        assert_eq!(ghosts(node, ConsistencyPolicy::Eventual).expect("read"), 0);
    }
    group.digest();
}

#[test]
fn a_transaction_that_wrote_nothing_is_not_confirmed_by_a_master_that_is_cut_off() {
    let group = Group::in_memory(3, &[("commit_timeout_ms", 300)]);
    let old = group.master_except(None);
    let _token = put(group.node(old), "k", b"old").expect("committed");
    group.network.isolate(&name(old));
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let new = group.node(group.master_except(Some(old)));
            put(new, "k", b"new").expect("the others go on")
        });
        while !others.is_finished() {
            let looked = group
                .node(old)
                .write(|txn| txn.database("d")?.get("k"))
                .expect_err("nobody confirms that what it read is current");
            assert_eq!(looked.outcome(), Outcome::NotCommitted, "{looked}");
            assert!(looked.is_retryable(), "{looked}");
        }
        let _token = others.join().expect("no panic");
    });
    group.network.heal(&name(old));
    eventually("the deposed master follows", || {
        group.node(old).state().role == Role::Replica
    });
}

#[test]
fn a_replica_that_is_cut_off_says_that_it_cannot_be_current() {
    let group = Group::in_memory(3, &[("read_timeout_ms", 300)]);
    let master = group.master_except(None);
    let replica = (master + 1) % 3;
    let _token = put(group.node(master), "k", b"old").expect("committed");
    let node = group.node(replica);
    // A busy machine may just be holding another election: 300 ms is too short for that.
    eventually("a current answer while all are there", || {
        let read = get(node, ConsistencyPolicy::Linearizable, "k");
        read.is_ok_and(|value| value.is_some())
    });
    let master = group.master_except(Some(replica));
    group.network.isolate(&name(replica));
    let _token = put(group.node(master), "k", b"new").expect("committed");
    let read = get(node, ConsistencyPolicy::Linearizable, "k");
    assert!(
        matches!(read, Err(ReadError::NotCurrent { .. })),
        "{read:?}"
    );
    let read = get(node, ConsistencyPolicy::Eventual, "k").expect("read");
    assert_eq!(read.as_deref(), Some(&b"old"[..]));
    group.network.heal(&name(replica));
    let mut read = None;
    eventually("a current answer", || {
        read = get(node, ConsistencyPolicy::Linearizable, "k").unwrap_or_default();
        read.is_some()
    });
    assert_eq!(read.as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_master_whose_disk_hangs_hands_over_and_says_so_until_the_disk_goes_on() {
    let steady = &[
        ("election_timeout_min_ms", 2_000),
        ("election_timeout_max_ms", 3_000),
        ("commit_timeout_ms", 1_500),
    ];
    let group = Group::in_memory(3, steady);
    let old = group.master_except(None);
    let disk = group.storages[old].disk();
    disk.hold_syncs(true);
    let hangs = |at: usize| group.node(at).status().disk_hangs_ms.is_some();
    let mut written = 0_u64;
    eventually("another one is master", || {
        // Whoever leads: the other two have it.
        for node in group.open_nodes() {
            written += u64::from(put(node, written.to_be_bytes(), "v").is_ok());
        }
        group.node((old + 1) % 3).state().role == Role::Master
            || group.node((old + 2) % 3).state().role == Role::Master
    });
    assert!(written > 10, "only {written} writes went on meanwhile");
    assert!(hangs(old));
    assert!(!hangs((old + 1) % 3) && !hangs((old + 2) % 3));
    let new = group.master_except(Some(old));
    let _token = put(group.node(new), "after", "v").expect("two of three");
    disk.hold_syncs(false);
    eventually("it works again, as a replica", || {
        !hangs(old) && group.node(old).state().role == Role::Replica
    });
    group.digest();
}

#[test]
fn a_slow_disk_shows_in_the_state_of_its_node_and_the_way_to_each_replica_in_the_masters() {
    let group = Group::in_memory(3, &[]);
    let master = group.master_except(None);
    let slow = (master + 1) % 3;
    let disk = group.storages[slow].disk();
    let synced = |at: usize| group.node(at).status().sync_p99_us.expect("it has synced");
    // The held sync may be that of a future segment.
    eventually("the slow sync shows", || {
        disk.hold_syncs(true);
        let _token = put(group.node(master), "k", b"v").expect("the others have it");
        stays("it has not synced", || {
            group.node(slow).status().persisted < group.node(master).status().persisted
        });
        disk.hold_syncs(false);
        group.wait_persisted();
        synced(slow) >= 90_000
    });
    assert!(synced(3 - master - slow) < synced(slow));
    eventually("heartbeats are measured", || {
        let replicas = group.node(master).status().replicas;
        replicas.len() == 2 && replicas.iter().all(|of| of.round_trip_p50_us.is_some())
    });
}
