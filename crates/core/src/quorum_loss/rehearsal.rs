//! The machine on which a plan is made: it reads the real disk, and its changes are gone when it
//! ends. So a plan can do all that an opening node does, even complete a recovery that was begun.

use std::path::Path;
use std::sync::Arc;

use crate::engine::{EngineError, EngineFactory, StorageEngine};
use crate::log::OverlayDisk;
use crate::machine::Machine;

/// As `machine`, but nothing is changed on its disks and engines.
pub(super) fn of(machine: &Machine) -> Machine {
    Machine {
        disk: Arc::new(OverlayDisk::new(Arc::clone(&machine.disk))),
        engines: Arc::new(Copies(Arc::clone(&machine.engines))),
        ..machine.clone()
    }
}

/// Opens copies of the existing engines.
struct Copies(Arc<dyn EngineFactory>);

impl EngineFactory for Copies {
    fn open(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
        self.0.open_copy(dir)
    }

    fn open_copy(&self, dir: &Path) -> Result<Arc<dyn StorageEngine>, EngineError> {
        self.0.open_copy(dir)
    }

    fn exists(&self, dir: &Path) -> Result<bool, EngineError> {
        self.0.exists(dir)
    }

    fn remove(&self, _dir: &Path) -> Result<(), EngineError> {
        Ok(())
    }
}
