//! How a node learns that it is no member any more.
//!
//! The master tells it. A node that was away then finds out by itself: while it knows no master it
//! asks those whom it takes for members, and when a majority of them refuses it as a stranger, it was
//! removed. One of any majority knows every membership that was ever in force.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;

use crate::consensus::Consensus;
use crate::ids::NodeId;
use crate::listener::Role;
use crate::service::election::ElectionClient;
use crate::service::messages::{BarrierRequest, ElectionCall, Removed};

/// How long a removed node may take to say that it has heard of it.
const TELL_MAX: Duration = Duration::from_secs(1);

/// Rounds of `election_timeout_max` after which a node that knows no master asks again.
const ASK_ROUNDS: u32 = 8;

/// Waits until this node is no member any more.
pub(super) async fn noticed(consensus: &Consensus) {
    let mut told = consensus.removed.subscribe();
    let mut refusing = consensus.peers.refusing();
    let mut interval = tokio::time::interval(consensus.timers.election_timeout_max * ASK_ROUNDS);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval.tick().await;
    loop {
        let refused = refusing.borrow_and_update().clone();
        let is_majority = |set: &BTreeSet<NodeId>| {
            set.iter().filter(|id| refused.contains(id)).count() * 2 > set.len()
        };
        if *told.borrow_and_update() || electorates(consensus).iter().all(is_majority) {
            return;
        }
        tokio::select! {
            biased;
            // The senders are parts of `consensus`, so neither fails.
            _ = told.changed() => {}
            _ = refusing.changed() => {}
            _ = interval.tick() => if consensus.role.borrow().role == Role::Unknown {
                ask(consensus).await;
            },
        }
    }
}

/// The sets of voters, as far as this node knows. Before it has the first membership, that is all
/// whom it was let in with.
fn electorates(consensus: &Consensus) -> Vec<BTreeSet<NodeId>> {
    let sets = consensus.voter_sets();
    if sets.is_empty() {
        return vec![consensus.members.borrow().keys().copied().collect()];
    }
    sets
}

/// Calls everybody; whoever refuses this node is noted by the connection.
async fn ask(consensus: &Consensus) {
    let everybody = electorates(consensus).into_iter().flatten();
    let others = everybody.filter(|id| *id != consensus.identity.node_id);
    let clients = others.filter_map(|id| consensus.peers.election_of(id));
    let timeout = consensus.timers.dial_timeout;
    join_all(clients.map(|client| async move {
        let call = ElectionCall::Barrier(BarrierRequest {});
        // What is asked for is the refusal.
        client.call(call, timeout).await.ok()
    }))
    .await;
}

/// Takes the word of a master that this node was removed, unless it was deposed since. Returns whether
/// it is taken.
pub(super) fn hear(consensus: &Consensus, told: Removed) -> bool {
    let is_removed = told.term >= consensus.role.borrow().term.0;
    consensus.removed.send_if_modified(|old| {
        let is_news = is_removed && !*old;
        *old |= is_removed;
        is_news
    });
    is_removed
}

/// Tells a node that it was removed. It finds out by itself otherwise.
pub(super) async fn tell(consensus: &Consensus, client: &ElectionClient) {
    let term = consensus.role.borrow().term.0;
    let call = ElectionCall::Removed(Removed { term });
    if let Err(error) = client.call(call, TELL_MAX).await {
        tracing::debug!(%error, "a removed node could not be told");
    }
}
