//! The messages of SUBSCRIPTION.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::error::FeedError;
use crate::feed::{Change, CommittedTransaction, FeedEvent, Filter, StartAt, SubscribeOptions};
use crate::ids::{GroupUuid, Term, Vlsn};
use crate::limits::SUBSCRIPTION_FILTERS_MAX;
use crate::recent::millis;
use crate::token::CommitToken;
use crate::wire::messages::WireError;

/// The client's one request.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct SubscribeMessage {
    #[prost(string, tag = "1")]
    pub(crate) group_name: String,
    /// UUID of the group, 16 bytes; empty when the client does not know it yet.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) group: Bytes,
    #[prost(oneof = "BeginMessage", tags = "3, 4, 5")]
    pub(crate) begin: Option<BeginMessage>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) filter: Vec<PrefixMessage>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum BeginMessage {
    #[prost(bool, tag = "3")]
    Now(bool),
    #[prost(bool, tag = "4")]
    Start(bool),
    #[prost(message, tag = "5")]
    Token(TokenMessage),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct PrefixMessage {
    #[prost(string, tag = "1")]
    pub(crate) database: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) prefix: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TokenMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) group: Bytes,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) vlsn: u64,
}

/// What the node sends, until one side ends.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct FeedMessage {
    #[prost(oneof = "FeedItem", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(crate) item: Option<FeedItem>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum FeedItem {
    /// The subscription has begun.
    #[prost(message, tag = "1")]
    Begun(StandingMessage),
    #[prost(message, tag = "2")]
    State(StateMessage),
    #[prost(message, tag = "3")]
    StateComplete(StateCompleteMessage),
    #[prost(message, tag = "4")]
    Transaction(TransactionMessage),
    #[prost(message, tag = "5")]
    Progress(TokenMessage),
    /// The node is idle.
    #[prost(message, tag = "6")]
    Standing(StandingMessage),
    /// Nothing more will come.
    #[prost(message, tag = "7")]
    Ended(EndedMessage),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StandingMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) group: Bytes,
    /// The current resume position, if known.
    #[prost(message, optional, tag = "2")]
    pub(crate) token: Option<TokenMessage>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StateMessage {
    #[prost(string, tag = "1")]
    pub(crate) database: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) rows: Vec<StateRowMessage>,
}

/// A [`TokenMessage`], plus the digest of the state.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StateCompleteMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) group: Bytes,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) vlsn: u64,
    /// 16 bytes, little-endian; empty if the node does not know it.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) digest: Bytes,
}

impl StateCompleteMessage {
    fn new(token: CommitToken, digest: Option<u128>) -> Self {
        let TokenMessage { group, term, vlsn } = token.into();
        let digest = digest.map(|digest| Bytes::copy_from_slice(&digest.to_le_bytes()));
        Self {
            group,
            term,
            vlsn,
            digest: digest.unwrap_or_default(),
        }
    }

    fn into_event(self) -> Result<FeedEvent, WireError> {
        let digest = match &self.digest[..] {
            [] => None,
            bytes => {
                let bytes = bytes.try_into().map_err(|_| WireError::Invalid("digest"))?;
                Some(u128::from_le_bytes(bytes))
            }
        };
        let Self {
            group, term, vlsn, ..
        } = self;
        let token = TokenMessage { group, term, vlsn }.try_into()?;
        Ok(FeedEvent::StateComplete { token, digest })
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RowMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// A [`RowMessage`], plus its time to live.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StateRowMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
    /// How long the key has still to live, in milliseconds; absent without a time to live.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) left_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TransactionMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) token: Option<TokenMessage>,
    #[prost(uint64, tag = "2")]
    pub(crate) committed_at_ms: u64,
    /// The database names, which the changes refer to by index: repeating the name in each change
    /// could take more space than everything else.
    #[prost(string, repeated, tag = "3")]
    pub(crate) databases: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) changes: Vec<ChangeMessage>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ChangeMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) database: u32,
    /// 0 put, 1 delete, 2 created, 3 dropped, 4 expired.
    #[prost(uint32, tag = "2")]
    pub(crate) kind: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) value: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct EndedMessage {
    #[prost(enumeration = "EndReason", tag = "1")]
    pub(crate) reason: i32,
    /// The message for people.
    #[prost(string, tag = "2")]
    pub(crate) text: String,
    /// The oldest VLSN, the term of the committed transaction, or the limit.
    #[prost(uint64, tag = "3")]
    pub(crate) number: u64,
    /// The token that was never committed.
    #[prost(message, optional, tag = "4")]
    pub(crate) token: Option<TokenMessage>,
}

