//! The messages in docs/protocol.md that the stories show, as far as they show them. A choice of
//! one among several is written here as fields of which one is present: the bytes are the same.

use std::fmt;

use prost::Message;

/// Bytes of the envelope before the message.
const BODY_OFFSET: usize = 8;

/// The message in a frame.
pub(crate) fn decode<M: Message + Default>(frame: &[u8]) -> M {
    M::decode(&frame[BODY_OFFSET..]).expect("a message as docs/protocol.md describes it")
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct LogId {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) position: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.position)
    }
}

/// The entry, or that there is none.
pub(crate) fn or_nothing(id: Option<LogId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| id.to_string())
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Vote {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct HelloReply {
    #[prost(uint32, tag = "2")]
    pub(crate) refusal: u32,
    #[prost(string, tag = "3")]
    pub(crate) text: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Entry {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) position: u64,
    #[prost(uint32, tag = "3")]
    pub(crate) kind: u32,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Member {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct VoterSet {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
}

/// Payload of an entry that is a membership: see docs/format.md.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Membership {
    #[prost(message, repeated, tag = "1")]
    pub(crate) members: Vec<Member>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) voters: Vec<VoterSet>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Append {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    pub(crate) prev: Option<LogId>,
    #[prost(message, optional, tag = "3")]
    pub(crate) committed: Option<LogId>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct AppendReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) matched: Option<LogId>,
    #[prost(bool, optional, tag = "2")]
    pub(crate) matched_nothing: Option<bool>,
    #[prost(message, optional, tag = "3")]
    pub(crate) conflict: Option<LogId>,
    #[prost(message, optional, tag = "4")]
    pub(crate) higher_vote: Option<Vote>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct VoteRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    pub(crate) last: Option<LogId>,
    #[prost(bool, tag = "3")]
    pub(crate) lease_is_over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct VoteReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<Vote>,
    #[prost(bool, tag = "2")]
    pub(crate) granted: bool,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct MasterGone {
    #[prost(uint64, tag = "1")]
    pub(crate) master: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Barrier {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct BarrierReply {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) position: Option<u64>,
}

/// Of `take_over`, `reach`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct UpTo {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    pub(crate) entry: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Removed {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Reached {
    #[prost(bool, tag = "2")]
    pub(crate) has: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ElectionRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) vote: Option<VoteRequest>,
    #[prost(message, optional, tag = "3")]
    pub(crate) pre_vote: Option<VoteRequest>,
    #[prost(message, optional, tag = "5")]
    pub(crate) master_gone: Option<MasterGone>,
    #[prost(message, optional, tag = "6")]
    pub(crate) barrier: Option<Barrier>,
    #[prost(message, optional, tag = "7")]
    pub(crate) take_over: Option<UpTo>,
    #[prost(message, optional, tag = "8")]
    pub(crate) removed: Option<Removed>,
    #[prost(message, optional, tag = "11")]
    pub(crate) reach: Option<UpTo>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ElectionReply {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) vote: Option<VoteReply>,
    #[prost(message, optional, tag = "3")]
    pub(crate) append: Option<AppendReply>,
    #[prost(bool, optional, tag = "4")]
    pub(crate) agrees: Option<bool>,
    #[prost(message, optional, tag = "5")]
    pub(crate) barrier: Option<BarrierReply>,
    #[prost(message, optional, tag = "6")]
    pub(crate) reached: Option<Reached>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Join {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint32, tag = "4")]
    pub(crate) node_type: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AdminRequest {
    #[prost(message, optional, tag = "3")]
    pub(crate) join: Option<Join>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Joined {
    #[prost(uint64, tag = "1")]
    pub(crate) node_id: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Done {
    #[prost(message, optional, tag = "2")]
    pub(crate) joined: Option<Joined>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct AdminReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) done: Option<Done>,
    #[prost(string, optional, tag = "3")]
    pub(crate) not_master: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Begin {
    #[prost(message, optional, tag = "1")]
    pub(crate) entry: Option<LogId>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Place {
    #[prost(uint32, tag = "1")]
    pub(crate) database: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Number {
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RestoreRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) begin: Option<Begin>,
    #[prost(message, optional, tag = "2")]
    pub(crate) chunk: Option<Place>,
    #[prost(message, optional, tag = "3")]
    pub(crate) entries: Option<Number>,
    #[prost(message, optional, tag = "4")]
    pub(crate) finish: Option<Number>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Begun {
    #[prost(message, optional, tag = "3")]
    pub(crate) entry: Option<LogId>,
    #[prost(uint64, tag = "4")]
    pub(crate) vlsn: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Row {}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Chunk {
    #[prost(message, repeated, tag = "1")]
    pub(crate) rows: Vec<Row>,
    #[prost(uint64, tag = "2")]
    pub(crate) vlsn: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Entries {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Rows {
    #[prost(uint64, tag = "1")]
    pub(crate) rows: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct State {
    #[prost(uint64, tag = "1")]
    pub(crate) vlsn: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) rows: Option<Rows>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Manifest {
    #[prost(message, optional, tag = "4")]
    pub(crate) state: Option<State>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RestoreReply {
    #[prost(message, optional, tag = "1")]
    pub(crate) begun: Option<Begun>,
    #[prost(message, optional, tag = "2")]
    pub(crate) chunk: Option<Chunk>,
    #[prost(message, optional, tag = "3")]
    pub(crate) entries: Option<Entries>,
    #[prost(message, optional, tag = "4")]
    pub(crate) manifest: Option<Manifest>,
    #[prost(string, optional, tag = "6")]
    pub(crate) refused: Option<String>,
}
