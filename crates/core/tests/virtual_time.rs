//! Three whole nodes in one thread, on disks, engines and a network in memory, under paused time.
//!
//! The same seed gives the same history, through crashes of the master. Each run of that test has
//! a process of its own, because some of the chance below us has state that is kept per process:
//! the child prints its story, and the parent compares two of them.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::engine::MemoryStore;
use steadfast::log::MemoryDisk;
use steadfast::machine::{Clock, Machine, Threads};
use steadfast::{
    Bootstrap, CommitToken, ConsistencyPolicy, ReadyError, RepConfig, ReplicatedEnvironment, Role,
};
use steadfast_net::MemoryNetwork;
use tokio::time::Instant;

const SEED_VARIABLE: &str = "STEADFAST_DETERMINISM_SEED";
const CRASHES: usize = 4;
const WRITES_BETWEEN_CRASHES: usize = 40;

/// Wall-clock time that follows the paused clock.
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).expect("a short run")
    }
}

/// What of a node outlives a crash.
struct Host {
    name: String,
    disk: MemoryDisk,
    store: MemoryStore,
    env: ReplicatedEnvironment,
}

struct World {
    network: MemoryNetwork,
    started: Instant,
    rng: StdRng,
    hosts: Vec<Host>,
    story: String,
    acknowledged: Vec<(String, CommitToken)>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut world = Self {
            network: MemoryNetwork::new(),
            started: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            hosts: Vec::new(),
            story: String::new(),
            acknowledged: Vec::new(),
        };
        for n in 1..=3 {
            let (name, disk, store) = (format!("n{n}"), MemoryDisk::new(), MemoryStore::new());
            let env = world.open(&name, &disk, &store).await;
            world.hosts.push(Host {
                name,
                disk,
                store,
                env,
            });
        }
        world
    }

    async fn open(
        &mut self,
        name: &str,
        disk: &MemoryDisk,
        store: &MemoryStore,
    ) -> ReplicatedEnvironment {
        let machine = Machine {
            disk: Arc::new(disk.clone()),
            transport: self.network.host(name),
            engines: Arc::new(store.clone()),
            clock: Arc::new(VirtualClock(self.started)),
            seed: self.rng.random(),
            threads: Threads::Tasks,
        };
        let list = ["n1=n1:7400", "n2=n2:7400", "n3=n3:7400"];
        let config = RepConfig::builder("group", name)
            .data_dir("/data")
            .listen(format!("{name}:7400"))
            .bootstrap(Bootstrap::expect(list).expect("well-formed"))
            .set("log_segment_bytes", 1024 * 1024)
            .set("flush_interval_ms", 50)
            .build();
        let opened = ReplicatedEnvironment::open_on(config.expect("valid"), machine).await;
        opened.expect("the node opens")
    }

    fn note(&mut self, what: &str) {
        let at = self.started.elapsed().as_micros();
        writeln!(self.story, "{at:>10} {what}").expect("a string takes everything");
    }

    /// The index of the node that takes writes, as soon as there is one.
    async fn master(&self) -> usize {
        loop {
            let is_master = |host: &Host| host.env.state().role == Role::Master;
            if let Some(master) = self.hosts.iter().position(is_master) {
                return master;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn write(&mut self, key: &str) {
        let master = self.master().await;
        let written = self.hosts[master]
            .env
            .write_async(|txn| {
                let db = txn.database("keys")?;
                let count = db.get("count")?.map_or(0, |n| n.len() + 1);
                db.put("count", vec![b'x'; count % 100])?;
                db.put(key, format!("{count}"))
            })
            .await;
        match written {
            Ok(token) => {
                self.note(&format!("{key} is {token}"));
                self.acknowledged.push((key.to_owned(), token));
            }
            Err(error) => self.note(&format!("{key} failed: {error}")),
        }
    }

    /// Cuts the master's power while it writes, and brings it back.
    async fn crash_master(&mut self, round: usize) {
        let at = self.master().await;
        let in_flight = self.hosts[at].env.clone();
        let key = format!("in-flight-{round}");
        let write = tokio::spawn(async move {
            in_flight
                .write_async(|txn| txn.database("keys")?.put(&key, "?"))
                .await
        });
        tokio::task::yield_now().await;
        self.cut_power(at).await;
        let fate = write.await.expect("the write ends");
        let fate = fate.map_err(|error| error.to_string());
        let name = self.hosts[at].name.clone();
        self.note(&format!("{name} crashed; its last write: {fate:?}"));
        self.restart(at).await;
        let ready = self.hosts[at]
            .env
            .wait_ready_async(Duration::from_mins(1))
            .await;
        self.note(&format!("{name} is back: {ready:?}"));
        ready.expect("the node comes back");
    }

    /// Ends a node at once: what it had not synced is gone.
    async fn cut_power(&mut self, at: usize) {
        let host = &self.hosts[at];
        self.network.isolate(&host.name);
        host.disk.crash();
        host.disk.hold_syncs(false);
        host.store.crash(self.rng.random_range(0..4));
        // What a dead node says of its own end is nobody's business.
        self.hosts[at].env.close_async().await.ok();
    }

    async fn restart(&mut self, at: usize) {
        let host = &self.hosts[at];
        let (name, disk, store) = (host.name.clone(), host.disk.clone(), host.store.clone());
        self.network.heal(&name);
        self.hosts[at].env = self.open(&name, &disk, &store).await;
    }

    /// Waits until every node has applied the same, and checks that nothing acknowledged is gone.
    async fn check(&mut self) {
        let policy = ConsistencyPolicy::Linearizable;
        for at in 0..self.hosts.len() {
            for (key, token) in &self.acknowledged {
                let read = self.hosts[at]
                    .env
                    .read_async(policy, |s| s.database("keys")?.get(key));
                let value = read.await.expect("a healthy group answers");
                assert!(value.is_some(), "{key}, acknowledged as {token}, is gone");
            }
        }
        let digests: Vec<_> = self
            .hosts
            .iter()
            .map(|host| host.env.digest().expect("open"))
            .collect();
        assert!(
            digests.windows(2).all(|pair| pair[0] == pair[1]),
            "{digests:?}"
        );
        self.note(&format!("all nodes hold {:?}", digests[0]));
    }
}

async fn run(seed: u64) -> String {
    let mut world = World::new(seed).await;
    for round in 0..CRASHES {
        for n in 0..WRITES_BETWEEN_CRASHES {
            world.write(&format!("{round}-{n}")).await;
        }
        world.crash_master(round).await;
    }
    world.write("last").await;
    world.check().await;
    world.story
}

fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

#[test]
fn a_master_that_lost_what_it_had_not_synced_does_not_write_over_it() {
    paused().block_on(async {
        let mut world = World::new(7).await;
        world.write("first").await;
        let master = world.master().await;
        // The replicas commit without the master's disk, as a majority may.
        world.hosts[master].disk.hold_syncs(true);
        world.write("only on the replicas' disks").await;
        assert_eq!(world.acknowledged.len(), 2, "{}", world.story);
        world.cut_power(master).await;
        // Back before anybody has missed it.
        world.restart(master).await;
        world.write("after").await;
        world.check().await;
    });
}

/// Longer than a replica takes to find that nobody leads it.
const SILENCE: Duration = Duration::from_secs(5);

#[test]
fn a_replica_that_hears_no_master_says_so_until_there_is_one_again() {
    paused().block_on(async {
        let mut world = World::new(11).await;
        let master = world.master().await;
        for host in &world.hosts {
            host.env.wait_ready_async(SILENCE).await.expect("ready");
        }
        let (left, other) = ((master + 1) % 3, (master + 2) % 3);
        let mut states = world.hosts[left].env.state_changes();
        let first = states.next_async().await.expect("a state");
        assert_eq!(first.role, Role::Replica);
        for gone in [master, other] {
            let closed = world.hosts[gone].env.close_async().await;
            closed.expect("closed");
        }
        let lost = tokio::time::timeout(SILENCE, states.next_async()).await;
        let lost = lost.expect("an event").expect("a state");
        assert_eq!((lost.role, lost.master), (Role::Unknown, None));
        let node = &world.hosts[left].env;
        assert_eq!(node.state().role, Role::Unknown);
        assert!(node.status().waiting_for.contains("a master"));
        let ready = node.wait_ready_async(SILENCE).await;
        assert!(
            matches!(ready, Err(ReadyError::Timeout { .. })),
            "{ready:?}"
        );
        world.restart(other).await;
        let node = &world.hosts[left].env;
        let ready = node.wait_ready_async(SILENCE).await;
        ready.expect("there is a majority again");
        world.restart(master).await;
        world.write("after").await;
        world.check().await;
    });
}

#[test]
fn a_node_that_restarts_alone_follows_no_master_that_it_has_not_heard() {
    paused().block_on(async {
        let mut world = World::new(12).await;
        world.write("first").await;
        let left = (world.master().await + 1) % 3;
        for host in &world.hosts {
            host.env.close_async().await.expect("closed");
        }
        world.restart(left).await;
        let ready = world.hosts[left].env.wait_ready_async(SILENCE).await;
        assert!(
            matches!(ready, Err(ReadyError::Timeout { .. })),
            "{ready:?}"
        );
    });
}

#[test]
fn the_roles_in_an_idle_group_do_not_change() {
    paused().block_on(async {
        let mut world = World::new(13).await;
        world.write("first").await;
        for host in &world.hosts {
            host.env.wait_ready_async(SILENCE).await.expect("ready");
        }
        let mut changes = Vec::new();
        for host in &world.hosts {
            let mut states = host.env.state_changes();
            states.next_async().await.expect("the present state");
            changes.push(async move { states.next_async().await });
        }
        let any = futures_util::future::select_all(changes.into_iter().map(Box::pin));
        let changed = tokio::time::timeout(Duration::from_mins(1), any).await;
        assert!(changed.is_err(), "a role has changed");
        world.check().await;
    });
}

#[test]
fn child() {
    let Ok(seed) = std::env::var(SEED_VARIABLE) else {
        return;
    };
    println!("{}", paused().block_on(run(seed.parse().expect("a seed"))));
}

fn story(seed: u64) -> String {
    let this = std::env::current_exe().expect("this program has a path");
    let output = Command::new(this)
        .args(["child", "--exact", "--nocapture"])
        .env(SEED_VARIABLE, seed.to_string())
        .output()
        .expect("this program can run itself");
    let story = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {seed}:\n{story}\n{errors}");
    // The test harness ends with a duration, which is real.
    story
        .lines()
        .filter(|line| !line.starts_with("test result"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_same_seed_gives_the_same_history_through_crashes_of_the_master() {
    let stories: Vec<_> = [1, 2, 3].map(|seed| (story(seed), story(seed))).into();
    for (first, second) in &stories {
        assert_eq!(first, second);
        assert!(first.matches(" is back").count() == CRASHES, "{first}");
    }
    assert_ne!(stories[0].0, stories[1].0, "seeds make a difference");
}
