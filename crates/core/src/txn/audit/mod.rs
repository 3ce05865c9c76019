//! No engine is believed: what it holds is held against what the log gave it.
//!
//! ```text
//!                 log                          engine
//!   flush ──── changes ──► running digest ◄── old values ── (digest.rs)
//!                              │    │
//!       a file of ours ◄───────┘    └──────► the same at one VLSN on every node
//!        (file.rs)
//!   at an open    what the log did last to each key is looked up, and put right    (retrace.rs)
//!                 then all rows are counted                                        (count.rs)
//!   at work       they are counted again: at an interval, and before the log goes
//! ```
//!
//! An engine that has lost a row, kept one that was deleted, or has another value has another count. A
//! lost row that is written again makes the running digest wrong for good, because what is taken away is
//! what the engine says was there: that is found by the next count, or by the comparison of nodes.
//!
//! Counting costs at most a tenth of a core while it goes on, a third until the engine was found right for
//! the first time, and [`PAUSE`] keeps it from going on all the time.

pub(crate) mod count;
pub(crate) mod digest;
pub(crate) mod file;
pub(crate) mod retrace;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::{Applied, EngineBatch, EngineError, StorageEngine};
use crate::ids::{LogPosition, Vlsn};
use crate::log::{Disk, Log};
use crate::planted::{self, Bug};
use crate::txn::audit::count::Count;
use crate::txn::audit::digest::{Changes, Point, Prepared, RunningDigest, has_account};
use crate::txn::audit::file::{DigestFile, FileError};
use crate::txn::audit::retrace::{RetraceError, Retraced, retrace};
use crate::txn::catalog;

/// How much one step counts at most, and for how many times as long as that took it rests.
const PACE: Pace = Pace { slices: 1, rest: 9 };
/// The same of the first count, until which nothing vouches for the engine, and of one that the log waits for
/// that is over its bound.
const PACE_FAST: Pace = Pace { slices: 4, rest: 2 };
/// After a count that was wanted for the log it rests for so many times as long as it has worked: it
/// takes a fiftieth of a core.
const PAUSE: u32 = 50;
/// The least such pause.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Digests that are remembered for those who compare: of the last syncs.
const RECENT: usize = 16;

/// Why the engine cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Retrace(#[from] RetraceError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Differs(String),
}

/// What is known of the engine of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Up to here everything was found right since the engine was opened.
    pub(crate) checked: Option<Checked>,
    /// What the engine does not hold, for people.
    pub(crate) differs: Option<String>,
    /// Keys that were put right from the log when the engine was opened.
    pub(crate) put_right: u64,
    /// Counts that were begun, and that have ended.
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Whether nobody counts any more: the node has stopped.
    pub(crate) is_over: bool,
}

/// A place in the log up to which the engine is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) position: LogPosition,
    pub(crate) vlsn: Vlsn,
}

/// What others ask of the audit, and are told.
#[derive(Default)]
pub(crate) struct Audit {
    findings: watch::Sender<Findings>,
    /// The digests at the last syncs.
    recent: watch::Sender<VecDeque<(Vlsn, Arc<RunningDigest>)>>,
    /// Whether the log waits for a count, and has grown over its bound meanwhile.
    is_wanted: AtomicBool,
    is_urgent: AtomicBool,
    /// Whether somebody waits for one.
    is_demanded: AtomicBool,
}

impl Audit {
    pub(crate) fn findings(&self) -> watch::Receiver<Findings> {
        self.findings.subscribe()
    }

    /// Has the rows counted when the last count is long enough ago, or soon and faster.
    pub(crate) fn want_count(&self, is_urgent: bool) {
        self.is_urgent.store(is_urgent, Ordering::Release);
        self.is_wanted.store(true, Ordering::Release);
    }

    /// Has all rows counted, from the first one on, and waits for the end. Returns what does not hold;
    /// `None` also when the node has stopped meanwhile.
    pub(crate) async fn count(&self) -> Option<String> {
        let mut findings = self.findings();
        let number = findings.borrow_and_update().begun + 1;
        self.is_demanded.store(true, Ordering::Release);
        let is_over =
            |found: &Findings| found.ended >= number || found.differs.is_some() || found.is_over;
        let ended = findings.wait_for(is_over).await;
        ended.ok().and_then(|found| found.differs.clone())
    }

    /// What the engine has to hold as of this transaction, as soon as the flush stands there. It stops there
    /// as long as a reader is open at it. `None` when the node ends before.
    pub(crate) async fn digest_at(&self, vlsn: Vlsn) -> Option<Arc<RunningDigest>> {
        let found = self.remembered(|at| at == vlsn).await?;
        Some(found.1)
    }

