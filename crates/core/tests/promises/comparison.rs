//! Comparing what nodes hold: whoever has something else is found and named, and nobody else is.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use steadfast::engine::{Change, Direction, EngineBatch, KeyRange, ScanLimit};
use steadfast::ids::DatabaseId;
use steadfast::{Divergence, NodeStatus, Repair};

use crate::support::{Group, Numbers, eventually, name, put, stays};

const OFTEN: Numbers = &[("digest_interval_ms", 100), ("flush_interval_ms", 10)];

/// A group whose nodes do not repair what is found.
fn group(nodes: usize) -> Group {
    Group::in_memory_with(nodes, OFTEN, Repair::Never)
}

/// Writes some rows, and waits until every engine holds all of them.
pub(crate) fn fill(group: &Group) {
    let written = group.master().write(|txn| {
        let database = txn.database("d")?;
        (0..200_u32).try_for_each(|n| database.put(format!("k{n:03}"), "v"))
    });
    let token = written.expect("committed");
    eventually("everything in every engine", || {
        (0..group.nodes.len()).all(|at| {
            let applied = group.engine(at).applied().expect("it is open");
            applied.is_some_and(|applied| applied.vlsn >= token.vlsn)
        })
    });
}

/// Changes a row in the engine of a node, behind its back.
pub(crate) fn alter(group: &Group, at: usize, key: &'static str) {
    let engine = group.engine(at);
    let applied = engine.applied().expect("it is open").expect("a batch");
    let holds = |database: &DatabaseId| {
        let found = engine.scan(
            *database,
            KeyRange::prefix(b"k"),
            Direction::Forward,
            ScanLimit::keys(1),
        );
        !found.expect("it can be read").is_empty()
    };
    let databases = engine.databases().expect("it is open");
    let database = databases.into_iter().find(holds).expect("the database");
    let change = Change::Put(Bytes::from_static(b"altered"));
    let changes = vec![(database, Bytes::from_static(key.as_bytes()), change)];
    let batch = EngineBatch { applied, changes };
    engine.apply(&batch).expect("altered");
}

fn found(group: &Group) -> Vec<Divergence> {
    group.master().status().divergences
}

pub(crate) fn damaged(group: &Group) -> Vec<String> {
    let damaged = group.open_nodes().map(Env::status);
    let damaged = damaged.filter(|status: &NodeStatus| status.damage.is_some());
    damaged.map(|status| status.node.name).collect()
}

use crate::support::Env;

#[test]
fn a_node_whose_engine_was_altered_behind_its_back_is_found_named_and_told() {
    let group = group(3);
    fill(&group);
    let master = group.master_except(None);
    let replica = (master + 1) % 3;
    stays("no divergence", || found(&group).is_empty());
    alter(&group, replica, "k123");
    eventually("the divergence is found", || !found(&group).is_empty());
    let divergences = found(&group);
    let [divergence] = &divergences[..] else {
        panic!("one row differs: {divergences:?}");
    };
    assert_eq!(divergence.nodes, [name(replica)]);
    assert_eq!(divergence.database, "d");
    assert!(divergence.from <= b"k123".to_vec());
    let to = divergence
        .to
        .clone()
        .expect("a short range, not the whole database");
    assert!(to > b"k123".to_vec());
    assert!(to <= b"k199".to_vec());
    eventually("it is told", || damaged(&group) == [name(replica)]);

    // A new write heals it, and all are told.
    let _token = put(group.master(), "k123", "v").expect("committed");
    eventually("it is whole", || {
        found(&group).is_empty() && damaged(&group).is_empty()
    });
}

#[test]
fn a_master_that_has_something_else_than_the_majority_names_itself() {
    let group = group(3);
    fill(&group);
    let master = group.master_except(None);
    alter(&group, master, "k000");
    eventually("it names itself", || damaged(&group) == [name(master)]);
    assert_eq!(found(&group)[0].nodes, [name(master)]);
}

#[test]
fn where_two_differ_both_are_named_and_neither_is_told_that_it_is_wrong() {
    let group = group(2);
    fill(&group);
    alter(&group, 0, "k000");
    eventually("both are named", || !found(&group).is_empty());
    assert_eq!(found(&group)[0].nodes.len(), 2);
    stays("nobody is told", || damaged(&group).is_empty());
}

#[test]
fn nothing_is_found_where_nothing_differs_although_writes_and_flushes_go_on() {
    let group = group(3);
    fill(&group);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (group, stop) = (&group, &stop);
        scope.spawn(move || {
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let key = format!("k{:03}", n % 200);
                put(group.master(), key, n.to_le_bytes()).ok();
            }
        });
        let replica = (group.master_except(None) + 1) % 3;
        for _ in 0..10 {
            stays("no divergence", || found(group).is_empty());
        }
        // It does compare meanwhile: what is not written over is found.
        let written = group
            .master()
            .write(|txn| txn.database("d")?.put("kz", "v"));
        let token = written.expect("committed");
        eventually("it is in the engine", || {
            let applied = group.engine(replica).applied().expect("open");
            applied.is_some_and(|applied| applied.vlsn >= token.vlsn)
        });
        alter(group, replica, "kz");
        eventually("found among writes", || {
            found(group).iter().any(|of| of.nodes == [name(replica)])
        });
        stop.store(true, Ordering::Relaxed);
    });
}
