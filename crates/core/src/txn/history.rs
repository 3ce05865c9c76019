//! Finds a transaction's entry in the log.
//!
//! An entry holds a batch, so the search compares a VLSN with the first number of each batch:
//! backwards from the end of the log in growing steps, and then by bisection. It is more than a
//! binary search because the log contains batches that were numbered in vain, which every node
//! skips.
//!
//! ```text
//!  position   7        8         9 (in vain)   10        11       12
//!           │ 1..=2 │ (blank) │ 5..=6        │ (blank) │ 3..=4 │ 5..=5 │
//! ```
//!
//! Any batch, in vain or not, begins above every number applied before it. So the batch that was
//! applied with a number is the *last* one in the log that begins at or below it. A probe that hits
//! a batch in vain may turn too early, never too late, and what it missed is near: a session begins
//! with a blank entry, and leaves fewer batches in vain than may be in flight.

use std::ops::Range;

use crate::ids::{LogPosition, Vlsn};
use crate::limits::BATCHES_IN_FLIGHT_MAX;
use crate::log::{Entry, EntryKind, Log, LogError, LogId};
use crate::txn::batch::{Batch, BatchError};

/// Bytes per read when batches are examined one after another.
const WALK_BYTES: usize = 256 << 10;

/// Why a transaction cannot be found in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// The log begins after the transaction.
    #[error("the log reaches back only to VLSN {oldest}")]
    Gone { oldest: Vlsn },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// A batch and its log entry.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    pub(crate) id: LogId,
    pub(crate) batch: Batch,
}

/// The transactions in a log, up to a given one.
pub(crate) struct History {
    log: Log,
    /// The last applied transaction.
    visible: Vlsn,
    /// The end of the search: a position past the entry that holds it.
    end: u64,
}

/// One batch of a walk through the log.
struct Step {
    found: Numbered,
    /// Whether a blank entry precedes it.
    begins_session: bool,
}

impl History {
    /// Everything up to `visible`, which is at most one entry behind `applied`.
    pub(crate) fn new(log: Log, visible: Vlsn, applied: Option<LogPosition>) -> Self {
        let end = applied.map_or(0, |applied| applied.0 + 2);
        Self { log, visible, end }
    }

    /// The batch in which `vlsn` was applied. It was visible when this was created.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub(crate) async fn find(&self, vlsn: Vlsn) -> Result<Numbered, HistoryError> {
        let mut walk = self.walk(self.bisect(vlsn).await?);
        let (mut found, mut later) = (None, 0);
        while later < BATCHES_IN_FLIGHT_MAX
            && let Some(step) = walk.next().await?
        {
            if step.begins_session {
                later = 0;
            }
            if step.found.batch.first() <= vlsn {
                (found, later) = (Some(step.found), 0);
            } else {
                later += 1;
            }
        }
        match found {
            Some(found) if found.batch.last() >= vlsn => Ok(found),
            _ => Err(HistoryError::Gone {
                oldest: self.oldest().await?,
            }),
        }
    }

    /// The first transaction that the log still has, or the next one to come if it has none.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub(crate) async fn oldest(&self) -> Result<Vlsn, HistoryError> {
        let (mut walk, mut batches) = (self.walk(self.first().0), 0);
        let mut oldest = self.visible.next();
        while batches < BATCHES_IN_FLIGHT_MAX
            && let Some(step) = walk.next().await?
        {
            batches = if step.begins_session { 1 } else { batches + 1 };
            // A batch in vain begins above the next one that was applied.
            oldest = oldest.min(step.found.batch.first());
        }
        Ok(oldest)
    }

    /// The first position that the log still has.
    pub(crate) fn first(&self) -> LogPosition {
        let purged = self.log.state().purged;
        LogPosition(purged.map_or(0, |purged| purged.position.0 + 1))
    }

    /// A position at or before the last batch that begins at or below `vlsn`, and near it.
    async fn bisect(&self, vlsn: Vlsn) -> Result<u64, HistoryError> {
        let (mut low, mut high) = (self.first().0, self.end);
        let mut step = 1;
        while low < high {
            let probe = high.saturating_sub(step).max(low);
            if let Some(step) = self.batch_at_or_after(probe, high).await?
                && step.found.batch.first() <= vlsn
            {
                low = step.found.id.position.0;
                break;
            }
            high = probe;
            step *= 2;
        }
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            match self.batch_at_or_after(middle, high).await? {
                Some(step) if step.found.batch.first() <= vlsn => {
                    low = step.found.id.position.0;
                }
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The first batch at or after position `at` and before `end`.
    async fn batch_at_or_after(&self, at: u64, end: u64) -> Result<Option<Step>, HistoryError> {
        // A limit of one byte yields one entry.
        Walk::new(&self.log, at..end, 1).next().await
    }

    /// The batches from position `at` on.
    fn walk(&self, at: u64) -> Walk<'_> {
        Walk::new(&self.log, at..self.end, WALK_BYTES)
    }
}

