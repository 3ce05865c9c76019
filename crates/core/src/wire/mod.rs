//! What travels between nodes: the envelope, the messages, and the hello before them.

pub(crate) mod comparison;
pub(crate) mod dialling;
pub(crate) mod hello;
pub(crate) mod messages;
pub(crate) mod node_state;

/// Entry streams and acknowledgements.
pub(crate) const FEEDER: &str = "FEEDER";
/// Votes, pre-votes, heartbeats and read barriers.
pub(crate) const ELECTION: &str = "ELECTION";
/// A copy of the whole state, for a node that the log cannot bring up.
pub(crate) const RESTORE: &str = "RESTORE";
/// Changes of the group, asked by operators and by nodes that join.
pub(crate) const ADMIN: &str = "ADMIN";
/// The change feed, to whoever asks.
pub(crate) const SUBSCRIPTION: &str = "SUBSCRIPTION";
/// What a node sees of its group, to whoever watches it.
pub(crate) const EVENTS: &str = "EVENTS";
/// State of one node, answered also while it has no master.
pub(crate) const NODE_STATE: &str = "NODE_STATE";
