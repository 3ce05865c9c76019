//! Groups in one process, for the tests of applications: nodes that stop, crash, start again with
//! their data, and are cut off.
//!
//! ```text
//!   node ──► its own disk and store in memory, which outlive it ──► the next node of that name
//!     └────► one network for all, on which a node can be cut off
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::select_all;
use steadfast_net::MemoryNetwork;
use tokio::time::timeout;

use crate::config::{Bootstrap, RepConfig, RepConfigBuilder};
use crate::engine::MemoryStore;
use crate::env::ReplicatedEnvironment;
use crate::error::{OpenError, ReadyError};
use crate::listener::Role;
use crate::log::MemoryDisk;
use crate::machine::{Machine, Threads};

/// How long a new group may take to form. Only a failure takes that long.
const FORMING_MAX: Duration = Duration::from_secs(30);

/// Size of a log segment. A disk in memory takes real memory for each, and a start goes through it.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// The port of every node; each has a host of its own.
const PORT: u16 = 7400;

/// A group of nodes in this process, for the tests of an application. They are called `n1`, `n2`, …
///
/// The nodes are real ones, on disks and a network in memory. A node that stopped or crashed can be
/// started again, with its data. So that it starts in milliseconds, its log has segments of 8 MiB: a
/// transaction may write 4 MiB, unless [`InMemoryGroup::configured`] sets `log_segment_bytes`. The
/// methods that take time have an `_async` twin. A group that was
/// made by [`InMemoryGroup::new_async`] runs on the caller's runtime, whose clock may be paused: the
/// waits of the nodes then take no time. On a current-thread runtime use the twins only, of the
/// group and of its nodes: what blocks waits forever there.
///
/// ```
/// use std::time::Duration;
/// use steadfast::{ConsistencyPolicy, InMemoryGroup};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut group = InMemoryGroup::new(3)?;
/// let master = group.wait_master(Duration::from_secs(10))?;
/// let name = master.status().node.name;
/// master.database("orders").put("0001", "two seats")?;
///
/// group.crash(&name)?; // another node takes over
/// let master = group.wait_master(Duration::from_secs(10))?;
/// assert!(master.database("orders").get(ConsistencyPolicy::Linearizable, "0001")?.is_some());
///
/// group.start(&name)?.wait_ready(Duration::from_secs(10))?;
/// # Ok(())
/// # }
/// ```
pub struct InMemoryGroup {
    network: MemoryNetwork,
    /// In the order of their numbers.
    hosts: Vec<Host>,
    configure: Arc<dyn Fn(RepConfigBuilder) -> RepConfigBuilder + Send + Sync>,
    threads: Threads,
}

/// What outlives a node, and the node itself while it runs.
struct Host {
    name: String,
    disk: MemoryDisk,
    store: MemoryStore,
    node: Option<ReplicatedEnvironment>,
    is_cut_off: bool,
}

