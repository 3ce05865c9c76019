//! The single writer: takes what is queued, writes it, syncs it, and notifies the callers.
//!
//! Each iteration of the loop is one group: everything that gathered while the previous group was
//! being synced, up to a size limit. Callbacks run after the sync, in order. Work that nobody waits
//! for (vouching for the group, retiring segments, preparing the next one) comes after them.

use std::sync::Arc;

use tokio::time::Instant;

use super::appender::Appender;
use super::disk::DiskLock;
use super::format::Record;
use super::index::Slot;
use super::state::{Durable, Group, Request, Shared};
use super::{LogError, LogId};
use crate::planted::{self, Bug};
use crate::recent::Recent;

/// Owns the files of a log. Dropping it before [`LogWriter::run`] returns ends the log: waiting
/// callers get [`LogError::Closed`].
pub struct LogWriter {
    shared: Arc<Shared>,
    appender: Appender,
    /// The group being written; its callbacks have not run.
    group: Group,
    /// Where the entries of the group are on disk.
    slots: Vec<Slot>,
    /// The committed entry as last written.
    committed: Option<LogId>,
    /// Held for as long as the files may be written.
    lock: Option<Box<dyn DiskLock>>,
    /// How long the syncs have taken.
    syncs: Arc<Recent>,
}

impl LogWriter {
    pub(super) fn new(
        shared: Arc<Shared>,
        appender: Appender,
        lock: Box<dyn DiskLock>,
        syncs: Arc<Recent>,
    ) -> Self {
        let committed = appender.head().committed;
        let (group, slots) = (Group::default(), Vec::new());
        Self {
            shared,
            appender,
            group,
            slots,
            committed,
            lock: Some(lock),
            syncs,
        }
    }

    /// Writes until the log is closed, or until the disk fails, which is then reported to every
    /// caller of the log. Blocks where the disk blocks: give it a thread of its own.
    pub async fn run(mut self) {
        let error = match self.write_all().await {
            Ok(()) => LogError::Closed,
            Err(error) => error,
        };
        self.stop(&error);
    }

    async fn write_all(&mut self) -> Result<(), LogError> {
        while self.shared.next_group(&mut self.group).await {
            let written = self.write_group().await?;
            self.tidy(written).await?;
        }
        self.write_committed().await?;
        self.appender.seal().await
    }

    /// Writes one group, durable on return. Returns its size in bytes.
    async fn write_group(&mut self) -> Result<usize, LogError> {
        self.slots.clear();
        let mut written = 0;
        for queued in &self.group.requests {
            let record = match &queued.request {
                Request::Append(entries) => {
                    for entry in entries {
                        let record = Record::Entry(entry.kind, entry.id());
                        let (place, bytes) = self.appender.put(&record, &entry.payload).await?;
                        self.slots.push(Slot { place, bytes });
                        written += bytes as usize;
                    }
                    continue;
                }
                Request::Vote(vote) => Record::Vote(*vote),
                Request::Truncation(_) if planted::is(Bug::DropTruncation) => continue,
                Request::Truncation(last) => Record::Truncation(*last),
                Request::Purge(upto) => Record::Purge(*upto),
            };
            let (_, bytes) = self.appender.put(&record, &[]).await?;
            written += bytes as usize;
        }
        self.write_committed().await?;
        self.appender.write()?;
        self.shared.written.send_replace(self.appender.head().last);
        if planted::is(Bug::SyncAfterCallbacks) {
            self.group
                .waiters
                .drain(..)
                .for_each(|done| done.call(Ok(())));
        }
        let began = Instant::now();
        self.appender.sync().await?;
        self.syncs.note(began.elapsed());
        metrics::histogram!("steadfast_fsync_seconds").record(began.elapsed());

        let durable = Durable {
            last: self.appender.head().last,
            synced: self.appender.synced(),
            segments: self.appender.segments(),
        };
        self.shared
            .group_synced(&self.group.requests, &self.slots, &durable);
        Ok(written)
    }

    /// Runs the callbacks, then the work that nobody waits for.
    async fn tidy(&mut self, written: usize) -> Result<(), LogError> {
        for done in self.group.waiters.drain(..) {
            done.call(Ok(()));
        }
        let mut requests = self.group.requests.drain(..);
        let purged = requests.any(|queued| matches!(queued.request, Request::Purge(_)));
        drop(requests);
        if self.shared.queue_is_empty() {
            self.appender.mark().await?;
        }
        if purged && let Some(upto) = self.appender.head().purged {
            self.appender.retire(upto.position).await?;
            self.shared.segments_retired(self.appender.segments());
        }
        self.appender.prepare(written).await;
        self.appender.shrink(self.shared.config().group_bytes_max);
        Ok(())
    }

    /// Records what is committed, once that entry is in the log: a majority may have what is still
    /// queued here, and a crash must not leave the record without the entry.
    async fn write_committed(&mut self) -> Result<(), LogError> {
        let committed = self.shared.committed();
        let position = |id: Option<LogId>| id.map(|id| id.position);
        let stands = position(committed) <= position(self.appender.head().last);
        if stands && committed != self.committed {
            self.appender.put(&Record::Mark(committed), &[]).await?;
            self.committed = committed;
        }
        Ok(())
    }

    fn stop(&mut self, error: &LogError) {
        // The lock is released first: a caller that waits for the end may reopen the log at once.
        self.lock = None;
        self.shared.stop(error, &mut self.group);
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.stop(&LogError::Closed);
    }
}
