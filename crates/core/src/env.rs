//! The environment: what users open, write, read and close. It only delegates.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast_net::{TlsTransport, lock, process};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::config::RepConfig;
use crate::database::{Database, WriteBatch};
use crate::error::{FeedError, OpenError, ReadError, ReadyError, WriteError};
use crate::events::GroupEvents;
use crate::feed::{Feed, SharedFeed, SharedFeedOptions, SubscribeOptions};
use crate::ids::Vlsn;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::protection::secured;
use crate::listener::{RoleState, StateChanges};
use crate::machine::Machine;
use crate::node::health::Health;
use crate::node::status::NodeStatus;
use crate::open_transaction::OpenTransaction;
use crate::policy::{ConsistencyPolicy, Durability, ReadOptions};
use crate::runtime::{Ground, OwnRuntime};
use crate::token::{CommitToken, Committed, TokenOutcome};
use crate::txn::transaction::{Snapshot, Transaction};

/// A node of a replicated group, in this process. Clones are the same node; the last one dropped
/// closes it.
///
/// Every call has a blocking form and an `_async` twin. A blocking call works on any thread and
/// blocks it; inside the application's async tasks it would hold up the worker, so prefer the twin
/// there. The closures passed to `write` and `read` run on the caller's thread; their reads from
/// the engine may wait for the disk.
#[derive(Clone)]
pub struct ReplicatedEnvironment {
    handle: Arc<EnvironmentHandle>,
}

struct EnvironmentHandle {
    lifecycle: Arc<Lifecycle>,
    ground: Ground,
    /// `None` on the application's runtime, and when closed.
    own: Mutex<Option<Arc<OwnRuntime>>>,
    /// Whether the application has closed the environment. A group shutdown does not set it.
    closes: watch::Sender<bool>,
    tls: Option<Arc<TlsTransport>>,
}

impl ReplicatedEnvironment {
    /// Opens the node that `config` describes, on this machine.
    ///
    /// Returns once the node listens and, if it already belongs to a group, has replayed its log.
    /// [`ReplicatedEnvironment::wait_ready`] waits until it can be used.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed.
    pub fn open(config: RepConfig) -> Result<Self, OpenError> {
        config.check_protection()?;
        let machine = Machine::real(config.tuning.engine_cache_bytes)?;
        Self::open_on_own_runtime(config, machine)
    }

