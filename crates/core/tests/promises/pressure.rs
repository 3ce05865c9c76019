//! Memory bounds hold, and nobody who waits for one waits forever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use steadfast::engine::{EngineError, MemoryStore};
use steadfast::machine::Machine;
use steadfast::{ConsistencyPolicy, ReadError, ReadyError, Role, WriteError};

use crate::engine::{Watch, Watched};
use crate::support::{
    Env, Group, Numbers, Release, Storage, eventually, get, in_time, name, number, put, stays,
};

const BOUND_BYTES: u64 = 1024 * 1024;
const SMALL_WINDOW: Numbers = &[("window_bytes_max", 1 << 20), ("flush_bytes", 1 << 18)];

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
        Ok::<_, ReadError>(s.database("d")?.prefix("k").count())
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
        3,
        &[
            ("window_bytes_max", 1 << 20),
            ("flush_bytes", 1 << 18),
            ("commit_timeout_ms", 120_000),
        ],
    );
    let at = group.master_except(None);
    let node = group.node(at);
    group.network.isolate(&name(at));
    let write = |key: String, bytes: usize| {
        let node = node.clone();
        std::thread::spawn(move || put(&node, key, vec![0; bytes]))
    };
    let pending: Vec<_> = (0..2).map(|n| write(format!("k{n}"), 700 * 1024)).collect();
    eventually("the window is full", || {
        node.status().window_bytes > BOUND_BYTES
    });
    let late = write("late".to_owned(), 1);
    std::thread::park_timeout(Duration::from_millis(50));
    assert!(!late.is_finished());
    node.close().expect("closed");
    eventually("the writer is told", || late.is_finished());
    let result = late.join().expect("no panic");
    assert!(
        matches!(
            result,
            Err(WriteError::Closed | WriteError::NotMaster { .. })
        ),
        "{result:?}"
    );
    for writer in pending {
        assert!(writer.join().expect("no panic").is_err());
    }
}

/// How many calls openraft lets a state machine lag behind before its core waits for it.
const CALLS_BEFORE_THE_CORE_WAITS: u32 = 1_024;

#[test]
fn a_snapshot_that_is_never_given_back_holds_up_neither_writes_nor_an_election() {
    let mut group = Group::in_memory(
        3,
        &[
            ("window_bytes_max", 1 << 20),
            ("flush_bytes", 1 << 18),
            ("commit_timeout_ms", 20_000),
        ],
    );
    let master = group.master_except(None);
    let _token = put(group.node(master), "k", b"v").expect("committed");
    let ready = Barrier::new(3);
    let release = AtomicBool::new(false);
    let nodes: Vec<_> = group.open_nodes().cloned().collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = nodes
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != master)
            .map(|(_, node)| {
                scope.spawn(|| {
                    node.read(ConsistencyPolicy::Eventual, |snapshot| {
                        ready.wait();
                        while !release.load(Ordering::Relaxed) {
                            std::thread::park_timeout(Duration::from_millis(5));
                        }
                        snapshot.list_databases()
                    })
                })
            })
            .collect();
        let released = Release(&release);
        ready.wait();
        for n in 0..2 * CALLS_BEFORE_THE_CORE_WAITS {
            let written = put(&nodes[master], format!("k{n}"), vec![0; 2_048]);
            let _token = written.unwrap_or_else(|error| panic!("write {n}: {error}"));
        }
        group.crash(master);
        let next = group.master_except(Some(master));
        let _token = put(&nodes[next], "after", b"v").expect("committed");
        drop(released);
        for reader in readers {
            let told = reader.join().expect("no panic");
            assert!(
                matches!(told, Err(ReadError::SnapshotTooOld { .. })),
                "{told:?}"
            );
        }
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

/// Makes batches fail on demand.
#[derive(Default)]
struct Failing(AtomicBool);

/// In-memory nodes, each with an observed engine.
fn watched<W: Watch>(nodes: usize, numbers: Numbers, new: impl Fn() -> W) -> (Group, Vec<Arc<W>>) {
    let storages = (0..nodes).map(|_| Storage::memory()).collect();
    let mut group = Group::unopened(storages, numbers, None);
    let mut watches = Vec::new();
    for at in 0..nodes {
        let watch = Arc::new(new());
        watches.push(Arc::clone(&watch));
        let machine = Machine {
            engines: Arc::new(Watched(MemoryStore::new(), watch)),
            ..group.machine(at)
        };
        let opening = Env::open_on(group.config(at), machine);
        group.nodes[at] = Some(group.runtime.block_on(opening).expect("opened"));
    }
    group.wait_ready();
    (group, watches)
}

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
    let (group, fails) = watched(1, SMALL_WINDOW, Failing::default);
    let node = group.master().clone();
    fails[0].0.store(true, Ordering::Relaxed);
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

/// Has no space on its volume for a batch.
#[derive(Default)]
struct Full(AtomicBool);

