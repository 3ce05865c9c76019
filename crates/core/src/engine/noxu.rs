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
mod preparation;
mod record;
mod scan;
mod upkeep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use steadfast_net::lock;

use bytes::Bytes;
use noxu::{CheckpointConfig, Database, DatabaseConfig, Environment, ReadOptions, Transaction};
use tempfile::TempDir;

pub use self::configuration::{FREE_DISK_BYTES_MIN, NoxuSizes};
use self::directory::{bytes_in, copy_files, make_directory_durable, remove_directory};
use self::errors::{io_error, open_error, or_full, read_error, write_error};
use self::scan::Scan;
use self::upkeep::{Turns, Upkeep, mark_roots};
use super::{
    Applied, Change, Direction, EngineBatch, EngineError, EngineFactory, EngineStats, KeyRange,
    Result, ScanLimit, StorageEngine,
};
use crate::ids::DatabaseId;
use crate::log::owner;

/// Changes per batch at which Noxu is fastest: it keeps a lock and a before-image for each change
/// until the commit, and slows as they grow. Batches 100 times as large still work.
pub const BATCH_CHANGES_BEST: usize = 1_000;
/// Bytes at which a batch takes no further transaction: Noxu holds them in memory, with the values
/// they replace, until the commit.
pub const BATCH_BYTES_BEST: usize = 4 * 1024 * 1024;

/// Rounds of cleaning at close. Each round frees what the previous round emptied; the bound keeps
/// close from chasing the last file.
const CLEAN_ROUNDS_MAX: usize = 4;
/// Changes that a batch makes, and pairs that a scan reads, before the other gets its turn: about a
/// millisecond of work.
const SLICE: usize = 256;
/// Memory pages that reads may bring into the cache before it is evicted down to its size; each
/// read counts as at least one.
const PAGES_PER_EVICTION: u64 = 1_024;
const PAGE_BYTES: usize = 4_096;
/// Bytes of keys and values that one step of reclaiming a database reads.
const RECLAIM_BYTES: usize = 4 * 1024 * 1024;
/// Records per tree node; Noxu's default is 128. To find the parent of a node that it evicts or
/// writes, Noxu walks over all nodes in memory. More than this lose nodes during recovery.
const NODE_ENTRIES: u32 = 256;
/// Attempts at a batch that loses a lock to Noxu's cleaner, which holds one only while it moves a
/// record.
const APPLY_ATTEMPTS_MAX: usize = 3;

/// Cache size left on close, and the eviction rounds to get there: usually two are enough.
const CACHE_BYTES_MIN: usize = 1024 * 1024;
const EMPTY_ROUNDS_MAX: usize = 16;
/// Number of databases up to which the cache is emptied. Noxu searches all trees for each node:
/// 10,000 trees of one node each take it 40 s a round.
const EMPTY_DATABASES_MAX: usize = 1_000;

const ENGINE_DATABASE: &str = "engine";
const DATA_DATABASE_PREFIX: &str = "data-";
const APPLIED_KEY: &[u8] = b"applied";

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

/// An open environment and its databases. Fields drop in this order: Noxu does not close an
/// environment with an open database.
struct Open {
    /// `None` once it is closing.
    upkeep: Option<Upkeep>,
    databases: BTreeMap<DatabaseId, Database>,
    engine: Database,
    environment: Environment,
    turns: Turns,
    pages_read: AtomicU64,
    /// Whether the cache was ever full, which is logged once.
    has_evicted: AtomicBool,
}

impl Open {
    fn new(environment: Environment, checkpoint_wakeup_ms: u64, turns: &Turns) -> Result<Self> {
        let engine = open_database(&environment, ENGINE_DATABASE)?;
        let names = environment
            .database_names()
            .map_err(|error| read_error("list databases", error))?;
        let mut databases = BTreeMap::new();
        for name in names {
            let Some(id) = name.strip_prefix(DATA_DATABASE_PREFIX) else {
                continue;
            };
            let id = id.parse().map_err(|_| EngineError::Corrupt {
                what: format!("{name} is not the name of a database"),
            })?;
            databases.insert(id, open_database(&environment, &name)?);
        }
        let upkeep = Upkeep::start(&environment, checkpoint_wakeup_ms, turns.clone())?;
        Ok(Self {
            upkeep: Some(upkeep),
            databases,
            engine,
            environment,
            turns: turns.clone(),
            pages_read: AtomicU64::new(0),
            has_evicted: AtomicBool::new(false),
        })
    }

