//! Transactions behave as if they ran one after the other, and see their own writes.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc;

use steadfast::{ConsistencyPolicy, ReadError, WriteError};

use crate::support::{Env, Group, PATIENCE, eventually, get, number, put};

const FLUSHING: &[(&str, u64)] = &[("flush_bytes", 1024), ("flush_interval_ms", 1)];

fn increment(node: &Env, key: &str) -> Result<(), WriteError> {
    let token = node.write(|txn| {
        let db = txn.database("d")?;
        let old = number(db.get(key)?);
        db.put(key, (old + 1).to_le_bytes())
    })?;
    assert!(token.token.vlsn.0 > 0);
    Ok(())
}

#[test]
fn a_counter_that_sixteen_threads_raise_counts_every_one() {
    let group = Group::in_memory(3, FLUSHING);
    let node = group.master();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..25 {
                    increment(node, "n").expect("committed");
                }
            });
        }
    });
    let total = get(node, ConsistencyPolicy::Linearizable, "n").expect("read");
    assert_eq!(number(total), 400);
}

#[test]
fn two_transactions_that_read_both_keys_and_write_one_each_never_both_pass() {
    let group = Group::in_memory(1, FLUSHING);
    let node = group.master();
    for round in 0..40 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let barrier = Barrier::new(2);
        let on_call = |own: &str, other: &str| {
            let first = AtomicU32::new(0);
            node.write(|txn| {
                let db = txn.database("d")?;
                let taken = db.get(own)?.is_some() || db.get(other)?.is_some();
                if first.fetch_add(1, Ordering::Relaxed) == 0 {
                    barrier.wait();
                }
                if taken {
                    Err(WriteError::abort("taken"))
                } else {
                    db.put(own, b"off")
                }
            })
        };
        let passed = std::thread::scope(|scope| {
            let one = scope.spawn(|| on_call(&a, &b));
            let two = scope.spawn(|| on_call(&b, &a));
            [one.join().expect("one"), two.join().expect("two")]
        });
        assert_eq!(passed.iter().filter(|result| result.is_ok()).count(), 1);
    }
}

#[test]
fn a_range_that_was_read_as_empty_gets_one_key_at_most() {
    let group = Group::in_memory(1, FLUSHING);
    let node = group.master();
    let _token = put(node, "unrelated", b"").expect("the database exists");
    for round in 0..40 {
        let barrier = Barrier::new(2);
        let book = |who: &str| {
            let first = AtomicU32::new(0);
            node.write(|txn| -> Result<_, WriteError> {
                let db = txn.database("d")?;
                let is_free = db
                    .prefix(format!("room{round}/"))
                    .next()
                    .transpose()?
                    .is_none();
                if first.fetch_add(1, Ordering::Relaxed) == 0 {
                    barrier.wait();
                }
                if is_free {
                    db.put(format!("room{round}/{who}"), b"booked")?;
                }
                Ok(())
            })
        };
        std::thread::scope(|scope| {
            let bookers = [scope.spawn(|| book("x")), scope.spawn(|| book("y"))];
            for booker in bookers {
                let _token = booker.join().expect("no panic").expect("committed");
            }
        });
        let rows = node.read(ConsistencyPolicy::Linearizable, |s| {
            Ok::<_, ReadError>(s.database("d")?.prefix(format!("room{round}/")).count())
        });
        assert_eq!(rows.expect("read"), 1, "round {round}");
    }
}

#[test]
fn a_transaction_that_always_conflicts_gets_through_and_leaves_nothing_of_its_earlier_runs() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let runs = AtomicUsize::new(0);
    let (ask, asked) = mpsc::channel::<()>();
    let (done, answered) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while asked.recv().is_ok() {
                // During the exclusive run this waits until that run is over.
                done.send(()).ok();
                increment(node, "hot").expect("committed");
            }
        });
        let ask_once = |run: usize| {
            ask.send(()).expect("the other lives");
            answered.recv().expect("the other lives");
            // Before the exclusive run, the other write gets through before this one commits.
            if run < 9 {
                let seen = run as u64 + 1;
                eventually("the other's write", || {
                    number(get(node, ConsistencyPolicy::Eventual, "hot").expect("read")) >= seen
                });
            }
        };
        let token = node.write(|txn| {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            let db = txn.database("d")?;
            let seen = number(db.get("hot")?);
            ask_once(run);
            db.put(format!("run{run}"), b"x")?;
            db.put("sum", seen.to_le_bytes())
        });
        let _token = token.expect("committed");
        drop(ask);
    });
    let rows = node.read(ConsistencyPolicy::Linearizable, |s| {
        Ok::<_, ReadError>(s.database("d")?.prefix("run").count())
    });
    assert_eq!(rows.expect("read"), 1);
    assert_eq!(runs.load(Ordering::Relaxed), 10);
}

