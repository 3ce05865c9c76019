//! The protocol between the demo and its nodes: one JSON object per line, commands on the node's
//! stdin, reports on its stdout.

use serde::{Deserialize, Serialize};

/// Database of the appended records. Key: stream, big-endian `u32`, then number, big-endian `u64`.
/// Value: the record's id.
pub(super) const JOURNAL: &str = "journal";
/// Database of the last number of each stream. Key: stream, big-endian `u32`.
pub(super) const COUNTERS: &str = "counters";
/// Database of the balances. Key: account, big-endian `u32`. Value: `i64`, little-endian.
pub(super) const ACCOUNTS: &str = "accounts";
/// How many accounts there are.
pub(super) const ACCOUNT_COUNT: u32 = 100;
/// The initial balance of each account.
pub(super) const ACCOUNT_START: i64 = 1000;

/// Sent to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// Run the workload whenever this node is master.
    Load,
    /// End the workload, and report when none of it is under way any more.
    Rest,
    /// Read the current state, with a linearizable read.
    Read,
    /// Report everything that this node holds.
    Tell,
}

/// One appended record as a node holds it: stream, number, id.
pub(super) type Row = (u32, u64, String);

/// Sent by a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The node belongs to the group and knows a master.
    Ready,
    /// Its role, and the name of the master that it follows.
    Role {
        role: String,
        term: u64,
        master: Option<String>,
    },
    /// The append of the record, under this number of its stream, was acknowledged.
    Appended {
        id: String,
        number: u64,
        term: u64,
        vlsn: u64,
    },
    /// A payment was acknowledged.
    Paid { term: u64, vlsn: u64 },
    /// The append has an unknown outcome.
    Uncertain { id: String },
    /// The append was refused: the record must never be seen.
    Refused { id: String },
    /// None of the workload is under way.
    Resting,
    /// The result of a read: the last number of each stream, the number of accounts, and the sum of
    /// their balances.
    Read {
        numbers: Vec<(u32, u64)>,
        accounts: u32,
        sum: i64,
    },
    /// The read was refused, for a temporary reason.
    Unread(String),
    /// Some of the records that the node holds.
    Rows(Vec<Row>),
    /// The end of a node's report, all of it as of one VLSN.
    Told {
        vlsn: u64,
        accounts: u32,
        sum: i64,
        digest: String,
        digest_vlsn: u64,
    },
    /// The node cannot go on.
    Failed(String),
}
