//! An in-memory engine that knows which of its batches a crash may lose.
//!
//! A [`MemoryStore`] is the disk of one node: it outlives the [`MemoryEngine`]s that are open on
//! it, one for each directory. A directory is an image of everything synced and, in order, the
//! steps made since: batches, and keys that were reclaimed. A crash keeps as many of those as the
//! caller says and ends the open engines. Rows can be made wrong behind an engine's back
//! ([`MemoryStore::falsify`]).

mod falsehood;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use steadfast_net::lock;

use bytes::Bytes;

use self::falsehood::Former;
pub use self::falsehood::{Falsehood, Falsified};
use super::{
    Applied, Change, Direction, EngineBatch, EngineError, EngineFactory, EngineStats, KeyRange,
    Result, ScanLimit, StorageEngine,
};
use crate::ids::DatabaseId;

/// The data of one node in memory: what a volume is to the engines on disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    disks: Arc<Mutex<Disks>>,
}

#[derive(Debug, Default)]
struct Disks {
    by_dir: BTreeMap<PathBuf, Disk>,
    /// Number of engines that have been opened: the life of the newest.
    opened: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of steps that a crash may lose: batches applied and parts of databases reclaimed
    /// since the last sync, in every directory.
    pub fn unsynced_steps(&self) -> usize {
        let disks = self.disks();
        disks.by_dir.values().map(|disk| disk.unsynced.len()).sum()
    }

    /// Another store with everything that this one holds, like a copy of a directory.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copied = |(dir, disk): (&PathBuf, &Disk)| {
            let held = disk.current.clone();
            let disk = Disk {
                synced: held.clone(),
                current: held,
                ..Disk::default()
            };
            (dir.clone(), disk)
        };
        let disks = Disks {
            by_dir: self.disks().by_dir.iter().map(copied).collect(),
            opened: 0,
        };
        Self {
            disks: Arc::new(Mutex::new(disks)),
        }
    }

    /// Ends the open engines as a crash does: in each directory the first `kept` of the steps since
    /// the last sync survive (all, if there are fewer). Every later call of those engines fails.
    pub fn crash(&self, kept: usize) {
        for disk in self.disks().by_dir.values_mut() {
            let unsynced = std::mem::take(&mut disk.unsynced);
            for step in unsynced.iter().take(kept) {
                disk.synced.make(step);
            }
            disk.current = disk.synced.clone();
            disk.open = None;
        }
    }

    fn disks(&self) -> MutexGuard<'_, Disks> {
        // A panic under this lock can only come from an allocation that failed between two whole
        // steps: the state is usable.
        lock(&self.disks)
    }
}

