//! Whether the node that leads hears a majority. It is decided here alone: the role, and with it
//! status, events and health, and the check before a write all follow this.
//!
//! A leader that a majority has not answered for a lease, `election_timeout_max`, may have been
//! replaced, and openraft takes no proposals from it.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use crate::consensus::Consensus;

impl Consensus {
    /// Whether a majority has answered this leader within its lease, the time for which they
    /// consider it alive; otherwise it may have been replaced. True for a node that does not lead.
    pub(crate) fn majority_is_heard(&self) -> bool {
        let lease = self.timers.election_timeout_max;
        self.majority_heard_ago().is_none_or(|ago| ago < lease)
    }

    /// How long ago this leader sent what a majority has answered; `None` for a node that does not
    /// lead, or needs nobody but itself.
    pub(crate) fn majority_heard_ago(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.membership().voter_ids();
        if voters.all(|id| id == self.identity.node_id) {
            return None;
        }
        let acked = metrics.last_quorum_acked;
        acked.map(|at| openraft::Instant::elapsed(&*at))
    }

    /// Waits until [`Consensus::majority_is_heard`] may have another answer.
    pub(super) async fn majority_may_differ(&self) {
        let lease = self.timers.election_timeout_max;
        if self.majority_is_heard() {
            // An answer in the meantime prolongs the lease. Waiting for each would wake this at
            // every commit.
            let ago = self.majority_heard_ago().unwrap_or_default();
            tokio::time::sleep(lease.saturating_sub(ago)).await;
            return;
        }
        let mut metrics = self.raft.metrics();
        while !self.majority_is_heard() {
            if metrics.changed().await.is_err() {
                // Consensus has ended, and with it this leader.
                std::future::pending::<()>().await;
            }
        }
    }
}
