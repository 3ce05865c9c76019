//! The environment: what users open, write, read and close. Delegates only.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use steadfast_net::{MemoryNetwork, process};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::task::JoinHandle;

use crate::config::{Bootstrap, RepConfig};
use crate::database::{Database, WriteBatch};
use crate::error::{FeedError, OpenError, ReadError, ReadyError, WriteError};
use crate::events::GroupEvents;
use crate::group::NodeType;
use crate::group::admin::{AdminCommand, AdminError};
use crate::group::join::JoinToken;
use crate::ids::Vlsn;
use crate::lifecycle::Lifecycle;
use crate::listener::{RoleState, StateChanges};
use crate::machine::Machine;
use crate::observe::status::NodeStatus;
use crate::open_transaction::OpenTransaction;
use crate::subscription::{Feed, FeedRuntime, SubscribeOptions};
use crate::token::{CommitToken, TokenOutcome};
use crate::txn::consistency::{ConsistencyPolicy, ReadOptions};
use crate::txn::durability::Durability;
use crate::txn::transaction::{Snapshot, Transaction};

/// A node of a replicated group, in this process. Clones are the same node; the last one dropped
/// closes it.
///
/// Every call has a blocking form and an `_async` twin. Blocking calls work on any thread, and
/// block it; within an async task of the application they hold up its worker, so prefer the twins
/// there. The functions given to `write` and `read` run on the caller's thread; what they read from
/// the engine may wait for the disk.
#[derive(Clone)]
pub struct ReplicatedEnvironment {
    handle: Arc<EnvironmentHandle>,
}

struct EnvironmentHandle {
    lifecycle: Arc<Lifecycle>,
    handle: Handle,
    /// Whether the runtime is the application's.
    is_guest: bool,
    own: Mutex<Option<Runtime>>,
}

impl ReplicatedEnvironment {
    /// Opens the node that `config` describes, on this machine.
    ///
    /// Returns when the node listens and, where it belongs to a group already, has replayed its
    /// log. See [`ReplicatedEnvironment::wait_ready`] for when it can be used.
    ///
    /// # Errors
    /// See [`OpenError`]: nothing was changed then.
    pub fn open(config: RepConfig) -> Result<Self, OpenError> {
        let machine = Machine::real(config.tuning.engine_cache_bytes)?;
        Self::open_on_own_runtime(config, machine)
    }