    fn read_applied(&self) -> Result<Option<Applied>> {
        read(&self.engine, APPLIED_KEY)?
            .as_ref()
            .map(record::decode)
            .transpose()
    }

    fn missing_databases(&self, batch: &EngineBatch) -> Vec<DatabaseId> {
        let puts = batch
            .changes
            .iter()
            .filter(|(_, _, change)| matches!(change, Change::Put(_)));
        let mut missing: Vec<_> = puts
            .map(|(id, _, _)| *id)
            .filter(|id| !self.databases.contains_key(id))
            .collect();
        missing.dedup();
        missing
    }

    /// Creates databases.
    fn create(
        &self,
        transaction: &Transaction,
        databases: &[DatabaseId],
    ) -> noxu::Result<Vec<(DatabaseId, Database)>> {
        let create = |id: &DatabaseId| {
            let (environment, name) = (&self.environment, database_name(*id));
            let handle = environment.open_database(Some(transaction), &name, &database_config())?;
            Ok((*id, handle))
        };
        databases.iter().map(create).collect()
    }

    /// Makes the changes of the batch and writes the record of what was applied.
    ///
    /// Deletes come first: a put of a new key leaves a lock on the key after it that Noxu's delete
    /// of that key cannot upgrade ("illegal lock upgrade"), while its put can.
    fn write(&self, transaction: &Transaction, batch: &EngineBatch) -> noxu::Result<()> {
        for slice in batch.changes.chunks(SLICE) {
            let _turn = self.turns.to_move_records();
            for (id, key, change) in slice {
                if *change == Change::Delete
                    && let Some(database) = self.databases.get(id)
                {
                    database.delete_in(transaction, key)?;
                }
            }
        }
        for slice in batch.changes.chunks(SLICE) {
            let _turn = self.turns.to_move_records();
            for (id, key, change) in slice {
                if let Change::Put(value) = change {
                    // `create_databases` has ensured that it exists.
                    let database = &self.databases[id];
                    // Noxu charges its cache for a value that is read or new, but not for one that
                    // replaces a value on disk. Whether that one can be read does not matter here.
                    read(database, key).ok();
                    database.put_in(transaction, key, value)?;
                }
            }
        }
        self.engine
            .put_in(transaction, APPLIED_KEY, record::encode(&batch.applied))
    }

    fn delete(
        &self,
        transaction: &Transaction,
        database: &Database,
        pairs: &[(Bytes, Bytes)],
    ) -> noxu::Result<()> {
        for slice in pairs.chunks(SLICE) {
            let _turn = self.turns.to_move_records();
            for (key, _) in slice {
                database.delete_in(transaction, key)?;
            }
        }
        Ok(())
    }

    fn get(&self, database: &Database, key: &[u8]) -> Result<Option<Bytes>> {
        let value = read(database, key)?;
        self.count_reads(value.iter().map(Bytes::len))?;
        Ok(value)
    }

    /// Keeps reads of these sizes from filling memory: nothing else evicts for them.
    fn count_reads(&self, bytes: impl Iterator<Item = usize>) -> Result<()> {
        let pages = bytes.fold(1, |pages, bytes| pages + (bytes / PAGE_BYTES) as u64);
        let before = self.pages_read.fetch_add(pages, Ordering::Relaxed);
        // If it is held, its holder or a later read evicts.
        if before / PAGES_PER_EVICTION != (before + pages) / PAGES_PER_EVICTION
            && let Ok(_writer) = self.turns.writer.try_lock()
        {
            self.evict()
                .map_err(|error| read_error("evict records", error))?;
        }
        Ok(())
    }

