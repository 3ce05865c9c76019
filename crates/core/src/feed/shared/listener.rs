//! One listener of a shared feed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::{oneshot, watch};

use crate::error::FeedError;
use crate::feed::event::{Change, CommittedTransaction, FeedEvent};
use crate::feed::filter::Filter;
use crate::feed::shared::ring::{Kept, Next, Ring};
use crate::feed::shared::{Hub, ListenOptions};
use crate::ids::Vlsn;
use crate::limits::PROGRESS_TRANSACTIONS;
use crate::token::CommitToken;

/// Bytes that a listener reads from the log at once, unless one transaction is larger. Each
/// listener that is behind may hold this much.
const PART_BYTES_MAX: usize = 64 * 1024;

/// Transactions that a listener passes over or takes before it is the turn of another.
const PART_EVENTS_MAX: usize = 4096;

/// A listener of a [`SharedFeed`](crate::SharedFeed): its transactions, whole, in order, each once.
///
/// As an iterator it blocks; [`FeedListener::next_async`] waits, and [`FeedListener::into_stream`]
/// makes a stream. It yields [`FeedEvent::Transaction`] and [`FeedEvent::Progress`], and ends after
/// its first error: with [`FeedError::Slow`] when it is so far behind that what it needs next is no
/// longer kept in memory. A new listener from its [`FeedListener::resume_token`] gets the rest.
pub struct FeedListener {
    hub: Arc<Hub>,
    ring: watch::Receiver<Ring>,
    stage: Stage,
    /// The last transaction delivered or left out.
    at: Vlsn,
    token: CommitToken,
    sieve: Sieve,
}

enum Stage {
    /// A part of the log is being read for it.
    Reading(oneshot::Receiver<Result<Part, FeedError>>),
    Part(Part),
    Ring,
    Ended,
}

/// What was read from the log: events, and the transaction up to which they are all.
struct Part {
    events: VecDeque<Kept>,
    upto: CommitToken,
}

impl FeedListener {
    pub(super) fn new(hub: Arc<Hub>, options: ListenOptions) -> Result<Self, FeedError> {
        options.filter.check()?;
        let node = hub.node()?;
        let mut ring = hub.ring.clone();
        let (last, is_known) = {
            let ring = ring.borrow_and_update();
            let is_known = options.after.is_none_or(|token| ring.proves(token));
            (ring.last(), is_known)
        };
        let (at, token) = match options.after {
            // The ring may be a little behind the node.
            None => (node.sequencer.visible().max(last.vlsn), last),
            Some(token) if token.group != last.group => {
                let reason = format!("the token belongs to group {}", token.group);
                return Err(FeedError::WrongGroup { reason });
            }
            Some(token) => (token.vlsn, token),
        };
        let mut listener = Self {
            hub,
            ring,
            stage: Stage::Ring,
            at,
            token,
            sieve: Sieve {
                filter: options.filter,
                left_out: 0,
            },
        };
        if !is_known {
            listener.read()?;
        }
        Ok(listener)
    }

    /// The token with which a new listener or subscription continues after this one: everything up
    /// to it has been delivered, or left out by a filter.
    pub fn resume_token(&self) -> CommitToken {
        self.token
    }

