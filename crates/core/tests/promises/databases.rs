//! Databases are listed, dropped and truncated in transactions, and their space is reclaimed.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use steadfast::ids::DatabaseId;
use steadfast::{ConsistencyPolicy, ReadError, Snapshot, Transaction, WriteError};

use crate::audit::DIGESTS;
use crate::support::{Env, Group, PATIENCE, STEADY, eventually, put, stays};

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;

/// Small transactions and segments, and a flush that never rests.
const SMALL: &[(&str, u64)] = &[
    ("election_timeout_min_ms", 2_000),
    ("election_timeout_max_ms", 3_000),
    ("commit_timeout_ms", 120_000),
    ("log_segment_bytes", 1 << 20),
    ("flush_bytes", 1024),
    ("flush_interval_ms", 1),
];

type InTransaction<T> = fn(&Transaction) -> Result<T, WriteError>;

fn put_in(node: &Env, database: &str, key: &str) {
    let _token = node.database(database).put(key, "v").expect("committed");
}

fn names(node: &Env) -> Vec<String> {
    let names = node.read(LINEARIZABLE, Snapshot::list_databases);
    names.expect("read")
}

fn keys(snapshot: &Snapshot, database: &str) -> Result<Vec<String>, ReadError> {
    let rows = snapshot.database(database)?.iter();
    let text = |key: &[u8]| String::from_utf8(key.to_vec()).expect("text");
    rows.map(|row| Ok(text(&row?.0))).collect()
}

fn keys_of(node: &Env, database: &str) -> Vec<String> {
    let keys = node.read(LINEARIZABLE, |snapshot| keys(snapshot, database));
    keys.expect("read")
}

fn ids(group: &Group, at: usize) -> Vec<DatabaseId> {
    let databases = group.engine(at).databases().expect("the engine is open");
    let is_of_users = |id: &DatabaseId| *id != DIGESTS;
    databases.into_iter().filter(is_of_users).collect()
}

/// Waits until no engine holds anything under an id assigned before `newest`, except the catalog
/// and `kept`.
fn wait_until_reclaimed(group: &Group, kept: &[DatabaseId]) {
    for at in 0..group.nodes.len() {
        eventually("the space is given up", || {
            let ids = ids(group, at);
            ids.iter().all(|id| id.0 == 0 || kept.contains(id))
        });
    }
}

#[test]
fn databases_are_listed_by_name_in_snapshots_and_as_a_transaction_has_them() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master();
    for name in ["orders", "customers", "ü"] {
        put_in(node, name, "k");
    }
    let listed = node.write(|txn| -> Result<_, WriteError> {
        assert_eq!(txn.list_databases()?, ["customers", "orders", "ü"]);
        txn.database("new")?.put("k", "v")?;
        assert!(txn.drop_database("orders")?);
        assert!(!txn.drop_database("orders")?);
        assert!(txn.truncate_database("ü")?);
        assert!(!txn.truncate_database("missing")?);
        assert_eq!(txn.list_databases()?, ["customers", "new", "ü"]);
        Ok(())
    });
    let _token = listed.expect("committed");
    for node in group.open_nodes() {
        assert_eq!(names(node), ["customers", "new", "ü"]);
        assert_eq!(keys_of(node, "ü"), Vec::<String>::new());
    }
    group.digest();
}

#[test]
fn a_dropped_database_comes_back_empty_also_within_the_transaction_that_drops_it() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master();
    put_in(node, "d", "old");
    let written = node.write(|txn| {
        let handle = txn.database("d")?;
        handle.put("before", "v")?;
        assert!(txn.drop_database("d")?);
        assert_eq!(handle.get("before")?, None);
        assert_eq!(handle.get("old")?, None);
        assert_eq!(handle.iter().count(), 0);
        handle.delete("old")?;
        handle.put("after", "v")?;
        assert_eq!(handle.iter().count(), 1);
        assert!(txn.truncate_database("d")?);
        assert_eq!(handle.iter().count(), 0);
        handle.put("last", "v")
    });
    let _token = written.expect("committed");
    for node in group.open_nodes() {
        assert_eq!(keys_of(node, "d"), ["last"]);
    }
    let dropped = node.write(|txn| txn.drop_database("d").map(|_| ()));
    let _token = dropped.expect("committed");
    for node in group.open_nodes() {
        assert_eq!(names(node), Vec::<String>::new());
        assert_eq!(keys_of(node, "d"), Vec::<String>::new());
    }
    put_in(node, "d", "new");
    assert_eq!(keys_of(node, "d"), ["new"]);
    group.digest();
}

