//! What goes into an engine and comes out of it.

use std::ops::{Bound, RangeBounds};

use bytes::Bytes;

use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};

/// How far the engine has got in the replicated log. Every batch carries one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Term of the last log entry in the batch.
    pub term: Term,
    /// Position of the last log entry in the batch.
    pub position: LogPosition,
    /// Number of the last transaction in the batch.
    pub vlsn: Vlsn,
    /// Membership in force at `position`; opaque to the engine.
    pub membership: Bytes,
}

/// Changes that an engine makes atomically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineBatch {
    /// Replaces what [`StorageEngine::applied`](super::StorageEngine::applied) returns.
    pub applied: Applied,
    /// In strictly ascending order of (database, key). May be empty.
    pub changes: Vec<(DatabaseId, Bytes, Change)>,
}

impl EngineBatch {
    /// Panics when the changes are not in strictly ascending order: an engine that took them would
    /// keep whichever of two changes to one key comes last.
    pub(super) fn assert_sorted(&self) {
        let sorted = self.changes.is_sorted_by(|a, b| (a.0, &a.1) < (b.0, &b.1));
        assert!(
            sorted,
            "changes of a batch ascend by (database, key), each key once"
        );
    }
}

/// What happens to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has this value, whether it had one before or not.
    Put(Bytes),
    /// The key has no value, whether it had one before or not.
    Delete,
}

/// Where a scan stops: when it has this many keys, or with the pair that brings it to this many
/// bytes of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimit {
    /// Maximum number of keys.
    pub keys: usize,
    /// Bytes after which no further pair is taken.
    pub bytes: usize,
}

impl ScanLimit {
    /// No limit.
    pub const NONE: Self = Self::keys(usize::MAX);

    /// This many keys, whatever their size.
    pub const fn keys(keys: usize) -> Self {
        Self {
            keys,
            bytes: usize::MAX,
        }
    }

    /// Whether a scan that returned these pairs stopped at the limit, so that the range may hold
    /// more.
    pub fn is_reached(self, pairs: &[(Bytes, Bytes)]) -> bool {
        let mut left = self;
        for (key, value) in pairs {
            left.take(key.len() + value.len());
        }
        left.is_used_up()
    }

    /// Whether no further pair is taken.
    pub(crate) fn is_used_up(self) -> bool {
        self.keys == 0 || self.bytes == 0
    }

    /// Deducts a pair of `bytes` from the limit.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.keys = self.keys.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The order in which a scan returns keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending.
    Forward,
    /// Descending.
    Reverse,
}

/// A range of keys in byte order. Crossed bounds hold no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// Where the range starts.
    pub start: Bound<Bytes>,
    /// Where the range ends.
    pub end: Bound<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self {
            start: Bound::Unbounded,
            end: Bound::Unbounded,
        }
    }

    /// The keys between two bounds, written as Rust ranges: `KeyRange::of(&b"a"[..]..&b"b"[..])`.
    pub fn of<K: AsRef<[u8]>>(range: impl RangeBounds<K>) -> Self {
        let copy = |key: &K| Bytes::copy_from_slice(key.as_ref());
        Self {
            start: range.start_bound().map(copy),
            end: range.end_bound().map(copy),
        }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let start = Bound::Included(Bytes::copy_from_slice(prefix));
        // The first key after all of them is the prefix, cut after its last byte below 0xff, with
        // that byte incremented. No key follows a prefix of only 0xff bytes.
        let end = match prefix.iter().rposition(|&byte| byte < 0xff) {
            None => Bound::Unbounded,
            Some(last) => {
                let mut after = prefix[..=last].to_vec();
                after[last] += 1;
                Bound::Excluded(after.into())
            }
        };
        Self { start, end }
    }

    /// Whether the key lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        !self.ends_before(key) && !self.starts_after(key)
    }

    /// Whether the bounds cross, so that no key can lie between them.
    pub fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (
                Bound::Included(start) | Bound::Excluded(start),
                Bound::Included(end) | Bound::Excluded(end),
            ) => start >= end,
        }
    }

    /// The part of the range that a scan has yet to return when `last` was its last key.
    #[must_use]
    pub fn after(self, last: Bytes, direction: Direction) -> Self {
        match direction {
            Direction::Forward => Self {
                start: Bound::Excluded(last),
                ..self
            },
            Direction::Reverse => Self {
                end: Bound::Excluded(last),
                ..self
            },
        }
    }

    /// Whether the key lies below the whole range.
    pub(super) fn starts_after(&self, key: &[u8]) -> bool {
        match &self.start {
            Bound::Included(start) => key < &start[..],
            Bound::Excluded(start) => key <= &start[..],
            Bound::Unbounded => false,
        }
    }

    /// Whether the key lies above the whole range.
    pub(crate) fn ends_before(&self, key: &[u8]) -> bool {
        match &self.end {
            Bound::Included(end) => key > &end[..],
            Bound::Excluded(end) => key >= &end[..],
            Bound::Unbounded => false,
        }
    }
}

/// Statistics of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Size of its files; for an engine in memory, of the keys and values that it holds.
    pub bytes_on_disk: u64,
    /// Databases that have been written and not reclaimed.
    pub databases: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_cannot_be_raised_is_followed_by_no_key() {
        let range = KeyRange::prefix(b"\xff\xff");
        assert_eq!(range.end, Bound::Unbounded);
        assert!(range.contains(b"\xff\xff"));
        assert!(range.contains(b"\xff\xff\xff\xff"));
        assert!(!range.contains(b"\xff\xfe"));
    }

    #[test]
    fn a_prefix_is_raised_at_its_last_byte_that_can_be() {
        let range = KeyRange::prefix(b"a\xff\xff");
        assert_eq!(range.end, Bound::Excluded(Bytes::from_static(b"b")));
        assert!(range.contains(b"a\xff\xff\xff"));
        assert!(!range.contains(b"b"));
        assert_eq!(KeyRange::prefix(b""), KeyRange::of::<&[u8]>(&b""[..]..));
    }

    #[test]
    fn bounds_that_cross_hold_no_key() {
        let range = KeyRange::of(&b"b"[..]..&b"a"[..]);
        for key in [&b""[..], b"a", b"aa", b"b", b"c"] {
            assert!(!range.contains(key));
        }
    }
}