    /// As [`ReplicatedEnvironment::open`], from an async task. When the future is dropped before it
    /// is done, the node is closed in the background as soon as it is open.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_async(config: RepConfig) -> Result<Self, OpenError> {
        let machine = Machine::real(config.tuning.engine_cache_bytes)?;
        let (handle, own) = runtime(&config)?;
        Opening::start(config, machine, handle, own).done().await
    }

    /// Opens a node on a machine that is handed in, on the runtime of the caller. For tests and
    /// simulators: nothing else is used of the real machine. A dropped future is as with
    /// [`ReplicatedEnvironment::open_async`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_on(config: RepConfig, machine: Machine) -> Result<Self, OpenError> {
        let handle = Handle::current();
        Opening::start(config, machine, handle, None).done().await
    }

    /// A group of `nodes` connected nodes in this process, on disks in memory, for tests of an
    /// application. Returns when it has a master.
    ///
    /// # Errors
    /// When the nodes cannot be started, or find no master within 30 s.
    pub fn in_memory_group(nodes: usize) -> Result<Vec<Self>, OpenError> {
        let network = MemoryNetwork::new();
        let list: Vec<_> = (1..=nodes).map(|n| format!("n{n}=n{n}:7400")).collect();
        let open = |n: usize| {
            let name = format!("n{n}");
            let config = RepConfig::builder("in-memory", &name)
                .data_dir(PathBuf::from("/in-memory"))
                .listen(format!("{name}:7400"))
                .bootstrap(Bootstrap::expect(&list)?)
                .set("worker_threads", 1)
                .build()?;
            Self::open_on_own_runtime(config, Machine::in_memory(&network, &name)?)
        };
        let group: Vec<_> = (1..=nodes).map(open).collect::<Result<_, _>>()?;
        for node in &group {
            let ready = node.wait_ready(Duration::from_secs(30));
            ready.map_err(|error| OpenError::Start(error.to_string()))?;
        }
        Ok(group)
    }

    fn open_on_own_runtime(config: RepConfig, machine: Machine) -> Result<Self, OpenError> {
        let (handle, own) = runtime(&config)?;
        let is_guest = own.is_none();
        block_on(
            is_guest,
            Opening::start(config, machine, handle, own).done(),
        )
    }

    /// Waits until the node can be used: it belongs to a group, has replayed its log, and knows a
    /// master.
    ///
    /// # Errors
    /// See [`ReadyError`]; on a timeout it says what is missing, and whom the node waits for.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), ReadyError> {
        self.block_on(self.wait_ready_async(timeout))
    }

    /// As [`ReplicatedEnvironment::wait_ready`].
    ///
    /// # Errors
    /// See [`ReadyError`].
    pub async fn wait_ready_async(&self, timeout: Duration) -> Result<(), ReadyError> {
        self.handle.lifecycle.wait_ready(timeout).await
    }

    /// Runs `transaction` and commits what it did, as durably as the configuration says: on the disks
    /// of a majority of the nodes, if it says nothing.
    ///
    /// The function sees one consistent state and its own writes. It is run again when something
    /// that it read was changed by another transaction before it could commit, so it must have no
    /// effect but through the transaction; after some conflicts, with a short wait after each, it runs
    /// alone, and so gets through. It must not write to
    /// the same environment by other means than the transaction. An error that it returns aborts
    /// the transaction and comes back; see [`WriteError::abort`] for errors of your own.
    ///
    /// # Errors
    /// See [`WriteError`]: in every case but `OutcomeUnknown` and `InsufficientAcks` nothing was
    /// written.
    pub fn write(
        &self,
        transaction: impl FnMut(&Transaction) -> Result<(), WriteError>,
    ) -> Result<CommitToken, WriteError> {
        self.block_on(self.write_async(transaction))
    }

    /// As [`ReplicatedEnvironment::write`].
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write_async(
        &self,
        transaction: impl FnMut(&Transaction) -> Result<(), WriteError>,
    ) -> Result<CommitToken, WriteError> {
        self.handle.lifecycle.write(None, transaction).await
    }

    /// As [`ReplicatedEnvironment::write`], as durably as `durability` says. See [`Durability`] for
    /// what a failover may do to a write that no majority has acknowledged.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn write_with(
        &self,
        durability: Durability,
        transaction: impl FnMut(&Transaction) -> Result<(), WriteError>,
    ) -> Result<CommitToken, WriteError> {
        self.block_on(self.write_with_async(durability, transaction))
    }

    /// As [`ReplicatedEnvironment::write_with`].
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write_with_async(
        &self,
        durability: Durability,
        transaction: impl FnMut(&Transaction) -> Result<(), WriteError>,
    ) -> Result<CommitToken, WriteError> {
        let lifecycle = &self.handle.lifecycle;
        lifecycle.write(Some(durability), transaction).await
    }

    /// What became of the write of a token: one of an error, or one that was acknowledged without
    /// a majority. Any node of the group can be asked, as far back as its log reaches.
    ///
    /// A node that does not know asks how far the group is, and waits until it has come so far,
    /// `read_timeout_ms` at the most.
    ///
    /// # Errors
    /// [`ReadError::ForeignToken`] for a token of another group; [`ReadError::HistoryGone`], and
    /// those of a read.
    pub fn outcome(&self, token: CommitToken) -> Result<TokenOutcome, ReadError> {
        self.block_on(self.outcome_async(token))
    }

    /// As [`ReplicatedEnvironment::outcome`].
    ///
    /// # Errors
    /// As [`ReplicatedEnvironment::outcome`].
    pub async fn outcome_async(&self, token: CommitToken) -> Result<TokenOutcome, ReadError> {
        self.handle.lifecycle.outcome(token).await
    }

    /// Begins a transaction that is committed by a call, for code that cannot be a function that is
    /// run again.
    ///
    /// # Errors
    /// See [`WriteError`]: [`WriteError::NotMaster`] on a replica.
    pub fn begin_transaction(&self) -> Result<OpenTransaction, WriteError> {
        self.block_on(self.begin_transaction_async())
    }

    /// As [`ReplicatedEnvironment::begin_transaction`].
    ///
    /// # Errors
    /// See [`WriteError`]: [`WriteError::NotMaster`] on a replica.
    pub async fn begin_transaction_async(&self) -> Result<OpenTransaction, WriteError> {
        let transaction = self.handle.lifecycle.begin_transaction().await?;
        Ok(OpenTransaction::new(self.clone(), transaction))
    }

    /// The database of this name, for operations that are a transaction each. Its name is looked at
    /// when it is used.
    pub fn database(&self, name: &str) -> Database {
        Database::new(self.clone(), name)
    }

    /// Does everything in `batch` together, durably on a majority of the nodes. It reads nothing and
    /// conflicts with nobody.
    ///
    /// # Errors
    /// See [`WriteError`]: in every case but `OutcomeUnknown` nothing was written.
    pub fn write_batch(&self, batch: &WriteBatch) -> Result<CommitToken, WriteError> {
        self.block_on(self.write_batch_async(batch))
    }

    /// As [`ReplicatedEnvironment::write_batch`].
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write_batch_async(&self, batch: &WriteBatch) -> Result<CommitToken, WriteError> {
        self.write_async(|txn| batch.run(txn)).await
    }

    /// Runs `read` on a consistent snapshot of all databases that is as fresh as `policy` says, and
    /// returns what it returns. A policy may come with a timeout: `policy.within(…)`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read<T>(
        &self,
        policy: impl Into<ReadOptions>,
        read: impl FnOnce(&Snapshot) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let (options, lifecycle) = (policy.into(), &self.handle.lifecycle);
        let snapshot = match options.policy {
            // Nothing to wait for, and so no runtime needed.
            ConsistencyPolicy::Eventual => lifecycle.snapshot_at_hand()?,
            _ => self.block_on(lifecycle.snapshot(options))?,
        };
        read(&snapshot)
    }

    /// As [`ReplicatedEnvironment::read`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_async<T>(
        &self,
        policy: impl Into<ReadOptions>,
        read: impl FnOnce(&Snapshot) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let snapshot = self.handle.lifecycle.snapshot(policy.into()).await?;
        read(&snapshot)
    }

    /// Has the group carry out a change of itself: nodes out, types, priorities, addresses, the master.
    /// Any node can be asked. Returns what was done, in words.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn administer(&self, command: &AdminCommand) -> Result<String, AdminError> {
        self.block_on(self.administer_async(command))
    }

    /// As [`ReplicatedEnvironment::administer`].
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn administer_async(&self, command: &AdminCommand) -> Result<String, AdminError> {
        self.handle.lifecycle.administer(command).await
    }

    /// Shuts the whole group down: the master takes no more writes, waits until every node that answers
    /// has all of them on disk, `within` at the most, and then all close, the master last. Any node can
    /// be asked. Returns what was done, in words; this node closes by itself then, and
    /// [`ReplicatedEnvironment::state_changes`] ends.
    ///
    /// # Errors
    /// See [`AdminError`]: when it is refused, the group goes on as before.
    pub fn shutdown_group(&self, within: Duration) -> Result<String, AdminError> {
        self.block_on(self.shutdown_group_async(within))
    }

    /// As [`ReplicatedEnvironment::shutdown_group`].
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn shutdown_group_async(&self, within: Duration) -> Result<String, AdminError> {
        self.administer_async(&AdminCommand::Shutdown { within })
            .await
    }

    /// A token with which a new node of this type comes into the group: see [`Bootstrap::join`].
    /// `None` until this node belongs to a group.
    pub fn join_token(&self, node_type: NodeType) -> Option<JoinToken> {
        JoinToken::new(&self.status(), node_type)
    }

    /// The states of this node from now on, the present one first.
    pub fn state_changes(&self) -> StateChanges {
        StateChanges::new(self.handle.lifecycle.role())
    }

    /// The transactions that this node applies, from where `options` says, whole and in order, each
    /// once. Served alike by masters and replicas; it goes on while masters change. Does not wait.
    ///
    /// # Errors
    /// [`FeedError::WrongGroup`], [`FeedError::Filter`], [`FeedError::TooMany`],
    /// [`FeedError::NotReady`], [`FeedError::Stopped`], [`FeedError::Closed`]. Whatever else can be
    /// wrong with where it begins comes as its first item.
    pub fn subscribe(&self, options: impl Into<SubscribeOptions>) -> Result<Feed, FeedError> {
        let runtime = FeedRuntime {
            handle: self.handle.handle.clone(),
            is_guest: self.handle.is_guest,
        };
        self.handle.lifecycle.subscribe(options.into(), runtime)
    }

    /// The events of the group, from the present on, as its master sees it: also of members that come
    /// and go, and of nodes that fail and come back. It connects to the nodes as a watcher from
    /// elsewhere does ([`GroupEvents::connect`]), and goes on while this node has no master.
    pub fn group_events(&self) -> GroupEvents {
        let lifecycle = &self.handle.lifecycle;
        lifecycle.group_events(self.handle.handle.clone())
    }

    /// This node's role, and the master that it knows.
    pub fn state(&self) -> RoleState {
        self.handle.lifecycle.role().borrow().clone()
    }

    /// The address on which the node listens.
    pub fn listen_address(&self) -> String {
        self.handle.lifecycle.listen_address().to_owned()
    }

    /// What the node says of itself.
    pub fn status(&self) -> NodeStatus {
        self.handle.lifecycle.status()
    }

    /// A digest of everything that this node has applied, with the last VLSN in it. Nodes that have
    /// the same VLSN have the same digest. Reads all data.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn digest(&self) -> Result<(Vlsn, u128), ReadError> {
        self.handle.lifecycle.digest()
    }

    /// Stops the node: waiting writes learn their outcome as far as it is known, what was applied
    /// is synced, and everything that the node runs has ended when this returns. Closing twice is
    /// fine.
    ///
    /// # Errors
    /// What could not be written. Nothing acknowledged is lost.
    pub fn close(&self) -> Result<(), OpenError> {
        let closed = self.block_on(self.close_async());
        self.handle.end_runtime();
        closed
    }

    /// As [`ReplicatedEnvironment::close`].
    ///
    /// # Errors
    /// What could not be written. Nothing acknowledged is lost.
    pub async fn close_async(&self) -> Result<(), OpenError> {
        self.handle
            .lifecycle
            .close()
            .await
            .map_err(OpenError::Start)
    }

    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.handle.lifecycle
    }

    /// Waits for `work` on this thread; timers in it run on the environment's runtime.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        block_on(self.handle.is_guest, entered(&self.handle.handle, work))
    }
}

