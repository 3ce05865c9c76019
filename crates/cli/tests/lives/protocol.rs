//! What a test and its nodes say to each other: one JSON value per line, commands on the node's stdin,
//! reports on its stdout.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use steadfast::CommitToken;

/// Rows by database and key.
pub(crate) type Rows = BTreeMap<String, BTreeMap<String, String>>;
/// Keys by database.
pub(crate) type Keys = BTreeMap<String, BTreeSet<String>>;

/// Changes that are made together or not at all. Each says database and key, and the value, if the row
/// is to have one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Write {
    /// No other write of the test has it.
    pub(crate) number: u64,
    pub(crate) changes: Vec<(String, String, Option<String>)>,
}

/// Writes that are made one after the other. What different streams write has no row in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub(crate) number: usize,
    pub(crate) writes: Vec<Write>,
}

/// To a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Write all streams, side by side.
    Write(Vec<Stream>),
    /// Read all rows of these databases: by scans, and these keys of each by `get`. The answer is to be
    /// at least as new as the token.
    Read {
        keys: Keys,
        token: Option<CommitToken>,
    },
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Acknowledged(CommitToken),
    /// It may have been done, or may still be: the rest of its stream is not tried.
    Unknown,
    /// Nothing of it was done, and the rest of its stream is not tried.
    Refused(String),
}

/// What a read has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) scanned: Rows,
    /// By `get`; `None` when it is the same.
    pub(crate) got: Option<Rows>,
}

/// From a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The node has come to work, and has put right so many rows of its engine before.
    Ready {
        put_right: u64,
    },
    Role(String),
    /// Outcome of a write, by the numbers of its stream and of itself.
    Wrote(usize, u64, Outcome),
    /// No stream is under way any more.
    Rests,
    Read(Found),
    /// A read was refused, for a reason that passes.
    Unread(String),
    /// What a watcher has found that reads all the time, from the first answer on: told only when it is
    /// not what the last one has found.
    Watched(Found),
    /// The node cannot go on.
    Failed(String),
}
