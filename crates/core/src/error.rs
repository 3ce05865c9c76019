//! The public errors. Each says what happened, what it means for the data, and what to do next.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigError;
use crate::engine::EngineError;
use crate::ids::{Term, Vlsn};
use crate::log::LogError;
use crate::member::NodeAddress;
use crate::token::CommitToken;

/// Why a node stops that has been removed.
pub(crate) const REMOVED: &str = "this node was removed from the group";

/// What is known of a write after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing of it was done, and nothing of it will be.
    NotCommitted,
    /// It is committed, and is on the disks of fewer nodes than was asked for.
    Committed(CommitToken),
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
    /// The directory is not the one that this node worked in, but a copy of it, or one that was put
    /// back out of a backup.
    #[error(
        "data directory {dir} is a copy of this node's directory, or was put back out of a backup: \
         votes and writes that the node has acknowledged may be missing in it, and the original may \
         still run, so it takes no part; nothing was changed. Put the original back, or let the \
         node in anew as a replacement (steadfast node replace), or, if nothing else is left of \
         the group, recover from it (steadfast recover)"
    )]
    Copied {
        /// The data directory.
        dir: PathBuf,
    },
    /// A group was being restored to the directory, and not all of it is there.
    #[error(
        "a restore to {dir} was cut off; nothing was changed. Do it again (steadfast backup restore), or \
         empty the directory"
    )]
    UnfinishedRestore {
        /// The data directory.
        dir: PathBuf,
    },
    /// The group was recovered without this node after its quorum was lost.
    #[error("{reason}")]
    Superseded {
        /// Since which epoch, and what to do.
        reason: String,
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
    /// The storage engine does not hold what the log gave it, and the log does not reach back far enough
    /// to put it right.
    #[error(
        "{what}; this node does not vote or serve with it, and nothing was removed. Where another node has \
         it right, this one copies it (repair = \"auto\"); else a backup or an older data directory is needed"
    )]
    EngineDiffers {
        /// Which databases, and up to when everything was there.
        what: String,
    },
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
    /// The clock of the machine says what cannot be.
    #[error(
        "the clock of this machine says that it is the year {year}, which cannot be: set it, or its time \
         service, then start again"
    )]
    Clock {
        /// The year that it says.
        year: u64,
    },
    /// Of a close: the node has ended, and something could not be written. Nothing acknowledged is lost:
    /// it is in the log.
    #[error("the node has stopped, and not all was written: {0}")]
    Close(String),
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

