//! RESTORE: a node that needs a copy of the state asks, a peer answers: one question, one answer.
//!
//! What the questions mean, and why the answers make a whole, is in `state_copy/`.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::engine::RowDigest;
use crate::feed::messages::RowMessage;
use crate::group::LogIdRecord;
use crate::state_copy::source::Source;
use crate::wire::hello::{DialError, Session};
use crate::wire::messages::{EntryMessage, Kind, WireError, decode, encode};

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RestoreRequest {
    #[prost(oneof = "RestoreCall", tags = "1, 2, 3, 4")]
    pub(crate) call: Option<RestoreCall>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum RestoreCall {
    #[prost(message, tag = "1")]
    Begin(BeginMessage),
    #[prost(message, tag = "2")]
    Chunk(PlaceMessage),
    #[prost(message, tag = "3")]
    Entries(NextMessage),
    #[prost(message, tag = "4")]
    Finish(FinishMessage),
}

/// The first question.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct BeginMessage {
    /// The source must have applied this entry.
    #[prost(message, optional, tag = "1")]
    pub(crate) entry: Option<LogIdRecord>,
    /// The entry that a partial copy needs next.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) next: Option<u64>,
    /// The source must have applied this transaction: the copy holds it.
    #[prost(uint64, tag = "3")]
    pub(crate) vlsn: u64,
}

/// A place in the state: after a key of a database, or at its beginning.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct PlaceMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) database: u32,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(crate) after: Option<Bytes>,
}

/// Asks for the entries from this one on.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct NextMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) next: u64,
}

/// All rows have been copied, and the log has been followed.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct FinishMessage {
    /// The last transaction that the copy holds.
    #[prost(uint64, tag = "1")]
    pub(crate) vlsn: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RestoreReply {
    #[prost(oneof = "RestoreAnswer", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(crate) answer: Option<RestoreAnswer>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum RestoreAnswer {
    #[prost(message, tag = "1")]
    Begun(BegunMessage),
    #[prost(message, tag = "2")]
    Chunk(ChunkMessage),
    #[prost(message, tag = "3")]
    Entries(EntriesMessage),
    #[prost(message, tag = "4")]
    Manifest(ManifestMessage),
    /// Ask again: the source has reached its rate limit.
    #[prost(bool, tag = "5")]
    Wait(bool),
    /// Why the source cannot serve the copy.
    #[prost(string, tag = "6")]
    Refused(String),
    /// The source has not applied everything that the caller's partial copy holds.
    #[prost(bool, tag = "7")]
    Behind(bool),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct BegunMessage {
    /// Whether the caller gets the data: an arbiter does not.
    #[prost(bool, tag = "1")]
    pub(crate) has_data: bool,
    /// Whether the partial copy can be resumed.
    #[prost(bool, tag = "2")]
    pub(crate) goes_on: bool,
    /// Where a new copy begins: the entry after which its log continues.
    #[prost(message, optional, tag = "3")]
    pub(crate) entry: Option<LogIdRecord>,
    /// The last transaction up to there.
    #[prost(uint64, tag = "4")]
    pub(crate) vlsn: u64,
    /// The membership at that entry, see `MembershipRecord`.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) membership: Bytes,
    /// The approximate size of the state.
    #[prost(uint64, tag = "6")]
    pub(crate) bytes_total: u64,
}

/// Everything between the requested place and `rest`, as of one transaction.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ChunkMessage {
    #[prost(message, repeated, tag = "1")]
    pub(crate) rows: Vec<RowMessage>,
    #[prost(uint64, tag = "2")]
    pub(crate) vlsn: u64,
    /// The sum of the rows' hashes, see `engine/row_digest.rs`; 16 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) digest: Bytes,
    /// Where to continue; absent at the end of the state.
    #[prost(message, optional, tag = "4")]
    pub(crate) rest: Option<PlaceMessage>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct EntriesMessage {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<EntryMessage>,
    /// Whether the source has applied no more than these.
    #[prost(bool, tag = "2")]
    pub(crate) is_all: bool,
}

/// What all chunks on this connection contained, and what the whole must amount to.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ManifestMessage {
    #[prost(message, optional, tag = "3")]
    pub(crate) sent: Option<RowsMessage>,
    /// Absent for an arbiter.
    #[prost(message, optional, tag = "4")]
    pub(crate) state: Option<StateMessage>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RowsMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) rows: u64,
    /// The sum of their hashes; 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) digest: Bytes,
}

impl RowsMessage {
    pub(crate) fn of(digest: RowDigest) -> Self {
        Self {
            rows: digest.rows,
            digest: digest.to_bytes(),
        }
    }

    pub(crate) fn digest(&self) -> Option<RowDigest> {
        RowDigest::from_parts(self.rows, &self.digest)
    }
}

/// What the log has produced in all named databases.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StateMessage {
    /// As of this transaction, which ends an entry of the log.
    #[prost(uint64, tag = "1")]
    pub(crate) vlsn: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) rows: Option<RowsMessage>,
}

/// The asking side of one connection.
pub(crate) struct RestoreClient {
    session: Session,
    timeout: Duration,
}

impl RestoreClient {
    /// An answer may take `timeout`.
    pub(crate) fn new(session: Session, timeout: Duration) -> Self {
        Self { session, timeout }
    }

    /// # Errors
    /// See [`DialError`].
    pub(crate) async fn call(&mut self, call: RestoreCall) -> Result<RestoreAnswer, DialError> {
        loop {
            let request = RestoreRequest {
                call: Some(call.clone()),
            };
            let frame = encode(Kind::RestoreRequest, &request);
            self.session.sender.send(frame).await?;
            let receiver = &mut self.session.receiver;
            let frame = receiver.receive_unless_silent(self.timeout).await?;
            let reply: RestoreReply = decode(Kind::RestoreReply, frame.ok_or(DialError::Closed)?)?;
            match reply.answer.ok_or(WireError::Missing("an answer"))? {
                RestoreAnswer::Wait(_) => {}
                answer => return Ok(answer),
            }
        }
    }
}

/// Answers questions until the caller closes.
///
/// # Errors
/// When the caller sends nonsense, disconnects, or takes nothing of an answer for long.
pub(crate) async fn serve(mut session: Session, source: &mut Source) -> Result<(), DialError> {
    while let Some(frame) = session.receiver.receive().await? {
        let request: RestoreRequest = decode(Kind::RestoreRequest, frame)?;
        let call = request.call.ok_or(WireError::Missing("a question"))?;
        let reply = RestoreReply {
            answer: Some(source.answer(call).await),
        };
        session
            .sender
            .send(encode(Kind::RestoreReply, &reply))
            .await?;
    }
    Ok(())
}