    /// Evicts the cache down to its size. The caller has the writer's turn.
    fn evict(&self) -> noxu::Result<()> {
        let _turn = self.turns.to_move_records();
        let evicted = self.environment.evict_memory()?;
        if evicted > 0 && !self.has_evicted.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the engine's cache is too small for its data, which makes Noxu slow; raise \
                 engine_cache_bytes (docs/engines.md)"
            );
        }
        Ok(())
    }

    /// Removes the slots of deleted records.
    fn compress(&self) -> noxu::Result<()> {
        let _turn = self.turns.to_move_records();
        self.environment.compress().map(drop)
    }

    fn scan(
        &self,
        database: &Database,
        mut range: KeyRange,
        direction: Direction,
        mut limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let mut pairs = Vec::new();
        while !limit.is_used_up() {
            let slice = ScanLimit {
                keys: SLICE.min(limit.keys),
                ..limit
            };
            let found = {
                let records = self.turns.records.read();
                let _turn = records.unwrap_or_else(PoisonError::into_inner);
                Scan::new(database, &range, direction)?.collect(slice)?
            };
            let Some((last, _)) = found.last() else { break };
            range = range.after(last.clone(), direction);
            self.count_reads(found.iter().map(|(_, value)| PAGE_BYTES.max(value.len())))?;
            for (key, value) in &found {
                limit.take(key.len() + value.len());
            }
            let is_last = !slice.is_reached(&found);
            pairs.extend(found);
            if is_last {
                break;
            }
        }
        Ok(pairs)
    }

    /// Frees space: moves live records out of sparse files until that frees no more. What it cannot
    /// free costs only space, and is retried at the next close.
    fn clean(&self, directory: &Path) {
        let mut bytes_before = u64::MAX;
        for _ in 0..CLEAN_ROUNDS_MAX {
            let cleaned = self.clean_once();
            if let Err(error) = &cleaned {
                tracing::warn!(%error, "the engine could not free space");
            }
            let bytes = bytes_in(directory);
            if matches!(cleaned, Ok(0)) || bytes >= bytes_before {
                break;
            }
            bytes_before = bytes;
        }
    }

    /// Returns the number of files emptied.
    fn clean_once(&self) -> noxu::Result<u32> {
        let checkpoint = CheckpointConfig::new().with_force(true);
        let files = self.environment.clean_log();
        // An emptied file is removed at the second checkpoint afterwards.
        for _ in 0..2 {
            mark_roots(&self.environment);
            self.environment.checkpoint(Some(&checkpoint))?;
        }
        files
    }

    fn close(self) -> Result<()> {
        let Self {
            upkeep,
            databases,
            engine,
            mut environment,
            ..
        } = self;
        drop(upkeep);
        mark_roots(&environment);
        if databases.len() > EMPTY_DATABASES_MAX {
            tracing::info!(
                "the memory of the engine's cache stays in use: the engine has many databases"
            );
        } else if let Err(error) = empty_cache(&mut environment) {
            tracing::warn!(%error, "the memory of the engine's cache stays in use");
        }
        drop(databases);
        drop(engine);
        environment
            .close()
            .map_err(|error| io_error("close its environment", error))
    }
}

/// Frees the cache's memory, which Noxu otherwise keeps after the environment is closed. Its
/// databases are open: closed ones would lose their trees.
fn empty_cache(environment: &mut Environment) -> noxu::Result<()> {
    let mut config = environment.mutable_config()?;
    config.cache_size = Some(CACHE_BYTES_MIN);
    environment.set_mutable_config(config)?;
    for _ in 0..EMPTY_ROUNDS_MAX {
        if environment.evict_memory()? == 0 {
            break;
        }
    }
    Ok(())
}

/// Reads a value without locks.
fn read(database: &Database, key: &[u8]) -> Result<Option<Bytes>> {
    database
        .get_with_options(None, key, &ReadOptions::read_uncommitted())
        .map_err(|error| read_error("read a record", error))
}

fn database_name(id: DatabaseId) -> String {
    format!("{DATA_DATABASE_PREFIX}{id}")
}

fn database_config() -> DatabaseConfig {
    DatabaseConfig::new()
        .with_allow_create(true)
        .with_transactional(true)
        .with_node_max_entries(NODE_ENTRIES)
}

fn open_database(environment: &Environment, name: &str) -> Result<Database> {
    environment
        .open_database(None, name, &database_config())
        .map_err(|error| write_error("open a database", error))
}