impl ReadyError {
    /// Whether the node has stopped because the group goes on without it.
    pub fn was_removed(&self) -> bool {
        matches!(self, Self::Stopped { reason } if reason == REMOVED)
    }
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
    /// The node lost its mastership with the write in flight.
    #[error(
        "the outcome of the write is unknown: it may have been committed as {token}; \
         ask for the outcome of that token before writing it again"
    )]
    OutcomeUnknown {
        /// The token that the write has if it was committed.
        token: CommitToken,
    },
    /// Too few nodes are there to acknowledge the write. Nothing was written.
    #[error(
        "the write needs {needed} electable nodes and {available} are there; nothing was written; \
         retry when the others are back, or ask for less durability"
    )]
    InsufficientReplicas {
        /// Electable nodes that must have the write on disk, the master included.
        needed: usize,
        /// Electable nodes that are there: the master, and those that have answered it within
        /// `election_timeout_max_ms`.
        available: usize,
    },
    /// The write is in the log, and too few nodes have acknowledged it in time, or before this node
    /// lost its mastership.
    #[error(
        "{acked} of {needed} nodes have acknowledged the write {token}{}{}",
        if *.lacks_own_disk {
            ", and this node's own disk, which was asked for, has not"
        } else {
            ""
        },
        if *.is_committed {
            "; it is committed, and stays so"
        } else {
            "; it may still be committed: ask for the outcome of its token before writing it again"
        }
    )]
    InsufficientAcks {
        /// The token that the write has if it was committed.
        token: CommitToken,
        /// Electable nodes that should have it on disk, the master included.
        needed: usize,
        /// Electable nodes that have it on disk as far as the master knows.
        acked: usize,
        /// Whether the master's own disk was asked for and does not have it.
        lacks_own_disk: bool,
        /// Whether a majority has it: then it cannot be lost, whatever the others do.
        is_committed: bool,
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
    /// The transaction writes more keys than one may. Nothing was written.
    #[error("a transaction may write {max} keys; nothing was written; split it")]
    TooManyKeys {
        /// The most keys.
        max: usize,
    },
    /// The transaction creates, truncates and drops more databases than one may. Nothing was written.
    #[error(
        "a transaction may create, truncate or drop {max} databases; nothing was written; split it"
    )]
    TooManyDatabases {
        /// The most databases.
        max: usize,
    },
    /// The transaction was open for longer than one may be. Nothing was written.
    #[error(
        "the transaction was open for more than {age_max:?} (snapshot_age_max_ms); nothing was \
         written; begin it again"
    )]
    TooOld {
        /// The highest age.
        age_max: Duration,
    },
    /// Something that the transaction read was changed by another one before it could commit.
    /// Nothing was written.
    #[error(
        "another transaction changed what this one had read; nothing was written; run it again"
    )]
    Conflict,
    /// The function given to `write` writes to the same environment by other means than its transaction.
    /// Nothing of either was written.
    #[error(
        "a function given to write may write to its environment by its transaction alone; nothing was \
         written; do both in the transaction, or one after the other"
    )]
    Nested,
    /// What the function given to `write` had read was changed each time before it could commit, at last
    /// although all other writes were held off for as long as they can be. Nothing was written.
    #[error(
        "other transactions changed {conflicts} times what this one had read, at last although all were \
         held off for {held_off:?}: its function takes longer than that, or waits for another write of \
         this environment; nothing was written; make it shorter, or do in the transaction what it waits for"
    )]
    Overtaken {
        /// How often the function was run.
        conflicts: u32,
        /// For how long the others were held off, each of the last times.
        held_off: Duration,
    },
    /// A read within the transaction failed. Nothing was written.
    #[error("a read in the transaction failed; nothing was written: {0}")]
    Read(#[source] ReadError),
    /// The node copies the state of a peer, because the log that it needs is gone. Nothing was
    /// written.
    #[error(
        "this node copies the state of a peer and takes no part meanwhile; nothing was written; \
         write on the master, or retry when the copy is in place"
    )]
    Restoring,
    /// The transaction function gave up. Nothing was written. See [`WriteError::into_aborted`].
    #[error("the transaction was aborted; nothing was written: {0}")]
    Aborted(Box<dyn Error + Send + Sync>),
    /// The volume of the master's data directory is nearly full, and no node with room could take
    /// over. Nothing was written, nothing acknowledged is lost, and reads go on.
    #[error(
        "the master takes no writes: {free_bytes} bytes of its disk are free, and {limit_bytes} have to be \
         (disk_free_read_only_bytes, or what its storage engine needs); nothing was written, and nothing \
         acknowledged is lost; make room, and retry: writes are taken again by themselves"
    )]
    DiskFull {
        /// What is free on the volume, in bytes.
        free_bytes: u64,
        /// What has to be free: `disk_free_read_only_bytes` of the master, and never less than what its storage
        /// engine needs.
        limit_bytes: u64,
    },
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
    ///
    /// With `impl From<MyError> for WriteError`, by this function, `?` does so with errors of your
    /// own; [`WriteError::into_aborted`] gives them back as they were.
    pub fn abort(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Aborted(reason.into())
    }

    /// The error with which the function aborted the transaction, as it was.
    ///
    /// # Errors
    /// This error again, when it is another one.
    ///
    /// ```
    /// # use steadfast::{ReplicatedEnvironment, WriteError};
    /// #[derive(Debug, PartialEq, thiserror::Error)]
    /// #[error("{0} are left")]
    /// struct SoldOut(u64);
    ///
    /// impl From<SoldOut> for WriteError {
    ///     fn from(error: SoldOut) -> Self {
    ///         Self::abort(error)
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let group = ReplicatedEnvironment::in_memory_group(1)?;
    /// # let env = &group[0];
    /// let sold = env.write(|txn| {
    ///     let _stock = txn.database("stock")?.get("tickets")?;
    ///     Err(SoldOut(0))?
    /// });
    /// match sold.map_err(WriteError::into_aborted::<SoldOut>) {
    ///     Ok(token) => println!("sold as {token}"),
    ///     Err(Ok(sold_out)) => assert_eq!(sold_out, SoldOut(0)),
    ///     Err(Err(error)) => return Err(error.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_aborted<E: Error + Send + Sync + 'static>(self) -> Result<E, Self> {
        match self {
            Self::Aborted(reason) => reason.downcast().map(|own| *own).map_err(Self::Aborted),
            other => Err(other),
        }
    }

    /// What is known of the write.
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
            _ => Outcome::NotCommitted,
        }
    }

    /// Whether the same write may succeed later, here or on the master, and cannot be done twice
    /// by trying.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotMaster { .. }
            | Self::NotCommitted { .. }
            | Self::InsufficientReplicas { .. }
            | Self::TooOld { .. }
            | Self::DiskFull { .. }
            | Self::Restoring
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
    /// The node has not applied the transaction of the token in time.
    #[error(
        "this node has applied VLSN {vlsn} and not yet {}: it is {} transactions behind; \
         retry, or read on the master", token.vlsn, token.vlsn.0.saturating_sub(vlsn.0)
    )]
    Behind {
        /// The token that was asked for.
        token: CommitToken,
        /// The last VLSN that the node has applied.
        vlsn: Vlsn,
    },
    /// The node could not prove in time that it lags by no more than was asked for.
    #[error(
        "this node may lag by more than {max:?}: {}, and is at VLSN {vlsn} ({reason}); \
         retry, or read with Eventual",
        lag.map_or_else(
            || "it is not known when it was last current".to_owned(),
            |lag| format!("it was last known to be current {} ms ago", lag.as_millis())
        )
    )]
    Lagging {
        /// The lag that was asked for.
        max: Duration,
        /// How long ago the node was current for certain; `None` when that is not known.
        lag: Option<Duration>,
        /// The last VLSN that the node has applied.
        vlsn: Vlsn,
        /// Why it could not be proved.
        reason: String,
    },
    /// The token is of another group. VLSNs of two groups have nothing to do with each other.
    #[error("the token {token} is of another group; ask a node of that one")]
    ForeignToken {
        /// The token.
        token: CommitToken,
    },
    /// The write of the token was acknowledged without a majority, and lost at a failover: another
    /// transaction has its number.
    #[error("the write {token} was rolled back at a failover; do it again if it is still wanted")]
    RolledBack {
        /// The token.
        token: CommitToken,
    },
    /// The log does not reach back to the token any more.
    #[error("the log no longer reaches back to {token}; look for the effect of the write instead")]
    HistoryGone {
        /// The token.
        token: CommitToken,
    },
    /// The log on this node's disk cannot be read.
    #[error("the log cannot be read: {0}")]
    Log(#[from] LogError),
    /// The snapshot is older than it may be: that is `snapshot_age_max_ms`, and less where it kept the
    /// memory for recent versions (`window_bytes_max`) nearly full.
    #[error(
        "the snapshot was open for more than {age_max:?} (snapshot_age_max_ms, and less when window_bytes_max is nearly used up); begin another one"
    )]
    SnapshotTooOld {
        /// The highest age at that moment.
        age_max: Duration,
    },
    /// A transaction reads more than one may.
    #[error("a transaction may read {max} different keys and ranges; read ranges, or split it")]
    TooManyReads {
        /// The most keys and ranges.
        max: usize,
    },
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
    /// The node copies the state of a peer, because the log that it needs is gone.
    #[error(
        "this node copies the state of a peer and cannot be read meanwhile; read on another node, \
         or retry when the copy is in place"
    )]
    Restoring,
    /// This node is an arbiter.
    #[error("an arbiter has no data; ask another node")]
    NoData,
    /// The environment was closed.
    #[error("the environment is closed")]
    Closed,
}

