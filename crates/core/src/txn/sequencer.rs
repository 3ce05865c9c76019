//! The sequencer: validates, numbers and batches transactions, and makes applied ones visible.
//!
//! ```text
//!  submit ──► validate against the window ──► number ──► window (pending) ──► open batch
//!                                                                                │ take_batch
//!                                                          in flight (proposed) ◄┘
//!  apply (from the log, committed) ──► in flight here? its versions are in the window already
//!         │                            not in flight:   insert them
//!         └──► visible VLSN moves ──► the waiters of the batch return
//! ```
//!
//! Transactions are numbered in a *session*: the period in which this node is master of one term
//! and knows every earlier transaction. A term has one session, so (term, VLSN) names one
//! transaction for ever. When the session ends, pending versions leave the window; those that were
//! committed after all come back through [`Sequencer::apply`].
//!
//! A batch that consensus refuses keeps its numbers and is proposed again; no later batch is
//! proposed before the log has it.
//!
//! The master's log order is the order of numbering, so a transaction may read versions that are
//! still in flight: it commits only if they do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use steadfast_net::lock;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::engine::KeyRange;
use crate::error::CounterError;
use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};
use crate::limits::BATCH_TRANSACTIONS_MAX;
use crate::log::LogId;
use crate::planted::{self, Bug};
use crate::txn::batch::{Batch, BatchBuilder, Operation};
use crate::txn::catalog::CATALOG;
use crate::txn::counter;
use crate::txn::names::Names;
use crate::txn::read_set::ReadSet;
use crate::txn::readers::ReaderGuard;
use crate::txn::window::{Version, Window, Written};

/// One session: its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) term: Term,
}

/// A transaction whose reads and writes are done, and which asks for its number.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The session in which it read.
    pub(crate) session: SessionId,
    /// Its snapshot, held open until the transaction has its number: versions newer than the
    /// snapshot must still be in the window for validation to find them.
    pub(crate) reader: ReaderGuard,
    pub(crate) reads: ReadSet,
    /// Sorted by (database, key), each key once.
    pub(crate) operations: Vec<Operation>,
    /// Those of the operations that add to a counter, by their index, and how much. Their values are
    /// the sums at the snapshot.
    pub(crate) additions: Vec<(usize, i128)>,
    /// The earliest deadline that it gives a key, in group time.
    pub(crate) deadline_ms: Option<u64>,
}

/// Why a transaction got no number. It had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubmitError {
    #[error("something that the transaction read has changed")]
    Conflict,
    #[error("the node is not the master of the transaction's term")]
    NotMaster,
    #[error("the transaction's snapshot was ended because it was older than {age_max:?}")]
    TooOld { age_max: Duration },
    #[error(transparent)]
    Counter(CounterError),
}

/// How a numbered transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Committed, by this entry.
    Committed(LogId),
    /// The batch never entered the log.
    NotCommitted,
    /// The session ended with the batch proposed.
    Unknown,
}

/// What a transaction that got no number could see.
#[derive(Debug)]
pub(crate) struct Unnumbered {
    /// The newest number.
    pub(crate) vlsn: Vlsn,
    /// How that one ends, unless it has been applied.
    pub(crate) pending: Option<oneshot::Receiver<Outcome>>,
}

/// Number of terms whose first VLSN is remembered. Others are looked up in the log.
const RUNS_MAX: usize = 1024;

#[derive(Debug)]
struct InFlight {
    batch: Batch,
    /// The batch's log entry, once the log has it.
    place: Option<LogId>,
    /// Whether its last proposal was refused and it has not been proposed again.
    is_refused: bool,
    waiters: Waiters,
    /// The versions that the batch put into the window, kept so that they can be removed.
    versions: Vec<Written>,
}

#[derive(Debug)]
struct OpenBatch {
    builder: BatchBuilder,
    waiters: Waiters,
    versions: Vec<Written>,
}

/// Who waits for a batch.
#[derive(Debug, Default)]
struct Waiters {
    outcome: Vec<oneshot::Sender<Outcome>>,
    place: Vec<oneshot::Sender<LogId>>,
}

