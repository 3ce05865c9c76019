//! Letting a new node in: the master gives it an id that no node ever had.

use std::sync::Arc;

use crate::admin::messages::JoinRequest;
use crate::group::awaited::AwaitedNode;
use crate::group::{Member, Members};
use crate::ids::{Incarnation, NodeId};
use crate::lifecycle::admin::{
    check_free_address, check_free_name, check_given_address, check_member, known_type,
};
use crate::lifecycle::changes::{Asking, Done, Undone, change, find, let_in, refused};
use crate::lifecycle::node_ids::{AWAITED_FOR_MS, next_node_id, with_node_ids};
use crate::limits::NODES_MAX;
use crate::node::Node;
use crate::txn::transaction::Transaction;

/// How far the id in a certificate may be above the next one: ids are not to run out.
const ID_GAP_MAX: u64 = 1_000;

pub(super) async fn join(node: &Arc<Node>, request: JoinRequest, asking: &Asking<'_>) -> Done {
    let consensus = &node.consensus;
    let wanted = Member {
        name: request.name,
        address: request.address,
        incarnation: Incarnation(request.incarnation),
        node_type: known_type(request.node_type)?,
        priority: request.priority,
        ..Member::default()
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
    let id = take_node_id(node, &members, asking).await?;
    change(|| consensus.add_member(id, wanted.clone())).await?;
    tracing::info!(node = %wanted.name, %id, "admitted a node");
    let mut members = (*consensus.members()).clone();
    members.insert(id, wanted.clone());
    Ok(let_in(node, &Arc::new(members), id, &wanted))
}

/// An id that no node has or ever had: the one that the certificate of the new node names, if it
/// has one. The newest id is stored with the data.
async fn take_node_id(
    node: &Node,
    members: &Members,
    asking: &Asking<'_>,
) -> Result<NodeId, Undone> {
    let (named, now_ms) = (asking.node_id(), asking.now_ms);
    let mut next = NodeId(0);
    let mut taken = None;
    let take = |transaction: &Transaction| {
        next = next_node_id(transaction, node, members)?;
        let Some(named) = named else {
            taken = Some(transaction.note_node_id(next)?);
            return Ok(());
        };
        let mut awaited = transaction.awaited_nodes()?;
        let is_new = named >= next && named.0 - next.0 <= ID_GAP_MAX;
        let is_taken = members.contains_key(&named);
        let is_awaited = named > node.identity.epoch.ids_before() && awaited.awaits(named);
        let may_come = !is_taken && (is_new || is_awaited);
        taken = may_come.then_some(named);
        if may_come && is_new {
            // If the change of the members fails, it may ask again.
            let until_ms = now_ms.saturating_add(AWAITED_FOR_MS);
            let new = AwaitedNode {
                id: named.0,
                until_ms,
                ..AwaitedNode::default()
            };
            if awaited.add(new, now_ms) {
                transaction.set_awaited_nodes(&awaited)?;
            }
            transaction.note_node_id(named)?;
        }
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
