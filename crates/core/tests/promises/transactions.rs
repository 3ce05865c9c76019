//! Transactions without a function, and the limits of transactions.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use steadfast::engine::MemoryStore;
use steadfast::limits::{
    TRANSACTION_DATABASES_MAX, TRANSACTION_KEYS_MAX, TRANSACTION_READS_MAX, VALUE_BYTES_MAX,
};
use steadfast::machine::Machine;
use steadfast::{
    CommitToken, ConsistencyPolicy, OpenTransaction, Outcome, ReadError, ReplicatedEnvironment,
    Role, Scan, TokenOutcome, Transaction, TransactionDatabase, WriteError,
};

use crate::engine::{Scanned, Watch, Watched};
use crate::single::single_operations;
use crate::support::{Env, Group, STEADY, Storage, eventually, get, in_time, name, number, put};

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;

fn begin(node: &Env) -> OpenTransaction {
    node.begin_transaction().expect("begun")
}

/// Works both in a function passed to `write` and in an open transaction.
fn raise(txn: &Transaction, key: &str) -> Result<u64, WriteError> {
    let database = txn.database("d")?;
    let raised = number(database.get(key)?) + 1;
    database.put(key, raised.to_le_bytes())?;
    Ok(raised)
}

pub(crate) fn value(node: &Env, key: &str) -> u64 {
    number(get(node, LINEARIZABLE, key).expect("read"))
}

fn commits_and_shows(group: &Group) {
    let node = group.master();
    let _token = put(node, "first", "v").expect("the database exists");
    let open = begin(node);
    assert_eq!(raise(&open, "n").expect("raised"), 1);
    assert_eq!(raise(&open, "n").expect("raised"), 2);
    assert_eq!(value(node, "n"), 0);
    // On another thread, while others make unrelated writes.
    let token = std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            assert_eq!(raise(&open, "n").expect("raised"), 3);
            let _token = put(node, "other", "v").expect("committed");
            open.commit()
        });
        other.join().expect("no panic").expect("committed")
    });
    for node in group.open_nodes() {
        let seen = node.read(LINEARIZABLE, |snapshot| {
            assert!(snapshot.vlsn() >= token.vlsn);
            snapshot.database("d")?.get("n")
        });
        assert_eq!(number(seen.expect("read")), 3);
    }
    group.digest();
}

#[test]
fn an_open_transaction_is_seen_when_it_has_been_committed() {
    commits_and_shows(&Group::in_memory(3, STEADY));
}

#[test]
fn an_open_transaction_is_seen_when_it_has_been_committed_in_noxu() {
    let group = Group::on_disk(3, STEADY);
    commits_and_shows(&group);
    one_of_two_conflicts(&group);
    single_operations(&group);
}

#[test]
fn an_open_transaction_lives_across_awaits_of_a_task_that_moves() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master().clone();
    let task = group.runtime.spawn(async move {
        let open = node.begin_transaction_async().await?;
        let database = open.database("d")?;
        for n in 0..5_u8 {
            database.put([n], [n])?;
            tokio::task::yield_now().await;
            assert_eq!(database.iter().count(), usize::from(n) + 1);
        }
        drop(database);
        open.commit_async().await
    });
    let _token = in_time("the task", {
        let handle = group.runtime.handle().clone();
        move || handle.block_on(task)
    })
    .expect("no panic")
    .expect("committed");
    assert_eq!(
        get(group.master(), LINEARIZABLE, [4]).expect("read"),
        Some(vec![4])
    );
}

#[test]
fn an_open_transaction_that_is_dropped_or_aborted_leaves_nothing() {
    let group = Group::in_memory(3, &[("flush_bytes", 1024), ("flush_interval_ms", 1)]);
    let node = group.master();
    let _token = put(node, "n", 7_u64.to_le_bytes()).expect("committed");
    let before = (group.digest(), node.status().vlsn);
    let abandon: [fn(OpenTransaction); 3] = [drop, OpenTransaction::abort, |open| {
        std::thread::spawn(move || drop(open))
            .join()
            .expect("no panic");
    }];
    for abandon in abandon {
        let open = begin(node);
        raise(&open, "n").expect("raised");
        open.database("new")
            .and_then(|new| new.put("k", "v"))
            .expect("put");
        abandon(open);
    }
    assert_eq!((group.digest(), node.status().vlsn), before);
    // No snapshot is left that would keep flushed versions in the window.
    let _token = put(node, "after", "v").expect("committed");
    eventually("everything flushed", || node.status().window_bytes == 0);
    assert_eq!(value(node, "n"), 7);
}

