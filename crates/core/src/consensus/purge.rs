//! Purges the beginning of the log, in whole segments, when nobody needs it any more.
//!
//! ```text
//!   purged ┊ seg 4 │ seg 5 │ seg 6 │ seg 7 │ seg 8 │ seg 9 (being written)
//!                  ▲           ▲           ▲       └── log_keep_bytes ──┘
//!                  │           │           └ the engine has everything up to here on disk
//!                  │           └ the slowest replica, subscription or copy continues here
//!                  └ purge up to here
//! ```
//!
//! The engine's position is a matter of safety: after a crash the log is replayed from there. What
//! the engine has lost unnoticed can be put right only from the log, so it is also kept from the
//! last count that found all rows correct (`txn/audit/`). To purge more, another count is
//! requested, with little rest if the log is over its bound. All else is a matter of cost: a
//! replica silent for longer than `log_retain_ms_max`, or behind by more than
//! `log_retain_bytes_max`, gets a copy of the state instead (`state_copy/`).
//!
//! Only the master knows the progress of the others. It tells them with its heartbeats, so that
//! each of them, should it become master, still has what the slowest one needs.
//!
//! openraft purges only what is in a snapshot. Here a snapshot is a *manifest*: it says what the
//! engine holds, and has no data of its own.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast_net::lock;

use openraft::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::async_runtime::WatchReceiver;
use openraft::storage::Snapshot;
use openraft::{RaftSnapshotBuilder, SnapshotMeta};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::consensus::types::{TypeConfig, decode_membership, to_raft_log_id};
use crate::consensus::{Consensus, ConsensusError, Progress, stopped};
use crate::engine::{Applied, StorageEngine};
use crate::ids::{LogPosition, NodeId, Vlsn};
use crate::log::{LogId, PurgePoint};
use crate::planted::{self, Bug};
use crate::txn::audit::Audit;
use crate::txn::history::{History, HistoryError};
use crate::txn::holds::Holds;

/// How often a node checks whether it can purge a part of its log.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How much log is kept for whom. See `RepConfig` for what it means to a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetainLimits {
    pub(crate) keep_bytes: u64,
    pub(crate) retain_bytes_max: u64,
    pub(crate) retain: Duration,
}

/// What the purge depends on.
pub(crate) struct Retention {
    engine: Arc<dyn StorageEngine>,
    audit: Arc<Audit>,
    holds: Arc<Holds>,
    limits: RetainLimits,
    /// The entry up to which the log is purged or about to be purged.
    purging: Mutex<Option<LogId>>,
    /// On a replica: after which entry a master said that the log is needed, and when.
    told: Mutex<Option<(Instant, LogPosition)>>,
    /// On a master: the same, to be sent to the others.
    needed: watch::Sender<Option<LogPosition>>,
}

impl Retention {
    /// `purged` is the entry before the first one in the log.
    pub(crate) fn new(
        purged: Option<LogId>,
        engine: Arc<dyn StorageEngine>,
        audit: Arc<Audit>,
        holds: Arc<Holds>,
        limits: RetainLimits,
    ) -> Self {
        Self {
            engine,
            audit,
            holds,
            limits,
            purging: Mutex::new(purged),
            told: Mutex::default(),
            needed: watch::Sender::new(None),
        }
    }

    /// Notes that consensus is asked to purge the log up to this entry; returns whether that is
    /// further than before. openraft will do so, if only once nobody reads there any more: a lesser
    /// manifest would be offered for ever to a replica that has it, and needs the entry after it.
    fn begin_purge(&self, upto: LogId) -> bool {
        let mut purging = lock(&self.purging);
        let is_further = purging.is_none_or(|before| before.position < upto.position);
        if is_further {
            *purging = Some(upto);
        }
        is_further
    }

    /// What this node tells the others when it is master.
    pub(super) fn needed(&self) -> watch::Receiver<Option<LogPosition>> {
        self.needed.subscribe()
    }

