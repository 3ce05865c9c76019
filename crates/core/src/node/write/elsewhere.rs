//! Transactions that run on a node that is not the master: their beginning here, and their end on
//! the master.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{nested, start, submit, wait_for_room};
use crate::error::WriteError;
use crate::ids::Vlsn;
use crate::node::Node;
use crate::node::ack::check_replicas;
use crate::policy::Durability;
use crate::token::CommitToken;
use crate::txn::transaction::Transaction;
use crate::txn::transaction::forwarded::Forwarded;
use crate::txn::view::View;

/// A transaction for the master, on what this node has applied.
///
/// # Errors
/// [`WriteError::Nested`].
pub(crate) fn begin(node: &Node) -> Result<Transaction, WriteError> {
    nested::check(node)?;
    let time = Arc::clone(&node.group_time);
    let bytes_max = node.transaction_bytes_max;
    Ok(Transaction::new(node.view(), None, time, bytes_max))
}

/// Runs a function that was given to `write`.
pub(crate) fn run<T>(node: &Node, function: impl FnOnce() -> T) -> T {
    nested::within(node, function)
}

/// Commits a transaction that another node has run, as this node's master. `tell` is told its
/// number as soon as it has one.
///
/// # Errors
/// See [`WriteError`]. [`WriteError::Conflict`] too where nobody knows any more what has changed
/// since its snapshot.
pub(crate) async fn commit(
    node: &Node,
    (durability, within): (Durability, Duration),
    forwarded: Forwarded,
    tell: impl FnOnce(CommitToken),
) -> Result<CommitToken, WriteError> {
    check_replicas(node, durability.ack).await?;
    wait_for_room(node).await?;
    // Before the snapshot of the other begins here: it may be older than what the time was noted in.
    if forwarded.lifetimes.is_some() {
        start(node)?.begin_time()?;
    }
    let at = forwarded.at;
    if timeout(within, applied(node, at)).await.is_err() {
        return Err(WriteError::Conflict);
    }
    let (session, _) = node
        .sequencer
        .newest()
        .ok_or(WriteError::NotMaster { master: None })?;
    let reader = node.readers.begin_at(at).ok_or(WriteError::Conflict)?;
    let view = View::new(Arc::clone(&node.window), Arc::clone(&node.engine), reader);
    let time = Arc::clone(&node.group_time);
    let bytes_max = node.transaction_bytes_max;
    let empty = Transaction::new(view, Some(session), time, bytes_max);
    let transaction = empty.received(forwarded)?;
    submit(node, (durability, within), transaction, None, tell).await
}

/// Backs off after a conflict.
pub(crate) async fn step_back(node: &Node, conflicts: u32) {
    node.turns.step_back(conflicts).await;
}

/// Waits until this node has applied a transaction.
pub(crate) async fn applied(node: &Node, vlsn: Vlsn) {
    if node.sequencer.visible() >= vlsn {
        return;
    }
    let mut visible = node.sequencer.watch_visible();
    // The sender is part of the node.
    visible.wait_for(|visible| *visible >= vlsn).await.ok();
}
