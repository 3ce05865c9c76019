//! The group changes while it is in use: nodes come and go, votes and mastership move, and nothing
//! acknowledged is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use steadfast::{
    AdminCommand, AdminError, ConsistencyPolicy, Durability, NodeType, ReadError, ReadyError,
    WriteError,
};

use crate::support::{
    Env, Group, Numbers, PATIENCE, Release, eventually, get, name, number, put, stays,
};

/// Elections are quick, yet a busy machine seldom causes an unintended one.
const QUICK: Numbers = &[
    ("heartbeat_interval_ms", 20),
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 60_000),
];

/// Writers that continue through any change of the group: each increments its own key, on the
/// current master, until told to stop.
struct Load {
    stop: AtomicBool,
    acknowledged: [AtomicU64; 4],
}

impl Load {
    /// Runs `change` under load, then checks that nothing was lost.
    fn during(group: &mut Group, change: impl FnOnce(&mut Group)) {
        let load = Self {
            stop: AtomicBool::new(false),
            acknowledged: Default::default(),
        };
        let nodes = group.shared_nodes();
        std::thread::scope(|scope| {
            for at in 0..load.acknowledged.len() {
                let (load, nodes) = (&load, nodes.clone());
                scope.spawn(move || load.write(at, &nodes));
            }
            let _ended = Release(&load.stop);
            change(group);
            let done: Vec<_> = load.counts();
            eventually("writes after the change", || {
                load.counts()
                    .iter()
                    .zip(&done)
                    .all(|(now, then)| now > then)
            });
        });
        for (at, acknowledged) in load.counts().into_iter().enumerate() {
            let kept = get(group.master(), ConsistencyPolicy::Linearizable, key(at));
            let kept = number(kept.expect("read"));
            assert!(
                kept >= acknowledged,
                "{kept} of {acknowledged} acknowledged"
            );
        }
    }

