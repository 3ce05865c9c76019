//! Mastership: publishes the role of this node and, while it is master, proposes the batches of the
//! sequencer.
//!
//! ```text
//!            openraft: leader                 own blank entry applied
//!  Unknown ─────────────────────► (waiting) ─────────────────────────► Master: session open
//!     ▲                                                                  │  ▲
//!     ├──────────────────── openraft: not leader ◄───────────────────────┤  │
//!     └───────── no majority heard for a lease, a proposal refused ──────┴──┘ until one answers
//! ```
//!
//! The blank entry makes numbering safe: once it has been applied, every transaction of every
//! earlier session has either been applied too or never will be. openraft appends it when it begins
//! to lead.
//!
//! ```text
//!            openraft: another leads, and it is heard
//!  Unknown ───────────────────────────────────────────► Replica
//!     ▲                                                    │
//!     └─ openraft: nobody leads, or silence for 4 rounds ◄─┘
//! ```
//!
//! A leader of priority 0 is not master: it stays `Unknown` ([`stand_in`]).
//!
//! openraft alone never returns to `Unknown` on silence: without a majority no election reaches a
//! new term, and the last leader would stay the leader for ever.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;

use crate::consensus::{Consensus, ConsensusError, Heard, TypeConfig, members_of, stand_in};
use crate::ids::{NodeId, Term};
use crate::listener::{Role, RoleState};
use crate::machine::Clock;
use crate::planted::{self, Bug};
use crate::txn::batch::Batch;
use crate::txn::sequencer::SessionId;

/// How long a leader waits after a refused proposal before it proposes again.
const LEAD_RETRY: Duration = Duration::from_millis(10);

/// Rounds of `election_timeout_max` without hearing its master after which a replica says that it
/// knows none. A healthy group elects a new one within two or three. Rounds are counted instead of
/// time, so that a process that was suspended for longer listens first.
const SILENT_ROUNDS_MAX: u32 = 4;

impl Consensus {
    /// How long a live node of this group may be silent.
    pub(crate) fn silence_max(&self) -> Duration {
        self.timers.election_timeout_max * SILENT_ROUNDS_MAX
    }
}

/// The relevant part of openraft's state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leadership {
    term: Term,
    leader: Option<NodeId>,
    is_own: bool,
}