#[test]
fn a_panic_in_a_transaction_leaves_the_node_usable() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let panicked = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                node.write(|txn| -> Result<(), WriteError> {
                    txn.database("d")?.put("k", b"v")?;
                    panic!("in the transaction");
                })
            })
            .join()
    });
    assert!(panicked.is_err());
    let _token = put(node, "after", b"v").expect("committed");
    assert_eq!(
        get(node, ConsistencyPolicy::Linearizable, "k").expect("read"),
        None
    );
}

#[test]
fn two_handles_on_a_new_database_are_the_same_database() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    let written = node.write(|txn| {
        let (one, two) = (txn.database("new")?, txn.database("new")?);
        one.put("a", b"1")?;
        assert_eq!(two.get("a")?.as_deref(), Some(&b"1"[..]));
        two.put("b", b"2")?;
        assert_eq!(one.iter().count(), 2);
        two.delete("a")
    });
    let _token = written.expect("committed");
    let rows = node.read(ConsistencyPolicy::Linearizable, |s| {
        s.database("new")?.iter().collect::<Result<Vec<_>, _>>()
    });
    let keys: Vec<_> = rows
        .expect("read")
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(keys, ["b"]);
}

#[test]
fn an_update_is_not_lost_to_a_transaction_older_than_a_snapshot_may_get() {
    let group = Group::in_memory(
        1,
        &[
            ("snapshot_age_max_ms", 10),
            ("flush_bytes", 1024),
            ("flush_interval_ms", 1),
        ],
    );
    let node = group.master();
    let _token = put(node, "n", 0u64.to_le_bytes()).expect("committed");
    let mut first = true;
    let written = node.write(|txn| {
        let db = txn.database("d")?;
        let old = number(db.get("n")?);
        if std::mem::take(&mut first) {
            let other = || put(node, "n", 100u64.to_le_bytes());
            let written = std::thread::scope(|scope| scope.spawn(other).join());
            let _token = written.expect("no panic").expect("committed");
            eventually("everything flushed", || node.status().window_bytes == 0);
        }
        db.put("n", (old + 1).to_le_bytes())
    });
    let n = number(get(node, ConsistencyPolicy::Linearizable, "n").expect("read"));
    match written {
        Ok(_) => assert_eq!(n, 101),
        Err(_) => assert_eq!(n, 100),
    }
}

#[test]
fn an_update_is_not_lost_to_one_that_waited_in_the_queue_while_the_window_was_flushed() {
    let group = Group::in_memory(
        1,
        &[
            ("commit_queue_bytes_max", 1 << 20),
            ("flush_bytes", 1024),
            ("flush_interval_ms", 1),
        ],
    );
    let node = group.master();
    let disk = group.storages[0].disk();
    let _token = put(node, "n", 0u64.to_le_bytes()).expect("committed");
    let (has_read, reads) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let slow = scope.spawn(move || {
            let mut first = true;
            node.write(|txn| {
                let db = txn.database("d")?;
                let old = number(db.get("n")?);
                if std::mem::take(&mut first) {
                    has_read.send(()).expect("the test lives");
                    gone.recv_timeout(PATIENCE).expect("told to go on");
                }
                db.put("pad", vec![0; 600 * 1024])?;
                db.put("n", (old + 1).to_le_bytes())
            })
        });
        reads.recv_timeout(PATIENCE).expect("the slow one has read");
        let _token = put(node, "n", 100u64.to_le_bytes()).expect("committed");
        disk.hold_syncs(true);
        let big = scope.spawn(move || put(node, "big", vec![0; 700 * 1024]));
        eventually("the big one in flight", || {
            node.status().window_bytes > 700 * 1024
        });
        go.send(()).expect("the slow one waits");
        // The other's version leaves the window unless the slow one, which must still be compared
        // with it, holds it there; the flush looks every 100 ms.
        for _ in 0..250 {
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
        disk.hold_syncs(false);
        let _token = big.join().expect("no panic").expect("committed");
        let _token = slow.join().expect("no panic").expect("committed");
    });
    let n = get(node, ConsistencyPolicy::Linearizable, "n").expect("read");
    assert_eq!(number(n), 101);
}
