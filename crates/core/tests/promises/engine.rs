//! An in-memory engine with an observer that can also block operations.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use steadfast::engine::{
    Applied, Direction, EngineBatch, EngineError, EngineFactory, EngineStats, KeyRange,
    MemoryStore, ScanLimit, StorageEngine,
};
use steadfast::ids::DatabaseId;

pub(crate) type Scanned = Result<Vec<(Bytes, Bytes)>, EngineError>;

/// The observer. By default it lets everything happen.
pub(crate) trait Watch: Send + Sync + 'static {
    /// Called before each batch.
    fn before_apply(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Runs one scan.
    fn scan(&self, scan: &dyn Fn() -> Scanned) -> Scanned {
        scan()
    }
}

/// Creates observed engines.
pub(crate) struct Watched<W>(pub(crate) MemoryStore, pub(crate) Arc<W>);

struct WatchedEngine<W>(Arc<dyn StorageEngine>, Arc<W>);

impl<W: Watch> EngineFactory for Watched<W> {
    fn open(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
        let engine = self.0.open(dir)?;
        Ok(Arc::new(WatchedEngine(engine, Arc::clone(&self.1))))
    }

    fn open_copy(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
        self.0.open_copy(dir)
    }

    fn exists(&self, dir: &Path) -> Result<bool, EngineError> {
        self.0.exists(dir)
    }

    fn remove(&self, dir: &Path) -> Result<(), EngineError> {
        self.0.remove(dir)
    }
}

impl<W: Watch> StorageEngine for WatchedEngine<W> {
    fn applied(&self) -> Result<Option<Applied>, EngineError> {
        self.0.applied()
    }
    fn apply(&self, batch: &EngineBatch) -> Result<(), EngineError> {
        self.1.before_apply()?;
        self.0.apply(batch)
    }
    fn sync(&self) -> Result<(), EngineError> {
        self.0.sync()
    }
    fn durable(&self) -> Option<Applied> {
        self.0.durable()
    }
    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get(database, key)
    }
    fn scan(
        &self,
        database: DatabaseId,
        range: KeyRange,
        direction: Direction,
        limit: ScanLimit,
    ) -> Scanned {
        let scan = || self.0.scan(database, range.clone(), direction, limit);
        self.1.scan(&scan)
    }
    fn databases(&self) -> Result<Vec<DatabaseId>, EngineError> {
        self.0.databases()
    }
    fn reclaim(&self, database: DatabaseId, keys_max: usize) -> Result<bool, EngineError> {
        self.0.reclaim(database, keys_max)
    }
    fn check(&self) -> Result<u64, EngineError> {
        self.0.check()
    }
    fn stats(&self) -> EngineStats {
        self.0.stats()
    }
    fn close(&self) -> Result<(), EngineError> {
        self.0.close()
    }
}
