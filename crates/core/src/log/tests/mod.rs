//! Shared by the log's tests: small sizes, a log on a [`MemoryDisk`], a model of its content.

mod crash;
mod disk;
mod format;
mod promises;
mod real;
mod refusals;
mod scarce;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::ids::{GroupUuid, Incarnation, LogPosition, NodeId, Term};

use super::{
    Entry, EntryKind, Log, LogConfig, LogError, LogId, LogIdentity, LogState, MemoryDisk, Vote,
};

const IDENTITY: LogIdentity = LogIdentity {
    group: GroupUuid(uuid::Uuid::from_u128(7)),
    node: NodeId(1),
    incarnation: Incarnation(1),
};

/// One block for the header, one for records.
const TINY: LogConfig = LogConfig {
    segment_bytes: 8192,
    group_bytes_max: 2000,
    queue_bytes_max: 1 << 16,
    cache_bytes_max: 800,
};

/// An in-memory log, with its writer as a task.
struct Node {
    log: Log,
    writer: JoinHandle<()>,
}

impl Node {
    async fn open(disk: &MemoryDisk, config: LogConfig) -> Result<Self, LogError> {
        Self::open_as(disk, config, IDENTITY).await
    }

    async fn open_as(
        disk: &MemoryDisk,
        config: LogConfig,
        identity: LogIdentity,
    ) -> Result<Self, LogError> {
        let (log, writer) = Log::open(Arc::new(disk.clone()), dir(), identity, config).await?;
        Ok(Self {
            log,
            writer: tokio::spawn(writer.run()),
        })
    }

    async fn close(self) {
        self.log.close().await.unwrap();
        self.writer.await.unwrap();
    }

    /// Ends the log as a killed process does.
    async fn kill(self) {
        self.writer.abort();
        assert!(self.writer.await.is_err_and(|error| error.is_cancelled()));
    }
}

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn segment_path(sequence: u32) -> PathBuf {
    dir().join(super::segment::segment_name(sequence))
}

fn entry(term: u64, position: u64, payload: &[u8]) -> Entry {
    Entry {
        term: Term(term),
        position: LogPosition(position),
        kind: EntryKind::Transactions,
        payload: Bytes::copy_from_slice(payload),
    }
}

fn id(term: u64, position: u64) -> LogId {
    LogId {
        term: Term(term),
        position: LogPosition(position),
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        term: Term(term),
        node: NodeId(term % 3),
        committed: term.is_multiple_of(2),
    }
}

/// Queues entries; the returned future ends when they are durable.
async fn queue(
    log: &Log,
    entries: Vec<Entry>,
) -> Result<Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>, LogError> {
    let (done, durable) = oneshot::channel();
    log.append(
        entries,
        Box::new(move |result| done.send(result).unwrap_or(())),
    )
    .await?;
    Ok(Box::pin(async {
        durable.await.map_err(std::io::Error::other)?
    }))
}

/// Appends, and waits until it is durable.
async fn append(log: &Log, entries: Vec<Entry>) -> std::io::Result<()> {
    queue(log, entries)
        .await
        .map_err(std::io::Error::other)?
        .await
}

/// Everything in the log, read in small pieces.
async fn read_all(log: &Log) -> Result<Vec<Entry>, LogError> {
    let LogState { purged, last, .. } = log.state();
    let mut from = purged.map_or(0, |purged| purged.position.0 + 1);
    let mut entries: Vec<Entry> = Vec::new();
    while last.is_some_and(|last| from <= last.position.0) {
        let more = log
            .read(LogPosition(from)..LogPosition(u64::MAX), 700)
            .await?;
        from = more.last().expect("a read makes progress").position.0 + 1;
        entries.extend(more);
    }
    Ok(entries)
}

/// Lets other tasks run until the condition holds.
async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the condition never held");
}