/// Why a node ends a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum EndReason {
    /// This node cannot serve; another may.
    Unavailable = 0,
    HistoryGone = 1,
    WrongGroup = 2,
    NotCommitted = 3,
    Filter = 4,
    SnapshotTooOld = 5,
    TooMany = 6,
}

impl From<CommitToken> for TokenMessage {
    fn from(token: CommitToken) -> Self {
        Self {
            group: token.group.to_bytes(),
            term: token.term.0,
            vlsn: token.vlsn.0,
        }
    }
}

impl TryFrom<TokenMessage> for CommitToken {
    type Error = WireError;

    fn try_from(message: TokenMessage) -> Result<Self, WireError> {
        let group = GroupUuid::from_bytes(&message.group);
        if message.vlsn == u64::MAX {
            return Err(WireError::Invalid("VLSN"));
        }
        Ok(Self {
            group: group.map_err(|_| WireError::Invalid("group"))?,
            term: Term(message.term),
            vlsn: Vlsn(message.vlsn),
        })
    }
}

impl SubscribeMessage {
    pub(crate) fn new(
        name: &str,
        group: Option<GroupUuid>,
        begin: StartAt,
        filter: &Filter,
    ) -> Self {
        let prefix = |(database, prefix): (&str, &Bytes)| PrefixMessage {
            database: database.to_owned(),
            prefix: prefix.clone(),
        };
        Self {
            group_name: name.to_owned(),
            group: group.map(GroupUuid::to_bytes).unwrap_or_default(),
            begin: Some(match begin {
                StartAt::Now => BeginMessage::Now(true),
                StartAt::Start => BeginMessage::Start(true),
                StartAt::Token(token) => BeginMessage::Token(token.into()),
            }),
            filter: filter.iter().map(prefix).collect(),
        }
    }
}

impl TryFrom<SubscribeMessage> for SubscribeOptions {
    type Error = WireError;

    fn try_from(message: SubscribeMessage) -> Result<Self, WireError> {
        // Each is compared with all the others before the whole filter can be checked.
        if message.filter.len() > SUBSCRIPTION_FILTERS_MAX {
            return Err(WireError::Invalid("number of prefixes"));
        }
        let begin = match message.begin.ok_or(WireError::Missing("a beginning"))? {
            BeginMessage::Now(_) => StartAt::Now,
            BeginMessage::Start(_) => StartAt::Start,
            BeginMessage::Token(token) => StartAt::Token(token.try_into()?),
        };
        let options = Self::new(begin);
        let filter = message.filter.into_iter();
        Ok(filter.fold(options, |options, wanted| {
            options.prefix(wanted.database, wanted.prefix)
        }))
    }
}

impl From<FeedEvent> for FeedItem {
    fn from(event: FeedEvent) -> Self {
        match event {
            FeedEvent::State {
                database,
                rows,
                expiring,
            } => {
                let row = |(key, value)| StateRowMessage {
                    key,
                    value,
                    left_ms: None,
                };
                let mut rows: Vec<_> = rows.into_iter().map(row).collect();
                for (index, left) in expiring {
                    rows[index].left_ms = Some(millis(left));
                }
                Self::State(StateMessage {
                    database: database.to_string(),
                    rows,
                })
            }
            FeedEvent::StateComplete { token, digest } => {
                Self::StateComplete(StateCompleteMessage::new(token, digest))
            }
            FeedEvent::Transaction(transaction) => Self::Transaction(transaction.into()),
            FeedEvent::Progress { token } => Self::Progress(token.into()),
        }
    }
}