/// `work` with its timers and sockets on the runtime of `handle`, wherever it is polled.
pub(crate) async fn entered<T>(handle: &Handle, work: impl Future<Output = T>) -> T {
    // Entered for each poll, not for as long as it takes.
    tokio::pin!(work);
    std::future::poll_fn(|context| {
        let _runtime = handle.enter();
        work.as_mut().poll(context)
    })
    .await
}

/// A node that is being opened. Dropped before it is done, it opens and closes in the background: a
/// node that is half open has threads, files and a port, and only a whole one gives them all back.
struct Opening {
    /// `None` when it is done.
    task: Option<JoinHandle<Result<Arc<Lifecycle>, OpenError>>>,
    handle: Handle,
    own: Option<Runtime>,
}

impl Opening {
    fn start(config: RepConfig, machine: Machine, handle: Handle, own: Option<Runtime>) -> Self {
        let task = Some(handle.spawn(Lifecycle::open(config, machine)));
        Self { task, handle, own }
    }

    async fn done(mut self) -> Result<ReplicatedEnvironment, OpenError> {
        let task = self.task.as_mut().expect("it is waited for once");
        let opened = task.await.unwrap_or_else(|error| Err(died(&error)));
        self.task = None;
        let lifecycle = opened?;
        let own = self.own.take();
        let environment = EnvironmentHandle {
            lifecycle,
            handle: self.handle.clone(),
            is_guest: own.is_none(),
            own: Mutex::new(own),
        };
        Ok(ReplicatedEnvironment {
            handle: Arc::new(environment),
        })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let (task, own) = (self.task.take(), self.own.take());
        // Not waiting for it is what allows this in a task, the runtime's own included.
        let end_runtime = move || own.map(Runtime::shutdown_background);
        let Some(task) = task else {
            end_runtime();
            return;
        };
        let give_up = async move {
            if let Ok(Ok(lifecycle)) = task.await
                && let Err(error) = lifecycle.close().await
            {
                tracing::error!(error, "an environment that nobody waits for was not closed");
            }
            end_runtime();
        };
        self.handle.spawn(give_up);
    }
}

