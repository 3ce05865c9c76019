//! A node whose engine does not hold what the log gave it never returns wrong data.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use steadfast::engine::{
    Change, Direction, EngineBatch, EngineFactory, KeyRange, ScanLimit, StorageEngine,
};
use steadfast::ids::DatabaseId;
use steadfast::log::Disk;
use steadfast::{
    ConsistencyPolicy, FeedEvent, NodeStatus, NodeType, OpenError, ReadError, Repair, StartAt,
    SubscribeOptions,
};

use crate::comparison::{alter, fill};
use crate::repair::{PURGED, write};
use crate::support::{Env, Group, Numbers, Storage, eventually, get, name, put, stays};

/// Each node's own database, in no log: digests of what its databases must hold.
pub(crate) const DIGESTS: DatabaseId = DatabaseId(u32::MAX);

/// How often an in-memory node has copied a peer's state.
pub(crate) fn copies(group: &Group, at: usize) -> usize {
    let Storage::Memory { store, .. } = &group.storages[at] else {
        unreachable!("it is in memory");
    };
    let copied = |copy: &usize| {
        let dir = format!("/data/engine-{copy}");
        store.exists(Path::new(&dir)).expect("a store in memory")
    };
    (1..9).rfind(copied).unwrap_or(0)
}

fn path(group: &Group, at: usize, what: &str) -> PathBuf {
    match copies(group, at) {
        0 => Path::new("/data").join(what),
        copy => Path::new("/data").join(format!("{what}-{copy}")),
    }
}

/// The database whose keys begin with this prefix.
pub(crate) fn database_of(engine: &dyn StorageEngine, prefix: &str) -> DatabaseId {
    let holds = |database: &DatabaseId| {
        let range = KeyRange::prefix(prefix.as_bytes());
        let found = engine.scan(*database, range, Direction::Forward, ScanLimit::keys(1));
        *database != DatabaseId(0) && !found.expect("it can be read").is_empty()
    };
    let databases = engine.databases().expect("it is open");
    databases.into_iter().find(holds).expect("the database")
}

/// Changes a closed node's engine behind its back.
fn change(group: &Group, at: usize, key: &str, value: Option<&str>) {
    let Storage::Memory { store, .. } = &group.storages[at] else {
        unreachable!("it is in memory");
    };
    let engine = store.open(&path(group, at, "engine")).expect("closed");
    let applied = engine.applied().expect("open").expect("a batch");
    let database = database_of(&*engine, &key[..1]);
    let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
    let change = value.map_or(Change::Delete, Change::Put);
    let changes = vec![(database, Bytes::copy_from_slice(key.as_bytes()), change)];
    let batch = EngineBatch { applied, changes };
    engine.apply(&batch).expect("changed");
    engine.close().expect("closed");
}

/// Turns a closed node's directory into that of a version that recorded no digests.
fn forget_digest(group: &Group, at: usize) {
    let Storage::Memory { disk, store } = &group.storages[at] else {
        unreachable!("it is in memory");
    };
    let engine = store.open(&path(group, at, "engine")).expect("closed");
    let forgotten = engine.reclaim(DIGESTS, usize::MAX);
    assert!(forgotten.expect("it is open"));
    engine.close().expect("closed");
    disk.remove(&path(group, at, "digest"))
        .expect("it was there");
}

/// Gives nodes a row that no log has, and makes them trust it, as a directory written before
/// digests were recorded may do. A master not in `nodes` is left alone.
pub(crate) fn falsify(group: &mut Group, nodes: &[usize], key: &str) {
    for at in nodes {
        group.close(*at);
    }
    for at in nodes {
        change(group, *at, key, Some("altered"));
        forget_digest(group, *at);
    }
    for at in nodes {
        group.reopen(*at).expect("opened");
    }
    group.wait_ready();
}

fn put_right(node: &Env) -> u64 {
    node.status().put_right
}

/// A group whose log no longer reaches back to the rows that begin with "before".
fn purged(nodes: usize) -> Group {
    let group = Group::in_memory(nodes, PURGED);
    write(group.master(), "before");
    let mut rounds = 0;
    eventually("the log is purged", || {
        write(group.master(), &format!("round{rounds}-"));
        rounds += 1;
        (0..nodes).all(|at| !group.log_holds(at, b"before3"))
    });
    group.wait_persisted();
    group
}

fn read(node: &Env, key: &str) -> Result<Option<Vec<u8>>, ReadError> {
    get(node, ConsistencyPolicy::Eventual, key)
}

const OFTEN: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 120_000),
    ("digest_interval_ms", 100),
    ("flush_interval_ms", 10),
];