/// Batches in log order.
struct Walk<'a> {
    log: &'a Log,
    /// What has not been read yet.
    range: Range<u64>,
    /// Maximum bytes of one read, unless a single entry is larger.
    bytes_max: usize,
    /// Read, but not yet examined.
    ahead: std::vec::IntoIter<Entry>,
}

impl<'a> Walk<'a> {
    fn new(log: &'a Log, range: Range<u64>, bytes_max: usize) -> Self {
        let ahead = Vec::new().into_iter();
        Self {
            log,
            range,
            bytes_max,
            ahead,
        }
    }

    async fn next(&mut self) -> Result<Option<Step>, HistoryError> {
        let mut begins_session = false;
        while let Some(entry) = self.next_entry().await? {
            match entry.kind {
                EntryKind::Transactions => {
                    let found = numbered(entry)?;
                    return Ok(Some(Step {
                        found,
                        begins_session,
                    }));
                }
                EntryKind::Blank => begins_session = true,
                EntryKind::Membership => {}
            }
        }
        Ok(None)
    }

    async fn next_entry(&mut self) -> Result<Option<Entry>, LogError> {
        if self.ahead.as_slice().is_empty() && !self.range.is_empty() {
            let range = LogPosition(self.range.start)..LogPosition(self.range.end);
            let read = self.log.read(range, self.bytes_max).await?;
            self.range.start = read.last().map_or(self.range.end, |e| e.position.0 + 1);
            self.ahead = read.into_iter();
        }
        Ok(self.ahead.next())
    }
}