    /// The same as of this transaction or a later one, at which an entry of the log ends.
    pub(crate) async fn digest_from(&self, vlsn: Vlsn) -> Option<(Vlsn, Arc<RunningDigest>)> {
        self.remembered(|at| at >= vlsn).await
    }

    /// The newest of those that suit, as soon as there is one.
    async fn remembered(&self, suits: impl Fn(Vlsn) -> bool) -> Option<(Vlsn, Arc<RunningDigest>)> {
        let find = |recent: &VecDeque<(Vlsn, Arc<RunningDigest>)>| {
            recent.iter().rev().find(|(at, _)| suits(*at)).cloned()
        };
        let mut recent = self.recent.subscribe();
        let reached = recent.wait_for(|recent| find(recent).is_some()).await;
        find(&*reached.ok()?)
    }

    fn remember(&self, vlsn: Vlsn, digest: Arc<RunningDigest>) {
        self.recent.send_modify(|recent| {
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back((vlsn, digest));
        });
    }
}

/// See [`PACE`].
struct Pace {
    slices: usize,
    rest: u32,
}

/// What an audit begins with.
pub(crate) struct Opening<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    pub(crate) path: &'a Path,
    pub(crate) log: &'a Log,
    pub(crate) engine: &'a Arc<dyn StorageEngine>,
    /// Whether the engine was found wrong: then it is counted to the end.
    pub(crate) is_suspect: bool,
    /// How long it is counted otherwise. What is left then is counted beside the work of the node.
    pub(crate) count_max: Duration,
    /// How often the rows are counted, beside the times when the log wants it.
    pub(crate) interval: Option<Duration>,
}

/// Holds the engine against the log. One task has it: the flush, which is the only one that writes
/// the engine.
pub(crate) struct Auditor {
    engine: Arc<dyn StorageEngine>,
    digest: Arc<RunningDigest>,
    file: DigestFile,
    /// Where the engine stands.
    at: Option<Point>,
    count: Option<Count>,
    /// Where the engine stood when the count was begun.
    count_began: Checked,
    /// How long the steps of the count have taken.
    busy: Duration,
    rests_until: Instant,
    ended_at: Instant,
    interval: Option<Duration>,
    audit: Arc<Audit>,
}

impl Auditor {
    /// Holds the engine that was just opened against the log, puts right what the log tells, and counts
    /// all rows as far as there is time.
    ///
    /// # Errors
    /// [`AuditError::Differs`] when the engine does not hold what it should, and the log does not help.
    pub(crate) async fn open(opening: Opening<'_>, audit: Arc<Audit>) -> Result<Self, AuditError> {
        let Opening {
            disk,
            path,
            log,
            engine,
            is_suspect,
            count_max,
            interval,
        } = opening;
        let began = Instant::now();
        let file = DigestFile::open(disk, path).await?;
        let skips = planted::is(Bug::SkipCheckAtOpen) && !is_suspect;
        let retraced = if skips {
            Retraced::default()
        } else {
            retrace(log, engine).await?
        };
        if retraced.put_right > 0 {
            let rows = retraced.put_right;
            tracing::error!(rows, "the engine had lost rows; the log has put them right");
            metrics::counter!("steadfast_engine_rows_put_right_total").increment(rows);
        }
        audit
            .findings
            .send_modify(|found| found.put_right += retraced.put_right);
        let applied = engine.applied()?;
        tell_of_lost_syncs(&file, applied.as_ref());
        let now = Instant::now();
        let mut auditor = Self {
            engine: Arc::clone(engine),
            digest: Arc::new(RunningDigest::of(BTreeMap::new(), &BTreeMap::new())),
            file,
            at: None,
            count: None,
            count_began: Checked::default(),
            busy: Duration::ZERO,
            rests_until: now,
            ended_at: now,
            interval,
            audit,
        };
        let expected = match applied {
            Some(applied) => auditor.expected(&applied)?,
            None => Expected::Known(RunningDigest::clone(&auditor.digest)),
        };
        match expected {
            Expected::Known(digest) => {
                auditor.digest = Arc::new(digest);
                let count_max = if is_suspect { Duration::MAX } else { count_max };
                if !skips {
                    auditor.count_at_open(count_max)?;
                }
            }
            Expected::Total(total) => auditor.take_over(Some(total))?,
            Expected::Unknown => auditor.take_over(None)?,
        }
        auditor.note_what_was_counted().await?;
        let vlsn = auditor.at.map_or(Vlsn(0), |at| at.vlsn);
        auditor.audit.remember(vlsn, Arc::clone(&auditor.digest));
        tracing::info!(
            keys_looked_up = retraced.keys,
            rows_put_right = retraced.put_right,
            rows = auditor.digest.total().rows,
            all_counted = auditor.count.is_none(),
            took = ?began.elapsed(),
            "the engine was held against the log"
        );
        Ok(auditor)
    }

