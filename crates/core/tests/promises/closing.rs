//! A close takes no longer than its bound, whatever is under way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use steadfast::engine::{EngineError, MemoryStore};
use steadfast::limits::CLOSE_MAX;
use steadfast::machine::Machine;
use steadfast::{Bootstrap, ConsistencyPolicy, RepConfig, StartAt};
use steadfast_net::MemoryNetwork;

use crate::engine::{Watch, Watched};
use crate::support::{Env, Group, PATIENCE, Release, eventually, number, put, runtime};

/// Closes the node, which must be over in time.
fn close_in_time(node: &Env) {
    let began = Instant::now();
    node.close().expect("closed");
    let took = began.elapsed();
    assert!(took <= CLOSE_MAX, "{took:?}");
}

/// An engine that takes half a second for each batch once it is told to.
#[derive(Default)]
struct Slow(AtomicBool);

impl Watch for Slow {
    fn before_apply(&self) -> Result<(), EngineError> {
        let until = Instant::now() + Duration::from_millis(500);
        while self.0.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }
}

#[test]
fn what_an_engine_would_take_long_for_is_left_to_the_log_and_is_there_after_the_next_open() {
    let network = MemoryNetwork::new();
    let slow = Arc::<Slow>::default();
    let machine = Machine::in_memory(&network, "n1").expect("entropy");
    let machine = Machine {
        engines: Arc::new(Watched(MemoryStore::new(), Arc::clone(&slow))),
        ..machine
    };
    let config = RepConfig::builder("promises", "n1")
        .data_dir(Path::new("/data"))
        .listen("n1:7400")
        .bootstrap(Bootstrap::expect(["n1=n1:7400"]).expect("a list"))
        .set("flush_interval_ms", 3_600_000)
        .build()
        .expect("a configuration");
    let runtime = runtime();
    let open = || {
        let opened = runtime.block_on(Env::open_on(config.clone(), machine.clone()));
        let node = opened.expect("opened");
        node.wait_ready(PATIENCE).expect("ready");
        node
    };
    let node = open();
    // Each fills a batch of the engine: together they would take it 20 s.
    for batch in 0..40_u32 {
        let written = node.write(|txn| {
            let database = txn.database("d")?;
            (0..1000_u32).try_for_each(|n| {
                database.put((batch * 1000 + n).to_be_bytes(), 1_u64.to_le_bytes())
            })
        });
        let _token = written.expect("committed");
    }
    slow.0.store(true, Ordering::Relaxed);
    close_in_time(&node);
    drop(node);
    slow.0.store(false, Ordering::Relaxed);
    let node = open();
    let rows = node.read(ConsistencyPolicy::Linearizable, |snapshot| {
        let database = snapshot.database("d")?;
        let rows = database.iter().map(|row| Ok(number(Some(row?.1))));
        rows.sum::<Result<u64, steadfast::ReadError>>()
    });
    assert_eq!(rows.expect("read"), 40_000);
    node.close().expect("closed");
}

#[test]
fn a_close_does_not_wait_for_a_change_of_the_group_nor_for_functions_and_subscribers() {
    let group = Group::in_memory(3, &[]);
    let master = group.master_except(None);
    let (node, other) = (group.node(master), group.node((master + 1) % 3));
    let _token = put(node, "k", b"v").expect("committed");
    let mut feed = node.subscribe(StartAt::Start).expect("a feed");
    assert!(feed.next().is_some_and(|event| event.is_ok()));
    let (runs, ends) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _release = Release(&ends);
        let writing = scope.spawn(|| {
            node.write(|txn| {
                runs.store(true, Ordering::Relaxed);
                eventually("the end", || ends.load(Ordering::Relaxed));
                txn.database("d")?.put("l", b"v")
            })
        });
        eventually("a function that runs", || runs.load(Ordering::Relaxed));
        // It waits for that write, for as long as it is given.
        let asking = scope.spawn(|| other.shutdown_group(Duration::from_mins(1)));
        eventually("the shutdown is under way", || !node.can_write());
        close_in_time(node);
        close_in_time(other);
        assert!(asking.join().expect("no panic").is_err());
        ends.store(true, Ordering::Relaxed);
        assert!(writing.join().expect("no panic").is_err());
    });
}
