//! Why a subscription ends.

use super::after_stop;
use crate::engine::EngineError;
use crate::ids::{Term, Vlsn};
use crate::log::LogError;
use crate::token::CommitToken;

/// Why a subscription could not begin, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The log reaches back to `oldest` only: begin with the state, or from a token at or after it.
    #[error("the log reaches back only to VLSN {oldest}; begin with StartAt::Start")]
    HistoryGone {
        /// The first transaction in the log.
        oldest: Vlsn,
    },
    /// The token or the subscription is meant for another group.
    #[error("wrong group: {reason}")]
    WrongGroup {
        /// Which group was meant, and which one this is.
        reason: String,
    },
    /// None of the nodes believes the caller's credentials, they do not allow this, or the caller
    /// does not believe those of the nodes.
    #[error("not allowed: {reason}")]
    NotAllowed {
        /// What the last node said.
        reason: String,
    },
    /// The token's write was never committed: another transaction has its number. Undo whatever was
    /// derived from that write elsewhere.
    #[error(
        "{token} was never committed: the transaction with this VLSN is from term {committed}; \
         begin with StartAt::Start"
    )]
    NotCommitted {
        /// The token.
        token: CommitToken,
        /// The term of the transaction that has its VLSN.
        committed: Term,
    },
    /// The filter cannot be used.
    #[error("the filter of the subscription is not valid: {reason}")]
    Filter {
        /// Why.
        reason: String,
    },
    /// The state was not consumed within `snapshot_age_max_ms`, or it kept the memory for recent
    /// versions (`window_bytes_max`) full. Begin again, and consume it faster.
    #[error("the state was not read before its snapshot became too old; begin again")]
    SnapshotTooOld,
    /// The node is at its limit of subscriptions. End one, or ask another node.
    #[error(
        "the node already serves {max} subscriptions, its limit (subscriptions_max); end one, or \
         ask another node"
    )]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// A listener of a shared feed is so far behind that what it needs next is no longer kept in
    /// memory. Listen again from `resume`, which reads the rest from the log, or end the client.
    #[error("the listener is too slow: what it needs next is no longer kept; listen from {resume}")]
    Slow {
        /// Everything up to this token has been delivered, or left out by a filter.
        resume: CommitToken,
    },
    /// No listed node could be reached in time. Resume from `resume` when one can.
    #[error("no node can continue the subscription ({reason}); {}", resume_hint(.resume.as_ref()))]
    Disconnected {
        /// Everything up to this token has been delivered. `None` while the state is incomplete:
        /// begin again with the state.
        resume: Option<CommitToken>,
        /// What the last node tried said.
        reason: String,
    },
    /// The log cannot be read.
    #[error("the log cannot be read: {0}")]
    Log(LogError),
    /// The storage engine cannot be read.
    #[error("the storage engine cannot be read: {0}")]
    Engine(EngineError),
    /// The node is copying a peer's state, because the log that it needs is gone. Resume from the
    /// resume token on another node, or when the copy is in place.
    #[error(
        "this node is copying the state of a peer; resume from the resume token on another node, \
         or when the copy is in place"
    )]
    Restoring,
    /// The node does not belong to a group yet: wait until it is ready.
    #[error("the node belongs to no group yet; wait until it is ready")]
    NotReady,
    /// This node is an arbiter.
    #[error("an arbiter has no data; ask another node")]
    NoData,
    /// The node has stopped.
    #[error("the node has stopped ({reason}); {}", after_stop(.reason))]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The environment was closed.
    #[error("the environment is closed")]
    Closed,
}

impl FeedError {
    /// Whether the same subscription may succeed later, or on another node.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::TooMany { .. }
                | Self::Disconnected { .. }
                | Self::NotReady
                | Self::Restoring
                | Self::SnapshotTooOld
                | Self::Slow { .. }
                | Self::NoData
                | Self::Stopped { .. }
                | Self::Closed
        )
    }

    /// The same for another listener. A cause that cannot be copied is told in words.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::HistoryGone { oldest } => Self::HistoryGone { oldest: *oldest },
            Self::Restoring => Self::Restoring,
            Self::NotReady => Self::NotReady,
            Self::Closed => Self::Closed,
            Self::Stopped { reason } => Self::Stopped {
                reason: reason.clone(),
            },
            error => Self::Stopped {
                reason: error.to_string(),
            },
        }
    }
}

fn resume_hint(resume: Option<&CommitToken>) -> String {
    resume.map_or_else(
        || "begin again".to_owned(),
        |token| format!("resume from {token}"),
    )
}
