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

use crate::group::{Impossible, LogIdRecord, MemberRecord, check_headroom};
use crate::ids::{NodeId, Term};
use crate::log::{self, EntryKind, LogId};
use crate::wire::comparison::{CheckReply, Diverged, DivergenceMessage, RangeReply, RangeRequest};

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
}

/// Why a frame from a peer was rejected. The connection is closed; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("frame of {0} bytes has no room for its envelope")]
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

/// Asks for [`NodeStateMessage`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct NodeStateRequest {
    /// Also compute the digest of the node's visible state.
    #[prost(bool, tag = "1")]
    pub(crate) digest: bool,
    /// Also compute the digest of a range of keys.
    #[prost(message, optional, tag = "2")]
    pub(crate) range: Option<RangeRequest>,
    /// Also read all files and verify their checksums.
    #[prost(bool, tag = "3")]
    pub(crate) check: bool,
    /// Also add up the sizes of the engine's files.
    #[prost(bool, tag = "4")]
    pub(crate) size: bool,
}

/// What a node reports about itself, even while it has no master or belongs to no group yet.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NodeStateMessage {
    #[prost(string, tag = "1")]
    pub(crate) group_name: String,
    /// UUID of the group, 16 bytes; empty while the node has none.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) group: Bytes,
    /// The node itself.
    #[prost(message, optional, tag = "3")]
    pub(crate) node: Option<MemberRecord>,
    /// While the node belongs to no group: a digest of the member list that it expects.
    #[prost(fixed64, tag = "4")]
    pub(crate) expects: u64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) members: Vec<MemberRecord>,
    #[prost(string, tag = "6")]
    pub(crate) role: String,
    #[prost(uint64, tag = "7")]
    pub(crate) term: u64,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) master: Option<u64>,
    #[prost(uint64, tag = "9")]
    pub(crate) vlsn: u64,
    #[prost(message, optional, tag = "10")]
    pub(crate) persisted: Option<LogIdRecord>,
    #[prost(message, optional, tag = "11")]
    pub(crate) applied: Option<LogIdRecord>,
    /// On the master: how far each replica has persisted the log, and when it was last heard.
    #[prost(message, repeated, tag = "12")]
    pub(crate) replicas: Vec<ReplicaProgress>,
    #[prost(uint64, tag = "13")]
    pub(crate) disk_free_bytes: u64,
    #[prost(uint64, tag = "14")]
    pub(crate) disk_total_bytes: u64,
    #[prost(string, tag = "15")]
    pub(crate) version: String,
    /// Digest of everything visible, as of `vlsn`, if requested.
    #[prost(string, tag = "16")]
    pub(crate) digest: String,
    #[prost(uint64, tag = "17")]
    pub(crate) window_bytes: u64,
    /// What the node is waiting for, in words; empty when it is ready.
    #[prost(string, tag = "18")]
    pub(crate) waiting_for: String,
    /// The members that currently vote.
    #[prost(uint64, repeated, tag = "20")]
    pub(crate) voters: Vec<u64>,
    /// 0 means the first.
    #[prost(uint64, tag = "19")]
    pub(crate) epoch: u64,
    /// Why the node takes no writes from users, in words; empty when it does.
    #[prost(string, tag = "21")]
    pub(crate) read_only: String,
    /// Whether free space on the volume is below the configured warning threshold.
    #[prost(bool, tag = "22")]
    pub(crate) disk_is_low: bool,
    /// The digest of a range, if requested.
    #[prost(message, optional, tag = "23")]
    pub(crate) range: Option<RangeReply>,
    /// The result of the check of all files, if requested.
    #[prost(message, optional, tag = "24")]
    pub(crate) check: Option<CheckReply>,
    /// Why the node's own data is known to be wrong; empty if it is not.
    #[prost(string, tag = "25")]
    pub(crate) damage: String,
    /// On the master: the findings of the last comparison of all nodes.
    #[prost(message, repeated, tag = "26")]
    pub(crate) divergences: Vec<DivergenceMessage>,
    /// 99th percentile of the durations of the last log syncs, in microseconds.
    #[prost(uint64, optional, tag = "27")]
    pub(crate) sync_p99_us: Option<u64>,
    /// The node's clock, in milliseconds since 1970.
    #[prost(uint64, tag = "28")]
    pub(crate) clock_ms: u64,
    /// Bytes of the engine's files, if requested.
    #[prost(uint64, optional, tag = "29")]
    pub(crate) data_bytes: Option<u64>,
    /// The node has counted all rows and found them correct up to here since opening its engine.
    #[prost(uint64, optional, tag = "30")]
    pub(crate) checked: Option<u64>,
    /// Rows that the node put right from its log when it opened its engine.
    #[prost(uint64, tag = "31")]
    pub(crate) put_right: u64,
    /// Whether the node's engine is wrong and its log cannot put it right.
    #[prost(bool, tag = "32")]
    pub(crate) needs_state: bool,
    /// File descriptors that the process has left, and its limit.
    #[prost(uint64, optional, tag = "33")]
    pub(crate) descriptors_left: Option<u64>,
    #[prost(uint64, optional, tag = "34")]
    pub(crate) descriptors_max: Option<u64>,
    /// Whether hardly more are left than the node keeps from strangers.
    #[prost(bool, tag = "35")]
    pub(crate) descriptors_are_few: bool,
    /// Set while the node copies the state of a peer.
    #[prost(message, optional, tag = "40")]
    pub(crate) restore: Option<RestoreProgressMessage>,
    /// Number of nodes to which this one sends its state.
    #[prost(uint32, tag = "41")]
    pub(crate) copies: u32,
    /// How long the disk of the log, or of the engine, has not finished its work, in milliseconds;
    /// absent while both work.
    #[prost(uint64, optional, tag = "42")]
    pub(crate) disk_hangs_ms: Option<u64>,
    /// On a node that is not master: how long ago it last heard one, in milliseconds; absent if it
    /// has not since its start.
    #[prost(uint64, optional, tag = "43")]
    pub(crate) master_heard_ms_ago: Option<u64>,
}

