//! Answers a node that copies this one's state.
//!
//! Each chunk reads the newest state, on a thread of its own; between two chunks nothing is held
//! but a hold on the log. No commit waits for this; its cost is the reading, which [`Pace`] limits.

use std::ops::Bound;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steadfast_net::lock;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::consensus::without_data;
use crate::engine::{Direction, KeyRange, RowDigest};
use crate::feed::messages::RowMessage;
use crate::group::LogIdRecord;
use crate::ids::{DatabaseId, LogPosition, Vlsn};
use crate::log::{LogError, LogId};
use crate::node::Node;
use crate::state_copy::service::{
    BeginMessage, BegunMessage, ChunkMessage, EntriesMessage, FinishMessage, ManifestMessage,
    NextMessage, PlaceMessage, RestoreAnswer, RestoreCall, RowsMessage, StateMessage,
};
use crate::txn::catalog::{self, CATALOG};
use crate::txn::holds::Hold;
use crate::txn::view::{View, ViewError};

/// Copies that one node serves at a time: more would only share its disk.
const COPIES_MAX: usize = 4;
/// Rows in one chunk.
const CHUNK_ROWS: usize = 1000;
/// Bytes of keys and values in one chunk, unless one row is larger.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Payload bytes of the entries in one answer, unless one entry is larger.
const ENTRIES_BYTES: usize = 1024 * 1024;
/// How long an answer may be delayed. A caller that has to wait longer asks again.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long the log is kept for a caller that has disconnected: it reconnects, or gets the
/// following entries from the master.
const HOLD_AFTER: Duration = Duration::from_secs(30);

/// Shared by all copies that a node serves.
pub(crate) struct Copies {
    places: Arc<Semaphore>,
    pace: Pace,
}

impl Copies {
    pub(crate) fn new(bytes_per_s_max: u64) -> Self {
        Self {
            places: Arc::new(Semaphore::new(COPIES_MAX)),
            pace: Pace::new(bytes_per_s_max),
        }
    }

    /// The number of copies under way.
    pub(crate) fn count(&self) -> usize {
        COPIES_MAX - self.places.available_permits()
    }
}

/// Spreads bytes over time.
struct Pace {
    bytes_per_s_max: u64,
    /// When the rate limit allows the next bytes.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    fn new(bytes_per_s_max: u64) -> Self {
        Self {
            bytes_per_s_max,
            free_at: Mutex::new(None),
        }
    }

    /// Waits until the next bytes may be sent, for at most [`WAIT_MAX`]; returns whether they may.
    async fn pass(&self) -> bool {
        let free_at = *lock(&self.free_at);
        let Some(free_at) = free_at else { return true };
        let patience = Instant::now() + WAIT_MAX;
        tokio::time::sleep_until(free_at.min(patience)).await;
        free_at <= patience
    }

    fn sent(&self, bytes: usize) {
        let takes = Duration::from_nanos(
            (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_s_max,
        );
        let mut free_at = lock(&self.free_at);
        let from = free_at.unwrap_or_else(Instant::now).max(Instant::now());
        *free_at = Some(from + takes);
    }
}

/// One connection that copies the state of `node`.
pub(crate) struct Source {
    node: Arc<Node>,
    copies: Arc<Copies>,
    /// Whether the caller gets the data; `None` while this node does not know.
    to_data_node: Option<bool>,
    place: Option<OwnedSemaphorePermit>,
    hold: Option<Hold>,
    sent: RowDigest,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("{0}")]
    Refused(&'static str),
    #[error("the log reaches back only to {0}")]
    Gone(LogPosition),
    #[error(transparent)]
    View(#[from] ViewError),
    #[error(transparent)]
    Log(LogError),
    #[error("the reading thread has ended")]
    Thread,
}

impl From<LogError> for SourceError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Purged { first } => Self::Gone(first),
            error => Self::Log(error),
        }
    }
}

impl Source {
    pub(crate) fn new(node: Arc<Node>, copies: Arc<Copies>, to_data_node: Option<bool>) -> Self {
        Self {
            node,
            copies,
            to_data_node,
            place: None,
            hold: None,
            sent: RowDigest::default(),
        }
    }

