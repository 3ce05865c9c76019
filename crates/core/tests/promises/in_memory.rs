//! Groups in memory for the tests of applications: nodes stop, crash, start again with their data,
//! and are cut off; and on a paused clock their waits take no time.

use std::time::Duration;

use steadfast::{ConsistencyPolicy, InMemoryError, InMemoryGroup, ReplicatedEnvironment};
use tokio::time::Instant;

use crate::support::{PATIENCE, eventually, get, put};

/// From an order to start a node until it can be used.
const START_MAX: Duration = Duration::from_millis(100);

/// A time limit that no test can wait for.
const LONG: Duration = Duration::from_secs(30);

fn name_of(node: &ReplicatedEnvironment) -> String {
    node.status().node.name
}

fn master_of(group: &InMemoryGroup) -> String {
    name_of(group.wait_master(PATIENCE).expect("a master"))
}

/// Puts at the master; a write under way while it changes is repeated.
fn write(group: &InMemoryGroup, key: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let master = group.wait_master(PATIENCE).expect("a master");
        match put(master, key, "v") {
            Ok(_token) => return,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    }
}

fn has(group: &InMemoryGroup, name: &str, key: &str) -> bool {
    let node = group.node(name).expect("it runs");
    node.wait_ready(PATIENCE).expect("ready");
    let policy = ConsistencyPolicy::Linearizable;
    get(node, policy, key).expect("a read").is_some()
}

#[test]
fn nodes_stop_and_crash_and_start_again_with_their_data() {
    let mut group = InMemoryGroup::new(3).expect("a group");
    let names: Vec<_> = group.nodes().map(name_of).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    let mut keys = Vec::new();
    for round in 0..4 {
        let key = format!("while all run {round}");
        write(&group, &key);
        keys.push(key);
        let name = master_of(&group);
        if round % 2 == 0 {
            group.stop(&name).expect("stopped");
        } else {
            group.crash(&name).expect("crashed");
        }
        let gone = group.node(&name);
        assert!(matches!(gone, Err(InMemoryError::NotRunning { .. })));
        assert_ne!(master_of(&group), name);
        let key = format!("without it {round}");
        write(&group, &key);
        keys.push(key);
        group.start(&name).expect("started");
        for key in &keys {
            assert!(has(&group, &name, key), "{name} has lost {key:?}");
        }
    }
    // All at once: what was acknowledged is on the disks of a majority.
    for name in &names {
        group.crash(name).expect("crashed");
    }
    assert!(group.master().is_none() && group.nodes().count() == 0);
    for name in &names {
        group.start(name).expect("started");
    }
    for key in &keys {
        assert!(has(&group, "n1", key), "the group has lost {key:?}");
    }
}

#[test]
fn a_node_that_is_cut_off_is_replaced_and_follows_when_it_is_healed() {
    let mut group = InMemoryGroup::new(3).expect("a group");
    let old = master_of(&group);
    group.cut_off(&old).expect("cut off");
    assert_ne!(master_of(&group), old);
    write(&group, "k");
    let read = |group: &InMemoryGroup, policy| {
        let node = group.node(&old).expect("it runs");
        get(node, policy, "k")
    };
    let refused = read(&group, ConsistencyPolicy::Linearizable);
    assert!(refused.is_err(), "{refused:?}");
    group.heal(&old).expect("healed");
    assert!(has(&group, &old, "k"));

    // A crash does not end that it is cut off.
    group.cut_off(&old).expect("cut off");
    group.crash(&old).expect("crashed");
    group.start(&old).expect("started");
    let node = group.node(&old).expect("it runs");
    let ready = node.wait_ready(Duration::from_millis(50));
    assert!(ready.is_err(), "{ready:?}");
    group.heal(&old).expect("healed");
    assert!(has(&group, &old, "k"));
}