    /// The next event; waits until there is one. `None` after an error. Dropping the future before
    /// it completes loses nothing.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub async fn next_async(&mut self) -> Option<Result<FeedEvent, FeedError>> {
        if matches!(self.stage, Stage::Ended) {
            return None;
        }
        let event = self.next_event().await;
        if event.is_err() {
            self.stage = Stage::Ended;
        }
        Some(event)
    }

    /// The same as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<FeedEvent, FeedError>> + Send + use<> {
        stream::unfold(self, |mut listener| async move {
            let event = listener.next_async().await?;
            Some((event, listener))
        })
    }

    async fn next_event(&mut self) -> Result<FeedEvent, FeedError> {
        loop {
            match &mut self.stage {
                Stage::Reading(part) => {
                    let part = part.await.unwrap_or(Err(FeedError::Closed))?;
                    self.stage = Stage::Part(part);
                }
                Stage::Part(part) => {
                    if let Some(kept) = part.events.pop_front() {
                        self.stand_at(kept.token);
                        return Ok(Arc::unwrap_or_clone(kept.event));
                    }
                    let upto = part.upto;
                    self.stand_at(upto);
                    if self.ring.borrow().reaches(self.at) {
                        self.stage = Stage::Ring;
                    } else {
                        self.read()?;
                    }
                }
                Stage::Ring => {
                    if let Some(event) = self.next_in_ring().await? {
                        return Ok(event);
                    }
                }
                Stage::Ended => return Err(FeedError::Closed),
            }
        }
    }

    /// The next event of the ring; `None` if it was left out.
    async fn next_in_ring(&mut self) -> Result<Option<FeedEvent>, FeedError> {
        let at = self.at;
        let news = match self.ring.wait_for(|ring| ring.has_news(at)).await {
            Ok(ring) => ring.after(at),
            Err(_) => Next::Ended(FeedError::Closed),
        };
        match news {
            Next::Event(kept) => {
                self.stand_at(kept.token);
                Ok(self
                    .sieve
                    .pass(kept)
                    .map(|kept| Arc::unwrap_or_clone(kept.event)))
            }
            Next::Gone => Err(FeedError::Slow { resume: self.token }),
            Next::Ended(error) => Err(error),
            Next::NotYet => Ok(None),
        }
    }

    fn stand_at(&mut self, token: CommitToken) {
        self.token = token;
        self.at = self.at.max(token.vlsn);
    }

    /// Has the next part read from the log. A task does it, which holds its place only while it
    /// reads, however long this listener is not asked for its next event.
    fn read(&mut self) -> Result<(), FeedError> {
        let held = self.hub.ground.hold().ok_or(FeedError::Closed)?;
        let (mut done, part) = oneshot::channel();
        let (hub, after) = (Arc::clone(&self.hub), self.token);
        let sieve = self.sieve.clone();
        let reading = async move {
            let part = tokio::select! {
                biased;
                () = done.closed() => return,
                part = read_part(&hub, after, sieve) => part,
            };
            // The listener may have been dropped meanwhile.
            done.send(part).ok();
        };
        let _runtime = held.handle.enter();
        self.hub.tasks.spawn(reading);
        self.stage = Stage::Reading(part);
        Ok(())
    }
}

impl Iterator for FeedListener {
    type Item = Result<FeedEvent, FeedError>;

    fn next(&mut self) -> Option<Self::Item> {
        let ground = self.hub.ground.clone();
        ground.wait_for(self.next_async())
    }
}

impl fmt::Debug for FeedListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedListener")
            .field("has_ended", &matches!(self.stage, Stage::Ended))
            .field("resume", &self.token)
            .finish_non_exhaustive()
    }
}

/// Reads what follows `after`, up to where the ring begins, or for one turn.
async fn read_part(hub: &Hub, after: CommitToken, mut sieve: Sieve) -> Result<Part, FeedError> {
    hub.applied(after.vlsn).await?;
    let place = Arc::clone(&hub.places).acquire_owned().await;
    let mut feed = hub.feed(after, place.map_err(|_| FeedError::Closed)?)?;
    feed.begin().await?;
    let (mut events, mut bytes) = (VecDeque::new(), 0);
    for _ in 0..PART_EVENTS_MAX {
        let upto = feed.resume_token().unwrap_or(after);
        if bytes >= PART_BYTES_MAX || hub.ring.borrow().reaches(upto.vlsn) {
            break;
        }
        let Some(event) = feed.next_applied().await? else {
            break;
        };
        let kept = Kept::owned(&event).and_then(|kept| sieve.pass(kept));
        bytes += kept.as_ref().map_or(0, |kept| kept.bytes);
        events.extend(kept);
    }
    let upto = feed.resume_token().unwrap_or(after);
    Ok(Part { events, upto })
}

/// What a listener wants to hear of.
#[derive(Clone)]
struct Sieve {
    filter: Filter,
    /// Transactions left out since the last event.
    left_out: u64,
}

impl Sieve {
    /// The event as far as the filter lets it through. In place of the last of many that it does
    /// not, the position.
    fn pass(&mut self, kept: Kept) -> Option<Kept> {
        let FeedEvent::Transaction(transaction) = &*kept.event else {
            self.left_out = 0;
            return Some(kept);
        };
        if self.filter.is_all() {
            return Some(kept);
        }
        let wanted = |change: &&Change| self.filter.has_change(change);
        let changes: Vec<_> = transaction.changes.iter().filter(wanted).cloned().collect();
        let token = kept.token;
        if !changes.is_empty() {
            self.left_out = 0;
            let transaction = CommittedTransaction {
                changes,
                ..*transaction
            };
            return Some(kept.with(FeedEvent::Transaction(transaction)));
        }
        self.left_out += 1;
        if self.left_out < PROGRESS_TRANSACTIONS {
            return None;
        }
        self.left_out = 0;
        Some(kept.with(FeedEvent::Progress { token }))
    }
}
