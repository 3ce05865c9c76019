//! The engine that ships: one Noxu environment per directory.
//!
//! Each of our databases is one Noxu database, `data-<id>`; one more, `engine`, has a single record
//! of what was applied. A batch is one Noxu transaction, committed without sync; a sync flushes
//! Noxu's log to the disk. A thread of ours makes checkpoints and cleans files while the engine is
//! open.
//!
//! Reads take no Noxu lock (read-uncommitted), so that reads and batches never deadlock. A Noxu
//! cursor that moves during concurrent writes skips and repeats keys, so batches and scans take
//! turns, in slices that are short whatever the size of the batch or the scan.
//!
//! `docs/engines.md` gives the reason for each setting, and the properties of Noxu that this file
//! works around.

mod begun_file;
mod check;
mod commit;
mod configuration;
mod directory;
mod errors;
mod log_file;
mod lost_commits;
mod node_ids;
mod open;
mod preparation;
mod record;
mod scan;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use steadfast_net::lock;

use bytes::Bytes;
use noxu::{Environment, Transaction};
use tempfile::TempDir;

pub use self::configuration::{FREE_DISK_BYTES_MIN, NoxuSizes};
use self::directory::{bytes_in, copy_files, make_directory_durable, remove_directory};
use self::errors::{io_error, open_error, or_full, write_error};
use self::open::{Open, database_name, open_database};
use self::upkeep::Turns;
use super::{
    Applied, Direction, EngineBatch, EngineError, EngineFactory, EngineStats, KeyRange, Result,
    ScanLimit, StorageEngine,
};
use crate::ids::DatabaseId;
use crate::log::owner;

/// Changes per batch at which Noxu is fastest: it keeps a lock and a before-image for each change
/// until the commit, and slows as they grow. Batches 100 times as large still work.
pub const BATCH_CHANGES_BEST: usize = 1_000;
/// Bytes at which a batch takes no further transaction: Noxu holds them in memory, with the values
/// they replace, until the commit.
pub const BATCH_BYTES_BEST: usize = 4 * 1024 * 1024;

/// Bytes of keys and values that one step of reclaiming a database reads.
const RECLAIM_BYTES: usize = 4 * 1024 * 1024;
/// Attempts at a batch that loses a lock to Noxu's cleaner, which holds one only while it moves a
/// record.
const APPLY_ATTEMPTS_MAX: usize = 3;

/// Opens [`NoxuEngine`]s.
#[derive(Clone, Debug)]
pub struct NoxuFactory {
    /// Memory for Noxu's cache.
    pub cache_bytes: u64,
}

