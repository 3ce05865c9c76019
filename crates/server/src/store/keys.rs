//! The rows of a store: their databases, keys and values.
//!
//! | database | key | value |
//! | --- | --- | --- |
//! | `etcd/current` | key | [`Meta`]: what the key is like now, without its value |
//! | `etcd/history` | escaped key, revision, step | [`Version`] of the key; nothing: it was deleted |
//! | `etcd/log` | the last revision in the row | [`LogRow`]: what happened, in order |
//! | `etcd/leases` | id | [`LeaseRow`] |
//! | `etcd/lease-times` | id | nothing; a row with a time to live: see [`super::lease`] |
//! | `etcd/lease-keys` | id, key | nothing |
//! | `etcd/auth` | of whoever uses it | |
//! | `etcd/meta` | `state`, `compacted`, `compacted-done` | [`StateRow`], revision, revision |
//!
//! A value is stored once, in the history. A put writes a row of `current` and one of `history`; a
//! batch of puts adds one row of the log and the state. Numbers in keys are 8 bytes, big-endian.
//! Values are protobuf messages, which can grow.
//!
//! The history has the escaped key (0 is 0 255, and two 0 end it), so that its rows are in the order
//! of keys, then of revisions. The step is 0, or 1 where a transaction deletes what it put itself.

use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use steadfast::limits::KEY_BYTES_MAX;
use steadfast::{
    ReadError, Scan, Snapshot, SnapshotDatabase, Transaction, TransactionDatabase, WriteError,
};

use crate::error::Error;
use crate::proto::mvccpb::KeyValue;

pub(super) const CURRENT: &str = "etcd/current";
pub(super) const HISTORY: &str = "etcd/history";
pub(super) const LOG: &str = "etcd/log";
pub(super) const LEASES: &str = "etcd/leases";
pub(super) const LEASE_TIMES: &str = "etcd/lease-times";
pub(super) const LEASE_KEYS: &str = "etcd/lease-keys";
pub(super) const AUTH: &str = "etcd/auth";
pub(super) const META: &str = "etcd/meta";

/// The databases whose rows a node's hash covers: not the times of leases, which pass.
pub(super) const HASHED: [&str; 7] = [CURRENT, HISTORY, LOG, LEASES, LEASE_KEYS, AUTH, META];

pub(super) const STATE: &[u8] = b"state";
pub(super) const COMPACTED: &[u8] = b"compacted";
pub(super) const COMPACTED_DONE: &[u8] = b"compacted-done";

/// The revision of an empty store.
pub(super) const FIRST_REVISION: i64 = 1;

/// What follows the escaped key in a key of the history: its end, revision and step.
const HISTORY_SUFFIX_BYTES: usize = 2 + 8 + 1;

/// Why a request, or the transaction that it is part of, did not go through.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request is refused.
    Refused(Error),
    Read(ReadError),
    Write(WriteError),
    /// A row is not what this version writes.
    Row(&'static str),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Read(error) => Self::Read(error),
            error => Self::Write(error),
        }
    }
}

/// What a key is like, without its value.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Meta {
    #[prost(int64, tag = "1")]
    pub(super) create: i64,
    #[prost(int64, tag = "2")]
    pub(super) modified: i64,
    #[prost(int64, tag = "3")]
    pub(super) version: i64,
    #[prost(sfixed64, tag = "4")]
    pub(super) lease: i64,
}

impl Meta {
    pub(super) fn key_value(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            create_revision: self.create,
            mod_revision: self.modified,
            version: self.version,
            value,
            lease: self.lease,
        }
    }
}

/// A version of a key; the revision is in the key of the row.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Version {
    #[prost(int64, tag = "1")]
    pub(super) create: i64,
    /// 1 when the key was made, raised by each put.
    #[prost(int64, tag = "2")]
    pub(super) number: i64,
    #[prost(sfixed64, tag = "3")]
    pub(super) lease: i64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) value: Bytes,
}

impl Version {
    /// The version that a row of the history holds; `None`: deleted.
    pub(super) fn of_row(row: Bytes) -> Result<Option<Self>, Failure> {
        if row.is_empty() {
            return Ok(None);
        }
        decode(row).map(Some)
    }

    pub(super) fn meta(&self, modified: i64) -> Meta {
        Meta {
            create: self.create,
            modified,
            version: self.number,
            lease: self.lease,
        }
    }
}

/// What happened in some consecutive revisions.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LogRow {
    /// The master's clock, in ms since 1970: how old it is decides about compaction.
    #[prost(uint64, tag = "1")]
    pub(super) time_ms: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) events: Vec<LogEvent>,
}

/// One change of one key.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LogEvent {
    /// The revision, counted back from that of the row.
    #[prost(int64, tag = "1")]
    pub(super) back: i64,
    #[prost(bool, tag = "2")]
    pub(super) is_delete: bool,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) key: Bytes,
    /// The revision of the version that this one replaced; 0: none.
    #[prost(int64, tag = "4")]
    pub(super) previous: i64,
}

impl LogEvent {
    /// The step of this change within its revision.
    pub(super) fn step(&self, revision: i64) -> u8 {
        u8::from(self.previous == revision)
    }
}

