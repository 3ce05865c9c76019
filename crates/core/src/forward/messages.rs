//! What travels in the requests and answers of WRITES.

use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::engine::KeyRange;
use crate::error::{CounterError, WriteError};
use crate::ids::{DatabaseId, GroupUuid, Term, Vlsn};
use crate::limits::{TRANSACTION_KEYS_MAX, TRANSACTION_READS_MAX};
use crate::policy::{Durability, ReplicaAckPolicy, SyncPolicy};
use crate::token::CommitToken;
use crate::txn::read_set::ReadSet;
use crate::txn::transaction::forwarded::{Forwarded, ForwardedLifetime, ForwardedWrite};
use crate::wire::messages::WireError;

/// Why a write was not committed, where the text of the master is not known here.
const NOT_COMMITTED: &str = "the master did not commit it";

/// The reasons of [`WriteError::NotCommitted`] that a master has.
const REASONS: [&str; 4] = [
    "the master changed",
    "the master changed since the transaction began",
    "no majority confirmed in time that what it read is current",
    "the group is being shut down",
];

/// Asks the master to commit a transaction.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct WriteRequest {
    /// The VLSN of its snapshot.
    #[prost(uint64, tag = "1")]
    pub(crate) at: u64,
    /// 0 none, 1 handed to the system, 2 synced.
    #[prost(uint32, tag = "2")]
    pub(crate) local_sync: u32,
    /// 0 none, 1 a majority, 2 all.
    #[prost(uint32, tag = "3")]
    pub(crate) ack: u32,
    #[prost(uint64, tag = "4")]
    pub(crate) timeout_ms: u64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) keys: Vec<PlaceMessage>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) ranges: Vec<RangeMessage>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) writes: Vec<WriteMessage>,
    /// The database of the rows about times to live, if it looked that up.
    #[prost(uint32, optional, tag = "8")]
    pub(crate) lifetimes: Option<u32>,
}

/// A key that was read.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct PlaceMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) database: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
}

/// A range that was read.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RangeMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) database: u32,
    /// Absent: from the first key on.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(crate) start: Option<Bytes>,
    #[prost(bool, tag = "3")]
    pub(crate) without_start: bool,
    /// Absent: to the last key.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(crate) end: Option<Bytes>,
    #[prost(bool, tag = "5")]
    pub(crate) with_end: bool,
}

/// A write of one key.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct WriteMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) database: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
    /// Absent: a deletion.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) value: Option<Bytes>,
    /// How much it adds to a counter: an `i128`, little-endian.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(crate) addition: Option<Bytes>,
    /// What it does to the key's time to live, in a database in which keys may have one.
    #[prost(message, optional, tag = "5")]
    pub(crate) lifetime: Option<LifetimeMessage>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct LifetimeMessage {
    /// Absent: it ends.
    #[prost(uint64, optional, tag = "1")]
    pub(crate) ttl_ms: Option<u64>,
    /// The deadline that the key had.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) replaced_ms: Option<u64>,
}

/// The number of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct NumberMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) vlsn: u64,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct WriteReply {
    #[prost(oneof = "WriteAnswer", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub(crate) answer: Option<WriteAnswer>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum WriteAnswer {
    /// As asked for.
    #[prost(message, tag = "1")]
    Committed(NumberMessage),
    /// Something that it read has changed, or nobody knows; up to this VLSN.
    #[prost(uint64, tag = "2")]
    Conflict(u64),
    #[prost(message, tag = "3")]
    Unknown(NumberMessage),
    /// Why, in words.
    #[prost(string, tag = "4")]
    NotCommitted(String),
    #[prost(message, tag = "5")]
    InsufficientReplicas(TooFewMessage),
    #[prost(message, tag = "6")]
    InsufficientAcks(AcksMessage),
    #[prost(message, tag = "7")]
    DiskFull(DiskFullMessage),
    /// It has more bytes than the master allows.
    #[prost(message, tag = "8")]
    TooLarge(TooLargeMessage),
    #[prost(message, tag = "9")]
    Counter(CounterMessage),
    /// The node is not the master, or not yet.
    #[prost(bool, tag = "10")]
    NotMaster(bool),
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct TooFewMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) needed: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) available: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct AcksMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) number: Option<NumberMessage>,
    #[prost(uint64, tag = "2")]
    pub(crate) needed: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) acked: u64,
    #[prost(bool, tag = "4")]
    pub(crate) lacks_own_disk: bool,
    #[prost(bool, tag = "5")]
    pub(crate) is_committed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct DiskFullMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) free_bytes: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) limit_bytes: u64,
}

/// Neither: too many keys.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct TooLargeMessage {
    #[prost(uint64, tag = "1")]
    pub(crate) actual: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) max: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct CounterMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    /// Of a value that is no counter: its length.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) bytes: Option<u64>,
    /// Of one that would overflow: what it is at.
    #[prost(sint64, tag = "3")]
    pub(crate) value: i64,
    /// And what was to be added: an `i128`, little-endian.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) delta: Bytes,
}

