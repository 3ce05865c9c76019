//! Keys with a time to live: the rows about them, and the time by which they end.
//!
//! The rows are a database like any other, under a name that no user can give: they are replicated,
//! copied, counted and audited with everything else. It exists from the first key with a time to
//! live on. Integers are big-endian, so that the index is in the order of deadlines.
//!
//! | key | value | |
//! | --- | --- | --- |
//! | 0: `u8` | group time: `u64` | as of the last transaction that noted it |
//! | 1: `u8`, deadline: `u64`, database: `u32`, key | nothing | the index |
//! | 2: `u8`, database: `u32`, key | deadline: `u64` | when the key ends |
//!
//! The rows of a key are written without being read, so they cause no conflicts. An entry of the
//! index counts only while the key's own row has the same deadline. Any other is left over, from a
//! put that came at the same time, or from a database that was dropped; it goes when its deadline
//! comes.
//!
//! # Group time
//!
//! Deadlines are in *group time*, in milliseconds since the group first used one. Only a master
//! tells it: it goes on from the latest that the log has, at the pace of its own monotonic clock,
//! slowed by [`DRIFT_DIVISOR`]. So between two moments no more group time passes than true time,
//! whoever was master in between, and no key ends early. What passed since group time was last
//! noted is lost with a master; the keys live longer by that.

use std::ops::Bound;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use steadfast_net::lock;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::{EngineError, KeyRange};
use crate::ids::DatabaseId;
use crate::limits::KEY_BYTES_MAX;
use crate::machine::Clock;
use crate::txn::sequencer::SessionId;

/// The name of the database of these rows. Users' names have no control characters.
pub(crate) const LIFETIMES: &[u8] = b"\x01lifetimes";

/// A clock may gain a millisecond in this many without ending a key early: twice what time
/// synchronization makes a clock gain (500 ppm).
pub(crate) const DRIFT_DIVISOR: u64 = 1_000;

const TIME_ROW: &[u8] = &[0];
const INDEX: u8 = 1;
const CURRENT: u8 = 2;

/// What an entry of the index has in front of the key.
const INDEX_PREFIX_BYTES: usize = 1 + 8 + 4;

/// What a key's own row has in front of the key.
const CURRENT_PREFIX_BYTES: usize = 1 + 4;

/// Longest key that may have a time to live, in bytes: its entry in the index is a key too.
pub(crate) const TTL_KEY_BYTES_MAX: usize = KEY_BYTES_MAX - INDEX_PREFIX_BYTES;

/// The key of the row with the group time.
pub(crate) fn time_key() -> Bytes {
    Bytes::from_static(TIME_ROW)
}

/// The key of a key's own row.
pub(crate) fn current_key(database: DatabaseId, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(CURRENT_PREFIX_BYTES + key.len());
    row.put_u8(CURRENT);
    row.put_u32(database.0);
    row.put_slice(key);
    row.freeze()
}

/// A group time as these rows have it.
pub(crate) fn encode_time(time_ms: u64) -> Bytes {
    Bytes::copy_from_slice(&time_ms.to_be_bytes())
}