    pub(crate) async fn answer(&mut self, call: RestoreCall) -> RestoreAnswer {
        if !self.copies.pace.pass().await {
            return RestoreAnswer::Wait(true);
        }
        let answered = match call {
            RestoreCall::Begin(begin) => self.begin(begin),
            RestoreCall::Chunk(place) => self.chunk(place).await,
            RestoreCall::Entries(NextMessage { next }) => self.entries(next).await,
            RestoreCall::Finish(FinishMessage { vlsn }) => self.finish(Vlsn(vlsn)).await,
        };
        answered.unwrap_or_else(|error| RestoreAnswer::Refused(error.to_string()))
    }

    fn begin(&mut self, begin: BeginMessage) -> Result<RestoreAnswer, SourceError> {
        let refused = Err(SourceError::Refused(
            "this node has not caught up far enough itself",
        ));
        // The caller may have been admitted by an entry that has not arrived here yet.
        let Some(to_data_node) = self.to_data_node else {
            return refused;
        };
        let entry = begin.entry.map(LogId::try_from).transpose();
        let entry = entry.map_err(|_| SourceError::Refused("no such entry"))?;
        let position = entry.map(|entry| entry.position);
        // In this order: what is visible is applied eventually.
        let visible = self.node.sequencer.visible();
        let applied = *self.node.consensus.applied().borrow();
        if applied.map(|id| id.position) < position {
            return refused;
        }
        if visible.0 < begin.vlsn {
            return Ok(RestoreAnswer::Behind(true));
        }
        let Some(durable) = self.node.engine.durable() else {
            return refused;
        };
        if !to_data_node && Some(durable.position) < position {
            return refused;
        }
        if self.place.is_none() {
            let place = Arc::clone(&self.copies.places).try_acquire_owned();
            let busy = SourceError::Refused("this node already serves as many copies as it may");
            self.place = Some(place.map_err(|_| busy)?);
        }
        let next = begin.next.map_or(durable.position.0 + 1, |next| next);
        self.hold = Some(self.node.holds.hold(LogPosition(next.saturating_sub(1))));
        // Read once the hold prevents a purge.
        let purged = self.node.log.state().purged;
        let reaches = |next: u64| purged.is_none_or(|purged| purged.position.0 < next);
        let goes_on = begin.next.is_some_and(reaches);
        if begin.next.is_some() && !goes_on {
            self.hold = Some(self.node.holds.hold(durable.position));
        }
        let id = LogId {
            term: durable.term,
            position: durable.position,
        };
        Ok(RestoreAnswer::Begun(BegunMessage {
            has_data: to_data_node,
            goes_on,
            entry: Some(LogIdRecord::from(id)),
            vlsn: durable.vlsn.0,
            membership: durable.membership,
            bytes_total: self.node.engine.stats().bytes_on_disk,
        }))
    }

    async fn chunk(&mut self, place: PlaceMessage) -> Result<RestoreAnswer, SourceError> {
        if self.to_data_node != Some(true) {
            return Err(SourceError::Refused("an arbiter gets no data"));
        }
        if self.place.is_none() {
            return Err(SourceError::Refused("no copy was begun"));
        }
        let node = Arc::clone(&self.node);
        let reading = self
            .node
            .machine
            .run_in_background(
                "steadfast-copy",
                async move { read_chunk(&node.view(), place) },
            );
        let reading = reading.map_err(|_| SourceError::Thread)?.await;
        let (chunk, digest, bytes) = reading.map_err(|_| SourceError::Thread)??;
        self.copies.pace.sent(bytes);
        self.sent.add_all(digest);
        Ok(RestoreAnswer::Chunk(chunk))
    }