    /// As [`ReplicatedEnvironment::open`], from an async task. If the future is dropped before it
    /// completes, the node is closed in the background as soon as it is open.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_async(config: RepConfig) -> Result<Self, OpenError> {
        config.check_protection()?;
        let machine = Machine::real(config.tuning.engine_cache_bytes)?;
        let (ground, own) = runtime(&config)?;
        Opening::start(config, machine, ground, own)?.done().await
    }

    /// Opens a node on the given machine, on the caller's runtime. For tests and simulators:
    /// nothing else of the real machine is used. A dropped future behaves as in
    /// [`ReplicatedEnvironment::open_async`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_on(config: RepConfig, machine: Machine) -> Result<Self, OpenError> {
        let ground = Ground::Guest(Handle::current());
        Opening::start(config, machine, ground, None)?.done().await
    }

    pub(crate) fn open_on_own_runtime(
        config: RepConfig,
        machine: Machine,
    ) -> Result<Self, OpenError> {
        let (ground, own) = runtime(&config)?;
        let opening = Opening::start(config, machine, ground.clone(), own)?;
        ground.wait_for(opening.done())
    }

    /// Waits until the node can be used: it belongs to a group, has replayed its log, and knows a
    /// master, or is one that hears a majority.
    ///
    /// # Errors
    /// See [`ReadyError`]; a timeout says what is missing, and which nodes it waits for.
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

    /// Runs `transaction` and commits it with the configured durability; by default, on the disks
    /// of a majority of the nodes.
    ///
    /// The closure sees one consistent state and its own writes. On a conflict, when another
    /// transaction has changed something it read, it is run again, so it must have no effects
    /// outside the transaction. After several conflicts, with a short wait after each, it runs with
    /// all other writes held off, for at most a second, and so gets through. It must not write to
    /// the same environment except through the transaction: that is [`WriteError::Nested`] on its
    /// own thread, and may end as [`WriteError::Overtaken`] if it waits for another thread.
    ///
    /// What it returns comes back with the transaction's token. An error it returns aborts the
    /// transaction and comes back unchanged: any type made from a [`WriteError`] will do. Name the
    /// type where nothing else does: `|txn| -> Result<_, MyError> { … }`. A transaction that wrote
    /// nothing is checked like any other, but takes no place in the log, as long as the log has the
    /// last one before it.
    ///
    /// On a node that is not the master it runs on what that has applied, and the master commits it:
    /// after many conflicts it ends as [`WriteError::Contended`], since nobody is held off for it.
    ///
    /// ```
    /// # use steadfast::{ReplicatedEnvironment, WriteError};
    /// #[derive(Debug, thiserror::Error)]
    /// enum SaleError {
    ///     #[error("only {0} are left")]
    ///     TooFew(u8),
    ///     #[error(transparent)]
    ///     Write(#[from] WriteError),
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let group = ReplicatedEnvironment::in_memory_group(1)?;
    /// # let env = &group[0];
    /// let sell = |count: u8| {
    ///     env.write(|txn| {
    ///         let stock = txn.database("stock")?;
    ///         let left = stock.get("tickets")?.map_or(3, |value| value[0]);
    ///         let after = left.checked_sub(count).ok_or(SaleError::TooFew(left))?;
    ///         stock.put("tickets", [after])?;
    ///         Ok(after)
    ///     })
    /// };
    /// let sold = sell(2)?;
    /// assert_eq!(sold.value, 1);
    /// println!("sold as {}", sold.token);
    /// assert!(matches!(sell(2), Err(SaleError::TooFew(1))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the function returned, or see [`WriteError`]; nothing was written, except possibly with
    /// `OutcomeUnknown` and `InsufficientAcks`.
    pub fn write<T, E: From<WriteError>>(
        &self,
        transaction: impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<Committed<T>, E> {
        self.block_on(self.write_async(transaction))
    }

    /// As [`ReplicatedEnvironment::write`].
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write_async<T, E: From<WriteError>>(
        &self,
        transaction: impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<Committed<T>, E> {
        let write = self.handle.lifecycle.write(None, transaction);
        self.handle.ground.run(write).await
    }

    /// As [`ReplicatedEnvironment::write`], with the given durability. [`Durability`] says what a
    /// failover may do to a write that no majority has acknowledged.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn write_with<T, E: From<WriteError>>(
        &self,
        durability: Durability,
        transaction: impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<Committed<T>, E> {
        self.block_on(self.write_with_async(durability, transaction))
    }

    /// As [`ReplicatedEnvironment::write_with`].
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write_with_async<T, E: From<WriteError>>(
        &self,
        durability: Durability,
        transaction: impl FnMut(&Transaction) -> Result<T, E>,
    ) -> Result<Committed<T>, E> {
        let lifecycle = &self.handle.lifecycle;
        let write = lifecycle.write(Some(durability), transaction);
        self.handle.ground.run(write).await
    }

    /// The outcome of the write that a token names: from an error, or from a write acknowledged
    /// without a majority. Any node of the group can answer, as far back as its log reaches.
    ///
    /// A node that does not know asks how far the group has come, and waits until it has caught up,
    /// for at most `read_timeout_ms`.
    ///
    /// # Errors
    /// [`ReadError::ForeignToken`] for a token of another group; [`ReadError::HistoryGone`]; and
    /// the errors of a read.
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

    /// Begins a transaction that a later call commits, for code that cannot be a closure that may
    /// be run again. On a replica the master commits it.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn begin_transaction(&self) -> Result<OpenTransaction, WriteError> {
        self.block_on(self.begin_transaction_async())
    }

    /// As [`ReplicatedEnvironment::begin_transaction`].
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn begin_transaction_async(&self) -> Result<OpenTransaction, WriteError> {
        let begin = self.handle.lifecycle.begin_transaction();
        let transaction = self.handle.ground.run(begin).await?;
        Ok(OpenTransaction::new(self.clone(), transaction))
    }

    /// The database of this name, for operations that are each one transaction. The name is checked
    /// on use.
    pub fn database(&self, name: &str) -> Database {
        Database::new(self.clone(), name)
    }

    /// Applies everything in `batch` atomically, with the configured durability. It reads nothing
    /// and never conflicts.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was written, except possibly with `OutcomeUnknown` and
    /// `InsufficientAcks`.
    pub fn write_batch(&self, batch: &WriteBatch) -> Result<CommitToken, WriteError> {
        self.block_on(self.write_batch_async(batch))
    }

    /// As [`ReplicatedEnvironment::write_batch`].
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write_batch_async(&self, batch: &WriteBatch) -> Result<CommitToken, WriteError> {
        let written = self.write_async(|txn| batch.run(txn)).await?;
        Ok(written.token)
    }

    /// Runs `read` on a consistent snapshot of all databases, as fresh as `policy` requires, and
    /// returns its result. A policy can carry a timeout: `policy.within(…)`.
    ///
    /// # Errors
    /// What the function returned, of any type made from a [`ReadError`], or see there.
    pub fn read<T, E: From<ReadError>>(
        &self,
        policy: impl Into<ReadOptions>,
        read: impl FnOnce(&Snapshot) -> Result<T, E>,
    ) -> Result<T, E> {
        let (options, lifecycle) = (policy.into(), &self.handle.lifecycle);
        let _span = lifecycle.read_span(options.policy).entered();
        let snapshot = match options.policy {
            // Nothing to wait for, so no runtime is needed.
            ConsistencyPolicy::Eventual => lifecycle.snapshot_at_hand()?,
            _ => self.block_on(lifecycle.snapshot(options))?,
        };
        read(&snapshot)
    }

    /// As [`ReplicatedEnvironment::read`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_async<T, E: From<ReadError>>(
        &self,
        policy: impl Into<ReadOptions>,
        read: impl FnOnce(&Snapshot) -> Result<T, E>,
    ) -> Result<T, E> {
        let (options, lifecycle) = (policy.into(), &self.handle.lifecycle);
        let reading = async { read(&lifecycle.snapshot(options).await?) };
        reading
            .instrument(lifecycle.read_span(options.policy))
            .await
    }

    /// The states of this node from now on, starting with the current one.
    pub fn state_changes(&self) -> StateChanges {
        StateChanges::new(self.handle.lifecycle.role(), self.handle.ground.clone())
    }

    /// The transactions that this node applies, starting where `options` says: whole, in order,
    /// each once. Masters and replicas alike serve it, and it survives changes of master. Does not
    /// block.
    ///
    /// # Errors
    /// [`FeedError::WrongGroup`], [`FeedError::Filter`], [`FeedError::TooMany`],
    /// [`FeedError::NotReady`], [`FeedError::Stopped`], [`FeedError::Closed`]. Any other problem
    /// with the starting point is its first item.
    pub fn subscribe(&self, options: impl Into<SubscribeOptions>) -> Result<Feed, FeedError> {
        let ground = self.handle.ground.clone();
        self.handle.lifecycle.subscribe(options.into(), ground)
    }

    /// A subscription for any number of listeners in this process, each from its own token, as the
    /// clients of a web server. It takes one of the node's places, and bounded memory.
    ///
    /// # Errors
    /// As [`ReplicatedEnvironment::subscribe`].
    pub fn shared_feed(&self, options: SharedFeedOptions) -> Result<SharedFeed, FeedError> {
        self.block_on(self.shared_feed_async(options))
    }

    /// As [`ReplicatedEnvironment::shared_feed`].
    ///
    /// # Errors
    /// As there.
    pub async fn shared_feed_async(
        &self,
        options: SharedFeedOptions,
    ) -> Result<SharedFeed, FeedError> {
        let ground = &self.handle.ground;
        let _held = ground.hold().ok_or(FeedError::Closed)?;
        let shared = self.handle.lifecycle.shared_feed(options, ground.clone());
        ground.run(shared).await
    }

    /// The events of the group from now on, as its master sees them, including members that join or
    /// leave and nodes that fail or come back. It connects to the nodes like an outside watcher
    /// ([`GroupEvents::connect`]), and continues while this node has no master. It ends with
    /// [`FeedError::Closed`] when this environment closes.
    pub fn group_events(&self) -> GroupEvents {
        let lifecycle = &self.handle.lifecycle;
        lifecycle.group_events(self.handle.ground.clone())
    }

    /// This node's role, and the master it knows. A master that loses its majority is
    /// [`Role::Unknown`](crate::Role) within `election_timeout_max_ms`.
    pub fn state(&self) -> RoleState {
        self.handle.lifecycle.role().borrow().clone()
    }

    /// What the node can do at this moment, for readiness and liveness endpoints. Does not block,
    /// and touches no disk.
    ///
    /// ```
    /// # use steadfast::ReplicatedEnvironment;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let group = ReplicatedEnvironment::in_memory_group(1)?;
    /// # let env = &group[0];
    /// let health = env.health();
    /// let liveness = if health.is_live() { 200 } else { 503 };
    /// let readiness = if health.is_ready() { 200 } else { 503 };
    /// # assert_eq!((liveness, readiness), (200, 200));
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        self.handle.lifecycle.health()
    }

    /// Whether this node takes a write of the default durability now: it is master, a majority
    /// answers it, and its disk has room. The write itself may still fail, as any moment may be the
    /// last of a master.
    pub fn can_write(&self) -> bool {
        self.health().can_write
    }

    /// The address on which the node listens.
    pub fn listen_address(&self) -> String {
        self.handle.lifecycle.listen_address().to_owned()
    }

    /// The status of this node.
    pub fn status(&self) -> NodeStatus {
        self.handle.lifecycle.status()
    }

    /// A digest of everything this node has applied, with the last VLSN it includes. Nodes at the
    /// same VLSN have the same digest. Reads all data.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn digest(&self) -> Result<(Vlsn, u128), ReadError> {
        self.handle.lifecycle.digest()
    }

    /// Stops the node: waiting writes learn their outcome as far as it is known, applied data is
    /// synced, and everything the node runs has ended when this returns. Closing twice is allowed.
    ///
    /// Takes tens of milliseconds on an idle node, and at most [`CLOSE_MAX`](crate::limits::CLOSE_MAX)
    /// on a busy one: what the engine has not been given by then is in the log, and the next open
    /// takes that much longer. Only a disk that hangs holds it up for longer.
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
        self.handle.closes.send_replace(true);
        self.handle
            .lifecycle
            .close()
            .await
            .map_err(OpenError::Close)
    }

    pub(crate) fn ground(&self) -> &Ground {
        &self.handle.ground
    }

    pub(crate) fn tls(&self) -> Option<&TlsTransport> {
        self.handle.tls.as_deref()
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.handle.lifecycle
    }

    /// The result of `work`; `None` once the application has closed the environment.
    pub(crate) async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut closes = self.handle.closes.subscribe();
        tokio::select! {
            biased;
            // The sender is part of `self`.
            _ = closes.wait_for(|closes| *closes) => None,
            done = work => Some(done),
        }
    }

    /// Waits for `work` on this thread; timers in it run on the environment's runtime.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.handle.ground.block_on(work)
    }
}