impl EngineFactory for NoxuFactory {
    fn open(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>> {
        Ok(Arc::new(NoxuEngine::open(dir, self.cache_bytes)?))
    }

    fn open_copy(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>> {
        let copy = copy_files(dir).map_err(|source| {
            io_error("copy its files into a temporary directory (TMPDIR)", source)
        })?;
        let mut engine = NoxuEngine::open(copy.path(), self.cache_bytes)?;
        engine.copy = Some(copy);
        Ok(Arc::new(engine))
    }

    fn exists(&self, dir: &Path) -> Result<bool> {
        dir.try_exists()
            .map_err(|source| io_error("look for its files", source))
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        remove_directory(dir).map_err(|source| io_error("remove its files", source))
    }
}

/// A Noxu environment as a storage engine.
pub struct NoxuEngine {
    directory: PathBuf,
    /// `None` when closed. Every call holds it for reading while it runs, so that `close` (and the
    /// creation of a database) waits for the calls that are in Noxu. Acquired after the writer's
    /// turn.
    open: RwLock<Option<Open>>,
    turns: Turns,
    progress: Mutex<Progress>,
    /// Set for good once the state on disk is unknown.
    failed: AtomicBool,
    /// For a copy: its directory, deleted with it.
    copy: Option<TempDir>,
}

impl NoxuEngine {
    /// Opens the engine in `directory`, creating it if missing, with `cache_bytes` of memory for
    /// its cache.
    ///
    /// # Errors
    /// See [`EngineFactory::open`].
    pub fn open(directory: &Path, cache_bytes: u64) -> Result<Self> {
        Self::open_with(directory, NoxuSizes::with_cache(cache_bytes))
    }

    /// Opens the engine in `directory`, creating it if missing. The sizes may differ from earlier
    /// ones, but no file may be larger than the size now given.
    ///
    /// # Errors
    /// See [`EngineFactory::open`].
    pub fn open_with(directory: &Path, sizes: NoxuSizes) -> Result<Self> {
        let opened = Self::open_prepared(directory, sizes);
        opened.map_err(or_full)
    }

    fn open_prepared(directory: &Path, sizes: NoxuSizes) -> Result<Self> {
        make_directory_durable(directory).map_err(|source| io_error("sync its files", source))?;
        preparation::prepare(directory)?;
        Self::open_files(directory, sizes).map_err(|error| check::why_not_open(directory, error))
    }

    fn open_files(directory: &Path, sizes: NoxuSizes) -> Result<Self> {
        let environment = Environment::open(configuration::of(directory, sizes))
            .map_err(|error| open_error(directory, error))?;
        // Noxu creates files as the user that runs it.
        owner::inherit_within(directory)
            .map_err(|source| io_error("set the owner of its files", source))?;
        let turns = Turns::default();
        let open = Open::new(environment, sizes.checkpoint_wakeup_ms, &turns)?;
        let applied = open.read_applied()?;
        let progress = Progress {
            durable: applied.clone(),
            applied,
            ..Progress::default()
        };
        Ok(Self {
            directory: directory.to_owned(),
            open: RwLock::new(Some(open)),
            turns,
            progress: Mutex::new(progress),
            failed: AtomicBool::new(false),
            copy: None,
        })
    }

    /// Runs `call` on the open environment.
    fn with_open<T>(&self, call: impl FnOnce(&Open) -> Result<T>) -> Result<T> {
        if self.failed.load(Ordering::Acquire) {
            return Err(EngineError::Failed);
        }
        match &*self.open_guard() {
            Some(open) => call(open),
            None => Err(EngineError::Closed),
        }
    }

    fn open_guard(&self) -> RwLockReadGuard<'_, Option<Open>> {
        // Nothing under this lock can panic between two steps that belong together.
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// Ends upkeep, after any checkpoint or file cleaning in progress.
    fn stop_upkeep(&self) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let upkeep = open.as_mut().and_then(|open| open.upkeep.take());
        drop(open);
        // Dropping it may wait for a batch, which waits for `open`.
        drop(upkeep);
    }

    /// Creates the databases that the batch puts a first record into: together, or each would be
    /// synced by itself.
    fn create_databases(&self, batch: &EngineBatch) -> Result<()> {
        let missing = self.with_open(|open| Ok(open.missing_databases(batch)))?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let open = open.as_mut().ok_or(EngineError::Closed)?;
        let created = self.commit(open, |transaction| open.create(transaction, &missing))?;
        open.databases.extend(created);
        Ok(())
    }

    /// Makes changes in one Noxu transaction, and retries if it loses a lock.
    fn commit<T>(&self, open: &Open, write: impl Fn(&Transaction) -> noxu::Result<T>) -> Result<T> {
        // Noxu checks the free space only every few seconds. A batch that finds out by a failed
        // write leaves an environment that must be reopened.
        open.environment
            .refresh_disk_limit()
            .and_then(|()| open.evict())
            .map_err(|error| write_error("prepare for a batch", error))?;
        let mut attempt = 1;
        loop {
            let failure = match open.commit(&write) {
                Ok(written) => return Ok(written),
                Err(failure) => failure,
            };
            let again = failure.undone && failure.error.is_retryable();
            if !again || attempt == APPLY_ATTEMPTS_MAX {
                self.note_failure(open, failure.undone);
                return Err(write_error("apply a batch", failure.error));
            }
            attempt += 1;
        }
    }

    /// Removes an empty database. `false` when its name is locked: nothing was changed, and the
    /// next attempt may succeed.
    fn remove_database(&self, database: DatabaseId) -> Result<bool> {
        let name = database_name(database);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let open = open.as_mut().ok_or(EngineError::Closed)?;
        // Noxu removes no database with an open handle.
        drop(open.databases.remove(&database));
        match open.environment.remove_database(None, &name) {
            Ok(()) => Ok(true),
            Err(error) if error.is_retryable() => {
                let handle = open_database(&open.environment, &name)?;
                open.databases.insert(database, handle);
                Ok(false)
            }
            Err(error) => {
                self.note_failure(open, false);
                Err(write_error("remove a database", error))
            }
        }
    }

    /// Notes that the state on disk is unknown when Noxu says so or could not undo a batch.
    fn note_failure(&self, open: &Open, undone: bool) {
        if !undone || !open.environment.is_valid() {
            self.failed.store(true, Ordering::Release);
        }
    }
}

impl StorageEngine for NoxuEngine {
    fn applied(&self) -> Result<Option<Applied>> {
        self.with_open(|_| Ok(self.progress().applied.clone()))
    }

