//! State shared by the handles and the writer: the queue, the cache of entries, the index of
//! places.
//!
//! The cache is the log as requested: it always extends to the last appended entry, durable or not.
//! The index is the log as written: the writer adds to it, and applies a truncation to it once the
//! record is durable. Reads consult the cache first, so where the two differ the cache is right: it
//! holds everything not yet durable. Nothing is evicted before it is durable.
//!
//! One lock guards everything. It is held to move values, never across I/O or an await.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use steadfast_net::lock;

use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;

use crate::ids::LogPosition;

use super::appender::Segments;
use super::cache::Cache;
use super::format::{Head, Place};
use super::index::{Index, Slot, next};
use super::lag::{Appended, Lag};
use super::recovery::Recovered;
use super::segment::Segment;
use super::{Entry, LogConfig, LogError, LogId, LogState, Vote};

/// One log, as all its handles share it.
pub(super) struct Shared {
    state: Mutex<State>,
    config: LogConfig,
    /// Wakes the writer for a request or the end of the log.
    wake: Notify,
    /// Bytes that may still be queued. Closed when the writer stops.
    room: Semaphore,
    /// The last entry handed to the disk, synced or not.
    pub(super) written: watch::Sender<Option<LogId>>,
    pub(super) persisted: watch::Sender<Option<LogId>>,
    stopped: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(config: LogConfig, recovered: &Recovered) -> Self {
        let head = recovered.appender.head();
        let index = recovered.index.clone();
        Self {
            state: Mutex::new(State {
                start: index.first,
                cache: Cache::default(),
                index,
                segments: recovered.appender.segments().clone(),
                synced: recovered.appender.synced(),
                head,
                queue: VecDeque::new(),
                tickets: 0,
                writing_since: None,
                appended: Appended::new(head.last.map(|last| last.position)),
                ended: None,
                closing: false,
            }),
            config,
            wake: Notify::new(),
            room: Semaphore::new(config.queue_bytes_max as usize),
            written: watch::Sender::new(head.last),
            persisted: watch::Sender::new(head.last),
            stopped: watch::Sender::new(false),
        }
    }

    pub(super) fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Bytes that these entries take in the queue.
    pub(super) fn weigh(&self, entries: &[Entry]) -> Result<usize, LogError> {
        let bytes_max = self.config.entry_bytes_max();
        let mut sum = 0;
        for entry in entries {
            let bytes = entry.payload.len();
            if bytes > bytes_max {
                return Err(LogError::EntryTooLarge { bytes, bytes_max });
            }
            sum += size_of::<Entry>() + bytes;
        }
        Ok(sum)
    }

