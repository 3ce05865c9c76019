//! Ways out when a group would be stuck: they lose nothing that was acknowledged.

use std::time::{Duration, Instant};

use steadfast::quorum_loss::{self, NextStep, RecoverError};
use steadfast::{AdminCommand, AdminError, ConsistencyPolicy, NodeType, Role, WriteError};

use crate::support::{Env, Group, Numbers, eventually, get, name, put};

/// Elections are quick, yet a busy machine seldom causes an unintended one.
const QUICK: Numbers = &[
    ("heartbeat_interval_ms", 20),
    ("election_timeout_min_ms", 200),
    ("election_timeout_max_ms", 300),
    ("commit_timeout_ms", 60_000),
];

fn set_priority(node: &str, priority: u32) -> AdminCommand {
    AdminCommand::SetPriority {
        node: node.to_owned(),
        priority,
    }
}

fn stands_in(node: &Env) -> bool {
    node.status().role == Role::StandIn
}

/// The open node that stands in.
fn stand_in(group: &Group) -> Env {
    let mut found = None;
    eventually("one that stands in", || {
        found = group.open_nodes().find(|node| stands_in(node)).cloned();
        found.is_some()
    });
    found.expect("just found")
}

#[test]
fn nodes_of_priority_0_that_are_left_alone_take_no_writes_until_one_is_given_a_priority() {
    let mut group = Group::in_memory(3, QUICK);
    let asked = group.node(0).clone();
    for node in ["n2", "n3"] {
        asked.administer(&set_priority(node, 0)).expect("set");
    }
    eventually("n1 is master", || group.master_except(None) == 0);
    let _token = put(&asked, "k", "before").expect("written");
    group.close(0);
    let standing = stand_in(&group);
    assert_eq!(standing.state().role, Role::Unknown);
    let refused = put(&standing, "k", "never");
    assert!(
        matches!(refused, Err(WriteError::NotMaster { .. })),
        "{refused:?}"
    );
    let waits = standing.status().waiting_for;
    assert!(waits.contains("steadfast node priority"), "{waits}");
    let refused = standing.administer(&AdminCommand::Shutdown {
        within: Duration::from_secs(1),
    });
    let Err(AdminError::Refused { what, to_do }) = refused else {
        panic!("{refused:?}")
    };
    assert!(what.contains("stands in"), "{what}");
    assert!(to_do.contains("steadfast node priority"), "{to_do}");
    // Any node can be asked.
    let asked = group.open_nodes().find(|node| !stands_in(node));
    let asked = asked.expect("two are open");
    asked.administer(&set_priority("n3", 1)).expect("set");
    assert_eq!(group.master_except(None), 2);
    let kept = get(group.node(2), ConsistencyPolicy::Linearizable, "k");
    assert_eq!(kept.expect("read"), Some(b"before".to_vec()));
    let _token = put(group.node(2), "k", "after").expect("written");
    let is_over = |node: &Env| !stands_in(node);
    eventually("nobody stands in", || group.open_nodes().all(is_over));
}

#[test]
fn the_newest_writes_reach_who_may_be_master_from_a_node_of_priority_0() {
    let mut group = Group::in_memory(3, QUICK);
    let asked = group.node(0).clone();
    asked.administer(&set_priority("n3", 0)).expect("set");
    asked.administer(&set_priority("n1", 9)).expect("set");
    eventually("n1 is master", || group.master_except(None) == 0);
    group.close(1);
    let _token = put(&asked, "k", "only n1 and n3 have it").expect("written");
    group.crash(0);
    // It may be master but lacks the newest write; n3 has it but may not.
    group.reopen(1).expect("opened");
    assert_eq!(group.master_except(None), 1);
    let kept = get(group.node(1), ConsistencyPolicy::Linearizable, "k");
    assert_eq!(
        kept.expect("read"),
        Some(b"only n1 and n3 have it".to_vec())
    );
    let _token = put(group.node(1), "k", "after").expect("written");
}

#[test]
fn a_candidate_that_lacks_what_a_node_of_priority_0_has_gets_it_at_once() {
    // Without being told, n3 would wait 28 rounds.
    const SLOW: Numbers = &[
        ("election_timeout_min_ms", 2_000),
        ("election_timeout_max_ms", 3_000),
        ("commit_timeout_ms", 60_000),
    ];
    let mut group = Group::in_memory(3, SLOW);
    let asked = group.node(0).clone();
    asked.administer(&set_priority("n3", 0)).expect("set");
    asked.administer(&set_priority("n1", 9)).expect("set");
    eventually("n1 is master", || group.master_except(None) == 0);
    group.network.isolate("n2");
    let _token = put(&asked, "k", "only n1 and n3 have it").expect("written");
    group.crash(0);
    let began = Instant::now();
    group.network.heal("n2");
    assert_eq!(group.master_except(None), 1);
    let took = began.elapsed();
    assert!(took < Duration::from_mins(1), "{took:?}");
}

#[test]
fn a_group_whose_newest_writes_only_its_arbiter_knows_of_goes_on_without_them_when_told_to() {
    let mut group = Group::in_memory(2, QUICK);
    let arbiter = group.join(NodeType::Arbiter);
    eventually("three votes", || {
        let mut nodes = group.open_nodes();
        nodes.all(|node| node.status().members.iter().filter(|of| of.votes).count() == 3)
    });
    let lost = group.master_except(None);
    let left = 1 - lost;
    let _token = put(group.node(lost), "both", "v").expect("written");
    group.wait_persisted();
    group.close(left);
    let _token = put(group.node(lost), "alone", "v").expect("the arbiter is enough");
    let dir = group.storages[left].dir().to_owned();
    let plan = |group: &Group| {
        let machine = group.machine(left);
        let dirs = [dir.clone()];
        group
            .runtime
            .block_on(quorum_loss::plan(&machine, &dirs, &[]))
    };
    let refused = plan(&group);
    assert!(
        matches!(refused, Err(RecoverError::NotNeeded { .. })),
        "{refused:?}"
    );
    group.crash(lost);
    eventually("the arbiter hears nobody", || {
        group.node(arbiter).state().role == Role::Unknown
    });
    let found = plan(&group).expect("a plan");
    let known = found.known_lost.expect("the arbiter knows");
    assert_eq!(known.node.name, name(arbiter));
    assert!(known.entries_max >= 1);
    assert_eq!(found.survivors[0].node.name, name(left));
    let NextStep::Apply { confirm, .. } = found.next else {
        panic!("it does not run")
    };
    let apply = |text: &str| {
        let machine = group.machine(left);
        group
            .runtime
            .block_on(quorum_loss::apply(&machine, &dir, text))
    };
    let refused = apply("yes");
    assert!(
        matches!(refused, Err(RecoverError::Unconfirmed)),
        "{refused:?}"
    );
    apply(&confirm).expect("recovered");
    group.reopen(left).expect("opened");
    assert_eq!(group.master_except(None), left);
    let read = |key| get(group.node(left), ConsistencyPolicy::Linearizable, key).expect("read");
    assert_eq!(read("both"), Some(b"v".to_vec()));
    assert_eq!(read("alone"), None, "what the plan said");
    let _token = put(group.node(left), "k", "after").expect("written");
}
