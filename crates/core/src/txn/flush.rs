//! The flush: moves applied versions from the window into the engine, in bulk, off the commit path.
//!
//! ```text
//!  state machine ──note──► marks: (position, VLSN, what it put into the window), in log order
//!                            │  as far as every reader, and the log on this disk, has passed
//!                            ▼
//!  some marks ──newest version of each key, sorted──► engine.apply (atomic, with the position)
//!                            │                              │ when a run of them has ended
//!                            │                              ▼
//!                            │                         engine.sync
//!                            └─► evicted once no reader is left that began before
//! ```
//!
//! A batch takes marks until it has [`BATCH_CHANGES_BEST`] different keys, or [`BATCH_BYTES_BEST`]
//! bytes. Noxu's cost per change grows with the batch, and a key that is written repeatedly counts
//! once.
//!
//! Between batches the flush reclaims the data of dropped databases (`txn/reclaim.rs`) and counts
//! the rows of the engine (`txn/audit/`).
//!
//! The engine never gets ahead of this node's own log: a mark is flushed only when its entry is
//! persisted here, so after a crash the log always continues where the engine ends.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use steadfast_net::lock;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::engine::{
    Applied, BATCH_BYTES_BEST, BATCH_CHANGES_BEST, Change, EngineBatch, EngineError, StorageEngine,
};
use crate::ids::{DatabaseId, Vlsn};
use crate::log::LogId;
use crate::planted::{self, Bug};
use crate::txn::audit::Auditor;
use crate::txn::audit::digest::Point;
use crate::txn::audit::file::FileError;
use crate::txn::catalog::CATALOG;
use crate::txn::readers::{ReaderId, Readers};
use crate::txn::reclaim::Reclaim;
use crate::txn::sequencer::Sequencer;
use crate::txn::window::{Place, Window, Written};

/// Bounds of the flush. See `RepConfig` for what they mean to a user.
#[derive(Clone, Debug)]
pub(crate) struct FlushLimits {
    /// Maximum size of the window, in bytes; above it, writers wait.
    pub(crate) window_bytes_max: usize,
    /// A flush begins when the window holds this many bytes that the engine does not hold.
    pub(crate) flush_bytes: usize,
    /// Maximum time before an applied version reaches the engine, readers permitting.
    pub(crate) flush_interval: Duration,
    /// A reader older than this is ended.
    pub(crate) snapshot_age_max: Duration,
}

/// How often the flush checks ages and evictions when nothing else wakes it.
const TICK: Duration = Duration::from_millis(100);

/// The same while there is space to reclaim or there are rows to count: the work takes part of the
/// engine's time, not all of it.
const WORK_TICK: Duration = Duration::from_millis(10);

/// How long the engine may be busy before it counts as hung rather than slow.
const ENGINE_HANGS: Duration = Duration::from_secs(10);

/// How long the last flush may begin batches. What is left is in the log, and is replayed from there
/// when the node is opened again.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(1);

/// One applied entry.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) log_id: LogId,
    /// The last VLSN applied with it.
    pub(crate) vlsn: Vlsn,
    /// The membership in force from this entry on, if the entry changes it.
    pub(crate) membership: Option<Bytes>,
    /// The versions that the entry put into the window.
    pub(crate) versions: Vec<Written>,
    /// Size of the entry.
    pub(crate) bytes: usize,
}

/// Flushed versions, evictable once every open reader began at or after `mark`.
#[derive(Debug)]
struct Eviction {
    mark: ReaderId,
    versions: Vec<Written>,
}

#[derive(Debug)]
struct State {
    marks: VecDeque<Mark>,
    membership: Bytes,
    evictions: VecDeque<Eviction>,
    /// Bytes of the window that the engine already holds.
    evictable_bytes: usize,
    last_run: Instant,
}

/// See the module.
pub(crate) struct Flush {
    window: Arc<Window>,
    readers: Arc<Readers>,
    sequencer: Arc<Sequencer>,
    engine: Arc<dyn StorageEngine>,
    reclaim: Reclaim,
    limits: FlushLimits,
    state: Mutex<State>,
    wake: Notify,
    /// Whether somebody waits for the visible state to reach the engine.
    is_wanted: AtomicBool,
    room: Notify,
    ended: AtomicBool,
    /// Whether the engine had no space for the last batch.
    is_full: AtomicBool,
    /// Why waiting for room was given up.
    given_up: OnceLock<&'static str>,
    /// When the engine last returned control.
    turned: Mutex<Instant>,
}