#[test]
fn what_a_test_gets_wrong_is_told() {
    let mut group = InMemoryGroup::new(1).expect("a group");
    for wrong in [
        group.stop("n2"),
        group.crash("n0"),
        group.start("n").map(|_| ()),
        group.cut_off("N1"),
        group.heal(""),
        group.node("n11").map(|_| ()),
    ] {
        assert!(
            matches!(wrong, Err(InMemoryError::NoSuchNode { .. })),
            "{wrong:?}"
        );
    }
    let twice = group.start("n1");
    assert!(matches!(twice, Err(InMemoryError::Running { .. })));
    group.stop("n1").expect("stopped");
    let twice = group.stop("n1");
    assert!(matches!(twice, Err(InMemoryError::NotRunning { .. })));
    let none = group.wait_master(Duration::from_millis(1));
    assert!(matches!(none, Err(InMemoryError::NoMaster { .. })));

    let refused = InMemoryGroup::configured(1, |builder| builder.set("no_such_key", 1));
    assert!(
        matches!(refused, Err(InMemoryError::Node(_))),
        "{refused:?}"
    );
}

/// The clock counts what a node waits for, however busy the machine is.
#[tokio::test(start_paused = true)]
async fn a_node_waits_for_less_than_a_tenth_of_a_second_until_it_can_be_used() {
    let mut group = InMemoryGroup::new_async(3).await.expect("a group");
    for name in ["n1", "n2", "n3"] {
        for is_crash in [false, true] {
            if is_crash {
                group.crash_async(name).await.expect("crashed");
            } else {
                group.stop_async(name).await.expect("stopped");
            }
            let master = group.wait_master_async(PATIENCE).await.expect("a master");
            let token = put_async(master, name).await;
            let began = Instant::now();
            let node = group.start_async(name).await.expect("started");
            node.wait_ready_async(PATIENCE).await.expect("ready");
            let took = began.elapsed();
            assert!(took < START_MAX, "{name} took {took:?}");
            let policy = ConsistencyPolicy::AtLeast(token);
            let read = node.read_async(policy, |snapshot| snapshot.database("d")?.get(name));
            assert!(read.await.expect("a read").is_some());
        }
    }
}

async fn put_async(node: &ReplicatedEnvironment, key: &str) -> steadfast::CommitToken {
    let database = node.database("d");
    database.put_async(key, "v").await.expect("committed")
}

#[tokio::test(start_paused = true)]
async fn on_a_paused_clock_a_time_limit_passes_at_once() {
    let real = std::time::Instant::now();
    let mut group = InMemoryGroup::new_async(3).await.expect("a group");
    let master = group.wait_master_async(PATIENCE).await.expect("a master");
    let (old, name) = (master.clone(), name_of(master));
    let _token = put_async(&old, "before").await;
    group.cut_off(&name).expect("cut off");
    let master = group.wait_master_async(PATIENCE).await.expect("a master");
    assert_ne!(name_of(master), name);
    let began = Instant::now();
    let policy = ConsistencyPolicy::Linearizable.within(LONG);
    let read = old.read_async(policy, |snapshot| snapshot.database("d")?.get("before"));
    let refused = read.await;
    assert!(refused.is_err(), "{refused:?}");
    let (passed, real) = (began.elapsed(), real.elapsed());
    assert!(
        passed >= LONG && real < LONG / 2,
        "{passed:?} took {real:?}"
    );
}

#[test]
fn groups_of_any_size_form_as_they_are_configured() {
    for nodes in [1, 2, 3, 5, 1, 3] {
        let group = InMemoryGroup::configured(nodes, |builder| builder.metadata("zone", "b"));
        let group = group.expect("a group");
        write(&group, "k");
        assert_eq!(group.nodes().count(), nodes);
        let is_configured = |node: &ReplicatedEnvironment| {
            let members = node.status().members;
            let mut members = members.iter().map(|member| &member.node.metadata);
            members.all(|metadata| metadata.contains_key("zone"))
        };
        eventually("all are configured", || group.nodes().all(is_configured));
    }
}
