//! The members' addresses. Each node meets every other one, so that it can find them when their
//! names no longer resolve. The master enters addresses that an operator set at stopped nodes into
//! the membership, as soon as the member has proved itself there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::ChangeMembers;
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::consensus::members::ChangeError;
use crate::group::Member;
use crate::ids::NodeId;
use crate::listener::Role;

/// How often a node meets members again that it has met before: they may have moved.
const MEET_AGAIN: Duration = Duration::from_mins(1);

/// How often it tries members that it has not met yet, and the master tries to settle addresses.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Meets the others until consensus stops.
pub(super) async fn run(consensus: Arc<Consensus>) {
    let (mut members, mut role) = (consensus.members.subscribe(), consensus.role.subscribe());
    let mut met: Option<Instant> = None;
    loop {
        members.borrow_and_update();
        let is_master = role.borrow_and_update().role == Role::Master;
        let is_time = met.is_none_or(|at| at.elapsed() >= MEET_AGAIN);
        if is_time {
            met = Some(Instant::now());
        }
        meet(&consensus, is_time).await;
        if is_master && let Err(error) = settle(&consensus).await {
            tracing::warn!(%error, "the addresses that were given are not in the membership yet");
        }
        let again = if is_settled(&consensus) {
            MEET_AGAIN
        } else {
            TRY_AGAIN
        };
        let more = tokio::select! {
            biased;
            changed = members.changed() => changed.is_ok(),
            changed = role.changed() => changed.is_ok(),
            () = tokio::time::sleep(again) => true,
        };
        if !more {
            return;
        }
    }
}

fn others(consensus: &Consensus) -> BTreeMap<NodeId, String> {
    let members = consensus.members.borrow();
    let others = members.iter().filter(|(id, _)| **id != consensus.own_id());
    let address = |(id, member): (&NodeId, &Member)| (*id, member.address.clone());
    others.map(address).collect()
}

/// Meets all others, or only those that this node has not met yet.
async fn meet(consensus: &Consensus, all: bool) {
    let dialler = consensus.peers.dialler();
    let mut others = others(consensus);
    others.retain(|id, _| all || !dialler.addresses.has_met(*id));
    let greeting = others.into_iter().map(|(id, address)| async move {
        if let Err(error) = dialler.greet(&address, id).await {
            tracing::debug!(%id, %error, "a member could not be greeted");
        }
    });
    join_all(greeting).await;
}

fn is_settled(consensus: &Consensus) -> bool {
    let addresses = &consensus.peers.dialler().addresses;
    let has_met = |id: &NodeId| addresses.has_met(*id);
    others(consensus).keys().all(has_met) && addresses.said(&consensus.members.borrow()).is_empty()
}

/// Enters operator-set addresses into the membership, for members that prove to be there.
async fn settle(consensus: &Consensus) -> Result<(), ChangeError> {
    let dialler = consensus.peers.dialler();
    let said = dialler.addresses.said(&consensus.members());
    let tried = said.into_iter().map(|(id, address)| async move {
        match dialler.prove(&address, id).await {
            Ok(()) => Some((id, address)),
            Err(error) => {
                tracing::debug!(
                    %id, address, %error,
                    "the member is not at the address that was given for it"
                );
                None
            }
        }
    });
    let proved: Vec<_> = join_all(tried).await.into_iter().flatten().collect();
    if proved.is_empty() {
        return Ok(());
    }
    let _turn = consensus.turns.call.lock().await;
    let members = consensus.members();
    // Another address may have been set meanwhile.
    let said = dialler.addresses.said(&members);
    let still = proved
        .into_iter()
        .filter(|(id, address)| said.get(id) == Some(address));
    let moved: BTreeMap<_, _> = still
        .map(|(id, address)| {
            let member = members[&id].clone();
            (id, Member { address, ..member })
        })
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    for member in moved.values() {
        tracing::info!(
            node = member.name,
            address = member.address,
            "a member has moved"
        );
    }
    consensus.change(ChangeMembers::SetNodes(moved)).await
}