    fn counts(&self) -> Vec<u64> {
        let counts = self.acknowledged.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn write(&self, at: usize, nodes: &crate::support::Nodes) {
        let mut next = at;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(node) = nodes.get(next) else {
                std::thread::yield_now();
                next += 1;
                continue;
            };
            let added = node.write(|txn| {
                let database = txn.database("d")?;
                let count = number(database.get(key(at))?) + 1;
                database.put(key(at), count.to_le_bytes())
            });
            match added {
                Ok(_) => {
                    self.acknowledged[at].fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    assert!(!matches!(error, WriteError::Read(_)), "{error}");
                    next += 1;
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        }
    }
}

fn key(at: usize) -> String {
    format!("counter-{at}")
}

fn votes(node: &Env) -> Vec<String> {
    let members = node.status().members.into_iter();
    members.filter(|m| m.votes).map(|m| m.node.name).collect()
}

fn wait_votes(group: &Group, expected: &[&str]) {
    eventually("the votes", || {
        let mut nodes = group.open_nodes();
        nodes.all(|node| votes(node) == expected)
    });
}

fn remove(node: &str) -> AdminCommand {
    AdminCommand::Remove {
        node: node.to_owned(),
        force: false,
    }
}

fn transfer(to: &[&str]) -> AdminCommand {
    AdminCommand::Transfer {
        to: to.iter().map(|name| (*name).to_owned()).collect(),
        within: Duration::from_secs(20),
    }
}

fn refusal(done: Result<String, AdminError>) -> String {
    match done {
        Err(AdminError::Refused { what, to_do }) => format!("{what}; {to_do}"),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_group_grows_from_one_to_three_under_load_and_shrinks_back() {
    let mut group = Group::in_memory(1, QUICK);
    Load::during(&mut group, |group| {
        for grown in [2, 3] {
            let at = group.join(NodeType::Electable);
            assert_eq!(at + 1, grown);
            group.node(at).wait_ready(PATIENCE).expect("ready");
        }
        wait_votes(group, &["n1", "n2", "n3"]);
    });
    let digest = group.digest();
    assert_ne!(digest, 0);
    Load::during(&mut group, |group| {
        group.crash(0);
        group.master_except(Some(0));
        group.reopen(0).expect("opened");
    });
    Load::during(&mut group, |group| {
        let asked = group.node(1).clone();
        for node in ["n1", "n3"] {
            asked.administer(&remove(node)).expect("removed");
        }
        wait_removed(group, 0);
        wait_removed(group, 2);
        group.close(0);
        group.close(2);
    });
    assert_eq!(votes(group.node(1)), ["n2"]);
}

fn wait_removed(group: &Group, at: usize) {
    eventually("the node hears that it was removed", || {
        let ready = group.node(at).wait_ready(Duration::from_millis(10));
        matches!(ready, Err(ReadyError::Stopped { reason }) if reason.contains("removed"))
    });
}

#[test]
fn a_node_that_was_removed_while_it_was_down_finds_out_and_stops() {
    let mut group = Group::in_memory(4, QUICK);
    let master = group.master_except(Some(3));
    let _token = put(group.node(master), "k", "v").expect("written");
    group.close(3);
    group
        .node(master)
        .administer(&remove("n4"))
        .expect("removed");
    group.reopen(3).expect("its directory is whole");
    wait_removed(&group, 3);
    let read = get(group.node(3), ConsistencyPolicy::Linearizable, "k");
    assert!(matches!(read, Err(ReadError::Stopped { .. })), "{read:?}");
    // Its id is never reused, not even for a node of the same name.
    group.close(3);
    group.wipe(3);
    let token = group
        .node(master)
        .join_token(NodeType::Electable)
        .expect("a group");
    group.open_with(3, token);
    wait_votes(&group, &["n1", "n2", "n3", "n4"]);
    let members = group.node(3).status().members;
    let ids: Vec<_> = members.iter().map(|member| member.node.id.0).collect();
    assert_eq!(ids, [1, 2, 3, 5]);
}

#[test]
fn a_member_that_is_removed_while_others_change_it_stays_removed() {
    let group = Group::in_memory(3, QUICK);
    let master = group.master().clone();
    let is_master = |name: &str| master.status().node.name == name;
    let gone = if is_master("n3") { "n2" } else { "n3" };
    let ended = AtomicBool::new(false);
    // Each stops once there is no such member any more.
    let raise = |from: u32| {
        for round in 0.. {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let changed = master.administer(&AdminCommand::SetPriority {
                node: gone.to_owned(),
                priority: (from + round) % 2,
            });
            match changed {
                Ok(_) => {}
                Err(AdminError::Refused { what, .. }) if what.contains("no member") => return,
                Err(error) => panic!("{error}"),
            }
        }
    };
    std::thread::scope(|scope| {
        let raising: Vec<_> = (0..8)
            .map(|from| scope.spawn(move || raise(from)))
            .collect();
        let _ended = Release(&ended);
        master.administer(&remove(gone)).expect("removed");
        eventually("it is no member any more", || {
            raising
                .iter()
                .all(std::thread::ScopedJoinHandle::is_finished)
        });
    });
    let members = master.status().members.into_iter();
    let members: Vec<_> = members.map(|member| member.node.name).collect();
    assert_eq!(members.len(), 2, "{members:?}");
    assert!(!members.contains(&gone.to_owned()), "{members:?}");
}

/// The master it has to hear from is none that it knows.
#[test]
fn a_node_catches_up_from_a_master_that_joined_while_it_was_down() {
    let mut group = Group::in_memory(3, QUICK);
    let master = group.master_except(Some(2));
    group.close(2);
    assert_eq!(group.join(NodeType::Electable), 3);
    wait_votes(&group, &["n1", "n2", "n3", "n4"]);
    let done = group.node(master).administer(&transfer(&["n4"]));
    done.expect("it has caught up");
    eventually("n4 is master", || group.master_except(Some(2)) == 3);
    let _token = put(group.node(3), "k", "v").expect("written");
    group.reopen(2).expect("its directory is whole");
    eventually("n3 has what n4 wrote", || {
        let read = get(group.node(2), ConsistencyPolicy::Linearizable, "k");
        matches!(read, Ok(Some(value)) if value[..] == *b"v")
    });
}

#[test]
fn a_removal_that_would_lose_the_majority_is_refused() {
    let mut group = Group::in_memory(3, QUICK);
    let master = group.master_except(None);
    let (down, up) = ((master + 1) % 3, (master + 2) % 3);
    let down_id = group.node(down).status().node.id;
    group.close(down);
    eventually("the master misses it", || {
        let replicas = group.master().status().replicas;
        // A master that came after the node was closed never hears from it.
        let is_missed = |ago: Option<u64>| ago.is_none_or(|ago| ago > 1_500);
        replicas
            .iter()
            .any(|of| of.node == down_id && is_missed(of.heard_ms_ago))
    });
    let demote = AdminCommand::SetType {
        node: name(up),
        node_type: NodeType::Secondary,
    };
    for command in [remove(&name(up)), demote] {
        let why = refusal(group.master().administer(&command));
        assert!(why.contains("no majority"), "{why}");
    }
    let _token = put(group.master(), "k", "v").expect("nothing has changed");
    group
        .master()
        .administer(&remove(&name(down)))
        .expect("it was down");
    let why = refusal(group.master().administer(&remove("n9")));
    assert!(why.contains("name one of"), "{why}");
}

#[test]
fn a_secondary_has_the_data_and_no_say_until_it_is_promoted() {
    let mut group = Group::in_memory(2, QUICK);
    let at = group.join(NodeType::Secondary);
    group.node(at).wait_ready(PATIENCE).expect("ready");
    let master = group.master_except(Some(at));
    group.close(at);
    let _token = group
        .node(master)
        .write_with(Durability::ALL, |txn| txn.database("d")?.put("k", "v"))
        .expect("a secondary is not one of all");
    group.reopen(at).expect("opened");
    let read = || get(group.node(at), ConsistencyPolicy::Linearizable, "k");
    eventually("a read on the secondary", || read().is_ok());
    assert_eq!(read().expect("read").as_deref(), Some(&b"v"[..]));
    let set_type = |node_type| AdminCommand::SetType {
        node: name(at),
        node_type,
    };
    wait_votes(&group, &["n1", "n2"]);
    group
        .node(at)
        .administer(&set_type(NodeType::Electable))
        .expect("promoted");
    wait_votes(&group, &["n1", "n2", "n3"]);
    group
        .node(at)
        .administer(&set_type(NodeType::Secondary))
        .expect("demoted");
    wait_votes(&group, &["n1", "n2"]);
    let why = refusal(group.node(at).administer(&set_type(NodeType::Arbiter)));
    assert!(why.contains("an arbiter has no data"), "{why}");
    let waiting = |group: &Group, at: usize| group.node(at).status().waiting_for;
    group.close(0);
    group.close(1);
    eventually("the secondary waits", || {
        waiting(&group, at).contains("2 of 2 voting nodes: n1 at n1:7400, n2 at n2:7400")
    });
}

#[test]
fn mastership_goes_to_whom_it_is_given_under_load_and_stays_if_he_cannot_take_it() {
    let mut group = Group::in_memory(3, QUICK);
    Load::during(&mut group, |group| {
        for round in 0..10 {
            let master = group.master_except(None);
            let to = name((master + 1 + round % 2) % 3);
            let done = group.node(master).administer(&transfer(&[&to]));
            let done = done.expect("it has caught up");
            assert!(done.starts_with(&format!("{to} is the master")), "{done}");
        }
    });
    let master = group.master_except(None);
    let dead = (master + 1) % 3;
    group.close(dead);
    let impatient = AdminCommand::Transfer {
        to: vec![name(dead)],
        within: Duration::from_millis(500),
    };
    let term = group.node(master).state().term;
    let why = refusal(group.node(master).administer(&impatient));
    assert!(why.contains("the master goes on"), "{why}");
    // It notices sooner than the limit that nobody is there.
    let why = refusal(group.node(master).administer(&transfer(&[&name(dead)])));
    assert!(
        why.contains(&format!("{} does not answer", name(dead))),
        "{why}"
    );
    let _token = put(group.node(master), "after", "it").expect("the old master goes on");
    assert_eq!(group.node(master).state().term, term);
}

#[test]
fn the_node_of_the_highest_priority_that_has_caught_up_is_master_and_one_of_none_never() {
    let mut group = Group::in_memory(3, QUICK);
    let set = |node: &str, priority| AdminCommand::SetPriority {
        node: node.to_owned(),
        priority,
    };
    let asked = group.node(0).clone();
    asked.administer(&set("n3", 0)).expect("set");
    asked.administer(&set("n2", 7)).expect("set");
    eventually("n2 takes over", || group.master_except(None) == 1);
    group.close(1);
    assert_eq!(group.master_except(Some(1)), 0, "not the one of priority 0");
    group.reopen(1).expect("opened");
    eventually("n2 takes over again", || {
        group.node(1).state().role == steadfast::Role::Master
    });
    let why = refusal(asked.administer(&transfer(&["n3"])));
    assert!(why.contains("its priority is 0"), "{why}");
    // The only node left cannot win, and does not try.
    group.close(0);
    group.close(1);
    eventually("n3 knows no master", || {
        group.node(2).state().role == steadfast::Role::Unknown
    });
    stays("no master", || {
        group.node(2).state().role == steadfast::Role::Unknown
    });
}

#[test]
fn with_two_data_nodes_and_an_arbiter_any_one_may_die() {
    let mut group = Group::in_memory(2, QUICK);
    let arbiter = group.join(NodeType::Arbiter);
    wait_votes(&group, &["n1", "n2", "n3"]);
    let secret = b"a value that no arbiter ever holds";
    for victim in [0, 1, arbiter] {
        group.crash(victim);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let master = group.master_except(Some(victim));
            assert_ne!(master, arbiter);
            match put(group.node(master), name(victim), secret) {
                Ok(_) => break,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
        group.reopen(victim).expect("opened");
        group.wait_ready();
        group.wait_persisted();
    }
    let read = get(group.node(arbiter), ConsistencyPolicy::Eventual, "k");
    assert!(matches!(read, Err(ReadError::NoData)), "{read:?}");
    assert!(!group.log_holds(arbiter, secret));
    assert!(group.log_holds(0, secret), "the test would see it");
    let databases = group.engine(arbiter).databases().expect("an engine");
    assert_eq!(databases, [], "nor does its engine hold any");
}

#[test]
fn an_arbiter_does_not_stand_for_a_copy_that_could_have_been_made() {
    let mut group = Group::in_memory(2, QUICK);
    let arbiter = group.join(NodeType::Arbiter);
    wait_votes(&group, &["n1", "n2", "n3"]);
    let master = group.master_except(None);
    let other = 1 - master;
    // The other data node is up but cannot sync: the arbiter alone must not be enough.
    group.storages[other].disk().hold_syncs(true);
    let node = group.node(master).clone();
    let written = std::thread::spawn(move || put(&node, "k", "v"));
    stays("not acknowledged", || !written.is_finished());
    group.storages[other].disk().hold_syncs(false);
    let _token = written.join().expect("no panic").expect("written");
    assert!(group.node(arbiter).state().role != steadfast::Role::Master);
}

#[test]
fn a_group_of_five_survives_any_two_deaths() {
    let mut group = Group::in_memory(5, QUICK);
    for one in 0..5 {
        for other in one + 1..5 {
            group.crash(one);
            group.crash(other);
            let key = format!("{one}-{other}");
            eventually("the other three go on", || {
                let mut nodes = group.open_nodes();
                nodes.any(|node| put(node, &key, "v").is_ok())
            });
            group.reopen(one).expect("its directory is whole");
            group.reopen(other).expect("its directory is whole");
            group.wait_ready();
        }
    }
    assert_ne!(group.digest(), 0, "all five hold the same");
}

#[test]
fn a_node_comes_back_at_another_address() {
    let mut group = Group::in_memory(3, QUICK);
    let master = group.master_except(None);
    let moved = (master + 1) % 3;
    group.close(moved);
    let command = AdminCommand::SetAddress {
        node: name(moved),
        address: format!("{}:9999", name(moved)),
        // Nobody is there yet.
        force: true,
    };
    group.node(master).administer(&command).expect("set");
    group.listen_on(moved, 9999);
    group.reopen(moved).expect("opened");
    group.node(moved).wait_ready(PATIENCE).expect("ready");
    let _token = put(group.node(master), "k", "v").expect("written");
    group.digest();
}

#[test]
fn a_name_is_not_let_in_twice() {
    let mut group = Group::in_memory(3, QUICK);
    let down = (group.master_except(None) + 1) % 3;
    let token = group
        .master()
        .join_token(NodeType::Electable)
        .expect("a group");
    group.close(down);
    group.wipe(down);
    group.open_with(down, token);
    let ready = group.node(down).wait_ready(PATIENCE);
    let Err(ReadyError::Refused { reason }) = ready else {
        panic!("let in: {ready:?}");
    };
    assert!(reason.contains("steadfast node replace"), "{reason}");
}

#[test]
fn an_arbiter_has_no_priority_and_the_only_vote_is_not_taken() {
    let mut group = Group::in_memory(1, QUICK);
    let secondary = group.join(NodeType::Secondary);
    group.node(secondary).wait_ready(PATIENCE).expect("ready");
    let demote = AdminCommand::SetType {
        node: name(0),
        node_type: NodeType::Secondary,
    };
    let why = refusal(group.master().administer(&demote));
    assert!(why.contains("n1 has the only vote"), "{why}");
    let arbiter = group.join(NodeType::Arbiter);
    wait_votes(&group, &["n1", "n3"]);
    let prefer = AdminCommand::SetPriority {
        node: name(arbiter),
        priority: 7,
    };
    let why = refusal(group.master().administer(&prefer));
    assert!(why.contains("n3 is an arbiter"), "{why}");
}