#[test]
fn a_drop_and_a_truncate_are_undone_with_their_transaction() {
    let group = Group::in_memory(1, SMALL);
    let node = group.master();
    put_in(node, "a", "k");
    put_in(node, "b", "k");
    let aborted = node.write(|txn| -> Result<(), WriteError> {
        txn.drop_database("a")?;
        txn.truncate_database("b")?;
        Err(WriteError::abort("no"))
    });
    assert!(matches!(aborted, Err(WriteError::Aborted(_))));
    let open = node.begin_transaction().expect("begun");
    open.drop_database("a").expect("dropped");
    open.truncate_database("b").expect("truncated");
    drop(open);
    assert_eq!(names(node), ["a", "b"]);
    for name in ["a", "b"] {
        assert_eq!(keys_of(node, name), ["k"]);
    }
}

#[test]
fn whoever_used_a_database_that_another_one_dropped_or_truncated_conflicts() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let uses: [InTransaction<()>; 4] = [
        |txn| txn.database("d")?.put("new", "v"),
        |txn| txn.database("d")?.get("k").map(|_| ()),
        |txn| {
            txn.database("d")?
                .iter()
                .try_for_each(|row| row.map(|_| ()))?;
            Ok(())
        },
        |txn| txn.list_databases().map(|_| ()),
    ];
    let changes: [InTransaction<bool>; 2] = [
        |txn| txn.drop_database("d"),
        |txn| txn.truncate_database("d"),
    ];
    for (used, change) in uses
        .iter()
        .flat_map(|used| changes.map(|change| (used, change)))
    {
        put_in(node, "d", "k");
        let open = node.begin_transaction().expect("begun");
        used(&open).expect("used");
        open.database("other")
            .and_then(|other| other.put("k", "v"))
            .expect("put");
        let changed = node.write(|txn| change(txn).map(|_| ()));
        let _token = changed.expect("committed");
        assert!(matches!(open.commit(), Err(WriteError::Conflict)));
        assert_eq!(keys_of(node, "d"), Vec::<String>::new());
    }
    // In the other order nothing is lost either: what was committed before is dropped with it.
    put_in(node, "d", "k");
    let open = node.begin_transaction().expect("begun");
    open.truncate_database("d").expect("truncated");
    put_in(node, "d", "late");
    let _token = open.commit().expect("a truncate reads no key");
    assert_eq!(keys_of(node, "d"), Vec::<String>::new());
}

#[test]
fn writes_beside_truncates_land_before_or_after_and_never_conflict() {
    let group = Group::in_memory(3, SMALL);
    let node = group.master();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0..25 {
                    put_in(node, "d", &format!("{thread}/{n}"));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..10 {
                let truncated = node.write(|txn| txn.truncate_database("d").map(|_| ()));
                let _token = truncated.expect("committed");
            }
        });
    });
    let truncated = node.write(|txn| txn.truncate_database("d").map(|_| ()));
    let _token = truncated.expect("committed");
    put_in(node, "d", "last");
    for node in group.open_nodes() {
        assert_eq!(keys_of(node, "d"), ["last"]);
    }
    group.digest();
}

/// Fills a database with four times what one transaction may write, truncates it, and waits until
/// every engine has given up the space. The name gets a new id.
fn truncates_and_reclaims(group: &Group) {
    let node = group.master();
    let mut newest = DatabaseId(0);
    for round in 0..3 {
        for n in 0..8_u8 {
            let filled = node.write(|txn| {
                let database = txn.database("d")?;
                (0..64_u8).try_for_each(|key| database.put([round, n, key], vec![key; 4_000]))
            });
            let _token = filled.expect("committed");
        }
        let rows = node.read(LINEARIZABLE, |s| {
            Ok::<_, ReadError>(s.database("d")?.iter().count())
        });
        // Plus what the previous round left.
        assert_eq!(rows.expect("read"), 512 + usize::from(round > 0));
        let truncated = node.write(|txn| {
            assert!(txn.truncate_database("d")?);
            txn.database("d")?.put("first", "of the new ones")
        });
        let _token = truncated.expect("committed");
        for node in group.open_nodes() {
            assert_eq!(keys_of(node, "d"), ["first"]);
        }
        group.digest();
        // The only id left besides the catalog is a new one.
        let is_new = |id: &DatabaseId| id.0 == 0 || *id > newest;
        for at in 0..group.nodes.len() {
            eventually("the space is given up", || {
                let ids = ids(group, at);
                ids.len() == 2 && ids.iter().all(is_new)
            });
        }
        newest = ids(group, 0)[1];
        group.digest();
    }
    let dropped = node.write(|txn| txn.drop_database("d").map(|_| ()));
    let _token = dropped.expect("committed");
    wait_until_reclaimed(group, &[]);
    group.digest();
}

#[test]
fn a_truncate_of_more_than_one_transaction_may_write_gives_the_space_back() {
    truncates_and_reclaims(&Group::in_memory(3, SMALL));
}