    /// Notes an account that only the engine had, as that of a copy, once it was found right.
    async fn note_what_was_counted(&mut self) -> Result<(), FileError> {
        match self.at {
            Some(at) if self.count.is_none() && self.file.found_at(at.position).is_none() => {
                self.file.note_durable(at).await
            }
            _ => Ok(()),
        }
    }

    /// What the engine has to hold, by the file as far as that goes.
    fn expected(&mut self, applied: &Applied) -> Result<Expected, AuditError> {
        if applied.vlsn == Vlsn(0) {
            return Ok(Expected::Known(RunningDigest::clone(&self.digest)));
        }
        let noted = self.file.found_at(applied.position);
        let own = RunningDigest::read(&*self.engine)?;
        let own = own.filter(|(_, point)| point.position == applied.position);
        let own = own.filter(|(digest, point)| digest.is_of(point.total));
        self.at = noted.or(own.as_ref().map(|(_, point)| *point));
        Ok(match (noted, own) {
            (Some(noted), Some((digest, point))) if noted.total == point.total => {
                Expected::Known(digest)
            }
            (Some(noted), _) => Expected::Total(noted.total),
            (None, Some((digest, _))) => Expected::Known(digest),
            // A directory of an earlier version.
            (None, None)
                if self.file.furthest_found().is_none() && !has_account(&*self.engine)? =>
            {
                Expected::Unknown
            }
            (None, None) => {
                let what = "it has lost its account of what it has to hold".to_owned();
                return Err(self.differs(&what));
            }
        })
    }

    /// Counts until it is too long, and beside the work of the node from then on.
    fn count_at_open(&mut self, count_max: Duration) -> Result<(), AuditError> {
        self.begin_count();
        let began = Instant::now();
        while let Some(count) = &mut self.count
            && began.elapsed() < count_max
        {
            count.step(&*self.engine, &self.digest)?;
            if count.is_done() {
                self.conclude()?;
            }
        }
        self.busy = began.elapsed();
        match &self.audit.findings.borrow().differs {
            Some(what) => Err(self.differs(what)),
            None => Ok(()),
        }
    }

    /// Takes what the engine holds for what it has to hold, once it is of this total, where that is known.
    fn take_over(&mut self, total: Option<RowTotal>) -> Result<(), AuditError> {
        tracing::info!("all rows of the engine are counted");
        let names = catalog::named(&*self.engine)?;
        let named = RunningDigest::of(names.clone(), &BTreeMap::new());
        let mut count = Count::begin();
        while !count.is_done() {
            count.step(&*self.engine, &named)?;
        }
        let digest = RunningDigest::of(names, &count.into_found());
        if let Some(right) = total.filter(|right| *right != digest.total()) {
            let rows = (digest.total().rows, right.rows);
            let what = format!("it has {} rows and should have {}", rows.0, rows.1);
            return Err(self.differs(&what));
        }
        if total.is_none() {
            tracing::warn!(
                rows = digest.total().rows,
                "what this engine holds was not noted before: it is taken for right, and compared with \
                 the other nodes"
            );
        }
        if let Some(applied) = self.engine.applied()? {
            let changes = digest.rows(&applied);
            let point = digest.point(&applied);
            self.file.note(point)?;
            self.engine.apply(&EngineBatch { applied, changes })?;
            self.engine.sync()?;
            self.at = Some(point);
        }
        self.digest = Arc::new(digest);
        self.begin_count();
        self.count = None;
        self.found_right();
        Ok(())
    }

    /// What the engine does not hold, with what is known beside.
    fn differs(&self, what: &str) -> AuditError {
        let checked = self.file.checked();
        let text = format!("the engine does not hold what the log gave it: {what}");
        AuditError::Differs(match checked {
            Vlsn(0) => text,
            checked => {
                format!("{text}; everything was there when it was counted at VLSN {checked}")
            }
        })
    }