impl EnvironmentHandle {
    /// Gives the runtime up without waiting for it: it has nothing left to run, and waiting is not
    /// allowed where the last handle may be dropped, in an async task.
    fn end_runtime(&self) {
        if let Some(own) = self
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            own.shutdown_background();
        }
    }
}

impl Drop for EnvironmentHandle {
    fn drop(&mut self) {
        if self.lifecycle.is_closed() {
            self.end_runtime();
            return;
        }
        let lifecycle = Arc::clone(&self.lifecycle);
        let closing = self
            .handle
            .spawn(process::in_current(async move { lifecycle.close().await }));
        // On a runtime of our own the closing cannot need this thread; on the application's it may.
        if self.own.lock().is_ok_and(|own| own.is_some()) {
            if let Ok(Err(error)) = pollster::block_on(closing) {
                tracing::error!(error, "the environment was dropped and could not be closed");
            }
            self.end_runtime();
        }
    }
}

/// Waits for `work` on this thread. As a guest on the application's runtime, a worker of it first
/// hands its other tasks to another one: the environment's may be among them.
pub(crate) fn block_on<T>(is_guest: bool, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    // What has nothing to wait for, as most reads, needs nobody who would wake it.
    let context = &mut Context::from_waker(Waker::noop());
    if let Poll::Ready(done) = work.as_mut().poll(context) {
        return done;
    }
    let flavor = Handle::try_current().map(|current| current.runtime_flavor());
    if is_guest && matches!(flavor, Ok(RuntimeFlavor::MultiThread)) {
        tokio::task::block_in_place(|| pollster::block_on(work))
    } else {
        pollster::block_on(work)
    }
}

/// The runtime that the configuration asks for.
fn runtime(config: &RepConfig) -> Result<(Handle, Option<Runtime>), OpenError> {
    if let Some(handle) = &config.runtime {
        return Ok((handle.clone(), None));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Half the cores: the log, the flush and the application have threads of their own, and a
    // commit that stays on one worker needs no wake-up between its steps.
    let workers = config
        .tuning
        .worker_threads
        .unwrap_or_else(|| (cores / 2).clamp(1, 4));
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("steadfast")
        .enable_all()
        .build()
        .map_err(|error| OpenError::Start(format!("no runtime: {error}")))?;
    Ok((runtime.handle().clone(), Some(runtime)))
}

fn died(error: &tokio::task::JoinError) -> OpenError {
    OpenError::Start(format!("opening was interrupted: {error}"))
}
