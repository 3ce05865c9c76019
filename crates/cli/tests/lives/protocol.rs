//! The protocol between a test and its nodes: one JSON value per line, commands on the node's
//! stdin, reports on its stdout.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use steadfast::CommitToken;

/// Rows by database and key.
pub(crate) type Rows = BTreeMap<String, BTreeMap<String, String>>;
/// Keys by database.
pub(crate) type Keys = BTreeMap<String, BTreeSet<String>>;

/// Atomic changes. Each gives database and key, and the value if the row is to have one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Write {
    /// Unique within the test.
    pub(crate) number: u64,
    pub(crate) changes: Vec<(String, String, Option<String>)>,
}

/// Writes made one after another. Different streams write disjoint rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub(crate) number: usize,
    pub(crate) writes: Vec<Write>,
}

/// Sent to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Write all streams concurrently.
    Write(Vec<Stream>),
    /// Read all rows of these databases by scan, and these keys of each by `get`. The answer must
    /// be at least as new as the token.
    Read {
        keys: Keys,
        token: Option<CommitToken>,
    },
}

/// Result of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Acknowledged(CommitToken),
    /// It may have been done, or may still be: the rest of its stream is not tried.
    Unknown,
    /// Nothing of it was done, and the rest of its stream is not tried.
    Refused(String),
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) scanned: Rows,
    /// By `get`; `None` if equal to `scanned`.
    pub(crate) got: Option<Rows>,
}

/// Sent by a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The node is ready, having first corrected this many rows of its engine.
    Ready {
        put_right: u64,
    },
    Role(String),
    /// Outcome of a write, with the numbers of its stream and the write itself.
    Wrote(usize, u64, Outcome),
    /// No stream is under way any more.
    Rests,
    Read(Found),
    /// A read was refused for a transient reason.
    Unread(String),
    /// What a continual watcher has found, from the first answer on: reported only when it differs
    /// from the previous finding.
    Watched(Found),
    /// The node cannot go on.
    Failed(String),
}