/// Like [`OFTEN`], for nodes that are compared but do not count.
const SELDOM: Numbers = &[
    ("election_timeout_min_ms", 1_000),
    ("election_timeout_max_ms", 1_500),
    ("commit_timeout_ms", 120_000),
    ("digest_interval_ms", 3_600_000),
    ("flush_interval_ms", 10),
];

#[test]
fn a_row_that_changes_in_a_running_engine_is_found_and_put_right_from_the_log() {
    let group = Group::in_memory(3, OFTEN);
    fill(&group);
    let master = group.master_except(None);
    for at in [(master + 1) % 3, master] {
        alter(&group, at, "k123");
        eventually("it is put right", || put_right(group.node(at)) == 1);
        group.wait_ready();
        let value = read(group.node(at), "k123").expect("it serves again");
        assert_eq!(value.as_deref(), Some(&b"v"[..]));
        eventually("it is well", || group.node(at).status().damage.is_none());
        assert_eq!(copies(&group, at), 0, "its log had it");
    }
}

/// Its own next count is an hour away, and the group could not spare it: one of three is away.
#[test]
fn a_node_that_the_others_find_wrong_serves_nothing_more_before_it_is_right() {
    let mut group = Group::in_memory(3, SELDOM);
    fill(&group);
    let master = group.master_except(None);
    let (at, away) = ((master + 1) % 3, (master + 2) % 3);
    let secondary = group.join(NodeType::Secondary);
    group.wait_ready();
    group.close(away);
    // The value removed from its digest was never in it.
    alter(&group, at, "k123");
    let _token = put(group.node(master), "k123", "new").expect("two of three are there");
    eventually("it has copied the state", || copies(&group, at) == 1);
    group.wait_ready();
    eventually("it is well", || group.node(at).status().damage.is_none());
    assert_eq!(copies(&group, secondary), 0);
    let members = group.node(master).status().members;
    let is_it = |member: &&steadfast::MemberStatus| member.node.name == name(at);
    assert!(members.iter().find(is_it).expect("a member").votes);
}

#[test]
fn what_a_closed_engine_has_lost_is_there_before_the_node_answers() {
    let mut group = Group::in_memory(3, OFTEN);
    fill(&group);
    for at in 0..3 {
        group.close(at);
        change(&group, at, "k007", None);
        change(&group, at, "k008", Some("altered"));
    }
    for at in 0..3 {
        group.reopen(at).expect("opened");
        for key in ["k007", "k008"] {
            let value = read(group.node(at), key).expect("it answers");
            assert_eq!(value.as_deref(), Some(&b"v"[..]));
        }
        assert_eq!(put_right(group.node(at)), 2);
    }
    group.wait_ready();
    group.digest();
}

#[test]
fn a_node_that_lost_what_its_log_does_not_have_copies_it_and_keeps_its_votes() {
    for wrong in [1, 2] {
        let mut group = purged(3);
        let right = group.master_except(None);
        let others: Vec<_> = (1..=wrong).map(|n| (right + n) % 3).collect();
        let before = group.node(right).status().members;
        for at in &others {
            group.close(*at);
            change(&group, *at, "before3", None);
        }
        for at in &others {
            group.reopen(*at).expect("it opens, and copies");
            let value = read(group.node(*at), "before3");
            assert!(!matches!(value, Ok(None)), "nobody is given what is wrong");
        }
        group.wait_ready();
        for at in &others {
            let value = read(group.node(*at), "before3").expect("it serves again");
            assert_eq!(value, Some(vec![3; 4096]));
            assert_eq!(copies(&group, *at), 1);
        }
        group.digest();
        let after = group.master().status().members;
        assert_eq!(before, after, "nobody had to be let in again");
    }
}

/// It has not counted since.
#[test]
fn what_a_node_holds_wrong_goes_into_no_copy_of_its_state() {
    let mut group = purged(2);
    let master = group.master_except(None);
    let wrong = 1 - master;
    alter(&group, wrong, "before3");
    // A copying node asks a replica before the master.
    let at = group.join(NodeType::Secondary);
    eventually("it has copied the state", || copies(&group, at) > 0);
    group.wait_ready();
    for at in [at, wrong] {
        let is_right = |value: Result<Option<Vec<u8>>, ReadError>| match value {
            Ok(value) => {
                assert!(at == wrong || value == Some(vec![3; 4096]), "{value:?}");
                value == Some(vec![3; 4096])
            }
            Err(_) => false,
        };
        eventually("it has what the log gave it", || {
            is_right(read(group.node(at), "before3"))
        });
    }
    assert_eq!(copies(&group, wrong), 1, "it found out");
    group.digest();
}