#[test]
fn a_truncate_of_more_than_one_transaction_may_write_gives_the_space_back_in_noxu() {
    let mut group = Group::on_disk(3, SMALL);
    truncates_and_reclaims(&group);
    put_in(group.master(), "d", "after");
    for at in 0..3 {
        group.close(at);
    }
    for at in 0..3 {
        group.reopen(at).expect("opened");
    }
    group.wait_ready();
    assert_eq!(keys_of(group.master(), "d"), ["after"]);
    group.digest();
}

#[test]
fn an_open_snapshot_keeps_what_was_dropped_and_nobody_else_sees_the_difference() {
    let group = Group::in_memory(3, SMALL);
    let node = group.master();
    for n in 0..300 {
        put_in(node, "d", &format!("{n:03}"));
    }
    let held = (group.master_except(None) + 1) % 3;
    eventually("the keys are in the engine", || {
        group.node(held).status().window_bytes == 0
    });
    let (holding, holds) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let group = &group;
        let reader = scope.spawn(move || {
            group
                .node(held)
                .read(LINEARIZABLE, |snapshot| -> Result<_, ReadError> {
                    let mut rows = snapshot.database("d")?.iter();
                    let first = rows.next().transpose()?;
                    holding.send(()).expect("the test lives");
                    released.recv_timeout(PATIENCE).expect("told to go on");
                    let late = snapshot.database("d")?.get("299")?;
                    Ok((
                        first.is_some(),
                        rows.count(),
                        late.is_some(),
                        snapshot.list_databases()?,
                    ))
                })
        });
        holds.recv_timeout(PATIENCE).expect("the snapshot is open");
        let dropped = node.write(|txn| txn.drop_database("d").map(|_| ()));
        let _token = dropped.expect("committed");
        let others: Vec<_> = (0..3).filter(|at| *at != held).collect();
        for at in others {
            eventually("the others give it up", || ids(group, at).len() == 1);
        }
        stays("the reader's node keeps it", || ids(group, held).len() == 2);
        // Some have given it up, and one has not.
        group.digest();
        assert_eq!(names(group.node(held)), Vec::<String>::new());
        release.send(()).expect("the reader lives");
        let seen = reader.join().expect("no panic").expect("read");
        assert_eq!(seen, (true, 299, true, vec!["d".to_owned()]));
    });
    eventually("it is given up at last", || ids(&group, held).len() == 1);
}

#[test]
fn a_crash_brings_back_no_name_and_stops_no_giving_up() {
    let mut group = Group::in_memory(1, SMALL);
    for round in 0..6 {
        let node = group.master();
        let kept = format!("kept {round}");
        for n in 0..4_000 / 100 {
            let filled = node.write(|txn| {
                let (gone, kept) = (txn.database("gone")?, txn.database(&kept)?);
                (0..100).try_for_each(|key| {
                    gone.put(format!("{n}/{key}"), "v")?;
                    kept.put(format!("{n}/{key}"), "v")
                })
            });
            let _token = filled.expect("committed");
        }
        if round % 2 == 0 {
            eventually("the keys are in the engine", || {
                node.status().window_bytes == 0
            });
        }
        let dropped = node.write(|txn| txn.drop_database("gone").map(|_| ()));
        let _token = dropped.expect("committed");
        if round % 3 == 0 {
            eventually("it is being given up", || node.status().window_bytes == 0);
        }
        group.crash(0);
        group.reopen(0).expect("opened");
        group.wait_ready();
        let node = group.master();
        assert_eq!(names(node).len(), round + 1);
        for name in names(node) {
            assert_eq!(keys_of(node, &name).len(), 4_000, "{name}");
        }
        eventually("it is given up", || ids(&group, 0).len() == round + 2);
        for name in names(node) {
            assert_eq!(keys_of(node, &name).len(), 4_000, "{name}");
        }
    }
    let _token = put(group.master(), "k", "v").expect("committed");
}

#[test]
fn a_node_with_ten_thousand_databases_closes_soon_and_has_them_when_it_opens_again() {
    let mut group = Group::on_disk(1, STEADY);
    for part in 0..100_u8 {
        let made = group.master().write(|txn| {
            (0..100_u8).try_for_each(|n| txn.database(&format!("{part}/{n}"))?.put("k", [n]))
        });
        let _token = made.expect("committed");
    }
    let began = Instant::now();
    group.close(0);
    // Takes a second or two; 40 s if Noxu searches all trees for each node.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    group.reopen(0).expect("opened");
    group.wait_ready();
    let names = group.master().read(ConsistencyPolicy::Linearizable, |s| {
        let found = s.database("99/99")?.get("k")?;
        assert_eq!(found.as_deref(), Some(&[99][..]));
        s.list_databases()
    });
    assert_eq!(names.expect("read").len(), 10_000);
}
