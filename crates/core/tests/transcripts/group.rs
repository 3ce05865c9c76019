//! The group of a story.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use steadfast::engine::MemoryStore;
use steadfast::machine::{Clock, Machine, Threads};
use steadfast::{Bootstrap, NodeType, RepConfig, ReplicatedEnvironment, Role, RoleState};
use steadfast_net::MemoryNetwork;
use steadfast_net::process::Process;
use tokio::time::Instant;

use crate::disk::WatchedDisk;
use crate::journal::Journal;
use crate::tap::Tap;

/// Decides all that is random in a story.
const SEED: u64 = 1;

/// Wall-clock time that follows the paused clock.
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).expect("a short story")
    }
}

/// A node, and what outlives its crash.
struct Host {
    disk: WatchedDisk,
    store: MemoryStore,
    process: Process,
    bootstrap: Bootstrap,
    env: Option<ReplicatedEnvironment>,
}

pub(crate) struct Group {
    pub(crate) journal: Journal,
    pub(crate) network: MemoryNetwork,
    /// Numeric settings of all nodes, by key.
    pub(crate) settings: BTreeMap<String, u64>,
    started: Instant,
    hosts: BTreeMap<String, Host>,
    rng: StdRng,
}

impl Group {
    pub(crate) fn new(journal: &Journal) -> Self {
        Self {
            journal: journal.clone(),
            network: MemoryNetwork::new(),
            settings: BTreeMap::new(),
            started: Instant::now(),
            hosts: BTreeMap::new(),
            rng: StdRng::seed_from_u64(SEED),
        }
    }

    /// Opens new nodes, which form a group.
    pub(crate) async fn form(&mut self, names: &[&str]) {
        let list = names.iter().map(|name| format!("{name}={name}:7400"));
        let bootstrap = Bootstrap::expect(list).expect("well-formed");
        for name in names {
            self.add(name, bootstrap.clone());
            self.open(name).await;
        }
    }

    /// Opens a new node, which joins the group.
    pub(crate) async fn join(&mut self, name: &str, node_type: NodeType) {
        let token = self.master().join_token(node_type).expect("a group");
        self.add(name, Bootstrap::join(token));
        self.open(name).await;
    }

    fn add(&mut self, name: &str, bootstrap: Bootstrap) {
        let host = Host {
            disk: WatchedDisk::new(name, &self.journal),
            store: MemoryStore::new(),
            process: Process::new(),
            bootstrap,
            env: None,
        };
        self.hosts.insert(name.to_owned(), host);
    }

    pub(crate) async fn open(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).expect("a known node");
        let tap = Tap {
            transport: self.network.host(name),
            name: name.to_owned(),
            journal: self.journal.clone(),
        };
        let machine = Machine {
            disk: Arc::new(host.disk.clone()),
            transport: Arc::new(tap),
            engines: Arc::new(host.store.clone()),
            clock: Arc::new(VirtualClock(self.started)),
            seed: self.rng.random(),
            threads: Threads::Tasks,
        };
        let config = RepConfig::builder("group", name)
            .data_dir("/data")
            .listen(format!("{name}:7400"))
            .bootstrap(host.bootstrap.clone())
            .set("log_segment_bytes", 1024 * 1024)
            .set("flush_interval_ms", 50);
        let settings = self.settings.iter();
        let config = settings.fold(config, |config, (key, value)| config.set(key, *value));
        let opening = ReplicatedEnvironment::open_on(config.build().expect("valid"), machine);
        host.process = Process::new();
        match host.process.run(opening).await {
            Ok(env) => {
                tokio::spawn(watch(name.to_owned(), env.clone(), self.journal.clone()));
                host.env = Some(env);
            }
            Err(error) => self.journal.say(name, format!("does not open: {error}")),
        }
    }

    pub(crate) async fn close(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).expect("a known node");
        let env = host.env.take().expect("the node is open");
        env.close_async().await.expect("closed");
    }

    /// Kills a node's process.
    pub(crate) fn kill(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).expect("a known node");
        host.process.kill();
        let env = host.env.take();
        host.process.enter(|| drop(env));
        host.store.crash(usize::MAX);
        host.disk.crash();
    }

    /// Empties the directory of a node that is not open.
    pub(crate) fn wipe(&mut self, name: &str) {
        let host = self.hosts.get(name).expect("a known node");
        assert!(host.env.is_none(), "{name} is open");
        let bootstrap = host.bootstrap.clone();
        self.add(name, bootstrap);
    }

    pub(crate) fn env(&self, name: &str) -> &ReplicatedEnvironment {
        let host = self.hosts.get(name).expect("a known node");
        host.env.as_ref().expect("the node is open")
    }

    pub(crate) fn master(&self) -> &ReplicatedEnvironment {
        let mut open = self.hosts.values().filter_map(|host| host.env.as_ref());
        let master = open.find(|env| env.state().role == Role::Master);
        master.expect("there is a master")
    }
}

/// Tells each change of a node's role, and why the group refuses it.
async fn watch(name: String, env: ReplicatedEnvironment, journal: Journal) {
    let mut states = env.state_changes();
    drop(env);
    let mut before = RoleState::default();
    while let Some(state) = states.next_async().await {
        if (state.role, &state.master) != (before.role, &before.master) {
            journal.say(&name, describe(&state));
        }
        before = state;
    }
}

fn describe(state: &RoleState) -> String {
    let term = state.term;
    let master = state.master.as_ref().map_or("nobody", |node| &node.name);
    match state.role {
        Role::Master => format!("is master of term {term}"),
        Role::Replica => format!("is replica of {master} in term {term}"),
        Role::Detached => "takes no part".to_owned(),
        _ => "knows no master".to_owned(),
    }
}
