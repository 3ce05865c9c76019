//! Replicas that need entries which no log has any more: the master tells such a replica, and it
//! has to get a copy of the state.
//!
//! ```text
//!   master: the log begins after 91@7, the replica ends before
//!      │  "reach 91@7", repeatedly
//!      ▼
//!   replica: has it ──► yes: entries follow
//!            has not ─► no: it stops, copies the state of a peer (`lifecycle/restoring.rs`), and continues
//! ```
//!
//! openraft treats this as sending a snapshot, of which it sends only the manifest.

use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;

use crate::consensus::Consensus;
use crate::consensus::types::from_raft_vote;
use crate::ids::{LogPosition, NodeId};
use crate::log::{Entry, LogId, Vote};
use crate::wire::messages::{ReachMessage, ReachedMessage};

/// What a node has to reach by a copy of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outdated {
    /// Its log has to begin at this entry or later.
    pub(crate) entry: LogId,
}

impl Consensus {
    /// Watches what this node has to reach by a copy, according to a master.
    pub(crate) fn outdated(&self) -> watch::Receiver<Option<Outdated>> {
        self.outdated.subscribe()
    }

    /// Answers a master that asks this node to reach an entry. `None` for an invalid request.
    pub(super) async fn reach(
        &self,
        caller: NodeId,
        asked: ReachMessage,
    ) -> Option<ReachedMessage> {
        let vote: Vote = asked.vote?.try_into().ok()?;
        let entry: LogId = asked.entry?.try_into().ok()?;
        if vote.node != caller || !vote.committed {
            tracing::warn!(%caller, "a node that is not the master offered a state");
            return None;
        }
        let own = from_raft_vote(&self.raft.server_metrics().borrow_watched().vote);
        let is_current = own.term <= vote.term;
        let has = is_current && self.has_entry(entry).await;
        if is_current && !has {
            self.outdated.send_if_modified(|old| {
                let new = Some(Outdated { entry });
                let changed = *old != new;
                *old = new;
                changed
            });
        }
        Some(ReachedMessage {
            vote: Some(if is_current { vote } else { own }.into()),
            has,
        })
    }

    /// Whether this node has the entry, or the state that resulted from it.
    async fn has_entry(&self, entry: LogId) -> bool {
        let state = self.log.state();
        if state
            .purged
            .is_some_and(|purged| purged.position >= entry.position)
        {
            return true;
        }
        let is_durable = state
            .persisted
            .is_some_and(|last| last.position >= entry.position);
        let range = entry.position..LogPosition(entry.position.0 + 1);
        let found = self.log.read(range, 1).await.unwrap_or_default();
        is_durable && found.first().map(Entry::id) == Some(entry)
    }
}