    fn apply(&self, batch: &EngineBatch) -> Result<()> {
        batch.assert_sorted();
        let _writer = self.turns.to_write();
        self.create_databases(batch)?;
        self.with_open(|open| {
            self.commit(open, |transaction| open.write(transaction, batch))?;
            let mut progress = self.progress();
            progress.applied = Some(batch.applied.clone());
            progress.batches_applied += 1;
            Ok(())
        })
    }

    fn sync(&self) -> Result<()> {
        self.with_open(|open| {
            let (applied, batches) = {
                let progress = self.progress();
                (progress.applied.clone(), progress.batches_applied)
            };
            // Between two batches, never inside one.
            if let Ok(_writer) = self.turns.writer.try_lock() {
                open.compress()
                    .map_err(|error| io_error("remove deleted records", error))?;
            }
            if let Err(error) = open.environment.flush_log(true) {
                self.note_failure(open, false);
                return Err(io_error("sync its log", error));
            }
            let mut progress = self.progress();
            // Of two concurrent syncs, the one that began first may end last.
            if batches >= progress.batches_durable {
                progress.durable = applied;
                progress.batches_durable = batches;
            }
            Ok(())
        })
    }

    fn durable(&self) -> Option<Applied> {
        self.progress().durable.clone()
    }

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Bytes>> {
        self.with_open(|open| match open.databases.get(&database) {
            Some(handle) => open.get(handle, key),
            None => Ok(None),
        })
    }

    fn scan(
        &self,
        database: DatabaseId,
        range: KeyRange,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        self.with_open(|open| match open.databases.get(&database) {
            Some(handle) => open.scan(handle, range, direction, limit),
            None => Ok(Vec::new()),
        })
    }

    fn databases(&self) -> Result<Vec<DatabaseId>> {
        self.with_open(|open| Ok(open.databases.keys().copied().collect()))
    }

    fn reclaim(&self, database: DatabaseId, keys_max: usize) -> Result<bool> {
        let _writer = self.turns.to_write();
        let is_empty = self.with_open(|open| {
            let Some(handle) = open.databases.get(&database) else {
                return Ok(None);
            };
            let limit = ScanLimit {
                keys: keys_max,
                bytes: RECLAIM_BYTES,
            };
            let found = open.scan(handle, KeyRange::all(), Direction::Forward, limit)?;
            self.commit(open, |transaction| open.delete(transaction, handle, &found))?;
            // Otherwise the next step would walk over the slots of these keys again.
            open.compress()
                .map_err(|error| io_error("remove deleted records", error))?;
            Ok(Some(!limit.is_reached(&found)))
        })?;
        match is_empty {
            None => Ok(true),
            Some(false) => Ok(false),
            Some(true) => self.remove_database(database),
        }
    }

    fn check(&self) -> Result<u64> {
        self.sync()?;
        check::files(&self.directory, || self.sync())
    }

    fn stats(&self) -> EngineStats {
        let open = self.open_guard();
        let databases = open.as_ref().map_or(0, |open| open.databases.len());
        EngineStats {
            bytes_on_disk: bytes_in(&self.directory),
            databases,
        }
    }

    fn close(&self) -> Result<()> {
        self.stop_upkeep();
        let _writer = self.turns.to_write();
        let synced = match self.sync() {
            Err(EngineError::Closed) => return Ok(()),
            synced => synced,
        };
        let open = self
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(open) = open else { return Ok(()) };
        if synced.is_ok() {
            open.clean(&self.directory);
        }
        let closed = open.close();
        let owned = owner::inherit_within(&self.directory);
        let owned = owned.map_err(|source| io_error("set the owner of its files", source));
        closed.and(synced).and(owned)
    }
}

impl Drop for NoxuEngine {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.take()
            && let Err(error) = open.close()
        {
            tracing::warn!(%error, "the engine was dropped, but did not close cleanly");
        }
        if let Some(copy) = self.copy.take()
            && let Err(error) = copy.close()
        {
            tracing::warn!(%error, "could not remove a temporary copy of an engine");
        }
    }
}

/// How far the engine has got. Counts of batches tell which of two syncs covers more.
#[derive(Default)]
struct Progress {
    applied: Option<Applied>,
    batches_applied: u64,
    durable: Option<Applied>,
    batches_durable: u64,
}