/// A node being opened. If dropped early, it opens and closes in the background: a half-open node
/// has threads, files and a port, and only a fully open one can release them all.
struct Opening {
    /// `None` when done.
    task: Option<JoinHandle<Result<Arc<Lifecycle>, OpenError>>>,
    ground: Ground,
    own: Option<Arc<OwnRuntime>>,
    tls: Option<Arc<TlsTransport>>,
}

impl Opening {
    fn start(
        config: RepConfig,
        mut machine: Machine,
        ground: Ground,
        own: Option<Arc<OwnRuntime>>,
    ) -> Result<Self, OpenError> {
        let tls = secured(&config, &mut machine)?;
        let opening = Lifecycle::open(config, machine);
        let held = ground.hold().expect("it was just made, or is a guest");
        let task = {
            let _runtime = held.handle.enter();
            // In the caller's process: everything that the node starts ends with it.
            Some(process::spawn(opening))
        };
        Ok(Self {
            task,
            ground,
            own,
            tls,
        })
    }

    async fn done(mut self) -> Result<ReplicatedEnvironment, OpenError> {
        let task = self.task.as_mut().expect("it is waited for once");
        let opened = task.await.unwrap_or_else(|error| Err(died(&error)));
        self.task = None;
        let lifecycle = opened?;
        let environment = EnvironmentHandle {
            lifecycle,
            ground: self.ground.clone(),
            own: Mutex::new(self.own.take()),
            closes: watch::Sender::default(),
            tls: self.tls.take(),
        };
        Ok(ReplicatedEnvironment {
            handle: Arc::new(environment),
        })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let (Some(task), Some(held)) = (self.task.take(), self.ground.hold()) else {
            return;
        };
        // Dropping the runtime does not wait for it, so a task may do it, even one on that runtime.
        let own = self.own.take();
        let give_up = async move {
            if let Ok(Ok(lifecycle)) = task.await
                && let Err(error) = lifecycle.close().await
            {
                tracing::error!(
                    error,
                    "an environment that nobody waits for could not be closed"
                );
            }
            drop(own);
        };
        held.handle.spawn(give_up);
    }
}

