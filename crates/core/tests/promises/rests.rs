//! Unexpected behaviour of the consensus library that no guarantee relies on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use steadfast::{
    AdminCommand, AdminError, ConsistencyPolicy, NodeType, ReadError, ReadOptions, Role,
};

use crate::support::{Group, Release, STEADY, eventually, get, name, put, stays};

/// Its own transfer to a node outside the group ends the mastership and reports success.
#[test]
fn a_transfer_to_a_node_that_is_not_in_the_group_changes_nothing() {
    let group = Group::in_memory(3, STEADY);
    let master = group.master_except(None);
    let gone = name((master + 1) % 3);
    let node = group.node(master);
    let transfer = |to: &str| {
        let before = node.state();
        let transfer = AdminCommand::Transfer {
            to: vec![to.to_owned()],
            within: Duration::from_secs(1),
        };
        let refused = node.administer(&transfer);
        assert!(
            matches!(refused, Err(AdminError::Refused { .. })),
            "{refused:?}"
        );
        stays("the master of its term", || node.state() == before);
        let _token = put(node, "k", to).expect("committed");
        assert_eq!(node.state(), before);
    };
    transfer("n9");
    let removed = node.administer(&AdminCommand::Remove {
        node: gone.clone(),
        force: false,
    });
    removed.expect("two are left");
    transfer(&gone);
}

/// Its own way of adding a node considers it caught up too early.
#[test]
fn a_node_that_keeps_nothing_of_what_it_is_sent_gets_no_vote() {
    let mut group = Group::in_memory(3, STEADY);
    let at = group.join(NodeType::Secondary);
    group.wait_ready();
    let (node, joined) = (group.master().clone(), name(at));
    let has_vote = |of: &str| {
        let mut members = node.status().members.into_iter();
        members.any(|member| member.votes && member.node.name == of)
    };
    group.storages[at].disk().hold_syncs(true);
    // Few entries, many bytes.
    for n in 0..20_u32 {
        let _token =
            put(&node, n.to_be_bytes(), vec![7; 500_000]).expect("the other three have it");
    }
    // What is younger than half a second does not count as missing.
    for _ in 0..6 {
        stays("a secondary", || !has_vote(&joined));
    }
    let promoted = node.administer(&AdminCommand::SetType {
        node: joined.clone(),
        node_type: NodeType::Electable,
    });
    promoted.expect("done");
    // The others are a majority with or without it.
    for _ in 0..10 {
        stays("without a vote", || !has_vote(&joined));
    }
    group.storages[at].disk().hold_syncs(false);
    eventually("a vote", || has_vote(&joined));
}

/// Its lease reads ask nobody, and are wrong after a restart.
#[test]
fn a_master_that_reaches_nobody_answers_no_read_although_its_lease_lasts() {
    let mut group = Group::in_memory(3, STEADY);
    let master = group.master_except(None);
    let read = |group: &Group, timeout_ms| {
        let mut options = ReadOptions::from(ConsistencyPolicy::Linearizable);
        options.timeout = Some(Duration::from_millis(timeout_ms));
        let read = group
            .node(master)
            .read(options, |s| s.database("d")?.get("k"));
        read.map(drop)
    };
    let _token = put(group.node(master), "k", "v").expect("committed");
    for other in (0..3).filter(|other| *other != master) {
        group.network.isolate(&name(other));
    }
    // It has heard from them a moment ago.
    let refused = read(&group, 300);
    assert!(
        matches!(refused, Err(ReadError::NotCurrent { .. })),
        "{refused:?}"
    );
    group.close(master);
    group.reopen(master).expect("opened");
    let refused = read(&group, 300);
    assert!(
        matches!(refused, Err(ReadError::NotCurrent { .. })),
        "{refused:?}"
    );
    assert_ne!(group.node(master).state().role, Role::Master);
}

/// Callers of the failed library wait for its end, and all panic when the first of them is dropped.
#[test]
fn a_master_whose_disk_fails_while_it_is_asked_closes_without_a_panic() {
    let mut group = Group::in_memory(
        3,
        &[("commit_timeout_ms", 3_000), ("read_timeout_ms", 3_000)],
    );
    for _ in 0..8 {
        let master = group.master_except(None);
        let nodes: Vec<_> = group.open_nodes().cloned().collect();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..12 {
                let (nodes, is_over) = (&nodes, &is_over);
                scope.spawn(move || {
                    for n in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                        let key = format!("{thread}/{n}");
                        put(&nodes[master], &key, "v").ok();
                        get(&nodes[thread % 3], ConsistencyPolicy::Linearizable, &key).ok();
                    }
                });
            }
            let _ended = Release(&is_over);
            let vlsn = nodes[master].status().vlsn.0;
            eventually("some writes", || nodes[master].status().vlsn.0 > vlsn + 50);
            group.crash(master);
        });
        group.reopen(master).expect("opened");
        group.wait_ready();
    }
}
