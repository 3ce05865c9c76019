//! One write from function to token: run, submit, wait; again on a conflict, and alone after some.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::{ReadError, WriteError};
use crate::ids::{Term, Vlsn};
use crate::node::Node;
use crate::planted::{self, Bug};
use crate::token::CommitToken;
use crate::txn::sequencer::{Finished, Outcome, SubmitError};
use crate::txn::transaction::Transaction;
use crate::txn::view::View;

/// Conflicts after which a transaction runs with all others held off, so that it gets through.
const CONFLICTS_MAX: u32 = 8;

/// What a transaction takes of the queue beside the bytes that it writes.
const TRANSACTION_OVERHEAD_BYTES: usize = 256;

/// See the module.
///
/// # Errors
/// See [`WriteError`]. `NotMaster` comes without the master's address.
pub(crate) async fn write(
    node: &Node,
    commit_timeout: Duration,
    mut transaction: impl FnMut(&Transaction) -> Result<(), WriteError>,
) -> Result<CommitToken, WriteError> {
    let mut conflicts = 0;
    loop {
        wait_for_room(node).await?;
        let alone = if conflicts > CONFLICTS_MAX {
            Some(node.gate.write().await)
        } else {
            None
        };
        let (finished, bytes) = run(node, &mut transaction)?;
        // The gate before the budget: nobody who holds a part of the budget waits for the gate, or
        // one that runs alone and those that it holds off would wait for each other.
        let together = if alone.is_none() {
            Some(node.gate.read().await)
        } else {
            None
        };
        let term = finished.session.term;
        // Held until the outcome is known: this is what bounds the bytes in flight. What is larger
        // than the whole budget takes all of it.
        let permits = u32::try_from(bytes.min(node.budget_bytes)).unwrap_or(u32::MAX);
        let budget = node.budget.acquire_many(permits).await;
        let budget = budget.map_err(|_| WriteError::Closed)?;
        let _budget = if planted::is(Bug::LeakBudget) {
            budget.forget();
            None
        } else {
            Some(budget)
        };
        let submitted = node.sequencer.submit(finished);
        drop((alone, together));
        match submitted {
            Ok((vlsn, outcome)) => {
                let token = |vlsn| token(node, term, vlsn);
                return wait(outcome, commit_timeout, vlsn)
                    .await
                    .map(token)
                    .map_err(|lost| match lost {
                        Lost::NotCommitted => WriteError::NotCommitted {
                            reason: "the master changed",
                        },
                        Lost::Unknown(vlsn) => WriteError::OutcomeUnknown { token: token(vlsn) },
                    });
            }
            Err(SubmitError::NotMaster) => return Err(WriteError::NotMaster { master: None }),
            Err(SubmitError::TooOld) => return Err(ReadError::SnapshotTooOld.into()),
            Err(SubmitError::Conflict) => {
                metrics::counter!("steadfast_conflicts_total").increment(1);
                conflicts += 1;
            }
        }
    }
}

/// Waits while the window is full, as long as this node is master.
async fn wait_for_room(node: &Node) -> Result<(), WriteError> {
    while !node.flush.has_room() {
        if node.sequencer.newest().is_none() {
            return Err(WriteError::NotMaster { master: None });
        }
        node.flush
            .more_room()
            .await
            .map_err(|_| WriteError::Closed)?;
    }
    Ok(())
}

/// Runs the function once, on the newest numbered state.
fn run(
    node: &Node,
    transaction: &mut impl FnMut(&Transaction) -> Result<(), WriteError>,
) -> Result<(Finished, usize), WriteError> {
    let mut session = None;
    let reader = node.readers.begin(|| match node.sequencer.newest() {
        Some((newest, vlsn)) => {
            session = Some(newest);
            vlsn
        }
        None => Vlsn(u64::MAX),
    });
    let session = session.ok_or(WriteError::NotMaster { master: None })?;
    let view = View::new(Arc::clone(&node.window), Arc::clone(&node.engine), reader);
    let running = Transaction::new(view, session, node.transaction_bytes_max);
    transaction(&running)?;
    let bytes = running.written_bytes() + TRANSACTION_OVERHEAD_BYTES;
    Ok((running.finish(), bytes))
}

enum Lost {
    NotCommitted,
    Unknown(Vlsn),
}

async fn wait(
    outcome: oneshot::Receiver<Outcome>,
    timeout: Duration,
    vlsn: Vlsn,
) -> Result<Vlsn, Lost> {
    match tokio::time::timeout(timeout, outcome).await {
        Ok(Ok(Outcome::Committed(vlsn))) => Ok(vlsn),
        Ok(Ok(Outcome::NotCommitted)) => Err(Lost::NotCommitted),
        Err(_) if planted::is(Bug::NotCommittedInTime) => Err(Lost::NotCommitted),
        // The mastership is lost, the sequencer is gone, or the majority is silent.
        Ok(Ok(Outcome::Unknown(_)) | Err(_)) | Err(_) => {
            metrics::counter!("steadfast_outcome_unknown_total").increment(1);
            Err(Lost::Unknown(vlsn))
        }
    }
}

fn token(node: &Node, term: Term, vlsn: Vlsn) -> CommitToken {
    let group = node
        .identity
        .group
        .expect("a node at work belongs to a group");
    CommitToken { group, term, vlsn }
}