fn says_what_is_lost(status: &NodeStatus) -> bool {
    let damage = status.damage.clone().unwrap_or_default();
    damage.contains("database \"d\" has")
}

#[test]
fn where_all_have_lost_the_same_all_stop_and_say_what_is_missing() {
    let mut group = purged(3);
    for at in 0..3 {
        group.close(at);
        change(&group, at, "before3", None);
    }
    for at in 0..3 {
        group.reopen(at).expect("it opens, and looks for help");
    }
    for at in 0..3 {
        let node = group.node(at);
        eventually("it stops", || {
            matches!(read(node, "before3"), Err(ReadError::Stopped { .. }))
        });
        let status = node.status();
        assert!(says_what_is_lost(&status), "{status:?}");
        assert!(
            status.waiting_for.contains("backup"),
            "{}",
            status.waiting_for
        );
        assert_eq!(copies(&group, at), 0, "nothing was removed");
    }
}

#[test]
fn a_node_alone_that_lost_a_row_stops_and_says_so() {
    let mut group = purged(1);
    group.close(0);
    change(&group, 0, "before3", None);
    group.reopen(0).expect("it opens, to say so");
    let node = group.node(0);
    eventually("it stops", || {
        matches!(read(node, "before3"), Err(ReadError::Stopped { .. }))
    });
    assert!(says_what_is_lost(&node.status()));
    group.close_failed(0);

    // With the right row back, it goes on as if nothing had happened.
    let right = String::from_utf8(vec![3; 4096]).expect("text");
    change(&group, 0, "before3", Some(&right));
    group.reopen(0).expect("opened");
    group.wait_ready();
    write(group.master(), "after");
}

#[test]
fn a_node_that_may_not_repair_itself_does_not_open_on_a_wrong_engine() {
    let mut group = purged(3);
    group.repair = Repair::Never;
    let at = (group.master_except(None) + 1) % 3;
    group.close(at);
    change(&group, at, "before3", None);
    let refused = group.reopen(at).expect_err("its engine is wrong");
    assert!(
        matches!(&refused, OpenError::EngineDiffers { what } if what.contains("database \"d\"")),
        "{refused}"
    );
}

#[test]
fn a_state_that_contradicts_the_log_is_never_complete() {
    const SELDOM: Numbers = &[("digest_interval_ms", 3_600_000), ("flush_interval_ms", 10)];
    let group = Group::in_memory(1, SELDOM);
    fill(&group);
    alter(&group, 0, "k123");
    eventually("it is not complete", || {
        let feed = group
            .node(0)
            .subscribe(SubscribeOptions::new(StartAt::Start));
        let mut events = feed.expect("a subscription");
        let Some(Ok(FeedEvent::State { rows, .. })) = events.next() else {
            panic!("a state comes first");
        };
        assert_eq!(rows.len(), 200);
        let is_right = rows.contains(&(b"k123"[..].into(), b"v"[..].into()));
        match events.next().expect("it goes on") {
            // On a busy machine no node could vouch for it in time.
            Ok(FeedEvent::StateComplete { digest: None, .. }) => false,
            // Nor may the flush have got to the rows, which then come from memory.
            Ok(FeedEvent::StateComplete { .. }) if is_right => false,
            Ok(other) => panic!("{other:?}"),
            Err(ended) => {
                assert!(ended.to_string().contains("contradicts its log"), "{ended}");
                true
            }
        }
    });
}

#[test]
fn a_digest_goes_with_a_state_that_is_right() {
    let group = Group::in_memory(1, &[]);
    fill(&group);
    let feed = group
        .node(0)
        .subscribe(SubscribeOptions::new(StartAt::Start));
    let mut events = feed.expect("a subscription");
    let complete = events.find_map(|event| match event.expect("it goes on") {
        FeedEvent::StateComplete { digest, .. } => Some(digest),
        _ => None,
    });
    assert!(complete.flatten().is_some());
}

#[test]
fn a_node_that_took_over_another_state_than_the_majority_is_named_by_a_comparison_of_numbers() {
    let mut group = Group::in_memory_with(3, OFTEN, Repair::Never);
    fill(&group);
    stays("no divergence", || {
        group.master().status().divergences.is_empty()
    });
    let replica = (group.master_except(None) + 1) % 3;
    falsify(&mut group, &[replica], "k123x");
    eventually("the divergence is found", || {
        let found = group.master().status().divergences;
        found.len() == 1 && found[0].nodes == [name(replica)] && found[0].database == "d"
    });
}