impl EngineFactory for MemoryStore {
    fn open(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>> {
        let mut disks = self.disks();
        let life = disks.opened + 1;
        let disk = disks.by_dir.entry(dir.to_owned()).or_default();
        if disk.open.is_some() {
            return Err(EngineError::InUse {
                directory: PathBuf::from(dir),
            });
        }
        disk.open = Some(life);
        disk.sync();
        disks.opened = life;
        Ok(Arc::new(MemoryEngine {
            life,
            dir: dir.to_owned(),
            store: self.clone(),
        }))
    }

    fn open_copy(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>> {
        self.copy().open(dir)
    }

    fn exists(&self, dir: &Path) -> Result<bool> {
        Ok(self.disks().by_dir.contains_key(dir))
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        let mut disks = self.disks();
        if disks
            .by_dir
            .get(dir)
            .is_some_and(|disk| disk.open.is_some())
        {
            return Err(EngineError::InUse {
                directory: PathBuf::from(dir),
            });
        }
        disks.by_dir.remove(dir);
        Ok(())
    }
}

/// One life of a [`MemoryStore`]: from open to close, crash or drop.
#[derive(Debug)]
pub struct MemoryEngine {
    /// Only the engine whose life is the directory's may use it.
    life: u64,
    dir: PathBuf,
    store: MemoryStore,
}

impl MemoryEngine {
    /// Runs `look` on the directory, as long as this engine is the one that has it open.
    fn with_disk<T>(&self, look: impl FnOnce(&mut Disk) -> T) -> Result<T> {
        let mut disks = self.store.disks();
        match disks.by_dir.get_mut(&self.dir) {
            Some(disk) if disk.open == Some(self.life) => Ok(look(disk)),
            _ => Err(EngineError::Closed),
        }
    }
}

impl StorageEngine for MemoryEngine {
    fn applied(&self) -> Result<Option<Applied>> {
        self.with_disk(|disk| disk.current.applied.clone())
    }

    fn apply(&self, batch: &EngineBatch) -> Result<()> {
        batch.assert_sorted();
        self.with_disk(|disk| disk.make(Step::Batch(batch.clone())))
    }

    fn sync(&self) -> Result<()> {
        self.with_disk(Disk::sync)
    }

    fn durable(&self) -> Option<Applied> {
        let disks = self.store.disks();
        let disk = disks.by_dir.get(&self.dir);
        disk.and_then(|disk| disk.synced.applied.clone())
    }

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Bytes>> {
        self.with_disk(|disk| {
            let keys = disk.current.databases.get(&database);
            keys.and_then(|keys| keys.get(key)).cloned()
        })
    }

    fn scan(
        &self,
        database: DatabaseId,
        range: KeyRange,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        self.with_disk(|disk| {
            let Some(keys) = disk.current.databases.get(&database) else {
                return Vec::new();
            };
            // Only the near bound is given to the map, which panics on crossed bounds.
            match direction {
                Direction::Forward => {
                    let from = keys.range((range.start.clone(), Bound::Unbounded));
                    take(from, &range, limit)
                }
                Direction::Reverse => {
                    let from = keys.range((Bound::Unbounded, range.end.clone()));
                    take(from.rev(), &range, limit)
                }
            }
        })
    }

    fn databases(&self) -> Result<Vec<DatabaseId>> {
        self.with_disk(|disk| disk.current.databases.keys().copied().collect())
    }

    fn reclaim(&self, database: DatabaseId, keys_max: usize) -> Result<bool> {
        self.with_disk(|disk| {
            let Some(keys) = disk.current.databases.get(&database) else {
                return true;
            };
            let given_up = keys.keys().take(keys_max).cloned().collect();
            disk.make(Step::Reclaim(database, given_up));
            !disk.current.databases.contains_key(&database)
        })
    }

    fn check(&self) -> Result<u64> {
        self.sync()?;
        Ok(self.stats().bytes_on_disk)
    }

    fn stats(&self) -> EngineStats {
        let disks = self.store.disks();
        let Some(disk) = disks.by_dir.get(&self.dir) else {
            return EngineStats::default();
        };
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
        let closed = self.with_disk(|disk| {
            disk.sync();
            disk.open = None;
        });
        match closed {
            Err(EngineError::Closed) => Ok(()),
            closed => closed,
        }
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        // One that is closed already has nothing to give back.
        self.with_disk(|disk| disk.open = None).ok();
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

/// A change of the data that a crash may lose.
#[derive(Debug)]
enum Step {
    Batch(EngineBatch),
    /// Keys that are reclaimed, and their database once it is empty.
    Reclaim(DatabaseId, Vec<Bytes>),
}

#[derive(Debug, Default)]
struct Disk {
    /// What a crash cannot lose.
    synced: Image,
    /// What a crash may lose from the end, in order.
    unsynced: Vec<Step>,
    /// `synced` with all of `unsynced`: what reads see.
    current: Image,
    /// Former values of rows.
    former: Former,
    /// Life of the engine that is open.
    open: Option<u64>,
}

impl Disk {
    fn make(&mut self, step: Step) {
        if let Step::Batch(batch) = &step {
            self.former.remember(batch, &self.current);
        }
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