impl From<CommitToken> for NumberMessage {
    fn from(token: CommitToken) -> Self {
        Self {
            term: token.term.0,
            vlsn: token.vlsn.0,
        }
    }
}

impl NumberMessage {
    pub(crate) fn in_group(self, group: GroupUuid) -> CommitToken {
        CommitToken {
            group,
            term: Term(self.term),
            vlsn: Vlsn(self.vlsn),
        }
    }
}

impl WriteRequest {
    pub(crate) fn new(forwarded: Forwarded, durability: Durability, timeout: Duration) -> Self {
        let place = |(database, key): (DatabaseId, Bytes)| PlaceMessage {
            database: database.0,
            key,
        };
        Self {
            at: forwarded.at.0,
            local_sync: match durability.local_sync {
                SyncPolicy::NoSync => 0,
                SyncPolicy::WriteNoSync => 1,
                SyncPolicy::Sync => 2,
            },
            ack: match durability.ack {
                ReplicaAckPolicy::None => 0,
                ReplicaAckPolicy::SimpleMajority => 1,
                ReplicaAckPolicy::All => 2,
            },
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            keys: forwarded.reads.keys.into_iter().map(place).collect(),
            ranges: forwarded.reads.ranges.into_iter().map(range).collect(),
            writes: forwarded.writes.into_iter().map(write).collect(),
            lifetimes: forwarded.lifetimes.map(|id| id.0),
        }
    }

    /// The transaction, and how durable it is to be within which time.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn parts(self) -> Result<(Forwarded, Durability, Duration), WireError> {
        // The names of databases have as many places again.
        let reads_max = 2 * TRANSACTION_READS_MAX;
        if self.keys.len() + self.ranges.len() > reads_max {
            return Err(WireError::Invalid("number of reads"));
        }
        let local_sync = match self.local_sync {
            0 => SyncPolicy::NoSync,
            1 => SyncPolicy::WriteNoSync,
            2 => SyncPolicy::Sync,
            _ => return Err(WireError::Invalid("local sync")),
        };
        let ack = match self.ack {
            0 => ReplicaAckPolicy::None,
            1 => ReplicaAckPolicy::SimpleMajority,
            2 => ReplicaAckPolicy::All,
            _ => return Err(WireError::Invalid("acknowledgement")),
        };
        let keys = self.keys.into_iter();
        let keys = keys.map(|place| (DatabaseId(place.database), place.key));
        let ranges = self.ranges.into_iter().map(key_range);
        let reads = ReadSet {
            keys: keys.collect(),
            ranges: ranges.collect(),
        };
        let writes = self.writes.into_iter().map(forwarded_write);
        let forwarded = Forwarded {
            at: Vlsn(self.at),
            reads,
            writes: writes.collect::<Result<_, _>>()?,
            lifetimes: self.lifetimes.map(DatabaseId),
        };
        let timeout = Duration::from_millis(self.timeout_ms);
        let durability = Durability {
            local_sync,
            ack,
            ..Durability::MAJORITY
        };
        Ok((forwarded, durability, timeout))
    }
}

fn range((database, range): (DatabaseId, KeyRange)) -> RangeMessage {
    let (start, without_start) = match range.start {
        Bound::Included(key) => (Some(key), false),
        Bound::Excluded(key) => (Some(key), true),
        Bound::Unbounded => (None, false),
    };
    let (end, with_end) = match range.end {
        Bound::Included(key) => (Some(key), true),
        Bound::Excluded(key) => (Some(key), false),
        Bound::Unbounded => (None, false),
    };
    RangeMessage {
        database: database.0,
        start,
        without_start,
        end,
        with_end,
    }
}

fn key_range(message: RangeMessage) -> (DatabaseId, KeyRange) {
    let start = match (message.start, message.without_start) {
        (None, _) => Bound::Unbounded,
        (Some(key), true) => Bound::Excluded(key),
        (Some(key), false) => Bound::Included(key),
    };
    let end = match (message.end, message.with_end) {
        (None, _) => Bound::Unbounded,
        (Some(key), true) => Bound::Included(key),
        (Some(key), false) => Bound::Excluded(key),
    };
    (DatabaseId(message.database), KeyRange { start, end })
}

fn write(write: ForwardedWrite) -> WriteMessage {
    WriteMessage {
        database: write.database.0,
        key: write.key,
        value: write.value,
        addition: write.addition.map(number_bytes),
        lifetime: write.lifetime.map(|own| LifetimeMessage {
            ttl_ms: own.ttl_ms,
            replaced_ms: own.replaced_ms,
        }),
    }
}

/// Keys and values are copied: they stay in memory for longer than the rest of the request.
fn forwarded_write(message: WriteMessage) -> Result<ForwardedWrite, WireError> {
    let copied = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    let addition = message.addition.map(|addition| number(&addition));
    Ok(ForwardedWrite {
        database: DatabaseId(message.database),
        key: copied(&message.key),
        value: message.value.as_ref().map(copied),
        addition: addition.transpose()?,
        lifetime: message.lifetime.map(|own| ForwardedLifetime {
            ttl_ms: own.ttl_ms,
            replaced_ms: own.replaced_ms,
        }),
    })
}

