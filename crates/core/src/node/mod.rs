//! One member at work: the parts of a node that belongs to a group, assembled and taken apart.
//!
//! ```text
//!   log writer (thread) ◄── consensus ──► peers            flush (thread) ──► engine
//!                             │  ▲                            ▲
//!                       apply ▼  │ propose                    │ marks
//!                           sequencer ──── window ────────────┘
//! ```

pub(crate) mod ack;
pub(crate) mod health;
mod opening;
pub(crate) mod outcome;
pub(crate) mod phase;
pub(crate) mod read;
pub(crate) mod status;
pub(crate) mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use steadfast_net::lock;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::config::RepConfig;
use crate::consensus::{
    Consensus, MasterNotices, Parts, ReadBarriers, RetainLimits, Timers, held_vlsn,
};
use crate::engine::{EngineError, StorageEngine};
use crate::error::OpenError;
use crate::group::Members;
use crate::group::addresses::Addresses;
use crate::group::identity::{DataDir, Identity};
use crate::ids::{GroupUuid, Vlsn};
use crate::limits::{BATCH_BYTES_MAX, TRANSACTION_BYTES_MAX};
use crate::listener::RoleState;
use crate::log::{Log, LogConfig, LogError};
use crate::machine::Machine;
use crate::node::opening::{Audited, FlushEnd, audit, open_log, start_flush, whose};
pub(crate) use crate::node::opening::{check_log_reaches, create_log, open_engine, open_idle_log};
use crate::node::write::{SlowWrites, Turns};
use crate::planted::{self, Bug};
use crate::txn::audit::digest::RunningDigest;
use crate::txn::audit::{Audit, Opening};
use crate::txn::flush::{Flush, FlushLimits};
use crate::txn::history::History;
use crate::txn::holds::Holds;
use crate::txn::lifetimes::GroupTime;
use crate::txn::readers::Readers;
use crate::txn::sequencer::Sequencer;
use crate::txn::transaction::Snapshot;
use crate::txn::view::View;
use crate::txn::window::Window;
use crate::wire::dialling::Dialler;
use crate::wire::hello::{Caller, Superseded};

/// Approximate size of one group of log records, which share one write and one fdatasync.
const LOG_GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How often a waiter for the flush asks for it again.
const WANT_AGAIN: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct Node {
    pub(crate) identity: Arc<Identity>,
    pub(crate) window: Arc<Window>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) sequencer: Arc<Sequencer>,
    pub(crate) flush: Arc<Flush>,
    pub(crate) engine: Arc<dyn StorageEngine>,
    /// What is known of the engine.
    pub(crate) audit: Arc<Audit>,
    pub(crate) machine: Machine,
    pub(crate) data_dir: PathBuf,
    pub(crate) log: Log,
    pub(crate) consensus: Arc<Consensus>,
    pub(crate) barriers: ReadBarriers,
    /// Who needs the log.
    pub(crate) holds: Arc<Holds>,
    /// Bytes of writes that may wait for their commit.
    pub(crate) budget: Semaphore,
    pub(crate) budget_bytes: usize,
    /// Most bytes that one transaction may write.
    pub(crate) transaction_bytes_max: usize,
    pub(crate) turns: Turns,
    pub(crate) slow_writes: SlowWrites,
    pub(crate) group_time: Arc<GroupTime>,
    stop_flush: watch::Sender<bool>,
    flushed: std::sync::Mutex<Option<FlushEnd>>,
    has_ended: AtomicBool,
}

/// How much was read and found intact.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    pub(crate) log_bytes: u64,
    pub(crate) engine_bytes: u64,
}

/// What is damaged, or could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl CheckError {
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Log(error) => error.is_damage(),
            Self::Engine(error) => error.is_damage(),
        }
    }
}