/// Where the store is.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct StateRow {
    #[prost(int64, tag = "1")]
    pub(super) revision: i64,
    /// The store that takes the writes, as a random number of its own.
    #[prost(fixed64, tag = "2")]
    pub(super) owner: u64,
    /// The term in which it took over: that of all headers.
    #[prost(uint64, tag = "3")]
    pub(super) term: u64,
}

/// A lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct LeaseRow {
    /// In seconds.
    #[prost(int64, tag = "1")]
    pub(super) ttl: i64,
    /// Some of its keys are deleted already, and the others will be: it is no lease for clients.
    #[prost(bool, tag = "2")]
    pub(super) is_ending: bool,
}

/// Which keys are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Keys {
    One(Bytes),
    /// From the first on, to before the second; `None`: all.
    Range(Bytes, Option<Bytes>),
}

impl Keys {
    /// As requests name them: no end is one key, an end of one zero byte means all from `key` on.
    pub(super) fn of(key: &Bytes, range_end: &Bytes) -> Self {
        match &range_end[..] {
            [] => Self::One(key.clone()),
            [0] => Self::Range(key.clone(), None),
            _ => Self::Range(key.clone(), Some(range_end.clone())),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Range(start, Some(end)) if end <= start)
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Range(start, end) => {
                *start <= key && end.as_ref().is_none_or(|end| key < &end[..])
            }
        }
    }

    /// Of keys as they are.
    pub(super) fn bounds(&self) -> Bounds {
        match self {
            Self::One(key) => (Bound::Included(key.clone()), Bound::Included(key.clone())),
            Self::Range(start, end) => {
                let end = end.clone().map_or(Bound::Unbounded, Bound::Excluded);
                (Bound::Included(start.clone()), end)
            }
        }
    }

    /// Of rows of the history.
    pub(super) fn history_bounds(&self) -> Bounds {
        match self {
            Self::One(key) => (
                Bound::Included(history_key(key, 0, 0)),
                Bound::Included(history_key(key, i64::MAX, u8::MAX)),
            ),
            Self::Range(start, end) => {
                let end = end.as_ref().map(|end| history_key(end, 0, 0));
                (
                    Bound::Included(history_key(start, 0, 0)),
                    end.map_or(Bound::Unbounded, Bound::Excluded),
                )
            }
        }
    }
}

pub(super) type Bounds = (Bound<Bytes>, Bound<Bytes>);

/// The databases of a snapshot or a transaction.
pub(super) struct Tables<D> {
    pub(super) current: D,
    pub(super) history: D,
    pub(super) log: D,
    pub(super) leases: D,
    pub(super) lease_times: D,
    pub(super) lease_keys: D,
    pub(super) auth: D,
    pub(super) meta: D,
}

impl<D> Tables<D> {
    fn all<E>(database: impl Fn(&str) -> Result<D, E>) -> Result<Self, E> {
        Ok(Self {
            current: database(CURRENT)?,
            history: database(HISTORY)?,
            log: database(LOG)?,
            leases: database(LEASES)?,
            lease_times: database(LEASE_TIMES)?,
            lease_keys: database(LEASE_KEYS)?,
            auth: database(AUTH)?,
            meta: database(META)?,
        })
    }
}

impl<'a> Tables<SnapshotDatabase<'a>> {
    pub(super) fn of_snapshot(snapshot: &'a Snapshot) -> Result<Self, Failure> {
        Ok(Self::all(|name| snapshot.database(name))?)
    }
}

impl<'a> Tables<TransactionDatabase<'a>> {
    pub(super) fn of_transaction(txn: &'a Transaction) -> Result<Self, Failure> {
        Ok(Self::all(|name| txn.database(name))?)
    }
}

impl<D: Rows> Tables<D> {
    pub(super) fn state(&self) -> Result<StateRow, Failure> {
        let row = self.meta.row(STATE)?;
        let row = row.map(decode::<StateRow>).transpose()?;
        Ok(row.unwrap_or(StateRow {
            revision: FIRST_REVISION,
            owner: 0,
            term: 0,
        }))
    }

    /// The revision below which nothing can be read; -1: never compacted.
    pub(super) fn compacted(&self) -> Result<i64, Failure> {
        self.number(COMPACTED)
    }

    /// A number of the meta data; -1 if it was never set.
    pub(super) fn number(&self, key: &[u8]) -> Result<i64, Failure> {
        let row = self.meta.row(key)?;
        row.map_or(Ok(-1), |row| number(&row))
    }

    pub(super) fn version(&self, key: &[u8], revision: i64) -> Result<Option<Version>, Failure> {
        let row = self.history.row(&history_key(key, revision, 0))?;
        Ok(row.map(Version::of_row).transpose()?.flatten())
    }
}

/// One database, whether of a snapshot or of a transaction.
pub(super) trait Rows {
    fn row(&self, key: &[u8]) -> Result<Option<Bytes>, Failure>;
    fn rows(&self, bounds: Bounds) -> Scan<'_>;
}