fn one_of_two_conflicts(group: &Group) {
    let node = group.master();
    let (one, two) = (begin(node), begin(node));
    let seen = [&one, &two].map(|open| raise(open, "both").expect("raised"));
    assert_eq!(seen, [1, 1]);
    let _token = one.commit().expect("committed");
    let refused = two.commit().expect_err("it read what the first one wrote");
    assert!(matches!(refused, WriteError::Conflict), "{refused:?}");
    assert!(refused.is_retryable());
    assert_eq!(refused.outcome(), Outcome::NotCommitted);
    assert_eq!(value(node, "both"), 1);
    let again = begin(node);
    assert_eq!(raise(&again, "both").expect("raised"), 2);
    let _token = again.commit().expect("committed");
    assert_eq!(value(node, "both"), 2);
}

#[test]
fn of_two_open_transactions_that_read_and_write_the_same_key_one_conflicts() {
    one_of_two_conflicts(&Group::in_memory(3, STEADY));
}

#[test]
fn two_open_transactions_that_read_both_keys_and_write_one_each_never_both_pass() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let (one, two) = (begin(node), begin(node));
    for (open, own) in [(&one, "a"), (&two, "b")] {
        let database = open.database("d").expect("a database");
        assert_eq!(database.get("a").expect("read"), None);
        assert_eq!(database.get("b").expect("read"), None);
        database.put(own, "off").expect("put");
    }
    let _token = two.commit().expect("committed");
    assert!(matches!(one.commit(), Err(WriteError::Conflict)));
}

#[test]
fn a_key_that_comes_or_goes_in_a_range_that_was_read_is_a_conflict() {
    type Read = fn(Scan<'_>) -> usize;
    let reads: [Read; 3] = [
        |scan| scan.count(),
        |scan| scan.reverse().count(),
        |scan| scan.limit(1_000).count(),
    ];
    let group = Group::in_memory(1, &[("flush_bytes", 1024), ("flush_interval_ms", 1)]);
    let node = group.master();
    let filled = node.write(|txn| {
        let database = txn.database("d")?;
        (0..600).try_for_each(|n| database.put(format!("key {n:03}"), "v"))
    });
    let _token = filled.expect("committed");
    let conflicts = |read: Read, change: &dyn Fn(&Transaction) -> Result<(), WriteError>| {
        let open = begin(node);
        let database = open.database("d").expect("a database");
        assert!(read(database.prefix("key ")) >= 600);
        database.put("sum", "v").expect("put");
        drop(database);
        let _token = node.write(change).expect("committed");
        matches!(open.commit(), Err(WriteError::Conflict))
    };
    for read in reads {
        for place in ["key 000a", "key 300a", "key 599a"] {
            assert!(
                conflicts(read, &|txn| txn.database("d")?.put(place, "v")),
                "{place} came"
            );
            assert!(
                conflicts(read, &|txn| txn.database("d")?.delete(place)),
                "{place} went"
            );
        }
        assert!(
            !conflicts(read, &|txn| txn.database("d")?.put("kez", "v")),
            "outside"
        );
        assert!(
            !conflicts(read, &|txn| txn.database("e")?.put("key 1", "v")),
            "elsewhere"
        );
    }
}

#[test]
fn an_open_transaction_on_a_master_that_is_deposed_says_so_at_its_commit() {
    let group = Group::in_memory(3, &[]);
    let old = group.master_except(None);
    let _token = put(group.node(old), "n", 1_u64.to_le_bytes()).expect("committed");
    let open = begin(group.node(old));
    raise(&open, "n").expect("raised");
    group.network.isolate(&name(old));
    let new = group.master_except(Some(old));
    group.network.heal(&name(old));
    eventually("the deposed master follows", || {
        group.node(old).state().role == Role::Replica
    });
    let refused = open.commit().expect_err("the session is over");
    let is_named = matches!(
        refused,
        WriteError::NotMaster { .. } | WriteError::NotCommitted { .. }
    );
    assert!(is_named, "{refused:?}");
    assert!(refused.is_retryable());
    assert_eq!(refused.outcome(), Outcome::NotCommitted);
    assert_eq!(value(group.node(new), "n"), 1);
    let replica = (0..3).find(|at| *at != group.master_except(None));
    let open = begin(group.node(replica.expect("a replica")));
    raise(&open, "n").expect("raised");
    let _token = open.commit().expect("the master has it");
    assert_eq!(value(group.node(new), "n"), 2);
}

#[test]
fn an_open_transaction_that_is_too_old_is_told_the_limit_at_its_next_read_and_at_its_commit() {
    let group = Group::in_memory(1, &[("snapshot_age_max_ms", 50)]);
    let node = group.master();
    let _token = put(node, "n", 1_u64.to_le_bytes()).expect("committed");
    let (reading, writing) = (begin(node), begin(node));
    raise(&writing, "n").expect("raised");
    let mut told = None;
    eventually("it is too old", || {
        let read = reading.database("d").and_then(|database| database.get("n"));
        told = read.err();
        told.is_some()
    });
    for error in [told, writing.commit().err()] {
        let error = error.expect("too old");
        let age_max = Duration::from_millis(50);
        assert!(
            matches!(error, WriteError::TooOld { age_max: told } if told == age_max),
            "{error:?}"
        );
        assert!(error.is_retryable());
        assert_eq!(error.outcome(), Outcome::NotCommitted);
    }
    let read = node.read(
        ConsistencyPolicy::Eventual,
        |snapshot| -> Result<_, ReadError> {
            eventually("it is too old", || {
                matches!(
                    snapshot.list_databases(),
                    Err(ReadError::SnapshotTooOld { .. })
                )
            });
            Ok(())
        },
    );
    read.expect("what the function returned");
    assert_eq!(value(node, "n"), 1);
}

#[test]
fn an_open_transaction_on_an_environment_that_closes_says_closed() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let open = begin(node);
    raise(&open, "n").expect("raised");
    node.close().expect("closed");
    let read = open.database("d").and_then(|database| database.get("m"));
    assert!(matches!(read, Err(WriteError::Closed)), "{read:?}");
    assert!(matches!(open.commit(), Err(WriteError::Closed)));
    assert!(matches!(
        node.begin_transaction().err(),
        Some(WriteError::Closed)
    ));
}