/// Maintains the role until consensus stops.
pub(super) async fn run(consensus: Arc<Consensus>, clock: Arc<dyn Clock>) {
    let mut metrics = consensus.raft.server_metrics();
    let (leadership_sender, leadership) = watch::channel(read(&consensus, &metrics));
    let follow = async {
        loop {
            let now = read(&consensus, &metrics);
            publish_members(&consensus, &metrics);
            leadership_sender.send_if_modified(|old| {
                let changed = *old != now;
                *old = now;
                changed
            });
            if metrics.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = follow => {}
        () = act(&consensus, leadership, &*clock) => {}
    }
    consensus.sequencer.end_session();
    consensus
        .shutdown_state
        .send_modify(|state| state.begun = true);
    publish(
        &consensus,
        consensus.last_role(),
        &Leadership {
            term: Term(0),
            leader: None,
            is_own: false,
        },
    );
}

type ServerMetrics =
    openraft::alias::WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>;

fn read(consensus: &Consensus, metrics: &ServerMetrics) -> Leadership {
    let metrics = metrics.borrow_watched();
    let leader = metrics.current_leader;
    // A candidate that has just won appears as leader before its vote is durable; until then it
    // takes no writes.
    let is_own = metrics.state.is_leader()
        && metrics.vote.committed
        && leader == Some(consensus.identity.node_id);
    Leadership {
        term: metrics.vote.leader_id.term,
        leader,
        is_own,
    }
}

pub(super) fn publish_members(consensus: &Consensus, metrics: &ServerMetrics) {
    let membership = metrics
        .borrow_watched()
        .membership_config
        .membership()
        .clone();
    let nodes = membership.nodes().map(|(id, member)| (*id, member.clone()));
    let members = members_of(nodes);
    if members.is_empty() {
        return;
    }
    consensus.peers.dialler().addresses.follow(&members);
    consensus.members.send_if_modified(|old| {
        let changed = *old != members;
        old.clone_from(&members);
        changed
    });
    // The same master may be reached elsewhere, or say something else of itself.
    consensus.role.send_if_modified(|role| {
        let Some(master) = &mut role.master else {
            return false;
        };
        let latest = members.get(&master.id).map(|of| of.node_address(master.id));
        let Some(latest) = latest.filter(|latest| latest != master) else {
            return false;
        };
        *master = latest;
        true
    });
    consensus.raft.runtime_config().elect(consensus.can_lead());
}

fn publish(consensus: &Consensus, role: Role, leadership: &Leadership) {
    let master = leadership.leader.and_then(|id| {
        consensus
            .members
            .borrow()
            .get(&id)
            .map(|member| member.node_address(id))
    });
    let master = if role == Role::Unknown { None } else { master };
    consensus.role.send_if_modified(|old| {
        let term = leadership.term.max(old.term);
        let new = RoleState { role, term, master };
        let changed = *old != new;
        if changed {
            let master = new.master.as_ref().map(|master| &*master.name);
            tracing::info!(role = %new.role, term = %new.term, master, "the role of this node");
            *old = new;
        }
        changed
    });
}

async fn act(
    consensus: &Consensus,
    mut leadership: watch::Receiver<Leadership>,
    clock: &dyn Clock,
) {
    let mut last_led = None;
    loop {
        let now = leadership.borrow_and_update().clone();
        if now.is_own {
            publish(consensus, Role::Unknown, &now);
            let is_first = last_led.replace(now.term) != Some(now.term);
            let led = lead(consensus, &now, is_first, leadership.clone(), clock);
            led.await;
            consensus.sequencer.end_session();
            if planted::is(Bug::MasterOnce) {
                std::future::pending::<()>().await;
            }
            // Still leader, but without a session: a blank entry was refused. Retry soon.
            let changed = tokio::time::timeout(LEAD_RETRY, leadership.changed());
            changed.await.ok();
            continue;
        }
        // The leader is this node even before its vote is durable; that does not count yet.
        let is_other = |leader: NodeId| leader != consensus.identity.node_id;
        let follow = async {
            if now.leader.is_some_and(is_other) {
                follow(consensus, &now).await;
            } else {
                publish(consensus, Role::Unknown, &now);
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            changed = leadership.changed() => if changed.is_err() {
                return;
            },
            () = follow => {}
        }
    }
}

/// Publishes whether the master of `now` is heard. Runs until dropped.
async fn follow(consensus: &Consensus, now: &Leadership) {
    let mut heard = consensus.heard.subscribe();
    let is_heard = |newest: &Option<Heard>| newest.is_some_and(|newest| newest.term == now.term);
    loop {
        if !is_heard(&heard.borrow_and_update()) {
            publish(consensus, Role::Unknown, now);
        }
        // `consensus` owns the sender, so neither this nor the wait below fails.
        heard.wait_for(is_heard).await.ok();
        publish(consensus, Role::Replica, now);
        silence(&mut heard, consensus.timers.election_timeout_max).await;
        publish(consensus, Role::Unknown, now);
        heard.changed().await.ok();
    }
}

/// Returns after [`SILENT_ROUNDS_MAX`] consecutive rounds without hearing anything.
async fn silence(heard: &mut watch::Receiver<Option<Heard>>, round: Duration) {
    let mut silent_rounds = 0;
    while silent_rounds < SILENT_ROUNDS_MAX {
        tokio::time::sleep(round).await;
        silent_rounds += 1;
        if heard.has_changed().unwrap_or_default() {
            heard.mark_unchanged();
            silent_rounds = 0;
        }
    }
}

/// Leads while the role lasts. `is_first` means that it has not led in this term since the start.
async fn lead(
    consensus: &Consensus,
    own: &Leadership,
    is_first: bool,
    mut leadership: watch::Receiver<Leadership>,
    clock: &dyn Clock,
) {
    let lost = async {
        // An error means that consensus has stopped, which is a loss as well.
        leadership.wait_for(|now| now != own).await.ok();
    };
    tokio::pin!(lost);
    tokio::select! {
        biased;
        () = &mut lost => return,
        () = std::future::ready(()), if planted::is(Bug::NoBlank) => {}
        is_settled = settled(consensus, own.term, is_first) => if !is_settled {
            return;
        },
    }
    tokio::select! {
        biased;
        () = &mut lost => return,
        () = stand_in::until_it_may_be_master(consensus) => {}
    }
    consensus.sequencer.begin_session(own.term);
    let refused = watch::Sender::new(false);
    tokio::select! {
        biased;
        () = &mut lost => {}
        () = publish_own(consensus, own, &refused) => {}
        () = propose_all(consensus, own, clock, &refused) => {}
    }
}

/// Publishes whether this leader acts as master: it hears a majority, and no proposal of it has
/// been refused since one was taken. Runs until dropped.
async fn publish_own(consensus: &Consensus, own: &Leadership, refused: &watch::Sender<bool>) {
    let mut refused = refused.subscribe();
    loop {
        let acts = !*refused.borrow_and_update() && consensus.majority_is_heard();
        publish(
            consensus,
            if acts { Role::Master } else { Role::Unknown },
            own,
        );
        tokio::select! {
            biased;
            // `lead` owns the sender.
            _ = refused.changed() => {}
            () = consensus.majority_may_differ() => {}
        }
    }
}

/// Waits until a blank entry of this term and everything ever numbered has been applied; returns
/// whether it was. It waits for the blank with which the term begins instead of writing another: a
/// leader that nobody has answered yet would be refused that.
async fn settled(consensus: &Consensus, term: Term, is_first: bool) -> bool {
    if !is_first {
        let written = consensus.whole(|raft| async move { raft.write_blank().await });
        return written
            .await
            .is_ok_and(|blank| blank.log_id.leader_id.term == term);
    }
    // Everything in the log has to be applied as well: numbering continues from there.
    let last = consensus.last().map_or(0, |last| last.position.0);
    let mut metrics = consensus.raft.data_metrics();
    loop {
        let applied = metrics.borrow_watched().last_applied;
        if applied.is_some_and(|id| id.leader_id.term == term && id.index() >= last) {
            return true;
        }
        if metrics.changed().await.is_err() {
            return false;
        }
    }
}

/// Proposes batches as they come, one after another, until consensus stops.
async fn propose_all(
    consensus: &Consensus,
    own: &Leadership,
    clock: &dyn Clock,
    refused: &watch::Sender<bool>,
) {
    let sequencer = &consensus.sequencer;
    let in_flight_max = consensus.timers.batches_in_flight_max;
    loop {
        consensus.hold.pass().await;
        if let Some(batch) = sequencer.take_batch(in_flight_max, clock.now_ms()) {
            if propose(consensus, own, &batch, refused).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            biased;
            () = sequencer.ready() => {}
            () = consensus.hold.wanted() => {}
        }
    }
}

/// Proposes a batch until the log has it: if the next one were proposed first, it could enter the
/// log without this one.
///
/// A leader that has not heard from a majority within its lease refuses proposals, and accepts them
/// again once it hears from a majority. `refused` says so meanwhile.
///
/// # Errors
/// When consensus has stopped.
async fn propose(
    consensus: &Consensus,
    own: &Leadership,
    batch: &Batch,
    refused: &watch::Sender<bool>,
) -> Result<(), ConsensusError> {
    let session = SessionId { term: own.term };
    loop {
        let place = consensus.sequencer.place_of(session, batch.first());
        let proposal = consensus.propose(own.term, batch.clone()).await?;
        let is_refused = tokio::select! {
            biased;
            // The place, or the end of the session.
            _ = place => false,
            is_refused = proposal.refused() => is_refused,
        };
        if !is_refused {
            break;
        }
        consensus.sequencer.note_refused(true);
        refused.send_replace(true);
        tokio::time::sleep(LEAD_RETRY).await;
        consensus.sequencer.note_refused(false);
    }
    // Wakes nobody at an ordinary commit.
    refused.send_if_modified(std::mem::take);
    Ok(())
}
