//! The messages on the wire, and the envelope of each frame.
//!
//! ```text
//! frame   | kind: u8 | 0: [u8; 3] | crc32c of kind and body: u32 LE | body (protobuf) |
//! ```
//!
//! The checksum finds errors that TCP's misses. Unknown fields are ignored, so a field can be added
//! while old and new nodes talk to each other; a new meaning needs a new protocol version.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::group::{Impossible, LogIdRecord, check_headroom};
use crate::ids::{NodeId, Term};
use crate::log::{self, EntryKind, LogId};
use crate::plural::plural;
use crate::wire::comparison::Diverged;

/// The protocol versions that this program speaks.
pub(crate) const PROTOCOL_VERSION_MIN: u32 = 1;
pub(crate) const PROTOCOL_VERSION_MAX: u32 = 1;

const CHECKSUM_OFFSET: usize = 4;
const BODY_OFFSET: usize = 8;

/// The content of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    HelloReply = 2,
    Append = 3,
    AppendReply = 4,
    ElectionRequest = 5,
    ElectionReply = 6,
    NodeState = 7,
    NodeStateRequest = 8,
    AdminRequest = 9,
    AdminReply = 10,
    Subscribe = 20,
    Feed = 21,
    GroupView = 22,
    RestoreRequest = 30,
    RestoreReply = 31,
    CallRequest = 40,
    CallReply = 41,
    DataRequest = 42,
    DataReply = 43,
}

/// Why a frame from a peer was rejected. The connection is closed; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("frame of {} {} has no room for its envelope", .0, plural(*.0, "byte", "bytes"))]
    Short(usize),
    #[error("frame of kind {found} where kind {expected:?} was expected")]
    Kind { expected: Kind, found: u8 },
    #[error("frame checksum {found:#010x} does not match its bytes ({computed:#010x})")]
    Checksum { found: u32, computed: u32 },
    #[error("message cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("message lacks {0}")]
    Missing(&'static str),
    #[error("message has an invalid {0}")]
    Invalid(&'static str),
}

impl From<Impossible> for WireError {
    fn from(Impossible(what): Impossible) -> Self {
        Self::Invalid(what)
    }
}

/// Wraps `message` in the envelope.
pub(crate) fn encode(kind: Kind, message: &impl Message) -> Bytes {
    let mut frame = BytesMut::with_capacity(BODY_OFFSET + message.encoded_len());
    frame.put_u32_le(u32::from(kind as u8));
    frame.put_u32_le(0);
    message.encode(&mut frame).expect("the buffer grows");
    let checksum = checksum(&frame);
    frame[CHECKSUM_OFFSET..BODY_OFFSET].copy_from_slice(&checksum.to_le_bytes());
    frame.freeze()
}

/// The message in a frame that must be of `kind`. Byte fields share the frame's memory.
///
/// # Errors
/// See [`WireError`].
pub(crate) fn decode<M: Message + Default>(kind: Kind, mut frame: Bytes) -> Result<M, WireError> {
    if frame.len() < BODY_OFFSET {
        return Err(WireError::Short(frame.len()));
    }
    let stored = frame[CHECKSUM_OFFSET..BODY_OFFSET]
        .try_into()
        .expect("four bytes");
    let (found, computed) = (u32::from_le_bytes(stored), checksum(&frame));
    if found != computed {
        return Err(WireError::Checksum { found, computed });
    }
    if frame[..CHECKSUM_OFFSET] != u32::from(kind as u8).to_le_bytes() {
        return Err(WireError::Kind {
            expected: kind,
            found: frame[0],
        });
    }
    Ok(M::decode(frame.split_off(BODY_OFFSET))?)
}

/// The encoded message in a frame, whether or not its envelope is right; empty if it has none.
pub(crate) fn body(frame: &[u8]) -> &[u8] {
    frame.get(BODY_OFFSET..).unwrap_or_default()
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(
        crc32c::crc32c(&frame[..CHECKSUM_OFFSET]),
        &frame[BODY_OFFSET..],
    )
}

/// First frame from the client on every service.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) version_min: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) version_max: u32,
    /// UUID of the group, 16 bytes; empty from a caller that belongs to none.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) group: Bytes,
    /// 0 from a caller that is not a node.
    #[prost(uint64, tag = "4")]
    pub(crate) sender: u64,
    #[prost(fixed64, tag = "5")]
    pub(crate) sender_incarnation: u64,
    /// The node that the sender wants to reach; 0 for any node.
    #[prost(uint64, tag = "6")]
    pub(crate) receiver: u64,
    /// Name of the service.
    #[prost(string, tag = "7")]
    pub(crate) purpose: String,
    /// Epoch of the sender's group; 0 means the first.
    #[prost(uint64, tag = "8")]
    pub(crate) epoch: u64,
    /// Earlier lives of the sender's directory.
    #[prost(fixed64, repeated, tag = "9")]
    pub(crate) earlier_incarnations: Vec<u64>,
}

/// Answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct HelloReply {
    /// The version chosen, or 0 when the hello is refused.
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(enumeration = "Refusal", tag = "2")]
    pub(crate) refusal: i32,
    /// A text for people.
    #[prost(string, tag = "3")]
    pub(crate) text: String,
    /// Epoch of the answering node's group.
    #[prost(uint64, tag = "4")]
    pub(crate) epoch: u64,
}

/// Why a hello was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Refusal {
    None = 0,
    WrongGroup = 1,
    WrongNode = 2,
    NotAMember = 3,
    FencedIncarnation = 4,
    NoCommonVersion = 5,
    NotAllowed = 6,
    NotFormed = 7,
    OldEpoch = 8,
    NewerEpoch = 9,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct VoteMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
    #[prost(bool, tag = "3")]
    pub(crate) committed: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct EntryMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) position: u64,
    /// 0 blank, 1 transactions, 2 membership.
    #[prost(uint32, tag = "3")]
    pub(crate) kind: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) payload: Bytes,
}

/// Entries from the master (FEEDER), or a heartbeat without entries (ELECTION).
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Append {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    pub(crate) prev: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    pub(crate) committed: Option<LogIdRecord>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) entries: Vec<EntryMessage>,
    /// In a heartbeat: some member may need the entries after this position.
    #[prost(uint64, optional, tag = "5")]
    pub(crate) needed: Option<u64>,
}

/// Answer to one [`Append`], in the order of the appends. An acknowledgement is sent after the
/// entries are on disk.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct AppendReply {
    #[prost(oneof = "AppendResult", tags = "1, 2, 3, 4")]
    pub(crate) result: Option<AppendResult>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Oneof)]
pub(crate) enum AppendResult {
    /// The log matches the master's up to here, durably.
    #[prost(message, tag = "1")]
    Matched(LogIdRecord),
    /// The log matches at its beginning, before any entry.
    #[prost(bool, tag = "2")]
    MatchedNothing(bool),
    /// The log has another entry, or none, at `prev`.
    #[prost(message, tag = "3")]
    Conflict(LogIdRecord),
    /// The replica knows a newer term.
    #[prost(message, tag = "4")]
    HigherVote(VoteMessage),
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct VoteRequestMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    pub(crate) last: Option<LogIdRecord>,
    /// The candidate was told by the master, or knows from a majority, that no lease is in force.
    #[prost(bool, tag = "3")]
    pub(crate) lease_is_over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct VoteReplyMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteMessage>,
    #[prost(bool, tag = "2")]
    pub(crate) granted: bool,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdRecord>,
}

/// Asks whether the receiver has lost every connection from this master too.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct MasterGone {
    #[prost(uint64, tag = "1")]
    pub(crate) master: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    /// Last entry of the asking node.
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdRecord>,
}

/// Asks the master for a position at or above every acknowledged write.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct BarrierRequest {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct BarrierReply {
    /// Absent when the receiver is not the master, or cannot prove that it is.
    #[prost(uint64, optional, tag = "1")]
    pub(crate) position: Option<u64>,
}