fn numbered(entry: Entry) -> Result<Numbered, BatchError> {
    let id = entry.id();
    let batch = Batch::parse(entry.payload)?;
    Ok(Numbered { id, batch })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{DatabaseId, GroupUuid, Incarnation, NodeId, Term};
    use crate::log::{LogConfig, LogIdentity, MemoryDisk};
    use crate::txn::batch::{BatchBuilder, Operation};

    /// What a master does with the next batch of its session.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        /// A batch of this many transactions enters the log.
        Commit(u8),
        /// The batch is refused; this many later ones of the session enter the log in vain.
        Refuse(u8),
        /// A new master, or the same one again.
        Session,
        Membership,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            8 => (1..4_u8).prop_map(Act::Commit),
            2 => (0..5_u8).prop_map(Act::Refuse),
            1 => Just(Act::Session),
            1 => Just(Act::Membership),
        ];
        proptest::collection::vec(act, 1..60)
    }

    /// A log, and the position of each transaction in it.
    #[derive(Default)]
    struct Written {
        entries: Vec<Entry>,
        /// Position by VLSN, from 1.
        places: Vec<u64>,
    }

    impl Written {
        fn push(&mut self, kind: EntryKind, payload: Bytes) -> u64 {
            let position = self.entries.len() as u64;
            self.entries.push(Entry {
                term: Term(1),
                position: LogPosition(position),
                kind,
                payload,
            });
            position
        }

        fn push_batch(&mut self, first: u64, transactions: u8) -> u64 {
            let mut builder = BatchBuilder::new(Vlsn(first));
            for _ in 0..transactions {
                builder.push(&[Operation {
                    database: DatabaseId(1),
                    key: "key".into(),
                    value: None,
                    expires: false,
                }]);
            }
            let payload = builder.finish(0).bytes().clone();
            self.push(EntryKind::Transactions, payload)
        }

        fn of(acts: &[Act]) -> Self {
            let mut written = Self::default();
            written.push(EntryKind::Membership, Bytes::new());
            written.push(EntryKind::Blank, Bytes::new());
            for act in acts {
                let next = written.places.len() as u64 + 1;
                match *act {
                    Act::Commit(transactions) => {
                        let position = written.push_batch(next, transactions);
                        let places = std::iter::repeat_n(position, transactions.into());
                        written.places.extend(places);
                    }
                    Act::Refuse(later) => {
                        for nth in 0..u64::from(later) {
                            written.push_batch(next + 2 + 3 * nth, 3);
                        }
                        written.push(EntryKind::Blank, Bytes::new());
                    }
                    Act::Session => {
                        written.push(EntryKind::Blank, Bytes::new());
                    }
                    Act::Membership => {
                        written.push(EntryKind::Membership, Bytes::new());
                    }
                }
            }
            written
        }

        async fn open(&self) -> (Log, History) {
            let identity = LogIdentity {
                group: GroupUuid(uuid::Uuid::from_u128(7)),
                node: NodeId(1),
                incarnation: Incarnation(1),
            };
            let (disk, dir) = (Arc::new(MemoryDisk::new()), PathBuf::from("/log"));
            let config = LogConfig {
                segment_bytes: 64 << 10,
                ..LogConfig::default()
            };
            let opened = Log::open(disk, dir, identity, config).await;
            let (log, writer) = opened.expect("an empty log");
            tokio::spawn(writer.run());
            let done = Box::new(|_| ());
            let appended = log.append(self.entries.clone(), done).await;
            appended.expect("the log takes entries");
            let visible = Vlsn(self.places.len() as u64);
            let last = LogPosition(self.entries.len() as u64 - 1);
            let history = History::new(log.clone(), visible, Some(last));
            (log, history)
        }
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(test)
    }

    proptest! {
        #[test]
        fn every_transaction_is_found_where_it_was_applied(acts in acts()) {
            let written = Written::of(&acts);
            run(async {
                let (_log, history) = written.open().await;
                for (vlsn, position) in (1..).zip(&written.places) {
                    let found = history.find(Vlsn(vlsn)).await.expect("it is in the log");
                    prop_assert_eq!(found.id.position.0, *position, "VLSN {}", vlsn);
                }
                prop_assert_eq!(history.oldest().await.expect("a log"), Vlsn(1));
                Ok(())
            })?;
        }

        #[test]
        fn what_was_purged_is_gone_and_the_rest_is_found(
            acts in acts(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let written = Written::of(&acts);
            let last = cut.index(written.entries.len()) as u64;
            run(async {
                let (log, history) = written.open().await;
                let upto = LogId { term: Term(1), position: LogPosition(last) };
                log.purge(upto).await.expect("the log purges");
                let kept = |position: &&u64| **position > last;
                let oldest = written.places.len() - written.places.iter().filter(kept).count();
                let oldest = Vlsn(oldest as u64 + 1);
                for (vlsn, position) in (1..).zip(&written.places) {
                    match history.find(Vlsn(vlsn)).await {
                        Ok(found) => {
                            prop_assert_eq!(found.id.position.0, *position);
                            prop_assert!(*position > last);
                        }
                        Err(HistoryError::Gone { oldest: told }) => {
                            prop_assert!(*position <= last);
                            prop_assert_eq!(told, oldest);
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Ok(())
            })?;
        }
    }
}