impl ReadError {
    /// Whether the same read may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotCurrent { .. }
                | Self::Behind { .. }
                | Self::Lagging { .. }
                | Self::SnapshotTooOld { .. }
                | Self::Restoring
        )
    }
}

/// Why a subscription cannot begin, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The log does not reach back so far. Begin with the state, or from a token at or after `oldest`.
    #[error("the log reaches back to VLSN {oldest} only; begin with StartAt::Start")]
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
        "{token} was never committed: the transaction of this number is of term {committed};          begin with StartAt::Start"
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
    /// The state was not taken within `snapshot_age_max_ms`, or kept the memory for recent versions
    /// (`window_bytes_max`) full. Begin again, and take it faster.
    #[error("the state was not taken before its snapshot got too old; begin again")]
    SnapshotTooOld,
    /// The node serves as many subscriptions as it may. End one, or ask another node.
    #[error("the node has {max} subscriptions, which is the limit (subscriptions_max)")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// No node of the list could be reached in time. Go on from `resume` when one can.
    #[error("no node goes on with it ({reason}); {}", resume_hint(.resume.as_ref()))]
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
    /// The node copies the state of a peer, because the log that it needs is gone. Go on with the
    /// resume token on another node, or when the copy is in place.
    #[error(
        "this node copies the state of a peer; go on with the resume token on another node, or when \
         the copy is in place"
    )]
    Restoring,
    /// The node belongs to no group yet: wait until it is ready.
    #[error("the node belongs to no group yet; wait until it is ready")]
    NotReady,
    /// This node is an arbiter.
    #[error("an arbiter has no data; ask another node")]
    NoData,
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
                | Self::Restoring
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
