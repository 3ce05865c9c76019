//! Durability per write: what must have happened before the caller is told.
//!
//! The log itself knows nothing of this. There is one writer, and one fdatasync per group of
//! records, whatever durability is asked for; a policy only decides how long a caller waits:
//!
//! ```text
//!  numbered ──► proposed ──► in the log ──► handed to the system ──► synced here
//!                                │ NoSync          │ WriteNoSync         │ Sync
//!                                └──► synced by a majority: committed, SimpleMajority
//!                                          └──► synced by every electable node: All
//! ```

use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::consensus::Electable;
use crate::error::WriteError;
use crate::ids::Vlsn;
use crate::log::LogId;
use crate::node::Node;
use crate::planted::{self, Bug};
use crate::policy::{Durability, ReplicaAckPolicy, SyncPolicy};
use crate::token::CommitToken;
use crate::txn::sequencer::{Outcome, SessionId};

/// A transaction that has its number.
pub(crate) struct Numbered {
    pub(crate) session: SessionId,
    pub(crate) vlsn: Vlsn,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

/// Refuses a write that could not get its acknowledgements now. Always passes on a node that is not
/// master. A new master first gives the others one lease to be heard.
///
/// # Errors
/// [`WriteError::InsufficientReplicas`].
pub(crate) async fn check_replicas(node: &Node, ack: ReplicaAckPolicy) -> Result<(), WriteError> {
    let consensus = &node.consensus;
    let needed = |heard: Electable| match ack {
        ReplicaAckPolicy::None => 0,
        ReplicaAckPolicy::SimpleMajority => heard.majority(),
        ReplicaAckPolicy::All => heard.all,
    };
    let is_met = match ack {
        ReplicaAckPolicy::None => true,
        ReplicaAckPolicy::SimpleMajority => consensus.majority_is_heard(),
        ReplicaAckPolicy::All => false,
    };
    if is_met {
        return Ok(());
    }
    let Some(began) = node.sequencer.session_began() else {
        return Ok(());
    };
    let are_heard = |heard: Electable| heard.counted >= needed(heard);
    let heard = consensus.wait_heard(began, are_heard).await;
    if are_heard(heard) {
        return Ok(());
    }
    Err(WriteError::InsufficientReplicas {
        needed: needed(heard),
        available: heard.counted,
    })
}

/// Waits until `durability` is met, for at most `timeout`.
///
/// # Errors
/// Otherwise, what is known about the write.
pub(crate) async fn acknowledge(
    node: &Node,
    durability: Durability,
    timeout: Duration,
    mut numbered: Numbered,
) -> Result<CommitToken, WriteError> {
    let token = CommitToken {
        group: node
            .identity
            .group
            .expect("a node at work belongs to a group"),
        term: numbered.session.term,
        vlsn: numbered.vlsn,
    };
    let mut committed = None;
    let met = met(node, durability, &mut numbered, &mut committed);
    let not_committed = || {
        Err(WriteError::NotCommitted {
            reason: "the master changed",
        })
    };
    let lost = match tokio::time::timeout(timeout, met).await {
        Ok(Ok(())) => return Ok(token),
        Ok(Err(Lost::NotCommitted)) => return not_committed(),
        Err(_) if planted::is(Bug::NotCommittedInTime) => return not_committed(),
        Ok(Err(Lost::Master)) if committed.is_none() => WriteError::OutcomeUnknown { token },
        Ok(Err(Lost::Master)) | Err(_) => insufficient(node, durability, token, committed),
    };
    if committed.is_none() {
        metrics::counter!("steadfast_outcome_unknown_total").increment(1);
    }
    Err(lost)
}

/// Why a durability was not met.
enum Lost {
    NotCommitted,
    /// This node has lost mastership, or no longer takes part.
    Master,
}

/// Waits for what `durability` requires. `committed` is set to the entry as soon as it commits.
async fn met(
    node: &Node,
    durability: Durability,
    numbered: &mut Numbered,
    committed: &mut Option<LogId>,
) -> Result<(), Lost> {
    let at = match durability.ack {
        ReplicaAckPolicy::None => {
            let place = node.sequencer.place_of(numbered.session, numbered.vlsn);
            tokio::select! {
                biased;
                outcome = &mut numbered.outcome => *committed.insert(entry(outcome.ok())?),
                Ok(at) = place => at,
            }
        }
        ReplicaAckPolicy::SimpleMajority | ReplicaAckPolicy::All => {
            *committed.insert(entry((&mut numbered.outcome).await.ok())?)
        }
    };
    let reached = match durability.local_sync {
        SyncPolicy::NoSync => None,
        SyncPolicy::WriteNoSync => Some(node.log.written()),
        SyncPolicy::Sync => Some(node.log.persisted()),
    };
    if let Some(reached) = reached {
        own_disk(node, reached, at, numbered, committed).await?;
    }
    if durability.ack == ReplicaAckPolicy::All && !planted::is(Bug::AllIsMajority) {
        let all = node.consensus.persisted_by_all(at).await;
        all.map_err(|_| Lost::Master)?;
    }
    Ok(())
}

/// The entry that an outcome names. A dropped sequencer means that mastership is lost.
fn entry(outcome: Option<Outcome>) -> Result<LogId, Lost> {
    match outcome {
        Some(Outcome::Committed(at)) => Ok(at),
        Some(Outcome::NotCommitted) => Err(Lost::NotCommitted),
        Some(Outcome::Unknown) | None => Err(Lost::Master),
    }
}

/// Waits until `reached` has come to entry `at`. Until `at` is committed, an entry of a later term
/// may replace it at the same position.
async fn own_disk(
    node: &Node,
    mut reached: watch::Receiver<Option<LogId>>,
    at: LogId,
    numbered: &mut Numbered,
    committed: &mut Option<LogId>,
) -> Result<(), Lost> {
    loop {
        let is_there = |last: LogId| {
            last.position >= at.position && (committed.is_some() || last.term == at.term)
        };
        if reached.borrow_and_update().is_some_and(is_there) {
            return Ok(());
        }
        tokio::select! {
            biased;
            changed = reached.changed() => changed.map_err(|_| Lost::Master)?,
            outcome = &mut numbered.outcome, if committed.is_none() => {
                *committed = Some(entry(outcome.ok())?);
            }
            () = node.consensus.detached(), if committed.is_some() => return Err(Lost::Master),
        }
    }
}

/// The error for a write that too few nodes, or not this node's own disk, acknowledged.
fn insufficient(
    node: &Node,
    durability: Durability,
    token: CommitToken,
    committed: Option<LogId>,
) -> WriteError {
    let session = SessionId { term: token.term };
    let place = || node.sequencer.place_of(session, token.vlsn).try_recv().ok();
    let at = committed.or_else(place);
    let electable = node.consensus.heard();
    let persisted = at.map(|at| node.consensus.persisted_by(at.position));
    let own_disk = match durability.local_sync {
        SyncPolicy::NoSync => None,
        SyncPolicy::WriteNoSync => Some(node.log.written()),
        SyncPolicy::Sync => Some(node.log.persisted()),
    };
    let has = |last: LogId| at.is_some_and(|at| last.position >= at.position);
    WriteError::InsufficientAcks {
        token,
        needed: match durability.ack {
            ReplicaAckPolicy::All => electable.all,
            ReplicaAckPolicy::SimpleMajority => electable.majority(),
            ReplicaAckPolicy::None => 1,
        },
        acked: persisted.map_or(0, |persisted| persisted.counted),
        lacks_own_disk: own_disk.is_some_and(|last| !last.borrow().is_some_and(has)),
        is_committed: committed.is_some(),
    }
}
