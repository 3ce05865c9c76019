//! Consensus: the only module that names openraft.
//!
//! The rest of the library sees [`Consensus`]: propose a batch, request a read barrier, watch the
//! role and the positions, shut down. Who is master, in which term, and what is committed, is
//! decided here and nowhere else.

mod acks;
mod addresses;
mod answers;
mod arbiters;
mod barrier;
mod damage;
pub(crate) mod election;
mod failover;
mod feeder;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod log_store;
#[cfg(test)]
mod log_store_suite;
mod majority;
mod mastership;
mod members;
mod network;
mod outdated;
mod purge;
mod removal;
mod runtime;
mod stand_in;
mod state_machine;
mod stop;
mod transfer;
mod types;
mod whole;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::raft::ReadPolicy;
use openraft::{Config, Raft, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::{Applied, StorageEngine};
use crate::error::REMOVED;
use crate::group::identity::Identity;
use crate::group::{Member, Members};
use crate::ids::{Incarnation, LogPosition, NodeId, Term};
use crate::listener::{Role, RoleState};
use crate::log::{Log, LogId};
use crate::machine::Clock;
use crate::planted::{self, Bug};
use crate::tasks::Tasks;
use crate::txn::audit::Audit;
use crate::txn::batch::Batch;
use crate::txn::flush::Flush;
use crate::txn::holds::Holds;
use crate::txn::sequencer::Sequencer;
use crate::wire::dialling::Dialler;
use crate::wire::hello::DialError;
use crate::wire::messages::{BarrierReply, BarrierRequest, ElectionAnswer, ElectionCall};
pub(crate) use damage::{Damage, Differs, Flaw};
use election::CallError;

pub(crate) use acks::Electable;
pub(crate) use barrier::ReadBarriers;
use failover::Inbound;
use log_store::LogStore;
pub(crate) use members::ChangeError;
pub(crate) use network::without_data;
use network::{NetworkFactory, Peers};
pub(crate) use outdated::Outdated;
pub(crate) use purge::RetainLimits;
use purge::Retention;
use stand_in::StandIn;
use state_machine::StateMachine;
use transfer::Hold;
pub(crate) use transfer::TransferError;
use types::{
    TypeConfig, committed_leader, from_raft_log_id, from_raft_vote, to_raft_log_id, to_raft_vote,
};

type ConsensusRaft = Raft<TypeConfig, StateMachine>;
type SeededRuntime = <TypeConfig as openraft::RaftTypeConfig>::AsyncRuntime;

/// Maximum entries in one append to a replica; the bytes are bounded too.
const APPEND_ENTRIES_MAX: u64 = 256;

/// Election timers. See `RepConfig` for what they mean to a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timers {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) election_timeout_min: Duration,
    pub(crate) election_timeout_max: Duration,
    pub(crate) dial_timeout: Duration,
    pub(crate) silence_max: Duration,
    /// Maximum number of batches proposed and not yet applied.
    pub(crate) batches_in_flight_max: usize,
}

/// Why consensus could not start or answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConsensusError {
    #[error("consensus has stopped: {0}")]
    Stopped(String),
    #[error("this node is not the master")]
    NotMaster(Option<NodeId>),
    #[error("no majority answered")]
    NoMajority,
    #[error("the master did not answer: {0}")]
    Unreachable(#[from] CallError),
}

/// The parts from which consensus is built.
pub(crate) struct Parts {
    pub(crate) identity: Arc<Identity>,
    pub(crate) log: Log,
    pub(crate) engine: Arc<dyn StorageEngine>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) sequencer: Arc<Sequencer>,
    pub(crate) flush: Arc<Flush>,
    /// The holds on the log.
    pub(crate) holds: Arc<Holds>,
    pub(crate) dialler: Dialler,
    pub(crate) members: watch::Sender<Members>,
    pub(crate) role: watch::Sender<RoleState>,
    pub(crate) notices: MasterNotices,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) seed: u64,
    pub(crate) timers: Timers,
    /// Whether the node may stand for election as far as its disk is concerned.
    pub(crate) may_stand: bool,
    pub(crate) retain: RetainLimits,
}

