//! How a node learns that it is no longer a member.
//!
//! The master that it follows tells it. A node that was away finds out by itself: while it knows no
//! master it asks those it believes to be members, and when half of them refuse it as a stranger,
//! it was removed. More than half of them, perhaps including this node, had the membership that
//! this node knows: so one of those who refuse it knew that membership, and knows a later one.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;

use crate::consensus::Consensus;
use crate::consensus::election::ElectionClient;
use crate::ids::NodeId;
use crate::listener::Role;
use crate::wire::messages::{BarrierRequest, ElectionCall, Removed};

/// How long a removed node may take to confirm that it was told.
const TELL_MAX: Duration = Duration::from_secs(1);

/// Rounds of `election_timeout_max` after which a node that knows no master asks again.
const ASK_ROUNDS: u32 = 8;

/// Waits until this node learns that it is no longer a member.
pub(super) async fn noticed(consensus: &Consensus) {
    let mut told = consensus.removed.subscribe();
    let mut refusing = consensus.peers.refusing();
    let mut interval = tokio::time::interval(consensus.timers.election_timeout_max * ASK_ROUNDS);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval.tick().await;
    loop {
        let refused = refusing.borrow_and_update().clone();
        if *told.borrow_and_update() || is_proof(&electorates(consensus), &refused) {
            return;
        }
        tokio::select! {
            biased;
            // `consensus` owns the senders, so neither fails.
            _ = told.changed() => {}
            _ = refusing.changed() => {}
            _ = interval.tick() => if consensus.role.borrow().role == Role::Unknown {
                ask(consensus).await;
            },
        }
    }
}

/// Whether refusals by these nodes prove a removal.
fn is_proof(electorates: &[BTreeSet<NodeId>], refused: &BTreeSet<NodeId>) -> bool {
    let is_half = |set: &BTreeSet<NodeId>| 2 * set.intersection(refused).count() >= set.len();
    electorates.iter().all(is_half)
}

/// The sets of voters, as far as this node knows. Before it has the first membership: all members
/// known when it was admitted.
fn electorates(consensus: &Consensus) -> Vec<BTreeSet<NodeId>> {
    let sets = consensus.voter_sets();
    if sets.is_empty() {
        return vec![consensus.members.borrow().keys().copied().collect()];
    }
    sets
}

/// Calls everybody; the connections note who refuses this node.
async fn ask(consensus: &Consensus) {
    let everybody = electorates(consensus).into_iter().flatten();
    let others = everybody.filter(|id| *id != consensus.identity.node_id);
    let clients = others.filter_map(|id| consensus.peers.election_of(id));
    let timeout = consensus.timers.dial_timeout;
    join_all(clients.map(|client| async move {
        let call = ElectionCall::Barrier(BarrierRequest {});
        // Only the refusal matters.
        client.call(call, timeout).await.ok()
    }))
    .await;
}

/// Accepts word of this node's removal only from the master that it follows: from a master that it
/// does not know, it learns through refusals. Returns whether it is accepted.
pub(super) fn hear(consensus: &Consensus, caller: NodeId, told: Removed) -> bool {
    let is_removed = consensus.is_followed(caller, told.term);
    consensus.removed.send_if_modified(|old| {
        let is_news = is_removed && !*old;
        *old |= is_removed;
        is_news
    });
    is_removed
}

/// Tells a node that it was removed. Otherwise it finds out by itself.
pub(super) async fn tell(consensus: &Consensus, client: &ElectionClient) {
    let term = consensus.role.borrow().term.0;
    let call = ElectionCall::Removed(Removed { term });
    if let Err(error) = client.call(call, TELL_MAX).await {
        tracing::debug!(%error, "could not tell a node that it was removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_prove_a_removal_when_one_of_them_knew_better() {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let proves = |voters: &[u64], refused: &[u64]| is_proof(&[set(voters)], &set(refused));
        // One of two: the other one had the membership too, or it was never in force.
        assert!(proves(&[1, 2], &[1]) && !proves(&[1, 2], &[]));
        // Of three, one may not have heard of this node yet.
        assert!(proves(&[1, 2, 3], &[1, 2]) && !proves(&[1, 2, 3], &[1]));
        assert!(proves(&[1, 2, 3, 4], &[1, 2]) && !proves(&[1, 2, 3, 4, 5], &[1, 2]));
        // While a change is under way, half of each set.
        assert!(!is_proof(&[set(&[1, 2]), set(&[1, 2, 3])], &set(&[1])));
    }
}
