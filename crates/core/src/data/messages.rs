//! The messages of DATA.

use std::iter;
use std::time::Duration;

use bytes::Bytes;
use prost::{Message, decode_length_delimiter};

use crate::feed::messages::TokenMessage;
use crate::policy::ConsistencyPolicy;
use crate::recent::millis;
use crate::wire::messages::{WireError, body};

/// A request; each gets one reply.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DataRequest {
    /// The group that is meant; empty for whichever it is.
    #[prost(string, tag = "1")]
    pub(crate) group_name: String,
    #[prost(oneof = "DataCall", tags = "2, 3, 4")]
    pub(crate) call: Option<DataCall>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum DataCall {
    #[prost(message, tag = "2")]
    Get(GetCall),
    #[prost(message, tag = "3")]
    Databases(FreshnessMessage),
    #[prost(message, tag = "4")]
    Write(WriteCall),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct GetCall {
    #[prost(string, tag = "1")]
    pub(crate) database: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
    #[prost(message, optional, tag = "3")]
    pub(crate) freshness: Option<FreshnessMessage>,
}

/// How fresh a read must be; linearizable with nothing set.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct FreshnessMessage {
    /// Whatever the node has.
    #[prost(bool, tag = "1")]
    pub(crate) eventual: bool,
    #[prost(message, optional, tag = "2")]
    pub(crate) at_least: Option<TokenMessage>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) max_lag_ms: Option<u64>,
}

/// Writes that are applied atomically.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct WriteCall {
    #[prost(message, repeated, tag = "1")]
    pub(crate) writes: Vec<OneWrite>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct OneWrite {
    #[prost(string, tag = "1")]
    pub(crate) database: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
    /// Absent to delete the key.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) value: Option<Bytes>,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) ttl_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DataReply {
    #[prost(oneof = "DataAnswer", tags = "1, 2, 3, 4")]
    pub(crate) answer: Option<DataAnswer>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum DataAnswer {
    #[prost(message, tag = "1")]
    Found(FoundMessage),
    #[prost(message, tag = "2")]
    Databases(DatabasesMessage),
    #[prost(message, tag = "3")]
    Written(TokenMessage),
    #[prost(message, tag = "4")]
    Refused(DataRefused),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct FoundMessage {
    /// Absent where there is no such key.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub(crate) value: Option<Bytes>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DatabasesMessage {
    #[prost(string, repeated, tag = "1")]
    pub(crate) names: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct DataRefused {
    /// For people.
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
    /// Whether the same request may succeed, here or at another node.
    #[prost(bool, tag = "2")]
    pub(crate) is_retryable: bool,
    /// Whether what was to be written may be committed all the same.
    #[prost(bool, tag = "3")]
    pub(crate) may_be_done: bool,
    /// The caller may not do this.
    #[prost(bool, tag = "4")]
    pub(crate) is_denied: bool,
}

/// How many writes are in the frame of a [`DataRequest`], at most. Decoded, one without a key takes fifty
/// times the bytes that it has in the frame, so they are counted first.
pub(crate) fn writes_in(frame: &Bytes) -> usize {
    const WRITE: usize = 4;
    const ONE: usize = 1;
    let calls = fields(body(frame)).filter(|(tag, _)| *tag == WRITE);
    let writes = calls.flat_map(|(_, call)| fields(call).filter(|(tag, _)| *tag == ONE));
    writes.count()
}

/// The fields of an encoded message that have a length, with their tags, as far as it can be decoded.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    iter::from_fn(move || {
        loop {
            let key = decode_length_delimiter(&mut rest).ok()?;
            let kind = key & 7;
            let length = match kind {
                0 => {
                    decode_length_delimiter(&mut rest).ok()?;
                    0
                }
                1 => 8,
                2 => decode_length_delimiter(&mut rest).ok()?,
                5 => 4,
                // The begin and the end of a group: fields in it count too.
                _ => 0,
            };
            let (field, after) = rest.split_at_checked(length)?;
            rest = after;
            if kind == 2 {
                return Some((key >> 3, field));
            }
        }
    })
}

impl From<ConsistencyPolicy> for FreshnessMessage {
    fn from(policy: ConsistencyPolicy) -> Self {
        let linearizable = Self::default();
        match policy {
            ConsistencyPolicy::Linearizable => linearizable,
            ConsistencyPolicy::Eventual => Self {
                eventual: true,
                ..linearizable
            },
            ConsistencyPolicy::AtLeast(token) => Self {
                at_least: Some(token.into()),
                ..linearizable
            },
            ConsistencyPolicy::MaxLag(lag) => Self {
                max_lag_ms: Some(millis(lag)),
                ..linearizable
            },
        }
    }
}

impl TryFrom<FreshnessMessage> for ConsistencyPolicy {
    type Error = WireError;

    fn try_from(message: FreshnessMessage) -> Result<Self, WireError> {
        Ok(match message {
            FreshnessMessage { eventual: true, .. } => Self::Eventual,
            FreshnessMessage {
                at_least: Some(token),
                ..
            } => Self::AtLeast(token.try_into()?),
            FreshnessMessage {
                max_lag_ms: Some(lag_ms),
                ..
            } => Self::MaxLag(Duration::from_millis(lag_ms)),
            _ => Self::Linearizable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::messages::{Kind, encode};

    fn request(writes: usize) -> DataRequest {
        let one = |n: usize| OneWrite {
            database: if n.is_multiple_of(2) { "d" } else { "" }.to_owned(),
            ttl_ms: n.is_multiple_of(3).then_some(u64::MAX),
            ..OneWrite::default()
        };
        DataRequest {
            group_name: "g".to_owned(),
            call: Some(DataCall::Write(WriteCall {
                writes: (0..writes).map(one).collect(),
            })),
        }
    }

    #[test]
    fn writes_are_counted_before_they_are_decoded() {
        for count in [0, 1, 2, 100] {
            let frame = encode(Kind::DataRequest, &request(count));
            assert_eq!(writes_in(&frame), count);
        }
        let get = GetCall {
            database: "d".to_owned(),
            key: encode(Kind::DataRequest, &request(3)),
            freshness: Some(ConsistencyPolicy::Eventual.into()),
        };
        let get = DataRequest {
            group_name: String::new(),
            call: Some(DataCall::Get(get)),
        };
        assert_eq!(writes_in(&encode(Kind::DataRequest, &get)), 0);
        assert_eq!(writes_in(&Bytes::from_static(b"short")), 0);
    }
}
