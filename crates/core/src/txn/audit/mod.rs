//! No engine is trusted: its data is checked against what the log gave it.
//!
//! ```text
//!                 log                          engine
//!   flush ──── changes ──► running digest ◄── old values ── (digest.rs)
//!                              │    │
//!       a file of ours ◄───────┘    └──────► the same at one VLSN on every node
//!        (file.rs)
//!   on open       the last change of each key in the log is looked up, and put right (retrace.rs)
//!                 then all rows are counted                                          (count.rs)
//!   while open    they are counted again: at an interval, and before the log is purged
//! ```
//!
//! An engine that has lost a row, kept a deleted one, or has another value gives a different count.
//! A lost row that is written again makes the running digest wrong for good, as it subtracts what
//! the engine reports as the old row: the next count, or the comparison of nodes, finds that.
//!
//! A count takes at most a tenth of a core, or a third until the engine was first found correct.
//! [`PAUSE`] keeps counts from running all the time.

pub(crate) mod count;
pub(crate) mod digest;
pub(crate) mod file;
pub(crate) mod retrace;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::{Applied, EngineBatch, EngineError, StorageEngine};
use crate::ids::{LogPosition, Vlsn};
use crate::log::{Disk, Log};
use crate::planted::{self, Bug};
use crate::plural::plural;
use crate::txn::audit::count::Count;
use crate::txn::audit::digest::{Changes, Point, Prepared, RunningDigest, has_account};
use crate::txn::audit::file::{DigestFile, FileError};
use crate::txn::audit::retrace::{RetraceError, Retraced, retrace};
use crate::txn::catalog;

/// How much one step counts at most, and its rest afterwards, as a multiple of the step's duration.
const PACE: Pace = Pace { slices: 1, rest: 9 };
/// The same for the first count, until which nothing vouches for the engine, and for a count that
/// holds up the purge of a log that is over its bound.
const PACE_FAST: Pace = Pace { slices: 4, rest: 2 };
/// Pause after a count before the log may request another, as a multiple of the time it worked:
/// counts take a fiftieth of a core.
const PAUSE: u32 = 50;
/// The shortest such pause.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Number of digests remembered for comparisons: those of the last syncs.
const RECENT: usize = 16;

/// Why the engine cannot be used.
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

/// What is known about a node's engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// The point up to which everything was found correct since the engine was opened.
    pub(crate) checked: Option<Checked>,
    /// The mismatch found in the engine, described for people.
    pub(crate) differs: Option<String>,
    /// Keys put right from the log when the engine was opened.
    pub(crate) put_right: u64,
    /// Number of counts begun, and ended.
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Whether counting has ended because the node has stopped.
    pub(crate) is_over: bool,
}

/// A point in the log up to which the engine is correct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) position: LogPosition,
    pub(crate) vlsn: Vlsn,
}

/// Requests to the audit, and its results.
#[derive(Default)]
pub(crate) struct Audit {
    findings: watch::Sender<Findings>,
    /// The digests at the last syncs.
    recent: watch::Sender<VecDeque<(Vlsn, Arc<RunningDigest>)>>,
    /// Whether the log waits for a count, and whether it is over its bound meanwhile.
    is_wanted: AtomicBool,
    is_urgent: AtomicBool,
    /// Whether a caller waits for a count.
    is_demanded: AtomicBool,
}

impl Audit {
    pub(crate) fn findings(&self) -> watch::Receiver<Findings> {
        self.findings.subscribe()
    }

    /// Requests a count once the last one is long enough ago, or soon and faster if urgent.
    pub(crate) fn want_count(&self, is_urgent: bool) {
        self.is_urgent.store(is_urgent, Ordering::Release);
        self.is_wanted.store(true, Ordering::Release);
    }

    /// Has all rows counted from the first one on, and waits for the end. Returns the mismatch, or
    /// `None`, also when the node has stopped meanwhile.
    pub(crate) async fn count(&self) -> Option<String> {
        let mut findings = self.findings();
        let number = findings.borrow_and_update().begun + 1;
        self.is_demanded.store(true, Ordering::Release);
        let is_over =
            |found: &Findings| found.ended >= number || found.differs.is_some() || found.is_over;
        let ended = findings.wait_for(is_over).await;
        ended.ok().and_then(|found| found.differs.clone())
    }

    /// What the engine should hold as of this transaction, once the flush stands exactly there. A
    /// reader open at it makes the flush stop there. `None` when the node ends first.
    pub(crate) async fn digest_at(&self, vlsn: Vlsn) -> Option<Arc<RunningDigest>> {
        let found = self.remembered(|at| at == vlsn).await?;
        Some(found.1)
    }

    /// The same as of this transaction or a later one that ends a log entry.
    pub(crate) async fn digest_from(&self, vlsn: Vlsn) -> Option<(Vlsn, Arc<RunningDigest>)> {
        self.remembered(|at| at >= vlsn).await
    }

