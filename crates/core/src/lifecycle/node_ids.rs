//! Node ids: none is given twice.

use std::sync::Weak;

use bytes::Bytes;

use crate::engine::EngineError;
use crate::error::WriteError;
use crate::group::Members;
use crate::group::awaited::AwaitedNodes;
use crate::ids::NodeId;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::changes::{CHANGE_MAX, Undone, refused_for_now};
use crate::lifecycle::quorum::no_majority;
use crate::node::{Node, write};
use crate::policy::Durability;
use crate::txn::catalog::{AWAITED_KEY, CATALOG, NODE_ID_KEY, decode_node_id};
use crate::txn::transaction::Transaction;
use crate::txn::view::ViewError;
use crate::wire::gate::GivenIds;

/// How long a node with a new id may take to come: longer than any pass is valid.
pub(super) const AWAITED_FOR_MS: u64 = 8 * 24 * 60 * 60 * 1_000;

/// The lowest id that was never given to a node.
pub(super) fn next_node_id(
    transaction: &Transaction,
    node: &Node,
    members: &Members,
) -> Result<NodeId, WriteError> {
    let last = members.keys().next_back().copied().unwrap_or_default();
    let last = last.max(node.identity.epoch.ids_before());
    Ok(NodeId(transaction.note_node_id(last)?.0 + 1))
}

/// The ids that were given out, as the gate of a node sees them.
pub(super) struct Given(pub(super) Weak<Lifecycle>);

impl GivenIds for Given {
    /// As far as this node has applied it: 0 while only founders have ids. The highest possible id if
    /// the catalog cannot be read, so that a read error makes no node look new.
    fn newest(&self) -> NodeId {
        let read = self.entry(NODE_ID_KEY, decode_node_id);
        read.map_or(NodeId(u64::MAX), Option::unwrap_or_default)
    }

    fn may_come(&self, id: NodeId) -> bool {
        let read = self.entry(AWAITED_KEY, AwaitedNodes::read);
        matches!(read, Ok(Some(awaited)) if awaited.awaits(id))
    }
}

impl Given {
    /// An entry of the catalog; `None` where this node is not at work.
    fn entry<T>(
        &self,
        key: &'static [u8],
        decode: impl FnOnce(Option<&Bytes>) -> Result<T, EngineError>,
    ) -> Result<Option<T>, ()> {
        let node = self.0.upgrade().and_then(|it| it.running().ok());
        let Some(node) = node else { return Ok(None) };
        let kept = node.view().get(CATALOG, &Bytes::from_static(key));
        let read = match kept {
            Ok(kept) => decode(kept.as_ref()),
            Err(ViewError::TooOld { .. }) => return Ok(None),
            Err(ViewError::Engine(error)) => Err(error),
        };
        read.map(Some).map_err(|error| {
            tracing::warn!(%error, "the ids that were given to nodes are not known");
        })
    }
}

/// Updates what is stored about node ids.
pub(super) async fn with_node_ids<T>(
    node: &Node,
    mut work: impl FnMut(&Transaction) -> Result<T, WriteError>,
) -> Result<(), Undone> {
    let work = |transaction: &Transaction| work(transaction).map(drop);
    let written = write::write(node, Durability::MAJORITY, CHANGE_MAX, work).await;
    match written.map_err(WriteError::from) {
        Ok(_) => Ok(()),
        Err(WriteError::NotMaster { .. }) => Err(Undone::NotMaster),
        Err(WriteError::InsufficientReplicas { .. }) => Err(no_majority(&node.consensus)),
        Err(error) => refused_for_now(
            format!("could not write the node ids: {error}"),
            "look at `steadfast status`, then try again",
        ),
    }
}
