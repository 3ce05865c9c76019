//! The messages that compare the data of nodes, as parts of `NODE_STATE` and ELECTION.

use bytes::Bytes;
use prost::Message;

/// Asks for the digest of a range of keys at one VLSN.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RangeRequest {
    /// 0 for the last visible transaction.
    #[prost(uint64, tag = "1")]
    pub(crate) vlsn: u64,
    /// Name of the database; empty for the catalog of databases.
    #[prost(string, tag = "2")]
    pub(crate) database: String,
    /// The first key.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) from: Bytes,
    /// The exclusive end of the range; absent for the end of the database.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(crate) to: Option<Bytes>,
    /// The range ends after this many rows; 0 for no such limit.
    #[prost(uint64, tag = "5")]
    pub(crate) rows_max: u64,
    /// Requests the running digest of all databases instead of a range; no row is read for it.
    #[prost(bool, tag = "6")]
    pub(crate) is_running: bool,
}

/// Answer to [`RangeRequest`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RangeReply {
    #[prost(enumeration = "RangeOutcome", tag = "1")]
    pub(crate) outcome: i32,
    /// Why there is no digest, for a human reader.
    #[prost(string, tag = "2")]
    pub(crate) text: String,
    #[prost(uint64, tag = "3")]
    pub(crate) vlsn: u64,
    /// xxh3-128 of every key and value, in order, in hexadecimal.
    #[prost(string, tag = "4")]
    pub(crate) digest: String,
    #[prost(uint64, tag = "5")]
    pub(crate) rows: u64,
    /// The exclusive end of the range, if `rows_max` has cut it off.
    #[prost(bytes = "bytes", optional, tag = "6")]
    pub(crate) to: Option<Bytes>,
    /// For the catalog: the names of all databases.
    #[prost(string, repeated, tag = "7")]
    pub(crate) databases: Vec<String>,
    /// For a running digest: each database, by name.
    #[prost(message, repeated, tag = "8")]
    pub(crate) running: Vec<DatabaseDigestMessage>,
}

/// What one database should hold.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DatabaseDigestMessage {
    /// Empty for the catalog.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint64, tag = "2")]
    pub(crate) rows: u64,
    /// The sum of the rows' hashes; 16 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) digest: Bytes,
}

/// Whether there is a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum RangeOutcome {
    Done = 0,
    /// The node has not got that far in time.
    Behind = 1,
    /// The node no longer has that state.
    Gone = 2,
    /// The node has no data, or cannot read it.
    Failed = 3,
}

/// The result of a check of all files.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CheckReply {
    /// The file, the place and the problem; empty when everything is intact.
    #[prost(string, tag = "1")]
    pub(crate) problem: String,
    #[prost(uint64, tag = "2")]
    pub(crate) log_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) engine_bytes: u64,
}

/// The master tells a node what a comparison has found about it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Diverged {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    /// In words; empty when the node has what the others have.
    #[prost(string, tag = "2")]
    pub(crate) what: String,
    /// The incarnation that was compared: this says nothing about a later one.
    #[prost(fixed64, tag = "3")]
    pub(crate) incarnation: u64,
}

/// A range in which nodes differ.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DivergenceMessage {
    #[prost(string, tag = "1")]
    pub(crate) database: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) from: Bytes,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) to: Option<Bytes>,
    #[prost(uint64, tag = "4")]
    pub(crate) vlsn: u64,
    /// Names of the nodes that differ from a majority.
    #[prost(string, repeated, tag = "5")]
    pub(crate) nodes: Vec<String>,
}
