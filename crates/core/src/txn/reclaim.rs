//! Reclaims the space of databases that no longer have a name, in bounded steps.
//!
//! Dropping or truncating a database changes its catalog entry and nothing else. Its data stays in
//! the engine under an id that is never given again. Once the change is durable in the engine,
//! nobody can read that id: the engine is never brought past an open reader, so every reader's
//! snapshot is at a point where the name is gone. From then on the keys are deleted, a step at a
//! time, between the batches of the flush.
//!
//! Nothing needs to survive a crash: the engine itself shows which databases have no name. Nodes
//! may be at different steps; nobody sees the difference.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use steadfast_net::lock;

use crate::engine::{BATCH_CHANGES_BEST, EngineError, StorageEngine};
use crate::ids::DatabaseId;
use crate::txn::catalog;

/// Keys deleted per step: as many as in a flush batch, which may have to wait for the step.
const STEP_KEYS: usize = BATCH_CHANGES_BEST;

#[derive(Debug, Default)]
struct State {
    /// Whether the catalog may have changed since it was last read.
    is_due: bool,
    /// Databases to reclaim, oldest id first.
    nameless: VecDeque<DatabaseId>,
}

/// See the module.
pub(crate) struct Reclaim {
    engine: Arc<dyn StorageEngine>,
    state: Mutex<State>,
}

impl Reclaim {
    /// Continues from what the engine holds.
    pub(crate) fn new(engine: Arc<dyn StorageEngine>) -> Self {
        let state = State {
            is_due: true,
            nameless: VecDeque::new(),
        };
        Self {
            engine,
            state: Mutex::new(state),
        }
    }

    /// Notes that an engine batch has changed the catalog.
    pub(crate) fn catalog_changed(&self) {
        self.lock().is_due = true;
    }

    /// Finds the databases without a name, if the catalog has changed. Called when everything that
    /// the engine holds is durable, so that no crash can bring a name back.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(crate) fn look(&self) -> Result<(), EngineError> {
        if std::mem::take(&mut self.lock().is_due) {
            let nameless = catalog::nameless(&*self.engine)?;
            self.lock().nameless = nameless.into();
        }
        Ok(())
    }

    /// Whether there is anything to reclaim.
    pub(crate) fn has_work(&self) -> bool {
        !self.lock().nameless.is_empty()
    }

    /// Deletes a bounded number of keys, if there are any to reclaim, and syncs after the last.
    /// When the disk is too full it waits for the next catalog change.
    ///
    /// # Errors
    /// When the engine fails.
    pub(crate) fn step(&self) -> Result<(), EngineError> {
        let Some(database) = self.lock().nameless.front().copied() else {
            return Ok(());
        };
        match self.engine.reclaim(database, STEP_KEYS) {
            Ok(false) => Ok(()),
            Ok(true) => {
                tracing::info!(%database, "reclaimed the space of a dropped database");
                self.lock().nameless.pop_front();
                if self.has_work() {
                    Ok(())
                } else {
                    self.engine.sync()
                }
            }
            Err(EngineError::DiskFull { source }) => {
                tracing::warn!(
                    %source,
                    "the volume is too full to reclaim the space of a dropped database"
                );
                *self.lock() = State {
                    is_due: true,
                    nameless: VecDeque::new(),
                };
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
