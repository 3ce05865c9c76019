//! Shared by audit tests: a log on an in-memory disk, and an engine that is given its changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::digest::Point;
use super::{Audit, AuditError, Auditor, Opening};
use crate::engine::{Applied, Change, EngineBatch, EngineFactory, MemoryStore, StorageEngine};
use crate::ids::{DatabaseId, GroupUuid, Incarnation, LogPosition, NodeId, Term, Vlsn};
use crate::log::{Entry, EntryKind, Log, LogConfig, LogId, LogIdentity, MemoryDisk};
use crate::txn::batch::{BatchBuilder, Operation};
use crate::txn::catalog::{self, CATALOG};

/// The database of a test.
pub(crate) const DB: DatabaseId = DatabaseId(1);
const TERM: Term = Term(1);

async fn open_log(disk: &MemoryDisk) -> Log {
    let identity = LogIdentity {
        group: GroupUuid(uuid::Uuid::from_u128(7)),
        node: NodeId(1),
        incarnation: Incarnation(1),
    };
    let config = LogConfig {
        segment_bytes: 64 * 1024,
        ..LogConfig::default()
    };
    let shared = Arc::new(disk.clone());
    let opened = Log::open(shared, PathBuf::from("/data/log"), identity, config).await;
    let (log, writer) = opened.expect("a log");
    tokio::spawn(writer.run());
    log
}

fn change(
    (database, key, value): &(DatabaseId, &str, Option<&str>),
) -> (DatabaseId, Bytes, Change) {
    let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
    let key = Bytes::copy_from_slice(key.as_bytes());
    (*database, key, value.map_or(Change::Delete, Change::Put))
}

/// A node without consensus.
pub(crate) struct World {
    pub(crate) disk: MemoryDisk,
    pub(crate) store: MemoryStore,
    pub(crate) engine: Arc<dyn StorageEngine>,
    pub(crate) log: Log,
    last: u64,
}

impl World {
    pub(crate) async fn new() -> Self {
        let (disk, store) = (MemoryDisk::new(), MemoryStore::new());
        Self {
            engine: store.open(Path::new("/engine")).expect("an engine"),
            log: open_log(&disk).await,
            disk,
            store,
            last: 0,
        }
    }

    /// Reopens the engine after a crash that loses everything unsynced.
    pub(crate) fn crash(&mut self) {
        self.store.crash(0);
        self.engine = self.store.open(Path::new("/engine")).expect("an engine");
    }

    pub(crate) async fn audit(
        &self,
        is_suspect: bool,
        audit: &Arc<Audit>,
    ) -> Result<Auditor, AuditError> {
        let opening = Opening {
            disk: Arc::new(self.disk.clone()),
            path: PathBuf::from("/data/digest"),
            log: self.log.clone(),
            engine: Arc::clone(&self.engine),
            is_suspect,
            count_max: Duration::from_mins(1),
            interval: None,
        };
        Auditor::open(opening, Arc::clone(audit)).await
    }

    /// Appends a batch numbered `vlsn` to the log only, not to the engine.
    pub(crate) async fn append(&mut self, vlsn: u64, changes: &[(DatabaseId, &str, Option<&str>)]) {
        self.last += 1;
        let mut batch = BatchBuilder::new(Vlsn(vlsn));
        let operation = |(database, key, value): &(DatabaseId, &str, Option<&str>)| Operation {
            database: *database,
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
            expires: false,
        };
        let mut operations: Vec<_> = changes.iter().map(operation).collect();
        if vlsn == 1 {
            operations.push(Operation {
                database: CATALOG,
                key: "name".into(),
                value: Some(catalog::encode_id(DB)),
                expires: false,
            });
        }
        batch.push(&operations);
        let entry = Entry {
            term: TERM,
            position: LogPosition(self.last),
            kind: EntryKind::Transactions,
            payload: batch.finish(0).bytes().clone(),
        };
        let (done, synced) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(done.send(result)));
        self.log.append(vec![entry], done).await.expect("queued");
        synced.await.expect("answered").expect("synced");
    }

    /// Appends a batch to the log, and applies it to the engine as the flush does.
    pub(crate) async fn write(
        &mut self,
        auditor: &mut Auditor,
        vlsn: u64,
        changes: &[(DatabaseId, &str, Option<&str>)],
    ) {
        self.append(vlsn, changes).await;
        let mut changes: Vec<_> = changes.iter().map(change).collect();
        if vlsn == 1 {
            let named = (CATALOG, "name".into(), Change::Put(catalog::encode_id(DB)));
            changes.insert(0, named);
        }
        let applied = self.applied(vlsn);
        let prepared = auditor.prepare(&changes).expect("an engine in memory");
        let point = Point {
            position: applied.position,
            vlsn: applied.vlsn,
            total: prepared.total,
        };
        changes.extend(prepared.rows(&applied));
        auditor.note(point).expect("a disk in memory");
        self.engine
            .apply(&EngineBatch { applied, changes })
            .expect("applied");
        auditor.made(prepared, point);
    }

    fn applied(&self, vlsn: u64) -> Applied {
        Applied {
            term: TERM,
            position: LogPosition(self.last),
            vlsn: Vlsn(vlsn),
            membership: Bytes::new(),
        }
    }

    /// Changes the engine behind its back.
    pub(crate) fn falsify(&self, key: &str, value: Option<&str>) {
        self.falsify_in(
            DB,
            key,
            value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        );
    }

    pub(crate) fn falsify_in(&self, database: DatabaseId, key: &str, value: Option<Bytes>) {
        let applied = self.engine.applied().expect("an engine").expect("written");
        let change = value.map_or(Change::Delete, Change::Put);
        let changes = vec![(database, Bytes::copy_from_slice(key.as_bytes()), change)];
        self.engine
            .apply(&EngineBatch { applied, changes })
            .expect("applied");
    }

    pub(crate) fn get(&self, key: &str) -> Option<Bytes> {
        self.engine.get(DB, key.as_bytes()).expect("an engine")
    }

    pub(crate) async fn purge(&self, upto: u64) {
        let id = LogId {
            term: TERM,
            position: LogPosition(upto),
        };
        self.log.purge(id).await.expect("purged");
    }
}
