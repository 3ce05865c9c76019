//! Additions to counters: they do not conflict, and lose nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::{
    ConsistencyPolicy, CounterError, OpenTransaction, Outcome, ReadError, TokenOutcome,
    Transaction, TransactionDatabase, WriteError,
};

use crate::support::{Env, Group, Nodes, PATIENCE, STEADY, Storage, eventually, put};

const LINEARIZABLE: ConsistencyPolicy = ConsistencyPolicy::Linearizable;

/// Everything that is committed goes into the engine as soon as nobody needs it in memory.
const FLUSHED_AT_ONCE: &[(&str, u64)] = &[("flush_bytes", 1024), ("flush_interval_ms", 1)];

fn count(value: Option<&Bytes>) -> i64 {
    value.map_or(0, |value| {
        i64::from_le_bytes(value[..].try_into().expect("a counter"))
    })
}

fn value(node: &Env, key: &str) -> Option<i64> {
    let value = node.database("d").get(LINEARIZABLE, key).expect("read");
    value.map(|value| count(Some(&value)))
}

fn add(txn: &Transaction, key: &str, delta: i64) -> Result<(), WriteError> {
    txn.database("d")?.add(key, delta)
}

#[test]
fn many_threads_add_to_one_counter_and_none_has_to_run_again() {
    let mut group = Group::unopened(
        (0..3).map(|_| Storage::memory()).collect(),
        FLUSHED_AT_ONCE,
        None,
    );
    for at in 0..3 {
        group.reopen(at).expect("opened");
    }
    group.wait_ready();
    let node = group.master();
    let _token = put(node, "other", "the database exists").expect("committed");
    let runs = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..64_i64 {
            let runs = &runs;
            scope.spawn(move || {
                for _ in 0..10 {
                    let written = node.write(|txn| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        add(txn, "n", thread)?;
                        add(txn, "n", -1)
                    });
                    let _token = written.expect("committed");
                    let _token = node.database("d").add("n", 1).expect("committed");
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::Relaxed), 640, "one for each write");
    for node in group.open_nodes() {
        assert_eq!(value(node, "n"), Some(10 * 63 * 64 / 2));
    }
    group.digest();
}

/// Adds 1 until it is known to be committed; another node is asked when one is not the master.
fn add_once(nodes: &Nodes) {
    let mut at = 0;
    let mut is_done = false;
    eventually("an addition", || {
        at += 1;
        let Some(node) = nodes.get(at) else {
            return false;
        };
        is_done = match node.database("d").add("n", 1) {
            Ok(_) => true,
            Err(error) => match error.outcome() {
                Outcome::NotCommitted => false,
                Outcome::Committed(_) => true,
                Outcome::Unknown(token) => {
                    let mut outcome = None;
                    eventually("the outcome of a token", || {
                        at += 1;
                        let node = nodes.get(at);
                        outcome = node.and_then(|node| node.outcome(token).ok());
                        outcome.is_some()
                    });
                    matches!(outcome, Some(TokenOutcome::Committed))
                }
                Outcome::Lost => panic!("nothing is forwarded: {error}"),
            },
        };
        is_done
    });
}

#[test]
fn no_addition_is_lost_or_done_twice_when_the_master_changes() {
    // Nothing is forwarded, so each has a token.
    let mut group = Group::in_memory(3, &[("forward_timeout_ms", 0)]);
    let _token = put(group.master(), "other", "the database exists").expect("committed");
    let nodes = group.shared_nodes();
    let done = AtomicI64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    add_once(&nodes);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for after in [50, 150, 250] {
            eventually("additions", || done.load(Ordering::Relaxed) >= after);
            let master = group.master_except(None);
            group.close(master);
            group.reopen(master).expect("opened");
            group.node(master).wait_ready(PATIENCE).expect("ready");
        }
    });
    assert_eq!(value(group.master(), "n"), Some(400));
    group.digest();
}

#[test]
fn an_addition_counts_from_what_is_there_when_it_commits() {
    let group = Group::in_memory(1, FLUSHED_AT_ONCE);
    let node = group.master();
    let database = node.database("d");
    let _token = database.add("n", 5).expect("committed");
    let commit_after = |change: &dyn Fn()| {
        let open = node.begin_transaction().expect("begun");
        add(&open, "n", 10).expect("added");
        change();
        let _token = open.commit().expect("no conflict");
        value(node, "n")
    };
    assert_eq!(commit_after(&|| ()), Some(15));
    let several = || {
        for _ in 0..100 {
            let _token = database.add("n", 1).expect("committed");
        }
    };
    assert_eq!(commit_after(&several), Some(125));
    let replaced = || {
        let _token = database.put("n", 7_i64.to_le_bytes()).expect("committed");
    };
    assert_eq!(commit_after(&replaced), Some(17));
    let deleted = || {
        let _token = database.delete("n").expect("committed");
    };
    assert_eq!(commit_after(&deleted), Some(10));
    eventually("everything flushed", || node.status().window_bytes == 0);
    assert_eq!(commit_after(&|| ()), Some(20), "from the engine");
}