#[test]
fn sixty_four_threads_that_raise_one_counter_all_finish() {
    let group = Group::in_memory(3, STEADY);
    let node = group.master().clone();
    let raised = in_time("all threads", move || {
        let barrier = Barrier::new(64);
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..4 {
                        let raised = node.write(|txn| {
                            let raised = raise(txn, "hot")?;
                            // Long enough for the others to get between the read and the commit.
                            std::thread::yield_now();
                            raise(txn, "hot").map(|again| assert_eq!(again, raised + 1))
                        });
                        let _token = raised.expect("committed");
                    }
                });
            }
        });
        value(&node, "hot")
    });
    assert_eq!(raised, 64 * 4 * 2);
}

#[derive(Debug, thiserror::Error)]
enum SaleError {
    #[error("{left} are left")]
    SoldOut { left: u64 },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

#[test]
fn an_error_of_ones_own_aborts_the_transaction_and_comes_back_as_it_was() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let sold = node.write(|txn| -> Result<(), SaleError> {
        let left = raise(txn, "sold")?;
        Err(SaleError::SoldOut { left })
    });
    let error = sold.expect_err("aborted");
    assert!(matches!(error, SaleError::SoldOut { left: 1 }), "{error}");
    assert_eq!(value(node, "sold"), 0);
    let read = node.read(LINEARIZABLE, |snapshot| {
        let left = snapshot.database("d")?.iter().count() as u64;
        Err::<(), _>(SaleError::SoldOut { left })
    });
    let error = read.expect_err("what the function returned");
    assert!(matches!(error, SaleError::SoldOut { left: 0 }), "{error}");
    let refused = node.write(|txn| -> Result<(), SaleError> {
        Ok(txn.database("d")?.put("k", vec![0; VALUE_BYTES_MAX + 1])?)
    });
    let error = refused.expect_err("too large");
    assert!(matches!(
        error,
        SaleError::Write(WriteError::TooLarge { .. })
    ));
}

/// Another client's write, which a transaction that runs on this thread cannot make.
fn put_elsewhere(node: &Env, key: &str, value: u64) -> CommitToken {
    let put = || put(node, key, value.to_le_bytes());
    let put = std::thread::scope(|scope| scope.spawn(put).join());
    put.expect("no panic").expect("committed")
}

