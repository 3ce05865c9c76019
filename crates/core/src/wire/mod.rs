//! What travels between nodes: the envelope, the messages, and the hello before them.

mod access;
pub(crate) mod comparison;
pub(crate) mod dialling;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod gate;
pub(crate) mod hello;
pub(crate) mod messages;
pub(crate) mod node_state;

/// Entry streams and acknowledgements.
pub(crate) const FEEDER: &str = "FEEDER";
/// Votes, pre-votes, heartbeats and read barriers.
pub(crate) const ELECTION: &str = "ELECTION";
/// A copy of the whole state, for a node that the log cannot bring up to date.
pub(crate) const RESTORE: &str = "RESTORE";
/// Changes of the group, requested by operators and joining nodes.
pub(crate) const ADMIN: &str = "ADMIN";
/// Calls between the applications of members.
pub(crate) const CALLS: &str = "CALLS";
/// Single reads and writes, for any client.
pub(crate) const DATA: &str = "DATA";
/// Transactions that ran on another node, for the master to number.
pub(crate) const WRITES: &str = "WRITES";
/// The change feed, for any client.
pub(crate) const SUBSCRIPTION: &str = "SUBSCRIPTION";
/// A node's view of its group, for any watcher.
pub(crate) const EVENTS: &str = "EVENTS";
/// State of one node, available even while it has no master.
pub(crate) const NODE_STATE: &str = "NODE_STATE";
