//! What became of a write, found by its token.
//!
//! (Term, VLSN) names one transaction: a term has one master, and a master gives a number once. So
//! the question is in which term this VLSN was committed. The sequencer remembers that for what was
//! applied since the start. For the rest the log is asked, where terms only grow from entry to entry:
//!
//! ```text
//!            first entry of a term ≥ T     first entry of a term > T
//!  log  ─────────────┬───────────────────────────┬───────────────────► position
//!                    blank  batch F…              blank  batch G…        committed in T: F ≤ VLSN < G
//! ```
//!
//! Two binary searches find both places, and read one entry at each step. The first batch of a term
//! follows on the last one of the terms before, so it is within a few entries of the place.

use std::ops::Range;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::ReadError;
use crate::ids::{LogPosition, Term, Vlsn};
use crate::listener::RoleState;
use crate::log::{EntryKind, Log, LogError};
use crate::node::Node;
use crate::token::{CommitToken, TokenOutcome};
use crate::txn::batch::Batch;
use crate::txn::consistency::{check_group, current};

/// Bytes of log that a look for the first batch of a term reads at a time.
const SCAN_BYTES: usize = 64 * 1024;

/// The outcome of the write that was given `token`. When this node does not know it yet, it asks
/// how far the group is, and waits until it has applied that, `timeout` at the most.
///
/// # Errors
/// See [`ReadError`].
pub(crate) async fn outcome(
    node: &Node,
    role: watch::Receiver<RoleState>,
    (token, timeout): (CommitToken, Duration),
) -> Result<TokenOutcome, ReadError> {
    check_group(node, token)?;
    let known = known(node, token).await?;
    if known != TokenOutcome::StillUnknown {
        return Ok(known);
    }
    match current(node, role, (None, timeout)).await? {
        Ok(()) => self::known(node, token).await,
        Err(_not_in_time) => Ok(TokenOutcome::StillUnknown),
    }
}

/// What this node's own committed log says.
async fn known(node: &Node, token: CommitToken) -> Result<TokenOutcome, ReadError> {
    let applied = node.consensus.applied();
    // Before the visible VLSN, which is at least what has been applied by then.
    let before = *applied.borrow();
    if token.vlsn > node.sequencer.visible() {
        // Every entry of an earlier term that can be committed comes before one of a later term.
        let is_past = before.is_some_and(|last| last.term > token.term);
        return Ok(if is_past {
            TokenOutcome::NotCommitted
        } else {
            TokenOutcome::StillUnknown
        });
    }
    let is_committed = if let Some(term) = node.sequencer.term_of(token.vlsn) {
        term == token.term
    } else {
        // The visible VLSN moves just before the position does.
        let end = applied.borrow().map_or(0, |last| last.position.0 + 2);
        is_in_log(&node.log, token, LogPosition(end)).await?
    };
    Ok(if is_committed {
        TokenOutcome::Committed
    } else {
        TokenOutcome::NotCommitted
    })
}

/// Whether the log, before `end`, has the VLSN of the token in its term. It has been applied.
///
/// # Errors
/// [`ReadError::HistoryGone`], and those of the log.
async fn is_in_log(log: &Log, token: CommitToken, end: LogPosition) -> Result<bool, ReadError> {
    let state = log.state();
    let start = state.purged.map_or(0, |purged| purged.position.0 + 1);
    let end = end.0.min(state.last.map_or(0, |last| last.position.0 + 1));
    let own = first_entry(log, start..end, |term| term >= token.term).await?;
    let later = first_entry(log, own..end, |term| term > token.term).await?;
    let first = first_vlsn(log, own..later).await?;
    let next = first_vlsn(log, later..end).await?;
    if next.is_some_and(|next| next <= token.vlsn) {
        return Ok(false);
    }
    if first.is_some_and(|first| first <= token.vlsn) {
        return Ok(true);
    }
    // Where the log begins within the term, or after it, its first batches may have been purged.
    let is_cut = state.purged.is_some_and(|purged| purged.term >= token.term);
    if is_cut {
        return Err(ReadError::HistoryGone { token });
    }
    Ok(false)
}

/// The first position of the range whose term is as asked; its end, when none is. Once a term is as
/// asked, all later ones are.
async fn first_entry(
    log: &Log,
    range: Range<u64>,
    is_asked: impl Fn(Term) -> bool,
) -> Result<u64, LogError> {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        let entry = log
            .read(LogPosition(middle)..LogPosition(middle + 1), 0)
            .await?;
        if entry.first().is_none_or(|entry| is_asked(entry.term)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

/// The first VLSN in a range of positions; `None` when it has no transaction.
async fn first_vlsn(log: &Log, range: Range<u64>) -> Result<Option<Vlsn>, ReadError> {
    let mut from = range.start;
    while from < range.end {
        let entries = log
            .read(LogPosition(from)..LogPosition(range.end), SCAN_BYTES)
            .await?;
        let Some(last) = entries.last() else {
            return Ok(None);
        };
        from = last.position.0 + 1;
        let batch = entries
            .into_iter()
            .find(|entry| entry.kind == EntryKind::Transactions);
        if let Some(batch) = batch {
            let batch = Batch::parse(batch.payload);
            let batch = batch.expect("the log has only what was checked before");
            return Ok(Some(batch.first()));
        }
    }
    Ok(None)
}