#[test]
fn a_write_returns_what_the_run_that_was_committed_returned() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let mut runs = 0;
    let written = node.write(|txn| {
        let raised = raise(txn, "n")?;
        runs += 1;
        if runs == 1 {
            let _token = put_elsewhere(node, "n", 9);
        }
        Ok::<_, WriteError>((runs, raised))
    });
    let written = written.expect("committed");
    assert_eq!(written.value, (2, 10));
    assert_eq!(
        node.outcome(written.token).expect("known"),
        TokenOutcome::Committed
    );
}

#[test]
fn a_transaction_that_wrote_nothing_takes_no_vlsn_and_is_validated_like_any_other() {
    let mut group = Group::on_disk(1, &[]);
    let node = group.master();
    let look = |node: &Env| node.write(|txn| txn.database("d")?.get("n"));
    let of_nothing = look(node).expect("committed");
    let first = put(node, "n", 1_u64.to_le_bytes()).expect("committed");
    assert_eq!(first.vlsn.0, of_nothing.token.vlsn.0 + 1);
    for _ in 0..3 {
        let looked = look(node).expect("committed");
        assert_eq!(looked.token, first);
        assert_eq!(number(looked.value), 1);
    }
    let mut runs = 0;
    let looked = node.write(|txn| {
        let found = number(txn.database("d")?.get("n")?);
        runs += 1;
        if runs == 1 {
            let _token = put_elsewhere(node, "n", 2);
        }
        Ok::<_, WriteError>(found)
    });
    let looked = looked.expect("committed");
    assert_eq!((looked.value, runs), (2, 2));
    assert_eq!(looked.token.vlsn, first.vlsn.next());
    group.close(0);
    group.reopen(0).expect("opened");
    let again = look(group.master()).expect("committed");
    assert_eq!(
        again.token, looked.token,
        "the term of the write, not the newest"
    );
}

#[test]
fn the_keys_that_a_transaction_may_write_are_bounded_and_the_error_says_how_many() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let fill = |keys: usize| {
        node.write(|txn| {
            let database = txn.database("d")?;
            fill_with(&database, keys)?;
            // The same key again does not count twice.
            database.put(0_usize.to_be_bytes(), "again")
        })
    };
    // The first write also makes catalog entries, which do not count.
    let refused = fill(TRANSACTION_KEYS_MAX + 1).expect_err("one too many");
    let is_named =
        matches!(refused, WriteError::TooManyKeys { max } if max == TRANSACTION_KEYS_MAX);
    assert!(is_named && !refused.is_retryable(), "{refused:?}");
    assert!(
        refused
            .to_string()
            .contains(&TRANSACTION_KEYS_MAX.to_string())
    );
    let _token = fill(TRANSACTION_KEYS_MAX).expect("committed");
    let rows = node.read(LINEARIZABLE, |s| {
        Ok::<_, ReadError>(s.database("d")?.iter().count())
    });
    assert_eq!(rows.expect("read"), TRANSACTION_KEYS_MAX);
    let emptied = node.write(|txn| {
        let database = txn.database("d")?;
        (0..TRANSACTION_KEYS_MAX).try_for_each(|n| database.delete(n.to_be_bytes()))?;
        // What was written before the database lost its name no longer counts.
        txn.truncate_database("d")?;
        fill_with(&txn.database("d")?, TRANSACTION_KEYS_MAX)
    });
    let _token = emptied.expect("committed");
}

fn fill_with(database: &TransactionDatabase<'_>, keys: usize) -> Result<(), WriteError> {
    (0..keys).try_for_each(|n| database.put(n.to_be_bytes(), ""))
}

#[test]
fn the_databases_that_a_transaction_may_create_and_drop_are_bounded_and_the_error_says_how_many() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let change = |databases: usize| {
        node.write(|txn| {
            // Created and dropped: two changes each.
            (0..databases / 2).try_for_each(|n| {
                txn.database(&n.to_string())?.put("k", "v")?;
                txn.drop_database(&n.to_string()).map(drop)
            })
        })
    };
    let refused = change(TRANSACTION_DATABASES_MAX + 2).expect_err("too many");
    let is_named =
        matches!(refused, WriteError::TooManyDatabases { max } if max == TRANSACTION_DATABASES_MAX);
    assert!(is_named && !refused.is_retryable(), "{refused:?}");
    let _token = change(TRANSACTION_DATABASES_MAX).expect("committed");
}

