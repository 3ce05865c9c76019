//! Makes checkpoints and cleans files in place of Noxu's own threads, taking turns with batches,
//! evictions and scans.
//!
//! **Roots.** Noxu's cleaner considers the root of a tree superseded if it has nodes below,
//! whatever file it is in. A database that nobody writes thus loses its root with that file, and
//! all its records. A file is removed at the second checkpoint after it was emptied. So every root
//! is marked as changed before each checkpoint, which rewrites it.
//!
//! **Checkpoints.** Noxu writes a node that it evicts, and then its place in the parent. A
//! checkpoint between the two writes the parent with the place of an older version, and recovery,
//! which looks for nodes only in memory, does not find the newer one.
//!
//! **Cleaning.** A cursor that moves while the cleaner moves records skips some of them.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use steadfast_net::{background, lock};

use noxu::Environment;
use noxu_cleaner::Cleaner;
use noxu_recovery::Checkpointer;
use noxu_tree::TreeNode;
use tokio::time::Instant;

use super::errors::io_error;
use crate::engine::error::Result;

/// Serializes work on the records of an environment.
#[derive(Clone, Default)]
pub(super) struct Turns {
    /// Held while changing records or where they are: by a batch, a checkpoint.
    pub(super) writer: Arc<Mutex<()>>,
    /// Held for writing while records are changed or moved, for reading while a cursor is in use.
    /// Taken after `writer`.
    pub(super) records: Arc<RwLock<()>>,
}

// No panic leaves anything that these locks guard inconsistent.
impl Turns {
    pub(super) fn to_write(&self) -> MutexGuard<'_, ()> {
        lock(&self.writer)
    }

    pub(super) fn to_move_records(&self) -> RwLockWriteGuard<'_, ()> {
        let records = self.records.write();
        records.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that makes checkpoints and cleans when that is due, until dropped.
pub(super) struct Upkeep {
    /// Ends the thread when it is dropped.
    life: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// Checks every `wakeup_ms` whether a checkpoint is due, and as often as Noxu would whether
    /// files need cleaning.
    #[expect(
        clippy::disallowed_methods,
        reason = "stands for threads that Noxu would start itself"
    )]
    pub(super) fn start(environment: &Environment, wakeup_ms: u64, turns: Turns) -> Result<Self> {
        let parts = environment.env_impl_arc_for_test();
        let parts = parts.lock();
        let work = Work {
            checkpointer: parts.get_checkpointer(),
            cleaner: parts.get_cleaner(),
            mark_roots: Box::new(marker(environment)),
            wakeup: Duration::from_millis(wakeup_ms),
            turns,
        };
        let (life, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("steadfast-upkeep".to_owned())
            .spawn(move || {
                background::give_way();
                work.run(&ended);
            })
            .map_err(|error| io_error("start its thread", error))?;
        Ok(Self {
            life: Some(life),
            thread: Some(thread),
        })
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        drop(self.life.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the checkpoint thread panicked");
        }
    }
}

struct Work {
    checkpointer: Option<Arc<Checkpointer>>,
    cleaner: Option<Arc<Cleaner>>,
    mark_roots: Box<dyn Fn() + Send>,
    wakeup: Duration,
    turns: Turns,
}

impl Work {
    fn run(&self, ended: &Receiver<()>) {
        let mut checkpoint_at = Instant::now() + self.wakeup;
        let mut clean_at = Instant::now();
        loop {
            let now = Instant::now();
            let next = checkpoint_at.min(clean_at).saturating_duration_since(now);
            if ended.recv_timeout(next) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            if checkpoint_at <= Instant::now() {
                self.checkpoint();
                checkpoint_at = Instant::now() + self.wakeup;
            }
            if clean_at <= Instant::now() {
                clean_at = Instant::now() + self.clean();
            }
        }
    }

    fn checkpoint(&self) {
        let due = self.checkpointer.as_ref();
        let Some(checkpointer) = due.filter(|own| own.is_runnable(false)) else {
            return;
        };
        let _writer = self.turns.to_write();
        (self.mark_roots)();
        if let Err(error) = checkpointer.do_checkpoint("steadfast") {
            tracing::warn!(%error, "the engine could not make a checkpoint");
        }
    }

    /// Cleans as many files as Noxu would in one pass, one turn each. Returns how long to wait
    /// before the next look.
    fn clean(&self) -> Duration {
        let Some(cleaner) = &self.cleaner else {
            return self.wakeup;
        };
        for _ in 0..cleaner.throttle.current_n_files() {
            let _writer = self.turns.to_write();
            let _records = self.turns.to_move_records();
            match cleaner.do_clean(1, false) {
                Ok(pass) if pass.files_cleaned > 0 => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "the engine could not clean a file");
                    break;
                }
            }
        }
        Duration::from_millis(cleaner.throttle.current_sleep_ms())
    }
}

/// Makes the next checkpoint write the roots of all trees.
pub(super) fn mark_roots(environment: &Environment) {
    marker(environment)();
}

/// A function that marks the roots of all trees as changed. It keeps the environment in memory.
fn marker(environment: &Environment) -> impl Fn() + Send + 'static {
    let environment = environment.env_impl_arc_for_test();
    move || {
        let databases = environment.lock().get_all_database_impls();
        for database in databases {
            let root = database
                .read()
                .get_real_tree()
                .and_then(|tree| tree.get_root());
            // A root without nodes below is a leaf, which the cleaner knows about.
            if let Some(root) = root
                && let TreeNode::Internal(root) = &mut *root.write()
            {
                root.dirty = true;
            }
        }
    }
}
