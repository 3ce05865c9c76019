//! The state machine to which openraft applies committed entries: the sequencer makes them visible,
//! and the flush later moves them into the engine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, StoredMembership};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::consensus::purge::{Manifests, Retention};
use crate::consensus::types::{
    EntryError, TypeConfig, decode_membership, encode_membership, from_raft_log_id, to_raft_log_id,
};
use crate::engine::Applied;
use crate::log::LogId;
use crate::txn::batch::Batch;
use crate::txn::flush::{Flush, Mark};
use crate::txn::sequencer::Sequencer;
use crate::txn::window::Written;

/// How long a node with a full window waits for an engine without space.
const FULL_MAX: Duration = Duration::from_secs(10);
const NO_SPACE: &str = "the storage engine has no space on its volume, and the memory for versions \
                        that it does not hold yet is full (window_bytes_max): make room";

/// Applies entries in log order, in one task.
pub(crate) struct StateMachine {
    sequencer: Arc<Sequencer>,
    flush: Arc<Flush>,
    applied: watch::Sender<Option<LogId>>,
    membership: StoredMembershipOf<TypeConfig>,
    retention: Arc<Retention>,
}

impl StateMachine {
    /// Continues from what the engine holds.
    ///
    /// # Errors
    /// When the engine's account of the membership cannot be decoded.
    pub(crate) fn new(
        sequencer: Arc<Sequencer>,
        flush: Arc<Flush>,
        engine: Option<&Applied>,
        applied: watch::Sender<Option<LogId>>,
        retention: Arc<Retention>,
    ) -> Result<Self, EntryError> {
        let membership = match engine {
            Some(state) if !state.membership.is_empty() => decode_membership(&state.membership)?,
            _ => StoredMembership::default(),
        };
        let id = engine.map(|state| LogId {
            term: state.term,
            position: state.position,
        });
        applied.send_replace(id);
        Ok(Self {
            sequencer,
            flush,
            applied,
            membership,
            retention,
        })
    }

    /// A batch that does not follow the last applied one was numbered in vain: consensus had
    /// refused the one before it. Every node finds the same here, and skips it.
    async fn apply_batch(&self, id: LogId, batch: &Batch) -> io::Result<Vec<Written>> {
        let (first, visible) = (batch.first(), self.sequencer.visible());
        if first != visible.next() {
            tracing::info!(
                entry = %id, %first, %visible,
                "skipped a batch that does not follow the last applied one"
            );
            return Ok(Vec::new());
        }
        if !self.sequencer.is_in_flight(id.term, batch) {
            let since = Instant::now();
            while !self.flush.has_room() {
                // A node that waits for long answers nobody: better to be visibly down.
                if self.flush.is_full() && since.elapsed() >= FULL_MAX {
                    self.flush.give_up(NO_SPACE);
                    return Err(io::Error::new(io::ErrorKind::StorageFull, NO_SPACE));
                }
                self.flush.more_room().await.map_err(io::Error::other)?;
            }
        }
        Ok(self.sequencer.apply(id, batch))
    }

    async fn apply_entry(
        &mut self,
        raft_id: &LogIdOf<TypeConfig>,
        payload: &EntryPayload<Batch, crate::ids::NodeId, crate::group::Member>,
    ) -> io::Result<()> {
        let id = from_raft_log_id(raft_id);
        let mut membership = None;
        let (mut versions, mut bytes) = (Vec::new(), 0);
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(batch) => {
                bytes = batch.bytes().len();
                versions = self.apply_batch(id, batch).await?;
            }
            EntryPayload::Membership(changed) => {
                membership = Some(encode_membership(Some(id), changed));
                self.membership = StoredMembership::new(Some(*raft_id), changed.clone());
            }
        }
        self.flush.note(Mark {
            log_id: id,
            vlsn: self.sequencer.visible(),
            membership,
            versions,
            bytes,
        });
        self.applied.send_replace(Some(id));
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = ();
    type SnapshotBuilder = Manifests;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>)> {
        Ok((
            self.applied.borrow().map(to_raft_log_id),
            self.membership.clone(),
        ))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            self.apply_entry(&entry.log_id, &entry.payload).await?;
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Manifests> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Manifests {
        Manifests {
            retention: Arc::clone(&self.retention),
            applied: *self.applied.borrow(),
            membership: self.membership.clone(),
        }
    }

    /// Never called: a node copies its state from a peer while its consensus is stopped, never
    /// through consensus.
    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<TypeConfig>,
        _snapshot: (),
    ) -> io::Result<()> {
        let why = "a state is never installed through consensus";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, ()>>> {
        Ok(self.retention.manifest(self.membership.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::consensus::purge::RetainLimits;
    use crate::engine::{EngineFactory, MemoryStore};
    use crate::ids::{DatabaseId, LogPosition, Term, Vlsn};
    use crate::txn::batch::{BatchBuilder, Operation};
    use crate::txn::flush::FlushLimits;
    use crate::txn::window::Window;

    const RETAIN: RetainLimits = RetainLimits {
        keep_bytes: 0,
        retain_bytes_max: 0,
        retain: Duration::ZERO,
    };

    fn batch(first: u64, transactions: usize) -> Batch {
        let mut builder = BatchBuilder::new(Vlsn(first));
        for _ in 0..transactions {
            builder.push(&[Operation {
                database: DatabaseId(1),
                key: "key".into(),
                value: Some("value".into()),
                expires: false,
            }]);
        }
        builder.finish(0)
    }

    #[tokio::test]
    async fn a_batch_that_follows_on_a_refused_one_is_passed_over() {
        let window = Arc::new(Window::default());
        let sequencer = Arc::new(Sequencer::new(Arc::clone(&window), Vlsn(0), 1024));
        let engine = MemoryStore::new().open(Path::new("/engine")).unwrap();
        let limits = FlushLimits {
            window_bytes_max: 1 << 20,
            flush_bytes: 1 << 20,
            flush_interval: Duration::from_secs(1),
            snapshot_age_max: Duration::from_secs(1),
        };
        let (numbers, data) = (Arc::clone(&sequencer), Arc::clone(&engine));
        let flush = Flush::new(window, Arc::default(), numbers, data, limits).unwrap();
        let retention = Retention::new(None, engine, Arc::default(), Arc::default(), RETAIN);
        let applied = watch::Sender::new(None);
        let (numbers, flush, kept) = (Arc::clone(&sequencer), Arc::new(flush), Arc::new(retention));
        let mut machine = StateMachine::new(numbers, flush, None, applied, kept).unwrap();
        // VLSNs 3 to 4 were refused. A batch from the end of the session may follow them in the
        // log, and the next session numbers from the last applied transaction.
        let log = [(batch(1, 2), 2), (batch(5, 1), 2), (batch(3, 1), 3)];
        for (position, (batch, visible)) in (1..).zip(log) {
            let id = LogId {
                term: Term(1),
                position: LogPosition(position),
            };
            let payload = EntryPayload::Normal(batch);
            let applied = machine.apply_entry(&to_raft_log_id(id), &payload).await;
            applied.expect("every node goes on");
            assert_eq!(sequencer.visible(), Vlsn(visible));
        }
    }
}