#[test]
fn the_keys_that_a_transaction_may_read_are_bounded_and_a_scan_counts_once() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let filled = node.write(|txn| {
        let database = txn.database("d")?;
        (0..5_000_u32).try_for_each(|n| database.put(n.to_be_bytes(), ""))
    });
    let _token = filled.expect("committed");
    let open = begin(node);
    let database = open.database("d").expect("a database");
    for _ in 0..10 {
        assert_eq!(database.iter().count(), 5_000);
        assert_eq!(database.iter().reverse().count(), 5_000);
    }
    let mut reads = 0;
    let refused = (0_usize..).find_map(|n| {
        reads = n;
        database.get(n.to_le_bytes()).err()
    });
    // Besides the 20 scans. The database name does not count.
    assert_eq!(reads, TRANSACTION_READS_MAX - 20);
    let refused = refused.expect("refused");
    let is_named = matches!(
        refused,
        WriteError::Read(ReadError::TooManyReads { max }) if max == TRANSACTION_READS_MAX
    );
    assert!(is_named && !refused.is_retryable(), "{refused:?}");
    drop(database);
    // A snapshot is never checked for conflicts, and may read as much as it likes.
    let read = node.read(LINEARIZABLE, |snapshot| -> Result<_, ReadError> {
        let database = snapshot.database("d")?;
        let keys = 0..TRANSACTION_READS_MAX + 10;
        keys.clone()
            .try_for_each(|n| database.get(n.to_le_bytes()).map(|_| ()))
    });
    read.expect("read");
}

/// Size in bytes of the largest scan result.
#[derive(Default)]
struct Largest(AtomicUsize);

impl Watch for Largest {
    fn scan(&self, scan: &dyn Fn() -> Scanned) -> Scanned {
        let rows = scan()?;
        let bytes = rows.iter().map(|(key, value)| key.len() + value.len());
        self.0.fetch_max(bytes.sum(), Ordering::SeqCst);
        Ok(rows)
    }
}

#[test]
fn a_scan_of_large_values_holds_few_of_them_at_a_time() {
    let numbers = &[("flush_bytes", 1024), ("flush_interval_ms", 1)];
    let mut group = Group::unopened(vec![Storage::memory()], numbers, None);
    let largest = Arc::<Largest>::default();
    let machine = Machine {
        engines: Arc::new(Watched(MemoryStore::new(), Arc::clone(&largest))),
        ..group.machine(0)
    };
    let opened = ReplicatedEnvironment::open_on(group.config(0), machine);
    group.nodes[0] = Some(group.runtime.block_on(opened).expect("opened"));
    group.wait_ready();
    let node = group.master();
    for n in 0..40_u8 {
        let _token = put(node, [n], vec![n; 500_000]).expect("committed");
    }
    eventually("everything flushed", || node.status().window_bytes == 0);
    let check = |scan: Scan<'_>, mut expected: Vec<u8>| {
        for row in scan {
            let (key, value) = row?;
            assert!(key[..] == [expected.remove(0)] && value[..] == vec![key[0]; 500_000]);
        }
        assert_eq!(expected, Vec::<u8>::new());
        Ok(())
    };
    let (forward, reverse) = (|| (0..40).collect(), || (0..40).rev().collect());
    let read = node.read(LINEARIZABLE, |snapshot| -> Result<_, ReadError> {
        let database = snapshot.database("d")?;
        check(database.iter(), forward())?;
        check(database.iter().reverse(), reverse())
    });
    read.expect("read");
    let written = node.write(|txn| {
        let database = txn.database("d")?;
        check(database.iter(), forward())?;
        Ok::<_, WriteError>(check(database.iter().reverse(), reverse())?)
    });
    let _token = written.expect("committed");
    let open = begin(node);
    let database = open.database("d").expect("a database");
    check(database.iter(), forward()).expect("read");
    check(database.iter().reverse(), reverse()).expect("read");
    // A megabyte, plus the value that fills it.
    let largest = largest.0.load(Ordering::SeqCst);
    assert!(
        (500_001..=1_600_000).contains(&largest),
        "{largest} bytes at once"
    );
}