/// # Errors
/// [`EngineError::Corrupt`] when the value is no group time.
pub(crate) fn decode_time(value: &[u8]) -> Result<u64, EngineError> {
    let bytes = value.try_into().map_err(|_| corrupt("a group time"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// An entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub(crate) at_ms: u64,
    pub(crate) database: DatabaseId,
    pub(crate) key: Bytes,
}

impl Deadline {
    /// The key of the entry.
    pub(crate) fn index_key(&self) -> Bytes {
        let mut row = BytesMut::with_capacity(INDEX_PREFIX_BYTES + self.key.len());
        row.put_u8(INDEX);
        row.put_u64(self.at_ms);
        row.put_u32(self.database.0);
        row.put_slice(&self.key);
        row.freeze()
    }

    /// The entry with this key.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] when it is none.
    pub(crate) fn parse(row: &Bytes) -> Result<Self, EngineError> {
        let parts = row.split_first_chunk::<INDEX_PREFIX_BYTES>();
        let (prefix, _) = parts.ok_or_else(|| corrupt("an entry of the index"))?;
        let [_, at @ .., a, b, c, d] = prefix;
        Ok(Self {
            at_ms: u64::from_be_bytes(*at),
            database: DatabaseId(u32::from_be_bytes([*a, *b, *c, *d])),
            key: row.slice(INDEX_PREFIX_BYTES..),
        })
    }

    /// Where the entries of this deadline begin, in the index.
    pub(crate) fn index_key_at(at_ms: u64) -> Bytes {
        let (database, key) = (DatabaseId(0), Bytes::new());
        let first = Self {
            at_ms,
            database,
            key,
        };
        first.index_key()
    }

    /// Where the index begins.
    pub(crate) fn first_index_key() -> Bytes {
        Self::index_key_at(0)
    }

    /// The entries of the index from this key on, up to those due at `now_ms`; all later ones, if
    /// that is `None`.
    pub(crate) fn range(from: &Bytes, now_ms: Option<u64>) -> KeyRange {
        let after = now_ms.and_then(|now_ms| now_ms.checked_add(1));
        KeyRange {
            start: Bound::Included(from.clone()),
            end: Bound::Excluded(
                after.map_or(Bytes::from_static(&[INDEX + 1]), Self::index_key_at),
            ),
        }
    }
}

/// Bytes of the rows about one key, with this many entries of the index.
pub(crate) fn row_bytes(key: &[u8], in_index: usize) -> usize {
    let current = CURRENT_PREFIX_BYTES + key.len() + 8;
    current + in_index * (INDEX_PREFIX_BYTES + key.len())
}

/// The deadline of a key whose time to live begins now. Both times are rounded down to whole
/// milliseconds, hence the one on top.
pub(crate) fn deadline_after(now_ms: u64, ttl_ms: u64) -> u64 {
    now_ms.saturating_add(ttl_ms).saturating_add(1)
}

/// What is left of a time to live.
pub(crate) fn left(deadline_ms: u64, now_ms: u64) -> Duration {
    Duration::from_millis(deadline_ms.saturating_sub(now_ms))
}

/// The key of which this is the own row, if it is one of `database`.
pub(crate) fn parse_current_key(row: &[u8], database: DatabaseId) -> Option<&[u8]> {
    let (prefix, key) = row.split_first_chunk::<CURRENT_PREFIX_BYTES>()?;
    let [CURRENT, id @ ..] = prefix else {
        return None;
    };
    (u32::from_be_bytes(*id) == database.0).then_some(key)
}

fn corrupt(what: &str) -> EngineError {
    EngineError::Corrupt {
        what: format!("{what} among the times to live"),
    }
}

/// Group time in one session.
#[derive(Clone, Copy, Debug)]
struct Running {
    session: SessionId,
    /// Group time at `since`.
    from_ms: u64,
    since: Instant,
}

/// The group time that this node tells as master, and the deadlines that it gives.
pub(crate) struct GroupTime {
    clock: Arc<dyn Clock>,
    running: Mutex<Option<Running>>,
    /// The earliest deadline given since it was last taken.
    given: Mutex<Option<u64>>,
    /// An earlier one has been given.
    earlier: Notify,
}

impl GroupTime {
    /// Unknown until a session needs it.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            running: Mutex::default(),
            given: Mutex::default(),
            earlier: Notify::new(),
        }
    }

    /// Group time in ms, in a session in which it goes on already.
    pub(crate) fn now(&self, session: SessionId) -> Option<u64> {
        let running = lock(&self.running).filter(|running| running.session == session)?;
        let passed = self.clock.passed_since(running.since);
        let passed_ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let slowed_ms = passed_ms - passed_ms.div_ceil(DRIFT_DIVISOR);
        Some(running.from_ms.saturating_add(slowed_ms))
    }

    /// Lets group time go on in this session from `noted_ms`, the latest in the log before it, if
    /// it does not yet, and returns it.
    pub(crate) fn go_on(&self, session: SessionId, noted_ms: u64) -> u64 {
        {
            let mut running = lock(&self.running);
            if running.is_none_or(|running| running.session.term < session.term) {
                *running = Some(Running {
                    session,
                    from_ms: noted_ms,
                    since: Instant::now(),
                });
            }
        }
        // A later session has begun here: nothing of this one gets a number any more.
        self.now(session).unwrap_or(noted_ms)
    }

    /// Notes that a key has got this deadline.
    pub(crate) fn give(&self, deadline_ms: u64) {
        let mut given = lock(&self.given);
        if given.is_none_or(|given| deadline_ms < given) {
            *given = Some(deadline_ms);
            drop(given);
            self.earlier.notify_one();
        }
    }

    /// The earliest deadline given since the last call.
    pub(crate) fn take_given(&self) -> Option<u64> {
        lock(&self.given).take()
    }

    /// Waits until a deadline before `before_ms` is given; any one, if that is `None`. For one
    /// waiter.
    pub(crate) async fn given_before(&self, before_ms: Option<u64>) {
        loop {
            let given = *lock(&self.given);
            let is_earlier = |given: u64| before_ms.is_none_or(|before| given < before);
            if given.is_some_and(is_earlier) {
                return;
            }
            self.earlier.notified().await;
        }
    }
}

/// How long a master waits by its own clock until so much group time has passed.
pub(crate) fn own_time(group_ms: u64) -> Duration {
    Duration::from_millis(group_ms.saturating_add(group_ms / (DRIFT_DIVISOR - 1) + 2))
}

#[cfg(test)]
mod tests;
