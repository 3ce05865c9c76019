//! An engine in memory that knows which of its batches a crash may take.
//!
//! A [`MemoryStore`] is the disk of one node: it outlives the [`MemoryEngine`] that is open on it.
//! It holds an image of everything synced and, in order, the steps made since: batches, and keys
//! that were given up. A crash keeps as many of those as the caller says and ends the open engine.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    Applied, Change, Direction, EngineBatch, EngineError, EngineFactory, EngineStats, KeyRange,
    Result, ScanLimit, StorageEngine,
};
use crate::ids::DatabaseId;

/// The data of one node in memory: what a directory is to the engine on disk. Clones share it.
///
/// As an [`EngineFactory`] it opens itself, whatever the directory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    disk: Arc<Mutex<Disk>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of steps that a crash may take: batches applied and parts of databases reclaimed
    /// since the last sync.
    pub fn unsynced_steps(&self) -> usize {
        self.disk().unsynced.len()
    }

    /// Another store with everything that this one holds, as a copy of a directory is.
    #[must_use]
    pub fn copy(&self) -> Self {
        let held = self.disk().current.clone();
        let disk = Disk {
            synced: held.clone(),
            current: held,
            ..Disk::default()
        };
        Self {
            disk: Arc::new(Mutex::new(disk)),
        }
    }

    /// Ends the open engine as a crash does: of the steps since the last sync the first `kept`
    /// survive (all, when there are fewer). Every call of that engine fails from here on.
    pub fn crash(&self, kept: usize) {
        let mut disk = self.disk();
        let unsynced = std::mem::take(&mut disk.unsynced);
        for step in unsynced.iter().take(kept) {
            disk.synced.make(step);
        }
        disk.current = disk.synced.clone();
        disk.open = None;
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        // A panic under this lock can only come from an allocation that failed between two whole
        // steps: the state is usable.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineFactory for MemoryStore {
    fn open(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>> {
        let mut disk = self.disk();
        if disk.open.is_some() {
            return Err(EngineError::InUse {
                directory: PathBuf::from(dir),
            });
        }
        disk.opened += 1;
        disk.open = Some(disk.opened);
        disk.sync();
        Ok(Arc::new(MemoryEngine {
            life: disk.opened,
            store: self.clone(),
        }))
    }
}

/// One life of a [`MemoryStore`]: from open to close, crash or drop.
#[derive(Debug)]
pub struct MemoryEngine {
    /// Only the engine whose life equals the store's may use it.
    life: u64,
    store: MemoryStore,
}

impl MemoryEngine {
    fn disk(&self) -> Result<MutexGuard<'_, Disk>> {
        let disk = self.store.disk();
        if disk.open == Some(self.life) {
            Ok(disk)
        } else {
            Err(EngineError::Closed)
        }
    }
}

impl StorageEngine for MemoryEngine {
    fn applied(&self) -> Result<Option<Applied>> {
        Ok(self.disk()?.current.applied.clone())
    }

    fn apply(&self, batch: &EngineBatch) -> Result<()> {
        batch.assert_sorted();
        self.disk()?.make(Step::Batch(batch.clone()));
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.disk()?.sync();
        Ok(())
    }

    fn durable(&self) -> Option<Applied> {
        self.store.disk().synced.applied.clone()
    }

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Bytes>> {
        let disk = self.disk()?;
        Ok(disk
            .current
            .databases
            .get(&database)
            .and_then(|keys| keys.get(key))
            .cloned())
    }

    fn scan(
        &self,
        database: DatabaseId,
        range: KeyRange,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let disk = self.disk()?;
        let Some(keys) = disk.current.databases.get(&database) else {
            return Ok(Vec::new());
        };
        // Only the near bound is given to the map, which panics on bounds that cross.
        let pairs = match direction {
            Direction::Forward => {
                let from = keys.range((range.start.clone(), Bound::Unbounded));
                take(from, &range, limit)
            }
            Direction::Reverse => {
                let from = keys.range((Bound::Unbounded, range.end.clone()));
                take(from.rev(), &range, limit)
            }
        };
        Ok(pairs)
    }

