//! The replicated log on disk: entries, votes and purges of one node, in the order they were made.
//!
//! ```text
//!  append, save_vote,           one group           0000000007.log   64 MiB, preallocated
//!  truncate_after, purge        at a time          ┌────────┬─────┬─────┬──────┬───────────┐
//!        │        ┌─────────┐   ┌───────────┐      │ header │entry│entry│ vote │  zeros    │
//!        └───────►│  queue  │──►│ LogWriter │─────►└────────┴─────┴─────┴──────┴───────────┘
//!        │        └─────────┘   └─────┬─────┘        one write, one fdatasync per group
//!        ▼                            │ synced: callbacks, `persisted`
//!  ┌───────────┐  read                ▼
//!  │   cache   │◄────── [`Log`] ── index: position -> place in a segment
//!  └───────────┘
//! ```
//!
//! A [`Log`] is a handle for many tasks; the single [`LogWriter`] owns the files. Appended entries
//! can be read at once, and are durable when their callback runs. While the disk syncs one group,
//! the next gathers in the queue: no timer decides when to write.
//!
//! `docs/format.md` describes the bytes and how recovery treats them. The key rule: a tail that was
//! being written when the power failed is cut; synced bytes that are not what was written are
//! [`LogError::Corrupt`], and are never cut.
//!
//! The log knows nothing of consensus: it does not decide what may be truncated.
//!
//! | file | what |
//! | --- | --- |
//! | `disk.rs` | the interface to the machine's files; `disk/memory.rs` for tests |
//! | `format.rs` | bytes of segment headers and records |
//! | `segment.rs` | files: names, preallocation, reuse |
//! | `appender.rs` | records into segments, group by group |
//! | `writer.rs` | the loop that drains the queue |
//! | `state.rs` | in-memory state that all handles share: queue, cache, index |
//! | `reader.rs` | entries from segments |
//! | `recovery.rs` | opening: replay, torn tail or corruption |

mod appender;
mod cache;
mod disk;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod index;
mod lag;
mod reader;
mod recovery;
mod scarce;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::ids::{GroupUuid, Incarnation, LogPosition, NodeId, Term};
use crate::planted::{self, Bug};
use crate::recent::Recent;

pub(crate) use disk::OverlayDisk;
pub(crate) use disk::owner;
pub use disk::{
    Disk, DiskFile, DiskFuture, DiskLock, DiskSpace, FileMark, MemoryDisk, OpenMode, RealDisk,
};
pub(crate) use lag::Lag;
pub use writer::LogWriter;

use scarce::Patience;
use state::{Done, Request, Shared};

/// A disk that takes longer than this for one group of records is broken: slow ones take tenths of
/// a second.
const DISK_HANGS: Duration = Duration::from_secs(3);

/// A handle to the log. Clones are cheap and share the log; dropping the last one closes it.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    _open: Arc<CloseOnDrop>,
    syncs: Arc<Recent>,
}

