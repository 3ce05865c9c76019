//! openraft's own test suite for log stores, run on our log on the real disk.
//!
//! The suite requires a state machine beside the log. It gets a small one in memory that can build
//! and install snapshots, which ours need not do.

use std::io;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageError, StoredMembership};

use super::log_store::LogStore;
use super::types::TypeConfig;
use crate::ids::{GroupUuid, Incarnation, NodeId, Vlsn};
use crate::log::{Log, LogConfig, LogIdentity, RealDisk};
use crate::txn::sequencer::Sequencer;

#[derive(Clone, Default)]
struct Machine {
    applied: Option<LogIdOf<TypeConfig>>,
    membership: StoredMembershipOf<TypeConfig>,
    /// Shared with the builders, which are clones.
    snapshot: Arc<Mutex<Option<SnapshotMetaOf<TypeConfig>>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, ()>> {
        let meta = SnapshotMetaOf::<TypeConfig> {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        *self.snapshot.lock().expect("not poisoned") = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, _responder) = item?;
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(changed) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), changed);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        _snapshot: (),
    ) -> io::Result<()> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.snapshot.lock().expect("not poisoned") = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, ()>>> {
        let snapshot = self.snapshot.lock().expect("not poisoned").clone();
        Ok(snapshot.map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let identity = LogIdentity {
            group: GroupUuid(uuid::Uuid::from_u128(7)),
            node: NodeId(1),
            incarnation: Incarnation(1),
        };
        let config = LogConfig {
            segment_bytes: 64 * 1024,
            ..LogConfig::default()
        };
        let opened = Log::open(Arc::new(RealDisk), dir.path().join("log"), identity, config).await;
        let (log, writer) = opened.expect("a fresh log opens");
        start_writer(writer);
        let sequencer = Arc::new(Sequencer::new(Arc::default(), Vlsn(0), 1024));
        Ok((dir, LogStore::new(log, sequencer), Machine::default()))
    }
}

/// The writer ends by itself when the last handle of the log is dropped.
#[expect(
    clippy::disallowed_methods,
    reason = "the log's own thread, as in production"
)]
fn start_writer(writer: crate::log::LogWriter) {
    std::thread::spawn(move || pollster::block_on(writer.run()));
}

#[test]
fn openrafts_suite_passes_on_the_log_on_the_real_disk() {
    use openraft::AsyncRuntime;
    let mut runtime = super::SeededRuntime::new(1);
    runtime
        .block_on(Suite::<TypeConfig, LogStore, Machine, Builder, _>::test_all(Builder))
        .expect("the suite passes");
}
