//! Groups whose disks, network and runtime a test controls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steadfast::engine::{EngineError, EngineFactory, MemoryStore, StorageEngine};
use steadfast::log::{Disk, MemoryDisk};
use steadfast::machine::Machine;
use steadfast::{
    Bootstrap, CommitToken, ConsistencyPolicy, JoinToken, NodeType, OpenError, ReadError,
    RepConfig, Repair, ReplicatedEnvironment, Role, WriteError,
};
use steadfast_net::MemoryNetwork;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

pub(crate) use steadfast::ReplicatedEnvironment as Env;

/// Time limit for anything that must happen. Only a failure waits this long, and a busy machine
/// must not cause one.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Timers that keep a master in office and a write waiting even on a busy machine: for tests in
/// which nothing fails.
pub(crate) const STEADY: Numbers = &[
    ("election_timeout_min_ms", 2_000),
    ("election_timeout_max_ms", 3_000),
    ("commit_timeout_ms", 120_000),
];

/// Numeric settings, by key.
pub(crate) type Numbers = &'static [(&'static str, u64)];

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Releases a test's threads that wait for a flag, even if the test fails.
pub(crate) struct Release<'a>(pub(crate) &'a AtomicBool);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Checks that `condition` holds for as long as a violation would take to show.
pub(crate) fn stays(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_millis(100);
    while Instant::now() < until {
        assert!(condition(), "not any more: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Runs `work` on its own thread, and fails if it does not end in time.
pub(crate) fn in_time<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let thread = std::thread::spawn(work);
    eventually(what, || thread.is_finished());
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Where a node keeps its data.
pub(crate) enum Storage {
    Memory {
        disk: MemoryDisk,
        store: MemoryStore,
    },
    Real(PathBuf),
}

impl Storage {
    pub(crate) fn memory() -> Self {
        Self::Memory {
            disk: MemoryDisk::new(),
            store: MemoryStore::new(),
        }
    }

    pub(crate) fn disk(&self) -> &MemoryDisk {
        match self {
            Self::Memory { disk, .. } => disk,
            Self::Real(dir) => panic!("{} is on a real disk", dir.display()),
        }
    }

    /// Whether the state was copied from a peer: another engine has replaced the first.
    pub(crate) fn is_copy(&self) -> bool {
        let first = self.dir().join("engine");
        match self {
            Self::Memory { store, .. } => !store.exists(&first).expect("a store in memory"),
            Self::Real(_) => !first.exists(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        match self {
            Self::Memory { .. } => Path::new("/data"),
            Self::Real(dir) => dir,
        }
    }

    fn machine(&self, network: &MemoryNetwork, host: &str) -> Machine {
        match self {
            Self::Memory { disk, store } => Machine {
                disk: Arc::new(disk.clone()),
                engines: Arc::new(store.clone()),
                ..Machine::in_memory(network, host).expect("entropy")
            },
            Self::Real(_) => Machine {
                transport: network.host(host),
                ..Machine::real(16 << 20).expect("entropy")
            },
        }
    }
}

/// Opens engines with another factory, and shows the test the last one.
pub(crate) struct Shown {
    factory: Arc<dyn EngineFactory>,
    engine: Engine,
}

impl EngineFactory for Shown {
    fn open(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
        let engine = self.factory.open(dir)?;
        *self.engine.lock().expect("no panic") = Some(Arc::clone(&engine));
        Ok(engine)
    }

    fn open_copy(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
        self.factory.open_copy(dir)
    }

    fn exists(&self, dir: &Path) -> Result<bool, EngineError> {
        self.factory.exists(dir)
    }

    fn remove(&self, dir: &Path) -> Result<(), EngineError> {
        self.factory.remove(dir)
    }
}

type Engine = Arc<Mutex<Option<Arc<dyn StorageEngine>>>>;

/// A group of nodes `n1`, `n2`, … in this process.
pub(crate) struct Group {
    pub(crate) network: MemoryNetwork,
    pub(crate) storages: Vec<Storage>,
    pub(crate) nodes: Vec<Option<Env>>,
    pub(crate) runtime: Runtime,
    engines: Vec<Engine>,
    numbers: Numbers,
    pub(crate) repair: Repair,
    /// Number of nodes that found the group.
    founders: usize,
    tokens: BTreeMap<usize, JoinToken>,
    ports: BTreeMap<usize, u16>,
    metadata: BTreeMap<usize, BTreeMap<String, String>>,
    /// Set once requested: a clone keeps a node open.
    shared: Option<Nodes>,
    _dir: Option<TempDir>,
}

/// The open nodes of a group, for threads that outlive an open.
#[derive(Clone, Default)]
pub(crate) struct Nodes(Arc<Mutex<BTreeMap<usize, Env>>>);

impl Nodes {
    /// The open node at this index, modulo their number.
    pub(crate) fn get(&self, at: usize) -> Option<Env> {
        let nodes = self.0.lock().expect("no panic");
        let mut round = nodes.values().cycle();
        round.nth(at % nodes.len().max(1)).cloned()
    }
}

impl Group {
    /// Nodes on in-memory disks.
    pub(crate) fn in_memory(nodes: usize, numbers: Numbers) -> Self {
        Self::in_memory_with(nodes, numbers, Repair::default())
    }

    /// Nodes on in-memory disks, with this repair setting.
    pub(crate) fn in_memory_with(nodes: usize, numbers: Numbers, repair: Repair) -> Self {
        let storages = (0..nodes).map(|_| Storage::memory()).collect();
        let mut group = Self::unopened(storages, numbers, None);
        group.repair = repair;
        group.opened()
    }

    /// Nodes on real disks, with the real engine.
    pub(crate) fn on_disk(nodes: usize, numbers: Numbers) -> Self {
        let dir = TempDir::new().expect("a directory");
        let storages = (1..=nodes).map(|n| Storage::Real(dir.path().join(format!("n{n}"))));
        Self::unopened(storages.collect(), numbers, Some(dir)).opened()
    }

    fn opened(mut self) -> Self {
        for at in 0..self.nodes.len() {
            self.reopen(at).expect("opened");
        }
        self.wait_ready();
        self
    }

    /// Nodes that have not been opened yet.
    pub(crate) fn unopened(storages: Vec<Storage>, numbers: Numbers, dir: Option<TempDir>) -> Self {
        Self {
            network: MemoryNetwork::new(),
            founders: storages.len(),
            tokens: BTreeMap::new(),
            ports: BTreeMap::new(),
            metadata: BTreeMap::new(),
            shared: None,
            nodes: storages.iter().map(|_| None).collect(),
            engines: storages.iter().map(|_| Engine::default()).collect(),
            storages,
            runtime: runtime(),
            numbers,
            repair: Repair::default(),
            _dir: dir,
        }
    }

    pub(crate) fn config(&self, at: usize) -> RepConfig {
        let list = (1..=self.founders).map(|n| format!("n{n}=n{n}:7400"));
        let bootstrap = match self.tokens.get(&at) {
            Some(token) => Bootstrap::join(token.clone()),
            None => Bootstrap::expect(list).expect("a list"),
        };
        let port = self.ports.get(&at).copied().unwrap_or(7400);
        let builder = RepConfig::builder("promises", name(at))
            .data_dir(self.storages[at].dir())
            .listen(format!("{}:{port}", name(at)))
            .bootstrap(bootstrap)
            .repair(self.repair);
        let set = |builder: steadfast::RepConfigBuilder, (key, value): &(&str, u64)| {
            builder.set(*key, *value)
        };
        let builder = self.numbers.iter().fold(builder, set);
        let metadata = self.metadata.get(&at).cloned().unwrap_or_default();
        let builder = metadata
            .into_iter()
            .fold(builder, |builder, (name, value)| {
                builder.metadata(name, value)
            });
        builder.build().expect("a configuration")
    }

    pub(crate) fn machine(&self, at: usize) -> Machine {
        let machine = self.storages[at].machine(&self.network, &name(at));
        let shown = Shown {
            factory: machine.engines,
            engine: Arc::clone(&self.engines[at]),
        };
        Machine {
            engines: Arc::new(shown),
            ..machine
        }
    }

    /// The engine a node has opened.
    pub(crate) fn engine(&self, at: usize) -> Arc<dyn StorageEngine> {
        let engine = self.engines[at].lock().expect("no panic").clone();
        engine.expect("the node is open")
    }

    /// Opens a node on what its storage holds.
    pub(crate) fn reopen(&mut self, at: usize) -> Result<(), OpenError> {
        let opening = Env::open_on(self.config(at), self.machine(at));
        let node = self.runtime.block_on(opening)?;
        self.share(at, Some(node.clone()));
        self.nodes[at] = Some(node);
        Ok(())
    }

    fn share(&self, at: usize, node: Option<Env>) {
        let Some(shared) = &self.shared else { return };
        let mut shared = shared.0.lock().expect("no panic");
        match node {
            Some(node) => shared.insert(at, node),
            None => shared.remove(&at),
        };
    }

    /// The open nodes, kept current.
    pub(crate) fn shared_nodes(&mut self) -> Nodes {
        let shared = self.shared.get_or_insert_default().clone();
        for (at, node) in self.nodes.iter().enumerate() {
            self.share(at, node.clone());
        }
        shared
    }

    /// Opens another node, which the group admits; returns its index.
    pub(crate) fn join(&mut self, node_type: NodeType) -> usize {
        // A founder can be master a moment before it belongs to its group.
        let mut token = None;
        eventually("a group", || {
            token = self.master().join_token(node_type);
            token.is_some()
        });
        let token = token.expect("just made");
        self.storages.push(Storage::memory());
        self.engines.push(Engine::default());
        self.nodes.push(None);
        let at = self.nodes.len() - 1;
        self.open_with(at, token);
        at
    }

    /// Opens a node with a token.
    pub(crate) fn open_with(&mut self, at: usize, token: JoinToken) {
        self.tokens.insert(at, token);
        self.reopen(at).expect("opened");
    }

    /// Loses everything that a closed in-memory node has.
    pub(crate) fn wipe(&mut self, at: usize) {
        self.storages[at] = Storage::memory();
    }

    /// Sets the port a closed node listens on from now on.
    pub(crate) fn listen_on(&mut self, at: usize, port: u16) {
        self.ports.insert(at, port);
    }

    /// Sets what a closed node publishes from now on when it opens.
    pub(crate) fn publish(&mut self, at: usize, metadata: BTreeMap<String, String>) {
        self.metadata.insert(at, metadata);
    }

    /// Waits until every open node has persisted what any of them has.
    pub(crate) fn wait_persisted(&self) {
        eventually("everything everywhere", || {
            let persisted = self.open_nodes().map(|node| node.status().persisted);
            let persisted: Vec<_> = persisted.collect();
            persisted.iter().all(|of| *of == persisted[0])
        });
    }

    /// Whether the log of an in-memory node contains these bytes.
    pub(crate) fn log_holds(&self, at: usize, bytes: &[u8]) -> bool {
        let (disk, dir) = (self.storages[at].disk(), Path::new("/data/log"));
        let names = disk.list(dir).expect("a log");
        let mut files = names.iter().filter_map(|name| disk.bytes(&dir.join(name)));
        let holds = |file: Vec<u8>| file.windows(bytes.len()).any(|window| window == bytes);
        files.any(holds)
    }

    /// Closes a node; it can be reopened once this returns.
    pub(crate) fn close(&mut self, at: usize) {
        self.share(at, None);
        if let Some(node) = self.nodes[at].take() {
            node.close().expect("closed");
        }
    }

    /// Closes a node that has stopped, ignoring its error.
    pub(crate) fn close_failed(&mut self, at: usize) {
        self.share(at, None);
        if let Some(node) = self.nodes[at].take() {
            node.close().ok();
        }
    }

    /// Cuts the power of an in-memory node.
    pub(crate) fn crash(&mut self, at: usize) {
        let Storage::Memory { disk, store } = &self.storages[at] else {
            panic!("only a disk in memory can crash");
        };
        disk.crash();
        store.crash(0);
        self.share(at, None);
        if let Some(node) = self.nodes[at].take() {
            // Its error about a disk that is gone does not matter.
            node.close().ok();
        }
    }

    pub(crate) fn node(&self, at: usize) -> &Env {
        self.nodes[at].as_ref().expect("the node is open")
    }

    pub(crate) fn open_nodes(&self) -> impl Iterator<Item = &Env> {
        self.nodes.iter().flatten()
    }

    pub(crate) fn wait_ready(&self) {
        for node in self.open_nodes() {
            node.wait_ready(PATIENCE).expect("ready");
        }
    }

    /// The open node, other than `except`, that takes writes.
    pub(crate) fn master_except(&self, except: Option<usize>) -> usize {
        let mut found = None;
        eventually("a master", || {
            let is_master = |at: &usize| {
                let node = self.nodes[*at].as_ref();
                node.is_some_and(|node| node.state().role == Role::Master)
            };
            let mut candidates = (0..self.nodes.len()).filter(|at| Some(*at) != except);
            found = candidates.find(is_master);
            found.is_some()
        });
        found.expect("just found")
    }

    pub(crate) fn master(&self) -> &Env {
        self.node(self.master_except(None))
    }

    /// Waits until all open nodes hold the same data, and returns their digest.
    pub(crate) fn digest(&self) -> u128 {
        let mut digest = 0;
        eventually("equal digests", || {
            let digests = self.open_nodes().map(|node| match node.digest() {
                Ok(digest) => Some(digest),
                Err(ReadError::Restoring) => None,
                Err(error) => panic!("{error}: {}", node.status().waiting_for),
            });
            let Some(digests) = digests.collect::<Option<Vec<_>>>() else {
                return false;
            };
            digest = digests[0].1;
            digests.iter().all(|other| *other == digests[0])
        });
        digest
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for at in 0..self.nodes.len() {
            self.storages[at].release();
            if let Some(node) = self.nodes[at].take() {
                node.close().ok();
            }
        }
    }
}

impl Storage {
    fn release(&self) {
        if let Self::Memory { disk, .. } = self {
            disk.hold_syncs(false);
        }
    }
}

pub(crate) fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

pub(crate) fn name(at: usize) -> String {
    format!("n{}", at + 1)
}

pub(crate) fn put(
    node: &ReplicatedEnvironment,
    key: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
) -> Result<CommitToken, WriteError> {
    let written = node.write(|txn| txn.database("d")?.put(&key, &value));
    Ok(written?.token)
}

pub(crate) fn get(
    node: &ReplicatedEnvironment,
    policy: ConsistencyPolicy,
    key: impl AsRef<[u8]>,
) -> Result<Option<Vec<u8>>, ReadError> {
    let value = node.read(policy, |s| s.database("d")?.get(&key))?;
    Ok(value.map(|value| value.to_vec()))
}

pub(crate) fn number(value: Option<impl AsRef<[u8]>>) -> u64 {
    let decode = |value: &[u8]| u64::from_le_bytes(value.try_into().expect("eight bytes"));
    value.map_or(0, |value| decode(value.as_ref()))
}
