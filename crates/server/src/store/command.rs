//! What is done in the order of all writes, and what it answers; as messages, so that a replica can
//! send them to the master.

use bytes::Bytes;
use prost::{Message, Oneof};

use crate::error::Error;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, PutRequest, PutResponse, ResponseHeader, TxnRequest, TxnResponse,
};

/// A write, or a question that only the master can answer.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Command {
    #[prost(message, tag = "1")]
    Put(PutRequest),
    #[prost(message, tag = "2")]
    DeleteRange(DeleteRangeRequest),
    #[prost(message, tag = "3")]
    Txn(TxnRequest),
    #[prost(message, tag = "4")]
    Compact(CompactionRequest),
    #[prost(message, tag = "5")]
    Grant(LeaseGrantRequest),
    #[prost(int64, tag = "6")]
    Revoke(i64),
    #[prost(int64, tag = "7")]
    KeepAlive(i64),
    #[prost(message, tag = "8")]
    Auth(AuthMessage),
    /// Answered from the master's memory, without the keys.
    #[prost(int64, tag = "9")]
    TimeToLive(i64),
    /// Ends a lease whose time has passed, if it still has. Of the master alone.
    #[prost(int64, tag = "10")]
    Expire(i64),
    /// Does nothing but to make this store the owner. Of the master alone.
    #[prost(message, tag = "11")]
    Own(()),
}

impl Command {
    /// Whether doing it twice is as good as once.
    pub(super) fn may_be_repeated(&self) -> bool {
        matches!(self, Self::KeepAlive(_) | Self::TimeToLive(_))
    }

    /// Whether another node may send it.
    pub(super) fn is_of_clients(&self) -> bool {
        !matches!(self, Self::Expire(_) | Self::Own(()))
    }
}

/// The rows of a [`super::AuthChange`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthMessage {
    #[prost(message, repeated, tag = "1")]
    pub(super) expect: Vec<AuthRow>,
    #[prost(message, repeated, tag = "2")]
    pub(super) set: Vec<AuthRow>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthRow {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) value: Option<Bytes>,
}

/// What a command answers.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Answer {
    #[prost(message, tag = "1")]
    Put(PutResponse),
    #[prost(message, tag = "2")]
    DeleteRange(DeleteRangeResponse),
    #[prost(message, tag = "3")]
    Txn(TxnResponse),
    #[prost(message, tag = "4")]
    Compact(CompactionResponse),
    #[prost(message, tag = "5")]
    Grant(LeaseGrantResponse),
    #[prost(message, tag = "6")]
    Revoke(LeaseRevokeResponse),
    #[prost(message, tag = "7")]
    KeepAlive(LeaseKeepAliveResponse),
    /// Whether it was done.
    #[prost(bool, tag = "8")]
    Auth(bool),
    #[prost(message, tag = "9")]
    TimeToLive(LeaseTimeToLiveResponse),
    #[prost(message, tag = "10")]
    Nothing(()),
}

impl Answer {
    /// Where the header of the answer is.
    pub(super) fn header(&mut self) -> Option<&mut Option<ResponseHeader>> {
        match self {
            Self::Put(answer) => Some(&mut answer.header),
            Self::DeleteRange(answer) => Some(&mut answer.header),
            Self::Txn(answer) => Some(&mut answer.header),
            Self::Compact(answer) => Some(&mut answer.header),
            Self::Grant(answer) => Some(&mut answer.header),
            Self::Revoke(answer) => Some(&mut answer.header),
            Self::KeepAlive(answer) => Some(&mut answer.header),
            Self::TimeToLive(answer) => Some(&mut answer.header),
            Self::Auth(_) | Self::Nothing(()) => None,
        }
    }
}

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client is told.
    Told(Error),
    /// It certainly did not happen, and may be tried again, on another node too.
    Again,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

/// A command on its way to the master.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CommandMessage {
    #[prost(oneof = "Command", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub(super) command: Option<Command>,
}

/// Its answer, or why there is none.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AnswerMessage {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub(super) answer: Option<Answer>,
    /// The text of an error.
    #[prost(string, tag = "20")]
    pub(super) error: String,
    /// [`Refusal::Again`].
    #[prost(bool, tag = "21")]
    pub(super) is_again: bool,
}

impl From<Result<Answer, Refusal>> for AnswerMessage {
    fn from(answer: Result<Answer, Refusal>) -> Self {
        let mut message = Self::default();
        match answer {
            Ok(answer) => message.answer = Some(answer),
            Err(Refusal::Told(error)) => message.error = error.to_string(),
            Err(Refusal::Again) => message.is_again = true,
        }
        message
    }
}

impl AnswerMessage {
    /// What the master said. An error that this version does not know, and no answer at all, leave
    /// the outcome unknown.
    pub(super) fn into_result(self) -> Result<Answer, Refusal> {
        if self.is_again {
            return Err(Refusal::Again);
        }
        let known = || {
            Error::ALL
                .iter()
                .find(|error| error.to_string() == self.error)
        };
        let error = || known().copied().unwrap_or(Error::OutcomeUnknown);
        self.answer.ok_or_else(|| Refusal::Told(error()))
    }
}