/// What a transaction does with the counter besides adding to it.
type Use = fn(&TransactionDatabase<'_>) -> Result<(), WriteError>;

#[test]
fn whoever_reads_or_replaces_a_counter_that_it_adds_to_conflicts_with_others() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let uses: [(&str, Use); 5] = [
        ("get", |database| {
            let seen = database.get("n")?;
            assert_eq!(count(seen.as_ref()), 11, "with its own addition");
            Ok(())
        }),
        ("scan", |database| {
            let rows: Vec<_> = database.range("n"..="n").collect::<Result<_, _>>()?;
            assert_eq!(count(Some(&rows[0].1)), 11, "with its own addition");
            Ok(())
        }),
        ("put", |database| database.put("n", 0_i64.to_le_bytes())),
        ("delete", |database| database.delete("n")),
        ("excess", |database| {
            let error = database.add("n", i64::MAX).expect_err("too much");
            let is_overflow = matches!(
                error,
                WriteError::Counter(CounterError::Overflow { value: 11, .. })
            );
            assert!(is_overflow, "{error:?}");
            Ok(())
        }),
    ];
    for (what, uses) in uses {
        let database = node.database("d");
        let _token = database.put("n", 1_i64.to_le_bytes()).expect("committed");
        let open = node.begin_transaction().expect("begun");
        let own = open.database("d").expect("a database");
        own.add("n", 10).expect("added");
        uses(&own).expect(what);
        own.add("other", 1).expect("added");
        let _token = database.add("n", 100).expect("committed");
        let refused = open.commit().expect_err(what);
        assert!(
            matches!(refused, WriteError::Conflict),
            "{what}: {refused:?}"
        );
        assert_eq!(value(node, "n"), Some(101), "{what}");
        // The same with nobody in between.
        let _token = database.put("n", 1_i64.to_le_bytes()).expect("committed");
        let written = node.write(|txn| {
            let own = txn.database("d")?;
            own.add("n", 10)?;
            uses(&own)
        });
        let _token = written.expect(what);
        let left = [("put", Some(0)), ("delete", None)];
        let expected = left.iter().find(|(of, _)| *of == what);
        assert_eq!(
            value(node, "n"),
            expected.map_or(Some(11), |(_, left)| *left)
        );
    }
    assert_eq!(value(node, "other"), None);
}

#[test]
fn what_a_transaction_has_written_itself_is_what_it_adds_to() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let _token = node.database("d").add("n", 1000).expect("committed");
    let open = node.begin_transaction().expect("begun");
    let own = open.database("d").expect("a database");
    own.put("n", 5_i64.to_le_bytes()).expect("put");
    own.add("n", 2).expect("added");
    assert_eq!(count(own.get("n").expect("read").as_ref()), 7);
    own.delete("n").expect("deleted");
    own.add("n", 3).expect("added");
    let _token = node.database("d").add("n", 1).expect("committed");
    let _token = open.commit().expect("it has read nothing of others");
    assert_eq!(value(node, "n"), Some(3));
    let written = node.write(|txn| {
        add(txn, "n", 1)?;
        txn.truncate_database("d")?;
        add(txn, "n", 8)
    });
    let _token = written.expect("committed");
    assert_eq!(value(node, "n"), Some(8));
    let _token = node.database("new").add("n", -1).expect("committed");
    let new = node.database("new").get(LINEARIZABLE, "n").expect("read");
    assert_eq!(count(new.as_ref()), -1);
}

#[test]
fn what_cannot_be_added_is_a_typed_error_and_nothing_is_written() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master();
    let database = node.database("d");
    let _token = database.put("text", "seven").expect("committed");
    let refused = database.add("text", 1).expect_err("no counter");
    let no_counter = CounterError::NotACounter {
        key: "text".into(),
        bytes: 5,
    };
    assert!(matches!(&refused, WriteError::Counter(error) if *error == no_counter));
    assert_eq!(refused.outcome(), Outcome::NotCommitted);
    assert!(!refused.is_retryable());
    // Each alone is possible; which of them is too much shows only when they are numbered.
    let half = i64::MAX / 2 + 1;
    let (one, two) = (
        node.begin_transaction().expect("begun"),
        node.begin_transaction().expect("begun"),
    );
    for open in [&one, &two] {
        add(open, "n", half).expect("added");
        add(open, "m", 1).expect("added");
    }
    let _token = one.commit().expect("committed");
    let refused = two.commit().expect_err("too much");
    let overflow = CounterError::Overflow {
        key: "n".into(),
        value: half,
        delta: half.into(),
    };
    assert!(
        matches!(&refused, WriteError::Counter(error) if *error == overflow),
        "{refused:?}"
    );
    // The value stops being a counter while the addition is under way.
    let open = node.begin_transaction().expect("begun");
    add(&open, "m", 1).expect("added");
    let _token = database.put("m", "none").expect("committed");
    let refused = open.commit().expect_err("no counter");
    assert!(
        matches!(
            refused,
            WriteError::Counter(CounterError::NotACounter { bytes: 4, .. })
        ),
        "{refused:?}"
    );
    assert_eq!(value(node, "n"), Some(half));
    let seen = database.get(LINEARIZABLE, "m").expect("read");
    assert_eq!(seen.as_deref(), Some(&b"none"[..]));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add(u8, i64),
    Put(u8, i64),
    PutText(u8),
    Delete(u8),
    Get(u8),
    Scan,
}