/// What the master tells this node, apart from the log.
#[derive(Clone, Debug)]
pub(crate) struct MasterNotices {
    /// The results of comparisons of this node's data, and of checks of its files.
    pub(crate) damage: watch::Sender<Damage>,
    /// Whether the group is being shut down.
    pub(crate) stop: watch::Sender<bool>,
}

impl MasterNotices {
    /// Nothing told yet, in this life of the node's directory.
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self {
            damage: watch::Sender::new(Damage::none(incarnation)),
            stop: watch::Sender::default(),
        }
    }
}

/// Shutdown state.
#[derive(Clone, Copy, Debug, Default)]
struct ShutdownState {
    begun: bool,
    /// Whether consensus starts again afterwards, on a copy of the state.
    comes_back: bool,
}

/// The consensus of one node.
pub(crate) struct Consensus {
    raft: ConsensusRaft,
    identity: Arc<Identity>,
    sequencer: Arc<Sequencer>,
    members: watch::Sender<Members>,
    peers: Arc<Peers>,
    inbound: Inbound,
    log: Log,
    applied: watch::Receiver<Option<LogId>>,
    role: watch::Sender<RoleState>,
    /// The newest master heard since the start; sent anew each time it is heard.
    heard: watch::Sender<Option<Heard>>,
    seeds: AtomicU64,
    timers: Timers,
    hold: Hold,
    stand_in: StandIn,
    pub(crate) turns: members::Turns,
    /// Whether this node has what a master needs besides the data: room on its disk.
    may_stand: watch::Sender<bool>,
    notices: MasterNotices,
    shutdown_state: watch::Sender<ShutdownState>,
    /// Whether the group has told this node that it is no longer a member.
    removed: watch::Sender<bool>,
    retention: Arc<Retention>,
    /// Members that have lost their data, with the entry that each has to reach before its
    /// acknowledgements count towards a vote.
    void: watch::Sender<BTreeMap<NodeId, LogPosition>>,
    /// Members about to leave, as they were told that they would be readmitted, and since when.
    leaving: Mutex<BTreeMap<NodeId, Instant>>,
    /// What this node has to reach by a copy of the state, according to a master.
    outdated: watch::Sender<Option<Outdated>>,
    tasks: Tasks,
}

/// A replica's progress, as known to the master.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) persisted: Option<LogId>,
    /// How long ago the replica was last heard in this term.
    pub(crate) heard: Option<Duration>,
}