impl Watch for Full {
    fn before_apply(&self) -> Result<(), EngineError> {
        if self.0.load(Ordering::Relaxed) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull).into();
            return Err(EngineError::DiskFull { source });
        }
        Ok(())
    }
}

#[test]
fn writers_of_a_master_whose_engine_has_no_space_are_told_and_go_on_when_it_has() {
    let (group, full) = watched(1, SMALL_WINDOW, Full::default);
    let node = group.master().clone();
    full[0].0.store(true, Ordering::Relaxed);
    let writing = node.clone();
    let told = in_time("the writer is told", move || {
        (0..).find_map(|n: u32| put(&writing, n.to_be_bytes(), vec![0; 300 * 1024]).err())
    });
    assert!(
        matches!(told, Some(WriteError::DiskFull { .. })),
        "{told:?}"
    );
    eventually("it says so", || {
        let status = node.status();
        status
            .read_only
            .is_some_and(|why| why.contains("storage engine"))
    });
    full[0].0.store(false, Ordering::Relaxed);
    eventually("it takes writes again", || put(&node, "k", "v").is_ok());
    eventually("it says so", || node.status().read_only.is_none());
}

#[test]
fn a_replica_whose_engine_has_no_space_stops_before_it_holds_its_group_up() {
    let numbers = &[
        ("election_timeout_min_ms", 2_000),
        ("election_timeout_max_ms", 3_000),
        ("commit_timeout_ms", 60_000),
        ("window_bytes_max", 1 << 20),
        ("flush_bytes", 1 << 18),
    ];
    let (group, engines) = watched(3, numbers, Full::default);
    let master = group.master_except(None);
    let (full, other) = ((master + 1) % 3, (master + 2) % 3);
    engines[full].0.store(true, Ordering::Relaxed);
    let mut written = 0_u64;
    eventually("it stops, and says why", || {
        written += 1;
        // Fills its memory, then keeps it going.
        let value = vec![0; if written < 16 { 100 * 1024 } else { 1 }];
        let _token = put(group.master(), written.to_be_bytes(), value).expect("two of three");
        let ready = group.node(full).wait_ready(Duration::from_millis(10));
        matches!(ready, Err(ReadyError::Stopped { reason }) if reason.contains("no space"))
    });
    // The remaining nodes know that it is down, and are a majority.
    group.network.isolate(&name(full));
    eventually("they go on", || put(group.master(), "after", "v").is_ok());
    let read = get(group.node(other), ConsistencyPolicy::Linearizable, "after");
    assert_eq!(read.expect("read").as_deref(), Some(&b"v"[..]));
    let is_read_only = || group.node(full).status().read_only.is_some();
    assert!(is_read_only(), "whoever opens it again waits for room");
    engines[full].0.store(false, Ordering::Relaxed);
    eventually("it says that there is room", || !is_read_only());
}

/// Holds batches until it is let go.
struct Hanging {
    goes_on: AtomicBool,
}

impl Watch for Hanging {
    fn before_apply(&self) -> Result<(), EngineError> {
        while !self.goes_on.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    }
}

#[test]
fn a_master_whose_engine_hangs_hands_over_and_says_so_until_the_engine_goes_on() {
    let numbers = &[
        ("election_timeout_min_ms", 2_000),
        ("election_timeout_max_ms", 3_000),
        ("commit_timeout_ms", 1_500),
        ("window_bytes_max", 1 << 20),
        ("flush_bytes", 1 << 18),
    ];
    let (group, engines) = watched(3, numbers, || Hanging {
        goes_on: AtomicBool::new(true),
    });
    let old = group.master_except(None);
    let _released = Release(&engines[old].goes_on);
    engines[old].goes_on.store(false, Ordering::Relaxed);
    let hangs = |at: usize| group.node(at).status().disk_hangs_ms.is_some();
    // Its window soon fills up, and writers then wait.
    let node = group.node(old).clone();
    let term = node.state().term;
    let writer = std::thread::spawn(move || {
        (0..).find_map(|n: u32| {
            let put = put(&node, n.to_be_bytes(), vec![0; 300 * 1024]);
            let is_before = put.as_ref().is_ok_and(|token| token.term == term);
            (!is_before).then_some(put)
        })
    });
    eventually("another one is master", || {
        let is_master = |at: usize| group.node(at).state().role == Role::Master;
        is_master((old + 1) % 3) || is_master((old + 2) % 3)
    });
    assert!(hangs(old));
    // It is told, or the new master commits what it goes on to write.
    let ended = in_time("the writer does not wait", || {
        writer.join().expect("no panic")
    });
    assert!(ended.is_some(), "{ended:?}");
    let new = group.master_except(Some(old));
    let _token = put(group.node(new), "after", "v").expect("two of three");
    engines[old].goes_on.store(true, Ordering::Relaxed);
    eventually("it works again, as a replica", || {
        !hangs(old) && group.node(old).state().role == Role::Replica
    });
    group.digest();
}
