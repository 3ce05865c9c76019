//! A running node whose data turns out to be bad goes on as long as the others need it; then it
//! gives up its vote, copies a peer's state, and gets its vote back.

use steadfast::{AdminCommand, NodeType, Role};

use crate::audit::{copies, falsify};
use crate::comparison::{damaged, fill};
use crate::repair::{votes, write};
use crate::support::{Group, Numbers, eventually, name, stays};

/// Differing data is found at once.
const OFTEN: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 120_000),
    ("digest_interval_ms", 100),
    ("flush_interval_ms", 10),
];

/// Waits until a node has a different state from the one it started with, all nodes hold the same,
/// and it has its vote back.
fn repaired(group: &Group, at: usize) {
    eventually("it has copied the state", || group.storages[at].is_copy());
    group.wait_ready();
    group.digest();
    eventually("it has its vote back", || votes(group, at));
    eventually("nobody is damaged", || damaged(group).is_empty());
}

#[test]
fn a_replica_that_holds_something_else_than_the_majority_repairs_itself_once_while_it_works() {
    let mut group = Group::in_memory(3, OFTEN);
    fill(&group);
    let at = (group.master_except(None) + 1) % 3;
    falsify(&mut group, &[at], "k123x");
    let mut states = group.node(at).state_changes();
    let ends = std::thread::spawn(move || states.any(|state| state.role == Role::Detached));
    repaired(&group, at);
    assert!(
        !ends.is_finished(),
        "whoever follows its role sees it come back"
    );
    // Findings about data that is gone are not acted upon again.
    for _ in 0..10 {
        stays("it works", || group.node(at).state().role == Role::Replica);
    }
    assert_eq!(copies(&group, at), 1);

    // It is a node like any other: it can differ again, and be one of two.
    falsify(&mut group, &[at], "k007x");
    eventually("it has copied the state again", || copies(&group, at) == 2);
    repaired(&group, at);
    group.close(at);
    group.reopen(at).expect("opened");
    group.wait_ready();
    let master = group.master_except(None);
    let other = (0..3).find(|other| *other != at && *other != master);
    group.close(other.unwrap_or((at + 1) % 3));
    write(group.master(), "two");
    group.digest();
}

#[test]
fn a_preferred_master_with_bad_data_hands_over_and_repairs_itself() {
    let mut group = Group::in_memory(3, OFTEN);
    fill(&group);
    let at = group.master_except(None);
    let prefer = AdminCommand::SetPriority {
        node: name(at),
        priority: 9,
    };
    let _done = group.master().administer(&prefer).expect("preferred");
    falsify(&mut group, &[at], "k123x");
    repaired(&group, at);
    eventually("it is master again", || {
        group.node(at).state().role == Role::Master
    });
    write(group.node(at), "after");
    group.digest();
    assert_eq!(copies(&group, at), 1);
}

#[test]
fn a_node_with_bad_data_goes_on_until_the_others_could_go_on_without_it() {
    let mut group = Group::in_memory(3, OFTEN);
    let secondary = group.join(NodeType::Secondary);
    group.wait_ready();
    fill(&group);
    let master = group.master_except(None);
    let (at, away) = ((master + 1) % 3, (master + 2) % 3);
    let away_id = group.node(away).status().node.id;
    group.close(away);
    eventually("the master misses it", || {
        let replicas = group.node(master).status().replicas;
        replicas
            .iter()
            .any(|of| of.node == away_id && of.heard_ms_ago.is_none_or(|ago| ago > 2_000))
    });
    falsify(&mut group, &[at], "k123x");
    eventually("it is found by the other two", || {
        damaged(&group) == [name(at)]
    });
    for n in 0..10 {
        write(group.master(), &n.to_string());
        stays("it works", || group.node(at).state().role == Role::Replica);
    }
    assert!(!group.storages[at].is_copy());

    group.reopen(away).expect("opened");
    repaired(&group, at);
    assert_eq!(copies(&group, secondary) + copies(&group, master), 0);
}

#[test]
fn two_of_three_voters_with_bad_data_repair_themselves_one_after_the_other() {
    let mut group = Group::in_memory(3, OFTEN);
    let secondaries = [(); 2].map(|()| group.join(NodeType::Secondary));
    group.wait_ready();
    fill(&group);
    let master = group.master_except(None);
    let both = [(master + 1) % 3, (master + 2) % 3];
    falsify(&mut group, &both, "k123x");
    for at in both {
        repaired(&group, at);
    }
    write(group.master(), "after");
    group.digest();
    assert!(secondaries.iter().all(|at| copies(&group, *at) == 0));
}

#[test]
fn where_no_majority_agrees_nobody_repairs_itself() {
    let mut group = Group::in_memory(2, OFTEN);
    fill(&group);
    falsify(&mut group, &[0], "k000x");
    eventually("both are named", || {
        let found = group.master().status().divergences;
        found.iter().any(|found| found.nodes.len() == 2)
    });
    stays("both work", || {
        (0..2).all(|at| group.node(at).state().role != Role::Detached)
    });
    assert_eq!(copies(&group, 0) + copies(&group, 1), 0);
}
