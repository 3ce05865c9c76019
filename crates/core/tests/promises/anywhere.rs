//! Writes on nodes that are not the master: as strict as those of the master, none lost, none done twice,
//! and each with an outcome that holds.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use steadfast::{
    CommitToken, CompareAndSet, ConsistencyPolicy, CounterError, Durability, NodeType, Outcome,
    ReadError, Role, TokenOutcome, WriteBatch, WriteError,
};

use crate::support::{
    Env, Group, Nodes, Numbers, PATIENCE, STEADY, eventually, get, name, number, put,
};

/// Nothing is forwarded.
const HERE_ALONE: Numbers = &[("forward_timeout_ms", 0)];

fn replicas(group: &Group) -> [&Env; 2] {
    let master = group.master_except(None);
    [group.node((master + 1) % 3), group.node((master + 2) % 3)]
}

/// Raises a number by reading and putting it.
fn raise(node: &Env, key: &str) -> Result<u64, WriteError> {
    let raised = node.write(|txn| -> Result<_, WriteError> {
        let database = txn.database("d")?;
        let next = number(database.get(key)?) + 1;
        database.put(key, next.to_le_bytes())?;
        Ok(next)
    });
    Ok(raised?.value)
}

#[test]
fn every_kind_of_write_is_possible_on_a_replica_and_is_read_there_with_its_token() {
    let group = Group::in_memory(3, STEADY);
    let [one, other] = replicas(&group);
    let read = |node: &Env, token, key: &str| {
        get(node, ConsistencyPolicy::AtLeast(token), key).expect("read")
    };
    let token = put(one, "k", "v").expect("written");
    assert_eq!(read(one, token, "k").as_deref(), Some(&b"v"[..]));
    assert_eq!(read(other, token, "k").as_deref(), Some(&b"v"[..]));
    assert_eq!(one.outcome(token).expect("known"), TokenOutcome::Committed);
    let mut batch = WriteBatch::new();
    batch
        .put("d", "k", "w")
        .put("e", "l", "x")
        .delete("d", "gone");
    let token = other.write_batch(&batch).expect("written");
    assert_eq!(read(one, token, "k").as_deref(), Some(&b"w"[..]));
    let database = one.database("d");
    // Each sees what this node has written before.
    for n in 1..=20 {
        assert_eq!(raise(one, "n").expect("raised"), n);
    }
    let set = database.compare_and_set("k", Some(b"w"), "y").expect("set");
    assert!(matches!(set, CompareAndSet::Done(_)));
    let refused = database.put_if_absent("k", "z").expect("refused");
    match refused {
        CompareAndSet::Refused { current, token } => {
            assert_eq!(current.as_deref(), Some(&b"y"[..]));
            assert_eq!(read(other, token, "k").as_deref(), Some(&b"y"[..]));
        }
        CompareAndSet::Done(_) => panic!("it has a value"),
    }
    let token = database.add("sum", 5).expect("added");
    assert_eq!(
        read(one, token, "sum").as_deref(),
        Some(&5_i64.to_le_bytes()[..])
    );
    let error = database.add("k", 1).expect_err("no counter");
    let counter = matches!(
        &error,
        WriteError::Counter(CounterError::NotACounter { .. })
    );
    assert!(counter, "{error}");
    let open = other.begin_transaction().expect("begun");
    open.database("d")
        .expect("found")
        .put("open", "1")
        .expect("put");
    let token = open.commit().expect("committed");
    assert!(read(one, token, "open").is_some());
    // The name is known, and the rows are gone.
    let dropped = one.write(|txn| txn.drop_database("e")).expect("dropped");
    assert!(dropped.value);
    for durability in [Durability::NONE, Durability::LOCAL, Durability::ALL] {
        let written = one.write_with(durability, |txn| txn.database("d")?.put("k", "last"));
        let token = written.expect("written").token;
        assert_eq!(read(one, token, "k").as_deref(), Some(&b"last"[..]));
    }
    group.digest();
}

