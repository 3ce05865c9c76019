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

use std::collections::{BTreeMap, VecDeque};
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
use crate::txn::window::{Version, VersionKey, Window};

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

/// One applied entry.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) log_id: LogId,
    /// The last VLSN applied with it.
    pub(crate) vlsn: Vlsn,
    /// The membership in force from this entry on, if the entry changes it.
    pub(crate) membership: Option<Bytes>,
    /// The versions that the entry put into the window.
    pub(crate) versions: Vec<VersionKey>,
    /// Size of the entry.
    pub(crate) bytes: usize,
}

/// Flushed versions, evictable once every open reader began at or after `mark`.
#[derive(Debug)]
struct Eviction {
    mark: ReaderId,
    versions: Vec<VersionKey>,
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
        (window, readers, sequencer): (Arc<Window>, Arc<Readers>, Arc<Sequencer>),
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

    /// Flushes until `stop` is set, then flushes what is left.
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
                self.flush_all(&mut auditor, &persisted).await?;
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
    /// it the purge of the log.
    async fn flush_all(
        &self,
        auditor: &mut Auditor,
        persisted: &watch::Receiver<Option<LogId>>,
    ) -> Result<(), FlushError> {
        let mut flushed = false;
        // Copied: a long borrow blocks the log's writer.
        let persisted = *persisted.borrow();
        loop {
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
        let (mut keys, mut bytes) = (std::collections::BTreeSet::new(), 0);
        while let Some(mark) = state.marks.front() {
            let is_persisted = mark.log_id.position <= persisted.position;
            let may_flush = mark.vlsn <= limit && (is_persisted || planted::is(Bug::EngineAhead));
            let is_full = keys.len() >= BATCH_CHANGES_BEST || bytes >= BATCH_BYTES_BEST;
            if !may_flush || is_full {
                break;
            }
            bytes += mark.bytes;
            keys.extend(
                mark.versions
                    .iter()
                    .map(|version| (version.database, version.key.clone())),
            );
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
        let mut changes = self.changes(flushed);
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
        let bytes: usize = versions
            .iter()
            .map(|version| self.window.version_bytes(version))
            .sum();
        let mut state = self.lock();
        if !planted::is(Bug::ForgetMembership) {
            state.membership = membership;
        }
        state.evictable_bytes += bytes;
        state.evictions.push_back(Eviction { mark, versions });
        Ok(true)
    }

    /// The newest version of each key that the marks wrote, sorted by (database, key).
    fn changes(&self, marks: &[Mark]) -> Vec<(DatabaseId, Bytes, Change)> {
        let mut newest: BTreeMap<(DatabaseId, &Bytes), &VersionKey> = BTreeMap::new();
        // Marks are in log order: the last one to write a key wins.
        for version in marks.iter().flat_map(|mark| &mark.versions) {
            let place = (version.database, &version.key);
            if planted::is(Bug::FlushOldest) && newest.contains_key(&place) {
                continue;
            }
            newest.insert(place, version);
        }
        let change = |((database, key), version): ((DatabaseId, &Bytes), &VersionKey)| {
            let found = self.window.version(version);
            let change = match found.expect("what is not flushed is in the window") {
                Version::Value(value) => Change::Put(value),
                Version::Deleted => Change::Delete,
            };
            (database, key.clone(), change)
        };
        let mut changes: Vec<_> = newest.into_iter().map(change).collect();
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
mod tests {
    use proptest::prelude::*;
    use std::ops::Bound;

    use super::*;
    use crate::engine::{Direction, KeyRange};
    use crate::ids::{LogPosition, Term};
    use crate::txn::audit::testing::World;
    use crate::txn::batch::{BatchBuilder, Operation};
    use crate::txn::catalog::{self, DIGESTS};
    use crate::txn::view::View;

    const TERM: Term = Term(1);
    /// As in the catalog. Tests refer to them by index.
    const NAMES: [&str; 2] = ["a", "b"];
    /// Few, so that every key is overwritten, deleted and flushed again and again.
    const KEYS: u8 = 8;

    type Model = BTreeMap<(usize, Bytes), Bytes>;

    /// A step's change to a key, in the database whose name has this index in [`NAMES`].
    type Write = (usize, Bytes, Option<Bytes>);

    /// Everything between the log and a reader, with the flush driven by the test.
    struct Rig {
        window: Arc<Window>,
        readers: Arc<Readers>,
        sequencer: Arc<Sequencer>,
        engine: Arc<dyn StorageEngine>,
        flush: Flush,
        auditor: Auditor,
        runtime: tokio::runtime::Runtime,
        model: Model,
        /// The id of each of [`NAMES`], and the next one.
        ids: [DatabaseId; 2],
        next: DatabaseId,
        persisted: watch::Sender<Option<LogId>>,
    }

    impl Rig {
        fn new() -> Self {
            let window = Arc::new(Window::default());
            let readers = Arc::new(Readers::default());
            let sequencer = Arc::new(Sequencer::new(Arc::clone(&window), Vlsn(0), 1 << 20));
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let runtime = runtime.expect("a runtime");
            let world = runtime.block_on(World::new());
            let engine = Arc::clone(&world.engine);
            let shared = (
                Arc::clone(&window),
                Arc::clone(&readers),
                Arc::clone(&sequencer),
            );
            let limits = FlushLimits {
                window_bytes_max: 1 << 20,
                flush_bytes: 1 << 10,
                flush_interval: Duration::from_secs(1),
                snapshot_age_max: Duration::from_mins(1),
            };
            let flush = Flush::new(shared, Arc::clone(&engine), limits).expect("an empty engine");
            let audit = Arc::default();
            let audited = runtime.block_on(world.audit(false, &audit));
            let mut rig = Self {
                runtime,
                auditor: audited.expect("an empty engine"),
                window,
                readers,
                sequencer,
                engine,
                flush,
                model: Model::new(),
                ids: [CATALOG; 2],
                next: catalog::FIRST_ID,
                persisted: watch::Sender::new(None),
            };
            for name in 0..NAMES.len() {
                rig.truncate(name, true);
            }
            rig
        }

        fn apply(&mut self, writes: &[Write], is_persisted: bool) {
            let operation = |(name, key, value): &Write| Operation {
                database: self.ids[*name],
                key: key.clone(),
                value: value.clone(),
            };
            let operations: Vec<_> = writes.iter().map(operation).collect();
            self.commit(&operations, is_persisted);
            for (name, key, value) in writes.iter().cloned() {
                match value {
                    Some(value) => self.model.insert((name, key), value),
                    None => self.model.remove(&(name, key)),
                };
            }
        }

        /// Gives a name another id, as truncating a database does.
        fn truncate(&mut self, name: usize, is_persisted: bool) {
            self.ids[name] = self.next;
            self.next = DatabaseId(self.next.0 + 1);
            let entry = |key: &'static [u8], id| Operation {
                database: CATALOG,
                key: Bytes::from_static(key),
                value: Some(catalog::encode_id(id)),
            };
            let next = entry(catalog::NEXT_ID_KEY, self.next);
            let name_entry = entry(NAMES[name].as_bytes(), self.ids[name]);
            self.commit(&[next, name_entry], is_persisted);
            self.model.retain(|(of, _), _| *of != name);
        }

        /// Applies one transaction as a log entry, which is on disk already if `is_persisted`.
        fn commit(&mut self, operations: &[Operation], is_persisted: bool) {
            let first = self.sequencer.visible().next();
            let mut builder = BatchBuilder::new(first);
            builder.push(operations);
            let batch = builder.finish(0);
            let log_id = LogId {
                term: TERM,
                position: LogPosition(first.0),
            };
            self.sequencer.apply(log_id, &batch);
            let versions = operations.iter().map(|operation| VersionKey {
                database: operation.database,
                key: operation.key.clone(),
                vlsn: std::cmp::Reverse(first),
            });
            self.flush.note(Mark {
                log_id,
                vlsn: first,
                membership: None,
                versions: versions.collect(),
                bytes: batch.bytes().len(),
            });
            if is_persisted {
                self.persisted.send_replace(Some(log_id));
            }
        }

        fn flush(&mut self) {
            let persisted = self.persisted.subscribe();
            let flushed = self.flush.flush_all(&mut self.auditor, &persisted);
            let flushed = self.runtime.block_on(flushed);
            flushed.expect("an engine in memory");
        }

        fn reader(&self) -> Held {
            let reader = self.readers.begin(|| self.sequencer.visible());
            let view = View::new(Arc::clone(&self.window), Arc::clone(&self.engine), reader);
            Held {
                view,
                model: self.model.clone(),
            }
        }

        fn engine_vlsn(&self) -> Vlsn {
            let applied = self.engine.applied().expect("an engine in memory");
            applied.map(|applied| applied.vlsn).unwrap_or_default()
        }
    }

    #[test]
    fn a_batch_of_large_values_ends_at_its_bytes() {
        let mut rig = Rig::new();
        rig.flush();
        let value = Bytes::from(vec![1; BATCH_BYTES_BEST / 2]);
        for key in 0..5 {
            let key = Bytes::copy_from_slice(&[key]);
            rig.apply(&[(0, key, Some(value.clone()))], true);
        }
        let batches = std::iter::from_fn(|| {
            let limit = rig.sequencer.visible();
            let taken = rig.flush.take_marks(limit, *rig.persisted.borrow());
            (!taken.is_empty()).then_some(taken.len())
        });
        assert_eq!(batches.collect::<Vec<_>>(), [2, 2, 1]);
    }

    /// A reader, and what it must see for as long as it lives.
    struct Held {
        view: View,
        model: Model,
    }

    impl Held {
        fn check(&self) -> Result<(), TestCaseError> {
            for (name, text) in NAMES.into_iter().enumerate() {
                let entry = self.view.get(CATALOG, &Bytes::from(text)).expect("a value");
                let entry = entry.expect("a name");
                let database = catalog::id_in_entry(text.as_bytes(), &entry).expect("an id");
                for key in 0..KEYS {
                    let key = Bytes::copy_from_slice(&[key]);
                    let seen = self.view.get(database, &key).expect("a value");
                    prop_assert_eq!(seen, self.model.get(&(name, key)).cloned());
                }
                let range = KeyRange {
                    start: Bound::Included(Bytes::from_static(&[1])),
                    end: Bound::Excluded(Bytes::from_static(&[KEYS - 1])),
                };
                for range in [KeyRange::all(), range] {
                    let inside = |key: &&(usize, Bytes)| key.0 == name && range.contains(&key.1);
                    let expected = self.model.keys().filter(inside);
                    let mut expected: Vec<_> = expected
                        .map(|key| (key.1.clone(), self.model[key].clone()))
                        .collect();
                    for direction in [Direction::Forward, Direction::Reverse] {
                        let chunk = self.view.chunk(database, &range, direction);
                        prop_assert_eq!(&chunk.expect("a chunk").rows, &expected);
                        expected.reverse();
                    }
                }
            }
            Ok(())
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Apply(Vec<Write>, bool),
        Truncate(usize, bool),
        Reclaim,
        Count,
        Begin,
        End(usize),
        Flush,
        Evict,
    }

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let place = (0..NAMES.len(), 0..KEYS);
        let value = proptest::option::of(any::<u8>());
        proptest::collection::btree_map(place, value, 1..5).prop_map(|changes| {
            let write = |((name, key), value): ((usize, u8), Option<u8>)| {
                let value = value.map(|value| Bytes::copy_from_slice(&[value]));
                (name, Bytes::copy_from_slice(&[key]), value)
            };
            changes.into_iter().map(write).collect()
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (writes(), proptest::bool::weighted(0.8)).prop_map(|(w, p)| Step::Apply(w, p)),
            1 => (0..NAMES.len(), proptest::bool::weighted(0.8)).prop_map(|(n, p)| Step::Truncate(n, p)),
            2 => Just(Step::Reclaim),
            2 => Just(Step::Count),
            2 => Just(Step::Begin),
            2 => (0..8_usize).prop_map(Step::End),
            2 => Just(Step::Flush),
            1 => Just(Step::Evict),
        ]
    }

    proptest! {
        #[test]
        fn no_reader_sees_a_flush_or_an_eviction(steps in proptest::collection::vec(step(), 1..40)) {
            let mut rig = Rig::new();
            let mut held: Vec<Held> = Vec::new();
            for step in steps {
                match step {
                    Step::Apply(writes, is_persisted) => rig.apply(&writes, is_persisted),
                    Step::Truncate(name, is_persisted) => rig.truncate(name, is_persisted),
                    Step::Reclaim => rig.flush.reclaim.step().expect("an engine in memory"),
                    Step::Count => rig.auditor.step().expect("an engine in memory"),
                    Step::Begin => held.push(rig.reader()),
                    Step::End(at) if at < held.len() => drop(held.remove(at)),
                    Step::End(_) => {}
                    Step::Flush => rig.flush(),
                    Step::Evict => rig.flush.evict(),
                }
                let persisted = rig.persisted.borrow().map_or(0, |id| id.position.0);
                prop_assert!(rig.engine_vlsn().0 <= persisted);
                rig.reader().check()?;
                held.iter().try_for_each(Held::check)?;
            }
            held.clear();
            // Everything left unpersisted becomes persisted, and nothing stays in the window.
            rig.apply(&[], true);
            rig.flush();
            rig.flush.evict();
            prop_assert_eq!(rig.window.bytes(), 0);
            while rig.flush.reclaim.has_work() {
                rig.flush.reclaim.step().expect("an engine in memory");
            }
            // Nothing without a name is left.
            let held = rig.engine.databases().expect("an engine in memory");
            let named = |id: &DatabaseId| [CATALOG, DIGESTS].contains(id) || rig.ids.contains(id);
            prop_assert!(held.iter().all(named), "{held:?}");
            rig.reader().check()?;
        }
    }

    #[test]
    fn scans_go_on_past_a_chunk_that_the_window_has_deleted_whole() {
        let mut rig = Rig::new();
        let key = |n: u16| Bytes::copy_from_slice(&n.to_be_bytes());
        let all = |value: Option<&'static [u8]>, keys: std::ops::Range<u16>| -> Vec<Write> {
            keys.map(|n| (0, key(n), value.map(Bytes::from_static)))
                .collect()
        };
        rig.apply(&all(Some(b"v"), 0..600), true);
        rig.flush();
        rig.flush.evict();
        rig.apply(&all(None, 10..590), true);
        let held = rig.reader();
        for direction in [Direction::Forward, Direction::Reverse] {
            let (mut rest, mut keys, mut chunks) = (Some(KeyRange::all()), Vec::new(), 0);
            while let Some(range) = rest {
                let chunk = held.view.chunk(rig.ids[0], &range, direction);
                let chunk = chunk.expect("a chunk");
                keys.extend(chunk.rows.into_iter().map(|(key, _)| key));
                (rest, chunks) = (chunk.rest, chunks + 1);
            }
            if direction == Direction::Reverse {
                keys.reverse();
            }
            let expected: Vec<_> = (0..10).chain(590..600).map(key).collect();
            assert_eq!(keys, expected);
            assert!(chunks > 2);
        }
    }
}
