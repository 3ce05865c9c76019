//! Compaction: a write says from which revision on everything can be read; the master's store frees
//! the space below it in the background, step by step.
//!
//! The log tells what each revision replaced or deleted, so a step goes through some of the log and
//! no more. It reads a snapshot and then deletes rows blindly: nobody writes those any more, so it
//! conflicts with no write, and a step that two masters make is the same. The row of the log with the
//! compacted revision itself stays: a watch may begin there.
//!
//! By itself, the store gives up what is older than `history_keep`, as the rows of the log have the
//! time.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use steadfast::{SnapshotDatabase, WriteBatch};
use tokio::time::{Instant, sleep, sleep_until};

use super::command::Command;
use super::inner::Inner;
use super::keys::{
    COMPACTED_DONE, Failure, HISTORY, LOG, LogRow, META, Tables, decode, history_key, number,
};
use super::view::log_bounds;
use crate::proto::etcdserverpb::CompactionRequest;

/// Most changes that one step goes through; a step deletes at most three rows for each.
const STEP_CHANGES_MAX: usize = 512;

/// How often the store looks for what is too old.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// Pause after a step that failed.
const RETRY: Duration = Duration::from_millis(500);

/// A step: what to delete, and how far it comes.
struct Step {
    history: Vec<Bytes>,
    log: Vec<i64>,
    done: i64,
}

impl Inner {
    /// Waits until everything below `revision` is gone, as far as this node knows, or the store
    /// closes.
    pub(super) async fn compacted_to(&self, revision: i64) {
        let mut done = self.hub.compacted_done();
        let reached = done.wait_for(|done| *done >= revision);
        self.unless_stopped(reached).await;
    }
}

/// Compacts until the store closes.
pub(super) async fn run(inner: Arc<Inner>) {
    let compacting = async {
        let mut leader = inner.leader.subscribe();
        let mut compacted = inner.hub.compacted();
        let mut look_at = Instant::now() + look_interval(&inner);
        loop {
            let is_here = leader.borrow_and_update().is_here;
            compacted.borrow_and_update();
            if is_here && !free(&inner).await {
                sleep(RETRY).await;
                continue;
            }
            tokio::select! {
                _ = leader.changed() => {}
                _ = compacted.changed() => {}
                () = sleep_until(look_at) => {
                    look_at = Instant::now() + look_interval(&inner);
                    if is_here {
                        compact_old(&inner).await;
                    }
                }
            }
        }
    };
    Box::pin(inner.unless_stopped(compacting)).await;
}

fn look_interval(inner: &Inner) -> Duration {
    let keep = inner.config.history_keep.unwrap_or(LOOK_INTERVAL);
    (keep / 4).clamp(Duration::from_millis(100), LOOK_INTERVAL)
}

/// Frees all that can be freed. Returns whether it could.
async fn free(inner: &Arc<Inner>) -> bool {
    loop {
        let step = inner.read_blocking(|snapshot| step(&Tables::of_snapshot(snapshot)?));
        let step = match step.await {
            Ok(Some(step)) => step,
            Ok(None) => return true,
            Err(_) => return false,
        };
        let mut batch = WriteBatch::new();
        for row in step.history {
            batch.delete(HISTORY, row);
        }
        for row in step.log {
            batch.delete(LOG, row.to_be_bytes());
        }
        batch.put(META, COMPACTED_DONE, step.done.to_be_bytes());
        if let Err(error) = inner.env.write_batch_async(&batch).await {
            tracing::debug!(%error, "a step of the compaction failed");
            return !inner.leader.borrow().is_here;
        }
    }
}

/// The next step; `None`: all is done.
fn step(tables: &Tables<SnapshotDatabase<'_>>) -> Result<Option<Step>, Failure> {
    let compacted = tables.compacted()?;
    let before = tables.number(COMPACTED_DONE)?;
    if before >= compacted {
        return Ok(None);
    }
    let mut step = Step {
        history: Vec::new(),
        log: Vec::new(),
        done: compacted,
    };
    let mut changes = 0;
    for row in tables.log.range(log_bounds(before.max(0))) {
        let (last, row) = row?;
        let (last, row) = (number(&last)?, decode::<LogRow>(row)?);
        changes += row.events.len();
        for event in row.events {
            let revision = last - event.back;
            // What a transaction put and deleted itself goes only after its revision: a watch that
            // begins there gets both.
            let is_own = event.previous == revision;
            let first = if is_own { before } else { before + 1 };
            let end = if is_own { compacted } else { compacted + 1 };
            if !(first..end).contains(&revision) {
                continue;
            }
            if event.previous > 0 {
                let row = history_key(&event.key, event.previous, 0);
                step.history.push(row);
            }
            if event.is_delete {
                let row = history_key(&event.key, revision, event.step(revision));
                step.history.push(row);
            }
        }
        if last >= compacted {
            break;
        }
        step.log.push(last);
        if changes >= STEP_CHANGES_MAX {
            step.done = last;
            break;
        }
    }
    Ok(Some(step))
}

/// Gives up what has been kept long enough.
async fn compact_old(inner: &Arc<Inner>) {
    let Some(keep) = inner.config.history_keep else {
        return;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let before = now.unwrap_or_default().saturating_sub(keep).as_millis();
    let before = u64::try_from(before).unwrap_or(u64::MAX);
    let kept = i64::try_from(inner.config.history_revisions_min).unwrap_or(i64::MAX);
    let read = inner
        .read_blocking(move |snapshot| last_before(&Tables::of_snapshot(snapshot)?, before, kept));
    let Ok(Some(revision)) = read.await else {
        return;
    };
    let request = CompactionRequest {
        revision,
        physical: false,
    };
    match inner.enqueue(Command::Compact(request), None).await {
        Ok(_) => tracing::debug!(revision, "gave up what is old"),
        // A client was faster, or another node is the master: the next look will tell.
        Err(refusal) => tracing::debug!(?refusal, "could not give up what is old"),
    }
}

/// The last revision that is old enough and not among the newest ones that are kept; `None`: none
/// that is not compacted.
fn last_before(
    tables: &Tables<SnapshotDatabase<'_>>,
    before_ms: u64,
    kept: i64,
) -> Result<Option<i64>, Failure> {
    let compacted = tables.compacted()?;
    let (mut low, mut high) = (compacted, tables.state()?.revision.saturating_sub(kept));
    while low < high {
        let middle = low + (high - low + 1) / 2;
        let row = tables.log.range(log_bounds(middle)).limit(1).next();
        let row = row.transpose()?.map(|(_, row)| decode::<LogRow>(row));
        let is_old = row.transpose()?.is_some_and(|row| row.time_ms <= before_ms);
        if is_old {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok((low > compacted.max(0)).then_some(low))
}
