//! What applications say of their nodes: every node knows it, wherever a node is named.

use std::collections::BTreeMap;

use steadfast::{
    AdminError, GroupEvent, NodeAddress, RepConfig, ReplicatedEnvironment, Role, WriteError,
};

use crate::support::{Env, Group, STEADY, eventually, in_time, name, put};

type Metadata = BTreeMap<String, String>;

fn web(port: u16) -> Metadata {
    [("web".to_owned(), format!("http://h:{port}"))].into()
}

/// What this node knows of the others and of itself, by name.
fn known(node: &Env) -> BTreeMap<String, Metadata> {
    let members = node.status().members.into_iter();
    members
        .map(|member| (member.node.name, member.node.metadata))
        .collect()
}

fn eventually_known(group: &Group, expected: &BTreeMap<String, Metadata>) {
    eventually("every node knows it", || {
        group.open_nodes().all(|node| known(node) == *expected)
    });
}

fn not_master(node: &Env) -> Option<NodeAddress> {
    match put(node, "k", "v") {
        Err(WriteError::NotMaster { master }) => master,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_node_knows_what_the_others_publish_through_restarts_and_failovers() {
    // A write on a replica is to be refused, and not forwarded.
    let mut group = Group::in_memory(3, &[("forward_timeout_ms", 0)]);
    for at in 0..3 {
        group.publish(at, web(u16::try_from(at).expect("few")));
        group.close(at);
        group.reopen(at).expect("opened");
        group.wait_ready();
    }
    let mut expected: BTreeMap<_, _> = (0..3).map(|at| (name(at.into()), web(at))).collect();
    eventually_known(&group, &expected);

    // Whoever is told to go to the master is told what it publishes.
    let master = group.master_except(None);
    let replica = (master + 1) % 3;
    let told = not_master(group.node(replica)).expect("there is a master");
    assert_eq!(
        (told.name, told.metadata),
        (name(master), expected[&name(master)].clone())
    );
    let state = group.node(replica).state();
    assert_eq!(
        state.master.expect("there is one").metadata,
        expected[&name(master)]
    );
    assert_eq!(
        group.node(replica).status().node.metadata,
        expected[&name(replica)]
    );

    // Changes while it runs are seen everywhere, as an event too.
    let mut events = group.node(replica).group_events();
    assert!(matches!(events.next(), Some(Ok(GroupEvent::Present(_)))));
    let changed = [("web", "http://elsewhere"), ("zone", "b")];
    group.node(master).set_metadata(changed).expect("published");
    let changed: Metadata = changed
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    assert_eq!(known(group.node(master))[&name(master)], changed);
    expected.insert(name(master), changed.clone());
    eventually_known(&group, &expected);
    eventually("the state of a replica has it", || {
        not_master(group.node(replica)).is_some_and(|master| master.metadata == changed)
    });
    let event = in_time("the event", move || {
        events.find_map(|event| match event.expect("it goes on") {
            GroupEvent::MemberChanged(member) => Some(member.node),
            _ => None,
        })
    });
    let event = event.expect("the events go on");
    assert_eq!((event.name, event.metadata), (name(master), changed));

    // What was published last survives the end of that node and a new master.
    group.close(master);
    let next = group.master_except(Some(master));
    assert_eq!(known(group.node(next)), expected);
    // A node that opens again publishes what its configuration says.
    group.reopen(master).expect("opened");
    expected.insert(name(master), web(u16::try_from(master).expect("few")));
    eventually_known(&group, &expected);
}

#[test]
fn a_node_that_is_given_no_metadata_keeps_what_it_has_published() {
    let mut group = Group::in_memory(1, STEADY);
    group.master().set_metadata(web(7)).expect("published");
    group.close(0);
    group.reopen(0).expect("opened");
    group.wait_ready();
    assert_eq!(known(group.node(0))[&name(0)], web(7));
    let position = group.node(0).status().applied;
    group.node(0).set_metadata(web(7)).expect("it is published");
    assert_eq!(
        group.node(0).status().applied,
        position,
        "nothing is written"
    );
    group
        .node(0)
        .set_metadata::<&str, &str>([])
        .expect("published");
    assert_eq!(known(group.node(0))[&name(0)], Metadata::new());
}

#[test]
fn metadata_beyond_its_limits_is_refused_where_it_is_given() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let at_the_limit: Metadata = (0..16)
        .map(|n| (format!("{n:064}"), "v".repeat(256)))
        .collect();
    node.set_metadata(at_the_limit.clone()).expect("published");
    let with = |name: String, value: String| Metadata::from([(name, value)]);
    let mut too_many = at_the_limit.clone();
    too_many.insert("another".to_owned(), String::new());
    let wrong = [
        too_many,
        with(String::new(), "v".to_owned()),
        with("n".repeat(65), "v".to_owned()),
        with("n".to_owned(), "v".repeat(257)),
        with("n".to_owned(), "a\nb".to_owned()),
    ];
    for wrong in wrong {
        let refused = node.set_metadata(wrong.clone());
        assert!(
            matches!(refused, Err(AdminError::Refused { .. })),
            "{refused:?}"
        );
        let builder = RepConfig::builder("g", "n1").data_dir("/d").listen("h:1");
        let with = wrong.into_iter();
        let builder = with.fold(builder, |builder, (name, value)| {
            builder.metadata(name, value)
        });
        let error = builder.build().expect_err("it is checked");
        assert_eq!(error.key, "metadata");
    }
    assert_eq!(known(node)[&name(0)], at_the_limit);
}

#[test]
fn a_closed_node_publishes_nothing_and_one_without_a_master_goes_on_trying() {
    let mut group = Group::in_memory(3, &[]);
    let master = group.master_except(None);
    let (other, last) = ((master + 1) % 3, (master + 2) % 3);
    group.close(master);
    group.close(other);
    let node = group.node(last).clone();
    eventually("it is alone", || node.state().role == Role::Unknown);
    let setting = std::thread::spawn({
        let node: ReplicatedEnvironment = node.clone();
        move || node.set_metadata(web(9))
    });
    group.reopen(other).expect("opened");
    let set = in_time("the answer", move || setting.join().expect("no panic"));
    assert!(
        matches!(
            set,
            Ok(()) | Err(AdminError::NoAnswer { .. } | AdminError::Refused { .. })
        ),
        "{set:?}"
    );
    eventually("it is published", || known(&node)[&name(last)] == web(9));
    node.close().expect("closed");
    let refused = node.set_metadata(web(1));
    assert!(
        matches!(refused, Err(AdminError::NoAnswer { .. })),
        "{refused:?}"
    );
}
