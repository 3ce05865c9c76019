//! The open environment: what one call of the engine does with Noxu.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use noxu::{
    CheckpointConfig, Database, DatabaseConfig, Environment, NoxuError, ReadOptions, Transaction,
};
use tokio::time::Instant;

use super::directory::bytes_in;
use super::errors::{io_error, read_error, write_error};
use super::record;
use super::scan::Scan;
use super::upkeep::{Turns, Upkeep, mark_roots};
use crate::engine::error::{EngineError, Result};
use crate::engine::values::{Applied, Change, Direction, EngineBatch, KeyRange, ScanLimit};
use crate::ids::DatabaseId;

/// Cache size left on close, and the eviction rounds to get there: usually two are enough.
const CACHE_BYTES_MIN: usize = 1024 * 1024;
const EMPTY_ROUNDS_MAX: usize = 16;
/// Rounds of cleaning at close. Each round frees what the previous round emptied; the bound keeps
/// close from chasing the last file.
const CLEAN_ROUNDS_MAX: usize = 4;
/// How long a close may begin to empty files. One takes up to some 100 ms.
const CLEAN_MAX: Duration = Duration::from_secs(1);
/// Changes that a batch makes, and pairs that a scan reads, before the other gets its turn: about a
/// millisecond of work.
const SLICE: usize = 256;
/// Memory pages that reads may bring into the cache before it is evicted down to its size; each
/// read counts as at least one.
const PAGES_PER_EVICTION: u64 = 1_024;
const PAGE_BYTES: usize = 4_096;
/// Number of databases up to which the cache is emptied. Noxu searches all trees for each node:
/// 10,000 trees of one node each take it 40 s a round.
const EMPTY_DATABASES_MAX: usize = 1_000;
/// Records per tree node; Noxu's default is 128. To find the parent of a node that it evicts or
/// writes, Noxu walks over all nodes in memory. More than this lose nodes during recovery.
const NODE_ENTRIES: u32 = 256;
const ENGINE_DATABASE: &str = "engine";
const DATA_DATABASE_PREFIX: &str = "data-";
const APPLIED_KEY: &[u8] = b"applied";

/// An open environment and its databases. Fields drop in this order: Noxu does not close an
/// environment with an open database.
pub(super) struct Open {
    /// `None` once it is closing.
    pub(super) upkeep: Option<Upkeep>,
    pub(super) databases: BTreeMap<DatabaseId, Database>,
    pub(super) engine: Database,
    pub(super) environment: Environment,
    pub(super) turns: Turns,
    pub(super) pages_read: AtomicU64,
    /// Whether the cache was ever full, which is logged once.
    pub(super) has_evicted: AtomicBool,
}

impl Open {
    pub(super) fn new(
        environment: Environment,
        checkpoint_wakeup_ms: u64,
        turns: &Turns,
    ) -> Result<Self> {
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

    pub(super) fn read_applied(&self) -> Result<Option<Applied>> {
        read(&self.engine, APPLIED_KEY)?
            .as_ref()
            .map(record::decode)
            .transpose()
    }

    pub(super) fn missing_databases(&self, batch: &EngineBatch) -> Vec<DatabaseId> {
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
    pub(super) fn create(
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
    pub(super) fn write(&self, transaction: &Transaction, batch: &EngineBatch) -> noxu::Result<()> {
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

    pub(super) fn delete(
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

    pub(super) fn get(&self, database: &Database, key: &[u8]) -> Result<Option<Bytes>> {
        let value = read(database, key)?;
        self.count_reads(value.iter().map(Bytes::len))?;
        Ok(value)
    }

    /// Keeps reads of these sizes from filling memory: nothing else evicts for them.
    pub(super) fn count_reads(&self, bytes: impl Iterator<Item = usize>) -> Result<()> {
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
    pub(super) fn evict(&self) -> noxu::Result<()> {
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
    pub(super) fn compress(&self) -> noxu::Result<()> {
        let _turn = self.turns.to_move_records();
        self.environment.compress().map(drop)
    }

    pub(super) fn scan(
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

    /// Frees space: moves live records out of sparse files until that frees no more, for at most
    /// [`CLEAN_MAX`]. What it cannot free costs only space, and is retried at the next close.
    pub(super) fn clean(&self, directory: &Path) {
        let until = Instant::now() + CLEAN_MAX;
        let mut bytes_before = u64::MAX;
        for _ in 0..CLEAN_ROUNDS_MAX {
            let cleaned = self.clean_files(until);
            if let Err(error) = &cleaned {
                tracing::warn!(%error, "the engine could not free space");
            }
            let bytes = bytes_in(directory);
            let is_over = Instant::now() >= until;
            if matches!(cleaned, Ok(0)) || bytes >= bytes_before || is_over {
                break;
            }
            bytes_before = bytes;
        }
    }

    /// Empties sparse files, one after another, and begins none after `until`. Returns their number.
    fn clean_files(&self, until: Instant) -> noxu::Result<u32> {
        let parts = self.environment.env_impl_arc_for_test();
        let mut files = 0;
        while Instant::now() < until {
            let pass = parts.lock().run_cleaner(1, false);
            let emptied = pass
                .map_err(|error| NoxuError::OperationNotAllowed(error.to_string()))?
                .files_cleaned;
            if emptied == 0 {
                break;
            }
            files += emptied;
        }
        let checkpoint = CheckpointConfig::new().with_force(true);
        // A file that was emptied here or before is removed at the second checkpoint afterwards.
        for _ in 0..2 {
            mark_roots(&self.environment);
            self.environment.checkpoint(Some(&checkpoint))?;
        }
        Ok(files)
    }

    pub(super) fn close(self) -> Result<()> {
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
pub(super) fn empty_cache(environment: &mut Environment) -> noxu::Result<()> {
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
pub(super) fn read(database: &Database, key: &[u8]) -> Result<Option<Bytes>> {
    database
        .get_with_options(None, key, &ReadOptions::read_uncommitted())
        .map_err(|error| read_error("read a record", error))
}

pub(super) fn database_name(id: DatabaseId) -> String {
    format!("{DATA_DATABASE_PREFIX}{id}")
}

pub(super) fn database_config() -> DatabaseConfig {
    DatabaseConfig::new()
        .with_allow_create(true)
        .with_transactional(true)
        .with_node_max_entries(NODE_ENTRIES)
}

pub(super) fn open_database(environment: &Environment, name: &str) -> Result<Database> {
    environment
        .open_database(None, name, &database_config())
        .map_err(|error| write_error("open a database", error))
}