impl Consensus {
    /// Starts consensus on the current runtime: replays the part of the log that the engine does
    /// not hold yet, and takes part in the group from then on.
    ///
    /// # Errors
    /// [`ConsensusError::Stopped`] when the log or the engine cannot be read.
    pub(crate) async fn start(parts: Parts) -> Result<Arc<Self>, ConsensusError> {
        let Parts {
            identity,
            log,
            engine,
            sequencer,
            flush,
            dialler,
            members,
            role,
            ..
        } = parts;
        let timers = parts.timers;
        let (applied_sender, applied) = watch::channel(None);
        let held = engine.applied().map_err(|error| stopped(&error))?;
        let purged = log.state().purged;
        let retention = Retention::new(purged, engine, parts.audit, parts.holds, parts.retain);
        let retention = Arc::new(retention);
        let (numbers, kept) = (Arc::clone(&sequencer), Arc::clone(&retention));
        let machine = StateMachine::new(numbers, flush, held.as_ref(), applied_sender, kept)
            .map_err(|error| stopped(&error))?;
        let peers = Arc::new(Peers::new(dialler, members.subscribe(), timers.silence_max));
        let config = raft_config(&identity, timers).map_err(|error| stopped(&error))?;
        let (seeds, released) = (AtomicU64::new(parts.seed), watch::Sender::default());
        let network = NetworkFactory {
            peers: Arc::clone(&peers),
            released: released.subscribe(),
            needed: retention.needed(),
        };
        let store = LogStore::new(log.clone(), Arc::clone(&sequencer));
        let raft = SeededRuntime::scope(
            next_seed(&seeds),
            ConsensusRaft::new(identity.node_id, Arc::new(config), network, store, machine),
        )
        .await
        .map_err(|error| stopped(&error))?;
        let consensus = Arc::new(Self {
            raft,
            identity,
            sequencer,
            members,
            peers,
            inbound: Inbound::default(),
            log,
            applied,
            role,
            heard: watch::Sender::new(None),
            seeds,
            timers,
            hold: Hold::default(),
            stand_in: StandIn::default(),
            turns: members::Turns::default(),
            may_stand: watch::Sender::new(parts.may_stand),
            notices: parts.notices,
            shutdown_state: watch::Sender::default(),
            removed: watch::Sender::new(false),
            retention,
            void: watch::Sender::default(),
            leaving: Mutex::default(),
            outdated: watch::Sender::new(None),
            tasks: Tasks::default(),
        });
        // Before any peer is answered, so that one that joined later is not taken for a stranger.
        mastership::publish_members(&consensus, &consensus.raft.server_metrics());
        consensus.spawn(arbiters::run(Arc::clone(&consensus), released));
        consensus.start_tasks(parts.clock);
        Ok(consensus)
    }

    fn start_tasks(self: &Arc<Self>, clock: Arc<dyn Clock>) {
        self.spawn(members::run(Arc::clone(self)));
        self.spawn(addresses::run(Arc::clone(self)));
        // Ends with openraft, and tells the other tasks.
        let mastership = self.seeded(mastership::run(Arc::clone(self), clock));
        self.tasks.spawn_whole(mastership);
        self.spawn(failover::run(Arc::clone(self)));
        self.spawn(stand_in::run(Arc::clone(self)));
        self.spawn(purge::run(Arc::clone(self)));
    }

