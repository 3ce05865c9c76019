//! The public errors. Each says what happened, what it means for the data, and what to do next.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigError;
use crate::engine::EngineError;
use crate::group::NodeAddress;
use crate::ids::{Term, Vlsn};
use crate::log::LogError;
use crate::token::CommitToken;

/// What is known of a write after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing of it was done, and nothing of it will be.
    NotCommitted,
    /// It may have been committed, or may still be: look before doing it again.
    Unknown(CommitToken),
}

/// Why an environment could not be opened. Nothing on disk was changed, except that a directory
/// and an identity may have been made where there were none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directory belongs to something else.
    #[error(
        "data directory {dir} belongs to {what} {found:?}, not to {expected:?}; \
         point data_dir at the directory of {expected:?}, or at an empty one"
    )]
    ForeignDirectory {
        /// The data directory.
        dir: PathBuf,
        /// "group" or "node".
        what: &'static str,
        /// Whose directory it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// Another process, or another environment of this one, has the directory open.
    #[error("data directory {dir} is in use by another process; stop that one first")]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// A file was written by a newer version of the program.
    #[error(
        "{path} has format version {found}, and this program knows up to {known}; \
         run the version that wrote it, or a newer one"
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// A file holds bytes that were not written so.
    #[error(
        "{path} is corrupt at byte {offset}: {what}; this node does not vote or serve until it is \
         repaired. The other nodes have the data: do not delete anything before you have checked \
         that they do"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A file or directory cannot be read or written.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The log on disk cannot be opened.
    #[error(transparent)]
    Log(LogError),
    /// The storage engine cannot be opened.
    #[error("the storage engine cannot be opened: {0}")]
    Engine(#[from] EngineError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another program using the port?")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the network said.
        source: steadfast_net::NetError,
    },
    /// The runtime or consensus could not be started.
    #[error("cannot start: {0}")]
    Start(String),
}

/// Why an environment is not ready.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadyError {
    /// The deadline passed.
    #[error("not ready after {after:?}: {waiting_for}")]
    Timeout {
        /// How long was waited.
        after: Duration,
        /// What is missing, and whom it is waiting for.
        waiting_for: String,
    },
    /// The group does not accept this node.
    #[error("the group refuses this node: {reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The node has stopped.
    #[error("the node has stopped: {reason}; open it again to re-read its disk")]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The environment was closed.
    #[error("the environment is closed")]
    Closed,
}

/// Why a write did not return a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// This node is not the master. Nothing was written.
    #[error("this node is not the master{}; nothing was written", master_hint(.master.as_ref()))]
    NotMaster {
        /// The master, where it is known: write there.
        master: Option<NodeAddress>,
    },
    /// The write was not committed and will not be: it is safe to do it again.
    #[error("the write was not committed ({reason}); it is safe to retry")]
    NotCommitted {
        /// Why.
        reason: &'static str,
    },
    /// The node lost its mastership, or its patience, with the write in flight.
    #[error(
        "the outcome of the write is unknown: it may have been committed as {token}; \
         look for its effect before writing it again"
    )]
    OutcomeUnknown {
        /// The token that the write has if it was committed.
        token: CommitToken,
    },
    /// Something is larger than it may be. Nothing was written.
    #[error("{what} of {actual} bytes is over the limit of {max}; nothing was written")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        actual: usize,
        /// The largest size in bytes.
        max: usize,
    },
    /// A read within the transaction failed. Nothing was written.
    #[error("a read in the transaction failed; nothing was written: {0}")]
    Read(#[from] ReadError),
    /// The transaction function gave up. Nothing was written.
    #[error("the transaction was aborted; nothing was written: {0}")]
    Aborted(Box<dyn Error + Send + Sync>),
    /// The node has stopped. Nothing was written.
    #[error(
        "the node has stopped ({reason}); nothing was written; open it again to re-read its disk"
    )]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The environment was closed. Nothing was written.
    #[error("the environment is closed; nothing was written")]
    Closed,
}