impl Log {
    /// Opens the log in `dir`, or creates it there, and takes its lock. Everything it then holds is
    /// durable.
    ///
    /// Poll this where blocking disk calls may run. The log makes progress while [`LogWriter::run`]
    /// is polled.
    ///
    /// # Errors
    /// - [`LogError::Locked`]: the log is open already.
    /// - [`LogError::Corrupt`], [`LogError::VoteMissing`]: this node must not vote.
    /// - [`LogError::NewerVersion`], [`LogError::Foreign`]: not a log for this program or node.
    /// - [`LogError::Io`]: the disk reported an error.
    ///
    /// # Panics
    /// When `config` is outside its stated bounds.
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        identity: LogIdentity,
        config: LogConfig,
    ) -> Result<(Self, LogWriter), LogError> {
        config.check();
        let recovered = recovery::recover(disk, dir, identity, config).await?;
        let shared = Arc::new(Shared::new(config, &recovered));
        let open = Arc::new(CloseOnDrop(Arc::clone(&shared)));
        let syncs = Arc::<Recent>::default();
        let (appender, lock) = (recovered.appender, recovered.lock);
        let writer = LogWriter::new(Arc::clone(&shared), appender, lock, Arc::clone(&syncs));
        Ok((
            Self {
                shared,
                _open: open,
                syncs,
            },
            writer,
        ))
    }

    /// The 99th percentile of recent sync times.
    pub(crate) fn sync_p99(&self) -> Option<Duration> {
        self.syncs.within(99)
    }

    /// How far a copy of this log up to `has` is behind.
    pub(crate) fn lag(&self, has: Option<LogPosition>) -> Lag {
        self.shared.lag(has)
    }

    /// How long the disk has been stuck on its current group, once that is no longer mere slowness.
    pub(crate) fn hangs_for(&self) -> Option<Duration> {
        let writing = self.shared.writing_for();
        (writing >= DISK_HANGS).then_some(writing)
    }

    /// Reads and verifies every synced record of this log's files in `dir`. Returns how many bytes
    /// are valid. Blocks where the disk blocks.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with the file and the offset; [`LogError::Io`].
    pub(crate) fn check(
        &self,
        disk: &Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
    ) -> Result<u64, LogError> {
        let check = || {
            let (disk, dir, config) = (Arc::clone(disk), dir.to_owned(), *self.shared.config());
            recovery::check(disk, dir, identity, config, self.shared.synced())
        };
        // Retried once, because files may have been retired meanwhile.
        check().or_else(|_| check())
    }

    /// Queues entries; they can be read from now on, and `done` runs once they are durable.
    ///
    /// Waits while the queue is over [`LogConfig::queue_bytes_max`]. Callbacks run on the writer's
    /// thread, in call order, and must be short. If this returns an error, or is dropped before it
    /// returns, nothing was queued and `done` is never called.
    ///
    /// # Errors
    /// [`LogError::EntryTooLarge`]; [`LogError::Failed`] and [`LogError::Closed`].
    ///
    /// # Panics
    /// When the entries do not directly follow each other and the last one of the log. An empty log
    /// may start at any position.
    pub async fn append(
        &self,
        entries: Vec<Entry>,
        done: Box<dyn FnOnce(io::Result<()>) + Send + Sync>,
    ) -> Result<(), LogError> {
        let bytes = self.shared.weigh(&entries)?;
        let room = self.shared.room(bytes).await?;
        self.shared.append(entries, room, Done::Callback(done))
    }

    /// Saves the vote; it is durable on return, and so is everything queued before it.
    ///
    /// # Errors
    /// [`LogError::Failed`] and [`LogError::Closed`].
    pub async fn save_vote(&self, vote: Vote) -> Result<(), LogError> {
        if planted::is(Bug::VoteNotSaved) {
            return Ok(());
        }
        self.request(Request::Vote(vote)).await
    }

    /// Records the newest committed entry. Costs no sync of its own: it goes to disk with the next
    /// group, and a crash before that loses it.
    ///
    /// # Errors
    /// [`LogError::Failed`] and [`LogError::Closed`].
    pub fn save_committed(&self, id: LogId) -> Result<(), LogError> {
        self.shared.save_committed(id)
    }

    /// Drops every entry after this one (`None`: every entry); durable on return. A crash before
    /// that leaves the log either unchanged or truncated. Purged entries stay purged.
    ///
    /// # Errors
    /// [`LogError::Failed`] and [`LogError::Closed`].
    pub async fn truncate_after(&self, last: Option<LogId>) -> Result<(), LogError> {
        self.request(Request::Truncation(last)).await
    }

    /// Drops every entry up to and including this one; durable on return. If it is past the end,
    /// the log is empty and continues after `upto`. Files that hold nothing else are reused or
    /// removed.
    ///
    /// # Errors
    /// [`LogError::Failed`] and [`LogError::Closed`].
    pub async fn purge(&self, upto: LogId) -> Result<(), LogError> {
        self.request(Request::Purge(upto)).await
    }

    /// The points up to which a purge frees whole files, in ascending order.
    pub fn purge_points(&self) -> Vec<PurgePoint> {
        let mut bytes_after = 0;
        let mut points = Vec::new();
        // The last one is being written; its size does not count.
        let segments = self.shared.segments();
        let mut later = segments.iter().rev().map(|(after, bytes)| (*after, *bytes));
        let last = later.next().map(|(after, _)| (after, 0));
        for (after, bytes) in last.into_iter().chain(later) {
            bytes_after += bytes;
            points.extend(after.map(|upto| PurgePoint { upto, bytes_after }));
        }
        points.reverse();
        points
    }

    /// The entries of this range that the log has, durable or not, as many as fit into `bytes_max`
    /// bytes (payloads in memory, whole records on disk), but at least one if the range has any.
    ///
    /// Entries that are not in memory are read from their segment, which blocks, and are verified
    /// each time.
    ///
    /// # Errors
    /// - [`LogError::Purged`]: the range starts before the first entry kept.
    /// - [`LogError::Corrupt`], [`LogError::Io`]: the disk did not give back what was written.
    pub async fn read(
        &self,
        range: Range<LogPosition>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let mut patience = Patience::default();
        loop {
            match reader::read(&self.shared, range.clone(), bytes_max) {
                Err(LogError::Io { source, .. }) if patience.allows(&source).await => {}
                read => return read,
            }
        }
    }

    /// What the log holds now.
    pub fn state(&self) -> LogState {
        self.shared.state()
    }

    /// Watches the last entry handed to the operating system, which survives the end of the
    /// process. It moves back when a truncation is written.
    pub fn written(&self) -> watch::Receiver<Option<LogId>> {
        self.shared.written.subscribe()
    }

    /// Watches the last durable entry. It moves back when a truncation becomes durable.
    pub fn persisted(&self) -> watch::Receiver<Option<LogId>> {
        self.shared.persisted.subscribe()
    }

    /// Writes and syncs what is queued, then stops the writer and releases the lock. Entries can
    /// still be read through remaining handles.
    ///
    /// # Errors
    /// [`LogError::Failed`] when that stopped the writer instead.
    pub async fn close(&self) -> Result<(), LogError> {
        self.shared.close();
        self.shared.stopped().await
    }

    async fn request(&self, request: Request) -> Result<(), LogError> {
        let (reply, answer) = oneshot::channel();
        self.shared.enqueue(request, Done::Reply(reply))?;
        // A dropped writer does not answer, but leaves the reason in the shared state.
        answer.await.unwrap_or_else(|_| Err(self.shared.failure()))
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Whether a file of this name in a log's directory is a segment.
pub(crate) fn is_segment(name: &str) -> bool {
    segment::sequence_of(name).is_some()
}

/// Closes the log when its last handle is dropped.
struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What an entry carries; the log only tells the kinds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Nothing: the first entry of a new master.
    Blank,
    /// One batch of transactions.
    Transactions,
    /// The members of the group from here on.
    Membership,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term of the master that made it.
    pub term: Term,
    /// Its place: one after the previous entry.
    pub position: LogPosition,
    /// What the payload is.
    pub kind: EntryKind,
    /// Bytes the log does not interpret. Cached without a copy, so a small slice of a large buffer
    /// keeps the whole buffer alive.
    pub payload: Bytes,
}

