//! The group under the tests' control.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::engine::MemoryStore;
use steadfast::log::MemoryDisk;
use steadfast::machine::{Clock, Machine, Threads};
use steadfast::{
    Bootstrap, CommitToken, Committed, ConsistencyPolicy, Durability, OpenError, ReadError,
    ReadOptions, RepConfig, RepConfigBuilder, ReplicatedEnvironment, Role, WriteError,
};
use steadfast_net::MemoryNetwork;
use steadfast_net::process::Process;
use tokio::time::Instant;

/// Clocks that follow the paused one: the wall clock exactly, the monotonic one at a speed of its
/// own.
struct VirtualClock {
    started: Instant,
    /// What the monotonic clock gains, in millionths.
    gains_ppm: Arc<AtomicI64>,
}

impl Clock for VirtualClock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).expect("a short run")
    }

    fn passed_since(&self, then: Instant) -> Duration {
        let true_us = i64::try_from(then.elapsed().as_micros()).expect("a short run");
        let gained_us = true_us * self.gains_ppm.load(Ordering::Relaxed) / 1_000_000;
        Duration::from_micros(u64::try_from(true_us + gained_us).expect("it goes forward"))
    }
}

/// What outlives a node's crash.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) disk: MemoryDisk,
    store: MemoryStore,
    pub(crate) process: Process,
    gains_ppm: Arc<AtomicI64>,
    env: Option<ReplicatedEnvironment>,
}

impl Host {
    /// Lets its monotonic clock gain this, in millionths.
    pub(crate) fn speed_ppm(&self, gains_ppm: i64) {
        self.gains_ppm.store(gains_ppm, Ordering::Relaxed);
    }

    pub(crate) fn env(&self) -> &ReplicatedEnvironment {
        self.env.as_ref().expect("the node is open")
    }
}

pub(crate) struct World {
    pub(crate) network: MemoryNetwork,
    started: Instant,
    rng: StdRng,
    pub(crate) hosts: Vec<Host>,
    pub(crate) story: String,
    pub(crate) acknowledged: Vec<(String, CommitToken)>,
    numbers: &'static [(&'static str, u64)],
}

impl World {
    pub(crate) async fn new(seed: u64) -> Self {
        Self::of(3, seed).await
    }

    pub(crate) async fn of(nodes: usize, seed: u64) -> Self {
        Self::tuned(nodes, seed, &[]).await
    }

