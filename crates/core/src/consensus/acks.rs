//! What a master knows of the other nodes: which of them could acknowledge, and which have.
//!
//! openraft decides what is committed. This only informs users and waiters.

use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use crate::consensus::{Consensus, ConsensusError, TypeConfig};
use crate::ids::{LogPosition, NodeId};
use crate::log::LogId;
use crate::planted::{self, Bug};

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// A count of electable nodes, out of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Electable {
    pub(crate) counted: usize,
    pub(crate) all: usize,
}

impl Electable {
    /// The smallest number that is more than half.
    pub(crate) fn majority(self) -> usize {
        self.all / 2 + 1
    }
}

impl Consensus {
    /// How many electable nodes are alive: this one, and those that have answered within the lease.
    pub(crate) fn heard(&self) -> Electable {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        count(&metrics, |id| self.is_heard(&metrics, id))
    }

    /// The electable nodes that have not answered this leader within the lease.
    pub(crate) fn unheard(&self) -> Vec<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.membership().voter_ids();
        voters.filter(|id| !self.is_heard(&metrics, *id)).collect()
    }

    fn is_heard(&self, metrics: &Metrics, id: NodeId) -> bool {
        let mut answers = metrics.heartbeat.iter().flatten();
        let is_recent = |at: &openraft::alias::InstantOf<TypeConfig>| {
            openraft::Instant::elapsed(at) < self.timers.election_timeout_max
        };
        id == self.identity.node_id
            || answers.any(|(other, at)| *other == id && at.is_some_and(|at| is_recent(&at)))
    }

    /// The same, once `are_enough` accepts it or a lease has passed since `since`.
    pub(crate) async fn wait_heard(
        &self,
        since: Instant,
        are_enough: impl Fn(Electable) -> bool,
    ) -> Electable {
        let mut metrics = self.raft.metrics();
        let deadline = since + self.timers.election_timeout_max;
        let heard = async {
            while !are_enough(self.heard()) {
                if metrics.changed().await.is_err() {
                    break;
                }
            }
        };
        // The returned count shows whether they were heard in time.
        tokio::time::timeout_at(deadline, heard).await.ok();
        self.heard()
    }

    /// How many electable nodes are known to have everything up to this position on disk.
    pub(crate) fn persisted_by(&self, at: LogPosition) -> Electable {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        self.count_persisted(&metrics, at)
    }

    /// Waits until every electable node has the committed entry `at` on disk.
    ///
    /// # Errors
    /// When this node is no longer the master of the entry's term.
    pub(crate) async fn persisted_by_all(&self, at: LogId) -> Result<(), ConsensusError> {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let metrics = metrics.borrow_and_update();
                let term = metrics.vote.leader_id.term;
                if !metrics.state.is_leader() || term != at.term {
                    return Err(ConsensusError::NotMaster(metrics.current_leader));
                }
                let persisted = self.count_persisted(&metrics, at.position);
                if persisted.counted == persisted.all {
                    return Ok(());
                }
            }
            let ended = |_| ConsensusError::Stopped("consensus has ended".to_owned());
            metrics.changed().await.map_err(ended)?;
        }
    }

    fn count_persisted(&self, metrics: &Metrics, at: LogPosition) -> Electable {
        let own = self.log.persisted();
        let own = own.borrow().is_some_and(|last| last.position >= at);
        count(metrics, |id| {
            if id == self.identity.node_id {
                return own;
            }
            let mut matched = metrics.replication.iter().flatten();
            matched.any(|(other, last)| {
                *other == id && last.as_ref().is_some_and(|last| last.index >= at.0)
            })
        })
    }
}

fn count(metrics: &Metrics, counts: impl Fn(NodeId) -> bool) -> Electable {
    let membership = metrics.membership_config.membership();
    let all = membership.voter_ids().count();
    let counted = if planted::is(Bug::AllCountsSecondary) {
        let there = membership.nodes().filter(|(id, _)| counts(**id));
        there.count().min(all)
    } else {
        membership.voter_ids().filter(|id| counts(*id)).count()
    };
    Electable { counted, all }
}