/// What the environment shares with the node before and after it belongs to a group.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) members: watch::Sender<Members>,
    pub(crate) role: watch::Sender<RoleState>,
    /// Where the members are, where this differs from the membership.
    pub(crate) addresses: Arc<Addresses>,
    /// Called with the reason if the node fails.
    pub(crate) failed: Arc<dyn Fn(String) + Send + Sync>,
    /// What the master tells the node.
    pub(crate) notices: MasterNotices,
    /// Whether the node may stand for election from the start, as far as its disk is concerned.
    pub(crate) may_stand: bool,
    /// Called when the group turns out to have been recovered without this node.
    pub(crate) superseded: Superseded,
    /// Whether the engine was found wrong at work: then it is counted in full first.
    pub(crate) is_suspect: bool,
}

impl Node {
    /// The transactions applied by this node so far.
    pub(crate) fn history(&self) -> History {
        // In this order: the position follows the number, so what is visible is at most one entry
        // behind the position read afterwards.
        let visible = self.sequencer.visible();
        let applied = *self.consensus.applied().borrow();
        History::new(self.log.clone(), visible, applied.map(|id| id.position))
    }

    /// Opens log and engine and starts consensus: when this returns, the node has replayed its log
    /// and takes part.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(crate) async fn start(
        config: &RepConfig,
        machine: &Machine,
        dir: &DataDir,
        identity: Arc<Identity>,
        around: Surroundings,
    ) -> Result<Arc<Self>, OpenError> {
        let log = open_log(config, machine, dir, &identity, &around).await?;
        let engine = match open_engine(machine, dir, &identity).await {
            Ok(engine) => engine,
            Err(error) => return Err(abandon(&log, None, error).await),
        };
        let opening = Opening {
            disk: Arc::clone(&machine.disk),
            path: dir.digest_path(identity.copy),
            log: log.clone(),
            engine: Arc::clone(&engine),
            is_suspect: around.is_suspect,
            count_max: config.tuning.open_count_max,
            interval: config.tuning.digest_interval,
        };
        let started = match audit(config, machine, opening).await {
            Ok(audited) => Self::start_on(config, machine, identity, audited, around).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(node) => Ok(node),
            Err(error) => Err(abandon(&log, Some(&*engine), error).await),
        }
    }

    async fn start_on(
        config: &RepConfig,
        machine: &Machine,
        identity: Arc<Identity>,
        audited: Audited,
        around: Surroundings,
    ) -> Result<Arc<Self>, OpenError> {
        let (log, engine, audit) = (audited.log, audited.engine, audited.audit);
        let held = engine.applied()?;
        let window = Arc::new(Window::default());
        let readers = Arc::new(Readers::default());
        let sequencer = Arc::new(Sequencer::new(
            Arc::clone(&window),
            held_vlsn(held.as_ref()),
            batch_bytes_max(config),
        ));
        let flush = Arc::new(Flush::new(
            Arc::clone(&window),
            Arc::clone(&readers),
            Arc::clone(&sequencer),
            Arc::clone(&engine),
            flush_limits(config),
        )?);
        let (stop_flush, flushed) = start_flush(machine, &flush, audited.auditor, &log, &around)?;
        let holds = Arc::new(Holds::default());
        let consensus = Consensus::start(Parts {
            identity: Arc::clone(&identity),
            log: log.clone(),
            engine: Arc::clone(&engine),
            audit: Arc::clone(&audit),
            sequencer: Arc::clone(&sequencer),
            flush: Arc::clone(&flush),
            holds: Arc::clone(&holds),
            dialler: dialler(config, machine, &identity, &around),
            members: around.members,
            role: around.role,
            notices: around.notices,
            clock: Arc::clone(&machine.clock),
            seed: machine.seed ^ identity.node_id.0,
            timers: timers(config),
            may_stand: around.may_stand,
            retain: retain_limits(config),
        })
        .await
        .map_err(|error| OpenError::Start(error.to_string()))?;
        let barriers = ReadBarriers::start(&consensus);
        let budget_bytes = config.tuning.commit_queue_bytes_max;
        let budget = Semaphore::new(budget_bytes);
        let turns = Turns::new(machine.seed ^ identity.node_id.0);
        let flushed = std::sync::Mutex::new(Some(flushed));
        Ok(Arc::new(Self {
            identity,
            window,
            readers,
            sequencer,
            flush,
            engine,
            audit,
            machine: machine.clone(),
            data_dir: config.data_dir.clone(),
            log,
            consensus,
            barriers,
            holds,
            budget,
            budget_bytes,
            transaction_bytes_max: transaction_bytes_max(config),
            turns,
            slow_writes: SlowWrites::default(),
            group_time: Arc::new(GroupTime::new(Arc::clone(&machine.clock))),
            stop_flush,
            flushed,
            has_ended: AtomicBool::new(false),
        }))
    }

    pub(crate) fn group(&self) -> GroupUuid {
        self.identity
            .group
            .expect("a node at work belongs to a group")
    }

    /// Whether the node has been stopped, so that another one may be at work on its directory.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// A view at the last committed transaction.
    pub(crate) fn view(&self) -> View {
        let reader = self.readers.begin(|| {
            if planted::is(Bug::ReadNumbered)
                && let Some((_, newest)) = self.sequencer.newest()
            {
                return newest;
            }
            self.sequencer.visible()
        });
        View::new(Arc::clone(&self.window), Arc::clone(&self.engine), reader)
    }

    /// A snapshot at the last committed transaction.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.view(), self.sequencer.names())
    }

    /// A snapshot at exactly this visible transaction. `None` when the engine may be past it.
    pub(crate) fn snapshot_at(&self, vlsn: Vlsn) -> Option<Snapshot> {
        let reader = self.readers.begin_at(vlsn)?;
        let view = View::new(Arc::clone(&self.window), Arc::clone(&self.engine), reader);
        Some(Snapshot::new(view, self.sequencer.names()))
    }

    /// How long a disk, the log's or the engine's, has not finished what it was given.
    pub(crate) fn hangs_for(&self) -> Option<Duration> {
        self.log.hangs_for().max(self.flush.hangs_for())
    }

    /// What the engine must hold as of this transaction, at which a reader is open; `None` when it
    /// does not get there before `deadline`.
    pub(crate) async fn digest_at(
        &self,
        vlsn: Vlsn,
        deadline: Instant,
    ) -> Option<Arc<RunningDigest>> {
        self.once_flushed(|| self.audit.digest_at(vlsn), deadline)
            .await
    }

    /// The same, as of this transaction or a later one at which a log entry ends.
    pub(crate) async fn digest_from(
        &self,
        vlsn: Vlsn,
        deadline: Instant,
    ) -> Option<(Vlsn, Arc<RunningDigest>)> {
        self.once_flushed(|| self.audit.digest_from(vlsn), deadline)
            .await
    }

    /// The digest, once the flush has come far enough.
    async fn once_flushed<T, F: Future<Output = Option<T>>>(
        &self,
        digest: impl Fn() -> F,
        deadline: Instant,
    ) -> Option<T> {
        while Instant::now() < deadline {
            // What is not on the log's disk yet is not flushed.
            self.flush.want();
            let until = deadline.min(Instant::now() + WANT_AGAIN);
            if let Ok(Some(digest)) = tokio::time::timeout_at(until, digest()).await {
                return Some(digest);
            }
        }
        None
    }

    /// Reads everything the node has on disk and verifies its checksums. Blocks for as long as that
    /// takes; run it where it may. Returns how much was read.
    ///
    /// # Errors
    /// The damage, with its file and place; or why something could not be read.
    pub(crate) fn check_files(&self, log_dir: &Path) -> Result<Checked, CheckError> {
        let log_bytes = self
            .log
            .check(&self.machine.disk, log_dir, whose(&self.identity));
        Ok(Checked {
            log_bytes: log_bytes?,
            engine_bytes: self.engine.check()?,
        })
    }

    /// Stops everything, each part before the parts it depends on, and leaves the engine and the
    /// log synced.
    ///
    /// # Errors
    /// What could not be written. Nothing acknowledged is lost: it is in the log.
    pub(crate) async fn stop(&self) -> Result<(), String> {
        self.has_ended.store(true, Ordering::Release);
        self.consensus.shutdown().await;
        self.stop_flush.send_replace(true);
        let flushed = lock(&self.flushed).take();
        let flushed = match flushed {
            Some(flushed) => flushed.await,
            None => Ok(Ok(())),
        };
        let closed_log = self.log.close().await;
        let engine = Arc::clone(&self.engine);
        // It frees space, which may take long.
        let closing = self
            .machine
            .run("steadfast-close", async move { engine.close() });
        let closed_engine = match closing {
            Ok(closing) => closing.await.unwrap_or(Err(EngineError::Failed)),
            Err(_) => self.engine.close(),
        };
        if let Ok(Err(error)) = flushed {
            return Err(format!("the last flush failed: {error}"));
        }
        closed_log.map_err(|error| format!("the log could not be closed: {error}"))?;
        closed_engine.map_err(|error| format!("the engine could not be closed: {error}"))
    }
}

