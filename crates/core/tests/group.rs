//! A group in one process, through the public API: writes, reads, conflicts, failover.

#![expect(
    clippy::disallowed_methods,
    reason = "a deadline of a test is real time"
)]

use std::time::{Duration, Instant};

use steadfast::{
    ConsistencyPolicy, InMemoryGroup, ReadError, RepConfigBuilder, ReplicatedEnvironment, Role,
    RoleState, WriteError,
};

/// Only a failure waits this long; a busy machine must not cause one.
const PATIENCE: Duration = Duration::from_mins(2);

fn group() -> Vec<ReplicatedEnvironment> {
    ReplicatedEnvironment::in_memory_group(3).expect("a group forms")
}

/// The master, as soon as one accepts writes.
fn master(group: &[ReplicatedEnvironment]) -> &ReplicatedEnvironment {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for node in group {
            node.wait_ready(PATIENCE).expect("ready");
            if node.state().role == Role::Master {
                return node;
            }
        }
        std::thread::yield_now();
    }
    panic!("no node became master");
}

#[test]
fn a_write_is_read_on_every_node() {
    let group = group();
    let token = master(&group)
        .write(|txn| -> Result<_, WriteError> {
            let orders = txn.database("orders")?;
            orders.put(b"count", b"1")?;
            assert_eq!(orders.get(b"count")?.as_deref(), Some(&b"1"[..]));
            Ok(())
        })
        .expect("committed");
    assert_eq!(token.token.vlsn.0, 1);
    for node in &group {
        let value = node.read(ConsistencyPolicy::Linearizable, |s| {
            s.database("orders")?.get(b"count")
        });
        assert_eq!(value.expect("read").as_deref(), Some(&b"1"[..]));
    }
}

#[test]
fn a_write_that_is_not_to_be_forwarded_names_the_master() {
    let here_alone = |config: RepConfigBuilder| config.set("forward_timeout_ms", 0);
    let group = InMemoryGroup::configured(3, here_alone).expect("a group forms");
    let group = group.into_nodes();
    let master = master(&group).state().master.expect("known");
    let replica = group
        .iter()
        .find(|node| node.state().role == Role::Replica)
        .expect("a replica");
    match replica.write(|txn| txn.database("d")?.put(b"k", b"v")) {
        Err(WriteError::NotMaster {
            master: Some(named),
        }) => assert_eq!(named, master),
        other => panic!("{other:?}"),
    }
}

#[test]
fn concurrent_increments_are_not_lost() {
    let group = group();
    let master = master(&group);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let written = master.write(|txn| {
                        let db = txn.database("counter")?;
                        let old = db
                            .get(b"n")?
                            .map_or(0, |v| u64::from_le_bytes(v[..].try_into().expect("8")));
                        db.put(b"n", (old + 1).to_le_bytes())
                    });
                    let _token = written.expect("committed");
                }
            });
        }
    });
    let total = master.read(ConsistencyPolicy::Linearizable, |s| {
        s.database("counter")?.get(b"n")
    });
    let total = total.expect("read").expect("written");
    assert_eq!(u64::from_le_bytes(total[..].try_into().expect("8")), 400);
}

#[test]
fn the_group_goes_on_when_its_master_closes_and_loses_nothing() {
    let mut group = group();
    let put = |node: &ReplicatedEnvironment, key: &str| {
        let _token = node
            .write(|txn| txn.database("d")?.put(key, b"v"))
            .expect("the master commits");
    };
    put(master(&group), "before");
    let at = group
        .iter()
        .position(|node| node.state().role == Role::Master)
        .expect("a master");
    let old = group.swap_remove(at);
    old.close().expect("closed");
    assert!(matches!(old.write(|_| Ok(())), Err(WriteError::Closed)));
    let read = old.read(ConsistencyPolicy::Eventual, |_| Ok(()));
    assert!(matches!(read, Err(ReadError::Closed)));
    let has_new_master =
        |state: &RoleState| state.term > old.state().term && state.master.is_some();
    assert!(group[0].state_changes().any(|state| has_new_master(&state)));
    put(master(&group), "after");
    for node in &group {
        let rows = node.read(ConsistencyPolicy::Linearizable, |s| {
            s.database("d")?.iter().collect::<Result<Vec<_>, _>>()
        });
        assert_eq!(rows.expect("read").len(), 2);
    }
}
