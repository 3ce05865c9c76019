//! Digests: what a node reports when it has none, and what network requests for them cost.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast::engine::MemoryStore;
use steadfast::machine::{Machine, Threads};
use steadfast::{NodeStatus, ReadError, RepConfig};
use steadfast_net::{MemoryNetwork, TcpTransport};
use tokio::runtime::Builder;

use crate::engine::{Scanned, Watch, Watched};
use crate::support::{Env, Group, PATIENCE, Storage, eventually, in_time, put, runtime, stays};

#[test]
fn a_digest_of_a_node_without_a_group_is_not_current() {
    let storages = vec![Storage::memory(), Storage::memory()];
    let mut group = Group::unopened(storages, &[], None);
    group.reopen(0).expect("opened");
    let digest = group.node(0).digest();
    assert!(
        matches!(digest, Err(ReadError::NotCurrent { .. })),
        "{digest:?}"
    );
}

#[test]
fn a_digest_of_a_node_that_has_stopped_says_so() {
    let group = Group::in_memory(1, &[]);
    let node = group.master();
    group.storages[0].disk().fail_syncs(true);
    assert!(put(node, "k", b"v").is_err());
    let mut digest = node.digest();
    eventually("the node stops", || {
        digest = node.digest();
        digest.is_err()
    });
    assert!(
        matches!(digest, Err(ReadError::Stopped { .. })),
        "{digest:?}"
    );
}

/// The scans behind a digest, as an engine sees them.
#[derive(Default)]
struct Scans {
    by: Mutex<BTreeSet<String>>,
    now: AtomicUsize,
    most: AtomicUsize,
    hold: AtomicBool,
}

impl Watch for Scans {
    fn scan(&self, scan: &dyn Fn() -> Scanned) -> Scanned {
        // The flush scans the catalog for unnamed databases.
        if std::thread::current().name() == Some("steadfast-flush") {
            return scan();
        }
        self.by.lock().expect("no panic").insert(this_thread());
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        while self.hold.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let scanned = scan();
        self.now.fetch_sub(1, Ordering::SeqCst);
        scanned
    }
}

fn this_thread() -> String {
    format!("{:?}", std::thread::current().id())
}

/// Lets held scans go on, even if the test fails.
struct Release(Arc<Scans>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.hold.store(false, Ordering::SeqCst);
    }
}

/// A single-node group, in memory except for its connections, which programs can query.
async fn open(scans: &Arc<Scans>, threads: Threads) -> Env {
    let config = RepConfig::builder("g", "n1")
        .data_dir("/data")
        .listen("127.0.0.1:0")
        .build()
        .expect("a configuration");
    let machine = Machine {
        transport: Arc::new(TcpTransport),
        engines: Arc::new(Watched(MemoryStore::new(), Arc::clone(scans))),
        threads,
        ..Machine::in_memory(&MemoryNetwork::new(), "n1").expect("entropy")
    };
    let node = Env::open_on(config, machine).await.expect("opened");
    node.wait_ready_async(PATIENCE).await.expect("ready");
    let put = node.write_async(|txn| txn.database("d")?.put("k", "v"));
    let _token = put.await.expect("committed");
    node
}

#[test]
fn a_digest_takes_no_thread_from_a_machine_that_has_none_to_give() {
    in_time("the digest", || {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let scans = Arc::default();
            let node = open(&scans, Threads::Tasks).await;
            let status = NodeStatus::ask(&node.listen_address(), true, PATIENCE).await;
            assert!(status.expect("an answer").digest.is_some());
            let by = scans.by.lock().expect("no panic").clone();
            assert_eq!(by, BTreeSet::from([this_thread()]));
            node.close_async().await.expect("closed");
        });
    });
}

#[test]
fn digests_that_the_network_asks_for_are_computed_one_at_a_time() {
    let (runtime, scans) = (runtime(), Arc::<Scans>::default());
    let node = runtime.block_on(open(&scans, Threads::Own));
    let address = node.listen_address();
    scans.hold.store(true, Ordering::SeqCst);
    let release = Release(Arc::clone(&scans));
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let address = address.clone();
            runtime.spawn(async move { NodeStatus::ask(&address, true, PATIENCE).await })
        })
        .collect();
    eventually("a digest has begun", || {
        scans.now.load(Ordering::SeqCst) > 0
    });
    stays("one digest at a time", || {
        scans.now.load(Ordering::SeqCst) == 1
    });
    // A caller that wants no digest does not wait for those who do.
    let asked = NodeStatus::ask(&address, false, PATIENCE);
    assert!(runtime.block_on(asked).expect("an answer").digest.is_none());
    drop(release);
    let digests: Vec<_> = asking
        .into_iter()
        .map(|asked| runtime.block_on(asked).expect("no panic"))
        .map(|status| status.expect("an answer").digest)
        .collect();
    assert_eq!(scans.most.load(Ordering::SeqCst), 1);
    let (_, own) = node.digest().expect("a digest");
    assert_eq!(digests, vec![Some(format!("{own:032x}")); 8]);
    node.close().expect("closed");
}