impl EnvironmentHandle {
    /// Ends the runtime, or leaves that to the last call still running on it.
    fn end_runtime(&self) {
        let own = lock(&self.own).take();
        if let Some(own) = own {
            own.end();
        }
    }
}

impl Drop for EnvironmentHandle {
    fn drop(&mut self) {
        let held = self.ground.hold().filter(|_| !self.lifecycle.is_closed());
        let Some(held) = held else {
            self.end_runtime();
            return;
        };
        let lifecycle = Arc::clone(&self.lifecycle);
        let closing = process::in_current(async move { lifecycle.close().await });
        let closing = held.handle.spawn(closing);
        drop(held);
        // On our own runtime, closing never needs this thread; on the application's it may.
        if self.own.lock().is_ok_and(|own| own.is_some()) {
            if let Ok(Err(error)) = pollster::block_on(closing) {
                tracing::error!(
                    error,
                    "the environment was dropped, but could not be closed"
                );
            }
            self.end_runtime();
        }
    }
}

/// The runtime that the configuration asks for.
fn runtime(config: &RepConfig) -> Result<(Ground, Option<Arc<OwnRuntime>>), OpenError> {
    if let Some(handle) = &config.runtime {
        return Ok((Ground::Guest(handle.clone()), None));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Half the cores: the log, the flush and the application have their own threads, and a commit
    // that stays on one worker needs no wake-up between its steps.
    let workers = config
        .tuning
        .worker_threads
        .unwrap_or_else(|| (cores / 2).clamp(1, 4));
    let own = OwnRuntime::new("steadfast", workers)
        .map_err(|error| OpenError::Start(format!("no runtime: {error}")))?;
    Ok((own.ground(), Some(own)))
}

fn died(error: &tokio::task::JoinError) -> OpenError {
    OpenError::Start(format!("opening was interrupted: {error}"))
}