    fn databases(&self) -> Result<Vec<DatabaseId>> {
        Ok(self.disk()?.current.databases.keys().copied().collect())
    }

    fn reclaim(&self, database: DatabaseId, keys_max: usize) -> Result<bool> {
        let mut disk = self.disk()?;
        let Some(keys) = disk.current.databases.get(&database) else {
            return Ok(true);
        };
        let given_up = keys.keys().take(keys_max).cloned().collect();
        disk.make(Step::Reclaim(database, given_up));
        Ok(!disk.current.databases.contains_key(&database))
    }

    fn check(&self) -> Result<u64> {
        self.sync()?;
        Ok(self.stats().bytes_on_disk)
    }

    fn stats(&self) -> EngineStats {
        let disk = self.store.disk();
        let databases = &disk.current.databases;
        let bytes = databases
            .values()
            .flatten()
            .map(|(key, value)| key.len() + value.len());
        EngineStats {
            bytes_on_disk: bytes.sum::<usize>() as u64,
            databases: databases.len(),
        }
    }

    fn close(&self) -> Result<()> {
        if let Ok(mut disk) = self.disk() {
            disk.sync();
            disk.open = None;
        }
        Ok(())
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        if let Ok(mut disk) = self.disk() {
            disk.open = None;
        }
    }
}

/// The first of the pairs that lie in the range, up to the limit.
fn take<'a>(
    pairs: impl Iterator<Item = (&'a Bytes, &'a Bytes)>,
    range: &KeyRange,
    mut limit: ScanLimit,
) -> Vec<(Bytes, Bytes)> {
    let mut taken = Vec::new();
    let mut inside = pairs.take_while(|(key, _)| range.contains(key));
    while !limit.is_used_up()
        && let Some((key, value)) = inside.next()
    {
        limit.take(key.len() + value.len());
        taken.push((key.clone(), value.clone()));
    }
    taken
}

/// Something that changes the data and that a crash may take.
#[derive(Debug)]
enum Step {
    Batch(EngineBatch),
    /// Keys that are given up, and their database when it holds no more.
    Reclaim(DatabaseId, Vec<Bytes>),
}

#[derive(Debug, Default)]
struct Disk {
    /// What a crash cannot take.
    synced: Image,
    /// What a crash takes from the end, in order.
    unsynced: Vec<Step>,
    /// `synced` with all of `unsynced`: what reads see.
    current: Image,
    /// Number of engines that have been opened: the life of the newest.
    opened: u64,
    /// Life of the engine that is open.
    open: Option<u64>,
}

impl Disk {
    fn make(&mut self, step: Step) {
        self.current.make(&step);
        self.unsynced.push(step);
    }

    fn sync(&mut self) {
        for step in self.unsynced.drain(..) {
            self.synced.make(&step);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Image {
    applied: Option<Applied>,
    databases: BTreeMap<DatabaseId, BTreeMap<Bytes, Bytes>>,
}

impl Image {
    fn make(&mut self, step: &Step) {
        match step {
            Step::Batch(batch) => self.apply(batch),
            Step::Reclaim(database, given_up) => {
                if let Some(keys) = self.databases.get_mut(database) {
                    keys.retain(|key, _| given_up.binary_search(key).is_err());
                    if keys.is_empty() {
                        self.databases.remove(database);
                    }
                }
            }
        }
    }

    fn apply(&mut self, batch: &EngineBatch) {
        for (database, key, change) in &batch.changes {
            match change {
                Change::Put(value) => {
                    let keys = self.databases.entry(*database).or_default();
                    keys.insert(key.clone(), value.clone());
                }
                Change::Delete => {
                    if let Some(keys) = self.databases.get_mut(database) {
                        keys.remove(key);
                    }
                }
            }
        }
        self.applied = Some(batch.applied.clone());
    }
}
