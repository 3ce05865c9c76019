//! Puts right from the log what an engine has lost: looks up the last change of each key in the
//! log, and writes it again where the engine differs.
//!
//! The log is read backwards from the engine's position, so the first change of a key that is met
//! is its last one. Batches numbered in vain are skipped as in `txn/history.rs`: seen from the end,
//! they begin above the transaction that is looked for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::engine::{
    Applied, BATCH_BYTES_BEST, BATCH_CHANGES_BEST, Change, EngineBatch, EngineError, StorageEngine,
};
use crate::ids::{DatabaseId, LogPosition, Vlsn};
use crate::log::{Entry, EntryKind, Log, LogError};
use crate::txn::batch::{Batch, BatchError, Operation};
use crate::txn::catalog::{self, CATALOG};

/// Entries read at once; they may be large.
const BLOCK: u64 = 32;
/// Maximum number of different keys looked up: some 150 MB of memory, and more keys than a log of
/// the default size has. Beyond that a node in doubt copies the state of a peer.
const KEYS_MAX: usize = 4_000_000;

/// Why the log could not be traced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RetraceError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// The result of retracing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retraced {
    /// Keys looked up.
    pub(crate) keys: u64,
    /// Keys that were wrong in the engine and were put right.
    pub(crate) put_right: u64,
}

/// Looks up the last change of each key in the part of the log that is kept and applied to
/// `engine`, and durably puts right what differs.
///
/// # Errors
/// See [`RetraceError`].
pub(crate) async fn retrace(
    log: &Log,
    engine: &Arc<dyn StorageEngine>,
) -> Result<Retraced, RetraceError> {
    let Some(applied) = engine.applied()? else {
        return Ok(Retraced::default());
    };
    let mut retraced = Retraced::default();
    loop {
        let mut trace = Trace {
            engine: &**engine,
            named: named(&**engine)?,
            vlsn: applied.vlsn,
            seen: HashSet::new(),
            put_right: 0,
            is_catalog_wrong: false,
        };
        trace.run(log, &applied).await?;
        retraced.keys = retraced.keys.max(trace.seen.len() as u64);
        retraced.put_right += trace.put_right;
        // With a corrected catalog, other databases count.
        if !trace.is_catalog_wrong {
            break;
        }
    }
    if retraced.put_right > 0 {
        engine.sync()?;
    }
    Ok(retraced)
}

/// The databases whose rows count. An invalid catalog is put right first.
fn named(engine: &dyn StorageEngine) -> Result<BTreeSet<DatabaseId>, EngineError> {
    let names = match catalog::named(engine) {
        Err(EngineError::Corrupt { .. }) => BTreeMap::new(),
        names => names?,
    };
    Ok(names.into_values().chain([CATALOG]).collect())
}

struct Trace<'a> {
    engine: &'a dyn StorageEngine,
    named: BTreeSet<DatabaseId>,
    /// The last transaction before those examined.
    vlsn: Vlsn,
    /// Hashes of the keys met so far.
    seen: HashSet<u128>,
    put_right: u64,
    is_catalog_wrong: bool,
}

impl Trace<'_> {
    async fn run(&mut self, log: &Log, applied: &Applied) -> Result<(), RetraceError> {
        let purged = log.state().purged;
        let first = purged.map_or(0, |purged| purged.position.0 + 1);
        let mut end = applied.position.0 + 1;
        while end > first && self.seen.len() < KEYS_MAX {
            let begin = end.saturating_sub(BLOCK).max(first);
            let entries = read(log, begin, end).await?;
            let wrong = self.wrong(entries)?;
            self.put_right(applied, wrong)?;
            end = begin;
        }
        Ok(())
    }

    /// The last change in these entries of each key not changed by a later entry, where the engine
    /// differs.
    fn wrong(&mut self, entries: Vec<Entry>) -> Result<Vec<Operation>, RetraceError> {
        let mut last = Vec::new();
        for entry in entries.into_iter().rev() {
            if entry.kind != EntryKind::Transactions {
                continue;
            }
            let batch = Batch::parse(entry.payload)?;
            if batch.first() > self.vlsn {
                continue;
            }
            self.vlsn = Vlsn(batch.first().0 - 1);
            let mut operations = Vec::new();
            batch.for_each(|_, operation| operations.push(operation));
            for operation in operations.into_iter().rev() {
                let counts = self.named.contains(&operation.database);
                if counts && self.seen.insert(hash(&operation)) {
                    last.push(operation);
                }
            }
        }
        // In the engine's order.
        last.sort_unstable_by(|a, b| (a.database, &a.key).cmp(&(b.database, &b.key)));
        let mut wrong = Vec::new();
        for operation in last {
            if self.engine.get(operation.database, &operation.key)? != operation.value {
                wrong.push(operation);
            }
        }
        Ok(wrong)
    }

    /// Applies these changes to the engine, each key once and in the engine's order, leaving its
    /// applied point as it is.
    fn put_right(&mut self, applied: &Applied, wrong: Vec<Operation>) -> Result<(), EngineError> {
        self.put_right += wrong.len() as u64;
        let mut wrong = wrong.into_iter().peekable();
        while wrong.peek().is_some() {
            let (mut changes, mut bytes) = (Vec::new(), 0);
            while changes.len() < BATCH_CHANGES_BEST
                && bytes < BATCH_BYTES_BEST
                && let Some(operation) = wrong.next()
            {
                bytes += operation.encoded_bytes();
                self.is_catalog_wrong |= operation.database == CATALOG;
                let change = operation.value.map_or(Change::Delete, Change::Put);
                changes.push((operation.database, operation.key, change));
            }
            let applied = applied.clone();
            self.engine.apply(&EngineBatch { applied, changes })?;
        }
        Ok(())
    }
}

/// The hash that identifies a key: two keys collide as rarely as a digest misses a row.
fn hash(operation: &Operation) -> u128 {
    xxh3_128_with_seed(&operation.key, operation.database.0.into())
}

async fn read(log: &Log, begin: u64, end: u64) -> Result<Vec<Entry>, LogError> {
    let mut entries: Vec<Entry> = Vec::new();
    while begin + (entries.len() as u64) < end {
        let next = LogPosition(begin + entries.len() as u64);
        let read = log.read(next..LogPosition(end), usize::MAX).await?;
        if read.is_empty() {
            break;
        }
        entries.extend(read);
    }
    Ok(entries)
}
