//! The messages on the wire, each kind, and what they are converted to.

use std::fmt::Debug;

use bytes::Bytes;
use prost::Message;

use crate::admin::messages::{AdminReply, AdminRequest};
use crate::calls::messages::{CallAnswer, CallReply, CallRequest};
use crate::consensus;
use crate::data::messages::{DataCall, DataReply, DataRequest, writes_in};
use crate::events::service::ViewMessage;
use crate::feed::messages::{FeedItem, FeedMessage, Received, SubscribeMessage};
use crate::feed::{FeedEvent, SubscribeOptions};
use crate::forward::messages::{WriteReply, WriteRequest};
use crate::group::LogIdRecord;
use crate::ids::GroupUuid;
use crate::log::{Entry, LogId, Vote};
use crate::node::status::NodeStatus;
use crate::policy::ConsistencyPolicy;
use crate::state_copy::service::{RestoreAnswer, RestoreReply, RestoreRequest};
use crate::wire::fuzzing::framed;
use crate::wire::messages::{
    Append, AppendReply, AppendResult, ElectionAnswer, ElectionCall, ElectionReply,
    ElectionRequest, Hello, HelloReply, Kind, VoteMessage, WireError, decode, encode,
};
use crate::wire::node_state::{NodeStateMessage, NodeStateRequest};

/// Every kind. The place in the list is the first byte of an input, so the order stays.
pub(super) const KINDS: [Kind; 19] = [
    Kind::Hello,
    Kind::HelloReply,
    Kind::Append,
    Kind::AppendReply,
    Kind::ElectionRequest,
    Kind::ElectionReply,
    Kind::NodeState,
    Kind::NodeStateRequest,
    Kind::AdminRequest,
    Kind::AdminReply,
    Kind::Subscribe,
    Kind::Feed,
    Kind::GroupView,
    Kind::RestoreRequest,
    Kind::RestoreReply,
    Kind::CallRequest,
    Kind::CallReply,
    Kind::DataRequest,
    Kind::DataReply,
];

/// A frame as it comes, whatever its kind: nobody gets past its checksum and its kind by chance.
pub fn envelope(input: &[u8]) {
    let frame = Bytes::copy_from_slice(input);
    for kind in KINDS {
        let decoded = decode::<Hello>(kind, frame.clone());
        let is_of_kind = input.len() >= 8 && input[..4] == [kind as u8, 0, 0, 0];
        assert!(is_of_kind || decoded.is_err());
    }
}

/// A message: its place in the list of kinds, then its body.
pub fn message(input: &[u8]) {
    drop(of_kind(input));
}

/// The kind of a message, once it is decoded and converted.
pub(super) fn of_kind(input: &[u8]) -> Option<Result<Kind, WireError>> {
    let (&place, body) = input.split_first()?;
    let kind = *KINDS.get(usize::from(place))?;
    let read = of(kind, framed(kind, body));
    Some(read.map(|()| kind))
}

fn of(kind: Kind, frame: Bytes) -> Result<(), WireError> {
    match kind {
        Kind::Hello => read::<Hello>(kind, frame).map(drop),
        Kind::HelloReply => read::<HelloReply>(kind, frame).map(drop),
        Kind::Append => read(kind, frame).and_then(|it| append(&it)),
        Kind::AppendReply => read(kind, frame).and_then(append_reply),
        Kind::ElectionRequest => read(kind, frame).and_then(election_request),
        Kind::ElectionReply => read(kind, frame).and_then(|it| election_reply(&it)),
        Kind::NodeState => read(kind, frame).map(node_state),
        Kind::NodeStateRequest => read::<NodeStateRequest>(kind, frame).map(drop),
        Kind::AdminRequest => read::<AdminRequest>(kind, frame).map(drop),
        Kind::AdminReply => read::<AdminReply>(kind, frame).map(drop),
        Kind::Subscribe => read(kind, frame).and_then(subscribe),
        Kind::Feed => read(kind, frame).and_then(feed),
        Kind::GroupView => read::<ViewMessage>(kind, frame).map(drop),
        Kind::RestoreRequest => read::<RestoreRequest>(kind, frame).map(drop),
        Kind::RestoreReply => read(kind, frame).and_then(restore_reply),
        Kind::CallRequest => read(kind, frame).and_then(call_request),
        Kind::CallReply => read(kind, frame).map(call_reply),
        Kind::DataRequest => {
            let writes_max = writes_in(&frame);
            read(kind, frame).and_then(|it| data_request(it, writes_max))
        }
        Kind::DataReply => read::<DataReply>(kind, frame).map(drop),
    }
}

/// The message in a frame, which is the same after being sent and received.
fn read<M: Message + Default + PartialEq + Debug>(
    kind: Kind,
    frame: Bytes,
) -> Result<M, WireError> {
    let message: M = decode(kind, frame)?;
    let sent = encode(kind, &message);
    let received: M = decode(kind, sent.clone()).expect("what is sent is received");
    assert!(received == message, "{received:?} was {message:?}");
    assert_eq!(encode(kind, &received), sent);
    Ok(message)
}

fn data_request(request: DataRequest, writes_max: usize) -> Result<(), WireError> {
    match request.call.ok_or(WireError::Missing("a call"))? {
        DataCall::Get(call) => {
            let freshness = call.freshness.unwrap_or_default();
            ConsistencyPolicy::try_from(freshness).map(drop)
        }
        DataCall::Databases(freshness) => ConsistencyPolicy::try_from(freshness).map(drop),
        DataCall::Write(call) => {
            assert!(call.writes.len() <= writes_max, "{writes_max} were counted");
            Ok(())
        }
    }
}