    async fn entries(&mut self, next: u64) -> Result<RestoreAnswer, SourceError> {
        let applied = *self.node.consensus.applied().borrow();
        let end = applied.map_or(0, |applied| applied.position.0 + 1);
        let range = LogPosition(next)..LogPosition(end);
        let entries = if next < end {
            self.node.log.read(range, ENTRIES_BYTES).await?
        } else {
            Vec::new()
        };
        if let Some(hold) = &self.hold {
            hold.advance(LogPosition(next.saturating_sub(1)));
        }
        let bytes = entries.iter().map(|entry| entry.payload.len()).sum();
        self.copies.pace.sent(bytes);
        let read = next + entries.len() as u64;
        let entries = entries.into_iter().map(|entry| {
            let entry = if self.to_data_node == Some(true) {
                entry
            } else {
                without_data(entry)
            };
            entry.into()
        });
        Ok(RestoreAnswer::Entries(EntriesMessage {
            entries: entries.collect(),
            is_all: read >= end,
        }))
    }

    /// The rows were read from an engine that may have lost some; the expected digest was not.
    async fn finish(&self, vlsn: Vlsn) -> Result<RestoreAnswer, SourceError> {
        let mut manifest = ManifestMessage {
            sent: Some(RowsMessage::of(self.sent)),
            state: None,
        };
        if self.to_data_node == Some(true) {
            let node = &self.node;
            let Some((vlsn, digest)) = node.digest_from(vlsn, Instant::now() + WAIT_MAX).await
            else {
                let findings = node.audit.findings();
                let findings = findings.borrow();
                return if findings.is_over || findings.differs.is_some() {
                    Err(SourceError::Refused("this node no longer takes part"))
                } else {
                    Ok(RestoreAnswer::Wait(true))
                };
            };
            // If the two contradict each other, this node has to find out as well.
            node.audit.want_count(false);
            manifest.state = Some(StateMessage {
                vlsn: vlsn.0,
                rows: Some(RowsMessage::of(digest.total())),
            });
        }
        Ok(RestoreAnswer::Manifest(manifest))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.node.consensus.spawn(async move {
                tokio::time::sleep(HOLD_AFTER).await;
                drop(hold);
            });
        }
    }
}

/// The rows after a place as of one transaction, their digest, and their size in bytes.
fn read_chunk(
    view: &View,
    place: PlaceMessage,
) -> Result<(ChunkMessage, RowDigest, usize), SourceError> {
    let database = DatabaseId(place.database);
    let mut range = KeyRange {
        start: place.after.map_or(Bound::Unbounded, Bound::Excluded),
        end: Bound::Unbounded,
    };
    let (mut rows, mut digest, mut bytes) = (Vec::new(), RowDigest::default(), 0);
    let rest = loop {
        let chunk = view.chunk(database, &range, Direction::Forward)?;
        for (key, value) in chunk.rows {
            bytes += key.len() + value.len();
            digest.add(database, &key, &value);
            rows.push(RowMessage { key, value });
        }
        match chunk.rest {
            Some(rest) if rows.len() < CHUNK_ROWS && bytes < CHUNK_BYTES => range = rest,
            Some(rest) => break Some(place_before(database, rest)),
            None => break next_database(view, database)?.map(begin_of),
        }
    };
    let chunk = ChunkMessage {
        rows,
        vlsn: view.at().0,
        digest: digest.to_bytes(),
        rest,
    };
    Ok((chunk, digest, bytes))
}

fn place_before(database: DatabaseId, rest: KeyRange) -> PlaceMessage {
    let after = match rest.start {
        Bound::Excluded(last) | Bound::Included(last) => Some(last),
        Bound::Unbounded => None,
    };
    PlaceMessage {
        database: database.0,
        after,
    }
}

fn begin_of(database: DatabaseId) -> PlaceMessage {
    PlaceMessage {
        database: database.0,
        after: None,
    }
}

/// The next database with a name, by id.
fn next_database(view: &View, after: DatabaseId) -> Result<Option<DatabaseId>, SourceError> {
    let mut next: Option<DatabaseId> = None;
    let mut rest = Some(KeyRange::all());
    while let Some(range) = rest {
        let chunk = view.chunk(CATALOG, &range, Direction::Forward)?;
        let names = |(key, _): &&(Bytes, Bytes)| catalog::is_name(key);
        for (key, value) in chunk.rows.iter().filter(names) {
            let id = catalog::id_in_entry(key, value).map_err(ViewError::from)?;
            if id > after {
                next = Some(next.map_or(id, |next| next.min(id)));
            }
        }
        rest = chunk.rest;
    }
    Ok(next)
}