impl Step {
    fn any(chance: &mut StdRng) -> Self {
        let (key, number) = (chance.random_range(0..3), chance.random_range(-9..9));
        match chance.random_range(0..12) {
            0..6 => Self::Add(key, number),
            6 => Self::Put(key, number),
            7 => Self::PutText(key),
            8 => Self::Delete(key),
            9..11 => Self::Get(key),
            _ => Self::Scan,
        }
    }

    /// Returns what the transaction learns.
    fn run(self, database: &TransactionDatabase<'_>) -> String {
        match self {
            Self::Add(key, delta) => match database.add([key], delta) {
                Err(WriteError::Counter(_)) => "no counter".to_owned(),
                added => {
                    added.expect("added");
                    String::new()
                }
            },
            Self::Put(key, number) => {
                database.put([key], number.to_le_bytes()).expect("put");
                String::new()
            }
            Self::PutText(key) => {
                database.put([key], "text").expect("put");
                String::new()
            }
            Self::Delete(key) => {
                database.delete([key]).expect("deleted");
                String::new()
            }
            Self::Get(key) => format!("{:?}", database.get([key]).expect("read")),
            Self::Scan => {
                let rows: Result<Vec<_>, _> = database.range([1]..).collect();
                format!("{:?}", rows.expect("read"))
            }
        }
    }

    fn run_on(self, model: &mut BTreeMap<Bytes, Bytes>) -> String {
        let at = |key: u8| Bytes::copy_from_slice(&[key]);
        let number = |number: i64| Bytes::copy_from_slice(&number.to_le_bytes());
        match self {
            Self::Add(key, delta) => match model.get(&at(key)) {
                Some(value) if value.len() != 8 => return "no counter".to_owned(),
                old => {
                    let sum = count(old) + delta;
                    model.insert(at(key), number(sum));
                }
            },
            Self::Put(key, value) => {
                model.insert(at(key), number(value));
            }
            Self::PutText(key) => {
                model.insert(at(key), "text".into());
            }
            Self::Delete(key) => {
                model.remove(&at(key));
            }
            Self::Get(key) => return format!("{:?}", model.get(&at(key))),
            Self::Scan => {
                let rows: Vec<_> = model.range(at(1)..).collect();
                return format!("{rows:?}");
            }
        }
        String::new()
    }
}

/// A transaction, with what it has done and learned.
type Open = (OpenTransaction, Vec<(Step, String)>);

/// Three transactions at a time, step by step. Whichever commits has learned, and leaves, what it would
/// have if it had run alone at the moment of its commit.
#[test]
fn transactions_with_additions_are_as_if_run_one_after_the_other() {
    let group = Group::in_memory(1, FLUSHED_AT_ONCE);
    let node = group.master();
    let _token = node.database("d").put([0], "text").expect("committed");
    let mut model = BTreeMap::from([(Bytes::from_static(&[0]), Bytes::from("text"))]);
    let mut chance = StdRng::seed_from_u64(11);
    let mut open: [Option<Open>; 3] = [None, None, None];
    let mut ends = BTreeMap::<&str, usize>::new();
    for _ in 0..3_000 {
        let slot = &mut open[chance.random_range(0..3)];
        let is_over = chance.random_bool(0.25);
        let Some((transaction, mut learned)) = slot.take() else {
            *slot = Some((node.begin_transaction().expect("begun"), Vec::new()));
            continue;
        };
        if !is_over {
            let step = Step::any(&mut chance);
            let database = transaction.database("d").expect("a database");
            learned.push((step, step.run(&database)));
            drop(database);
            *slot = Some((transaction, learned));
            continue;
        }
        let mut after = model.clone();
        let mut replay = learned
            .iter()
            .map(|(step, seen)| (step.run_on(&mut after), seen));
        let is_right = replay.all(|(seen_alone, seen)| seen_alone == *seen);
        let end = match transaction.commit() {
            Ok(_) => {
                assert!(is_right, "{learned:?} on {model:?}");
                model = after;
                "committed"
            }
            Err(WriteError::Conflict) => "conflict",
            Err(WriteError::Counter(_)) => {
                assert!(!is_right, "{learned:?} on {model:?}");
                "no counter"
            }
            Err(error) => panic!("{error}"),
        };
        *ends.entry(end).or_default() += 1;
        let rows = node.read(LINEARIZABLE, |snapshot| -> Result<_, ReadError> {
            snapshot
                .database("d")?
                .iter()
                .collect::<Result<BTreeMap<_, _>, _>>()
        });
        assert_eq!(rows.expect("read"), model, "{learned:?}");
    }
    let often = |end| ends.get(end).is_some_and(|count| *count > 3);
    assert!(
        often("committed") && often("conflict") && often("no counter"),
        "{ends:?}"
    );
}