/// The master asks the receiver to stand for election, regardless of the master's lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct TakeOver {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteMessage>,
    /// The master's last entry; the receiver must have it.
    #[prost(message, optional, tag = "2")]
    pub(crate) last: Option<LogIdRecord>,
}

/// The master tells the receiver that it is no longer a member.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Removed {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
}

/// The master tells the receiver that the group is being shut down.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Stop {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
}

/// The master's log begins after this entry, and the receiver ends before it: it needs a copy of the
/// state.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct ReachMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    pub(crate) entry: Option<LogIdRecord>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct ReachedMessage {
    /// The master's, or a newer one that the receiver knows.
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteMessage>,
    /// Whether the receiver has the entry on disk, or the state that resulted from it.
    #[prost(bool, tag = "2")]
    pub(crate) has: bool,
}

/// A request on the ELECTION connection. Answers carry its `id` and may come in any order.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ElectionRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(oneof = "ElectionCall", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub(crate) call: Option<ElectionCall>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum ElectionCall {
    #[prost(message, tag = "2")]
    Vote(VoteRequestMessage),
    #[prost(message, tag = "3")]
    PreVote(VoteRequestMessage),
    #[prost(message, tag = "4")]
    Heartbeat(Append),
    #[prost(message, tag = "5")]
    MasterGone(MasterGone),
    #[prost(message, tag = "6")]
    Barrier(BarrierRequest),
    #[prost(message, tag = "7")]
    TakeOver(TakeOver),
    #[prost(message, tag = "8")]
    Removed(Removed),
    #[prost(message, tag = "9")]
    Diverged(Diverged),
    #[prost(message, tag = "10")]
    Stop(Stop),
    #[prost(message, tag = "11")]
    Reach(ReachMessage),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ElectionReply {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(oneof = "ElectionAnswer", tags = "2, 3, 4, 5, 6")]
    pub(crate) answer: Option<ElectionAnswer>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Oneof)]
pub(crate) enum ElectionAnswer {
    #[prost(message, tag = "2")]
    Vote(VoteReplyMessage),
    #[prost(message, tag = "3")]
    Append(AppendReply),
    /// To [`ElectionCall::MasterGone`]: whether the receiver agrees and would vote for the sender.
    /// To calls like [`ElectionCall::TakeOver`], [`ElectionCall::Removed`]: whether it complies.
    #[prost(bool, tag = "4")]
    Agrees(bool),
    #[prost(message, tag = "5")]
    Barrier(BarrierReply),
    #[prost(message, tag = "6")]
    Reached(ReachedMessage),
}

impl From<log::Vote> for VoteMessage {
    fn from(vote: log::Vote) -> Self {
        Self {
            term: vote.term.0,
            node: vote.node.0,
            committed: vote.committed,
        }
    }
}

impl TryFrom<VoteMessage> for log::Vote {
    type Error = WireError;

    fn try_from(message: VoteMessage) -> Result<Self, WireError> {
        check_headroom(message.term, "term")?;
        let (term, node) = (Term(message.term), NodeId(message.node));
        Ok(Self {
            term,
            node,
            committed: message.committed,
        })
    }
}

impl From<log::Entry> for EntryMessage {
    fn from(entry: log::Entry) -> Self {
        let kind = match entry.kind {
            EntryKind::Blank => 0,
            EntryKind::Transactions => 1,
            EntryKind::Membership => 2,
        };
        let (term, position) = (entry.term.0, entry.position.0);
        Self {
            term,
            position,
            kind,
            payload: entry.payload,
        }
    }
}

impl TryFrom<EntryMessage> for log::Entry {
    type Error = WireError;

    fn try_from(message: EntryMessage) -> Result<Self, WireError> {
        let EntryMessage {
            term,
            position,
            kind,
            payload,
        } = message;
        let kind = match kind {
            0 => EntryKind::Blank,
            1 => EntryKind::Transactions,
            2 => EntryKind::Membership,
            _ => return Err(WireError::Invalid("kind of entry")),
        };
        let LogId { term, position } = LogIdRecord { term, position }.try_into()?;
        Ok(Self {
            term,
            position,
            kind,
            payload,
        })
    }
}

#[cfg(test)]
mod tests;
