//! The on-disk data of one node: the contract of a storage engine, and the engines.
//!
//! The replicated log is the write-ahead log. An engine is written behind it, in large sorted
//! batches and without waiting for the disk; from time to time it is synced, and the log below the
//! synced position may be purged. After a crash the log is replayed from
//! [`StorageEngine::applied`].
//!
//! ```text
//!   log ──► window ──flush──► apply(batch) apply(batch) sync() apply(batch) ── crash
//!                             └────── never lost ───────────┘ └─ kept or not, whole ─┘
//! ```
//!
//! [`NoxuFactory`] opens the engine that ships, one Noxu environment per directory. [`MemoryStore`]
//! keeps a node's data in memory and models what a crash leaves of it, for the simulator and for
//! tests. `suite.rs` is the contract as a test, run against both; `docs/engines.md` has the
//! results.
//!
//! An engine has no versions and no snapshots: a read concurrent with an `apply` may see part of
//! that batch. The window above it holds every key of a batch that is being applied, and is read
//! first.

mod error;
mod memory;
mod noxu;
mod row_digest;
#[cfg(test)]
mod suite;

use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use self::error::{EngineError, Result};
pub use self::memory::{Falsehood, Falsified, MemoryEngine, MemoryStore};
pub use self::noxu::{
    BATCH_BYTES_BEST, BATCH_CHANGES_BEST, FREE_DISK_BYTES_MIN, NoxuEngine, NoxuFactory, NoxuSizes,
};
pub(crate) use self::row_digest::RowDigest;
use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};
pub use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Ordered databases of keys and values that survive a crash as a prefix of whole batches.
///
/// - After a crash (of the process or of the machine) an engine opens with the effect of the first
///   `n` batches ever applied and no others: never part of a batch, never fewer than the last
///   [`sync`](Self::sync) that returned covers.
/// - Keys are ordered bytewise. The empty key and the empty value are valid. Keys up to
///   [`KEY_BYTES_MAX`] and values up to [`VALUE_BYTES_MAX`] are accepted.
/// - A database is created by its first put. Before that, and after it was
///   [reclaimed](Self::reclaim), it reads as empty.
/// - Any thread may call any method at any time. `apply` calls are serialized. A read does not
///   wait for a whole `apply` or `sync`, at most for a slice of one; reads see every batch whose `apply` has returned,
///   and may see part of one that is still running.
pub trait StorageEngine: Send + Sync + 'static {
    /// The [`Applied`] of the last applied batch; `None` in a fresh engine.
    ///
    /// # Errors
    /// [`EngineError::Closed`], [`EngineError::Failed`].
    fn applied(&self) -> Result<Option<Applied>>;

    /// Makes all changes of the batch, together with `batch.applied`, or none. Does not sync.
    ///
    /// # Errors
    /// [`EngineError::DiskFull`] when nothing was changed and the engine stays usable. After
    /// [`EngineError::Io`] the engine refuses everything but `close`.
    ///
    /// # Panics
    /// When the changes are not in strictly ascending order of (database, key).
    fn apply(&self, batch: &EngineBatch) -> Result<()>;

    /// Makes durable every batch whose `apply` returned before this call.
    ///
    /// # Errors
    /// After [`EngineError::Io`] the engine refuses everything but `close`: what the disk holds is
    /// known only after it has been read again.
    fn sync(&self) -> Result<()>;

    /// The [`Applied`] of the last batch known to be durable. The log may be purged below it, never
    /// above.
    fn durable(&self) -> Option<Applied>;

    /// Value of the key, `None` when there is none.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] and [`EngineError::Io`] when the value cannot be read.
    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Bytes>>;

    /// The first pairs of the range, from its start or, in reverse, from its end, until `limit` is
    /// [reached](ScanLimit::is_reached). If it is not reached, the range holds no more. Continue
    /// with [`KeyRange::after`].
    ///
    /// Each pair is one that [`get`](Self::get) would have returned at some moment during the call.
    /// No state is held between calls.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] and [`EngineError::Io`] when a value cannot be read.
    fn scan(
        &self,
        database: DatabaseId,
        range: KeyRange,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>>;

    /// The databases that hold data, or did and were not reclaimed, in ascending order.
    ///
    /// # Errors
    /// [`EngineError::Closed`], [`EngineError::Failed`].
    fn databases(&self) -> Result<Vec<DatabaseId>>;

    /// Removes up to `keys_max` keys of a database, and the database with the last of them. Returns
    /// whether nothing of it is left. Does not sync: a crash may bring back some or all of the keys
    /// removed since the last sync.
    ///
    /// The caller guarantees that nobody reads or writes the database any more, and that what made
    /// it obsolete is durable in this engine.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn reclaim(&self, database: DatabaseId, keys_max: usize) -> Result<bool>;

    /// Reads everything on disk, in use or not, and verifies its checksums. Returns how many bytes
    /// it has read. May run concurrently with every other call, and takes as long as the disk does.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] with the file and the offset of the first thing that is not what
    /// was written, and the errors of [`sync`](Self::sync).
    fn check(&self) -> Result<u64>;

    /// Statistics for metrics and status.
    fn stats(&self) -> EngineStats;

    /// Syncs, frees space, stops background work. Later calls return [`EngineError::Closed`];
    /// closing twice is not an error.
    ///
    /// # Errors
    /// What [`sync`](Self::sync) returns. The engine is closed regardless.
    fn close(&self) -> Result<()>;
}

/// Opens the engine of one data directory.
pub trait EngineFactory: Send + Sync {
    /// Opens the engine in `dir`, creating it if missing. Everything that it holds is durable:
    /// [`StorageEngine::durable`] equals [`StorageEngine::applied`].
    ///
    /// # Errors
    /// [`EngineError::InUse`] when the directory is already open, [`EngineError::DiskFull`] when
    /// the volume is too full for it, [`EngineError::Corrupt`] and [`EngineError::Io`] when what is
    /// there cannot be read.
    fn open(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>>;

    /// Opens a copy of the engine in `dir`, which nobody has open. The copy is deleted on drop, and
    /// nothing is changed in `dir`.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`EngineError::Io`] when there is no room for the copy.
    fn open_copy(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>>;

    /// Whether there is an engine in `dir`, whole or not.
    ///
    /// # Errors
    /// [`EngineError::Io`] when the volume cannot tell.
    fn exists(&self, dir: &Path) -> Result<bool>;

    /// Removes the engine in `dir`, which nobody has open, with everything that it holds; durable
    /// on return. A missing engine is not an error. A crash may leave any part of it.
    ///
    /// # Errors
    /// [`EngineError::InUse`] when it is open, [`EngineError::Io`].
    fn remove(&self, dir: &Path) -> Result<()>;
}

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
    /// Replaces what [`StorageEngine::applied`] returns.
    pub applied: Applied,
    /// In strictly ascending order of (database, key). May be empty.
    pub changes: Vec<(DatabaseId, Bytes, Change)>,
}

impl EngineBatch {
    /// Panics when the changes are not in strictly ascending order: an engine that took them would
    /// keep whichever of two changes to one key comes last.
    fn assert_sorted(&self) {
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
    fn starts_after(&self, key: &[u8]) -> bool {
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