/// What ends the flush.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlushError {
    #[error("the storage engine failed: {0}")]
    Engine(#[from] EngineError),
    #[error("could not record what the engine holds: {0}")]
    Audit(#[from] FileError),
}

/// The flush has ended, because the node closes or its engine failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the flush has ended")]
pub(crate) struct FlushEnded;

impl Flush {
    /// Continues from what the engine holds.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(crate) fn new(
        window: Arc<Window>,
        readers: Arc<Readers>,
        sequencer: Arc<Sequencer>,
        engine: Arc<dyn StorageEngine>,
        limits: FlushLimits,
    ) -> Result<Self, EngineError> {
        let applied = engine.applied()?;
        let held = applied.as_ref().map(|applied| applied.vlsn);
        readers.flush_limit(|| held.unwrap_or_default());
        let state = State {
            marks: VecDeque::new(),
            membership: applied
                .map(|applied| applied.membership)
                .unwrap_or_default(),
            evictions: VecDeque::new(),
            evictable_bytes: 0,
            last_run: Instant::now(),
        };
        Ok(Self {
            window,
            readers,
            sequencer,
            reclaim: Reclaim::new(Arc::clone(&engine)),
            engine,
            limits,
            state: Mutex::new(state),
            wake: Notify::new(),
            is_wanted: AtomicBool::new(false),
            room: Notify::new(),
            ended: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            given_up: OnceLock::new(),
            turned: Mutex::new(Instant::now()),
        })
    }

    /// Notes an applied entry. Called in log order.
    pub(crate) fn note(&self, mark: Mark) {
        let mut state = self.lock();
        state.marks.push_back(mark);
        let unflushed = self.window.bytes().saturating_sub(state.evictable_bytes);
        let is_due = unflushed >= self.limits.flush_bytes;
        drop(state);
        if is_due {
            self.wake.notify_one();
        }
    }

    /// Requests a prompt flush of everything that may be flushed.
    pub(crate) fn want(&self) {
        self.is_wanted.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether the window is within its bound.
    pub(crate) fn has_room(&self) -> bool {
        self.window.bytes() <= self.limits.window_bytes_max
    }

    /// Whether the engine has no space on its volume for what was applied.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Notes why applied entries no longer wait for room.
    pub(crate) fn give_up(&self, why: &'static str) {
        self.given_up.set(why).ok();
    }

    pub(crate) fn why_given_up(&self) -> Option<&'static str> {
        self.given_up.get().copied()
    }

    /// Waits until there may be more room, for at most one tick: not every change that makes room
    /// is signalled.
    ///
    /// # Errors
    /// When the flush has ended: it will make no more room.
    pub(crate) async fn more_room(&self) -> Result<(), FlushEnded> {
        let freed = self.room.notified();
        if self.ended.load(Ordering::Acquire) {
            return Err(FlushEnded);
        }
        self.wake.notify_one();
        // Signalled or not, the caller checks again.
        tokio::time::timeout(TICK, freed).await.ok();
        Ok(())
    }

    /// Flushes until `stop` is set, then flushes what is left, for at most [`LAST_FLUSH_MAX`].
    ///
    /// # Errors
    /// When the engine fails. Nothing is retried: the node must be opened again.
    pub(crate) async fn run(
        &self,
        mut auditor: Auditor,
        persisted: watch::Receiver<Option<LogId>>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), FlushError> {
        // Whatever an engine holds when it is opened is durable.
        self.reclaim.look()?;
        loop {
            let tick = if self.reclaim.has_work() || auditor.has_work() {
                WORK_TICK
            } else {
                TICK
            };
            let stopped = tokio::select! {
                biased;
                () = self.wake.notified() => false,
                () = tokio::time::sleep(tick) => false,
                stopped = stop.wait_for(|stop| *stop) => {
                    // A dropped sender means stop, too.
                    drop(stopped);
                    true
                }
            };
            self.turn();
            self.readers.end_older_than(self.snapshot_age_max());
            self.evict();
            if stopped || self.is_due() {
                let until = Instant::now() + LAST_FLUSH_MAX;
                let goes_on = || {
                    if stopped {
                        Instant::now() < until
                    } else {
                        !*stop.borrow()
                    }
                };
                self.flush_all(&mut auditor, &persisted, goes_on).await?;
            }
            if stopped {
                return Ok(());
            }
            auditor.step()?;
            if auditor.found_wrong() {
                // Nobody may read wrong data any more.
                self.readers.end_all();
            } else if auditor.found_right_before() {
                // A catalog that has lost a name would cause a live database to be reclaimed.
                self.reclaim.step()?;
            }
        }
    }

    /// The maximum age of a snapshot. It shrinks as the window fills up, if a snapshot keeps the
    /// window full: no reader may hold up commits.
    fn snapshot_age_max(&self) -> Duration {
        let bytes = self.window.bytes();
        let of_full = |parts: usize| self.limits.window_bytes_max / 8 * parts;
        let age_max = match bytes {
            _ if bytes > of_full(8) => Duration::from_millis(200),
            _ if bytes > of_full(7) => Duration::from_secs(1),
            _ if bytes > of_full(6) => Duration::from_secs(10),
            _ => return self.limits.snapshot_age_max,
        };
        let state = self.lock();
        let mark = state.evictions.front().map(|eviction| eviction.mark);
        let next = state.marks.front().map(|mark| mark.vlsn);
        drop(state);
        if self.readers.hold(mark, next) {
            age_max.min(self.limits.snapshot_age_max)
        } else {
            self.limits.snapshot_age_max
        }
    }

    fn turn(&self) {
        *lock(&self.turned) = Instant::now();
    }

    /// How long the engine has been busy, if that is too long to count as merely slow.
    pub(crate) fn hangs_for(&self) -> Option<Duration> {
        let turned = *lock(&self.turned);
        let hangs = turned.elapsed() >= ENGINE_HANGS && !self.ended.load(Ordering::Acquire);
        hangs.then(|| turned.elapsed())
    }

    /// Wakes those who wait for room: there will be no more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.room.notify_waiters();
    }

    fn is_due(&self) -> bool {
        let is_wanted = self.is_wanted.swap(false, Ordering::AcqRel);
        let state = self.lock();
        let bytes = self.window.bytes();
        !state.marks.is_empty()
            && (is_wanted
                || state.last_run.elapsed() >= self.limits.flush_interval
                || bytes - state.evictable_bytes.min(bytes) >= self.limits.flush_bytes
                || bytes > self.limits.window_bytes_max)
    }

    /// Flushes everything that may be flushed at this point, and syncs once. Later entries wait for
    /// the next run: otherwise writers that never pause would put off the sync for ever, and with
    /// it the purge of the log. What is left when `goes_on` says no stays in the log alone.
    async fn flush_all(
        &self,
        auditor: &mut Auditor,
        persisted: &watch::Receiver<Option<LogId>>,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), FlushError> {
        let mut flushed = false;
        // Copied: a long borrow blocks the log's writer.
        let persisted = *persisted.borrow();
        while goes_on() {
            let limit = self.readers.flush_limit(|| self.sequencer.visible());
            let marks = self.take_marks(limit, persisted);
            if marks.is_empty() || !self.flush_marks(auditor, marks)? {
                break;
            }
            flushed = true;
            self.turn();
            self.evict();
        }
        if flushed {
            self.engine.sync()?;
            auditor.synced().await?;
            self.reclaim.look()?;
        }
        self.lock().last_run = Instant::now();
        Ok(())
    }

    /// The oldest marks that may be flushed, up to the size of one batch.
    fn take_marks(&self, limit: Vlsn, persisted: Option<LogId>) -> Vec<Mark> {
        let Some(persisted) = persisted else {
            return Vec::new();
        };
        let mut state = self.lock();
        let mut taken: Vec<Mark> = Vec::new();
        let (mut keys, mut bytes) = (HashSet::new(), 0);
        while let Some(mark) = state.marks.front() {
            let is_persisted = mark.log_id.position <= persisted.position;
            let may_flush = mark.vlsn <= limit && (is_persisted || planted::is(Bug::EngineAhead));
            let is_full = keys.len() >= BATCH_CHANGES_BEST || bytes >= BATCH_BYTES_BEST;
            if !may_flush || is_full {
                break;
            }
            bytes += mark.bytes;
            keys.extend(mark.versions.iter().map(|written| written.place.clone()));
            taken.extend(state.marks.pop_front());
        }
        taken
    }

    /// Writes the marks to the engine as one batch. `false` when the engine has no space for it:
    /// then the marks are back in the queue.
    fn flush_marks(&self, auditor: &mut Auditor, marks: Vec<Mark>) -> Result<bool, FlushError> {
        let Some(last) = marks.last() else {
            return Ok(false);
        };
        let (log_id, vlsn) = (last.log_id, last.vlsn);
        let changed = marks.iter().rev().find_map(|mark| mark.membership.clone());
        let membership = changed.unwrap_or_else(|| self.lock().membership.clone());
        let applied = Applied {
            term: log_id.term,
            position: log_id.position,
            vlsn,
            membership: membership.clone(),
        };
        let flushed = if planted::is(Bug::FlushSkipsLast) {
            &marks[..marks.len() - 1]
        } else {
            &marks[..]
        };
        let mut changes = Self::changes(flushed);
        let first = changes.first().map(|(database, ..)| *database);
        if first == Some(CATALOG) {
            self.reclaim.catalog_changed();
        }
        let prepared = auditor.prepare(&changes)?;
        let point = Point {
            position: applied.position,
            vlsn: applied.vlsn,
            total: prepared.total,
        };
        changes.extend(prepared.rows(&applied));
        auditor.note(point)?;
        match self.engine.apply(&EngineBatch { applied, changes }) {
            Ok(()) => {
                self.is_full.store(false, Ordering::Release);
                auditor.made(prepared, point);
            }
            Err(EngineError::DiskFull { source }) => {
                if !self.is_full.swap(true, Ordering::AcqRel) {
                    tracing::error!(%source, "the volume is too full for the storage engine");
                }
                let mut state = self.lock();
                for mark in marks.into_iter().rev() {
                    state.marks.push_front(mark);
                }
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        let mark = self.readers.now();
        let versions: Vec<_> = marks.into_iter().flat_map(|mark| mark.versions).collect();
        let bytes: usize = versions.iter().map(Written::bytes).sum();
        let mut state = self.lock();
        if !planted::is(Bug::ForgetMembership) {
            state.membership = membership;
        }
        state.evictable_bytes += bytes;
        state.evictions.push_back(Eviction { mark, versions });
        Ok(true)
    }

    /// The newest version of each key that the marks wrote, sorted by (database, key).
    fn changes(marks: &[Mark]) -> Vec<(DatabaseId, Bytes, Change)> {
        let versions = marks.iter().flat_map(|mark| &mark.versions);
        let mut versions: Vec<&Written> = versions.collect();
        // Marks are in log order, and the sort keeps it: the last one to write a key wins.
        if planted::is(Bug::FlushOldest) {
            versions.reverse();
        }
        versions.sort_by_key(|written| &written.place);
        let keys = versions.chunk_by(|a, b| a.place == b.place);
        let change = |written: &Written| {
            let change = match &written.value {
                Some(value) => Change::Put(value.clone()),
                None => Change::Delete,
            };
            let Place { database, key, .. } = written.place.clone();
            (database, key, change)
        };
        let newest = keys.filter_map(<[_]>::last);
        let mut changes: Vec<_> = newest.map(|written| change(written)).collect();
        if planted::is(Bug::FlushNoDeletes) {
            changes.retain(|(.., change)| *change != Change::Delete);
        }
        changes
    }

    /// Evicts flushed versions from the window, as far as readers permit.
    fn evict(&self) {
        loop {
            let mut state = self.lock();
            let Some(next) = state.evictions.front() else {
                return;
            };
            if !self.readers.all_began_after(next.mark) || planted::is(Bug::NeverEvict) {
                return;
            }
            let Some(eviction) = state.evictions.pop_front() else {
                return;
            };
            drop(state);
            let bytes: usize = eviction
                .versions
                .iter()
                .map(|version| self.window.remove(version))
                .sum();
            self.lock().evictable_bytes -= bytes;
            self.room.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests;
