//! The end of a transaction that wrote nothing: it is validated like any other, but takes no
//! number.
//!
//! It saw everything that was numbered before its validation. That was current if no other master
//! had committed anything by then, which two steps prove: what it may have read commits, and a
//! barrier asked for afterwards is applied here within the same session. Whatever another master
//! had acknowledged before the barrier would have been applied with it, and have ended the session.

use std::time::Duration;

use crate::error::WriteError;
use crate::node::Node;
use crate::node::outcome::term_of;
use crate::node::read::current;
use crate::policy::{Durability, ReplicaAckPolicy};
use crate::token::CommitToken;
use crate::txn::sequencer::{Finished, Outcome, Unnumbered};

/// Validates `finished`, and waits until what it read is known to be current, for at most
/// `timeout`. Returns the token of the last transaction that it could see; `None` if the log no
/// longer tells that one's term, and the transaction has to take a number after all.
///
/// A durability that asks for no other node does not wait, and proves nothing.
///
/// # Errors
/// See [`WriteError`].
pub(super) async fn confirm(
    node: &Node,
    durability: Durability,
    timeout: Duration,
    finished: &mut Finished,
) -> Result<Option<CommitToken>, WriteError> {
    let validated = node.sequencer.validate(finished);
    let Unnumbered { vlsn, pending } =
        validated.map_err(|error| super::not_numbered(node, error))?;
    let term = match &pending {
        Some(_) => Some(finished.session.term),
        None => term_of(node, vlsn).await?,
    };
    let Some(term) = term else {
        return Ok(None);
    };
    let group = node.identity.group;
    let group = group.expect("a node at work belongs to a group");
    let token = CommitToken { group, term, vlsn };
    if durability.ack == ReplicaAckPolicy::None {
        return Ok(Some(token));
    }
    let proven = async {
        if let Some(pending) = pending {
            let outcome = pending.await;
            if !matches!(outcome, Ok(Outcome::Committed(_))) {
                return Ok(Err(String::new()));
            }
        }
        current(node, node.consensus.role(), None, timeout).await
    };
    let proven = tokio::time::timeout(timeout, proven).await;
    let is_same_session = || {
        let newest = node.sequencer.newest();
        newest.is_some_and(|(session, _)| session == finished.session)
    };
    let reason = match proven {
        _ if !is_same_session() => "the master changed",
        Ok(Ok(Ok(()))) => return Ok(Some(token)),
        Ok(Err(error)) => return Err(error.into()),
        Ok(Ok(Err(_))) | Err(_) => "no majority confirmed in time that what it read is current",
    };
    Err(WriteError::NotCommitted { reason })
}