    /// Waits until the queue has room for this many bytes, or is empty, and takes it. First come,
    /// first served.
    pub(super) async fn room(&self, bytes: usize) -> Result<Room<'_>, LogError> {
        let bytes_max = self.config.queue_bytes_max;
        let bytes = u32::try_from(bytes).map_or(bytes_max, |bytes| bytes.min(bytes_max));
        let permit = self.room.acquire_many(bytes).await;
        permit.map(Room).map_err(|_| self.failure())
    }

    pub(super) fn append(
        &self,
        entries: Vec<Entry>,
        room: Room<'_>,
        done: Done,
    ) -> Result<(), LogError> {
        let mut state = self.open_state()?;
        state.append(&entries);
        let bytes = room.0.num_permits();
        room.0.forget();
        state.push(Request::Append(entries), done, bytes);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Queues anything but an append. Any effect on readers is immediate.
    pub(super) fn enqueue(&self, request: Request, done: Done) -> Result<(), LogError> {
        let mut state = self.open_state()?;
        let request = match request {
            Request::Truncation(last) => Request::Truncation(state.truncate(last)),
            Request::Purge(upto) => Request::Purge(state.purge(upto)),
            request => request,
        };
        state.push(request, done, 0);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn save_committed(&self, id: LogId) -> Result<(), LogError> {
        self.open_state()?.head.committed = Some(id);
        Ok(())
    }

    pub(super) fn state(&self) -> LogState {
        let state = self.lock();
        LogState {
            purged: state.head.purged,
            last: state.head.last,
            vote: state.head.vote,
            committed: state.head.committed,
            persisted: *self.persisted.borrow(),
        }
    }

    /// The segments, oldest first: after which entry each begins, and the length of its file.
    pub(super) fn segments(&self) -> Vec<(Option<LogPosition>, u64)> {
        let state = self.lock();
        let segments = state.segments.values();
        segments
            .map(|of| (of.starts_after, of.bytes.into()))
            .collect()
    }

    /// Where the entries of a range are, up to `bytes_max` bytes of them.
    pub(super) fn locate(
        &self,
        range: Range<LogPosition>,
        bytes_max: usize,
    ) -> Result<Located, LogError> {
        self.lock().locate(range, bytes_max)
    }

    /// Whether the entry is still at this slot.
    pub(super) fn is_at(&self, position: LogPosition, slot: Slot) -> bool {
        let state = self.lock();
        state.check_kept(position).is_ok() && state.index.find(position) == Some(slot)
    }

    /// Moves the next group into `group` (empty); false when the log is closed and all is written.
    pub(super) async fn next_group(&self, group: &mut Group) -> bool {
        loop {
            {
                let mut state = self.lock();
                state.writing_since = None;
                let mut bytes = 0;
                while bytes < self.config.group_bytes_max.max(1)
                    && let Some((queued, done)) = state.queue.pop_front()
                {
                    bytes += queued.request.bytes();
                    group.requests.push(queued);
                    group.waiters.push(done);
                }
                if !group.requests.is_empty() {
                    state.writing_since = Some(Instant::now());
                    return true;
                }
                if state.closing {
                    return false;
                }
            }
            self.wake.notified().await;
        }
    }

    pub(super) fn lag(&self, has: Option<LogPosition>) -> Lag {
        let state = self.lock();
        let last = state.head.last.map(|last| last.position);
        state.appended.lag(Instant::now(), has, last)
    }

    /// How long the writer has been writing its current group; zero while it waits for work.
    pub(super) fn writing_for(&self) -> Duration {
        let since = self.lock().writing_since;
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn queue_is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.lock().head.committed
    }

    /// Makes a durable group visible: places, vote, room in the queue, the last durable entry.
    pub(super) fn group_synced(&self, group: &[Queued], slots: &[Slot], durable: &Durable<'_>) {
        let mut state = self.lock();
        let mut slots = slots.iter().copied();
        let mut room = 0;
        for queued in group {
            room += queued.room;
            match &queued.request {
                Request::Append(entries) => {
                    for (entry, slot) in entries.iter().zip(&mut slots) {
                        state.index.push(entry.position, slot);
                    }
                }
                Request::Vote(vote) => state.head.vote = Some(*vote),
                Request::Truncation(last) => state.index.truncate(last.map(|id| id.position)),
                Request::Purge(upto) => state.index.purge(upto.position),
            }
        }
        if let Some(queued) = group.last() {
            state.cache.trim(queued.ticket, self.config.cache_bytes_max);
        }
        if state.segments.len() != durable.segments.len()
            || state
                .segments
                .last_key_value()
                .map(|(sequence, _)| sequence)
                != durable
                    .segments
                    .last_key_value()
                    .map(|(sequence, _)| sequence)
        {
            state.segments = durable.segments.clone();
        }
        state.synced = durable.synced;
        drop(state);
        self.room.add_permits(room);
        self.persisted.send_if_modified(|last| {
            let changed = *last != durable.last;
            *last = durable.last;
            changed
        });
    }

    /// Everything in the files below this is synced, and does not change while they exist.
    pub(super) fn synced(&self) -> Place {
        self.lock().synced
    }

    /// Forgets segments that the writer has retired.
    pub(super) fn segments_retired(&self, segments: &Segments) {
        self.lock().segments = segments.clone();
    }

    /// Ends the log: everything queued, this group included, gets the error.
    pub(super) fn stop(&self, error: &LogError, group: &mut Group) {
        let queue = {
            let mut state = self.lock();
            state.ended.get_or_insert_with(|| error.clone());
            std::mem::take(&mut state.queue)
        };
        self.room.close();
        let waiters = group
            .waiters
            .drain(..)
            .chain(queue.into_iter().map(|(_, done)| done));
        for done in waiters {
            done.call(Err(error.clone()));
        }
        self.stopped.send_replace(true);
    }

    /// Lets the writer stop once it has written everything; nothing more is accepted.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.room.close();
        self.wake.notify_one();
    }

    /// Waits for the writer to stop, and says whether that was by closing.
    pub(super) async fn stopped(&self) -> Result<(), LogError> {
        let mut stopped = self.stopped.subscribe();
        let waited = stopped.wait_for(|stopped| *stopped).await;
        waited.expect("the sender lives in self");
        match self.failure() {
            LogError::Closed => Ok(()),
            error => Err(error),
        }
    }

    /// Why the log no longer accepts anything.
    pub(super) fn failure(&self) -> LogError {
        self.lock().ended.clone().unwrap_or(LogError::Closed)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, LogError> {
        let state = self.lock();
        match &state.ended {
            Some(error) => Err(error.clone()),
            None if state.closing => Err(LogError::Closed),
            None => Ok(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock leaves the state as it was: each checks before it changes anything.
        lock(&self.state)
    }
}

/// Room in the queue, given back on drop unless an append takes it.
pub(super) struct Room<'a>(tokio::sync::SemaphorePermit<'a>);

/// What the appender knows after a sync.
pub(super) struct Durable<'a> {
    pub(super) last: Option<LogId>,
    pub(super) synced: Place,
    pub(super) segments: &'a Segments,
}

/// Something to write.
pub(super) enum Request {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncation(Option<LogId>),
    Purge(LogId),
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(entries) => entries.iter().map(|entry| entry.payload.len()).sum(),
            Self::Vote(_) | Self::Truncation(_) | Self::Purge(_) => 0,
        }
    }
}

