//! Comparing nodes: every node whose data differs is found and named, and no other.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use steadfast::engine::{Change, EngineBatch};
use steadfast::{AdminCommand, Divergence, NodeStatus, Repair, Role};

use crate::audit::{database_of, falsify};
use crate::support::{Group, Numbers, Release, eventually, name, put, stays};

const OFTEN: Numbers = &[("digest_interval_ms", 100), ("flush_interval_ms", 10)];

/// A group whose nodes do not repair differences.
fn group(nodes: usize) -> Group {
    Group::in_memory_with(nodes, OFTEN, Repair::Never)
}

/// Writes some rows, and waits until every engine holds all of them.
pub(crate) fn fill(group: &Group) {
    let written = group.master().write(|txn| {
        let database = txn.database("d")?;
        (0..200_u32).try_for_each(|n| database.put(format!("k{n:03}"), "v"))
    });
    let token = written.expect("committed").token;
    eventually("everything in every engine", || {
        (0..group.nodes.len()).all(|at| {
            let applied = group.engine(at).applied().expect("it is open");
            applied.is_some_and(|applied| applied.vlsn >= token.vlsn)
        })
    });
}

/// Changes a row in a node's engine behind its back.
pub(crate) fn alter(group: &Group, at: usize, key: &'static str) {
    let engine = group.engine(at);
    let applied = engine.applied().expect("it is open").expect("a batch");
    let database = database_of(&*engine, &key[..1]);
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
fn a_node_that_holds_something_else_is_found_named_and_told() {
    let mut group = group(3);
    fill(&group);
    let master = group.master_except(None);
    let replica = (master + 1) % 3;
    stays("no divergence", || found(&group).is_empty());
    falsify(&mut group, &[replica], "k123x");
    eventually("the divergence is found", || !found(&group).is_empty());
    let divergences = found(&group);
    let [divergence] = &divergences[..] else {
        panic!("one row differs: {divergences:?}");
    };
    assert_eq!(divergence.nodes, [name(replica)]);
    assert_eq!(divergence.database, "d");
    assert!(divergence.from <= b"k123x".to_vec());
    let to = divergence
        .to
        .clone()
        .expect("a short range, not the whole database");
    assert!(to > b"k123x".to_vec());
    assert!(to <= b"k199".to_vec());
    eventually("it is told", || damaged(&group) == [name(replica)]);

    // A write of the same key heals it, and all nodes are told.
    let _token = put(group.master(), "k123x", "v").expect("committed");
    eventually("it is whole", || {
        found(&group).is_empty() && damaged(&group).is_empty()
    });
}

#[test]
fn a_master_that_has_something_else_than_the_majority_names_itself() {
    let mut group = group(3);
    fill(&group);
    let at = group.master_except(None);
    let prefer = AdminCommand::SetPriority {
        node: name(at),
        priority: 9,
    };
    let _done = group.master().administer(&prefer).expect("preferred");
    falsify(&mut group, &[at], "k000x");
    eventually("it is master again", || {
        group.node(at).state().role == Role::Master
    });
    eventually("it names itself", || damaged(&group) == [name(at)]);
    eventually("the divergence is known", || !found(&group).is_empty());
    assert_eq!(found(&group)[0].nodes, [name(at)]);
}

#[test]
fn where_two_differ_both_are_named_and_neither_is_told_that_it_is_wrong() {
    let mut group = group(2);
    fill(&group);
    falsify(&mut group, &[0], "k000x");
    eventually("both are named", || !found(&group).is_empty());
    assert_eq!(found(&group)[0].nodes.len(), 2);
    stays("nobody is told", || damaged(&group).is_empty());
}

#[test]
fn nothing_is_found_where_nothing_differs_although_writes_and_flushes_go_on() {
    let mut group = group(3);
    fill(&group);
    let (nodes, stop) = (group.shared_nodes(), AtomicBool::new(false));
    let stop = &stop;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let key = format!("k{:03}", n % 200);
                let node = nodes.get(usize::try_from(n % 3).expect("small"));
                node.map(|node| put(&node, key, n.to_le_bytes()).ok());
            }
        });
        let _ended = Release(stop);
        for _ in 0..10 {
            stays("no divergence", || found(&group).is_empty());
        }
        // It does compare meanwhile: a difference that no write covers is found.
        let replica = (group.master_except(None) + 1) % 3;
        falsify(&mut group, &[replica], "kz");
        eventually("found among writes", || {
            found(&group).iter().any(|of| of.nodes == [name(replica)])
        });
    });
}