impl Waiters {
    /// Ignores waiters that have gone away: their transactions end all the same.
    fn end(self, outcome: Outcome) {
        for waiter in self.outcome {
            waiter.send(outcome).ok();
        }
    }
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    began: Instant,
    /// The last number assigned.
    numbered: Vlsn,
    /// Batches waiting to be proposed, oldest first; all but the last are full.
    open: VecDeque<OpenBatch>,
    /// Batches handed out for proposal, oldest first.
    in_flight: VecDeque<InFlight>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Sequencer {
    window: Arc<Window>,
    names: Arc<Names>,
    /// What numbers transactions. Under this lock there is no I/O and no await. The lock of the readers
    /// (`readers.rs`) is taken before it, never under it.
    session: Mutex<Option<Session>>,
    /// The last applied VLSN: readers see everything up to it, and nothing after.
    visible: watch::Sender<Vlsn>,
    /// The terms of applied transactions, each with its first VLSN, both ascending.
    runs: Mutex<VecDeque<(Term, Vlsn)>>,
    ready: Notify,
    /// A session has begun since it was last waited for.
    began: Notify,
    batch_bytes_max: usize,
}

impl Sequencer {
    /// `applied` is the last VLSN that the engine holds. A batch that has reached `batch_bytes_max`
    /// takes no further transaction.
    pub(crate) fn new(window: Arc<Window>, applied: Vlsn, batch_bytes_max: usize) -> Self {
        Self {
            window,
            names: Arc::default(),
            session: Mutex::new(None),
            visible: watch::Sender::new(applied),
            runs: Mutex::default(),
            ready: Notify::new(),
            began: Notify::new(),
            batch_bytes_max,
        }
    }

    /// The cache of database names.
    pub(crate) fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }

    /// The last committed and applied VLSN.
    pub(crate) fn visible(&self) -> Vlsn {
        *self.visible.borrow()
    }

    /// Watches the last committed and applied VLSN.
    pub(crate) fn watch_visible(&self) -> watch::Receiver<Vlsn> {
        self.visible.subscribe()
    }

    /// The term in which the applied transaction `vlsn` was committed, as far as it is remembered.
    pub(crate) fn term_of(&self, vlsn: Vlsn) -> Option<Term> {
        let runs = lock(&self.runs);
        let later = runs.partition_point(|(_, first)| *first <= vlsn);
        let (term, _) = runs.get(later.checked_sub(1)?)?;
        Some(*term)
    }

    /// Begins to number transactions. The caller has seen an entry of its own in `term` applied,
    /// after everything that was ever proposed in an earlier session.
    pub(crate) fn begin_session(&self, term: Term) {
        let mut session = self.lock();
        assert!(session.is_none(), "one session at a time");
        let numbered = self.visible();
        *session = Some(Session {
            id: SessionId { term },
            began: Instant::now(),
            numbered,
            open: VecDeque::new(),
            in_flight: VecDeque::new(),
        });
        drop(session);
        self.began.notify_one();
    }

    /// Waits until a session begins, unless one has begun since the last call. For one waiter.
    pub(crate) async fn session_begins(&self) {
        self.began.notified().await;
    }

    /// Ends the session, if one is open: pending versions leave the window, and waiters learn what
    /// is known about their transactions.
    pub(crate) fn end_session(&self) {
        self.drop_pending(&mut self.lock());
    }

    /// When the open session began; `None` as for [`Sequencer::newest`].
    pub(crate) fn session_began(&self) -> Option<Instant> {
        self.lock().as_ref().map(|session| session.began)
    }

    /// The open session and its newest number, at which a write transaction begins. `None` when the
    /// node is not master, or not yet ready as master.
    pub(crate) fn newest(&self) -> Option<(SessionId, Vlsn)> {
        self.lock()
            .as_ref()
            .map(|session| (session.id, session.numbered))
    }