impl WriteError {
    /// Aborts a transaction: return it from the function given to `write`, and `write` returns it.
    pub fn abort(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Aborted(reason.into())
    }

    /// What is known of the write.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::OutcomeUnknown { token } => Outcome::Unknown(*token),
            _ => Outcome::NotCommitted,
        }
    }

    /// Whether the same write may succeed later, here or on the master, and cannot be done twice
    /// by trying.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotMaster { .. } | Self::NotCommitted { .. } => true,
            Self::Read(read) => read.is_retryable(),
            _ => false,
        }
    }
}

/// Why a read was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No majority, or no master, could be reached in time to prove that the answer is current.
    #[error("cannot prove that the answer is current: {reason}; retry, or read with Eventual")]
    NotCurrent {
        /// Why.
        reason: String,
    },
    /// The snapshot is older than the configured limit.
    #[error("the snapshot is too old; begin another one")]
    SnapshotTooOld,
    /// A name cannot be that of a database.
    #[error("{name:?} cannot be the name of a database: {reason}")]
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
    #[error("the node has stopped ({reason}); open it again to re-read its disk")]
    Stopped {
        /// Why.
        reason: String,
    },
    /// The environment was closed.
    #[error("the environment is closed")]
    Closed,
}

impl ReadError {
    /// Whether the same read may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotCurrent { .. } | Self::SnapshotTooOld)
    }
}

/// Why a subscription cannot begin, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The log does not reach back so far. Begin with the state, or from a token at or after `oldest`.
    #[error("the log reaches back to VLSN {oldest} only; begin with From::Start")]
    HistoryGone {
        /// The first transaction that the log has.
        oldest: Vlsn,
    },
    /// The token, or the subscription, is meant for another group.
    #[error("another group is meant: {reason}")]
    WrongGroup {
        /// Which, and which it is.
        reason: String,
    },
    /// The token is of a write that was never committed: another transaction has its number. What
    /// was made of that write elsewhere must be undone.
    #[error(
        "{token} was never committed: the transaction of this number is of term {committed};          begin with From::Start"
    )]
    NotCommitted {
        /// The token.
        token: CommitToken,
        /// The term of the transaction that has its VLSN.
        committed: Term,
    },
    /// The filter cannot be used.
    #[error("the filter of the subscription cannot be used: {reason}")]
    Filter {
        /// Why.
        reason: String,
    },
    /// The state was not taken within `snapshot_age_max_ms`. Begin again, and take it faster.
    #[error("the state was not taken before its snapshot got too old; begin again")]
    SnapshotTooOld,
    /// The node serves as many subscriptions as it may. End one, or ask another node.
    #[error("the node has {max} subscriptions, which is the limit (subscriptions_max)")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// No node of the list could be reached in time. Go on from `resume` when one can.
    #[error("no node serves the subscription ({reason}); {}", resume_hint(.resume.as_ref()))]
    Disconnected {
        /// Everything up to this token has been given out. `None` while the state is not complete:
        /// begin with it again.
        resume: Option<CommitToken>,
        /// What the last one tried said.
        reason: String,
    },
    /// The log cannot be read.
    #[error("the log cannot be read: {0}")]
    Log(LogError),
    /// The storage engine cannot be read.
    #[error("the storage engine cannot be read: {0}")]
    Engine(EngineError),
    /// The node belongs to no group yet: wait until it is ready.
    #[error("the node belongs to no group yet; wait until it is ready")]
    NotReady,
    /// The node has stopped.
    #[error("the node has stopped ({reason}); open it again to re-read its disk")]
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
                | Self::SnapshotTooOld
        )
    }
}

fn resume_hint(resume: Option<&CommitToken>) -> String {
    resume.map_or_else(
        || "begin again".to_owned(),
        |token| format!("go on from {token}"),
    )
}

fn master_hint(master: Option<&NodeAddress>) -> String {
    master.map_or_else(
        || ", and none is known".to_owned(),
        |master| format!("; the master is {} at {}", master.name, master.address),
    )
}
