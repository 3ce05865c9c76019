//! Limits what an arbiter may acknowledge. An arbiter has no data, so its acknowledgement must not
//! replace that of a copy that could have been made.
//!
//! ```text
//!   data nodes that are heard ── all have an entry on disk ──► the arbiters get the entry
//!   a data node is silent for a lease ──► nobody waits for it any longer: DEGRADED
//! ```
//!
//! A new master, which has heard nobody yet, waits a lease for every node.
//!
//! So with two data nodes and an arbiter, a commit needs both copies while both nodes are up. When
//! one dies, the other has everything that the arbiter has, and the two elect it.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::consensus::types::{TypeConfig, from_raft_vote};
use crate::ids::{LogPosition, NodeId, Term};

/// The position up to which this master's arbiters receive the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Released {
    term: Term,
    position: LogPosition,
}

impl Released {
    /// Whether the append may go to an arbiter. A release from another term does not count: it may
    /// have been truncated since.
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
    let mut leads_since = (None, Instant::now());
    loop {
        // Marked as seen before use, so that later changes are not missed.
        progress.borrow_and_update();
        persisted.borrow_and_update();
        let leads_in = {
            let metrics = leadership.borrow_and_update();
            let term = metrics.vote.leader_id.term;
            metrics.state.is_leader().then_some(term)
        };
        if leads_in != leads_since.0 {
            leads_since = (leads_in, Instant::now());
        }
        let members = consensus.members();
        let has_arbiters = members.values().any(|member| !member.node_type.has_data());
        let Some(term) = leads_in.filter(|_| has_arbiters) else {
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        };
        let position = consensus.copied_everywhere(leads_since.1.elapsed());
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
            // A node that falls silent triggers no other branch.
            _ = lease.tick() => true,
        };
        if !more {
            return;
        }
    }
}

impl Consensus {
    /// The position up to which every voting data node that counts as present has the log on disk.
    fn copied_everywhere(&self, led_for: Duration) -> LogPosition {
        let own = *self.log.persisted().borrow();
        let own = own.map(|last| last.position).unwrap_or_default();
        let (members, voters, progress) = (self.members(), self.voters(), self.replica_progress());
        let is_data = |id: &NodeId| {
            let member = members.get(id);
            *id != self.identity.node_id && member.is_some_and(|member| member.node_type.has_data())
        };
        let data = voters.iter().filter(|id| is_data(id));
        let copies = data.map(|id| {
            let of = progress.get(id);
            let persisted = of.and_then(|of| of.persisted).map(|last| last.position);
            // A node that was never heard may have been up all the time.
            let silent_for = of.and_then(|of| of.heard).unwrap_or(led_for);
            (persisted.unwrap_or_default(), silent_for)
        });
        copied(own, copies, self.timers.election_timeout_max)
    }
}

/// What the master, and each of these not silent for longer than a lease, has on disk.
fn copied(
    own: LogPosition,
    copies: impl Iterator<Item = (LogPosition, Duration)>,
    lease: Duration,
) -> LogPosition {
    let there = copies.filter(|(_, silent_for)| *silent_for <= lease);
    there
        .map(|(persisted, _)| persisted)
        .fold(own, LogPosition::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_waited_for_until_its_node_is_silent_for_a_lease() {
        let ms = Duration::from_millis;
        let released = |copies: &[(u64, u64)]| {
            let copies = copies
                .iter()
                .map(|(at, silent)| (LogPosition(*at), ms(*silent)));
            copied(LogPosition(10), copies, ms(300)).0
        };
        assert_eq!(released(&[]), 10, "the master has it");
        assert_eq!(released(&[(12, 0), (7, 300)]), 7);
        assert_eq!(
            released(&[(12, 0), (7, 301)]),
            10,
            "it is waited for no longer"
        );
        assert_eq!(
            released(&[(0, 20)]),
            0,
            "a new master knows nothing of it yet"
        );
    }
}