    /// With these numeric settings, by key.
    pub(crate) async fn tuned(
        nodes: usize,
        seed: u64,
        numbers: &'static [(&'static str, u64)],
    ) -> Self {
        let mut world = Self {
            network: MemoryNetwork::new(),
            started: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            hosts: Vec::new(),
            story: String::new(),
            acknowledged: Vec::new(),
            numbers,
        };
        for n in 1..=nodes {
            world.hosts.push(Host {
                name: format!("n{n}"),
                disk: MemoryDisk::new(),
                store: MemoryStore::new(),
                process: Process::new(),
                gains_ppm: Arc::default(),
                env: None,
            });
        }
        for at in 0..nodes {
            world.open(at).await;
        }
        world
    }

    async fn open(&mut self, at: usize) {
        self.try_open(at).await.expect("the node opens");
    }

    /// The machine of a node.
    pub(crate) fn machine(&mut self, at: usize) -> Machine {
        let Host {
            name,
            disk,
            store,
            gains_ppm,
            ..
        } = &self.hosts[at];
        Machine {
            disk: Arc::new(disk.clone()),
            transport: self.network.host(name),
            engines: Arc::new(store.clone()),
            clock: Arc::new(VirtualClock {
                started: self.started,
                gains_ppm: Arc::clone(gains_ppm),
            }),
            seed: self.rng.random(),
            threads: Threads::Tasks,
        }
    }

    /// Opens a node; it may be refused.
    pub(crate) async fn try_open(&mut self, at: usize) -> Result<(), OpenError> {
        let nodes = self.hosts.len();
        let machine = self.machine(at);
        let host = &mut self.hosts[at];
        host.process = Process::new();
        let name = &host.name;
        let list = (1..=nodes).map(|n| format!("n{n}=n{n}:7400"));
        let config = RepConfig::builder("group", name.as_str())
            .data_dir("/data")
            .listen(format!("{name}:7400"))
            .bootstrap(Bootstrap::expect(list).expect("well-formed"))
            .set("log_segment_bytes", 1024 * 1024)
            .set("flush_interval_ms", 50);
        let set = |config: RepConfigBuilder, (key, value): &(&str, u64)| config.set(*key, *value);
        let config = self.numbers.iter().fold(config, set).build();
        let opening = ReplicatedEnvironment::open_on(config.expect("valid"), machine);
        host.env = Some(host.process.run(opening).await?);
        Ok(())
    }

    /// Closes a node cleanly.
    pub(crate) async fn close(&mut self, at: usize) {
        let env = self.hosts[at].env.take().expect("the node is open");
        env.close_async().await.expect("closed");
    }

    pub(crate) fn note(&mut self, what: &str) {
        let at = self.started.elapsed().as_micros();
        writeln!(self.story, "{at:>10} {what}").expect("a string takes everything");
    }

    /// The index of the node that takes writes, once there is one.
    pub(crate) async fn master(&self) -> usize {
        loop {
            let is_master = |host: &Host| {
                let env = host.env.as_ref();
                env.is_some_and(|env| env.state().role == Role::Master)
            };
            if let Some(master) = self.hosts.iter().position(is_master) {
                return master;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn write(&mut self, key: &str) {
        let master = self.master().await;
        let written = self.hosts[master]
            .env()
            .write_async(|txn| {
                let db = txn.database("keys")?;
                let count = db.get("count")?.map_or(0, |n| n.len() + 1);
                db.put("count", vec![b'x'; count % 100])?;
                db.put(key, format!("{count}"))
            })
            .await;
        match written {
            Ok(Committed { token, .. }) => {
                self.note(&format!("{key} is {token}"));
                self.acknowledged.push((key.to_owned(), token));
            }
            Err(error) => self.note(&format!("{key} failed: {error}")),
        }
    }

    /// Cuts the master's power while it writes, and restarts it.
    pub(crate) async fn crash_master(&mut self, round: usize) {
        let at = self.master().await;
        let in_flight = self.hosts[at].env().clone();
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
            .env()
            .wait_ready_async(Duration::from_mins(1))
            .await;
        self.note(&format!("{name} is back: {ready:?}"));
        ready.expect("the node comes back");
    }

    /// Cuts a node's power: what it had not synced is gone.
    pub(crate) async fn cut_power(&mut self, at: usize) {
        let host = &self.hosts[at];
        self.network.isolate(&host.name);
        host.disk.crash();
        host.disk.hold_syncs(false);
        host.store.crash(self.rng.random_range(0..4));
        // Errors from the end of a dead node do not matter.
        if let Some(env) = self.hosts[at].env.take() {
            env.close_async().await.ok();
        }
    }

    /// Kills a node's process: what it had not handed to its disk is gone.
    pub(crate) async fn kill(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.process.kill();
        let env = host.env.take();
        host.process.enter(|| drop(env));
        host.store.crash(usize::MAX);
        // The system keeps what it was handed, and writes it eventually.
        host.disk.crash_keeping(usize::MAX, |_, _| usize::MAX);
        // Its tasks end when the runtime gets to them.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    pub(crate) async fn restart(&mut self, at: usize) {
        self.network.heal(&self.hosts[at].name);
        self.open(at).await;
    }

    /// Writes a key on this node, and returns the result.
    pub(crate) async fn put(
        &self,
        at: usize,
        durability: Durability,
        key: &str,
    ) -> Result<CommitToken, WriteError> {
        let env = self.hosts[at].env();
        let write = env.write_with_async(durability, |txn| txn.database("keys")?.put(key, "v"));
        Ok(write.await?.token)
    }

    /// Whether a read on this node finds the key.
    pub(crate) async fn has(
        &self,
        at: usize,
        options: impl Into<ReadOptions>,
        key: &str,
    ) -> Result<bool, ReadError> {
        let env = self.hosts[at].env();
        let read = env.read_async(options, |s| s.database("keys")?.get(key));
        read.await.map(|value| value.is_some())
    }

    /// Checks that nothing acknowledged is lost, and that all nodes hold the same.
    pub(crate) async fn check(&mut self) {
        let policy = ConsistencyPolicy::Linearizable;
        for at in 0..self.hosts.len() {
            for (key, token) in &self.acknowledged {
                let read = self.hosts[at]
                    .env()
                    .read_async(policy, |s| s.database("keys")?.get(key));
                let value = read.await.expect("a healthy group answers");
                assert!(value.is_some(), "{key}, acknowledged as {token}, is gone");
            }
        }
        let digests: Vec<_> = self
            .hosts
            .iter()
            .map(|host| host.env().digest().expect("open"))
            .collect();
        assert!(
            digests.windows(2).all(|pair| pair[0] == pair[1]),
            "{digests:?}"
        );
        self.note(&format!("all nodes hold {:?}", digests[0]));
    }
}
