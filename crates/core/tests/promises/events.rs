//! Group events: a watcher is told of every lasting change, wherever it started.

use std::sync::Arc;
use std::time::Duration;

use steadfast::{AdminCommand, FeedError, GroupEvent, GroupEvents, GroupHealth, NodeType};

use crate::support::{Env, Group, PATIENCE, name, put};

/// Takes events until one is `wanted`; returns the earlier ones, as text.
fn until(
    group: &Group,
    events: &mut GroupEvents,
    mut wanted: impl FnMut(&GroupEvent) -> bool,
) -> Vec<String> {
    let mut before = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let next = async { tokio::time::timeout(left, events.next_async()).await };
        let next = group.runtime.block_on(next);
        let event = next.unwrap_or_else(|_| panic!("not in time, after {before:?}"));
        let event = event.expect("it is the right group");
        if wanted(&event) {
            return before;
        }
        before.push(event.to_string());
    }
}

fn says(text: &str) -> impl Fn(&GroupEvent) -> bool {
    let text = text.to_owned();
    move |event| event.to_string() == text
}

fn is_healthy(event: &GroupEvent) -> bool {
    *event == GroupEvent::Health(GroupHealth::Healthy)
}

fn watch(group: &Group, addresses: &[&str]) -> Result<GroupEvents, FeedError> {
    let transport = group.network.host("monitor");
    let addresses = addresses.iter().map(|address| (*address).to_owned());
    let connecting = GroupEvents::connect_on(transport, addresses.collect(), "promises");
    group.runtime.block_on(connecting)
}

#[test]
fn a_monitor_is_told_of_failures_and_masters_wherever_it_began() {
    let mut group = Group::in_memory(3, &[]);
    let old = group.master_except(None);
    let replica = (old + 1) % 3;
    let given = format!("{}:7400", name(replica));
    let mut events = watch(&group, &[&given]).expect("a node answers");
    let is_present = |event: &GroupEvent| matches!(event, GroupEvent::Present(_));
    assert!(until(&group, &mut events, is_present).is_empty());
    let view = events.view().expect("the group");
    assert_eq!(view.members.len(), 3);
    assert_eq!(view.master.as_ref().expect("a master").name, name(old));

    group.close(replica);
    until(
        &group,
        &mut events,
        says(&format!("{} is down", name(replica))),
    );
    let degraded = |event: &GroupEvent| {
        matches!(
            event,
            GroupEvent::Health(GroupHealth::Degraded { survives: 0, .. })
        )
    };
    until(&group, &mut events, degraded);
    group.reopen(replica).expect("opened");
    until(
        &group,
        &mut events,
        says(&format!("{} is up", name(replica))),
    );
    until(&group, &mut events, is_healthy);

    // The node it watches is lost.
    group.crash(old);
    let new = group.master_except(Some(old));
    let is_master = |event: &GroupEvent| match event {
        GroupEvent::MasterChanged { master, .. } => master
            .as_ref()
            .is_some_and(|master| master.name == name(new)),
        _ => false,
    };
    let mut told = until(&group, &mut events, is_master);
    told.extend(until(&group, &mut events, degraded));
    group.reopen(old).expect("opened");
    told.extend(until(&group, &mut events, is_healthy));
    // A new master reports nothing about nodes it has not heard yet.
    let falsely = format!("{} is down", name(3 - old - new));
    assert!(!told.contains(&falsely), "{told:?}");
}

#[test]
fn a_monitor_says_within_seconds_that_no_node_is_heard() {
    let mut group = Group::in_memory(3, &[]);
    group.master_except(None);
    let given = [0, 1, 2].map(|at| format!("{}:7400", name(at)));
    let given = [&*given[0], &given[1], &given[2]];
    let mut events = watch(&group, &given).expect("a node answers");
    let is_present = |event: &GroupEvent| matches!(event, GroupEvent::Present(_));
    until(&group, &mut events, is_present);
    for at in 0..3 {
        group.crash(at);
    }
    let lost = std::time::Instant::now();
    let is_gone = |event: &GroupEvent| matches!(event, GroupEvent::OutOfSight { .. });
    until(&group, &mut events, is_gone);
    let took = lost.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    for at in 0..3 {
        group.reopen(at).expect("opened");
    }
    // Of its health it says something only if it was seen to be without.
    let has_master = |event: &GroupEvent| matches!(event, GroupEvent::MasterChanged { .. });
    until(&group, &mut events, has_master);
}