    /// Runs a task until this ends, with its own random generator, as openraft requires.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.seeded(task));
    }

    fn seeded<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        SeededRuntime::scope(next_seed(&self.seeds), task)
    }

    /// Makes the founders the members, if the log is empty. Done by the founder alone.
    ///
    /// # Errors
    /// [`ConsensusError::Stopped`].
    pub(crate) async fn found(&self) -> Result<(), ConsensusError> {
        let founders: BTreeMap<_, _> = self.identity.founders.iter().cloned().collect();
        let initialized = self.whole(|raft| async move { raft.initialize(founders).await });
        match initialized.await {
            // Not allowed: the log has entries already, so the group was founded before.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(stopped(&error)),
        }
    }

    /// Sets whether this node may stand for election, on top of what its type and priority allow.
    /// Its current role stays as it is.
    pub(crate) fn set_may_stand(&self, may_stand: bool) {
        let changed = self.may_stand.send_replace(may_stand) != may_stand;
        if changed {
            self.raft.runtime_config().elect(self.can_lead());
        }
    }

    pub(crate) fn own_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// Whether this node believes that it is master, even while it hears no majority.
    pub(crate) fn is_master(&self) -> bool {
        self.sequencer.session_began().is_some()
    }

    /// Id of the last applied entry.
    pub(crate) fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.applied.clone()
    }

    /// The node's role, and the master it knows.
    pub(crate) fn role(&self) -> watch::Receiver<RoleState> {
        self.role.subscribe()
    }

    /// A position at or above every write that was acknowledged before this call. A reader that has
    /// applied it is up to date.
    ///
    /// # Errors
    /// When no majority confirms the master, or the master cannot be asked.
    pub(crate) async fn read_barrier(&self) -> Result<Option<LogPosition>, ConsensusError> {
        match self.own_barrier().await {
            Err(ConsensusError::NotMaster(Some(master))) if master != self.identity.node_id => {
                let client = self.peers.election_of(master);
                let client = client.ok_or(ConsensusError::NotMaster(None))?;
                let call = ElectionCall::Barrier(BarrierRequest {});
                match client.call(call, self.timers.silence_max).await? {
                    ElectionAnswer::Barrier(BarrierReply {
                        position: Some(position),
                    }) => Ok(Some(LogPosition(position))),
                    _ => Err(ConsensusError::NoMajority),
                }
            }
            result => result,
        }
    }

    /// Has a majority confirm that this node is currently the master.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub(crate) async fn confirm_mastership(&self) -> Result<(), ConsensusError> {
        self.own_barrier().await.map(drop)
    }

    async fn own_barrier(&self) -> Result<Option<LogPosition>, ConsensusError> {
        use openraft::errors::LinearizableReadError::{ForwardToLeader, QuorumNotEnough};
        if planted::is(Bug::BarrierAlone) && self.is_master() {
            return Ok(self.applied.borrow().map(|id| id.position));
        }
        let asked =
            self.whole(|raft| async move { raft.get_read_log_id(ReadPolicy::ReadIndex).await });
        match asked.await {
            Ok((id, _applied)) => Ok(Some(LogPosition(id.index()))),
            Err(RaftError::APIError(ForwardToLeader(forward))) => {
                Err(ConsensusError::NotMaster(forward.leader_id))
            }
            Err(RaftError::APIError(QuorumNotEnough(_))) => Err(ConsensusError::NoMajority),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
        }
    }

    /// Waits until this no longer takes part.
    pub(crate) async fn detached(&self) {
        let mut end = self.shutdown_state.subscribe();
        // This owns the sender, so the wait cannot fail.
        end.wait_for(|state| state.begun).await.ok();
    }

    /// Announces that the node will resume after this has ended: then its role is that of a node
    /// that knows no master, not of one that no longer takes part.
    pub(crate) fn will_come_back(&self) {
        self.shutdown_state
            .send_modify(|state| state.comes_back = true);
    }

    /// The role of the node after this has ended.
    fn last_role(&self) -> Role {
        if self.shutdown_state.borrow().comes_back {
            Role::Unknown
        } else {
            Role::Detached
        }
    }

    /// The progress of each other member; empty when this node is not master.
    pub(crate) fn replica_progress(&self) -> BTreeMap<NodeId, Progress> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heartbeats = metrics.heartbeat.clone().unwrap_or_default();
        let replication = metrics.replication.iter().flatten();
        let others = replication.filter(|(id, _)| **id != self.identity.node_id);
        let progress = |(id, matched): (&NodeId, &Option<_>)| {
            let heard = heartbeats
                .get(id)
                .copied()
                .flatten()
                .map(|at| openraft::Instant::elapsed(&*at));
            (
                *id,
                Progress {
                    persisted: matched.as_ref().map(from_raft_log_id),
                    heard,
                },
            )
        };
        others.map(progress).collect()
    }

    /// How long ago this node last heard a master; `None` if it has not since the start. On a
    /// leader, how long ago a majority last answered it.
    pub(crate) fn heard_master(&self) -> Option<Duration> {
        let heard = || self.heard.borrow().map(|heard| heard.at.elapsed());
        self.majority_heard_ago().or_else(heard)
    }

    /// Checks that a member is at this address: whoever answers there proves it in the hello.
    ///
    /// # Errors
    /// Why this could not be confirmed.
    pub(crate) async fn prove_address(&self, address: &str, id: NodeId) -> Result<(), DialError> {
        self.peers.dialler().prove(address, id).await
    }

    /// See [`Peers::round_trip_p50`].
    pub(crate) fn round_trip_p50(&self, id: NodeId) -> Option<Duration> {
        self.peers.round_trip_p50(id)
    }

    /// Waits until consensus has stopped on its own, and returns why.
    pub(crate) async fn failure(&self) -> String {
        tokio::select! {
            biased;
            reason = self.raft_failure() => reason,
            () = removal::noticed(self) => REMOVED.to_owned(),
        }
    }

    async fn raft_failure(&self) -> String {
        // These end with openraft, and do not change at each step as the full metrics do.
        let mut metrics = self.raft.server_metrics();
        while metrics.changed().await.is_ok() {}
        match &self.raft.metrics().borrow_watched().running_state {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "consensus has ended".to_owned(),
        }
    }

    /// Stops taking part. Returns when every task has ended.
    pub(crate) async fn shutdown(&self) {
        let ended = self.whole(|raft| async move { raft.shutdown().await });
        if let Err(error) = ended.await {
            tracing::error!(%error, "consensus did not end cleanly");
        }
        // The others see at once that this node is gone.
        self.peers.close();
        self.shutdown_state.send_modify(|state| state.begun = true);
        self.role.send_modify(|role| {
            *role = RoleState {
                role: self.last_role(),
                ..role.clone()
            }
        });
        self.tasks.end().await;
    }

    /// Proposes a batch that was numbered in `term`. The future tells whether it was refused.
    async fn propose(&self, term: Term, batch: Batch) -> Result<Proposal, ConsensusError> {
        let (responder, result) = openraft::impls::ProgressResponder::complete_only();
        let written = self.whole(|raft| async move {
            let write = raft.write(batch).with_leader(committed_leader(term));
            write.responder(responder).await
        });
        written.await.map_err(|error| stopped(&error))?;
        Ok(Proposal { result })
    }
}