    /// Notes what a master has said.
    pub(super) fn hear(&self, needed: LogPosition) {
        let mut told = lock(&self.told);
        *told = Some((Instant::now(), needed));
    }

    /// The manifest that a replica behind the log has to reach: the entry before the first one that
    /// is kept. `None` while the log is complete.
    pub(super) fn manifest(
        &self,
        membership: StoredMembershipOf<TypeConfig>,
    ) -> Option<SnapshotOf<TypeConfig, ()>> {
        let purging = *lock(&self.purging);
        let meta = SnapshotMeta {
            last_log_id: Some(to_raft_log_id(purging?)),
            last_membership: membership,
        };
        Some(Snapshot { meta, snapshot: () })
    }

    /// The manifest of what the engine durably holds.
    fn durable_manifest(&self) -> io::Result<SnapshotOf<TypeConfig, ()>> {
        let durable = self.engine.durable();
        let durable = durable.ok_or_else(|| io::Error::other("the engine holds nothing yet"))?;
        let last_membership = decode_membership(&durable.membership).map_err(io::Error::other)?;
        let meta: SnapshotMetaOf<TypeConfig> = SnapshotMeta {
            last_log_id: Some(to_raft_log_id(held(&durable))),
            last_membership,
        };
        Ok(Snapshot { meta, snapshot: () })
    }

    /// On a replica: what the last master heard has said, until it is silent for too long. A node
    /// that has not heard one yet keeps what it has.
    fn told(&self, started: Instant) -> Option<LogPosition> {
        let told = *lock(&self.told);
        let (at, needed) = told.unwrap_or((started, LogPosition(0)));
        (at.elapsed() <= self.limits.retain).then_some(needed)
    }
}

fn held(applied: &Applied) -> LogId {
    LogId {
        term: applied.term,
        position: applied.position,
    }
}

/// Builds the manifest of what the engine durably holds.
pub(crate) struct Manifests {
    pub(super) retention: Arc<Retention>,
    /// The last applied entry, which the engine need not have.
    pub(super) applied: Option<LogId>,
    pub(super) membership: StoredMembershipOf<TypeConfig>,
}

impl RaftSnapshotBuilder<TypeConfig> for Manifests {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, ()>> {
        if planted::is(Bug::PurgePastEngine) {
            let meta = SnapshotMeta {
                last_log_id: self.applied.map(to_raft_log_id),
                last_membership: self.membership.clone(),
            };
            return Ok(Snapshot { meta, snapshot: () });
        }
        self.retention.durable_manifest()
    }
}

/// The purge point up to which the log can be purged; the slowest consumer continues at `needed`.
fn upto(
    points: &[PurgePoint],
    durable: LogPosition,
    needed: Option<LogPosition>,
    limits: &RetainLimits,
) -> Option<LogPosition> {
    let may_go = |point: &&PurgePoint| {
        let is_free = needed.is_none_or(|needed| point.upto <= needed);
        (point.upto <= durable || planted::is(Bug::PurgePastEngine))
            && point.bytes_after >= limits.keep_bytes
            && (is_free || point.bytes_after >= limits.retain_bytes_max)
    };
    let points = points.iter().filter(may_go);
    points.map(|point| point.upto).max()
}

/// Where the slowest of these replicas continues, ignoring those silent for too long. A replica
/// that was never heard may have been up for as long as this node has led.
fn slowest(
    replicas: impl Iterator<Item = Option<Progress>>,
    led_for: Duration,
    retain: Duration,
) -> Option<LogPosition> {
    let needs = replicas.filter_map(|progress| {
        let silent_for = progress.and_then(|progress| progress.heard);
        let persisted = progress.and_then(|progress| progress.persisted);
        let position = persisted.map(|last| last.position).unwrap_or_default();
        (silent_for.unwrap_or(led_for) <= retain).then_some(position)
    });
    needs.min()
}

