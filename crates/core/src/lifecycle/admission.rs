//! Letting a new node in: the master gives it an id that no node ever had.

use std::sync::Arc;

use crate::admin::messages::JoinRequest;
use crate::error::WriteError;
use crate::group::{Member, Members};
use crate::ids::{Incarnation, NodeId};
use crate::lifecycle::admin::{
    check_free_address, check_free_name, check_given_address, check_member, known_type,
};
use crate::lifecycle::changes::{
    CHANGE_MAX, Done, Undone, change, find, let_in, refused, refused_for_now,
};
use crate::lifecycle::quorum::no_majority;
use crate::limits::NODES_MAX;
use crate::node::{Node, write};
use crate::policy::Durability;
use crate::txn::transaction::Transaction;

/// How far the id in a certificate may be above the next one: ids are not to run out.
const ID_GAP_MAX: u64 = 1_000;

pub(super) async fn join(node: &Arc<Node>, request: JoinRequest, caller: Option<NodeId>) -> Done {
    let consensus = &node.consensus;
    let wanted = Member {
        name: request.name,
        address: request.address,
        incarnation: Incarnation(request.incarnation),
        node_type: known_type(request.node_type)?,
        priority: request.priority,
    };
    check_member(&wanted)?;
    check_given_address(&wanted.name, &wanted.address)?;
    check_free_name(consensus, &wanted.name, wanted.incarnation.0)?;
    let members = consensus.members();
    if let Some((id, member)) = find(&members, &wanted.name) {
        // It was admitted before, by an entry that may not be committed yet.
        change(|| consensus.set_member(id, member.clone())).await?;
        return Ok(let_in(node, &members, id, member));
    }
    if members.len() >= NODES_MAX {
        return refused(
            format!("the group already has {NODES_MAX} nodes"),
            "remove one that is not needed first",
        );
    }
    check_free_address(&members, &wanted.address, None)?;
    let id = take_node_id(node, &members, caller).await?;
    change(|| consensus.add_member(id, wanted.clone())).await?;
    tracing::info!(node = %wanted.name, %id, "admitted a node");
    let mut members = (*consensus.members()).clone();
    members.insert(id, wanted.clone());
    Ok(let_in(node, &Arc::new(members), id, &wanted))
}

/// An id that no node has or ever had, and which is `named` in the certificate of the node if it
/// has one; the newest id is stored with the data.
async fn take_node_id(
    node: &Node,
    members: &Members,
    named: Option<NodeId>,
) -> Result<NodeId, Undone> {
    let last = members.keys().next_back().copied().unwrap_or_default();
    let last = last.max(node.identity.epoch.ids_before());
    let mut next = NodeId(0);
    let mut taken = None;
    let take = |transaction: &Transaction| {
        next = NodeId(transaction.note_node_id(last)?.0 + 1);
        let is_new = |id: &NodeId| *id >= next && id.0 - next.0 <= ID_GAP_MAX;
        taken = Some(named.unwrap_or(next)).filter(is_new);
        taken.map_or(Ok(next), |id| transaction.note_node_id(id))?;
        Ok(())
    };
    with_node_ids(node, take).await?;
    match (taken, named) {
        (Some(id), _) => Ok(id),
        (None, named) => refused(
            format!(
                "the certificate of the new node names node {}, which cannot be the id of a new node",
                named.unwrap_or_default()
            ),
            format!("issue it a certificate for node {next}"),
        ),
    }
}

/// Updates what is stored about node ids.
pub(super) async fn with_node_ids<T>(
    node: &Node,
    mut work: impl FnMut(&Transaction) -> Result<T, WriteError>,
) -> Result<(), Undone> {
    let work = |transaction: &Transaction| work(transaction).map(drop);
    match write::write(node, Durability::MAJORITY, CHANGE_MAX, work).await {
        Ok(_) => Ok(()),
        Err(WriteError::NotMaster { .. }) => Err(Undone::NotMaster),
        Err(WriteError::InsufficientReplicas { .. }) => Err(no_majority(&node.consensus)),
        Err(error) => refused_for_now(
            format!("could not write the node ids: {error}"),
            "look at `steadfast status`, then try again",
        ),
    }
}
