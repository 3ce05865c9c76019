//! The public errors. Each says what happened, what it means for the data, and what to do next.
//!
//! A text names its cause itself, once, because most callers print nothing else. So the cause is in
//! a field but is not the error's [`source`](Error::source), which those who print whole chains
//! would repeat: hence the fields `r#source`.

mod call;
mod counter;
mod data;
mod feed;
mod open;

use std::error::Error;
use std::time::Duration;

use crate::engine::EngineError;
use crate::ids::Vlsn;
use crate::limits::TTL_MAX;
use crate::log::LogError;
use crate::member::NodeAddress;
use crate::plural::plural;
use crate::token::CommitToken;

pub use call::{CallError, ServeCallsError};
pub use counter::CounterError;
pub use data::ClientError;
pub use feed::FeedError;
pub use open::{OpenError, ReadyError};

/// The reason with which a removed node stops.
pub(crate) const REMOVED: &str = "this node was removed from the group";

/// Part of the reason of a node that was started with a list of founders, but is none of them.
pub(crate) const FORMED_WITHOUT: &str = "was formed without";

/// What to do about a node that has stopped for this reason.
fn after_stop(reason: &str) -> &'static str {
    if reason == REMOVED {
        "to bring it back, let it join again, with an empty directory and a token (steadfast token \
         create)"
    } else if reason.contains(FORMED_WITHOUT) {
        "to add it, let it join with a token (steadfast token create)"
    } else {
        "open it again to re-read its disk"
    }
}

/// What is known about a write after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// None of it was done, and none of it will be.
    NotCommitted,
    /// It is committed, but is on the disks of fewer nodes than requested.
    Committed(CommitToken),
    /// It may have been committed, or may still be: check before writing it again.
    Unknown(CommitToken),
    /// The same, and nobody knows under which token: [`WriteError::AnswerLost`].
    Lost,
}

