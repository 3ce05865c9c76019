//! The log behind openraft's interface: entries in, a callback once they are on disk.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::alias::LogIdOf;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};

use crate::consensus::types::{
    RaftEntryOf, RaftVote, TypeConfig, from_raft_entry, from_raft_log_id, from_raft_vote,
    to_raft_entry, to_raft_log_id, to_raft_vote,
};
use crate::ids::LogPosition;
use crate::log::{Log, LogError};
use crate::planted::{self, Bug};
use crate::txn::sequencer::Sequencer;

/// Approximate payload bytes of the entries in one frame to a replica. Far below the frame limit,
/// and large enough that bandwidth limits a replica that is far behind.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The log of this node, for openraft.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Log,
    /// Is told which entry each batch became.
    sequencer: Arc<Sequencer>,
}

impl LogStore {
    pub(crate) fn new(log: Log, sequencer: Arc<Sequencer>) -> Self {
        Self { log, sequencer }
    }

    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<RaftEntryOf>> {
        // openraft knows which entries are purged, but requests whole ranges all the same.
        let first = self
            .log
            .state()
            .purged
            .map_or(0, |purged| purged.position.0 + 1);
        let start = start.max(first);
        if start >= end {
            return Ok(Vec::new());
        }
        let entries = self
            .log
            .read(LogPosition(start)..LogPosition(end), bytes_max)
            .await;
        let entries = entries.map_err(io::Error::other)?.into_iter();
        entries
            .map(|entry| to_raft_entry(entry).map_err(io::Error::other))
            .collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftEntryOf>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntryOf>> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.state().vote.map(to_raft_vote))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(to_raft_log_id),
            last_log_id: state.last.map(to_raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.log
            .save_vote(from_raft_vote(vote))
            .await
            .map_err(io_error)
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        match committed {
            Some(id) => self
                .log
                .save_committed(from_raft_log_id(&id))
                .map_err(io_error),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<TypeConfig>>> {
        let state = self.log.state();
        // An earlier version could note an entry that was then lost in a crash. The note is a hint:
        // without it the master says what is committed.
        let stands = state.committed.filter(|committed| {
            let last = state.last;
            last.is_some_and(|last| committed.position <= last.position)
        });
        Ok(stands.map(to_raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntryOf> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let records = entries.iter().map(from_raft_entry).collect();
        if planted::is(Bug::AckBeforeSync) {
            let appended = self.log.append(records, Box::new(|_| {})).await;
            callback.io_completed(Ok(()));
            return appended.map_err(io_error);
        }
        let done = Box::new(|result| callback.io_completed(result));
        self.log.append(records, done).await.map_err(io_error)?;
        for entry in &entries {
            if let EntryPayload::Normal(batch) = &entry.payload {
                self.sequencer
                    .placed(from_raft_log_id(&entry.log_id), batch);
            }
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        self.log
            .truncate_after(last.as_ref().map(from_raft_log_id))
            .await
            .map_err(io_error)
    }

    async fn purge(&mut self, id: LogIdOf<TypeConfig>) -> io::Result<()> {
        self.log
            .purge(from_raft_log_id(&id))
            .await
            .map_err(io_error)
    }
}

fn io_error(error: LogError) -> io::Error {
    io::Error::other(error)
}