impl Rows for SnapshotDatabase<'_> {
    fn row(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        Ok(self.get(key)?)
    }

    fn rows(&self, bounds: Bounds) -> Scan<'_> {
        self.range(bounds)
    }
}

impl Rows for TransactionDatabase<'_> {
    fn row(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        Ok(self.get(key)?)
    }

    fn rows(&self, bounds: Bounds) -> Scan<'_> {
        self.range(bounds)
    }
}

/// # Errors
/// [`Failure::Row`].
pub(super) fn decode<M: Message + Default>(row: Bytes) -> Result<M, Failure> {
    M::decode(row).map_err(|_| Failure::Row("a value is no message"))
}

/// # Errors
/// [`Error::RequestTooLarge`] for a key that is too long to be a part of the keys of rows.
pub(super) fn check_key(key: &[u8]) -> Result<(), Error> {
    let zeros = key.split(|byte| *byte == 0).count() - 1;
    if key.len() + zeros + HISTORY_SUFFIX_BYTES > KEY_BYTES_MAX {
        return Err(Error::RequestTooLarge);
    }
    Ok(())
}

pub(super) fn history_key(key: &[u8], revision: i64, step: u8) -> Bytes {
    let mut row = BytesMut::with_capacity(key.len() + HISTORY_SUFFIX_BYTES);
    for byte in key {
        row.put_u8(*byte);
        if *byte == 0 {
            row.put_u8(u8::MAX);
        }
    }
    row.put_u16(0);
    row.put_i64(revision);
    row.put_u8(step);
    row.freeze()
}

/// The key, revision and step of a row of the history.
///
/// # Errors
/// [`Failure::Row`].
pub(super) fn history_parts(row: &Bytes) -> Result<(Bytes, i64, u8), Failure> {
    const BAD: Failure = Failure::Row("a key of the history is malformed");
    let end = row.len().checked_sub(HISTORY_SUFFIX_BYTES).ok_or(BAD)?;
    let (escaped, suffix) = row.split_at(end);
    let (step, revision) = (suffix[10], number(&suffix[2..10])?);
    if !escaped.contains(&0) {
        return Ok((row.slice(..end), revision, step));
    }
    let mut key = BytesMut::with_capacity(end);
    let mut bytes = escaped.iter();
    while let Some(byte) = bytes.next() {
        key.put_u8(*byte);
        if *byte == 0 && bytes.next() != Some(&u8::MAX) {
            return Err(BAD);
        }
    }
    Ok((key.freeze(), revision, step))
}

/// The number of 8 bytes.
///
/// # Errors
/// [`Failure::Row`].
pub(super) fn number(bytes: &[u8]) -> Result<i64, Failure> {
    let bytes = bytes.try_into();
    let bytes = bytes.map_err(|_| Failure::Row("a number has not 8 bytes"))?;
    Ok(i64::from_be_bytes(bytes))
}

pub(super) fn lease_key(id: i64, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(8 + key.len());
    row.put_i64(id);
    row.put_slice(key);
    row.freeze()
}

/// The rows of `etcd/lease-keys` of one lease.
pub(super) fn lease_bounds(id: i64) -> Bounds {
    let end = id.cast_unsigned().checked_add(1);
    let end = end.map(|end| Bytes::copy_from_slice(&end.to_be_bytes()));
    let start = Bytes::copy_from_slice(&id.to_be_bytes());
    (
        Bound::Included(start),
        end.map_or(Bound::Unbounded, Bound::Excluded),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(255), any::<u8>()], 1..6)
    }

    #[test]
    fn no_program_outside_of_the_nodes_writes_rows() {
        use steadfast::limits::RESERVED_DATABASES_PREFIX;
        let names = HASHED.into_iter().chain([LEASE_TIMES]);
        let mut others = names.filter(|name| !name.starts_with(RESERVED_DATABASES_PREFIX));
        assert_eq!(others.next(), None);
    }

    proptest! {
        #[test]
        fn rows_of_the_history_are_in_the_order_of_keys_and_revisions(
            a in keys(), b in keys(), at in 0..1000_i64, after in 0..1000_i64, step in 0..2_u8,
        ) {
            let (row_a, row_b) = (history_key(&a, at, step), history_key(&b, after, step));
            prop_assert_eq!(row_a.cmp(&row_b), (&a, at).cmp(&(&b, after)));
            let parts = history_parts(&row_a).expect("a key of the history");
            prop_assert_eq!((&parts.0[..], parts.1, parts.2), (&a[..], at, step));
        }

        #[test]
        fn bounds_hold_what_the_keys_do(a in keys(), b in keys(), key in keys()) {
            use std::ops::RangeBounds;
            for end in [Bytes::new(), Bytes::from_static(&[0]), Bytes::from(b)] {
                let keys = Keys::of(&Bytes::from(a.clone()), &end);
                prop_assume!(!keys.is_empty());
                let (key, row) = (Bytes::from(key.clone()), history_key(&key, 7, 0));
                prop_assert_eq!(keys.bounds().contains(&key), keys.contains(&key));
                prop_assert_eq!(keys.history_bounds().contains(&row), keys.contains(&key));
            }
        }
    }
}