/// Why a write did not return a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// This node is not the master, and none took the write in time (`forward_timeout_ms`). Nothing
    /// was written.
    #[error("this node is not the master{}; nothing was written", master_hint(.master.as_ref()))]
    NotMaster {
        /// The master, if known.
        master: Option<NodeAddress>,
    },
    /// The write was not committed and will not be: retrying is safe.
    #[error("the write was not committed ({reason}); it is safe to retry")]
    NotCommitted {
        /// Why.
        reason: &'static str,
    },
    /// The node lost mastership with the write in flight.
    #[error(
        "the outcome of the write is unknown: it may have been committed as {token}; check the \
         outcome of that token before you retry"
    )]
    OutcomeUnknown {
        /// The token of the write, if it was committed.
        token: CommitToken,
    },
    /// The master got the write from this node, and was lost before it said under which number it
    /// would commit it.
    #[error(
        "the outcome of the write is unknown: {node} got it as master, and was lost before it gave \
         it a token; look whether what it writes is there before you retry"
    )]
    AnswerLost {
        /// The master.
        node: String,
    },
    /// The write was run on this node again and again, and conflicted each time with others that
    /// reached the master earlier. Nothing was written.
    #[error(
        "other transactions changed {conflicts} times what this one had read before it reached the \
         master; nothing was written; retry, or write on the master, where it gets through"
    )]
    Contended {
        /// How often the closure was run.
        conflicts: u32,
    },
    /// Too few nodes are available to acknowledge the write. Nothing was written.
    #[error(
        "the write needs {needed} electable {}, but only {available} {} answered lately; nothing was \
         written; retry when the others are back, or ask for less durability",
        plural(*.needed, "node", "nodes"),
        plural(*.available, "has", "have")
    )]
    InsufficientReplicas {
        /// Electable nodes that must have the write on disk, the master included.
        needed: usize,
        /// Electable nodes available: the master, and those that have answered it within
        /// `election_timeout_max_ms`.
        available: usize,
    },
    /// The write is in the log, but too few nodes acknowledged it in time, or before this node lost
    /// mastership.
    #[error(
        "{acked} {} acknowledged the write {token}, which needs {needed}{}{}",
        plural(*.acked, "node has", "nodes have"),
        if *.lacks_own_disk {
            ", but this node's own disk, which the requested durability includes, has not"
        } else {
            ""
        },
        if *.is_committed {
            "; it is committed, and will not be rolled back"
        } else {
            "; it was not committed in time, and may be yet: check the outcome of its token before you \
             retry"
        }
    )]
    InsufficientAcks {
        /// The token of the write, if it was committed.
        token: CommitToken,
        /// Electable nodes that should have it on disk, the master included.
        needed: usize,
        /// Electable nodes known by the master to have it on disk.
        acked: usize,
        /// Whether the master's own disk was required and does not have it.
        lacks_own_disk: bool,
        /// Whether a majority has it: then it cannot be lost, whatever the others do.
        is_committed: bool,
    },
    /// Something exceeds its size limit. Nothing was written.
    #[error("{what} of {actual} bytes exceeds the limit of {max}; nothing was written")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        actual: usize,
        /// The largest size in bytes.
        max: usize,
    },
    /// The transaction writes more keys than allowed. Nothing was written.
    #[error("a transaction may write at most {max} keys; nothing was written; split it")]
    TooManyKeys {
        /// The most keys.
        max: usize,
    },
    /// A time to live is none. Nothing was written.
    #[error(
        "{ttl:?} is no time to live: it is from 1 ms to {} days; nothing was written",
        TTL_MAX.as_secs() / (24 * 60 * 60)
    )]
    TimeToLive {
        /// The time given.
        ttl: Duration,
    },
    /// The transaction creates, truncates or drops too many databases. Nothing was written.
    #[error(
        "a transaction may create, truncate or drop at most {max} databases; nothing was written; \
         split it"
    )]
    TooManyDatabases {
        /// The most databases.
        max: usize,
    },
    /// The transaction was open for longer than allowed. Nothing was written.
    #[error(
        "the transaction was open for more than {age_max:?} (snapshot_age_max_ms); nothing was \
         written; begin a new one"
    )]
    TooOld {
        /// The maximum age.
        age_max: Duration,
    },
    /// Another transaction changed something that this one had read before it could commit. Nothing
    /// was written.
    #[error(
        "another transaction changed what this one had read; nothing was written; run it again"
    )]
    Conflict,
    /// The closure given to `write` writes to the same environment other than through its
    /// transaction. Neither wrote anything.
    #[error(
        "a function passed to write may write to its environment only through its transaction; \
         nothing was written; do both writes in the transaction, or one after the other"
    )]
    Nested,
    /// Every run of the closure given to `write` conflicted, finally even with all other writes
    /// held off for as long as allowed. Nothing was written.
    #[error(
        "other transactions changed {conflicts} {} what this one had read, finally even though \
         all other writes were held off for {held_off:?}: its function takes longer than that, or \
         waits for another write to this environment; nothing was written; make it shorter, or do \
         what it waits for within the transaction",
        plural(*.conflicts, "time", "times")
    )]
    Overtaken {
        /// How often the closure was run.
        conflicts: u32,
        /// How long the other writes were held off, for each of the last runs.
        held_off: Duration,
    },
    /// The transaction cannot add to a counter. Nothing was written.
    #[error("{0}; nothing was written")]
    Counter(#[source] CounterError),
    /// A read within the transaction failed. Nothing was written.
    #[error("a read in the transaction failed; nothing was written: {0}")]
    Read(ReadError),
    /// The node is copying a peer's state, because the log that it needs is gone. Nothing was
    /// written.
    #[error(
        "this node is copying the state of a peer, and takes no part until the copy is in place; \
         nothing was written; write on the master, or retry later"
    )]
    Restoring,
    /// The closure aborted the transaction. Nothing was written. See
    /// [`WriteError::abort`].
    #[error("the transaction was aborted; nothing was written: {0}")]
    Aborted(Box<dyn Error + Send + Sync>),
    /// The volume of the master's data directory is nearly full, and no node with room could take
    /// over. Nothing was written, nothing acknowledged is lost, and reads go on.
    #[error(
        "the master takes no writes: its disk has {free_bytes} bytes free, but needs {limit_bytes} \
         (disk_free_read_only_bytes, or what its storage engine needs); nothing was written, and \
         nothing acknowledged is lost; make room, and retry: writes resume automatically"
    )]
    DiskFull {
        /// What is free on the volume, in bytes.
        free_bytes: u64,
        /// What must be free: the master's `disk_free_read_only_bytes`, or what its storage engine
        /// needs if that is more.
        limit_bytes: u64,
    },
    /// The node has stopped. Nothing was written.
    #[error("the node has stopped ({reason}); nothing was written; {}", after_stop(.reason))]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The environment was closed. Nothing was written.
    #[error("the environment is closed; nothing was written")]
    Closed,
}

impl WriteError {
    /// Aborts a transaction for a reason of the application that has no error type of its own: return
    /// this from the function given to `write`, and `write` returns it.
    pub fn abort(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Aborted(reason.into())
    }

    /// What is known about the write.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::InsufficientAcks {
                token,
                is_committed: true,
                ..
            } => Outcome::Committed(*token),
            Self::OutcomeUnknown { token } | Self::InsufficientAcks { token, .. } => {
                Outcome::Unknown(*token)
            }
            Self::AnswerLost { .. } => Outcome::Lost,
            _ => Outcome::NotCommitted,
        }
    }

    /// Whether the same write may succeed later, here or on another node, with no risk of being done
    /// twice. A node that has closed or stopped takes it no more, but the next master does.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotMaster { .. }
            | Self::NotCommitted { .. }
            | Self::InsufficientReplicas { .. }
            | Self::TooOld { .. }
            | Self::DiskFull { .. }
            | Self::Restoring
            | Self::Stopped { .. }
            | Self::Closed
            | Self::Contended { .. }
            | Self::Conflict => true,
            Self::Read(read) => read.is_retryable(),
            _ => false,
        }
    }
}