/// Progress of a copy of the state.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct RestoreProgressMessage {
    /// The source node; 0 while there is none.
    #[prost(uint64, tag = "1")]
    pub(crate) source: u64,
    /// Bytes of keys and values so far.
    #[prost(uint64, tag = "2")]
    pub(crate) bytes: u64,
    /// The source's estimate; 0 while there is none.
    #[prost(uint64, tag = "3")]
    pub(crate) bytes_total: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) bytes_per_s: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct ReplicaProgress {
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) persisted: Option<LogIdRecord>,
    /// Absent if it was never heard in this term.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) heard_ms_ago: Option<u64>,
    /// Median round-trip time of the last heartbeats, in microseconds.
    #[prost(uint64, optional, tag = "4")]
    pub(crate) round_trip_p50_us: Option<u64>,
    /// Age of the first entry that it lacks, in milliseconds; absent if older than is remembered.
    /// Below, the bytes that it lacks, as far as remembered.
    #[prost(uint64, optional, tag = "5")]
    pub(crate) behind_ms: Option<u64>,
    #[prost(uint64, tag = "6")]
    pub(crate) behind_bytes: u64,
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
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_in_a_frame_is_refused() {
        let message = LogIdRecord {
            term: 3,
            position: 77,
        };
        let frame = encode(Kind::Append, &message);
        let read: LogIdRecord = decode(Kind::Append, frame.clone()).unwrap();
        assert_eq!(read, message);
        for bit in 0..frame.len() * 8 {
            let mut flipped = BytesMut::from(&frame[..]);
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                decode::<LogIdRecord>(Kind::Append, flipped.freeze()).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_frame_of_another_kind_is_refused() {
        let frame = encode(Kind::Append, &BarrierRequest {});
        assert!(matches!(
            decode::<BarrierRequest>(Kind::Hello, frame),
            Err(WireError::Kind {
                expected: Kind::Hello,
                found: 3
            })
        ));
    }

    #[test]
    fn terms_and_positions_near_the_end_of_their_range_are_refused() {
        for (term, position) in [(u64::MAX, 0), (0, u64::MAX), (1 << 63, 1 << 63)] {
            assert!(LogId::try_from(LogIdRecord { term, position }).is_err());
        }
    }
}
