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
mod values;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use self::error::{EngineError, Result};
pub use self::memory::{Falsehood, Falsified, MemoryEngine, MemoryStore};
pub use self::noxu::{
    BATCH_BYTES_BEST, BATCH_CHANGES_BEST, FREE_DISK_BYTES_MIN, NoxuEngine, NoxuFactory, NoxuSizes,
};
pub(crate) use self::row_digest::RowDigest;
pub use self::values::{Applied, Change, Direction, EngineBatch, EngineStats, KeyRange, ScanLimit};
use crate::ids::DatabaseId;
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