impl From<ReadError> for WriteError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::SnapshotTooOld { age_max } => Self::TooOld { age_max },
            ReadError::Stopped { reason } => Self::Stopped { reason },
            ReadError::Closed => Self::Closed,
            ReadError::Restoring => Self::Restoring,
            error => Self::Read(error),
        }
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No majority or master could be reached in time to prove that the answer is current.
    #[error("cannot prove that the answer is current: {reason}; retry, or read with Eventual")]
    NotCurrent {
        /// Why.
        reason: String,
    },
    /// The node did not apply the token's transaction in time.
    #[error(
        "this node has applied VLSN {vlsn}, but not yet {}: it is {} {} behind; retry, or read on \
         the master",
        token.vlsn,
        token.vlsn.0.saturating_sub(vlsn.0),
        plural(token.vlsn.0.saturating_sub(vlsn.0), "transaction", "transactions")
    )]
    Behind {
        /// The requested token.
        token: CommitToken,
        /// The last VLSN that the node has applied.
        vlsn: Vlsn,
    },
    /// The node could not prove in time that it lags by no more than requested.
    #[error(
        "this node may lag by more than {max:?}: {}; it is at VLSN {vlsn} ({reason}); retry, or \
         read with Eventual",
        lag.map_or_else(
            || "it is not known when it was last current".to_owned(),
            |lag| format!("it was last known to be current {} ms ago", lag.as_millis())
        )
    )]
    Lagging {
        /// The requested maximum lag.
        max: Duration,
        /// How long ago the node was last known to be current; `None` if that is unknown.
        lag: Option<Duration>,
        /// The last VLSN that the node has applied.
        vlsn: Vlsn,
        /// Why there is no proof.
        reason: String,
    },
    /// The token belongs to another group. VLSNs of different groups are unrelated.
    #[error("the token {token} belongs to another group; ask a node of that group")]
    ForeignToken {
        /// The token.
        token: CommitToken,
    },
    /// The token's write was acknowledged without a majority and lost in a failover: another
    /// transaction has its number.
    #[error("the write {token} was rolled back in a failover; repeat it if it is still wanted")]
    RolledBack {
        /// The token.
        token: CommitToken,
    },
    /// The log no longer reaches back to the token.
    #[error("the log no longer reaches back to {token}; look for the effect of the write instead")]
    HistoryGone {
        /// The token.
        token: CommitToken,
    },
    /// The log on this node's disk cannot be read.
    #[error("the log cannot be read: {0}")]
    Log(LogError),
    /// The snapshot exceeded its maximum age: `snapshot_age_max_ms`, or less if it kept the memory
    /// for recent versions (`window_bytes_max`) nearly full.
    #[error(
        "the snapshot was open for more than {age_max:?} (snapshot_age_max_ms, or less when \
         window_bytes_max is nearly used up); begin a new one"
    )]
    SnapshotTooOld {
        /// The maximum age at that moment.
        age_max: Duration,
    },
    /// A transaction reads more keys and ranges than allowed.
    #[error(
        "a transaction may read at most {max} different keys and ranges; read ranges, or split it"
    )]
    TooManyReads {
        /// The most keys and ranges.
        max: usize,
    },
    /// Not a valid database name.
    #[error("{name:?} is not a valid database name: {reason}")]
    DatabaseName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The storage engine failed.
    #[error("the storage engine cannot be read: {0}")]
    Engine(EngineError),
    /// The node has stopped.
    #[error("the node has stopped ({reason}); {}", after_stop(.reason))]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The node is copying a peer's state, because the log that it needs is gone.
    #[error(
        "this node is copying the state of a peer, and cannot be read until the copy is in place; \
         read on another node, or retry later"
    )]
    Restoring,
    /// This node is an arbiter.
    #[error("an arbiter has no data; ask another node")]
    NoData,
    /// The environment was closed.
    #[error("the environment is closed")]
    Closed,
}

impl From<LogError> for ReadError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl ReadError {
    /// Whether the same read may succeed later, or on another node.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotCurrent { .. }
                | Self::Behind { .. }
                | Self::Lagging { .. }
                | Self::SnapshotTooOld { .. }
                | Self::Restoring
                | Self::NoData
                | Self::Stopped { .. }
                | Self::Closed
        )
    }
}

/// An error with its causes, except those that its own text already states.
pub(crate) fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The cause at the bottom of an error, or the error itself.
fn first_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn master_hint(master: Option<&NodeAddress>) -> String {
    master.map_or_else(
        || ", and no master is known".to_owned(),
        |master| format!("; the master is {} at {}", master.name, master.address),
    )
}
