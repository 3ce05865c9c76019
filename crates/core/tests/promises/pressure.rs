//! Bounds on memory hold, and nobody who waits for one waits for ever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use steadfast::engine::{EngineError, MemoryStore};
use steadfast::machine::Machine;
use steadfast::{ConsistencyPolicy, Role, WriteError};

use crate::engine::{Watch, Watched};
use crate::support::{
    Env, Group, PATIENCE, Storage, eventually, get, in_time, name, number, put, stays,
};

const BOUND_BYTES: u64 = 1024 * 1024;

#[test]
fn writers_that_outrun_the_disk_wait_within_the_bound_and_all_finish() {
    let group = Group::in_memory(
        1,
        &[
            ("commit_queue_bytes_max", BOUND_BYTES),
            ("commit_timeout_ms", 60_000),
        ],
    );
    let node = group.master();
    let disk = group.storages[0].disk();
    let _token = put(node, "first", b"").expect("committed");
    disk.hold_syncs(true);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..16)
            .map(|n| scope.spawn(move || put(node, format!("k{n}"), vec![n; 200 * 1024])))
            .collect();
        eventually("a full queue", || {
            node.status().window_bytes > BOUND_BYTES - 256 * 1024
        });
        stays("within the bound, all waiting", || {
            let is_waiting = writers.iter().all(|writer| !writer.is_finished());
            is_waiting && node.status().window_bytes < BOUND_BYTES + 64 * 1024
        });
        disk.hold_syncs(false);
        for writer in writers {
            let _token = writer.join().expect("no panic").expect("committed");
        }
    });
    let rows = node.read(ConsistencyPolicy::Linearizable, |s| {
        Ok(s.database("d")?.prefix("k").count())
    });
    assert_eq!(rows.expect("read"), 16);
}

#[test]
fn a_transaction_larger_than_the_commit_queue_is_committed_alone() {
    let group = Group::in_memory(1, &[("commit_queue_bytes_max", 1 << 20)]);
    let node = group.master().clone();
    let written = in_time("the large transaction", move || {
        put(&node, "k", vec![7; 3 << 20])
    });
    let _token = written.expect("committed");
}

#[test]
fn a_transaction_that_runs_alone_is_not_held_up_by_those_that_wait_for_it() {
    let group = Group::in_memory(1, &[("commit_queue_bytes_max", 1 << 20)]);
    let node = group.master().clone();
    let counted = in_time("all increments", move || {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let token = node.write(|txn| {
                            let db = txn.database("d")?;
                            let old = number(db.get("n")?);
                            db.put("pad", vec![0; 300 * 1024])?;
                            db.put("n", (old + 1).to_le_bytes())
                        });
                        let _token = token.expect("committed");
                    }
                });
            }
        });
        get(&node, ConsistencyPolicy::Linearizable, "n")
    });
    assert_eq!(number(counted.expect("read")), 160);
}

#[test]
fn a_transaction_that_no_segment_of_the_log_can_hold_does_not_stop_the_node() {
    let group = Group::in_memory(1, &[("log_segment_bytes", 1 << 20)]);
    let node = group.master().clone();
    in_time("both writes", move || {
        match put(&node, "k", vec![1; 3 << 20]) {
            Ok(_) | Err(WriteError::TooLarge { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        let _token = put(&node, "k", b"v").expect("committed");
    });
}

#[test]
fn a_writer_that_waits_for_room_is_told_when_the_environment_closes() {
    let group = Group::in_memory(
        1,
        &[
            ("window_bytes_max", 1 << 20),
            ("flush_bytes", 1 << 18),
            ("flush_interval_ms", 1),
        ],
    );
    let node = group.master();
    let (release, released) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (reading, begun) = mpsc::channel();
        scope.spawn(move || {
            node.read(ConsistencyPolicy::Eventual, |_| {
                reading.send(()).expect("the test lives");
                released.recv().ok();
                Ok(())
            })
        });
        begun
            .recv_timeout(PATIENCE)
            .expect("the reader holds its snapshot");
        for n in 0..2 {
            let _token = put(node, format!("k{n}"), vec![0; 700 * 1024]).expect("committed");
        }
        let writer = {
            let node = node.clone();
            std::thread::spawn(move || put(&node, "late", b"v"))
        };
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        assert!(!writer.is_finished());
        node.close().expect("closed");
        drop(release);
        eventually("the writer is told", || writer.is_finished());
        let result = writer.join().expect("no panic");
        assert!(matches!(result, Err(WriteError::Closed)), "{result:?}");
    });
}

#[test]
fn a_writer_that_waits_for_room_goes_on_when_what_was_pending_is_dropped() {
    let group = Group::in_memory(
        3,
        &[
            ("window_bytes_max", 1 << 20),
            ("flush_bytes", 1 << 18),
            ("commit_timeout_ms", 200),
        ],
    );
    let old = group.master_except(None);
    let node = group.node(old);
    group.network.isolate(&name(old));
    for n in 0..2 {
        assert!(put(node, format!("ghost{n}"), vec![0; 700 * 1024]).is_err());
    }
    assert!(node.status().window_bytes > BOUND_BYTES);
    let waiting = {
        let node = node.clone();
        std::thread::spawn(move || put(&node, "late", b"v"))
    };
    group.master_except(Some(old));
    group.network.heal(&name(old));
    eventually("the deposed master follows", || {
        node.state().role == Role::Replica
    });
    eventually("the writer is told", || waiting.is_finished());
    let told = waiting.join().expect("no panic");
    assert!(told.is_err(), "{told:?}");
}

/// Makes batches fail when it is told so.
#[derive(Default)]
struct Failing(AtomicBool);

impl Watch for Failing {
    fn before_apply(&self) -> Result<(), EngineError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(EngineError::Failed);
        }
        Ok(())
    }
}

#[test]
fn writers_that_wait_for_room_are_told_when_the_engine_fails() {
    let mut group = Group::unopened(
        vec![Storage::memory()],
        &[("window_bytes_max", 1 << 20), ("flush_bytes", 1 << 18)],
        None,
    );
    let fails = Arc::<Failing>::default();
    let machine = Machine {
        engines: Arc::new(Watched(MemoryStore::new(), Arc::clone(&fails))),
        ..group.machine(0)
    };
    let node = group
        .runtime
        .block_on(Env::open_on(group.config(0), machine));
    group.nodes[0] = Some(node.expect("opened"));
    let node = group.master().clone();
    fails.0.store(true, Ordering::Relaxed);
    let told = in_time("the writers are told", move || {
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|thread| {
                    let node = &node;
                    scope.spawn(move || {
                        (0..).find_map(|n| {
                            put(node, format!("{thread}/{n}"), vec![0; 300 * 1024]).err()
                        })
                    })
                })
                .collect();
            writers
                .into_iter()
                .map(|writer| writer.join().expect("no panic").expect("an error"))
                .collect::<Vec<_>>()
        })
    });
    for error in told {
        assert!(
            matches!(
                error,
                WriteError::Stopped { .. }
                    | WriteError::OutcomeUnknown { .. }
                    | WriteError::InsufficientAcks { .. }
                    | WriteError::NotMaster { .. }
                    | WriteError::NotCommitted { .. }
            ),
            "{error:?}"
        );
    }
}
