//! Functions passed to `write` that write by other means get an error, and hold up nobody else.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use steadfast::{Durability, WriteBatch, WriteError};
use tokio::runtime::Builder;

use crate::support::{Env, Group, Release, STEADY, in_time, put};

/// A write to the environment.
type Write = fn(&Env) -> Result<(), WriteError>;

const WRITES: [(&str, Write); 7] = [
    ("a write", |env| put(env, "k", "nested").map(drop)),
    ("one of another durability", |env| {
        let put = env.write_with(Durability::NONE, |txn| {
            txn.database("d")?.put("k", "nested")
        });
        put.map(drop)
    }),
    ("a batch", |env| {
        let mut batch = WriteBatch::new();
        batch.put("d", "k", "nested");
        env.write_batch(&batch).map(drop)
    }),
    ("a single operation", |env| {
        env.database("other").put("k", "nested").map(drop)
    }),
    ("a transaction that is begun", |env| {
        env.begin_transaction().map(drop)
    }),
    ("a task on this thread", |env| {
        let runtime = Builder::new_current_thread().enable_all().build();
        let put = async { env.database("d").put_async("k", "nested").await.map(drop) };
        runtime.expect("a runtime").block_on(put)
    }),
    ("a write in a read", |env| {
        let read = |_: &_| Ok::<_, WriteError>(put(env, "k", "nested"));
        env.read(steadfast::ConsistencyPolicy::Eventual, read)?
            .map(drop)
    }),
];

#[test]
fn a_write_in_a_function_given_to_write_is_refused_at_once() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master().clone();
    for (what, write) in WRITES {
        let env = node.clone();
        in_time(what, move || {
            let written = env.write(|txn| {
                let refused = write(&env).expect_err("it is nested");
                assert!(matches!(refused, WriteError::Nested), "{what}: {refused:?}");
                assert!(!refused.is_retryable());
                txn.database("d")?.put("k", "outer")
            });
            let _token = written.expect("committed");
            // Nothing of it remains.
            write(&env).expect("it is not nested any more");
        });
    }
}

#[test]
fn a_transaction_that_is_committed_in_a_function_given_to_write_is_refused() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master().clone();
    let open = node.begin_transaction().expect("begun");
    let put = open.database("d").and_then(|d| d.put("k", "open"));
    put.expect("written");
    let mut open = Some(open);
    let written = node.write(|txn| {
        if let Some(open) = open.take() {
            let refused = open.commit();
            assert!(matches!(refused, Err(WriteError::Nested)), "{refused:?}");
        }
        txn.database("d")?.put("k", "outer")
    });
    let _token = written.expect("committed");
}

#[test]
fn a_function_may_write_to_another_environment_and_one_that_panics_leaves_nothing_behind() {
    let (group, other) = (Group::in_memory(1, STEADY), Group::in_memory(1, STEADY));
    let (node, other) = (group.master().clone(), other.master().clone());
    let written = node.write(|txn| {
        let _token = put(&other, "k", "v")?;
        let back = other.write(|_| put(&node, "k", "v").map(drop));
        assert!(matches!(back, Err(WriteError::Nested)), "{back:?}");
        txn.database("d")?.put("k", "v")
    });
    let _token = written.expect("committed");
    let panicking = std::panic::AssertUnwindSafe(|| {
        node.write(|_| -> Result<(), WriteError> { panic!("on purpose") })
    });
    std::panic::catch_unwind(panicking).expect_err("it panics");
    let _token = put(&node, "k", "v").expect("committed");
}

#[test]
fn a_function_that_waits_for_its_own_writes_elsewhere_ends_and_holds_nobody_up_for_long() {
    let group = Group::in_memory(1, STEADY);
    let node = group.master().clone();
    let waits: Mutex<Vec<Duration>> = Mutex::default();
    let (is_over, others) = (AtomicBool::new(false), AtomicU32::new(0));
    let longest = std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let _token = put(&node, "another", "v").expect("committed");
                longest = longest.max(began.elapsed());
                others.fetch_add(1, Ordering::Relaxed);
            }
            longest
        });
        let ended = Release(&is_over);
        let written = node.write(|txn| {
            txn.database("d")?.get("k")?;
            // A conflicting write on another thread, where it cannot be detected as nested.
            let began = Instant::now();
            let nested = scope.spawn(|| put(&node, "k", "nested"));
            let _token = nested.join().expect("no panic")?;
            waits.lock().expect("no panic").push(began.elapsed());
            txn.database("d")?.put("k", "outer")
        });
        drop(ended);
        let overtaken = matches!(
            written,
            Err(WriteError::Overtaken { conflicts: 11, held_off }) if held_off == Duration::from_secs(1)
        );
        assert!(overtaken, "{written:?}");
        beside.join().expect("no panic")
    });
    let waits = waits.into_inner().expect("no panic");
    // Eight conflicts among others, then three alone.
    let is_alone = |wait: &Duration| *wait >= Duration::from_millis(900);
    let first_alone = waits.iter().position(is_alone);
    assert_eq!((first_alone, waits.len()), (Some(8), 11), "{waits:?}");
    assert!(longest < Duration::from_secs(20), "{longest:?}");
    assert!(others.load(Ordering::Relaxed) > 11);
}