/// Purges what may be purged, until consensus stops.
pub(super) async fn run(consensus: Arc<Consensus>) {
    let started = Instant::now();
    let mut leads_since = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let leads = consensus.leads();
        leads_since = leads.then(|| leads_since.unwrap_or_else(Instant::now));
        let needed = consensus.needed(leads_since, started);
        if let Err(error) = consensus.purge(needed).await {
            tracing::debug!(%error, "the log is no longer purged");
            return;
        }
    }
}

impl Consensus {
    pub(super) fn leads(&self) -> bool {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().state.is_leader()
    }

    /// The entry after which anyone else needs the log. Also publishes it for the others.
    fn needed(&self, leads_since: Option<Instant>, started: Instant) -> Option<LogPosition> {
        let retention = &self.retention;
        let needed = match leads_since {
            Some(since) => {
                let progress: BTreeMap<NodeId, Progress> = self.replica_progress();
                let members = self.members();
                let others = members.keys().filter(|id| **id != self.own_id());
                let others = others.map(|id| progress.get(id).copied());
                slowest(others, since.elapsed(), retention.limits.retain)
            }
            None => retention.told(started),
        };
        let last = self.log.state().last.map(|last| last.position);
        let for_others = leads_since.and(needed.or(last));
        retention.needed.send_if_modified(|old| {
            let changed = *old != for_others;
            *old = for_others;
            changed
        });
        needed.into_iter().chain(retention.holds.lowest()).min()
    }