    /// What becomes of the digest by these changes, which the engine has not made yet.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(crate) fn prepare(&self, changes: &Changes) -> Result<Prepared, EngineError> {
        let counted = self.count.as_ref().and_then(Count::counted);
        self.digest.prepare(&*self.engine, changes, counted)
    }

    /// Notes what the engine will hold, before it is given that.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn note(&mut self, point: Point) -> Result<(), FileError> {
        self.file.note(point)
    }

    /// The engine has made a batch.
    pub(crate) fn made(&mut self, prepared: Prepared, point: Point) {
        if let Some(count) = &mut self.count {
            count.made(prepared.counted);
        }
        Arc::make_mut(&mut self.digest).made(prepared);
        self.at = Some(point);
    }

    /// Everything that the engine was given is durable.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) async fn synced(&mut self) -> Result<(), FileError> {
        let Some(point) = self.at else { return Ok(()) };
        self.audit.remember(point.vlsn, Arc::clone(&self.digest));
        self.file.note_durable(point).await
    }

    /// Whether the engine is known to be wrong.
    pub(crate) fn found_wrong(&self) -> bool {
        self.audit.findings.borrow().differs.is_some()
    }

    /// Whether everything was counted and found right since the engine was opened.
    pub(crate) fn found_right_before(&self) -> bool {
        self.audit.findings.borrow().checked.is_some()
    }

    /// Whether rows are counted, or should be.
    pub(crate) fn has_work(&self) -> bool {
        self.count.is_some() || self.is_due()
    }

    fn is_due(&self) -> bool {
        let audit = &self.audit;
        if self.found_wrong() {
            return false;
        }
        let since = self.ended_at.elapsed();
        let is_urgent = audit.is_urgent.load(Ordering::Acquire);
        let pause = if is_urgent {
            PAUSE_MIN
        } else {
            (self.busy * PAUSE).max(PAUSE_MIN)
        };
        audit.is_demanded.load(Ordering::Acquire)
            || (audit.is_wanted.load(Ordering::Acquire) && since >= pause)
            || self.interval.is_some_and(|interval| since >= interval)
    }

    fn begin_count(&mut self) {
        self.audit.is_demanded.store(false, Ordering::Release);
        self.audit.is_wanted.store(false, Ordering::Release);
        self.count = Some(Count::begin());
        self.busy = Duration::ZERO;
        self.count_began = self.at.map_or(Checked::default(), |at| Checked {
            position: at.position,
            vlsn: at.vlsn,
        });
        let findings = &self.audit.findings;
        findings.send_modify(|found| found.begun += 1);
    }

    /// Counts for a moment, when it is time to.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(crate) fn step(&mut self) -> Result<(), EngineError> {
        if self.count.is_none() && self.is_due() {
            self.begin_count();
        }
        let is_urgent = self.audit.is_urgent.load(Ordering::Acquire);
        let pace = if is_urgent || !self.found_right_before() {
            PACE_FAST
        } else {
            PACE
        };
        let Some(count) = &mut self.count else {
            return Ok(());
        };
        let now = Instant::now();
        if now < self.rests_until {
            return Ok(());
        }
        for _ in 0..pace.slices {
            count.step(&*self.engine, &self.digest)?;
        }
        let took = now.elapsed();
        self.busy += took;
        self.rests_until = now + took * (pace.rest + 1);
        if count.is_done() {
            self.conclude()?;
        }
        Ok(())
    }

    fn conclude(&mut self) -> Result<(), EngineError> {
        self.ended_at = Instant::now();
        match self.count.take().and_then(|count| count.wrong()) {
            None => {
                self.put_account_right()?;
                self.found_right();
            }
            Some(what) => {
                tracing::error!(what, "the engine does not hold what the log gave it");
                metrics::counter!("steadfast_engine_wrong_total").increment(1);
                let findings = &self.audit.findings;
                findings.send_modify(|found| found.differs = Some(what));
            }
        }
        Ok(())
    }

    /// Has the engine's own account say what was counted: the count looks at all rows but these.
    fn put_account_right(&self) -> Result<(), EngineError> {
        let Some(applied) = self.engine.applied()? else {
            return Ok(());
        };
        let changes = self.digest.corrections(&*self.engine, &applied)?;
        if !changes.is_empty() {
            tracing::error!(
                rows = changes.len(),
                "the engine's own account of its rows was wrong; it is written anew"
            );
            self.engine.apply(&EngineBatch { applied, changes })?;
        }
        Ok(())
    }

    fn found_right(&mut self) {
        let checked = self.count_began;
        self.file.note_checked(checked.vlsn);
        self.audit.is_urgent.store(false, Ordering::Release);
        self.audit.findings.send_modify(|found| {
            found.checked = Some(checked);
            found.ended = found.begun;
        });
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        let findings = &self.audit.findings;
        findings.send_modify(|found| found.is_over = true);
    }
}

/// Says so when the engine is not even where it was synced.
fn tell_of_lost_syncs(file: &DigestFile, applied: Option<&Applied>) {
    let has = applied.map_or(Vlsn(0), |applied| applied.vlsn);
    let Some(synced) = file.durable_found().filter(|synced| has < synced.vlsn) else {
        return;
    };
    tracing::error!(
        %has,
        synced = %synced.vlsn,
        "the engine came back without what it had synced; the log is applied again from there"
    );
    metrics::counter!("steadfast_engine_came_back_earlier_total").increment(1);
}

/// The number of rows and the sum of their hashes, over all databases.
type RowTotal = crate::engine::RowDigest;

/// What is known of what an engine has to hold, when it is opened.
enum Expected {
    Known(RunningDigest),
    /// Only the whole, by our own file.
    Total(RowTotal),
    Unknown,
}