fn number_bytes(number: i128) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

fn number(bytes: &Bytes) -> Result<i128, WireError> {
    let bytes = bytes[..].try_into();
    bytes
        .map(i128::from_le_bytes)
        .map_err(|_| WireError::Invalid("addition"))
}

impl WriteAnswer {
    /// The master's answer. `newest` is its newest number.
    pub(crate) fn new(done: Result<CommitToken, WriteError>, newest: Vlsn) -> Self {
        let error = match done {
            Ok(token) => return Self::Committed(token.into()),
            Err(error) => error,
        };
        match error {
            WriteError::Conflict | WriteError::TooOld { .. } => Self::Conflict(newest.0),
            WriteError::OutcomeUnknown { token } => Self::Unknown(token.into()),
            WriteError::NotCommitted { reason } => Self::NotCommitted(reason.to_owned()),
            WriteError::InsufficientReplicas { needed, available } => {
                Self::InsufficientReplicas(TooFewMessage {
                    needed: needed as u64,
                    available: available as u64,
                })
            }
            WriteError::InsufficientAcks {
                token,
                needed,
                acked,
                lacks_own_disk,
                is_committed,
            } => Self::InsufficientAcks(AcksMessage {
                number: Some(token.into()),
                needed: needed as u64,
                acked: acked as u64,
                lacks_own_disk,
                is_committed,
            }),
            WriteError::DiskFull {
                free_bytes,
                limit_bytes,
            } => Self::DiskFull(DiskFullMessage {
                free_bytes,
                limit_bytes,
            }),
            WriteError::TooLarge { actual, max, .. } => Self::TooLarge(TooLargeMessage {
                actual: actual as u64,
                max: max as u64,
            }),
            WriteError::TooManyKeys { .. } => Self::TooLarge(TooLargeMessage::default()),
            WriteError::Counter(error) => Self::Counter(counter_message(error)),
            WriteError::NotMaster { .. }
            | WriteError::Restoring
            | WriteError::Stopped { .. }
            | WriteError::Closed => Self::NotMaster(true),
            error => Self::NotCommitted(error.to_string()),
        }
    }

    /// What the caller is told, unless it is a conflict (`None`) or the node is not the master.
    ///
    /// # Errors
    /// The error that it stands for.
    pub(crate) fn into_result(self, group: GroupUuid) -> Result<CommitToken, WriteError> {
        let usize_of = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let error = match self {
            Self::Committed(number) => return Ok(number.in_group(group)),
            Self::Conflict(_) => WriteError::Conflict,
            Self::Unknown(number) => WriteError::OutcomeUnknown {
                token: number.in_group(group),
            },
            Self::NotCommitted(text) => {
                let known = REASONS.into_iter().find(|reason| *reason == text);
                if known.is_none() {
                    tracing::warn!(reason = text, "the master did not commit a write");
                }
                WriteError::NotCommitted {
                    reason: known.unwrap_or(NOT_COMMITTED),
                }
            }
            Self::InsufficientReplicas(few) => WriteError::InsufficientReplicas {
                needed: usize_of(few.needed),
                available: usize_of(few.available),
            },
            Self::InsufficientAcks(acks) => WriteError::InsufficientAcks {
                token: acks.number.unwrap_or_default().in_group(group),
                needed: usize_of(acks.needed),
                acked: usize_of(acks.acked),
                lacks_own_disk: acks.lacks_own_disk,
                is_committed: acks.is_committed,
            },
            Self::DiskFull(full) => WriteError::DiskFull {
                free_bytes: full.free_bytes,
                limit_bytes: full.limit_bytes,
            },
            Self::TooLarge(TooLargeMessage { max: 0, .. }) => WriteError::TooManyKeys {
                max: TRANSACTION_KEYS_MAX,
            },
            Self::TooLarge(large) => WriteError::TooLarge {
                what: "a transaction",
                actual: usize_of(large.actual),
                max: usize_of(large.max),
            },
            Self::Counter(error) => WriteError::Counter(counter_error(error)),
            Self::NotMaster(_) => WriteError::NotMaster { master: None },
        };
        Err(error)
    }
}

fn counter_message(error: CounterError) -> CounterMessage {
    match error {
        CounterError::NotACounter { key, bytes } => CounterMessage {
            key,
            bytes: Some(bytes as u64),
            ..CounterMessage::default()
        },
        CounterError::Overflow { key, value, delta } => CounterMessage {
            key,
            bytes: None,
            value,
            delta: number_bytes(delta),
        },
    }
}

fn counter_error(message: CounterMessage) -> CounterError {
    let CounterMessage {
        key,
        bytes,
        value,
        delta,
    } = message;
    match bytes {
        Some(bytes) => CounterError::NotACounter {
            key,
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        },
        None => CounterError::Overflow {
            key,
            value,
            delta: number(&delta).unwrap_or_default(),
        },
    }
}