/// A request in the queue.
pub(super) struct Queued {
    pub(super) request: Request,
    /// Number of the request: whatever carries a ticket up to a durable one is durable.
    ticket: u64,
    /// Room to give back.
    room: usize,
}

/// Requests that become durable together, and their waiters, in the same order. Kept apart, so
/// that a loop over the requests does not borrow their waiters.
#[derive(Default)]
pub(super) struct Group {
    pub(super) requests: Vec<Queued>,
    pub(super) waiters: Vec<Done>,
}

/// The waiter for a request.
pub(super) enum Done {
    Callback(Box<dyn FnOnce(io::Result<()>) + Send + Sync>),
    Reply(oneshot::Sender<Result<(), LogError>>),
}

impl Done {
    pub(super) fn call(self, result: Result<(), LogError>) {
        match self {
            Self::Callback(done) => done(result.map_err(io::Error::other)),
            Self::Reply(reply) => {
                // A caller that stopped waiting does not need the answer.
                reply.send(result).ok();
            }
        }
    }
}

/// Where the entries of a range are: first those on disk, then those in memory.
pub(super) struct Located {
    pub(super) on_disk: Vec<(LogPosition, Slot, Arc<Segment>)>,
    pub(super) cached: Vec<Entry>,
}

struct State {
    /// The first position in the log, or, if it is empty, the former one.
    start: LogPosition,
    cache: Cache,
    index: Index,
    segments: Segments,
    synced: Place,
    /// As requested, except for the vote, which is as synced.
    head: Head,
    queue: VecDeque<(Queued, Done)>,
    tickets: u64,
    /// When the writer began its current group.
    writing_since: Option<Instant>,
    appended: Appended,
    /// Why the writer stopped.
    ended: Option<LogError>,
    closing: bool,
}

impl State {
    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let expected = self
            .head
            .last
            .map_or(first.position, |last| next(last.position));
        for (entry, position) in entries.iter().zip(expected.0..) {
            assert_eq!(entry.position.0, position, "entries follow on each other");
        }
        if self.head.last.is_none() {
            self.start = first.position;
        }
        for entry in entries {
            self.cache.push(entry.clone(), self.tickets);
        }
        if let Some(last) = entries.last() {
            let bytes = entries.iter().map(|entry| entry.payload.len() as u64);
            self.appended
                .note(Instant::now(), last.position, bytes.sum());
        }
        self.head.last = entries.last().map(Entry::id);
    }

    /// Truncates, and returns the entry that the log then ends with.
    fn truncate(&mut self, last: Option<LogId>) -> Option<LogId> {
        let position = |id: Option<LogId>| id.map(|id| id.position);
        if position(last) < position(self.head.last) {
            let last = if position(last) < position(self.head.purged) {
                self.head.purged
            } else {
                last
            };
            self.head.last = last;
            self.cache.truncate(position(last));
            self.appended.truncate(position(last));
        }
        self.head.last
    }

    /// Purges, and returns the last purged entry.
    fn purge(&mut self, upto: LogId) -> LogId {
        if let Some(purged) = self.head.purged
            && upto.position <= purged.position
        {
            return purged;
        }
        self.head.purged = Some(upto);
        self.start = self.start.max(next(upto.position));
        self.cache.purge(upto.position);
        if self
            .head
            .last
            .is_none_or(|last| last.position <= upto.position)
        {
            self.head.last = Some(upto);
        }
        upto
    }

    fn push(&mut self, request: Request, done: Done, room: usize) {
        let queued = Queued {
            request,
            ticket: self.tickets,
            room,
        };
        self.queue.push_back((queued, done));
        self.tickets += 1;
    }

    fn check_kept(&self, position: LogPosition) -> Result<(), LogError> {
        match self.head.purged {
            Some(purged) if position <= purged.position => Err(LogError::Purged {
                first: next(purged.position),
            }),
            _ => Ok(()),
        }
    }

    fn locate(&self, range: Range<LogPosition>, bytes_max: usize) -> Result<Located, LogError> {
        self.check_kept(range.start)?;
        let end = self
            .head
            .last
            .map_or(0, |last| last.position.0 + 1)
            .min(range.end.0);
        let start = self.start.max(range.start).0;
        let cached_from = self.cache.first().map_or(end, |first| first.0.min(end));
        let mut located = Located {
            on_disk: Vec::new(),
            cached: Vec::new(),
        };
        let mut bytes = 0;
        for position in (start..cached_from).map(LogPosition) {
            let slot = self
                .index
                .find(position)
                .expect("what is not cached is written");
            bytes += slot.bytes as usize;
            if bytes > bytes_max && !located.on_disk.is_empty() {
                return Ok(located);
            }
            let segment = Arc::clone(&self.segments[&slot.place.segment]);
            located.on_disk.push((position, slot, segment));
        }
        for entry in self.cache.range(start.max(cached_from)..end) {
            bytes += entry.payload.len();
            if bytes > bytes_max && !(located.on_disk.is_empty() && located.cached.is_empty()) {
                break;
            }
            located.cached.push(entry.clone());
        }
        Ok(located)
    }
}
