//! The outcome of a write, found by its token.
//!
//! (Term, VLSN) names one transaction: a term has one master, and a master assigns a number once.
//! So the question is in which term this VLSN was committed. The sequencer remembers the terms of
//! whatever was applied since startup; the log knows the rest.

use std::time::Duration;

use tokio::sync::watch;

use crate::error::ReadError;
use crate::ids::{Term, Vlsn};
use crate::listener::RoleState;
use crate::node::Node;
use crate::node::read::{check_group, current};
use crate::token::{CommitToken, TokenOutcome};
use crate::txn::history::HistoryError;

/// The outcome of the write with this `token`. If this node does not know it yet, it asks how far
/// the group has come, and waits until it has applied that, for at most `timeout`.
///
/// # Errors
/// See [`ReadError`].
pub(crate) async fn outcome(
    node: &Node,
    role: watch::Receiver<RoleState>,
    token: CommitToken,
    timeout: Duration,
) -> Result<TokenOutcome, ReadError> {
    check_group(node, token)?;
    let known = known(node, token).await?;
    if known != TokenOutcome::StillUnknown {
        return Ok(known);
    }
    match current(node, role, None, timeout).await? {
        Ok(()) => self::known(node, token).await,
        Err(_not_in_time) => Ok(TokenOutcome::StillUnknown),
    }
}

/// What this node's own committed log says.
async fn known(node: &Node, token: CommitToken) -> Result<TokenOutcome, ReadError> {
    let applied = node.consensus.applied();
    // Read before the visible VLSN, which then covers at least what was applied.
    let before = *applied.borrow();
    if token.vlsn > node.sequencer.visible() {
        // Any committed entry of an earlier term precedes all entries of later terms.
        let is_past = before.is_some_and(|last| last.term > token.term);
        return Ok(if is_past {
            TokenOutcome::NotCommitted
        } else {
            TokenOutcome::StillUnknown
        });
    }
    let term = term_of(node, token.vlsn).await?;
    let term = term.ok_or(ReadError::HistoryGone { token })?;
    Ok(if term == token.term {
        TokenOutcome::Committed
    } else {
        TokenOutcome::NotCommitted
    })
}

/// The term in which the applied transaction `vlsn` was committed; `None` when the log no longer
/// reaches back to it.
///
/// # Errors
/// [`ReadError`] when the log cannot be read.
pub(super) async fn term_of(node: &Node, vlsn: Vlsn) -> Result<Option<Term>, ReadError> {
    if let Some(term) = node.sequencer.term_of(vlsn) {
        return Ok(Some(term));
    }
    match node.history().find(vlsn).await {
        Ok(found) => Ok(Some(found.id.term)),
        Err(HistoryError::Gone { .. }) => Ok(None),
        Err(HistoryError::Log(error)) => Err(error.into()),
        Err(HistoryError::Batch(error)) => {
            unreachable!("the log has only what was checked before: {error}")
        }
    }
}
