//! What an arbiter may acknowledge: an arbiter has no data, so its acknowledgement must not stand for
//! a copy that could have been made.
//!
//! ```text
//!   data nodes that are heard ── all have an entry on disk ──► the arbiters get the entry
//!   a data node is silent for a lease ──► it is waited for no longer: DEGRADED
//! ```
//!
//! So with two data nodes and an arbiter a commit takes both copies while both nodes are there. When
//! one dies the other has everything that the arbiter has, and the two elect it.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use tokio::sync::watch;

use crate::consensus::types::{TypeConfig, from_raft_vote};
use crate::consensus::{Consensus, Progress};
use crate::group::Members;
use crate::ids::{LogPosition, NodeId, Term};

/// How far this master's arbiters get the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Released {
    term: Term,
    position: LogPosition,
}

impl Released {
    /// Whether an arbiter may have the append. What was released in another term says nothing: it may
    /// have been cut off since.
    pub(super) fn covers(self, append: &AppendEntriesRequest<TypeConfig>) -> bool {
        let last = append.entries.last().map(|entry| entry.log_id.index);
        let term = from_raft_vote(&append.vote).term;
        last.is_none_or(|last| self.term == term && last <= self.position.0)
    }
}

/// Releases entries while this node leads and there are arbiters, until consensus stops.
pub(super) async fn run(consensus: Arc<Consensus>, released: watch::Sender<Released>) {
    let mut progress = consensus.raft.metrics();
    let mut leadership = consensus.raft.server_metrics();
    let mut persisted = consensus.log.persisted();
    let mut lease = tokio::time::interval(consensus.timers.election_timeout_max / 4);
    loop {
        // Seen before anything is made of it: what changes from here on is not missed.
        progress.borrow_and_update();
        persisted.borrow_and_update();
        let leads_in = {
            let metrics = leadership.borrow_and_update();
            let term = metrics.vote.leader_id.term;
            metrics.state.is_leader().then_some(term)
        };
        let members = consensus.members();
        let has_arbiters = members.values().any(|member| !member.node_type.has_data());
        let Some(term) = leads_in.filter(|_| has_arbiters) else {
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        };
        let position = consensus.copied_everywhere();
        released.send_if_modified(|old| {
            let new = Released { term, position };
            let changed = *old != new;
            *old = new;
            changed
        });
        let more = tokio::select! {
            biased;
            changed = progress.changed() => changed.is_ok(),
            changed = leadership.changed() => changed.is_ok(),
            changed = persisted.changed() => changed.is_ok(),
            // A node that falls silent changes nothing else.
            _ = lease.tick() => true,
        };
        if !more {
            return;
        }
    }
}

impl Consensus {
    /// The position up to which every data node that votes and is heard has the log on disk.
    fn copied_everywhere(&self) -> LogPosition {
        let own = *self.log.persisted().borrow();
        let own = own.map(|last| last.position).unwrap_or_default();
        let (members, voters) = (self.members(), self.voters());
        let data = data_voters(&members, &voters).filter(|id| *id != self.identity.node_id);
        let progress = self.replica_progress();
        let lease = self.timers.election_timeout_max;
        let is_heard = |of: &&Progress| of.heard.is_some_and(|ago| ago <= lease);
        let copies = data.filter_map(|id| progress.get(&id).filter(is_heard));
        copies
            .map(|of| of.persisted.map(|last| last.position).unwrap_or_default())
            .fold(own, LogPosition::min)
    }
}

fn data_voters(members: &Members, voters: &BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> {
    let data = members
        .iter()
        .filter(|(id, member)| voters.contains(id) && member.node_type.has_data());
    data.map(|(id, _)| *id)
}