/// Gives up what was opened for a node that cannot start, so that the next attempt finds it free.
pub(crate) async fn abandon(
    log: &Log,
    engine: Option<&dyn StorageEngine>,
    error: OpenError,
) -> OpenError {
    if let Err(second) = log.close().await {
        tracing::warn!(error = %second, "the log of a node that did not start");
    }
    if let Some(Err(second)) = engine.map(StorageEngine::close) {
        tracing::warn!(error = %second, "the engine of a node that did not start");
    }
    error
}

/// A batch and the transaction that overfills it must fit into one log segment.
fn batch_bytes_max(config: &RepConfig) -> usize {
    BATCH_BYTES_MAX.min(config.tuning.log_segment_bytes as usize / 4)
}

fn transaction_bytes_max(config: &RepConfig) -> usize {
    TRANSACTION_BYTES_MAX.min(config.tuning.log_segment_bytes as usize / 2)
}

pub(crate) fn dialler(
    config: &RepConfig,
    machine: &Machine,
    identity: &Arc<Identity>,
    around: &Surroundings,
) -> Dialler {
    Dialler {
        caller: Caller::Node(Arc::clone(identity), Arc::clone(&around.superseded)),
        transport: Arc::clone(&machine.transport),
        addresses: Arc::clone(&around.addresses),
        timeout: config.tuning.dial_timeout,
    }
}