/// Why an [`InMemoryGroup`] did not do what a test wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InMemoryError {
    /// A node could not be opened, or not be closed.
    #[error(transparent)]
    Node(#[from] OpenError),
    /// The group has not formed.
    #[error(transparent)]
    NotReady(#[from] ReadyError),
    /// No node has this name.
    #[error("no node is called {name:?}: they are n1, n2, … as many as the group was made with")]
    NoSuchNode {
        /// The name.
        name: String,
    },
    /// The node does not run: start it first.
    #[error("{name} does not run; start it first")]
    NotRunning {
        /// The node.
        name: String,
    },
    /// The node runs: stop or crash it first.
    #[error("{name} runs already; stop it first")]
    Running {
        /// The node.
        name: String,
    },
    /// No node that can be reached has become master in time.
    #[error("no node is master after {after:?}")]
    NoMaster {
        /// How long the call waited.
        after: Duration,
    },
}

impl InMemoryGroup {
    /// A new group of `nodes` nodes. Returns once each knows the master.
    ///
    /// # Errors
    /// When the nodes cannot be started, or have formed no group within 30 s.
    pub fn new(nodes: usize) -> Result<Self, InMemoryError> {
        Self::configured(nodes, |builder| builder)
    }

    /// As [`InMemoryGroup::new`], on the caller's runtime.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast::InMemoryGroup;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // As with #[tokio::test(start_paused = true)]
    /// let runtime = tokio::runtime::Builder::new_current_thread()
    ///     .enable_all()
    ///     .start_paused(true)
    ///     .build()?;
    /// runtime.block_on(async {
    ///     let mut group = InMemoryGroup::new_async(3).await?;
    ///     group.cut_off("n1")?;
    ///     let patience = Duration::from_secs(3600); // the clock jumps: it takes no time
    ///     let master = group.wait_master_async(patience).await?;
    ///     master.database("orders").put_async("0001", "two seats").await?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub async fn new_async(nodes: usize) -> Result<Self, InMemoryError> {
        Self::configured_async(nodes, |builder| builder).await
    }

    /// As [`InMemoryGroup::new`]; `configure` sets whatever else a node is to be configured with,
    /// whenever it starts.
    ///
    /// # Errors
    /// As there.
    pub fn configured(
        nodes: usize,
        configure: impl Fn(RepConfigBuilder) -> RepConfigBuilder + Send + Sync + 'static,
    ) -> Result<Self, InMemoryError> {
        let mut group = Self::unopened(nodes, configure, Threads::Own);
        for name in group.names() {
            group.start(&name)?;
        }
        for node in group.nodes() {
            node.wait_ready(FORMING_MAX)?;
        }
        Ok(group)
    }

    /// As [`InMemoryGroup::configured`], on the caller's runtime.
    ///
    /// # Errors
    /// As there.
    pub async fn configured_async(
        nodes: usize,
        configure: impl Fn(RepConfigBuilder) -> RepConfigBuilder + Send + Sync + 'static,
    ) -> Result<Self, InMemoryError> {
        // Threads of their own would take real time, for which a paused clock does not wait.
        let mut group = Self::unopened(nodes, configure, Threads::Tasks);
        for name in group.names() {
            group.start_async(&name).await?;
        }
        for node in group.nodes() {
            node.wait_ready_async(FORMING_MAX).await?;
        }
        Ok(group)
    }

    fn unopened(
        nodes: usize,
        configure: impl Fn(RepConfigBuilder) -> RepConfigBuilder + Send + Sync + 'static,
        threads: Threads,
    ) -> Self {
        let host = |n: usize| Host {
            name: format!("n{n}"),
            disk: MemoryDisk::new(),
            store: MemoryStore::new(),
            node: None,
            is_cut_off: false,
        };
        Self {
            network: MemoryNetwork::new(),
            hosts: (1..=nodes).map(host).collect(),
            configure: Arc::new(configure),
            threads,
        }
    }

    fn names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.name.clone()).collect()
    }

    /// The nodes that run, in the order of their numbers.
    pub fn nodes(&self) -> impl Iterator<Item = &ReplicatedEnvironment> {
        self.hosts.iter().filter_map(|host| host.node.as_ref())
    }

    /// The nodes that run. They stay connected, and cannot be started again.
    pub fn into_nodes(self) -> Vec<ReplicatedEnvironment> {
        let hosts = self.hosts.into_iter();
        hosts.filter_map(|host| host.node).collect()
    }

    /// A node that runs.
    ///
    /// # Errors
    /// [`InMemoryError::NoSuchNode`], [`InMemoryError::NotRunning`].
    pub fn node(&self, name: &str) -> Result<&ReplicatedEnvironment, InMemoryError> {
        let node = self.host(name)?.node.as_ref();
        node.ok_or_else(|| not_running(name))
    }

    /// Closes a node, which hands over first if it is the master. Its data stays.
    ///
    /// # Errors
    /// As [`InMemoryGroup::node`], and those of [`ReplicatedEnvironment::close`].
    pub fn stop(&mut self, name: &str) -> Result<(), InMemoryError> {
        let node = self.take(name)?;
        Ok(node.close()?)
    }

    /// As [`InMemoryGroup::stop`].
    ///
    /// # Errors
    /// As there.
    pub async fn stop_async(&mut self, name: &str) -> Result<(), InMemoryError> {
        let node = self.take(name)?;
        Ok(node.close_async().await?)
    }

    /// Ends a node as a power cut would: its connections break, and whatever it has not synced is
    /// lost. What it has acknowledged with the default durability is not.
    ///
    /// # Errors
    /// As [`InMemoryGroup::node`].
    pub fn crash(&mut self, name: &str) -> Result<(), InMemoryError> {
        let node = self.cut_power(name)?;
        // It fails: its disk is gone.
        node.close().ok();
        self.restore_network(name);
        Ok(())
    }

    /// As [`InMemoryGroup::crash`].
    ///
    /// # Errors
    /// As there.
    pub async fn crash_async(&mut self, name: &str) -> Result<(), InMemoryError> {
        let node = self.cut_power(name)?;
        // It fails: its disk is gone.
        node.close_async().await.ok();
        self.restore_network(name);
        Ok(())
    }

    /// Opens a node again, with the data that it had. Returns as
    /// [`ReplicatedEnvironment::open`] does; [`ReplicatedEnvironment::wait_ready`] waits until it
    /// can be used.
    ///
    /// # Errors
    /// [`InMemoryError::NoSuchNode`], [`InMemoryError::Running`], and those of an open.
    pub fn start(&mut self, name: &str) -> Result<&ReplicatedEnvironment, InMemoryError> {
        let (config, machine) = self.prepare(name)?;
        let node = ReplicatedEnvironment::open_on_own_runtime(config, machine)?;
        Ok(self.host_mut(name)?.node.insert(node))
    }

    /// As [`InMemoryGroup::start`], on the caller's runtime.
    ///
    /// # Errors
    /// As there.
    pub async fn start_async(
        &mut self,
        name: &str,
    ) -> Result<&ReplicatedEnvironment, InMemoryError> {
        let (config, machine) = self.prepare(name)?;
        let node = ReplicatedEnvironment::open_on(config, machine).await?;
        Ok(self.host_mut(name)?.node.insert(node))
    }

    /// Cuts a node off from all others: its connections break, and it gets no new ones.
    ///
    /// # Errors
    /// [`InMemoryError::NoSuchNode`].
    pub fn cut_off(&mut self, name: &str) -> Result<(), InMemoryError> {
        self.host_mut(name)?.is_cut_off = true;
        self.network.isolate(name);
        Ok(())
    }

    /// Lets a node that was cut off reach the others again.
    ///
    /// # Errors
    /// [`InMemoryError::NoSuchNode`].
    pub fn heal(&mut self, name: &str) -> Result<(), InMemoryError> {
        self.host_mut(name)?.is_cut_off = false;
        self.network.heal(name);
        Ok(())
    }

    /// The node that takes writes now, if there is one that is not cut off.
    pub fn master(&self) -> Option<&ReplicatedEnvironment> {
        let masters = self.reachable().map(|node| (node.state(), node));
        let masters = masters.filter(|(state, _)| state.role == Role::Master);
        // One that was deposed may not know it yet.
        let newest = masters.max_by_key(|(state, _)| state.term);
        newest.map(|(_, node)| node)
    }

    /// Waits until a node that is not cut off takes writes.
    ///
    /// # Errors
    /// [`InMemoryError::NoMaster`].
    pub fn wait_master(&self, within: Duration) -> Result<&ReplicatedEnvironment, InMemoryError> {
        let no_master = InMemoryError::NoMaster { after: within };
        let mut nodes = self.nodes();
        let Some(any) = nodes.find(|node| node.ground().hold().is_some()) else {
            return Err(no_master);
        };
        any.block_on(self.wait_master_async(within))
    }

    /// As [`InMemoryGroup::wait_master`].
    ///
    /// # Errors
    /// As there.
    pub async fn wait_master_async(
        &self,
        within: Duration,
    ) -> Result<&ReplicatedEnvironment, InMemoryError> {
        let no_master = || InMemoryError::NoMaster { after: within };
        let waiting = self.reachable().map(|node| {
            let mut role = node.lifecycle().role();
            async move {
                if role
                    .wait_for(|state| state.role == Role::Master)
                    .await
                    .is_err()
                {
                    std::future::pending::<()>().await;
                }
            }
            .boxed()
        });
        let waiting: Vec<_> = waiting.collect();
        if waiting.is_empty() {
            return Err(no_master());
        }
        let waited = timeout(within, select_all(waiting)).await;
        waited.map_err(|_| no_master())?;
        self.master().ok_or_else(no_master)
    }

    fn reachable(&self) -> impl Iterator<Item = &ReplicatedEnvironment> {
        let hosts = self.hosts.iter().filter(|host| !host.is_cut_off);
        hosts.filter_map(|host| host.node.as_ref())
    }

    fn host(&self, name: &str) -> Result<&Host, InMemoryError> {
        let mut hosts = self.hosts.iter();
        let found = hosts.find(|host| host.name == name);
        found.ok_or_else(|| no_such_node(name))
    }

    fn host_mut(&mut self, name: &str) -> Result<&mut Host, InMemoryError> {
        let mut hosts = self.hosts.iter_mut();
        let found = hosts.find(|host| host.name == name);
        found.ok_or_else(|| no_such_node(name))
    }

    fn take(&mut self, name: &str) -> Result<ReplicatedEnvironment, InMemoryError> {
        let node = self.host_mut(name)?.node.take();
        node.ok_or_else(|| not_running(name))
    }

    /// Takes a node whose disk has lost what was not synced, and which nobody hears any more.
    fn cut_power(&mut self, name: &str) -> Result<ReplicatedEnvironment, InMemoryError> {
        let node = self.take(name)?;
        self.network.isolate(name);
        let host = self.host(name)?;
        host.disk.crash();
        host.store.crash(0);
        Ok(node)
    }

    fn restore_network(&self, name: &str) {
        if self.host(name).is_ok_and(|host| !host.is_cut_off) {
            self.network.heal(name);
        }
    }

    fn prepare(&self, name: &str) -> Result<(RepConfig, Machine), InMemoryError> {
        let host = self.host(name)?;
        if host.node.is_some() {
            return Err(InMemoryError::Running {
                name: name.to_owned(),
            });
        }
        let names = self.hosts.iter().map(|host| &host.name);
        let list = names.map(|name| format!("{name}={name}:{PORT}"));
        let builder = RepConfig::builder("in-memory", name)
            .data_dir("/in-memory")
            .listen(format!("{name}:{PORT}"))
            .bootstrap(Bootstrap::expect(list).map_err(OpenError::from)?)
            .set("worker_threads", 1)
            .set("log_segment_bytes", SEGMENT_BYTES);
        let config = (self.configure)(builder).build().map_err(OpenError::from)?;
        let machine = Machine {
            disk: Arc::new(host.disk.clone()),
            engines: Arc::new(host.store.clone()),
            threads: self.threads,
            ..Machine::in_memory(&self.network, name)?
        };
        Ok((config, machine))
    }
}

impl ReplicatedEnvironment {
    /// A group of `nodes` connected nodes in this process, with in-memory disks, for an
    /// application's tests. Returns once it has a master. An [`InMemoryGroup`] can also stop nodes
    /// and start them again.
    ///
    /// # Errors
    /// When the nodes cannot be started, or know no master within 30 s.
    pub fn in_memory_group(nodes: usize) -> Result<Vec<Self>, OpenError> {
        let group = InMemoryGroup::new(nodes).map_err(|error| match error {
            InMemoryError::Node(error) => error,
            error => OpenError::Start(error.to_string()),
        })?;
        Ok(group.into_nodes())
    }
}

impl std::fmt::Debug for InMemoryGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.hosts.iter();
        let runs = nodes.map(|host| (&host.name, host.node.is_some()));
        f.debug_struct("InMemoryGroup")
            .field("runs", &runs.collect::<BTreeMap<_, _>>())
            .finish_non_exhaustive()
    }
}

fn no_such_node(name: &str) -> InMemoryError {
    let name = name.to_owned();
    InMemoryError::NoSuchNode { name }
}

fn not_running(name: &str) -> InMemoryError {
    let name = name.to_owned();
    InMemoryError::NotRunning { name }
}
