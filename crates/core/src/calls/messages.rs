//! The messages of CALLS and WRITES.

use bytes::Bytes;
use prost::Message;

/// A request. Answers carry its `id` and may come in any order.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CallRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// Whom it is for at that node.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// Whether only a master may answer it.
    #[prost(bool, tag = "3")]
    pub(crate) to_master: bool,
    /// How long the caller waits.
    #[prost(uint64, tag = "4")]
    pub(crate) timeout_ms: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) body: Bytes,
}

/// What the called node says.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CallReply {
    /// Of the request; with `standing`, of none.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(oneof = "CallAnswer", tags = "2, 3, 4, 5, 6")]
    pub(crate) answer: Option<CallAnswer>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum CallAnswer {
    /// What the handler returned.
    #[prost(bytes = "bytes", tag = "2")]
    Done(Bytes),
    /// The handler has not got it: a [`CallRefusal`].
    #[prost(enumeration = "CallRefusal", tag = "3")]
    Refused(i32),
    /// The handler has got it, and there is no answer: why, for people.
    #[prost(string, tag = "4")]
    Failed(String),
    /// The node is there.
    #[prost(bool, tag = "5")]
    Standing(bool),
    /// What the handler says before its answer, which follows.
    #[prost(bytes = "bytes", tag = "6")]
    Told(Bytes),
}

/// Why a handler has not got a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum CallRefusal {
    /// A reason that this version does not know.
    Other = 0,
    /// The node is not the master.
    NotMaster = 1,
    /// It has no handler of this name.
    NoSuchService = 2,
    /// The request is too large.
    TooLarge = 3,
}