impl From<CommittedTransaction> for TransactionMessage {
    fn from(transaction: CommittedTransaction) -> Self {
        let mut indices: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        let mut databases = Vec::new();
        let mut index = |name: Arc<str>| {
            let next = u32::try_from(indices.len()).expect("names are fewer than changes");
            *indices.entry(name).or_insert_with_key(|name| {
                databases.push(name.to_string());
                next
            })
        };
        let changes = transaction.changes.into_iter().map(|change| {
            let (database, kind, key, value) = match change {
                Change::Put {
                    database,
                    key,
                    value,
                } => (database, 0, key, value),
                Change::Delete { database, key } => (database, 1, key, Bytes::new()),
                Change::Created { database } => (database, 2, Bytes::new(), Bytes::new()),
                Change::Dropped { database } => (database, 3, Bytes::new(), Bytes::new()),
                Change::Expired { database, key } => (database, 4, key, Bytes::new()),
            };
            ChangeMessage {
                database: index(database),
                kind,
                key,
                value,
            }
        });
        let changes = changes.collect();
        Self {
            token: Some(transaction.token.into()),
            committed_at_ms: transaction.committed_at_ms,
            databases,
            changes,
        }
    }
}

impl TryFrom<TransactionMessage> for CommittedTransaction {
    type Error = WireError;