fn append(append: &Append) -> Result<(), WireError> {
    let entries = append.entries.iter().cloned();
    entries
        .map(Entry::try_from)
        .try_for_each(|it| it.map(drop))?;
    consensus::fuzzing::append(append.clone());
    Ok(())
}

fn append_reply(reply: AppendReply) -> Result<(), WireError> {
    match reply.result.ok_or(WireError::Missing("a result"))? {
        AppendResult::Matched(id) | AppendResult::Conflict(id) => log_id(Some(id)),
        AppendResult::MatchedNothing(_) => Ok(()),
        AppendResult::HigherVote(higher) => vote(Some(higher)),
    }
}

fn election_request(request: ElectionRequest) -> Result<(), WireError> {
    match request.call.ok_or(WireError::Missing("a call"))? {
        ElectionCall::Vote(call) | ElectionCall::PreVote(call) => {
            vote(call.vote)?;
            log_id(call.last)
        }
        ElectionCall::Heartbeat(call) => append(&call),
        ElectionCall::MasterGone(call) => log_id(call.last),
        ElectionCall::TakeOver(call) => {
            vote(call.vote)?;
            log_id(call.last)
        }
        ElectionCall::Reach(call) => {
            vote(call.vote)?;
            log_id(call.entry)
        }
        ElectionCall::Barrier(_)
        | ElectionCall::Removed(_)
        | ElectionCall::Diverged(_)
        | ElectionCall::Stop(_) => Ok(()),
    }
}

fn election_reply(reply: &ElectionReply) -> Result<(), WireError> {
    match reply.answer.ok_or(WireError::Missing("an answer"))? {
        ElectionAnswer::Vote(answer) => {
            vote(answer.vote)?;
            log_id(answer.last)
        }
        ElectionAnswer::Append(answer) => append_reply(answer),
        ElectionAnswer::Reached(answer) => vote(answer.vote),
        ElectionAnswer::Agrees(_) | ElectionAnswer::Barrier(_) => Ok(()),
    }
}

/// The body too, as that of a write: a transaction that the master would commit.
fn call_request(request: CallRequest) -> Result<(), WireError> {
    let Ok(request) = WriteRequest::decode(request.body) else {
        return Ok(());
    };
    let (forwarded, durability, timeout) = request.parts()?;
    let sent = WriteRequest::new(forwarded.clone(), durability, timeout);
    let (again, ..) = sent.parts().expect("what is sent is received");
    assert_same(&again, &forwarded);
    Ok(())
}

/// The body too, as what became of a write.
fn call_reply(reply: CallReply) {
    if let Some(CallAnswer::Done(body)) = reply.answer
        && let Ok(reply) = WriteReply::decode(body)
        && let Some(answer) = reply.answer
        && let Err(error) = answer.into_result(GroupUuid(uuid::Uuid::nil()))
    {
        assert!(!error.to_string().is_empty());
    }
}

/// The report, and what is shown of it.
fn node_state(message: NodeStateMessage) {
    if let Ok(status) = NodeStatus::from_message(message) {
        for divergence in &status.divergences {
            assert!(!divergence.to_string().is_empty());
        }
    }
}

fn subscribe(message: SubscribeMessage) -> Result<(), WireError> {
    SubscribeOptions::try_from(message).map(drop)
}

fn feed(message: FeedMessage) -> Result<(), WireError> {
    if let Received::Event(event) = message.try_into()? {
        let item: FeedItem = event.clone().into();
        let sent = FeedMessage { item: Some(item) };
        let again = Received::try_from(sent).expect("what is sent is received");
        let Received::Event(again) = again else {
            panic!("an event is received as one");
        };
        assert_same::<FeedEvent>(&again, &event);
    }
    Ok(())
}

fn restore_reply(reply: RestoreReply) -> Result<(), WireError> {
    match reply.answer.ok_or(WireError::Missing("an answer"))? {
        RestoreAnswer::Begun(begun) => {
            consensus::fuzzing::membership(&begun.membership);
            log_id(begun.entry)
        }
        RestoreAnswer::Entries(entries) => {
            let mut entries = entries.entries.into_iter().map(Entry::try_from);
            entries.try_for_each(|entry| entry.map(drop))
        }
        RestoreAnswer::Manifest(manifest) => {
            let rows = [manifest.sent, manifest.state.and_then(|state| state.rows)];
            for rows in rows.into_iter().flatten() {
                if let Some(digest) = rows.digest() {
                    assert_eq!((digest.rows, digest.to_bytes()), (rows.rows, rows.digest));
                }
            }
            Ok(())
        }
        RestoreAnswer::Chunk(_)
        | RestoreAnswer::Wait(_)
        | RestoreAnswer::Refused(_)
        | RestoreAnswer::Behind(_) => Ok(()),
    }
}

fn vote(message: Option<VoteMessage>) -> Result<(), WireError> {
    let Some(message) = message else {
        return Ok(());
    };
    let vote = Vote::try_from(message)?;
    assert_eq!(VoteMessage::from(vote), message);
    Ok(())
}

fn log_id(message: Option<LogIdRecord>) -> Result<(), WireError> {
    let Some(message) = message else {
        return Ok(());
    };
    let id = LogId::try_from(message)?;
    assert_eq!(LogIdRecord::from(id), message);
    Ok(())
}

fn assert_same<T: PartialEq + Debug>(one: &T, other: &T) {
    assert_eq!(one, other, "it is received as it was sent");
}