    /// Validates and numbers a transaction and adds it to the open batch. Returns its number and a
    /// receiver for its outcome.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub(crate) fn submit(
        &self,
        mut finished: Finished,
    ) -> Result<(Vlsn, oneshot::Receiver<Outcome>), SubmitError> {
        let (done, receiver) = oneshot::channel();
        let mut guard = self.lock();
        let session = self.checked(&mut guard, &mut finished)?;
        let batch = session.batch_with_room(self.batch_bytes_max);
        let vlsn = batch.builder.push(&finished.operations);
        for operation in finished.operations {
            let written = Written::of(vlsn, operation);
            self.window.insert(&written);
            batch.versions.push(written);
        }
        batch.waiters.outcome.push(done);
        session.numbered = vlsn;
        drop(guard);
        if !planted::is(Bug::LostWakeup) {
            self.ready.notify_one();
        }
        Ok((vlsn, receiver))
    }

    /// Validates a transaction that wrote nothing, and gives it no number.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub(crate) fn validate(&self, finished: &mut Finished) -> Result<Unnumbered, SubmitError> {
        let mut guard = self.lock();
        let session = self.checked(&mut guard, finished)?;
        let vlsn = session.numbered;
        let pending = (vlsn > self.visible()).then(|| {
            let (done, receiver) = oneshot::channel();
            let open = session.open.back_mut().map(|batch| &mut batch.waiters);
            let in_flight = session.in_flight.back_mut().map(|batch| &mut batch.waiters);
            let newest = open
                .or(in_flight)
                .expect("a number that is not visible is in a batch");
            newest.outcome.push(done);
            receiver
        });
        Ok(Unnumbered { vlsn, pending })
    }

    /// The session of a transaction that may commit in it; its additions have their sums.
    fn checked<'a>(
        &self,
        session: &'a mut Option<Session>,
        finished: &mut Finished,
    ) -> Result<&'a mut Session, SubmitError> {
        let session = session
            .as_mut()
            .filter(|session| session.id == finished.session);
        let session = session.ok_or(SubmitError::NotMaster)?;
        let has_conflict = self.has_conflict(finished);
        let added = self.add_up(finished);
        // Checked after reading the window, which is complete only for a reader still open.
        if let Some(age_max) = finished.reader.ended_at_age() {
            return Err(SubmitError::TooOld { age_max });
        }
        if has_conflict {
            return Err(SubmitError::Conflict);
        }
        added.map_err(SubmitError::Counter)?;
        Ok(session)
    }

    fn has_conflict(&self, finished: &Finished) -> bool {
        let (at, reads) = (finished.reader.at(), &finished.reads);
        let changed =
            |(database, key): &(DatabaseId, Bytes)| self.window.key_changed(*database, key, at);
        let has_changed = |(database, range): &(DatabaseId, KeyRange)| {
            self.window.range_changed(*database, range, at)
        };
        (!planted::is(Bug::ForgetKeys) && reads.keys.iter().any(changed))
            || (!planted::is(Bug::ForgetRanges) && reads.ranges.iter().any(has_changed))
    }

    /// Gives the additions of a transaction the sums that are right where it is numbered.
    ///
    /// An addition is in no read set, so it conflicts with nothing. It is serializable all the same,
    /// because here, under the lock, nothing comes between what it reads and its own number: the
    /// newest version in the window or, where there is none after the snapshot, the value there,
    /// from which the transaction has made the sum already.
    fn add_up(&self, finished: &mut Finished) -> Result<(), CounterError> {
        let at = finished.reader.at();
        for (index, delta) in &finished.additions {
            let Operation {
                database,
                key,
                value,
                ..
            } = &mut finished.operations[*index];
            let base = match self.window.newest_after(*database, key, at) {
                Some(Version::Value(base)) => Some(base),
                Some(Version::Deleted) => None,
                None => continue,
            };
            *value = Some(counter::sum(key, base.as_ref(), *delta)?);
        }
        Ok(())
    }

    /// Waits until [`Sequencer::take_batch`] may have something to give.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// The oldest batch waiting to be proposed, if fewer than `in_flight_max` are in flight.
    /// `committed_at_ms` is the wall-clock time.
    pub(crate) fn take_batch(&self, in_flight_max: usize, committed_at_ms: u64) -> Option<Batch> {
        let mut guard = self.lock();
        let session = guard
            .as_mut()
            .filter(|s| s.in_flight.len() < in_flight_max)?;
        let open = session.open.pop_front()?;
        let batch = open.builder.finish(committed_at_ms);
        session.in_flight.push_back(InFlight {
            batch: batch.clone(),
            place: None,
            is_refused: false,
            waiters: open.waiters,
            versions: open.versions,
        });
        Some(batch)
    }

    /// Notes whether the last batch handed out was refused and has not been proposed again yet:
    /// then it is not in the log.
    pub(crate) fn note_refused(&self, is_refused: bool) {
        let mut guard = self.lock();
        let last = guard.as_mut().and_then(|s| s.in_flight.back_mut());
        if let Some(last) = last {
            assert_eq!(last.place, None, "what is refused is not in the log");
            last.is_refused = is_refused;
        }
    }

    /// Notes that `batch` was given to this node's log as entry `id`. Called in log order, once for
    /// each entry.
    pub(crate) fn placed(&self, id: LogId, batch: &Batch) {
        let mut guard = self.lock();
        let Some(session) = guard.as_mut().filter(|session| session.id.term == id.term) else {
            return;
        };
        let next = session.in_flight.iter_mut().find(|b| b.place.is_none());
        let Some(next) = next.filter(|next| next.batch.first() == batch.first()) else {
            return;
        };
        next.place = Some(id);
        let waiters = std::mem::take(&mut next.waiters.place);
        drop(guard);
        for waiter in waiters {
            waiter.send(id).ok();
        }
    }

    /// Reports the log entry of transaction `vlsn` of this session, as soon as the log has it. The
    /// receiver fails if the session ends first, or if the transaction has already been applied.
    pub(crate) fn place_of(&self, session: SessionId, vlsn: Vlsn) -> oneshot::Receiver<LogId> {
        let (sender, receiver) = oneshot::channel();
        let mut guard = self.lock();
        let Some(session) = guard.as_mut().filter(|open| open.id == session) else {
            return receiver;
        };
        let holds =
            |batch: &&mut InFlight| (batch.batch.first()..=batch.batch.last()).contains(&vlsn);
        if let Some(batch) = session.in_flight.iter_mut().find(holds) {
            if let Some(id) = batch.place {
                sender.send(id).ok();
            } else {
                batch.waiters.place.push(sender);
            }
        } else if let Some(batch) = session
            .open
            .iter_mut()
            .rev()
            .find(|b| b.builder.first() <= vlsn)
        {
            batch.waiters.place.push(sender);
        }
        receiver
    }

    /// Whether `batch`, committed in `term`, is in flight here: then the window has its versions.
    pub(crate) fn is_in_flight(&self, term: Term, batch: &Batch) -> bool {
        self.lock()
            .as_ref()
            .is_some_and(|session| session.is_next(term, batch))
    }

    /// Makes a committed batch, entry `id`, visible, and returns the versions that it put into the
    /// window. Called in log order, once for each batch.
    ///
    /// # Panics
    /// When the batch does not follow the last applied one: numbers are dense.
    pub(crate) fn apply(&self, id: LogId, batch: &Batch) -> Vec<Written> {
        assert_eq!(
            batch.first(),
            self.visible().next(),
            "VLSNs are dense in the log"
        );
        self.note_run(id.term, batch.first());
        let mut guard = self.lock();
        let own = guard
            .as_mut()
            .filter(|session| session.is_next(id.term, batch))
            .and_then(|session| session.in_flight.pop_front());
        let (versions, waiters) = if let Some(own) = own {
            (own.versions, own.waiters)
        } else {
            // Another master's batch: whatever is pending here was numbered in vain.
            self.drop_pending(&mut guard);
            (self.insert_all(batch), Waiters::default())
        };
        if versions
            .iter()
            .any(|version| version.place.database == CATALOG)
        {
            self.names.changed(batch.last());
        }
        self.visible.send_replace(batch.last());
        drop(guard);
        self.ready.notify_one();
        waiters.end(Outcome::Committed(id));
        versions
    }

    fn note_run(&self, term: Term, first: Vlsn) {
        let mut runs = lock(&self.runs);
        if runs.back().is_some_and(|(last, _)| *last == term) {
            return;
        }
        if runs.len() == RUNS_MAX {
            runs.pop_front();
        }
        runs.push_back((term, first));
    }

    fn insert_all(&self, batch: &Batch) -> Vec<Written> {
        if planted::is(Bug::SkipBatch) && batch.first().0.is_multiple_of(16) {
            return Vec::new();
        }
        let mut versions = Vec::new();
        batch.for_each(|vlsn, operation| {
            let written = Written::of(vlsn, operation);
            self.window.insert(&written);
            versions.push(written);
        });
        versions
    }

    /// Must run under the lock: a batch that comes back through the log inserts versions under the
    /// very keys that are removed here, and must do so afterwards.
    fn drop_pending(&self, session: &mut Option<Session>) {
        let Some(session) = session.take() else {
            return;
        };
        for in_flight in session.in_flight {
            if !planted::is(Bug::KeepPending) {
                for version in &in_flight.versions {
                    self.window.remove(version);
                }
            }
            in_flight.waiters.end(if planted::is(Bug::CommittedOnLoss) {
                Outcome::Committed(LogId {
                    term: session.id.term,
                    position: LogPosition(0),
                })
            } else if in_flight.is_refused || planted::is(Bug::NotCommittedOnLoss) {
                Outcome::NotCommitted
            } else {
                Outcome::Unknown
            });
        }
        for open in session.open {
            for version in &open.versions {
                self.window.remove(version);
            }
            open.waiters.end(Outcome::NotCommitted);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        lock(&self.session)
    }
}

impl Session {
    fn batch_with_room(&mut self, bytes_max: usize) -> &mut OpenBatch {
        let has_room = self.open.back().is_some_and(|batch| {
            batch.builder.encoded_bytes() < bytes_max
                && batch.builder.transactions() < BATCH_TRANSACTIONS_MAX
        });
        if !has_room {
            let builder = BatchBuilder::new(self.numbered.next());
            self.open.push_back(OpenBatch {
                builder,
                waiters: Waiters::default(),
                versions: Vec::new(),
            });
        }
        self.open
            .back_mut()
            .expect("a batch with room was just made")
    }

    fn is_next(&self, term: Term, batch: &Batch) -> bool {
        self.id.term == term
            && self
                .in_flight
                .front()
                .is_some_and(|own| own.batch.last() == batch.last())
    }
}

#[cfg(test)]
mod tests;
