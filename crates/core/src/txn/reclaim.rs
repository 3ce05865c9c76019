//! Gives up the space of databases that no name stands for any more, in bounded steps.
//!
//! Dropping or truncating a database changes its entry in the catalog and nothing else. What it held
//! lies in the engine under an id that is never given again. When the change has reached the engine
//! and is durable there, nobody can read that id: the engine is never brought past an open reader,
//! so every reader stands where the name is gone. From then on the keys go, a step at a time, between
//! the batches of the flush.
//!
//! Nothing has to be remembered over a crash: which databases have no name is seen in the engine
//! itself. Nodes may be at different steps: nobody sees the difference.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use steadfast_net::lock;

use crate::engine::{BATCH_CHANGES_BEST, EngineError, StorageEngine};
use crate::ids::DatabaseId;
use crate::txn::catalog;

/// Keys that one step gives up: the batch of the flush that waits for it is as large.
const STEP_KEYS: usize = BATCH_CHANGES_BEST;

#[derive(Debug, Default)]
struct State {
    /// Whether the catalog may have changed since the last look at it.
    is_due: bool,
    /// What is given up, oldest id first.
    nameless: VecDeque<DatabaseId>,
}

/// See the module.
pub(crate) struct Reclaim {
    engine: Arc<dyn StorageEngine>,
    state: Mutex<State>,
}

impl Reclaim {
    /// Goes on from what the engine holds.
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

    /// Notes that a batch of the engine has changed the catalog.
    pub(crate) fn catalog_changed(&self) {
        self.lock().is_due = true;
    }

    /// Looks which databases have no name, if the catalog has changed. Called when everything that
    /// the engine holds is durable, so that no crash can bring back a name.
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

    /// Whether there is something to give up.
    pub(crate) fn has_work(&self) -> bool {
        !self.lock().nameless.is_empty()
    }

    /// Gives up a bounded number of keys, if there is something to give up, and syncs after the
    /// last. On a disk that is too full it waits for the next change of the catalog.
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
                tracing::info!(%database, "the space of a dropped database is given up");
                self.lock().nameless.pop_front();
                if self.has_work() {
                    Ok(())
                } else {
                    self.engine.sync()
                }
            }
            Err(EngineError::DiskFull { source }) => {
                tracing::warn!(%source, "the volume is too full to give up a dropped database");
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
