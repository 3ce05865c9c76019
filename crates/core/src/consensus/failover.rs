//! Failover by closed connections: when the master's process dies, its connections close at once,
//! and nobody has to wait for a timer.
//!
//! ```text
//!  every connection from the master is closed here
//!      │  a few random milliseconds, so that two replicas do not start together
//!      ▼
//!  ask the other voters: have you lost it too, and would you vote for my log?
//!      │  a majority, this node included, agrees
//!      ▼
//!  election at once, past the lease that the dead master still has
//! ```
//!
//! Safety does not depend on this: the election is an ordinary one, and reads never depend on a
//! lease. The majority avoids disruption: one broken link between healthy nodes changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use rand::Rng;
use tokio::sync::watch;

use crate::consensus::{Consensus, SeededRuntime, TypeConfig};
use crate::ids::{NodeId, Term};
use crate::log::LogId;
use crate::wire::messages::{ElectionAnswer, ElectionCall, MasterGone};

/// The delay before an attempt is random, up to this times the number of the attempt.
const JITTER: Duration = Duration::from_millis(8);
/// The time for an election, with a margin: a vote is synced by both sides.
const SETTLE: Duration = Duration::from_millis(15);
/// Attempts before the timers take over.
const ATTEMPTS_MAX: u32 = 8;

/// The number of open connections from each node.
#[derive(Clone, Default)]
pub(super) struct Inbound {
    open: Arc<watch::Sender<BTreeMap<NodeId, usize>>>,
}

impl Inbound {
    /// Counts a connection from `node` until the guard is dropped.
    pub(super) fn connected(&self, node: NodeId) -> InboundGuard {
        self.open
            .send_modify(|open| *open.entry(node).or_default() += 1);
        InboundGuard {
            inbound: self.clone(),
            node,
        }
    }

    /// Whether there was a connection from `node` and none is left.
    fn is_gone(&self, node: NodeId) -> bool {
        self.open.borrow().get(&node) == Some(&0)
    }
}

/// One open connection.
pub(super) struct InboundGuard {
    inbound: Inbound,
    node: NodeId,
}

impl Drop for InboundGuard {
    fn drop(&mut self) {
        self.inbound.open.send_modify(|open| {
            if let Some(count) = open.get_mut(&self.node) {
                *count -= 1;
            }
        });
    }
}

/// The master that this node follows, with its term and this node's last entry.
struct Followed {
    master: NodeId,
    term: Term,
    last: Option<LogId>,
}

fn followed(consensus: &Consensus) -> Option<Followed> {
    let metrics = consensus.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let master = metrics
        .current_leader
        .filter(|id| *id != consensus.identity.node_id)?;
    let term = metrics.vote.leader_id.term;
    // A node without a vote has no say.
    let is_voter = metrics
        .membership_config
        .membership()
        .voter_ids()
        .any(|id| id == consensus.identity.node_id);
    is_voter.then(|| Followed {
        master,
        term,
        last: consensus.log.state().last,
    })
}

/// Whether this node has lost the master too, and would vote for the sender's log.
pub(super) fn agrees(consensus: &Consensus, gone: &MasterGone) -> bool {
    let last = gone.last.map(LogId::try_from).transpose();
    let (Ok(last), Some(own)) = (last, followed(consensus)) else {
        return false;
    };
    let order = |id: Option<LogId>| id.map(|id| (id.term, id.position));
    let is_current = order(last) >= order(own.last);
    let is_same = own.master.0 == gone.master && own.term.0 == gone.term;
    consensus.hear_candidate(last);
    is_same && is_current && consensus.inbound.is_gone(own.master)
}

/// Whether this node has lost every connection from the master that it follows.
pub(super) fn is_master_gone(consensus: &Consensus) -> bool {
    followed(consensus).is_some_and(|own| consensus.inbound.is_gone(own.master))
}

/// Watches for the master's connections to close, until consensus stops.
pub(super) async fn run(consensus: Arc<Consensus>) {
    let mut open = consensus.inbound.open.subscribe();
    let mut metrics = consensus.raft.server_metrics();
    loop {
        open.borrow_and_update();
        if consensus.can_lead() && is_master_gone(&consensus) {
            take_over(&consensus).await;
        }
        let more = tokio::select! {
            biased;
            changed = metrics.changed() => changed.is_ok(),
            changed = open.changed() => changed.is_ok(),
        };
        if !more {
            return;
        }
    }
}

pub(super) async fn take_over(consensus: &Consensus) {
    for attempt in 1..=ATTEMPTS_MAX {
        tokio::time::sleep(jitter(attempt)).await;
        let Some(own) = followed(consensus) else {
            return;
        };
        if !consensus.inbound.is_gone(own.master) {
            return;
        }
        if majority_agrees(consensus, &own).await {
            elect(consensus, &own).await;
            return;
        }
    }
}

async fn majority_agrees(consensus: &Consensus, own: &Followed) -> bool {
    let sets = consensus.voter_sets();
    let gone = MasterGone {
        master: own.master.0,
        term: own.term.0,
        last: own.last.map(Into::into),
    };
    let me = consensus.identity.node_id;
    let others = sets
        .iter()
        .flatten()
        .filter(|id| **id != me && **id != own.master);
    let asked = others.filter_map(|id| Some((*id, consensus.peers.election_of(*id)?)));
    let timeout = consensus.timers.election_timeout_min;
    let agreed = join_all(asked.map(|(id, client)| async move {
        let answer = client.call(ElectionCall::MasterGone(gone), timeout).await;
        matches!(answer, Ok(ElectionAnswer::Agrees(true))).then_some(id)
    }))
    .await;
    let agrees = |id: &NodeId| *id == me || agreed.contains(&Some(*id));
    sets.iter()
        .all(|set| set.iter().filter(|id| agrees(id)).count() * 2 > set.len())
}

/// Asks for votes as if the dead master had handed over: the others, which have lost it too, do not
/// wait for its lease.
async fn elect(consensus: &Consensus, own: &Followed) {
    let vote = consensus.raft.server_metrics().borrow_watched().vote;
    if vote.leader_id.term != own.term {
        return;
    }
    let last = own.last.map(super::to_raft_log_id);
    tracing::info!(master = %own.master, term = %own.term, "the master is gone; starting an election");
    let request = TransferLeaderRequest::<TypeConfig>::new(vote, consensus.identity.node_id, last);
    let begun = consensus.whole(|raft| async move { raft.handle_transfer_leader(request).await });
    match begun.await {
        Ok(Ok(())) => settle(consensus, own).await,
        Ok(Err(error)) => tracing::debug!(%error, "no election: the state has changed meanwhile"),
        Err(error) => tracing::debug!(%error, "no election: consensus has stopped"),
    }
}

/// Asks again while nobody has won: two replicas that start at once split the votes, and would both
/// wait for their timers. The lease is over by now, so ordinary elections suffice.
async fn settle(consensus: &Consensus, own: &Followed) {
    for attempt in 1..=ATTEMPTS_MAX {
        tokio::time::sleep(SETTLE + jitter(attempt)).await;
        let is_settled = {
            let metrics = consensus.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics
                .current_leader
                .is_some_and(|leader| leader != own.master)
        };
        let asked = consensus.whole(|raft| async move { raft.trigger().elect(true).await });
        if is_settled || asked.await.is_err() {
            return;
        }
    }
}

/// A random delay that grows with each attempt.
fn jitter(attempt: u32) -> Duration {
    let drawn = SeededRuntime::thread_rng().next_u32() % 1000;
    JITTER * attempt * drawn / 1000
}