impl Entry {
    /// The id of this entry.
    pub fn id(&self) -> LogId {
        LogId {
            term: self.term,
            position: self.position,
        }
    }
}

/// The vote of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The term voted in.
    pub term: Term,
    /// The node voted for.
    pub node: NodeId,
    /// Whether a majority is known to have given it.
    pub committed: bool,
}

/// Identifies an entry: the same id is the same entry on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogId {
    /// The term of the master that made it.
    pub term: Term,
    /// Its place in the log.
    pub position: LogPosition,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.position, self.term)
    }
}

/// The owner of a log. Written into every segment and checked when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The group.
    pub group: GroupUuid,
    /// The member of the group.
    pub node: NodeId,
    /// The life of the member's data directory.
    pub incarnation: Incarnation,
}

/// Where a segment begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurgePoint {
    /// The last entry before it.
    pub upto: LogPosition,
    /// Bytes of the files left after a purge up to here, without the one being written.
    pub bytes_after: u64,
}

/// What a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that was purged.
    pub purged: Option<LogId>,
    /// The last entry, durable or not; `purged`, when there is none after it.
    pub last: Option<LogId>,
    /// The durable vote.
    pub vote: Option<Vote>,
    /// The newest entry noted as committed.
    pub committed: Option<LogId>,
    /// The last durable entry.
    pub persisted: Option<LogId>,
}