#[test]
fn a_monitor_is_told_of_members_that_come_change_and_go() {
    let mut group = Group::in_memory(3, &[]);
    let replica = (group.master_except(None) + 1) % 3;
    let given = format!("{}:7400", name(replica));
    let mut events = watch(&group, &[&given]).expect("a node answers");
    let joined = group.join(NodeType::Secondary);
    let added = format!("{} was added, secondary", name(joined));
    until(&group, &mut events, says(&added));
    let administer = |group: &Group, command: AdminCommand| {
        let master: &Env = group.master();
        master.administer(&command).expect("done");
    };
    administer(
        &group,
        AdminCommand::SetPriority {
            node: name(replica),
            priority: 0,
        },
    );
    let changed = format!(
        "{} is electable with priority 0 at {given}, and votes",
        name(replica)
    );
    until(&group, &mut events, says(&changed));
    administer(
        &group,
        AdminCommand::Remove {
            node: name(joined),
            force: false,
        },
    );
    until(
        &group,
        &mut events,
        says(&format!("{} was removed", name(joined))),
    );
}

#[test]
fn a_monitor_is_told_who_asked_for_a_change_and_what_became_of_it() {
    let group = Group::in_memory(3, &[]);
    let master = group.master_except(None);
    let given = format!("{}:7400", name(master));
    let administer = |node: String, priority: u32| {
        let command = AdminCommand::SetPriority { node, priority };
        group.master().administer(&command)
    };
    administer(name(master), 2).expect("done");
    let mut events = watch(&group, &[&given]).expect("a node answers");
    until(&group, &mut events, |event| {
        matches!(event, GroupEvent::Present(_))
    });
    administer(name(master), 3).expect("done");
    administer("nobody".to_owned(), 1).expect_err("there is no such node");
    let mut told = Vec::new();
    until(&group, &mut events, |event| {
        if let GroupEvent::ChangeAsked(change) = event {
            told.push((change.is_done, change.what.clone()));
        }
        told.len() == 2
    });
    assert!(told[0].0 && told[0].1.ends_with("priority 3"), "{told:?}");
    assert!(!told[1].0 && told[1].1.contains("nobody"), "{told:?}");
    let nodes = (0..3).map(|node| group.node(node));
    let kept: Vec<_> = nodes.flat_map(|node| node.changes_after(0)).collect();
    assert_eq!(kept.len(), 3, "also the one before the watch: {kept:?}");
    let is_kept = |(is_done, what): &(bool, String)| {
        kept.iter()
            .any(|kept| kept.is_done == *is_done && kept.what == *what)
    };
    assert!(told.iter().all(is_kept), "{kept:?}");
}

#[test]
fn a_node_of_the_group_tells_its_own_application_the_same() {
    let mut group = Group::in_memory(3, &[]);
    let master = group.master_except(None);
    let (asked, other) = ((master + 1) % 3, (master + 2) % 3);
    let mut events = group.node(asked).group_events();
    until(&group, &mut events, |event| {
        matches!(event, GroupEvent::Present(_))
    });
    group.close(other);
    until(
        &group,
        &mut events,
        says(&format!("{} is down", name(other))),
    );
}

#[test]
fn a_monitor_of_no_node_or_of_another_group_is_told_so() {
    let group = Group::in_memory(1, &[]);
    let _token = put(group.master(), "k", "v").expect("committed");
    let transport = group.network.host("monitor");
    let foreign = GroupEvents::connect_on(Arc::clone(&transport), vec!["n1:7400".into()], "other");
    let foreign = group.runtime.block_on(foreign);
    assert!(
        matches!(foreign, Err(FeedError::WrongGroup { .. })),
        "{foreign:?}"
    );
    let nobody = GroupEvents::connect_on(transport, vec!["n9:7400".into()], "promises");
    let nobody = async { tokio::time::timeout(Duration::from_mins(1), nobody).await };
    let nobody = group.runtime.block_on(nobody).expect("in time");
    assert!(
        matches!(nobody, Err(FeedError::Disconnected { .. })),
        "{nobody:?}"
    );
}
