//! What a feed yields.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::token::CommitToken;

/// One change within a committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The key has this value.
    Put {
        /// The database.
        database: Arc<str>,
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// The key is gone.
    Delete {
        /// The database.
        database: Arc<str>,
        /// The key.
        key: Bytes,
    },
    /// The key is gone because its time to live has passed.
    Expired {
        /// The database.
        database: Arc<str>,
        /// The key.
        key: Bytes,
    },
    /// The database is now empty: it was created, or truncated.
    Created {
        /// The database.
        database: Arc<str>,
    },
    /// The database is gone, with everything in it.
    Dropped {
        /// The database.
        database: Arc<str>,
    },
}

impl Change {
    /// The database that is changed.
    pub fn database(&self) -> &str {
        match self {
            Self::Put { database, .. }
            | Self::Delete { database, .. }
            | Self::Expired { database, .. }
            | Self::Created { database }
            | Self::Dropped { database } => database,
        }
    }
}

/// A committed transaction, as far as the subscription's filter lets it through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedTransaction {
    /// Its token, which includes its VLSN. A subscription from this token continues after it.
    pub token: CommitToken,
    /// The master's wall clock when it was proposed, in milliseconds since 1970.
    pub committed_at_ms: u64,
    /// What it changed: first databases created and dropped, then keys, each once, ordered by
    /// database and key. Nothing, if it is one of the group's own, such as those in which the master
    /// notes the time while keys have a time to live.
    pub changes: Vec<Change>,
}

/// What a subscription yields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedEvent {
    /// A part of the initial state of [`StartAt::Start`](crate::StartAt::Start): up to 1 MiB, or one larger row. Databases
    /// come in order of their names, keys ascending, each once; at least one part per database.
    State {
        /// The database.
        database: Arc<str>,
        /// Keys with their values.
        rows: Vec<(Bytes, Bytes)>,
        /// The rows with a time to live, in ascending order: the index in `rows`, and how long the
        /// key has still to live, never less than it has.
        expiring: Vec<(usize, Duration)>,
    },
    /// The parts so far are the whole state as of this transaction. What follows comes after it.
    StateComplete {
        /// The last transaction in the state; VLSN 0 when there is none yet.
        token: CommitToken,
        /// The running digest of all databases as of that transaction, the same on every node,
        /// which the rows match. `None` if a filter left some out, or the node could not tell in
        /// time.
        digest: Option<u128>,
    },
    /// The next transaction.
    Transaction(CommittedTransaction),
    /// The filter has left out every transaction since the last event up to this one, and there
    /// were many. A subscription from this token skips them.
    Progress {
        /// The last transaction left out.
        token: CommitToken,
    },
}