fn timers(config: &RepConfig) -> Timers {
    let tuning = &config.tuning;
    Timers {
        heartbeat_interval: tuning.heartbeat_interval,
        election_timeout_min: tuning.election_timeout_min,
        election_timeout_max: tuning.election_timeout_max,
        dial_timeout: tuning.dial_timeout,
        silence_max: tuning.silence_max,
        batches_in_flight_max: tuning.batches_in_flight_max,
    }
}

fn retain_limits(config: &RepConfig) -> RetainLimits {
    let tuning = &config.tuning;
    RetainLimits {
        keep_bytes: tuning.log_keep_bytes,
        retain_bytes_max: tuning.log_retain_bytes_max,
        retain: tuning.log_retain,
    }
}

fn flush_limits(config: &RepConfig) -> FlushLimits {
    let tuning = &config.tuning;
    FlushLimits {
        window_bytes_max: tuning.window_bytes_max,
        flush_bytes: tuning.flush_bytes,
        flush_interval: tuning.flush_interval,
        snapshot_age_max: tuning.snapshot_age_max,
    }
}

pub(crate) fn log_config(config: &RepConfig) -> LogConfig {
    LogConfig {
        segment_bytes: config.tuning.log_segment_bytes,
        group_bytes_max: LOG_GROUP_BYTES_MAX,
        cache_bytes_max: config.tuning.log_cache_bytes_max,
        ..LogConfig::default()
    }
}