#[test]
fn an_open_transaction_on_a_replica_conflicts_with_what_reaches_the_master_first() {
    let group = Group::in_memory(3, STEADY);
    let [one, other] = replicas(&group);
    let _token = put(one, "k", "0").expect("written");
    let read = one.begin_transaction().expect("begun");
    let scanned = one.begin_transaction().expect("begun");
    let blind = one.begin_transaction().expect("begun");
    read.database("d").expect("found").get("k").expect("read");
    let database = scanned.database("d").expect("found");
    assert_eq!(database.prefix("k").count(), 1);
    for open in [&read, &scanned, &blind] {
        open.database("d")
            .expect("found")
            .put("own", "1")
            .expect("put");
    }
    let _token = put(other, "k", "1").expect("written");
    assert!(matches!(read.commit(), Err(WriteError::Conflict)));
    assert!(matches!(scanned.commit(), Err(WriteError::Conflict)));
    let _token = blind.commit().expect("it has read nothing");
    // A transaction that wrote nothing is validated too.
    let reads_only = one.begin_transaction().expect("begun");
    reads_only
        .database("d")
        .expect("found")
        .get("k")
        .expect("read");
    let _token = put(other, "k", "2").expect("written");
    assert!(matches!(reads_only.commit(), Err(WriteError::Conflict)));
    // A function that refuses does so because of what is there now, and not before.
    let _token = put(group.master(), "k", "3").expect("written");
    let refused = one.write(|txn| -> Result<(), WriteError> {
        let value = txn.database("d")?.get("k")?;
        Err(WriteError::abort(format!("{value:?}")))
    });
    let refused = refused.expect_err("refused").to_string();
    assert!(refused.contains("b\"3\""), "{refused}");
}

#[test]
fn nobody_raises_a_number_from_the_same_value_twice_wherever_they_write() {
    const EACH: u64 = 20;
    let group = Group::in_memory(3, STEADY);
    let runs = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for node in group.open_nodes() {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let raised = node.write(|txn| -> Result<(), WriteError> {
                            runs.fetch_add(1, Ordering::Relaxed);
                            let database = txn.database("d")?;
                            let next = number(database.get("n")?) + 1;
                            database.put("n", next.to_le_bytes())?;
                            txn.database("sum")?.add("n", 1)
                        });
                        raised.expect("raised");
                    }
                });
            }
        }
    });
    let all = 6 * EACH;
    let value = get(group.node(0), ConsistencyPolicy::Linearizable, "n");
    assert_eq!(number(value.expect("read")), all);
    assert!(
        runs.load(Ordering::Relaxed) as u64 > all,
        "nothing conflicted"
    );
    group.digest();
}

/// What one client knows of its writes.
#[derive(Default)]
struct Written {
    /// By key: the token, or that it was not committed.
    known: Vec<(String, Option<CommitToken>)>,
    vague: Vec<(String, CommitToken)>,
}

/// Writes at one node after the other until told to stop: a key of its own each time, and a number raised.
fn write_everywhere(
    nodes: &Nodes,
    client: usize,
    ends: &AtomicBool,
    committed: &AtomicUsize,
) -> Written {
    let mut written = Written::default();
    for n in 0_usize.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        let Some(node) = nodes.get(client + n) else {
            continue;
        };
        let key = format!("{client}/{n}");
        let done = node.write(|txn| -> Result<(), WriteError> {
            txn.database("marks")?.put(&key, "")?;
            let database = txn.database("d")?;
            let next = number(database.get("n")?) + 1;
            database.put("n", next.to_le_bytes())
        });
        let outcome = match done {
            Ok(done) => Outcome::Committed(done.token),
            Err(error) => error.outcome(),
        };
        match outcome {
            Outcome::Committed(token) => {
                committed.fetch_add(1, Ordering::Relaxed);
                written.known.push((key, Some(token)));
            }
            Outcome::NotCommitted => written.known.push((key, None)),
            Outcome::Unknown(token) => written.vague.push((key, token)),
            Outcome::Lost => {}
        }
    }
    written
}

/// Replaces the master, by a crash or by cutting it off.
fn replace_master(group: &mut Group, by_crash: bool) {
    let master = group.master_except(None);
    if by_crash {
        group.crash(master);
    } else {
        group.network.isolate(&name(master));
    }
    assert_ne!(group.master_except(Some(master)), master);
    if by_crash {
        group.reopen(master).expect("opened");
    } else {
        group.network.heal(&name(master));
    }
    group.wait_ready();
}