/// Sizes. The defaults are for production; tests shrink them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Length of new segments; an entry must fit into one. A multiple of 4,096, at least 8,192.
    pub segment_bytes: u32,
    /// The writer stops adding requests to a group at this size, so that one sync stays short.
    pub group_bytes_max: usize,
    /// Bytes that may be appended but not yet synced; beyond that, appenders wait. At least 1. A
    /// larger append is admitted alone.
    pub queue_bytes_max: u32,
    /// Bytes of synced entries kept in memory for replicas that are close behind. Unsynced entries
    /// come on top.
    pub cache_bytes_max: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            group_bytes_max: 8 << 20,
            queue_bytes_max: 64 << 20,
            cache_bytes_max: 64 << 20,
        }
    }
}

impl LogConfig {
    fn check(&self) {
        let block = format::RECORDS_START;
        assert!(
            self.segment_bytes >= 2 * block,
            "a segment has room for records"
        );
        assert!(
            self.segment_bytes.is_multiple_of(block),
            "a segment is whole blocks"
        );
        assert!(
            self.queue_bytes_max >= 1,
            "the queue has room for something"
        );
    }

    /// Bytes of the largest payload that fits into a segment.
    pub fn entry_bytes_max(&self) -> usize {
        (self.segment_bytes - format::RECORDS_START) as usize - format::RECORD_HEADER_BYTES
    }
}

/// Why the log cannot do what was asked. Clones share their source.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Another process, or another handle in this one, has the log open: close that one first.
    #[error("the log in {} is already open elsewhere", dir.display())]
    Locked {
        /// Its directory.
        dir: PathBuf,
    },
    /// The disk failed while the log was opened or read; no entry was lost. Fix the cause, then try
    /// again.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the disk said.
        r#source: Arc<io::Error>,
    },
    /// Synced bytes are not what was written. The node must not vote, and needs a restore from a
    /// peer. Nothing was cut.
    #[error("{} is corrupt at byte {offset}: {damage}", file.display())]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// The first byte that cannot be trusted.
        offset: u64,
        /// What is wrong there.
        damage: Damage,
    },
    /// The log has entries of a higher term than this node's vote, so a vote was lost or rolled
    /// back. The node must not vote, and needs a restore from a peer.
    #[error("the log ends with entry {last}, but the newest vote on disk is {vote:?}")]
    VoteMissing {
        /// The last entry.
        last: LogId,
        /// The newest vote that was found.
        vote: Option<Vote>,
    },
    /// Written by a newer version of this library: start that version, or a newer one.
    #[error(
        "{} has format version {version}, but this program reads versions up to {}",
        file.display(),
        format::VERSION
    )]
    NewerVersion {
        /// The segment.
        file: PathBuf,
        /// Its version.
        version: u16,
    },
    /// The segment belongs to another group, node or incarnation: it was copied here by mistake.
    #[error("{} belongs to {found:?}, but this node is {expected:?}", file.display())]
    Foreign {
        /// The segment.
        file: PathBuf,
        /// Whose it is.
        found: Box<LogIdentity>,
        /// Whose it should be.
        expected: Box<LogIdentity>,
    },
    /// A write or a sync failed. What is durable is unknown: take no further part until the log has
    /// been reopened, which reads back what the disk has.
    #[error("writing {} failed: {source}", path.display())]
    Failed {
        /// The file or directory.
        path: PathBuf,
        /// What the disk said.
        r#source: Arc<io::Error>,
    },
    /// The range starts before the first entry kept: restore, or read from `first` on.
    #[error("entries before {first} were purged")]
    Purged {
        /// The first position that can be read.
        first: LogPosition,
    },
    /// The entry does not fit into a segment: make smaller batches.
    #[error("an entry of {bytes} bytes exceeds the {bytes_max} that fit into a segment")]
    EntryTooLarge {
        /// Bytes of its payload.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The log was closed, or its writer was dropped: open it again.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// Whether data is damaged, rather than unreachable.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::VoteMissing { .. })
    }
}

/// How synced bytes are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file ends before its stated length.
    #[error("the file is too short")]
    Short,
    /// The segment's header is invalid.
    #[error("the segment header is not valid")]
    Header,
    /// A record is not the one written there.
    #[error("a record is not valid")]
    Record,
    /// The segment does not continue the one before it.
    #[error("it does not continue the segment before it")]
    Sequence,
    /// The records are intact but contradict each other.
    #[error("records contradict each other")]
    Order,
}
