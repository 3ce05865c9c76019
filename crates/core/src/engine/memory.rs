//! An engine in memory that knows which of its batches a crash may take.
//!
//! A [`MemoryStore`] is the disk of one node: it outlives the [`MemoryEngine`] that is open on it.
//! It holds an image of everything synced and, in order, the batches applied since. A crash keeps
//! as many of those as the caller says and ends the open engine.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    Applied, Change, Direction, EngineBatch, EngineError, EngineFactory, EngineStats, KeyRange,
    Result, StorageEngine,
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

    /// Number of batches that a crash may take: those applied since the last sync.
    pub fn unsynced_batches(&self) -> usize {
        self.disk().unsynced.len()
    }

    /// Ends the open engine as a crash does: of the batches applied since the last sync the first
    /// `kept` survive (all, when there are fewer). Every call of that engine fails from here on.
    pub fn crash(&self, kept: usize) {
        let mut disk = self.disk();
        let unsynced = std::mem::take(&mut disk.unsynced);
        for batch in unsynced.iter().take(kept) {
            disk.synced.apply(batch);
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
        let mut disk = self.disk()?;
        disk.current.apply(batch);
        disk.unsynced.push(batch.clone());
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
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let disk = self.disk()?;
        let Some(keys) = disk.current.databases.get(&database) else {
            return Ok(Vec::new());
        };
        let pair = |(key, value): (&Bytes, &Bytes)| (key.clone(), value.clone());
        // Only the near bound is given to the map, which panics on bounds that cross.
        let pairs = match direction {
            Direction::Forward => keys
                .range((range.start.clone(), Bound::Unbounded))
                .take_while(|(key, _)| range.contains(key))
                .take(limit)
                .map(pair)
                .collect(),
            Direction::Reverse => keys
                .range((Bound::Unbounded, range.end.clone()))
                .rev()
                .take_while(|(key, _)| range.contains(key))
                .take(limit)
                .map(pair)
                .collect(),
        };
        Ok(pairs)
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

#[derive(Debug, Default)]
struct Disk {
    /// What a crash cannot take.
    synced: Image,
    /// What a crash takes from the end, in the order of their application.
    unsynced: Vec<EngineBatch>,
    /// `synced` with all of `unsynced`: what reads see.
    current: Image,
    /// Number of engines that have been opened: the life of the newest.
    opened: u64,
    /// Life of the engine that is open.
    open: Option<u64>,
}

impl Disk {
    fn sync(&mut self) {
        for batch in self.unsynced.drain(..) {
            self.synced.apply(&batch);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Image {
    applied: Option<Applied>,
    databases: BTreeMap<DatabaseId, BTreeMap<Bytes, Bytes>>,
}

impl Image {
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