    fn try_from(message: TransactionMessage) -> Result<Self, WireError> {
        let names = message.databases.into_iter().map(Arc::from);
        let names: Vec<Arc<str>> = names.collect();
        let change = |change: ChangeMessage| {
            let index = usize::try_from(change.database).ok();
            let name = index.and_then(|index| names.get(index));
            let database = Arc::clone(name.ok_or(WireError::Invalid("database"))?);
            let (key, value) = (change.key, change.value);
            Ok(match change.kind {
                0 => Change::Put {
                    database,
                    key,
                    value,
                },
                1 => Change::Delete { database, key },
                2 => Change::Created { database },
                3 => Change::Dropped { database },
                4 => Change::Expired { database, key },
                _ => return Err(WireError::Invalid("kind of change")),
            })
        };
        let token = message.token.ok_or(WireError::Missing("a token"))?;
        Ok(Self {
            token: token.try_into()?,
            committed_at_ms: message.committed_at_ms,
            changes: message
                .changes
                .into_iter()
                .map(change)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&FeedError> for EndedMessage {
    fn from(error: &FeedError) -> Self {
        let (reason, number, token) = match error {
            FeedError::HistoryGone { oldest } => (EndReason::HistoryGone, oldest.0, None),
            FeedError::WrongGroup { .. } => (EndReason::WrongGroup, 0, None),
            FeedError::NotCommitted { token, committed } => {
                (EndReason::NotCommitted, committed.0, Some((*token).into()))
            }
            FeedError::Filter { .. } => (EndReason::Filter, 0, None),
            FeedError::SnapshotTooOld => (EndReason::SnapshotTooOld, 0, None),
            FeedError::TooMany { max } => (EndReason::TooMany, *max as u64, None),
            _ => (EndReason::Unavailable, 0, None),
        };
        let text = match error {
            FeedError::WrongGroup { reason } | FeedError::Filter { reason } => reason.clone(),
            error => error.to_string(),
        };
        Self {
            reason: reason.into(),
            text,
            number,
            token,
        }
    }
}

impl TryFrom<EndedMessage> for FeedError {
    type Error = WireError;

    fn try_from(message: EndedMessage) -> Result<Self, WireError> {
        let reason = message.text.clone();
        Ok(match message.reason() {
            EndReason::Unavailable => Self::Stopped { reason },
            EndReason::HistoryGone => Self::HistoryGone {
                oldest: Vlsn(message.number),
            },
            EndReason::WrongGroup => Self::WrongGroup { reason },
            EndReason::NotCommitted => Self::NotCommitted {
                token: message
                    .token
                    .ok_or(WireError::Missing("a token"))?
                    .try_into()?,
                committed: Term(message.number),
            },
            EndReason::Filter => Self::Filter { reason },
            EndReason::SnapshotTooOld => Self::SnapshotTooOld,
            EndReason::TooMany => Self::TooMany {
                max: usize::try_from(message.number).unwrap_or(usize::MAX),
            },
        })
    }
}

/// A message as the client interprets it.
#[derive(Debug)]
pub(crate) enum Received {
    /// Nothing to deliver; the group, and the current position, if known.
    Standing(GroupUuid, Option<CommitToken>),
    Event(FeedEvent),
    Ended(FeedError),
}

impl TryFrom<FeedMessage> for Received {
    type Error = WireError;

    fn try_from(message: FeedMessage) -> Result<Self, WireError> {
        let item = message.item.ok_or(WireError::Missing("an item"))?;
        Ok(match item {
            FeedItem::Begun(standing) | FeedItem::Standing(standing) => {
                let group = GroupUuid::from_bytes(&standing.group);
                let group = group.map_err(|_| WireError::Invalid("group"))?;
                let token = standing.token.map(CommitToken::try_from).transpose()?;
                Self::Standing(group, token)
            }
            FeedItem::State(state) => {
                let left = |(index, row): (usize, &StateRowMessage)| {
                    Some((index, Duration::from_millis(row.left_ms?)))
                };
                let expiring = state.rows.iter().enumerate().filter_map(left).collect();
                let rows = state.rows.into_iter().map(|row| (row.key, row.value));
                Self::Event(FeedEvent::State {
                    database: state.database.into(),
                    rows: rows.collect(),
                    expiring,
                })
            }
            FeedItem::StateComplete(complete) => Self::Event(complete.into_event()?),
            FeedItem::Transaction(transaction) => {
                Self::Event(FeedEvent::Transaction(transaction.try_into()?))
            }
            FeedItem::Progress(token) => Self::Event(FeedEvent::Progress {
                token: token.try_into()?,
            }),
            FeedItem::Ended(ended) => Self::Ended(ended.try_into()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(vlsn: u64) -> CommitToken {
        CommitToken {
            group: GroupUuid(uuid::Uuid::from_u128(7)),
            term: Term(3),
            vlsn: Vlsn(vlsn),
        }
    }

    fn back(event: FeedEvent) -> FeedEvent {
        let message = FeedMessage {
            item: Some(event.into()),
        };
        let bytes = Bytes::from(message.encode_to_vec());
        let message = FeedMessage::decode(bytes).expect("a message");
        match Received::try_from(message).expect("well-formed") {
            Received::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_transaction_comes_back_as_it_was_sent() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let changes = vec![
            Change::Created {
                database: b.clone(),
            },
            Change::Dropped {
                database: a.clone(),
            },
            Change::Put {
                database: b,
                key: "k".into(),
                value: Bytes::new(),
            },
            Change::Delete {
                database: a.clone(),
                key: "k".into(),
            },
            Change::Expired {
                database: a,
                key: "l".into(),
            },
        ];
        let event = FeedEvent::Transaction(CommittedTransaction {
            token: token(9),
            committed_at_ms: 5,
            changes,
        });
        assert_eq!(back(event.clone()), event);
    }

    #[test]
    fn a_request_with_more_prefixes_than_may_be_is_refused() {
        let asked = |count| {
            let filter = vec![PrefixMessage::default(); count];
            SubscribeOptions::try_from(SubscribeMessage {
                begin: Some(BeginMessage::Now(true)),
                filter,
                ..SubscribeMessage::default()
            })
        };
        assert!(asked(SUBSCRIPTION_FILTERS_MAX).is_ok());
        let refused = asked(SUBSCRIPTION_FILTERS_MAX + 1);
        assert!(matches!(refused, Err(WireError::Invalid(_))));
    }

    #[test]
    fn a_change_of_a_database_that_is_not_listed_is_refused() {
        let message = TransactionMessage {
            token: Some(token(9).into()),
            changes: vec![ChangeMessage {
                database: 1,
                ..ChangeMessage::default()
            }],
            databases: vec!["a".into()],
            committed_at_ms: 0,
        };
        assert!(CommittedTransaction::try_from(message).is_err());
    }
}