/// A proposed batch.
struct Proposal {
    result: openraft::alias::OneshotReceiverOf<
        TypeConfig,
        openraft::raft::ClientWriteResult<TypeConfig>,
    >,
}

impl Proposal {
    /// Whether it was refused, and so is not in the log. Known at the latest when it is applied.
    async fn refused(self) -> bool {
        matches!(
            self.result.await,
            Ok(Err(ClientWriteError::ForwardToLeader(_)))
        )
    }
}

/// A master that was heard.
#[derive(Clone, Copy, Debug)]
struct Heard {
    term: Term,
    at: tokio::time::Instant,
}

fn next_seed(seeds: &AtomicU64) -> u64 {
    // Odd, from an irrational number: consecutive seeds share no low bits. The runtime mixes them.
    seeds.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
}

fn stopped(error: &impl ToString) -> ConsensusError {
    ConsensusError::Stopped(error.to_string())
}

fn raft_config(identity: &Identity, timers: Timers) -> Result<Config, openraft::ConfigError> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (min, max) = (
        ms(timers.election_timeout_min),
        ms(timers.election_timeout_max),
    );
    let config = Config {
        cluster_name: identity.group_name.clone(),
        heartbeat_interval: ms(timers.heartbeat_interval),
        election_timeout_min: min,
        election_timeout_max: max,
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::Never,
        // The log is purged when `purge.rs` says so, not whenever there is a new manifest.
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(max.saturating_mul(2)),
        backoff: "10ms 20ms 40ms 80ms ...400ms".to_owned(),
        broadcast_submitted_on_append: Some(true),
        // Replicas may hold entries that a master lost before its own sync. If it continued in its
        // old term, it would reuse their positions.
        enable_leader_restore: Some(planted::is(Bug::LeaderRestore)),
        ..Config::default()
    };
    config.validate()
}

/// The VLSN up to which an engine's account says that it holds everything.
pub(crate) fn held_vlsn(held: Option<&Applied>) -> crate::ids::Vlsn {
    held.map(|held| held.vlsn).unwrap_or_default()
}

/// Builds the members by id from the nodes of a membership.
fn members_of(nodes: impl Iterator<Item = (NodeId, Member)>) -> Members {
    Arc::new(nodes.collect())
}