#[test]
fn writes_on_replicas_go_on_through_the_loss_of_masters_and_none_is_lost_or_done_twice() {
    let mut group = Group::in_memory(3, &[]);
    let nodes = group.shared_nodes();
    let (ends, committed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients = std::thread::scope(|scope| {
        let (nodes, ends, committed) = (&nodes, &ends, &committed);
        let write = |client| scope.spawn(move || write_everywhere(nodes, client, ends, committed));
        let clients: Vec<_> = (0..6).map(write).collect();
        for round in 0..6 {
            let enough = committed.load(Ordering::Relaxed) + 100;
            eventually("writes", || committed.load(Ordering::Relaxed) >= enough);
            replace_master(&mut group, round % 2 == 0);
        }
        ends.store(true, Ordering::Relaxed);
        let ended = clients.into_iter().map(ScopedJoinHandle::join);
        let ended = ended.map(|client| client.expect("no panic"));
        ended.collect::<Vec<_>>()
    });
    group.digest();
    let node = group.node(0);
    let policy = ConsistencyPolicy::Linearizable;
    let there = node.read(policy, |s| -> Result<BTreeSet<String>, ReadError> {
        let rows = s.database("marks")?.iter();
        let text = |key: Bytes| String::from_utf8(key.to_vec()).expect("a text");
        rows.map(|row| row.map(|(key, _)| text(key))).collect()
    });
    let there = there.expect("read");
    let counted = number(get(node, policy, "n").expect("read"));
    assert_eq!(counted, there.len() as u64, "each mark counts once");
    let mut tokens = BTreeSet::new();
    for Written { known, vague } in clients {
        for (key, token) in known {
            assert_eq!(there.contains(&key), token.is_some(), "{key}");
            if let Some(token) = token {
                assert!(tokens.insert(token), "{token} twice");
            }
        }
        for (key, token) in vague {
            let found = node.outcome(token).expect("known");
            let is_there = there.contains(&key);
            assert_eq!(found == TokenOutcome::Committed, is_there, "{key}");
        }
    }
}

#[test]
fn without_a_master_a_write_says_so_in_time_and_with_the_setting_at_once() {
    let mut group = Group::in_memory(3, &[("forward_timeout_ms", 500)]);
    let master = group.master_except(None);
    group.close(master);
    group.close((master + 1) % 3);
    let alone = group.node((master + 2) % 3);
    eventually("no master", || alone.state().role == Role::Unknown);
    let began = Instant::now();
    let refused = put(alone, "k", "v").expect_err("nobody takes it");
    assert!(matches!(refused, WriteError::NotMaster { .. }), "{refused}");
    assert!(began.elapsed() >= Duration::from_millis(500));
    let node = alone.clone();
    let waiting = std::thread::spawn(move || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match put(&node, "k", "v") {
                Err(WriteError::NotMaster { .. }) if Instant::now() < deadline => {}
                done => return done,
            }
        }
    });
    group.reopen(master).expect("opened");
    let _token = waiting.join().expect("no panic").expect("written");

    let group = Group::in_memory(3, HERE_ALONE);
    let [one, _] = replicas(&group);
    let master = group.master().state().master;
    match put(one, "k", "v") {
        Err(WriteError::NotMaster { master: named }) => assert_eq!(named, master),
        other => panic!("{other:?}"),
    }
    let begun = one.begin_transaction().err();
    assert!(
        matches!(begun, Some(WriteError::NotMaster { .. })),
        "{begun:?}"
    );
}

#[test]
fn secondaries_write_and_arbiters_do_not() {
    let mut group = Group::in_memory(2, STEADY);
    let secondary = group.join(NodeType::Secondary);
    let arbiter = group.join(NodeType::Arbiter);
    group.wait_ready();
    for n in 1..=10 {
        assert_eq!(raise(group.node(secondary), "n").expect("raised"), n);
    }
    let refused = put(group.node(arbiter), "k", "v").expect_err("it has no data");
    assert!(matches!(refused, WriteError::NotMaster { .. }), "{refused}");
}

#[test]
fn keys_put_on_a_replica_end_when_their_time_has_passed() {
    let group = Group::in_memory(3, STEADY);
    let [one, other] = replicas(&group);
    let ttl = Duration::from_millis(400);
    let (leases, began) = (one.database("leases"), Instant::now());
    let _token = leases.put_with_ttl("short", "1", ttl).expect("put");
    let _token = leases.put_with_ttl("renewed", "1", ttl).expect("put");
    let hour = Duration::from_hours(1);
    let token = other
        .database("leases")
        .put_with_ttl("renewed", "2", hour)
        .expect("put");
    let left = one.read(ConsistencyPolicy::AtLeast(token), |s| {
        s.database("leases")?.expires_in("renewed")
    });
    assert!(left.expect("read").is_some_and(|left| left > hour / 2));
    let has = |key: &str| {
        let value = other
            .database("leases")
            .get(ConsistencyPolicy::Linearizable, key);
        value.expect("read").is_some()
    };
    eventually("the end of a key", || {
        let is_there = has("short");
        assert!(is_there || began.elapsed() >= ttl, "it ended early");
        !is_there
    });
    assert!(has("renewed"));
    group.digest();
}
