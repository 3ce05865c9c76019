//! After `close` returns, nothing of a node is left. Runs alone in its process, whose resources it
//! counts.
#![cfg(target_os = "linux")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test uses the real clock and looks at its process"
)]

use std::alloc::System;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use cap::Cap;
use steadfast::machine::Machine;
use steadfast::{
    Bootstrap, ConsistencyPolicy, Durability, RepConfig, ReplicatedEnvironment, Role, StartAt,
};
use steadfast_net::MemoryNetwork;
use tokio::runtime::{Builder, Runtime};

/// Counts what is allocated. What is resident also depends on how the system's allocator fragments.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const ROUNDS: usize = 50;
/// Rounds by which everything a process keeps for good exists, and the last rounds.
const WARM: Range<usize> = 20..30;
const LAST: Range<usize> = 40..50;
/// How much allocated memory may grow from the maximum of the former to the minimum of the latter:
/// what maps free late takes a fifth of it, five nodes a round hundreds of times as much.
const GROWTH_BYTES_MAX: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_mins(1);

/// The resources of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    tasks: usize,
    threads: usize,
    descriptors: usize,
}

fn count(runtime: &Runtime) -> Counted {
    let entries = |dir: &str| std::fs::read_dir(dir).expect("of this process").count();
    Counted {
        tasks: runtime.metrics().num_alive_tasks(),
        threads: entries("/proc/self/task"),
        descriptors: entries("/proc/self/fd"),
    }
}

/// For a readable message when there are too many.
fn open_files() -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("of this process");
    let of = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    of.collect()
}

/// Opens, uses and closes a node; returns its handle.
fn live(dir: &Path, runtime: Option<&Runtime>) -> ReplicatedEnvironment {
    let config = RepConfig::builder("g", "n1")
        .data_dir(dir)
        .listen("127.0.0.1:0");
    let config = match runtime {
        Some(runtime) => config.runtime(runtime.handle().clone()),
        None => config,
    };
    let env = ReplicatedEnvironment::open(config.build().expect("a configuration"));
    let env = env.expect("opened");
    env.wait_ready(PATIENCE).expect("ready");
    let written = env.write(|txn| txn.database("d")?.put("k", "v"));
    let _token = written.expect("committed");
    let read = env.read(ConsistencyPolicy::Linearizable, |s| {
        s.database("d")?.get("k")
    });
    assert!(read.expect("read").is_some());
    let mut feed = env.subscribe(StartAt::Start).expect("a feed");
    assert!(feed.next().is_some_and(|event| event.is_ok()));
    let mut events = env.group_events();
    assert!(events.next().is_some_and(|event| event.is_ok()));
    env.close().expect("closed");
    env
}

/// Opens, uses and closes a group of three connected nodes; returns their handles.
fn live_together(runtime: &Runtime) -> Vec<ReplicatedEnvironment> {
    let network = MemoryNetwork::new();
    let list: Vec<_> = (1..=3).map(|n| format!("n{n}=n{n}:1")).collect();
    let open = |n: usize| {
        let config = RepConfig::builder("g", format!("n{n}"))
            .data_dir("/data")
            .listen(format!("n{n}:1"))
            .bootstrap(Bootstrap::expect(&list).expect("a list"));
        let machine = Machine::in_memory(&network, &format!("n{n}")).expect("entropy");
        let config = config.build().expect("a configuration");
        let opened = runtime.block_on(ReplicatedEnvironment::open_on(config, machine));
        opened.expect("opened")
    };
    let nodes: Vec<_> = (1..=3).map(open).collect();
    for node in &nodes {
        node.wait_ready(PATIENCE).expect("ready");
    }
    let deadline = Instant::now() + PATIENCE;
    let written = || {
        let mut masters = nodes.iter();
        let master = masters.find(|node| node.state().role == Role::Master)?;
        let all = Durability::ALL.within(PATIENCE);
        master
            .write_with(all, |txn| txn.database("d")?.put("k", "v"))
            .ok()
    };
    while written().is_none() {
        assert!(Instant::now() < deadline, "nothing is written");
    }
    for node in &nodes {
        let read = node.read(ConsistencyPolicy::Linearizable, |s| {
            s.database("d")?.get("k")
        });
        assert!(read.expect("read").is_some());
    }
    for node in &nodes {
        node.close().expect("closed");
    }
    nodes
}

#[test]
fn nothing_of_a_node_is_left_when_it_is_closed() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let before = count(&runtime);
    let mut memory = Vec::new();
    for round in 0..ROUNDS {
        let (own, guest) = (dir.path().join("own"), dir.path().join("guest"));
        // Their handles are kept, and must not count.
        let mut closed = live_together(&runtime);
        closed.extend([live(&own, None), live(&guest, Some(&runtime))]);
        let deadline = Instant::now() + PATIENCE;
        let mut now = count(&runtime);
        while now != before && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
            now = count(&runtime);
        }
        assert_eq!(now, before, "after round {round}, of {:?}", open_files());
        drop(closed);
        memory.push(ALLOCATOR.allocated());
    }
    let (warm, last) = (memory[WARM].iter().max(), memory[LAST].iter().min());
    let grown = last.expect("rounds").saturating_sub(*warm.expect("rounds"));
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes: {memory:?}");
}