    /// The newest digest that `suits` accepts, as soon as there is one.
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

/// The inputs of an audit.
pub(crate) struct Opening {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    pub(crate) log: Log,
    pub(crate) engine: Arc<dyn StorageEngine>,
    /// Whether the engine was found wrong: then the count runs to its end.
    pub(crate) is_suspect: bool,
    /// Maximum time of the count otherwise. The rest is counted while the node runs.
    pub(crate) count_max: Duration,
    /// How often the rows are counted, besides when the log requests it.
    pub(crate) interval: Option<Duration>,
}

/// Checks the engine against the log. Owned by one task, the flush, which is the only writer of the
/// engine.
pub(crate) struct Auditor {
    engine: Arc<dyn StorageEngine>,
    digest: Arc<RunningDigest>,
    file: DigestFile,
    /// The engine's current point.
    at: Option<Point>,
    count: Option<Count>,
    /// The engine's point when the count began.
    count_began: Checked,
    /// Total time of the count's steps.
    busy: Duration,
    rests_until: Instant,
    ended_at: Instant,
    interval: Option<Duration>,
    audit: Arc<Audit>,
}

impl Auditor {
    /// Checks a newly opened engine against the log, puts right what the log can, and counts all
    /// rows as far as time permits.
    ///
    /// # Errors
    /// [`AuditError::Differs`] when the engine is wrong, and the log cannot put it right.
    pub(crate) async fn open(opening: Opening, audit: Arc<Audit>) -> Result<Self, AuditError> {
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
        let file = DigestFile::open(&disk, &path).await?;
        let skips = planted::is(Bug::SkipCheckAtOpen) && !is_suspect;
        let retraced = if skips {
            Retraced::default()
        } else {
            retrace(&log, &engine).await?
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
            engine,
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
            "the engine was checked against the log"
        );
        Ok(auditor)
    }

    /// Notes an account that only the engine has, as after a copy, once it was found correct.
    async fn note_what_was_counted(&mut self) -> Result<(), FileError> {
        match self.at {
            Some(at) if self.count.is_none() && self.file.found_at(at.position).is_none() => {
                self.file.note_durable(at).await
            }
            _ => Ok(()),
        }
    }

    /// What the engine should hold, according to the file where it knows.
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
            // The directory was written by an earlier version.
            (None, None)
                if self.file.furthest_found().is_none() && !has_account(&*self.engine)? =>
            {
                Expected::Unknown
            }
            (None, None) => {
                let what = "it has lost its account of what it must hold".to_owned();
                return Err(self.differs(&what));
            }
        })
    }

    /// Counts for at most `count_max`; the rest is counted while the node runs.
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

    /// Accepts the engine's rows as correct, provided that they have this total, if one is known.
    fn take_over(&mut self, total: Option<RowTotal>) -> Result<(), AuditError> {
        tracing::info!("counting all rows of the engine");
        let names = catalog::named(&*self.engine)?;
        let named = RunningDigest::of(names.clone(), &BTreeMap::new());
        let mut count = Count::begin();
        while !count.is_done() {
            count.step(&*self.engine, &named)?;
        }
        let digest = RunningDigest::of(names, &count.into_found());
        if let Some(right) = total.filter(|right| *right != digest.total()) {
            let rows = (digest.total().rows, right.rows);
            let noun = plural(rows.0, "row", "rows");
            let what = format!("it has {} {noun}, but should have {}", rows.0, rows.1);
            return Err(self.differs(&what));
        }
        if total.is_none() {
            tracing::warn!(
                rows = digest.total().rows,
                "there is no record of what this engine must hold: its rows are taken to be right, \
                 and compared with the other nodes"
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

    /// The error for this mismatch, with what else is known.
    fn differs(&self, what: &str) -> AuditError {
        let checked = self.file.checked();
        let text = format!("the engine does not hold what the log gave it: {what}");
        AuditError::Differs(match checked {
            Vlsn(0) => text,
            checked => {
                format!("{text}; everything was there at the last count, at VLSN {checked}")
            }
        })
    }

    /// The effect of these changes, which the engine has not applied yet, on the digest.
    ///
    /// # Errors
    /// When the engine cannot be read.
    pub(crate) fn prepare(&self, changes: &Changes) -> Result<Prepared, EngineError> {
        let counted = self.count.as_ref().and_then(Count::counted);
        self.digest.prepare(&*self.engine, changes, counted)
    }

    /// Notes what the engine will hold after its next batch.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn note(&mut self, point: Point) -> Result<(), FileError> {
        self.file.note(point)
    }

    /// Notes that the engine has applied a batch.
    pub(crate) fn made(&mut self, prepared: Prepared, point: Point) {
        if let Some(count) = &mut self.count {
            count.made(prepared.counted);
        }
        Arc::make_mut(&mut self.digest).made(prepared);
        self.at = Some(point);
    }

    /// Notes that everything the engine was given is durable.
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

    /// Whether everything was counted and found correct since the engine was opened.
    pub(crate) fn found_right_before(&self) -> bool {
        self.audit.findings.borrow().checked.is_some()
    }

    /// Whether rows are being counted, or should be.
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

    /// Counts briefly, if it is time to.
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

    /// Corrects the engine's own account to what was counted: a count covers all rows but these.
    fn put_account_right(&self) -> Result<(), EngineError> {
        let Some(applied) = self.engine.applied()? else {
            return Ok(());
        };
        let changes = self.digest.corrections(&*self.engine, &applied)?;
        if !changes.is_empty() {
            tracing::error!(
                rows = changes.len(),
                "the engine's own account of its rows was wrong; it is rewritten"
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

/// Reports an engine that is not even at the point where it was synced.
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

/// What is known, when an engine is opened, about what it should hold.
enum Expected {
    Known(RunningDigest),
    /// Only the total, from our own file.
    Total(RowTotal),
    Unknown,
}