    /// The entry before the last transaction that the engine has: that transaction is kept, because
    /// subscriptions and tokens find their place from it. `None` when the log does not have it.
    async fn before_last_transaction(
        &self,
        durable: &Applied,
    ) -> Result<Option<LogPosition>, HistoryError> {
        // As on an arbiter, which has no transactions.
        if durable.vlsn == Vlsn(0) {
            return Ok(None);
        }
        let history = History::new(self.log.clone(), durable.vlsn, Some(durable.position));
        match history.find(durable.vlsn).await {
            Ok(found) => Ok(Some(LogPosition(found.id.position.0.saturating_sub(1)))),
            Err(HistoryError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn purge(&self, needed: Option<LogPosition>) -> Result<(), ConsensusError> {
        let retention = &self.retention;
        let Some(durable) = retention.engine.durable() else {
            return Ok(());
        };
        let points = self.log.purge_points();
        let purged = self.log.state().purged.map(|purged| purged.position);
        let further = |held| {
            let upto = upto(&points, held, needed, &retention.limits);
            upto.filter(|upto| Some(*upto) > purged)
        };
        let checked = retention.audit.findings().borrow().checked;
        let checked = checked.map_or(LogPosition(0), |checked| checked.position);
        let goes_up_to = |held: LogPosition| {
            let is_free = planted::is(Bug::PurgePastChecked);
            further(if is_free { held } else { held.min(checked) })
        };
        if goes_up_to(durable.position) < further(durable.position) {
            let bytes = points.first().map_or(0, |point| point.bytes_after);
            let is_urgent = bytes >= retention.limits.retain_bytes_max;
            retention.audit.want_count(is_urgent);
        }
        let manifest = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.snapshot.as_ref().map(|id| LogPosition(id.index))
        };
        if goes_up_to(durable.position).is_none() {
            return Ok(());
        }
        let before = match self.before_last_transaction(&durable).await {
            Ok(before) => before,
            // The log may have been purged meanwhile, as requested before. The next round retries.
            Err(error) => {
                tracing::debug!(%error, "could not find the last transaction in the log");
                return Ok(());
            }
        };
        let held = before.map_or(durable.position, |before| before.min(durable.position));
        let upto = manifest.and_then(|manifest| goes_up_to(manifest.min(held)));
        if upto < goes_up_to(held) {
            let made = self
                .whole(|raft| async move { raft.trigger().snapshot().await })
                .await;
            // A later round finds it; this one goes only as far as the last manifest.
            made.map_err(|error| stopped(&error))?;
        }
        let Some(upto) = upto else {
            return Ok(());
        };
        let range = upto..LogPosition(upto.0 + 1);
        let entries = match self.log.read(range, 1).await {
            Ok(entries) => entries,
            // As above: the next round tries again.
            Err(error) => {
                tracing::debug!(%error, "could not find the entry to purge up to in the log");
                return Ok(());
            }
        };
        let Some(id) = entries.first().map(crate::log::Entry::id) else {
            return Ok(());
        };
        if !retention.begin_purge(id) {
            return Ok(());
        }
        tracing::info!(upto = %id, "the log is purged");
        let purged = self.whole(|raft| async move { raft.trigger().purge_log(upto.0).await });
        purged.await.map_err(|error| stopped(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::{EngineFactory, MemoryStore};
    use crate::ids::Term;

    const LIMITS: RetainLimits = RetainLimits {
        keep_bytes: 200,
        retain_bytes_max: 400,
        retain: Duration::from_mins(1),
    };

    /// Segments of 100 bytes with ten entries each, the last one still being written.
    fn points() -> Vec<PurgePoint> {
        let point = |n: u64| PurgePoint {
            upto: LogPosition(n * 10),
            bytes_after: (7 - n) * 100,
        };
        (1..=7).map(point).collect()
    }

    #[test]
    fn what_is_needed_again_takes_no_purge_back() {
        let engine = MemoryStore::new()
            .open(Path::new("/engine"))
            .expect("a new one");
        let retention = Retention::new(None, engine, Arc::default(), Arc::default(), LIMITS);
        let entry = |position| LogId {
            term: Term(2),
            position: LogPosition(position),
        };
        assert!(retention.begin_purge(entry(504)));
        assert!(!retention.begin_purge(entry(462)));
        let manifest = retention.manifest(StoredMembershipOf::<TypeConfig>::default());
        let last = manifest.and_then(|manifest| manifest.meta.last_log_id);
        assert_eq!(last.map(|last| last.index), Some(504));
        assert!(retention.begin_purge(entry(505)));
    }

    #[test]
    fn the_log_goes_only_below_what_the_engine_has_on_disk() {
        let found = |durable| upto(&points(), LogPosition(durable), None, &LIMITS);
        assert_eq!(found(9), None);
        assert_eq!(found(35), Some(LogPosition(30)));
        assert_eq!(found(99), Some(LogPosition(50)), "some is kept in any case");
    }

    #[test]
    fn the_log_is_kept_for_the_slowest_up_to_a_bound() {
        let found = |needed| {
            let needed = Some(LogPosition(needed));
            upto(&points(), LogPosition(99), needed, &LIMITS)
        };
        assert_eq!(found(45), Some(LogPosition(40)));
        assert_eq!(found(12), Some(LogPosition(30)), "it is over the bound");
    }

    #[test]
    fn a_replica_that_is_silent_for_too_long_is_not_waited_for() {
        let progress = |position, silent_s: Option<u64>| {
            let term = Term(1);
            let position = LogPosition(position);
            Some(Progress {
                persisted: Some(LogId { term, position }),
                heard: silent_s.map(Duration::from_secs),
            })
        };
        let found = |replicas: &[Option<Progress>], led_s| {
            let led_for = Duration::from_secs(led_s);
            let slowest = slowest(replicas.iter().copied(), led_for, LIMITS.retain);
            slowest.map(|position| position.0)
        };
        assert_eq!(
            found(&[progress(7, Some(1)), progress(3, Some(60))], 9),
            Some(3)
        );
        assert_eq!(
            found(&[progress(7, Some(1)), progress(3, Some(61))], 9),
            Some(7)
        );
        assert_eq!(
            found(&[progress(7, Some(1)), progress(3, None)], 61),
            Some(7)
        );
        assert_eq!(found(&[progress(7, Some(1)), None], 9), Some(0));
        assert_eq!(found(&[], 9), None);
    }
}
